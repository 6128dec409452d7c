//! Wall time of a whole job against one plain ffmpeg that makes the same: same source by HTTP from the same store, same
//! rendition, same sound, HLS on disk.
//!
//! The two alternate, so that both see the same neighbours; the ratio is that of the medians.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;
use storage::object::ObjectPath;

use super::rig::{Outcome, Rig};
use super::{Figure, cpu, load_average, median};
use crate::demo::put_film;
use crate::film::Film;
use crate::process::tied;

#[derive(Args)]
pub struct WallArgs {
    /// Length of the film.
    #[arg(long, default_value_t = 2.0)]
    pub minutes: f64,
    /// A film of that length made earlier by `testbed film make`, instead of one made now.
    #[arg(long)]
    pub film: Option<PathBuf>,
    /// Pairs of a job and a plain run.
    #[arg(long, default_value_t = 3)]
    pub runs: u32,
    /// Host managers in each domain, with one encoder thread each.
    #[arg(long, default_value_t = 1)]
    pub hosts: u32,
    /// Encoder threads of the plain run; as many as the job's if nothing is said.
    #[arg(long)]
    pub threads: Option<u32>,
}

impl Default for WallArgs {
    fn default() -> Self {
        Self { minutes: 2.0, film: None, runs: 3, hosts: 1, threads: None }
    }
}

#[derive(Serialize)]
struct Pair {
    job_wall_s: f64,
    /// With the client's own start and log-in.
    job_outside_s: f64,
    job_cpu_s: f64,
    /// The same by program.
    job_cpu_of: BTreeMap<String, f64>,
    plain_wall_s: f64,
    plain_cpu_s: f64,
    /// Of the source object, sent by the store for the job.
    source_bytes: u64,
    load: String,
}

pub async fn run(args: WallArgs) -> Result<Vec<Figure>> {
    ensure!(args.runs > 0, "at least one run");
    let seconds = (args.minutes * 60.0).round() as u32;
    let mut rig = Rig::start(args.hosts).await?;
    let threads = args.threads.unwrap_or(rig.world.document.domains.len() as u32 * args.hosts);
    let (path, source) = match args.film {
        Some(path) => {
            let source = put_film(&rig.world.document.s3, &path, None).await?;
            (path, source)
        }
        None => rig.film(&Film { seconds, ..Film::default() }).await?,
    };
    let size = std::fs::metadata(&path)?.len();
    let key = source.strip_prefix("s3:/").context("name the source")?.to_owned();
    let url = presigned(&rig, &source).await?;
    let mut pairs = Vec::new();
    for n in 0..args.runs {
        // Who goes first changes, so that a drift of the machine favours nobody.
        let (mut job, mut plain) = (None, None);
        for job_turn in [n % 2 == 0, n % 2 != 0] {
            if job_turn {
                let before = rig.shelf.counters().get_bytes_of.get(&key).copied().unwrap_or(0);
                let outcome = rig.job(&source).await?;
                let after = rig.shelf.counters().get_bytes_of.get(&key).copied().unwrap_or(0);
                job = Some((outcome, after - before));
            } else {
                plain = Some(plain_run(&url, rig.dir.path(), threads).await?);
            }
        }
        let ((job, source_bytes), (plain_wall, plain_cpu_s)) = job.zip(plain).context("run both")?;
        pairs.push(pair(&job, source_bytes, plain_wall, plain_cpu_s));
        let last = pairs.last().expect("just pushed");
        println!(
            "run {}: job {:.2} s ({:.1} CPU s), plain ffmpeg {:.2} s ({:.1} CPU s), source bytes {:.4} x, load {}",
            n + 1,
            last.job_wall_s,
            last.job_cpu_s,
            last.plain_wall_s,
            last.plain_cpu_s,
            source_bytes as f64 / size as f64,
            last.load
        );
    }
    rig.world.end().await;

    let middle = |of: fn(&Pair) -> f64| median(pairs.iter().map(of));
    let (job, plain) = (middle(|p| p.job_wall_s), middle(|p| p.plain_wall_s));
    let (ratio, bytes) = (job / plain, middle(|p| p.source_bytes as f64) / size as f64);
    let bound = if seconds >= 600 { 1.05 } else { 1.10 };
    let wall = Figure {
        measure: format!("wall time, film of {seconds} s, 3 domains against plain ffmpeg -threads {threads}"),
        must: format!("<= {bound:.2}"),
        measured: format!(
            "{ratio:.3} ({job:.2} s / {plain:.2} s; CPU {:.1} s / {:.1} s; {} runs)",
            middle(|p| p.job_cpu_s),
            middle(|p| p.plain_cpu_s),
            pairs.len()
        ),
        met: Some(ratio <= bound),
        detail: serde_json::json!({ "pairs": pairs, "hosts_per_domain": args.hosts, "plain_threads": threads }),
    };
    let fetched = Figure {
        measure: format!("bytes of the source sent by the store, MP4 of {seconds} s ({size} bytes)"),
        must: "<= 1.03 x".to_owned(),
        measured: format!("{bytes:.4} x"),
        met: Some(bytes <= 1.03),
        detail: serde_json::json!({ "file_bytes": size }),
    };
    Ok(vec![wall, fetched])
}

fn pair(job: &Outcome, source_bytes: u64, plain_wall: Duration, plain_cpu_s: f64) -> Pair {
    Pair {
        job_wall_s: job.wall.as_secs_f64(),
        job_outside_s: job.outside.as_secs_f64(),
        job_cpu_s: job.cpu_seconds.values().sum(),
        job_cpu_of: job.cpu_seconds.clone(),
        plain_wall_s: plain_wall.as_secs_f64(),
        plain_cpu_s,
        source_bytes,
        load: load_average(),
    }
}

async fn presigned(rig: &Rig, source: &str) -> Result<String> {
    let store = rig.world.document.s3.store().await?;
    let place: ObjectPath = source.parse()?;
    Ok(store.presign_get(&place, Duration::from_secs(6 * 3600)).await?)
}

/// The encoder's settings are those of an order (`storage::film::ffmpeg`); sound and packaging as a person would write them.
async fn plain_run(url: &str, dir: &Path, threads: u32) -> Result<(Duration, f64)> {
    let out = tempfile::tempdir_in(dir)?;
    let threads = threads.to_string();
    let mut ffmpeg = tokio::process::Command::from(tied("ffmpeg"));
    ffmpeg.args(["-nostdin", "-y", "-v", "error", "-threads", &threads, "-i", url, "-vf", "scale=-2:480"]);
    ffmpeg.args(["-c:v", "libx264", "-threads", &threads, "-preset", "veryfast", "-crf", "23", "-g", "60"]);
    ffmpeg.args(["-keyint_min", "60", "-sc_threshold", "0", "-flags", "+cgop", "-pix_fmt", "yuv420p"]);
    ffmpeg.args(["-c:a", "aac", "-b:a", "128k", "-f", "hls", "-hls_time", "10", "-hls_playlist_type", "vod"]);
    ffmpeg.args(["-hls_segment_type", "fmp4"]).arg(out.path().join("film.m3u8")).stdin(Stdio::null());
    let (began, before) = (Instant::now(), cpu::seconds_waited_for());
    let output = ffmpeg.output().await.context("start ffmpeg (Debian package ffmpeg)")?;
    let wall = began.elapsed();
    ensure!(output.status.success(), "ffmpeg: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok((wall, cpu::seconds_waited_for() - before))
}
