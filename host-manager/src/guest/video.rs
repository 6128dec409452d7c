//! A part of a film: load its bytes, hand the sound on as it is, encode the frames in every rendition, check, publish.

use std::io::SeekFrom;
use std::path::{Path, PathBuf};
use std::time::Instant;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use storage::film::part::VideoWork;
use storage::film::{ffmpeg, fragment};
use tokio::fs::File;
use tokio::io::AsyncSeekExt;
use tokio::sync::SemaphorePermit;

use super::fault::Fault;
use super::output::Output;
use super::runner::{Report, Tools, fetcher, ms};
use super::swarm;
use super::task::Phase;

/// `load` is the right to load; it is given back when the input is here.
pub(super) async fn run(
    tools: &Tools,
    work: &VideoWork,
    swarm: Option<&str>,
    report: &Report,
    load: SemaphorePermit<'_>,
) -> Result<(), Fault> {
    let head = BASE64_STANDARD.decode(&work.input.head).map_err(|error| Fault::BadOrder(format!("head: {error}")))?;
    if work.renditions.is_empty() || work.clip.frames == 0 {
        return Err(Fault::BadOrder("no rendition or no frame".to_owned()));
    }
    let total = work.input.ranges.iter().map(|range| range.len()).fold(0, u64::saturating_add);
    report.update(|state| state.bytes_total = total);
    // What a swarm brings lies on disk twice: for the others, and as input.
    let _disk = tools.root.reserve(if swarm.is_some() { 2 * total } else { total }).await;
    let dir = tools.root.task_dir()?;
    let input = dir.path().join("input");
    tokio::fs::write(&input, head).await?;
    let seat = match swarm {
        Some(url) => swarm::load(tools, url, &work.input.ranges, &input, report).await?,
        None => None,
    };
    if seat.is_none() {
        fetch(work, &input, report).await?;
    }
    hand_sound_on(tools, work, &input, &dir.path().join("sound"), report).await?;
    report.phase(Phase::Loaded);
    drop(load);

    let slot = tools.encodes.acquire().await.expect("never closed");
    let outputs: Vec<PathBuf> = (0..work.renditions.len()).map(|n| dir.path().join(format!("{n}.mp4"))).collect();
    encode(tools, work, &input, &outputs, dir.path(), report).await?;
    drop(slot);

    report.phase(Phase::Publishing);
    let began = Instant::now();
    // All are checked before the first is put: a wrong number of frames publishes nothing.
    let mut checked = Vec::new();
    for (rendition, path) in work.renditions.iter().zip(&outputs) {
        let output = Output::inspected(path, &rendition.key, "video/mp4").await?;
        let summary = output.summary.as_ref().expect("inspected");
        fragment::check(summary, &work.clip).map_err(|error| Fault::WrongFrames(error.to_string()))?;
        checked.push((output, &rendition.put));
    }
    for (output, put) in checked {
        output.publish(fetcher()?, put, report).await?;
    }
    report.update(|state| state.usage.publish_ms += ms(began));
    if let Some(seat) = seat {
        seat.leave().await;
    }
    Ok(())
}

async fn fetch(work: &VideoWork, input: &Path, report: &Report) -> Result<(), Fault> {
    let began = Instant::now();
    let mut file = File::options().write(true).open(input).await?;
    file.seek(SeekFrom::End(0)).await?;
    let mut on_bytes = |bytes| report.update(|state| state.bytes = bytes);
    let (source, ranges) = (&work.source, &work.input.ranges);
    let fetched = fetcher()?.ranges_to_file(&source.url, &source.etag, ranges, &mut file, &mut on_bytes);
    let stats = fetched.await.map_err(Fault::of_source)?;
    report.update(|state| {
        state.bytes = stats.bytes;
        state.usage.bytes_in += stats.fetched;
        state.usage.throttled += stats.throttled;
        state.usage.download_ms += ms(began);
    });
    Ok(())
}

/// The encoding of the sound, elsewhere, waits for this; so it goes out before the frames are touched.
async fn hand_sound_on(
    tools: &Tools,
    work: &VideoWork,
    input: &Path,
    sound: &Path,
    report: &Report,
) -> Result<(), Fault> {
    let Some((cut, args)) = work.audio.as_ref().zip(ffmpeg::audio_copy_args(work, input, sound)) else { return Ok(()) };
    let began = Instant::now();
    let cpu_ms = tools.encoder.run(&args, input.parent().unwrap_or(input), |_| ()).await?;
    Output::raw(sound, &cut.key, "application/octet-stream").await?.publish(fetcher()?, &cut.put, report).await?;
    report.update(|state| {
        state.usage.load_ms += ms(began);
        state.usage.cpu_ms += cpu_ms;
    });
    Ok(())
}

async fn encode(
    tools: &Tools,
    work: &VideoWork,
    input: &Path,
    outputs: &[PathBuf],
    dir: &Path,
    report: &Report,
) -> Result<(), Fault> {
    report.phase(Phase::Running);
    let began = Instant::now();
    let args = ffmpeg::video_args(work, input, outputs);
    let percent = |frame: u64| (frame as f32 * 100.0 / work.clip.frames as f32).min(100.0);
    let cpu_ms = tools.encoder.run(&args, dir, |frame| report.update(|state| state.percent = percent(frame))).await?;
    report.update(|state| {
        state.usage.process_ms += ms(began);
        state.usage.cpu_ms += cpu_ms;
    });
    Ok(())
}
