//! MPEG transport streams (ISO/IEC 13818-1).
//!
//! There is no index: home reads a little at the start, at the end, and at each cut from an estimated byte on until it has
//! seen a key frame and everything that belongs before it. The rate must be constant: frame numbers follow from times.
//! A part is the program's tables, the codec's setup, and the bytes between two cuts.

mod packet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use packet::{PACKET, Setup, Start, Stream, first_payload, program, starts};

use super::cut;
use super::error::FilmError;
use super::part::{Clip, PartInput, Ratio};
use super::plan::{AudioInfo, AudioSpan, Container, FilmInfo, Plan, PlanOptions, PlannedPart};
use super::rate;
use super::sparse::{Halt, Sparse, all_of};
use crate::range::ByteRange;

const TICK: Ratio = Ratio { num: 1, den: 90_000 };
/// Most bytes read at one place, in search of what must be there.
const SEARCH_BYTES_MAX: u64 = 16 << 20;
const STEP_BYTES: std::ops::RangeInclusive<u64> = 64 << 10..=1 << 20;
/// Frames that show the rate, and among which the last in time must be.
const FRAMES_SEEN: usize = 24;
/// Sound is cut this much before the time of a sound packet, so that rounding cannot move one over the cut; any real packet
/// lasts longer.
const SOUND_EARLIER: i64 = 450;

pub fn sniff(head: &[u8]) -> bool {
    let mut packets = head.chunks(PACKET);
    head.len() > PACKET && packets.by_ref().take(5).all(|packet| packet.first() == Some(&0x47))
}

pub fn read(bytes: &Sparse, options: &PlanOptions) -> Result<Plan, Halt> {
    if !bytes.size().is_multiple_of(PACKET as u64) {
        return Err(FilmError::Truncated("it does not end with a whole packet".into()).into());
    }
    Film::open(bytes)?.plan(options)
}

struct Film<'a> {
    bytes: &'a Sparse,
    video: Stream,
    setup: Setup,
    audio: Option<(u16, AudioInfo)>,
    /// The time of frame 0.
    first: i64,
    latest: i64,
    rate: Ratio,
    offset_seconds: f64,
}

/// A place between two parts.
#[derive(Clone, Copy, Debug)]
struct Cut {
    pts: i64,
    /// First byte of the part after, and end of the part before; they overlap.
    begin: u64,
    end: u64,
    /// The first picture from `begin` on.
    next: Option<Start>,
    sound: Option<i64>,
}

impl<'a> Film<'a> {
    fn open(bytes: &'a Sparse) -> Result<Self, Halt> {
        let head = bytes.known(0);
        let Some(streams) = program(head) else { return Err(more(bytes, 0, "no program tables")) };
        let video = streams.iter().find(|stream| matches!(stream.kind, 0x01 | 0x02 | 0x10 | 0x1b | 0x24));
        let video = video.copied().ok_or(FilmError::NoVideo)?;
        let audio = match streams.iter().find(|stream| is_audio(stream)) {
            Some(stream) => match first_payload(head, stream.pid) {
                Some(payload) => Some((stream.pid, audio_info(stream, payload)?)),
                None => return Err(more(bytes, 0, "a sound track without sound")),
            },
            None => None,
        };
        let pictures = starts(head, 0, &[video.pid]);
        if pictures.len() < FRAMES_SEEN && (head.len() as u64) < bytes.size() {
            return Err(more(bytes, 0, "too few pictures"));
        }
        let first = pictures.iter().find(|start| start.key).or(pictures.first());
        let Some(&key) = first else { return Err(FilmError::NoVideo.into()) };
        let mut times: Vec<i64> = pictures.iter().map(|start| start.pts).filter(|&pts| pts >= key.pts).collect();
        times.sort_unstable();
        // The bytes may have ended before the last few in time were all there.
        times.truncate(times.len().saturating_sub(8).max(2));
        let irregular = || FilmError::Irregular("MPEG-TS with a variable frame rate".into());
        let rate = rate::constant(&times, TICK).ok_or_else(irregular)?;
        let sound = audio.as_ref().and_then(|(pid, _)| starts(head, 0, &[*pid]).first().map(|start| start.pts));
        Ok(Self {
            bytes,
            video,
            setup: Setup::read(head, video).ok_or_else(|| more(bytes, 0, "no parameters of its pictures"))?,
            audio,
            first: key.pts,
            latest: latest(bytes, video.pid)?,
            rate,
            offset_seconds: sound.map_or(0.0, |pts| (pts - key.pts) as f64 / 90_000.0),
        })
    }

    fn plan(self, options: &PlanOptions) -> Result<Plan, Halt> {
        if self.latest < self.first {
            return Err(FilmError::Irregular("MPEG-TS whose clock starts anew".into()).into());
        }
        let frames = self.number(self.latest)? + 1;
        let seconds = |frame: u64| frame as f64 * f64::from(self.rate.den) / f64::from(self.rate.num);
        let duration = seconds(frames);
        let size = self.bytes.size();
        let cuts = self.cuts(duration, options)?;
        let start = Cut { pts: self.first, begin: 0, end: 0, next: None, sound: None };
        let stop = Cut { pts: self.latest.saturating_add(1), begin: size, end: size, next: None, sound: None };
        let bounds: Vec<Cut> = [start].into_iter().chain(cuts).chain([stop]).collect();
        let mut parts = Vec::new();
        for pair in bounds.windows(2) {
            let &[from, to] = pair else { continue };
            let n0 = self.number(from.pts)?;
            let n1 = if to.begin == size { frames } else { self.number(to.pts)? };
            // The first part has the film's own.
            let head = from.next.as_ref().map_or_else(Vec::new, |next| self.setup.before(next));
            let range = ByteRange::new(from.begin, to.end);
            parts.push(PlannedPart {
                input: PartInput {
                    format: "mpegts".into(),
                    head: STANDARD.encode(head),
                    ranges: vec![range.map_err(|_| FilmError::Damaged("MPEG-TS with cuts out of order".into()))?],
                },
                clip: Clip {
                    lo: from.pts,
                    hi: to.pts,
                    time_base: TICK,
                    first_frame: n0,
                    frames: n1.saturating_sub(n0),
                    rate: self.rate,
                    constant: true,
                    origin: self.first,
                },
                audio: self.audio.as_ref().map(|(_, audio)| AudioSpan {
                    lo: from.sound,
                    hi: to.sound,
                    format: audio.format.clone(),
                }),
                start_seconds: seconds(n0),
                duration_seconds: seconds(n1.saturating_sub(n0)),
            });
        }
        let film = FilmInfo {
            container: Container::MpegTs,
            width: 0,
            height: 0,
            duration,
            rate: self.rate,
            constant: true,
            frames,
            audio: self.audio.map(|(_, audio)| audio),
        };
        Ok(Plan { film, parts, audio_offset_seconds: self.offset_seconds, audio_end_seconds: None })
    }

    fn number(&self, pts: i64) -> Result<u64, FilmError> {
        let number = rate::nearest(pts, self.first, TICK, self.rate);
        number.ok_or_else(|| FilmError::Irregular(format!("MPEG-TS with a variable frame rate, at tick {pts}")))
    }

    /// Cuts, rising; a place where no key frame can be found is left uncut.
    fn cuts(&self, duration: f64, options: &PlanOptions) -> Result<Vec<Cut>, Halt> {
        let size = self.bytes.size();
        let step = ((size as f64 / duration / 2.0) as u64).clamp(*STEP_BYTES.start(), *STEP_BYTES.end());
        let (mut cuts, mut needs): (Vec<Cut>, Vec<ByteRange>) = (Vec::new(), Vec::new());
        for target in cut::targets(duration, options) {
            let guess = (size as f64 * (target / duration)) as u64;
            let guess = guess.saturating_sub(step / 2) / PACKET as u64 * PACKET as u64;
            let known = self.bytes.known(guess);
            match self.cut(guess, known) {
                Some(cut) if cuts.last().is_none_or(|last| last.pts < cut.pts && last.end < cut.end) => cuts.push(cut),
                Some(_) => {}
                None => {
                    let from = guess + known.len() as u64;
                    if from < size && (known.len() as u64) < SEARCH_BYTES_MAX {
                        needs.extend(ByteRange::new(from, from.saturating_add(step).min(size)));
                    }
                }
            }
        }
        cuts.retain(|cut| cut.pts > self.first && cut.pts <= self.latest);
        if needs.is_empty() { Ok(cuts) } else { Err(all_of(needs)) }
    }

    /// The first key frame after two sound packets, if all that belongs before it can be seen.
    fn cut(&self, at: u64, known: &[u8]) -> Option<Cut> {
        let audio = self.audio.as_ref().map(|(pid, _)| *pid);
        let units = starts(known, at, &[self.video.pid, audio.unwrap_or(self.video.pid)]);
        let (mut sounds, mut pictures): (Vec<Start>, Vec<Start>) = (Vec::new(), Vec::new());
        let mut units = units.into_iter();
        let key = units.by_ref().find(|unit| {
            if Some(unit.pid) == audio {
                sounds.push(*unit)
            } else {
                pictures.push(*unit)
            }
            unit.pid == self.video.pid && unit.key && (audio.is_none() || sounds.len() >= 2)
        })?;
        // A packet joined to the wrong end of another is damaged: the first sound packet of a part is never its own.
        let begin = sounds.iter().rev().nth(1).map_or(key.at, |sound| sound.at.min(key.at));
        let next = pictures.into_iter().find(|picture| picture.at >= begin);
        let (mut pictures_end, mut sound, mut sound_end) = (None, None, audio.is_none().then_some(key.at));
        for unit in units {
            if unit.pid == self.video.pid {
                // Whatever comes after this in the file is decoded, so shown, after the cut.
                pictures_end = pictures_end.or((unit.dts >= key.pts).then_some(unit.at));
            } else if sound.is_none() {
                sound = Some(unit.pts.saturating_sub(SOUND_EARLIER));
            } else {
                sound_end = sound_end.or(Some(unit.at));
            }
            if let (Some(pictures), Some(heard)) = (pictures_end, sound_end) {
                return Some(Cut { pts: key.pts, begin, end: pictures.max(heard), next, sound });
            }
        }
        None
    }
}

/// Asks for as much again from `at` on, up to a limit.
fn more(bytes: &Sparse, at: u64, what: &str) -> Halt {
    let known = bytes.known(at).len() as u64;
    let from = at + known;
    if from >= bytes.size() || known >= SEARCH_BYTES_MAX {
        return FilmError::Damaged(format!("MPEG-TS with {what}")).into();
    }
    let step = known.max(*STEP_BYTES.start());
    match ByteRange::new(from, from.saturating_add(step).min(bytes.size())) {
        Ok(range) => Halt::Need(vec![range]),
        Err(_) => FilmError::Damaged(format!("MPEG-TS with {what}")).into(),
    }
}

/// The time of the last frame, looked for from the end backwards.
fn latest(bytes: &Sparse, video: u16) -> Result<i64, Halt> {
    let mut length = 256u64 << 10;
    loop {
        let at = bytes.size().saturating_sub(length) / PACKET as u64 * PACKET as u64;
        let tail = bytes.get(at, bytes.size() - at, 0)?;
        let pictures = starts(tail, at, &[video]);
        if pictures.len() >= FRAMES_SEEN || at == 0 || length >= SEARCH_BYTES_MAX {
            let last = pictures.iter().map(|start| start.pts).max();
            return last.ok_or_else(|| FilmError::Damaged("no picture at the end".into()).into());
        }
        length *= 2;
    }
}

fn is_audio(stream: &Stream) -> bool {
    matches!(stream.kind, 0x03 | 0x04 | 0x0f | 0x11 | 0x80..=0x8f) || stream.private != 0
}

fn audio_info(stream: &Stream, payload: &[u8]) -> Result<AudioInfo, FilmError> {
    let layer = payload.get(1).map_or(0, |byte| byte >> 1 & 3);
    let codec = match (stream.kind, stream.private) {
        (0x03 | 0x04, _) if layer == 1 => "mp3",
        (0x03 | 0x04, _) if layer == 2 => "mp2",
        (0x0f, _) => "aac",
        (0x81, _) | (0x06, 0x6a) => "ac3",
        (0x87, _) | (0x06, 0x7a) => "eac3",
        (kind, _) => return Err(FilmError::UnsupportedAudio(format!("stream type 0x{kind:02x}"))),
    };
    let format = if codec == "aac" { "adts" } else { codec };
    Ok(AudioInfo { codec: codec.into(), format: format.into(), sample_rate: 0, channels: 0 })
}
