//! The processes of a run; ended by their own pid when dropped.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::Context;

/// Not a host: what helps the benchmark and is not counted.
pub const HELPER: u32 = u32::MAX;

#[derive(Default)]
pub struct Children(Vec<(u32, Child)>);

impl Children {
    pub fn spawn(&mut self, host: u32, command: &mut Command, log: &Path) -> anyhow::Result<()> {
        let log = File::create(log)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.0.push((host, command.spawn().with_context(|| format!("starting {command:?}"))?));
        Ok(())
    }

    pub fn kill(&mut self, host: u32) {
        for (_, child) in self.0.iter_mut().filter(|(h, _)| *h == host) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// CPU seconds of all clients, and the most memory that a host's client held (MB).
    pub fn usage(&self) -> (f64, f64) {
        let mut cpu = 0.0;
        let mut rss = 0.0f64;
        for (_, child) in self.0.iter().filter(|(host, _)| *host != HELPER) {
            let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap_or_default();
            let fields: Vec<_> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
            let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
            // Linux on every platform that we run on counts these in hundredths of a second.
            cpu += (ticks(11) + ticks(12)) / 100.0;
            let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
            let high = status
                .lines()
                .find_map(|l| l.strip_prefix("VmHWM:"))
                .and_then(|l| l.trim().split(' ').next()?.parse::<f64>().ok());
            rss = rss.max(high.unwrap_or(0.0) / 1000.0);
        }
        (cpu, rss)
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        for (_, child) in &mut self.0 {
            let _ = child.kill();
        }
        for (_, child) in &mut self.0 {
            let _ = child.wait();
        }
    }
}
