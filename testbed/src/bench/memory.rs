//! Resident memory of each kind of process, ten seconds after a world came up, with nothing to do.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::rig::Rig;
use super::{Figure, cpu, median};

#[derive(Args)]
pub struct MemoryArgs {
    /// Worlds to start and look at, one after the other.
    #[arg(long, default_value_t = 3)]
    pub runs: u32,
    /// How long each stays idle before it is looked at, seconds.
    #[arg(long, default_value_t = 10)]
    pub idle: u64,
}

impl Default for MemoryArgs {
    fn default() -> Self {
        Self { runs: 3, idle: 10 }
    }
}

pub async fn run(args: MemoryArgs) -> Result<Vec<Figure>> {
    ensure!(args.runs > 0, "at least one run");
    let mut seen: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for _ in 0..args.runs {
        let rig = Rig::start(2).await?;
        tokio::time::sleep(Duration::from_secs(args.idle)).await;
        for process in &rig.world.document.processes {
            let mut look = |role, pid| -> Result<()> {
                let bytes = cpu::resident_bytes(pid).with_context(|| format!("look at the memory of {role}"))?;
                seen.entry(role).or_default().push(bytes as f64 / 1e6);
                Ok(())
            };
            match process.role.as_str() {
                "cluster-manager" => look("cluster-manager", process.pid)?,
                "host-manager" => {
                    look("host-manager", process.pid)?;
                    for pid in cpu::descendants(process.pid) {
                        if cpu::name(pid) == "guest" {
                            look("guest", pid)?;
                        }
                    }
                }
                _ => {}
            }
        }
        rig.world.end().await;
    }
    let build = if cfg!(debug_assertions) { "dev build" } else { "release build" };
    let figure = |role: &str, bound: f64| -> Result<Figure> {
        let values = seen.get(role).with_context(|| format!("find a {role}"))?;
        let (middle, most) = (median(values.iter().copied()), values.iter().copied().fold(0.0, f64::max));
        Ok(Figure {
            measure: format!("idle memory, {role}, {build}"),
            must: format!("<= {bound:.0} MB"),
            measured: format!("{middle:.1} MB (most {most:.1}; {} processes)", values.len()),
            met: Some(most <= bound),
            detail: serde_json::json!({ "mb": values }),
        })
    };
    [("cluster-manager", 40.0), ("host-manager", 25.0), ("guest", 10.0)]
        .map(|(r, b)| figure(r, b))
        .into_iter()
        .collect()
}
