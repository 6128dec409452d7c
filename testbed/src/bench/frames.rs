//! Whole jobs over six containers at two rates; what comes out is decoded from HLS, DASH and SMIL and looked at frame by
//! frame.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use clap::Args;
use cluster_manager::view::JobDoc;
use storage::object::ObjectPath;

use super::Figure;
use super::rig::Rig;
use crate::film::{self, Container, Expected, Film, Rate, Report};

#[derive(Args)]
pub struct FramesArgs {
    /// Length of each film.
    #[arg(long, default_value_t = 20)]
    pub seconds: u32,
    /// Jobs over each film.
    #[arg(long, default_value_t = 3)]
    pub runs: u32,
}

impl Default for FramesArgs {
    fn default() -> Self {
        Self { seconds: 20, runs: 3 }
    }
}

pub async fn run(args: FramesArgs) -> Result<Vec<Figure>> {
    ensure!(args.runs > 0, "at least one run");
    let mut rig = Rig::start(1).await?;
    let mut figures = Vec::new();
    for container in Container::ALL {
        for (rate, open_gop) in [(Rate { num: 30, den: 1 }, false), (Rate { num: 30_000, den: 1001 }, true)] {
            // VP8 has no open groups; Matroska with H.264 has them.
            let film = Film { seconds: args.seconds, rate, container, open_gop, ..Film::default() };
            let figure = case(&mut rig, &film, args.runs).await?;
            println!("{}: {}", figure.measure, figure.measured);
            figures.push(figure);
        }
    }
    rig.world.end().await;
    Ok(figures)
}

async fn case(rig: &mut Rig, film: &Film, runs: u32) -> Result<Figure> {
    let gop = if film.open_gop && film.container != Container::Webm { "open GOP" } else { "closed GOP" };
    let measure = format!("frames, {:?}, {} fps, {gop}", film.container, film.rate).to_lowercase();
    let must = "each frame once, in order; PTS error 0; one init segment; sound in step, no gap".to_owned();
    let (_, source) = rig.film(film).await?;
    let (mut reports, mut wrong, mut detail) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs {
        let (found, problems) = match rig.job(&source).await {
            Ok(outcome) => look(rig, film, &outcome.document).await?,
            Err(error) => (Vec::new(), vec![format!("{error:#}")]),
        };
        detail.push(serde_json::json!({ "reports": found, "problems": problems }));
        reports.extend(found);
        wrong.extend((!problems.is_empty()).then(|| problems.join("; ")));
    }
    let right = runs as usize - wrong.len();
    let mut measured = format!("{right} of {runs} runs right over HLS, DASH, SMIL, one init; {}", worst(&reports));
    wrong.iter().for_each(|problems| measured += &format!("; wrong: {problems}"));
    Ok(Figure { measure, must, measured, met: Some(wrong.is_empty()), detail: detail.into() })
}

/// What players see of a job's result by each way, and what is wrong with it.
async fn look(rig: &Rig, film: &Film, job: &JobDoc) -> Result<(Vec<Report>, Vec<String>)> {
    let results = job.results.as_ref().context("a job that is done has results")?;
    let expected = Expected { frames: film.frames(), rate: film.rate };
    let documents = [("HLS", &results.hls), ("DASH", &results.dash), ("SMIL", &results.smil)];
    let reports = futures::future::try_join_all(documents.map(|(_, url)| film::verify_any(url, expected))).await?;
    let mut problems: Vec<String> = Vec::new();
    for ((name, _), report) in documents.iter().zip(&reports) {
        problems.extend(report.problems(expected).into_iter().map(|problem| format!("{name}: {problem}")));
    }
    let inits = init_segments(rig, &job.target).await?;
    if inits != 1 {
        problems.push(format!("{inits} different init segments"));
    }
    Ok((reports, problems))
}

/// The largest deviations over all ways and runs.
fn worst(reports: &[Report]) -> String {
    let most = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
    let pts = most(&mut reports.iter().flat_map(|r| &r.video).map(|v| v.pts_error_ms));
    let audio = || reports.iter().filter_map(|r| r.audio.as_ref());
    let drift = most(&mut audio().map(|a| a.lag_ms_max - a.lag_ms_min));
    let gap = most(&mut audio().map(|a| a.gap_ms));
    format!("PTS error {pts:.3} ms, sound drift {drift:.3} ms, gap {gap:.3} ms")
}

/// How many different heads the picture's objects have: all that stands before the first `moof` box.
async fn init_segments(rig: &Rig, target: &str) -> Result<usize> {
    let store = rig.world.document.s3.store().await?;
    let prefix: ObjectPath = target.parse()?;
    let mut heads = BTreeSet::new();
    for object in store.list(&prefix, 10_000).await? {
        let is_picture = object.key.rsplit('/').next().is_some_and(|name| name.starts_with('v'));
        if is_picture && object.key.ends_with(".mp4") {
            let bytes = store.get(&ObjectPath::new(prefix.bucket(), &object.key)?, 1 << 30).await?;
            heads.insert(head(&bytes).to_vec());
        }
    }
    Ok(heads.len())
}

fn head(bytes: &[u8]) -> &[u8] {
    let mut at = 0usize;
    while let Some(header) = bytes.get(at..at + 8) {
        let size = u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize;
        if &header[4..] == b"moof" || size < 8 {
            return &bytes[..at];
        }
        at += size;
    }
    bytes
}
