//! The tasks of a guest. Loading one part overlaps encoding another: a few are loaded at a time, as many as the disk holds,
//! and `slots` are encoded at a time. Sound is encoded beside them, because a whole job waits for that one task and it is
//! short.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use storage::fetch::Fetcher;
use storage::film::part::{PartSpec, Work};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tracing::{Instrument, info, info_span, warn};

use super::encoder::Encoder;
use super::fault::Fault;
use super::task::{Order, Phase, TaskState};
use super::work_dir::WorkRoot;
use super::{audio, video};

/// Tasks a guest remembers; the host manager forgets each when its end is known, so this is only met by a fault.
const TASKS_MAX: usize = 256;
/// Limits and places of a guest.
#[derive(Clone, Debug)]
pub struct GuestConfig {
    /// Task directories are made here; it belongs to this guest alone.
    pub dir: PathBuf,
    /// Parts encoded at the same time.
    pub slots: usize,
    /// Parts loaded at the same time.
    pub loads: usize,
    /// Bytes of input kept on disk.
    pub disk_bytes_max: u64,
    /// Path or name of ffmpeg.
    pub ffmpeg: PathBuf,
    /// Wait for an order that is not there yet; as long as home tries to write one to a store that is not well.
    pub order_wait: Duration,
    /// Where peers of a swarm reach this guest.
    pub swarm_listen: IpAddr,
}

/// The agent.
pub struct Guest {
    tasks: Mutex<BTreeMap<String, Task>>,
    tools: Arc<Tools>,
}

struct Task {
    state: watch::Receiver<TaskState>,
    work: JoinHandle<()>,
}

/// What all tasks share.
pub(super) struct Tools {
    pub root: WorkRoot,
    pub encoder: Encoder,
    pub loads: Semaphore,
    pub encodes: Semaphore,
    pub sound: Semaphore,
    order_wait: Duration,
    pub swarm_listen: IpAddr,
}

/// What all tasks read and upload by.
pub(super) fn fetcher() -> Result<&'static Fetcher, Fault> {
    Fetcher::shared().map_err(|error| Fault::Io(std::io::Error::other(error)))
}

/// Why a task was not started.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("a task id has 1 to 256 bytes")]
    BadId,
    #[error("{TASKS_MAX} tasks are known already; DELETE those that ended")]
    Full,
}

impl Guest {
    /// Opens the directory, which removes what an earlier guest left there.
    pub fn open(config: GuestConfig) -> std::io::Result<Arc<Self>> {
        let tools = Tools {
            root: WorkRoot::open(&config.dir, config.disk_bytes_max)?,
            encoder: Encoder::new(config.ffmpeg),
            loads: Semaphore::new(config.loads.max(1)),
            encodes: Semaphore::new(config.slots.max(1)),
            sound: Semaphore::new(1),
            order_wait: config.order_wait,
            swarm_listen: config.swarm_listen,
        };
        Ok(Arc::new(Self { tasks: Mutex::default(), tools: Arc::new(tools) }))
    }

    /// Starts a task and answers its state; a known one is left as it is.
    pub fn start(&self, id: &str, order: Order) -> Result<TaskState, Refusal> {
        if id.is_empty() || id.len() > 256 {
            return Err(Refusal::BadId);
        }
        let mut tasks = self.tasks.lock().expect("no panic while locked");
        if let Some(task) = tasks.get(id) {
            return Ok(task.state.borrow().clone());
        }
        if tasks.len() >= TASKS_MAX {
            return Err(Refusal::Full);
        }
        let first = TaskState { task: id.to_owned(), ..TaskState::default() };
        let (sender, state) = watch::channel(first.clone());
        let work = tokio::spawn(run(self.tools.clone(), order, Report(sender)).instrument(info_span!("task", id)));
        tasks.insert(id.to_owned(), Task { state, work });
        Ok(first)
    }

    pub fn watch(&self, id: &str) -> Option<watch::Receiver<TaskState>> {
        Some(self.tasks.lock().expect("no panic while locked").get(id)?.state.clone())
    }

    pub fn list(&self) -> Vec<TaskState> {
        self.tasks.lock().expect("no panic while locked").values().map(|task| task.state.borrow().clone()).collect()
    }

    /// Returns when the task's process and files are gone.
    pub async fn stop(&self, id: &str) {
        let task = self.tasks.lock().expect("no panic while locked").remove(id);
        if let Some(task) = task {
            task.work.abort();
            let _ = task.work.await;
        }
    }

    /// Stops everything.
    pub async fn close(&self) {
        for state in self.list() {
            self.stop(&state.task).await;
        }
    }
}

/// The writing end of a task's state.
pub(super) struct Report(watch::Sender<TaskState>);

impl Report {
    pub fn update(&self, change: impl FnOnce(&mut TaskState)) {
        self.0.send_modify(change);
    }

    pub fn phase(&self, phase: Phase) {
        info!(state = phase.as_str());
        self.update(|state| state.state = phase);
    }
}

async fn run(tools: Arc<Tools>, order: Order, report: Report) {
    match work(&tools, &order, &report).await {
        Ok(()) => {
            report.update(|state| state.percent = 100.0);
            report.phase(Phase::Done);
        }
        Err(fault) => {
            warn!(code = fault.code(), error = %fault, "task failed");
            report.update(|state| {
                state.failure = Some(fault.to_failure());
                state.state = Phase::Failed;
            });
        }
    }
}

async fn work(tools: &Tools, order: &Order, report: &Report) -> Result<(), Fault> {
    let load = tools.loads.acquire().await.expect("never closed");
    report.phase(Phase::Loading);
    let spec = read_order(tools, &order.url).await?;
    info!(job = spec.job, part = spec.part, attempt = spec.attempt, "order read");
    match spec.work {
        Work::Video(work) => video::run(tools, &work, order.swarm.as_deref(), report, load).await,
        Work::Audio(work) => audio::run(tools, &work, report, load).await,
    }
}

/// Home says that work may start before it has written what is to be done, so an order may come a little late.
async fn read_order(tools: &Tools, url: &str) -> Result<PartSpec, Fault> {
    let json = fetcher()?.get_when_written(url, PartSpec::BYTES_MAX, tools.order_wait).await;
    serde_json::from_slice(&json.map_err(Fault::of_order)?).map_err(|error| Fault::BadOrder(error.to_string()))
}

/// Wall time since `began`.
pub(super) fn ms(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}
