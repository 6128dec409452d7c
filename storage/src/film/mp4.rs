//! MP4 and QuickTime (ISO/IEC 14496-12), plain and fragmented. Both come down to lists of samples with exact bytes and
//! times, so both are cut by the sample and rebuilt as plain MP4: a part carries its own pictures and sound and no more.

pub(crate) mod boxes;
pub(crate) mod moof;
mod rebuild;
mod slice;
pub(crate) mod track;

pub use slice::Cut;

use boxes::{Box, HEADER_MAX, Header, header, name};
use track::{Kind, Track};

use super::error::{FilmError, damaged};
use super::plan::{Container, Plan, PlanOptions};
use super::sparse::{Halt, Sparse, all_of};
use crate::range::ByteRange;

/// Read along at a place where a box header is expected.
const AHEAD_BYTES: u64 = 64 << 10;
/// Read at the start of a fragment: holds the `moof` of a few seconds and the header of its `mdat`.
const FRAGMENT_BYTES: u64 = 4 << 10;
const MOOV_BYTES_MAX: u64 = 128 << 20;
const MOOF_BYTES_MAX: u64 = 8 << 20;
const TOP_BOXES_MAX: usize = 200_000;

pub fn sniff(head: &[u8]) -> bool {
    const FIRST: [&[u8; 4]; 9] = [b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"uuid"];
    header(head).is_some_and(|header| FIRST.contains(&&header.kind))
}

/// A box on the top level of the file.
#[derive(Clone, Copy, Debug)]
struct Top {
    at: u64,
    end: u64,
    kind: [u8; 4],
}

/// The walk over the top level, kept between steps.
#[derive(Debug, Default)]
pub struct Walk {
    tops: Vec<Top>,
    hinted: bool,
}

impl Walk {
    pub fn read(&mut self, bytes: &Sparse, options: &PlanOptions) -> Result<(Plan, slice::Cut), Halt> {
        let moov = loop {
            if let Some(moov) = self.first(b"moov") {
                break moov;
            }
            self.advance(bytes, AHEAD_BYTES)?;
        };
        let whole = load(bytes, &moov, MOOV_BYTES_MAX)?;
        let moov = Box::top(whole)?;
        let (mut video, video_trak) = track::find(&moov, Kind::Video)?.ok_or(FilmError::NoVideo)?;
        let mut audio = track::find(&moov, Kind::Audio)?;
        if let Some((audio, _)) = &audio {
            slice::audio_info(audio)?;
        }
        let fragmented = moov.child(b"mvex")?.is_some();
        let count = Track::count(&video_trak)?;
        if count > 0 {
            video.unfold(&video_trak, options.samples_max)?;
            if let Some((audio, trak)) = &mut audio {
                audio.unfold(trak, options.samples_max)?;
            }
        }
        let mut audio = audio.map(|(audio, _)| audio);
        if fragmented {
            self.fragments(bytes, &mut video, audio.as_mut(), options)?;
        }
        let ftyp = match self.first(b"ftyp") {
            Some(ftyp) if ftyp.end - ftyp.at <= 1024 => bytes.get(ftyp.at, ftyp.end - ftyp.at, 0)?.to_vec(),
            _ => b"\0\0\0\x14ftypisom\0\0\x02\0isom".to_vec(),
        };
        let film = slice::Film {
            container: if fragmented { Container::FragmentedMp4 } else { Container::Mp4 },
            size: bytes.size(),
            ftyp,
            mvhd: moov.need(b"mvhd")?.whole.to_vec(),
            video,
            audio,
        };
        Ok(film.cut(options)?)
    }

    fn first(&self, kind: &[u8; 4]) -> Option<Top> {
        self.tops.iter().find(|top| &top.kind == kind).copied()
    }

    fn end(&self) -> u64 {
        self.tops.last().map_or(0, |top| top.end)
    }

    /// Learns one more box.
    fn advance(&mut self, bytes: &Sparse, ahead: u64) -> Result<(), Halt> {
        let at = self.end();
        let size = bytes.size();
        if at >= size {
            return Err(FilmError::Truncated("there is no index (moov) before the end".into()).into());
        }
        if self.tops.len() >= TOP_BOXES_MAX {
            return Err(FilmError::Limit { what: "boxes of the file", limit: TOP_BOXES_MAX as u64 }.into());
        }
        let Header { kind, size: length, .. } = read_header(bytes, at, ahead)?;
        let end = length.map_or(Some(size), |length| at.checked_add(length));
        let end = end.ok_or_else(|| damaged("a box ends beyond any file"))?;
        if end > size && &kind != b"mdat" && self.tops.is_empty() {
            return Err(FilmError::NotAFilm.into());
        }
        if end > size {
            return Err(FilmError::Truncated(format!("{} reaches to {end} of {size}", name(&kind))).into());
        }
        self.tops.push(Top { at, end, kind });
        Ok(())
    }

    /// Reads every `moof`: their places are asked for all at once where an index tells them, else one by one.
    fn fragments(
        &mut self,
        bytes: &Sparse,
        video: &mut Track,
        audio: Option<&mut Track>,
        options: &PlanOptions,
    ) -> Result<(), Halt> {
        if !self.hinted {
            let needs = hints(bytes, &self.tops)?;
            self.hinted = true;
            if !needs.is_empty() {
                return Err(all_of(needs));
            }
        }
        while self.end() < bytes.size() {
            self.advance(bytes, FRAGMENT_BYTES)?;
            if let Some(top) = self.tops.last().filter(|top| &top.kind == b"moof")
                && let Err(halt) = load(bytes, top, MOOF_BYTES_MAX)
            {
                self.tops.pop();
                return Err(halt);
            }
        }
        let mut tracks: Vec<&mut Track> = Vec::from([video]);
        tracks.extend(audio);
        for top in self.tops.iter().filter(|top| &top.kind == b"moof") {
            let moof = Box::top(load(bytes, top, MOOF_BYTES_MAX)?)?;
            moof::append(&moof, top.at, &mut tracks, options.samples_max)?;
        }
        Ok(())
    }
}

fn read_header(bytes: &Sparse, at: u64, ahead: u64) -> Result<Header, Halt> {
    let len = HEADER_MAX.min(bytes.size() - at);
    let found = header(bytes.get(at, len, ahead)?);
    found.ok_or_else(|| damaged(format!("no box at byte {at}")).into())
}

fn load<'a>(bytes: &'a Sparse, top: &Top, most: u64) -> Result<&'a [u8], Halt> {
    let size = top.end - top.at;
    if size > most {
        return Err(FilmError::Limit { what: "bytes of an index box", limit: most }.into());
    }
    bytes.get(top.at, size, size.saturating_add(HEADER_MAX))
}

/// Places of fragments, from `mfra` at the end of the file or `sidx` at its start: what of them is not yet here.
fn hints(bytes: &Sparse, tops: &[Top]) -> Result<Vec<ByteRange>, Halt> {
    let mut places = Vec::new();
    let tail = bytes.size().saturating_sub(16);
    let mfro = boxes::Cursor(bytes.get(tail, bytes.size() - tail, 0)?);
    if let Some(mfra) = mfra_start(mfro, bytes.size()) {
        let length = bytes.size() - mfra;
        if length <= MOOF_BYTES_MAX
            && let Ok(whole) = Box::top(bytes.get(mfra, length, length)?)
        {
            places = tfra_places(&whole).unwrap_or_default();
        }
    }
    if places.is_empty() {
        places = sidx_places(bytes, tops)?;
    }
    let missing = |&place: &u64| {
        let end = place.saturating_add(FRAGMENT_BYTES).min(bytes.size());
        if (bytes.known(place).len() as u64) < end.saturating_sub(place) {
            ByteRange::new(place, end).ok()
        } else {
            None
        }
    };
    Ok(places.iter().take(TOP_BOXES_MAX).filter_map(missing).collect())
}

fn mfra_start(mut mfro: boxes::Cursor, size: u64) -> Option<u64> {
    mfro.u32()?;
    if mfro.take(4)? != b"mfro" {
        return None;
    }
    mfro.u32()?;
    size.checked_sub(mfro.u32()?.into()).filter(|&at| at < size)
}

fn tfra_places(mfra: &Box) -> Option<Vec<u64>> {
    let tfra = mfra.child(b"tfra").ok()??;
    let mut c = tfra.cursor();
    let (version, _) = c.version_flags()?;
    c.u32()?; // track
    let widths = c.u32()?;
    let numbers = [4, 2, 0].map(|shift| ((widths >> shift & 3) + 1) as usize).iter().sum();
    let mut places = Vec::new();
    for _ in 0..c.u32()? {
        c.sized(version == 1)?;
        places.push(c.sized(version == 1)?);
        c.take(numbers)?;
    }
    Some(places)
}

/// Only an index that stands right after the `moov` is of use: it came with the first bytes.
fn sidx_places(bytes: &Sparse, tops: &[Top]) -> Result<Vec<u64>, Halt> {
    let Some(last) = tops.last() else { return Ok(Vec::new()) };
    let at = last.end;
    if at.saturating_add(HEADER_MAX) > bytes.size() {
        return Ok(Vec::new());
    }
    let header = read_header(bytes, at, AHEAD_BYTES)?;
    let Some(length) = header.size.filter(|&length| &header.kind == b"sidx" && length <= MOOF_BYTES_MAX) else {
        return Ok(Vec::new());
    };
    let sidx = Box::top(bytes.get(at, length, length)?)?;
    Ok(sidx_rows(&sidx, at.saturating_add(length)).unwrap_or_default())
}

fn sidx_rows(sidx: &Box, end: u64) -> Option<Vec<u64>> {
    let mut c = sidx.cursor();
    let (version, _) = c.version_flags()?;
    c.take(8)?; // reference id, timescale
    c.sized(version == 1)?;
    let mut place = end.checked_add(c.sized(version == 1)?)?;
    c.u16()?;
    let mut places = Vec::new();
    for _ in 0..c.u16()? {
        let size = c.u32()?;
        c.take(8)?;
        if size >> 31 == 1 {
            return None; // an index of indexes
        }
        places.push(place);
        place = place.checked_add(size.into())?;
    }
    Some(places)
}
