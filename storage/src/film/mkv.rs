//! Matroska and WebM (RFC 9559).
//!
//! The index (Cues) tells where key frames are but not how many frames lie between, so the rate must be constant: frame
//! numbers follow from times. A part is the film's own head (EBML, Info, Tracks) with a segment of unknown length, then raw
//! bytes from one key frame's cluster to just past the next part's start, as far as frames and sound reach over it.

mod ebml;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ebml::{Blocks, CLUSTER, Elements, FRONT_MAX, Front, child, float, front, unsigned};

use super::cut;
use super::error::{FilmError, damaged};
use super::part::{Clip, PartInput, Ratio};
use super::plan::{AudioInfo, AudioSpan, Container, FilmInfo, Plan, PlanOptions, PlannedPart};
use super::rate;
use super::sparse::{Halt, Sparse, all_of};
use crate::range::ByteRange;

const SEGMENT: u32 = 0x1853_8067;
const SEEK_HEAD: u32 = 0x114d_9b74;
const INFO: u32 = 0x1549_a966;
const TRACKS: u32 = 0x1654_ae6b;
const CUES: u32 = 0x1c53_bb6b;
const SEGMENT_UNKNOWN: [u8; 12] = [0x18, 0x53, 0x80, 0x67, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];

const AHEAD_BYTES: u64 = 64 << 10;
const ELEMENT_BYTES_MAX: u64 = 64 << 20;
const ELEMENTS_MAX: usize = 1000;
/// Read at a time past a cut, until all that belongs before it has been seen.
const CUT_BYTES: u64 = 64 << 10;
const CUT_BYTES_MAX: u64 = 64 << 20;
/// Sound is cut this much later than the picture: packets may stand a little before the key frame in the file, and a laced
/// block holds several.
const SOUND_LATER_SECONDS: f64 = 0.2;

pub fn sniff(head: &[u8]) -> bool {
    head.starts_with(&[0x1a, 0x45, 0xdf, 0xa3])
}

pub fn read(bytes: &Sparse, options: &PlanOptions) -> Result<Plan, Halt> {
    let layout = Layout::read(bytes)?;
    let info = layout.body(bytes, layout.info.ok_or_else(|| damaged("no Info"))?)?;
    let tracks = layout.body(bytes, layout.tracks.ok_or_else(|| damaged("no Tracks"))?)?;
    let scale = child(info, 0x2a_d7b1)?.map_or(1_000_000, unsigned);
    let tick = rate::reduce(scale, 1_000_000_000).ok_or_else(|| damaged("impossible time scale"))?;
    let (video, audio) = Tracks::read(tracks)?;
    let cues = layout.cues.ok_or_else(|| FilmError::UnsupportedContainer("Matroska without an index (Cues)".into()))?;
    let keys = keys(layout.body(bytes, cues)?, video.number, layout.data, bytes.size(), options)?;
    let film = Film { bytes, options, layout, tick, video, audio, keys };
    film.plan()
}

/// Where the parts of the segment are.
#[derive(Debug, Default)]
struct Layout {
    /// First byte of the segment's body, from which positions count.
    data: u64,
    /// First byte of the first cluster.
    clusters: u64,
    end: u64,
    info: Option<u64>,
    tracks: Option<u64>,
    cues: Option<u64>,
}

impl Layout {
    fn read(bytes: &Sparse) -> Result<Self, Halt> {
        let ebml = front_at(bytes, 0)?;
        let segment_at = ebml.header + ebml.body.ok_or_else(|| damaged("EBML head without a size"))?;
        let segment = front_at(bytes, segment_at)?;
        if segment.id != SEGMENT {
            return Err(FilmError::NotAFilm.into());
        }
        let data = segment_at + segment.header;
        let mut layout = Layout { data, end: bytes.size(), ..Layout::default() };
        if let Some(body) = segment.body {
            let end = data.checked_add(body).ok_or_else(|| damaged("a segment beyond any file"))?;
            if end > bytes.size() {
                return Err(FilmError::Truncated(format!("the segment reaches to {end} of {}", bytes.size())).into());
            }
            layout.end = end;
        }
        let mut at = data;
        for _ in 0..ELEMENTS_MAX {
            let found = front_at(bytes, at)?;
            if found.id == CLUSTER {
                layout.clusters = at;
                return Ok(layout);
            }
            layout.note(found.id, at);
            if found.id == SEEK_HEAD {
                layout.follow(bytes, at)?;
            }
            let body = found.body.ok_or_else(|| damaged("an element without a size"))?;
            at = at.checked_add(found.header).and_then(|at| at.checked_add(body)).ok_or_else(|| damaged("too long"))?;
        }
        Err(FilmError::Limit { what: "elements before the first cluster", limit: ELEMENTS_MAX as u64 }.into())
    }

    fn note(&mut self, id: u32, at: u64) {
        let place = match id {
            INFO => &mut self.info,
            TRACKS => &mut self.tracks,
            CUES => &mut self.cues,
            _ => return,
        };
        place.get_or_insert(at);
    }

    fn follow(&mut self, bytes: &Sparse, at: u64) -> Result<(), Halt> {
        for seek in Elements(self.body(bytes, at)?) {
            let (id, seek) = seek?;
            if id != 0x4dbb {
                continue;
            }
            if let (Some(id), Some(position)) = (child(seek, 0x53ab)?, child(seek, 0x53ac)?) {
                let at = self.data.checked_add(unsigned(position)).filter(|&at| at < bytes.size());
                if let Some(at) = at {
                    self.note(unsigned(id) as u32, at);
                }
            }
        }
        Ok(())
    }

    fn body<'a>(&self, bytes: &'a Sparse, at: u64) -> Result<&'a [u8], Halt> {
        let front = front_at(bytes, at)?;
        let body = front.body.ok_or_else(|| damaged("an element without a size"))?;
        if body > ELEMENT_BYTES_MAX {
            return Err(FilmError::Limit { what: "bytes of an index element", limit: ELEMENT_BYTES_MAX }.into());
        }
        bytes.get(at.saturating_add(front.header), body, body)
    }
}

fn front_at(bytes: &Sparse, at: u64) -> Result<Front, Halt> {
    let left = bytes.size().saturating_sub(at);
    if left < 2 {
        return Err(FilmError::Truncated(format!("an element was expected at {at}")).into());
    }
    let found = front(bytes.get(at, left.min(FRONT_MAX), AHEAD_BYTES)?);
    found.ok_or_else(|| damaged(format!("no element at byte {at}")).into())
}

/// What is needed of a track.
#[derive(Debug, Default)]
struct Tracks {
    number: u64,
    kind: u64,
    codec: String,
    /// Nanoseconds; 0: not told.
    frame: u64,
    /// Nanoseconds by which packets are shown earlier than they say.
    delay: u64,
    picture: (u32, u32),
    sound: (u32, u32),
}

impl Tracks {
    fn read(body: &[u8]) -> Result<(Tracks, Option<Tracks>), FilmError> {
        let (mut video, mut audio) = (None, None);
        for entry in Elements(body) {
            let (id, entry) = entry?;
            if id != 0xae {
                continue;
            }
            let track = Tracks::entry(entry)?;
            match track.kind {
                1 => video.get_or_insert(track),
                2 => audio.get_or_insert(track),
                _ => continue,
            };
        }
        Ok((video.ok_or(FilmError::NoVideo)?, audio))
    }

    fn entry(entry: &[u8]) -> Result<Tracks, FilmError> {
        let mut track = Tracks { sound: (8000, 1), ..Tracks::default() };
        for element in Elements(entry) {
            let (id, body) = element?;
            match id {
                0xd7 => track.number = unsigned(body),
                0x83 => track.kind = unsigned(body),
                0x86 => {
                    track.codec = String::from_utf8_lossy(body.get(..body.len().min(64)).unwrap_or_default()).into()
                }
                0x23_e383 => track.frame = unsigned(body),
                0x56aa => track.delay = unsigned(body),
                0xe0 => {
                    let pixels = |id| child(body, id).map(|body| body.map_or(0, unsigned) as u32);
                    track.picture = (pixels(0xb0)?, pixels(0xba)?);
                }
                0xe1 => {
                    track.sound.0 = child(body, 0xb5)?.map_or(8000.0, float) as u32;
                    track.sound.1 = child(body, 0x9f)?.map_or(1, unsigned) as u32;
                }
                // Content encodings: compressed or encrypted packets are still fine, ffmpeg undoes them.
                _ => {}
            }
        }
        Ok(track)
    }

    fn audio_info(&self) -> Result<AudioInfo, FilmError> {
        let (codec, format) = match self.codec.trim_end_matches('\0') {
            codec if codec.starts_with("A_AAC") => ("aac", "adts"),
            "A_MPEG/L3" => ("mp3", "mp3"),
            "A_MPEG/L2" => ("mp2", "mp2"),
            "A_AC3" => ("ac3", "ac3"),
            "A_EAC3" => ("eac3", "eac3"),
            "A_OPUS" => ("opus", "matroska"),
            "A_VORBIS" => ("vorbis", "matroska"),
            "A_FLAC" => ("flac", "matroska"),
            other => return Err(FilmError::UnsupportedAudio(other.into())),
        };
        let (sample_rate, channels) = self.sound;
        Ok(AudioInfo { codec: codec.into(), format: format.into(), sample_rate, channels })
    }
}

/// A key frame: its time in ticks and the first byte of its cluster.
#[derive(Clone, Copy, Debug)]
struct Key {
    time: i64,
    cluster: u64,
}

fn keys(cues: &[u8], video: u64, data: u64, size: u64, options: &PlanOptions) -> Result<Vec<Key>, FilmError> {
    let mut keys: Vec<Key> = Vec::new();
    for point in Elements(cues) {
        let (id, point) = point?;
        if id != 0xbb {
            continue;
        }
        let time = child(point, 0xb3)?.map(unsigned).and_then(|time| i64::try_from(time).ok());
        for position in Elements(point) {
            let (id, position) = position?;
            if id != 0xb7 || child(position, 0xf7)?.map(unsigned) != Some(video) {
                continue;
            }
            let cluster = child(position, 0xf1)?.and_then(|body| data.checked_add(unsigned(body)));
            let (Some(time), Some(cluster)) = (time, cluster) else { return Err(damaged("a cue without a place")) };
            if cluster >= size {
                return Err(FilmError::Truncated(format!("a key frame at {cluster} of {size}")));
            }
            let rising = keys.last().is_none_or(|last| last.time < time && last.cluster <= cluster);
            if rising && time < 1 << 50 {
                keys.push(Key { time, cluster });
            }
            if keys.len() as u64 > options.samples_max {
                return Err(FilmError::Limit { what: "key frames", limit: options.samples_max });
            }
        }
    }
    if keys.is_empty() { Err(damaged("no key frame in the index")) } else { Ok(keys) }
}

struct Film<'a> {
    bytes: &'a Sparse,
    options: &'a PlanOptions,
    layout: Layout,
    tick: Ratio,
    video: Tracks,
    audio: Option<Tracks>,
    keys: Vec<Key>,
}

impl Film<'_> {
    fn plan(&self) -> Result<Plan, Halt> {
        let audio = self.audio.as_ref().map(Tracks::audio_info).transpose()?;
        let (Some(first), Some(last)) = (self.keys.first(), self.keys.last()) else {
            return Err(FilmError::NoVideo.into());
        };
        let tail = self.tail(last)?;
        let rate = self.rate(first.time, &tail)?;
        let number = |time: i64| {
            let number = rate::nearest(time, first.time, self.tick, rate);
            number.ok_or_else(|| FilmError::Irregular(format!("Matroska with a variable frame rate, at tick {time}")))
        };
        self.keys.iter().map(|key| key.time).chain(tail.iter().copied()).try_for_each(|time| number(time).map(drop))?;
        let latest = tail.iter().copied().max().unwrap_or(last.time);
        let frames = number(latest)? + 1;
        let duration = frames as f64 * f64::from(rate.den) / f64::from(rate.num);
        let cuts = self.cuts(first.time, duration);
        let ends = self.ends(&cuts)?;
        let mut parts = Vec::new();
        for (i, (key, end)) in cuts.iter().zip(ends).enumerate() {
            let next = cuts.get(i + 1);
            let hi = next.map_or(latest.saturating_add(1), |next| next.time);
            let from = number(key.time)?;
            let to = next.map_or(Ok(frames), |next| number(next.time))?;
            let seconds = |frame: u64| frame as f64 * f64::from(rate.den) / f64::from(rate.num);
            parts.push(PlannedPart {
                input: PartInput {
                    format: "matroska".into(),
                    head: STANDARD.encode(self.head()?),
                    ranges: vec![ByteRange::new(key.cluster, end).map_err(|_| damaged("clusters out of order"))?],
                },
                clip: Clip {
                    lo: key.time,
                    hi,
                    time_base: self.tick,
                    first_frame: from,
                    frames: to.checked_sub(from).ok_or_else(|| damaged("key frames out of order"))?,
                    rate,
                    constant: true,
                    origin: first.time,
                },
                audio: audio.as_ref().map(|audio| AudioSpan {
                    lo: (i > 0).then(|| self.sound_cut(key)),
                    hi: next.map(|next| self.sound_cut(next)),
                    format: audio.format.clone(),
                }),
                start_seconds: seconds(from),
                duration_seconds: seconds(to) - seconds(from),
            });
        }
        let (width, height) = self.video.picture;
        let film =
            FilmInfo { container: Container::Matroska, width, height, duration, rate, constant: true, frames, audio };
        Ok(Plan { film, parts, audio_offset_seconds: self.offset(first)?, audio_end_seconds: None })
    }

    /// Times of the frames from the last key frame on: the index does not tell when the film ends.
    fn tail(&self, last: &Key) -> Result<Vec<i64>, Halt> {
        let end = self.layout.cues.filter(|&cues| cues > last.cluster).unwrap_or(self.layout.end);
        let length = end.saturating_sub(last.cluster);
        if length > CUT_BYTES_MAX {
            return Err(FilmError::Limit { what: "bytes after the last key frame", limit: CUT_BYTES_MAX }.into());
        }
        let blocks = Blocks::new(self.bytes.get(last.cluster, length, length)?);
        Ok(blocks.filter(|block| block.track == self.video.number && block.time >= last.time).map(|b| b.time).collect())
    }

    fn rate(&self, first: i64, tail: &[i64]) -> Result<Ratio, Halt> {
        if let Some(rate) = rate::from_nanoseconds(self.video.frame) {
            return Ok(rate);
        }
        // Not told: look at the frames that are at hand.
        let mut times: Vec<i64> = Blocks::new(self.bytes.known(self.layout.clusters))
            .filter(|block| block.track == self.video.number && block.time >= first)
            .map(|block| block.time)
            .collect();
        if times.len() < tail.len() {
            times = tail.to_vec();
        }
        times.sort_unstable();
        // The bytes may have ended before the last few in time were all there.
        times.truncate(times.len().saturating_sub(8).max(2));
        let irregular = || FilmError::Irregular("Matroska with a variable frame rate".into());
        Ok(rate::constant(&times, self.tick).ok_or_else(irregular)?)
    }

    fn cuts(&self, first: i64, duration: f64) -> Vec<Key> {
        let seconds = |key: &Key| (key.time - first) as f64 * f64::from(self.tick.num) / f64::from(self.tick.den);
        let times: Vec<f64> = self.keys.iter().map(seconds).collect();
        let chosen = cut::choose(&times, duration, self.options);
        chosen.into_iter().filter_map(|i| self.keys.get(i).copied()).collect()
    }

    fn ticks(&self, seconds: f64) -> i64 {
        (seconds * f64::from(self.tick.den) / f64::from(self.tick.num)) as i64
    }

    fn sound_cut(&self, key: &Key) -> i64 {
        key.time.saturating_add(self.ticks(SOUND_LATER_SECONDS))
    }

    /// For each part the end of its bytes: past the cut, as far as anything before it reaches.
    fn ends(&self, cuts: &[Key]) -> Result<Vec<u64>, Halt> {
        let clusters_end = self.layout.cues.filter(|&cues| cues > self.layout.clusters).unwrap_or(self.layout.end);
        let (mut ends, mut needs) = (Vec::new(), Vec::new());
        for cut in cuts.iter().skip(1) {
            let known = self.bytes.known(cut.cluster);
            match self.past(cut, known) {
                Some(length) => ends.push(cut.cluster + length),
                None => {
                    let from = cut.cluster + known.len() as u64;
                    if from >= clusters_end {
                        ends.push(clusters_end);
                    } else if known.len() as u64 > CUT_BYTES_MAX {
                        return Err(FilmError::Limit { what: "bytes at a cut", limit: CUT_BYTES_MAX }.into());
                    } else {
                        let step = CUT_BYTES.max(known.len() as u64);
                        needs.extend(ByteRange::new(from, from.saturating_add(step).min(clusters_end)));
                    }
                }
            }
        }
        ends.push(clusters_end);
        if needs.is_empty() { Ok(ends) } else { Err(all_of(needs)) }
    }

    /// Bytes from the cut's cluster to where all frames and sound before the cut have been.
    fn past(&self, cut: &Key, known: &[u8]) -> Option<u64> {
        let sound = self.audio.as_ref().map(|audio| {
            let delay = audio.delay as f64 / 1e9;
            (audio.number, self.sound_cut(cut).saturating_add(self.ticks(delay)).saturating_add(1))
        });
        // Leading frames follow their key frame directly; two later ones mean that they are over.
        let (mut later, mut heard) = (0, sound.is_none());
        for block in Blocks::new(known) {
            if block.track == self.video.number && block.time > cut.time {
                later += 1;
            }
            heard |= sound.is_some_and(|(number, time)| block.track == number && block.time >= time);
            if later >= 2 && heard {
                return Some(block.end);
            }
        }
        None
    }

    /// The film's own head as the head of a part.
    fn head(&self) -> Result<Vec<u8>, Halt> {
        let ebml = front_at(self.bytes, 0)?;
        let mut head = self.bytes.get(0, ebml.header + ebml.body.unwrap_or(0), 0)?.to_vec();
        head.extend(SEGMENT_UNKNOWN);
        for at in [self.layout.info, self.layout.tracks].into_iter().flatten() {
            let front = front_at(self.bytes, at)?;
            let body = self.layout.body(self.bytes, at)?;
            head.extend_from_slice(self.bytes.get(at, front.header, 0)?);
            head.extend_from_slice(body);
        }
        Ok(head)
    }

    fn offset(&self, first: &Key) -> Result<f64, Halt> {
        let Some(audio) = &self.audio else { return Ok(0.0) };
        let length = CUT_BYTES.min(self.layout.end.saturating_sub(self.layout.clusters));
        self.bytes.get(self.layout.clusters, length, length)?;
        let packet = Blocks::new(self.bytes.known(self.layout.clusters)).find(|block| block.track == audio.number);
        let Some(packet) = packet else { return Ok(0.0) };
        let seconds =
            packet.time.saturating_sub(first.time) as f64 * f64::from(self.tick.num) / f64::from(self.tick.den);
        // Packets joined as Matroska keep their delay, and the decoder drops it; elsewhere it would be heard.
        let dropped = audio.audio_info()?.format == "matroska";
        Ok(if dropped { seconds } else { seconds - audio.delay as f64 / 1e9 })
    }
}
