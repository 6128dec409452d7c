//! What ffmpeg made: a self-initialising fragmented MP4, read box by box. Guests check their work with it before they report
//! it, home writes playlists from it.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::FilmError;
use super::ffmpeg;
use super::mp4::boxes::{Box, Boxes, Cursor, name};
use super::mp4::moof;
use super::mp4::track::{self, Kind, Track};
use super::part::{Clip, FragmentSummary};
use crate::hex::hex;
use crate::range::ByteRange;

/// More than any part has; a limit for foreign bytes.
const SAMPLES_MAX: u64 = 4_000_000;

/// Encoded sound may be so much shorter or longer than its packets say: an encoder fills its last one, and some may be damaged.
const SOUND_SLACK_SECONDS: f64 = 1.0;
const SOUND_SLACK_SHARE: f64 = 0.1;

/// Why an object is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FragmentError {
    #[error("not a fragmented MP4: {0}")]
    Malformed(String),
    #[error("the boxes cannot be read")]
    Boxes(#[from] FilmError),
    #[error("{found} frames, not {expected}")]
    Frames { expected: u64, found: u64 },
    #[error("starts at {found}/{timescale} s, not {expected}/{timescale} s")]
    Start { expected: u64, found: u64, timescale: u32 },
    #[error("lasts {found}/{timescale} s, not {expected}/{timescale} s")]
    Duration { expected: u64, found: u64, timescale: u32 },
    #[error("{found} units a second, not {expected}")]
    Timescale { expected: u32, found: u32 },
    #[error("fragment {fragment} starts at {found}, not at the end of the one before, {expected}")]
    Gap { fragment: usize, expected: u64, found: u64 },
}

impl FragmentError {
    /// Stable, kebab-case.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) | Self::Boxes(_) => "fragment-malformed",
            Self::Frames { .. } => "fragment-frames",
            Self::Start { .. } => "fragment-start",
            Self::Duration { .. } => "fragment-duration",
            Self::Timescale { .. } => "fragment-timescale",
            Self::Gap { .. } => "fragment-gap",
        }
    }
}

/// One object, read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    pub summary: FragmentSummary,
    /// In order, without a gap in time.
    pub fragments: Vec<Fragment>,
}

/// A `moof` with its `mdat`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fragment {
    pub range: ByteRange,
    /// In units of the summary's timescale.
    pub start: u64,
    pub duration: u64,
    pub samples: u64,
}

/// Reads a whole object: one track, `ftyp` and `moov` first, then fragments that follow each other in time.
pub fn inspect(bytes: &[u8]) -> Result<Inspection, FragmentError> {
    let (moov, init_bytes) = init(bytes)?;
    let (mut track, _) = match track::find(&moov, Kind::Video)? {
        Some(found) => found,
        None => track::find(&moov, Kind::Audio)?.ok_or_else(|| malformed("no track"))?,
    };
    let fragments = fragments(bytes, init_bytes, &mut track)?;
    let (Some(first), Some(last)) = (fragments.first(), fragments.last()) else {
        return Err(malformed("no fragment"));
    };
    let start = first.start;
    let (width, height) = if track.kind == Kind::Video { track.picture().unwrap_or_default() } else { (0, 0) };
    let summary = FragmentSummary {
        init_bytes: init_bytes as u64,
        init_sha256: hex(&Sha256::digest(bytes.get(..init_bytes).unwrap_or_default())),
        timescale: track.timescale,
        start,
        duration: (last.start + last.duration).saturating_sub(start),
        samples: fragments.iter().map(|fragment| fragment.samples).sum(),
        width,
        height,
        codecs: codecs(&track).ok_or_else(|| malformed("codec setup cannot be read"))?,
    };
    Ok(Inspection { summary, fragments })
}

/// Is this the part that was asked for?
pub fn check(summary: &FragmentSummary, clip: &Clip) -> Result<(), FragmentError> {
    let timescale = ffmpeg::timescale(clip);
    if summary.timescale != timescale {
        return Err(FragmentError::Timescale { expected: timescale, found: summary.timescale });
    }
    if summary.samples != clip.frames {
        return Err(FragmentError::Frames { expected: clip.frames, found: summary.samples });
    }
    let expected = start(clip, timescale);
    if summary.start != expected {
        return Err(FragmentError::Start { expected, found: summary.start, timescale });
    }
    if clip.constant {
        let expected = frame_time(clip, clip.first_frame + clip.frames, timescale).saturating_sub(expected);
        if summary.duration != expected {
            return Err(FragmentError::Duration { expected, found: summary.duration, timescale });
        }
    }
    Ok(())
}

/// Is this all of the sound, which ends so many seconds after the first frame?
pub fn check_sound(summary: &FragmentSummary, end: f64) -> Result<(), FragmentError> {
    let timescale = summary.timescale;
    let (found, expected) = (summary.start.saturating_add(summary.duration), (end * f64::from(timescale)) as u64);
    if found.abs_diff(expected) as f64 > f64::from(timescale) * (SOUND_SLACK_SECONDS + SOUND_SLACK_SHARE * end.max(0.0))
    {
        return Err(FragmentError::Duration { expected, found, timescale });
    }
    Ok(())
}

/// First presentation time of a part in units of the output.
fn start(clip: &Clip, timescale: u32) -> u64 {
    if clip.constant {
        return frame_time(clip, clip.first_frame, timescale);
    }
    let elapsed = i128::from(clip.lo) - i128::from(clip.origin);
    let up = elapsed * i128::from(clip.time_base.num) * i128::from(timescale);
    let down = i128::from(clip.time_base.den.max(1));
    u64::try_from((up + down / 2).div_euclid(down)).unwrap_or(0)
}

fn frame_time(clip: &Clip, frame: u64, timescale: u32) -> u64 {
    let up = u128::from(frame) * u128::from(clip.rate.den) * u128::from(timescale);
    let down = u128::from(clip.rate.num.max(1));
    u64::try_from((up + down / 2) / down).unwrap_or(u64::MAX)
}

fn init(bytes: &[u8]) -> Result<(Box<'_>, usize), FragmentError> {
    let mut at = 0;
    for top in Boxes::of(bytes) {
        let top = top?;
        at += top.whole.len();
        match &top.kind {
            b"moov" => return Ok((top, at)),
            b"ftyp" if at == top.whole.len() => {}
            other => return Err(malformed(format!("{} before moov", name(other)))),
        }
    }
    Err(malformed("no moov"))
}

fn fragments(bytes: &[u8], init_bytes: usize, track: &mut Track) -> Result<Vec<Fragment>, FragmentError> {
    let mut fragments = Vec::new();
    let mut at = init_bytes as u64;
    let mut open: Option<(u64, Fragment)> = None;
    let mut expected: Option<u64> = None;
    let rest = bytes.get(init_bytes..).unwrap_or_default();
    let mut boxes = Boxes::of(rest);
    let mut read = 0u64;
    for top in boxes.by_ref() {
        let top = top?;
        let start = at;
        at += top.whole.len() as u64;
        read = at - init_bytes as u64;
        match &top.kind {
            b"moof" if open.is_none() => {
                let fragment = fragment(&top, start, track, fragments.len(), &mut expected)?;
                open = Some((start, fragment));
            }
            b"mdat" => {
                let (moof, mut fragment) = open.take().ok_or_else(|| malformed("mdat without moof"))?;
                let in_mdat = track.samples.iter().all(|sample| sample.offset >= start && sample.end() <= at);
                if !in_mdat {
                    return Err(malformed("a sample lies outside of its mdat"));
                }
                fragment.range = ByteRange::new(moof, at).map_err(|_| malformed("an empty fragment"))?;
                fragments.push(fragment);
            }
            b"styp" | b"sidx" | b"free" | b"mfra" => {}
            other => return Err(malformed(format!("unexpected {}", name(other)))),
        }
    }
    if open.is_some() || read != rest.len() as u64 {
        return Err(malformed("the last fragment is not whole"));
    }
    Ok(fragments)
}

/// Times and samples of one `moof`; its range is known when its `mdat` ends.
fn fragment(
    moof: &Box,
    at: u64,
    track: &mut Track,
    number: usize,
    expected: &mut Option<u64>,
) -> Result<Fragment, FragmentError> {
    track.samples.clear();
    moof::append(moof, at, &mut [track], SAMPLES_MAX)?;
    let first = track.samples.first().ok_or_else(|| malformed("a fragment without samples"))?;
    let start = u64::try_from(first.dts).map_err(|_| malformed("a fragment before time 0"))?;
    if let Some(expected) = expected.filter(|&expected| expected != start) {
        return Err(FragmentError::Gap { fragment: number, expected, found: start });
    }
    let duration: u64 = track.samples.iter().map(|sample| u64::from(sample.duration)).sum();
    *expected = Some(start.saturating_add(duration));
    let range = ByteRange::new(at, at.saturating_add(1)).map_err(|_| malformed("beyond any file"))?;
    Ok(Fragment { range, start, duration, samples: track.samples.len() as u64 })
}

/// RFC 6381 codecs parameter.
fn codecs(track: &Track) -> Option<String> {
    let entry = track.entry()?;
    match &track.codec {
        kind @ (b"avc1" | b"avc3") => {
            let setup = children(entry.get(86..)?, b"avcC")?;
            let profile = hex(setup.get(1..4)?);
            Some(format!("{}.{profile}", name(kind)))
        }
        b"mp4a" => {
            let esds = children(entry.get(36..)?, b"esds")?;
            let object = audio_object(Cursor(esds.get(4..)?))?;
            Some(format!("mp4a.40.{object}"))
        }
        _ => None,
    }
}

fn children<'a>(bytes: &'a [u8], kind: &[u8; 4]) -> Option<&'a [u8]> {
    Boxes::of(bytes).flatten().find(|child| &child.kind == kind).map(|child| child.body)
}

/// The audio object type in an MPEG-4 elementary stream descriptor (ISO/IEC 14496-1 7.2.6.5, 14496-3 1.6.2.1).
fn audio_object(mut c: Cursor) -> Option<u32> {
    loop {
        let tag = c.u8()?;
        let mut length = 0usize;
        for _ in 0..4 {
            let byte = c.u8()?;
            length = length << 7 | usize::from(byte & 0x7f);
            if byte & 0x80 == 0 {
                break;
            }
        }
        match tag {
            3 => {
                c.u16()?;
                let flags = c.u8()?;
                let skip = if flags & 0x80 != 0 { 2 } else { 0 };
                c.take(skip)?;
            }
            4 if c.u8()? == 0x40 => {
                c.take(12)?;
            }
            5 => {
                let first = c.u16()?;
                let object = u32::from(first >> 11);
                return Some(if object == 31 { 32 + u32::from(first >> 5 & 0x3f) } else { object });
            }
            4 => return None,
            _ => {
                c.take(length)?;
            }
        }
    }
}

fn malformed(what: impl Into<String>) -> FragmentError {
    FragmentError::Malformed(what.into())
}
