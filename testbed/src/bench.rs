//! What the product must reach, measured from outside: with the binaries that stand beside this one, on this machine.
//!
//! Every figure is a median of several runs, and all that is compared is measured alternately in one run: on a machine that
//! others use too, only that can be compared.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde::Serialize;

mod cpu;
mod frames;
mod memory;
mod negotiate;
pub mod overlay;
mod rig;
mod wall;

#[derive(Args)]
#[command(after_help = "Example: testbed bench wall --minutes 10 --runs 3 --json wall.json\nWithout a name, all run.")]
pub struct BenchArgs {
    #[command(subcommand)]
    bench: Option<Bench>,
    /// Write the figures here too.
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Bench {
    /// Every frame once, in order and on time, for six containers at two rates.
    Frames(frames::FramesArgs),
    /// A whole job on three domains against one plain ffmpeg run; and the bytes read from the store.
    Wall(wall::WallArgs),
    /// From submission to the last commitment, with more and more foreign domains.
    Negotiate(negotiate::NegotiateArgs),
    /// Resident memory of idle processes.
    Memory(memory::MemoryArgs),
    /// Loading many hosts: ours beside the clients that others wrote, in network namespaces; needs root.
    Overlay(overlay::OverlayArgs),
}

/// One line of a table: a measure, what it must be, what it was.
#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    pub measure: String,
    pub must: String,
    pub measured: String,
    pub met: Option<bool>,
    /// All runs, and what else belongs to them.
    pub detail: serde_json::Value,
}

/// Runs one benchmark, or all.
///
/// # Errors
/// Something could not be measured. A figure beyond its bound is no error: it is printed as a miss.
pub async fn run(args: BenchArgs) -> Result<()> {
    // Prints tables and writes a file of its own kind: ratios to the bound, by client.
    if let Some(Bench::Overlay(args)) = &args.bench {
        return overlay::run(args).await;
    }
    let load = load_average();
    let figures = match args.bench {
        Some(bench) => one(bench).await?,
        None => {
            let mut all = frames::run(frames::FramesArgs::default()).await?;
            all.extend(wall::run(wall::WallArgs::default()).await?);
            all.extend(wall::run(wall::WallArgs { minutes: 10.0, ..wall::WallArgs::default() }).await?);
            all.extend(negotiate::run(negotiate::NegotiateArgs::default()).await?);
            all.extend(memory::run(memory::MemoryArgs::default()).await?);
            all
        }
    };
    print!("\n{}", table(&figures));
    println!("\nLoad average before and after: {load}; {}", load_average());
    if let Some(path) = &args.json {
        let document = serde_json::json!({
            "build": if cfg!(debug_assertions) { "dev" } else { "release" },
            "cores": std::thread::available_parallelism().map_or(0, usize::from),
            "load_before": load, "load_after": load_average(), "figures": figures,
        });
        std::fs::write(path, serde_json::to_vec_pretty(&document)?)
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

async fn one(bench: Bench) -> Result<Vec<Figure>> {
    match bench {
        Bench::Frames(args) => frames::run(args).await,
        Bench::Wall(args) => wall::run(args).await,
        Bench::Negotiate(args) => negotiate::run(args).await,
        Bench::Memory(args) => memory::run(args).await,
        Bench::Overlay(_) => Ok(Vec::new()),
    }
}

fn table(figures: &[Figure]) -> String {
    let mut text = String::from("| measure | must | measured | |\n|---|---|---|---|\n");
    for figure in figures {
        let verdict = figure.met.map_or("", |met| if met { "met" } else { "MISSED" });
        text += &format!("| {} | {} | {} | {verdict} |\n", figure.measure, figure.must, figure.measured);
    }
    text
}

/// The kernel's three averages, as text.
fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// The middle one; of an even number, the mean of the two in the middle. NaN of none.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let n = values.len();
    match n {
        0 => f64::NAN,
        _ if n % 2 == 1 => values[n / 2],
        _ => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

pub(crate) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median([]).is_nan());
    }
}
