//! What the claims are measured with.

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use storage::film::part::{AudioCut, Rendition, RenditionOutput, Source, VideoWork};
use storage::film::{FilmError, Plan, PlanOptions, PlannedPart, Probe, Step};

/// Runs a tool; what it printed.
pub fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{stderr}");
    output.stdout
}

/// What a probe cost.
#[derive(Debug, Default)]
pub struct Cost {
    pub gets: u64,
    pub rounds: u64,
    pub bytes: u64,
}

/// Probes a film in memory, counting requests.
pub fn probe(film: &[u8], options: PlanOptions) -> Result<(Plan, Cost), FilmError> {
    let mut probe = Probe::new(film.len() as u64, options);
    let mut cost = Cost::default();
    loop {
        match probe.step()? {
            Step::Done(mut plan, heads) => {
                heads.fill(&mut plan);
                return Ok((*plan, cost));
            }
            Step::Need(ranges) => {
                assert!(!ranges.is_empty(), "a step that needs nothing");
                cost.rounds += 1;
                for range in ranges {
                    cost.gets += 1;
                    cost.bytes += range.len();
                    probe.supply(range, film[range.start() as usize..range.end() as usize].to_vec());
                }
            }
        }
    }
}

/// The part's input as a guest makes it.
pub fn rebuild(film: &[u8], part: &PlannedPart, path: &Path) {
    let mut bytes = STANDARD.decode(&part.input.head).unwrap();
    for range in &part.input.ranges {
        bytes.extend_from_slice(&film[range.start() as usize..range.end() as usize]);
    }
    std::fs::write(path, bytes).unwrap();
}

/// Checksums of decoded frames, in order, without their times.
pub fn frames(format: Option<&str>, input: &Path, filter: &str) -> Vec<String> {
    framemd5(format, input, filter).into_iter().map(|(_, hash)| hash).collect()
}

/// (presentation time in ticks of the container, checksum) of every decoded frame.
pub fn framemd5(format: Option<&str>, input: &Path, filter: &str) -> Vec<(i64, String)> {
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args("-nostdin -v fatal -threads 1 -copyts".split(' '));
    ffmpeg.args(format.iter().flat_map(|format| ["-f", format])).arg("-i").arg(input);
    ffmpeg
        .args(["-map", "0:v:0", "-vf", filter])
        .args("-fps_mode passthrough -enc_time_base -1 -f framemd5 -".split(' '));
    let text = String::from_utf8(run(&mut ffmpeg)).unwrap();
    let row = |line: &str| {
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        (fields[2].parse().unwrap(), fields[5].to_string())
    };
    text.lines().filter(|line| !line.starts_with('#')).map(row).collect()
}

/// The order that home would write for a part.
pub fn work(part: &PlannedPart, heights: &[u32]) -> VideoWork {
    let rendition = |&height: &u32| RenditionOutput {
        rendition: Rendition { height, codec: "h264".into(), crf: 28, preset: "ultrafast".into() },
        key: String::new(),
        put: String::new(),
    };
    VideoWork {
        source: Source { url: String::new(), etag: String::new(), size: 0 },
        input: part.input.clone(),
        clip: part.clip,
        renditions: heights.iter().map(rendition).collect(),
        audio: part.audio.clone().map(|span| AudioCut {
            lo: span.lo,
            hi: span.hi,
            format: span.format,
            key: String::new(),
            put: String::new(),
        }),
    }
}

pub fn ffmpeg(args: &[String]) {
    run(Command::new("ffmpeg").args(args));
}

pub fn numbered(dir: &Path, stem: &str, number: usize) -> PathBuf {
    dir.join(format!("{stem}{number}"))
}
