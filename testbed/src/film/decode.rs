//! ffmpeg as a measuring instrument: pictures to frame numbers, sound to samples, both with their times.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};

use super::BITS;
use crate::process::tied;

/// When something decoded shows or sounds, and for how long, in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Stamp {
    pub at: f64,
    pub lasts: f64,
}

/// Video and audio streams of a file, a playlist or a manifest.
pub fn streams(url: &str) -> Result<(usize, usize)> {
    let output = tied("ffprobe")
        .args(["-v", "error", "-show_entries", "stream=index,codec_type", "-of", "csv=p=0", url])
        .stdin(Stdio::null())
        .output()
        .context("start ffprobe (Debian package ffmpeg)")?;
    ensure!(output.status.success(), "ffprobe cannot read {}: {}", shown(url), text(&output.stderr));
    // Programs of a master playlist list their streams again: the index tells them apart.
    let mut kinds: Vec<String> =
        text(&output.stdout).lines().map(|line| line.trim_end_matches(',').to_owned()).collect();
    kinds.sort();
    kinds.dedup();
    let count = |kind: &str| kinds.iter().filter(|line| line.ends_with(kind)).count();
    Ok((count("video"), count("audio")))
}

/// The number in each frame of video stream `stream`, in decoding order of display, with its time.
pub fn frame_numbers(url: &str, stream: usize) -> Result<Vec<(u16, Stamp)>> {
    let graph = format!(
        "[0:v:{stream}]crop=w=iw*16/40:h=ih/45:x=iw/80:y=ih*3/90:exact=1,scale={BITS}:1:flags=area,format=gray,split[a][b]"
    );
    let (cells, stamps) =
        run(url, &["-filter_complex", &graph, "-fps_mode", "passthrough"], ["[a]", "[b]"], "rawvideo")?;
    ensure!(cells.len() == stamps.len() * BITS, "ffmpeg gave {} bytes for {} frames", cells.len(), stamps.len());
    let number = |row: &[u8]| row.iter().enumerate().fold(0, |sum, (bit, &cell)| sum | (u16::from(cell > 127) << bit));
    Ok(cells.chunks_exact(BITS).map(number).zip(stamps).collect())
}

/// Mono samples at [`super::sound::RATE`] of the first sound stream, with the time of each decoded block.
pub fn samples(url: &str) -> Result<(Vec<i16>, Vec<Stamp>)> {
    let graph = "[0:a:0]aformat=sample_fmts=s16:sample_rates=48000:channel_layouts=mono,asplit[a][b]";
    let (bytes, stamps) = run(url, &["-filter_complex", graph], ["[a]", "[b]"], "s16le")?;
    Ok((bytes.chunks_exact(2).map(|pair| i16::from_le_bytes([pair[0], pair[1]])).collect(), stamps))
}

/// One decode, two outputs: the data itself on stdout, and a line with the time of each frame in a file.
fn run(url: &str, arguments: &[&str], labels: [&str; 2], format: &str) -> Result<(Vec<u8>, Vec<Stamp>)> {
    let times = tempfile::NamedTempFile::new().context("create a file for the times of frames")?;
    let output = tied("ffmpeg")
        .args(["-nostdin", "-y", "-v", "error", "-copyts", "-i", url])
        .args(arguments)
        .args(["-map", labels[0], "-f", format, "pipe:1", "-map", labels[1], "-fps_mode", "passthrough"])
        .args(["-enc_time_base", "-1", "-f", "framecrc"])
        .arg(times.path())
        .output()
        .context("start ffmpeg (Debian package ffmpeg)")?;
    ensure!(output.status.success(), "ffmpeg cannot decode {}: {}", shown(url), text(&output.stderr));
    Ok((output.stdout, stamps(times.path())?))
}

/// Reads the lines of the `framecrc` muxer: `stream, dts, pts, duration, size, crc`, after `#tb 0: 1/90000`.
fn stamps(path: &Path) -> Result<Vec<Stamp>> {
    let text = std::fs::read_to_string(path).context("read the times of frames")?;
    let mut unit = None;
    let mut stamps = Vec::new();
    for line in text.lines() {
        if let Some(fraction) = line.strip_prefix("#tb 0:") {
            let (num, den) = fraction.trim().split_once('/').context("read ffmpeg's time base")?;
            unit = Some((num.parse::<f64>()?, den.parse::<f64>()?));
        } else if !line.starts_with('#') {
            let fields: Vec<&str> = line.split(',').map(str::trim).collect();
            let (Some((num, den)), [_, _, at, lasts, ..]) = (unit, fields.as_slice()) else {
                bail!("ffmpeg wrote a line that is no frame: {line:?}")
            };
            let seconds = |field: &str| field.parse::<f64>().map(|ticks| ticks * num / den);
            stamps.push(Stamp { at: seconds(at)?, lasts: seconds(lasts)? });
        }
    }
    Ok(stamps)
}

fn text(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim();
    text.char_indices().rev().nth(2000).map_or(text, |(at, _)| &text[at..]).to_owned()
}

/// A URL without its query, where signatures stand.
fn shown(url: &str) -> &str {
    url.split('?').next().unwrap_or_default()
}
