//! A small real film, cut by the real planner into orders.

use std::process::Command;

use sha2::{Digest, Sha256};
use storage::film::part::{
    AudioCut, AudioPiece, AudioWork, PartSpec, Rendition, RenditionOutput, Source, VideoWork, Work,
};
use storage::film::{FilmError, Plan, PlanOptions, Probe};
use storage::hex::hex;
use storage::range::ByteRange;

use super::store::{Store, etag};

/// Seconds and frames a second of the film; a key frame every second.
pub const SECONDS: u32 = 6;
pub const RATE: u32 = 25;

/// A film with sound.
pub fn film() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("film.mp4");
    let order = format!(
        "-v error -f lavfi -i testsrc2=s=320x180:r={RATE}:d={SECONDS} -f lavfi -i sine=440:d={SECONDS} \
         -c:v libx264 -preset ultrafast -g {RATE} -pix_fmt yuv420p -c:a aac"
    );
    let made = Command::new("ffmpeg").args(order.split_whitespace()).arg(&path).status().unwrap();
    assert!(made.success());
    std::fs::read(path).unwrap()
}

pub fn plan(film: &[u8], parts: u32) -> Plan {
    let options = PlanOptions { parts_min: parts, parts_max: parts, ..PlanOptions::default() };
    let read = |range: ByteRange| Ok::<_, FilmError>(film[range.start() as usize..range.end() as usize].to_vec());
    let (mut plan, heads) = Probe::new(film.len() as u64, options).run(read).unwrap();
    heads.fill(&mut plan);
    plan
}

/// Puts the film and the orders of its parts into the store; returns the orders' URLs.
pub fn orders(store: &Store, film: &[u8], plan: &Plan, preset: &str) -> Vec<String> {
    store.put("film.mp4", film.to_vec());
    (0..plan.parts.len()).map(|n| order(store, film, plan, n, preset, |_| ())).collect()
}

/// As [`orders`], for one part, with something changed.
pub fn order(
    store: &Store,
    film: &[u8],
    plan: &Plan,
    n: usize,
    preset: &str,
    change: impl FnOnce(&mut VideoWork),
) -> String {
    let part = &plan.parts[n];
    let rendition = |height| {
        let key = format!("out/{height}/v{n}.mp4");
        let rendition = Rendition { height, codec: "h264".into(), crf: 30, preset: preset.into() };
        RenditionOutput { rendition, put: store.url(&key), key }
    };
    let audio = part.audio.as_ref().map(|span| {
        let key = format!("out/sound/{n}");
        AudioCut { lo: span.lo, hi: span.hi, format: span.format.clone(), put: store.url(&key), key }
    });
    let mut work = VideoWork {
        source: Source { url: store.url("film.mp4"), etag: etag(film), size: film.len() as u64 },
        input: part.input.clone(),
        clip: part.clip,
        renditions: vec![rendition(90), rendition(120)],
        audio,
    };
    change(&mut work);
    put_order(store, n as u32, Work::Video(work))
}

/// The order to encode the sound that the parts have handed on.
pub fn sound_order(store: &Store, plan: &Plan) -> String {
    let pieces = (0..plan.parts.len()).map(|n| {
        let key = format!("out/sound/{n}");
        let bytes = store.get(&key).unwrap();
        AudioPiece { url: store.url(&key), size: bytes.len() as u64, sha256: sha256(&bytes) }
    });
    let work = AudioWork {
        format: plan.film.audio.as_ref().unwrap().format.clone(),
        pieces: pieces.collect(),
        offset_seconds: plan.audio_offset_seconds,
        bit_rate: 64_000,
        key: "out/sound.mp4".into(),
        put: store.url("out/sound.mp4"),
    };
    put_order(store, 999, Work::Audio(work))
}

fn put_order(store: &Store, part: u32, work: Work) -> String {
    let key = format!("orders/{part}.json");
    let spec = PartSpec { job: "j".into(), part, attempt: 1, work };
    store.put(&key, serde_json::to_vec(&spec).unwrap());
    store.url(&key)
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Lines that ffprobe prints for `entries` of an object.
pub fn probe(bytes: &[u8], entries: &str) -> Vec<String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let arguments = ["-v", "error", "-count_frames", "-show_entries", entries, "-of", "csv=p=0"];
    let out = Command::new("ffprobe").args(arguments).arg(file.path()).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}
