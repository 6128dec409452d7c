//! Keeps the guests of a host alive: one keeper for each makes its machine, tells when it is ready and when it is gone, and
//! makes it again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{Instrument, error, info, info_span, warn};

use crate::vm::{Driver, Vm, VmError, VmName, VmSpec};

const FIRST_DELAY: Duration = Duration::from_millis(100);
const DELAY_MAX: Duration = Duration::from_secs(10);
/// A machine that lived this long was well: the next failure starts from the first delay.
const HEALTHY: Duration = Duration::from_secs(30);
/// Bytes of its console that are logged when a machine has died.
const CONSOLE_TAIL: u64 = 2048;

/// What happens to guest number `.0`.
#[derive(Debug)]
pub enum GuestEvent {
    Up(usize, Vm),
    Down(usize),
}

/// The guests of a host.
pub struct Pool {
    driver: Arc<dyn Driver>,
    keepers: JoinSet<()>,
}

impl Pool {
    /// Spreads `slots` over `guests` machines and keeps them alive. The channel is bounded by its receiver's pace: there are
    /// never more events than deaths.
    pub fn start(
        driver: Arc<dyn Driver>,
        guests: u32,
        slots: u32,
        events: mpsc::Sender<GuestEvent>,
    ) -> Result<Self, VmError> {
        let mut keepers = JoinSet::new();
        for index in 0..guests {
            let name = VmName::new(format!("guest-{index}"))?;
            let spec = VmSpec { slots: slots / guests + u32::from(index < slots % guests) };
            let span = info_span!("guest", name = %name);
            keepers.spawn(keep(driver.clone(), index as usize, name, spec, events.clone()).instrument(span));
        }
        Ok(Self { driver, keepers })
    }

    /// Returns when all machines are gone.
    pub async fn close(mut self) {
        self.keepers.shutdown().await;
        for name in self.driver.list() {
            if let Err(error) = self.driver.delete(&name).await {
                warn!(guest = %name, %error, "machine not cleared away");
            }
        }
    }
}

async fn keep(driver: Arc<dyn Driver>, index: usize, name: VmName, spec: VmSpec, events: mpsc::Sender<GuestEvent>) {
    let mut delay = FIRST_DELAY;
    loop {
        let born = Instant::now();
        match driver.create(&name, &spec).await {
            Ok(vm) => {
                info!(address = %vm.address, "guest is ready");
                if events.send(GuestEvent::Up(index, vm)).await.is_err() {
                    return;
                }
                driver.ended(&name).await;
                let status = driver.status(&name);
                let console = driver.console(&name, CONSOLE_TAIL).unwrap_or_default();
                warn!(?status, console, "guest has died");
                if events.send(GuestEvent::Down(index)).await.is_err() {
                    return;
                }
            }
            Err(error) => error!(%error, "no guest"),
        }
        if let Err(error) = driver.delete(&name).await {
            warn!(%error, "machine not cleared away");
        }
        delay = if born.elapsed() > HEALTHY { FIRST_DELAY } else { (delay * 2).min(DELAY_MAX) };
        tokio::time::sleep(delay).await;
    }
}
