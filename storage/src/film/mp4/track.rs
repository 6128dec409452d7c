//! Tracks as sample lists, from the tables of a `moov`. What the planner does not understand (codec setup, rotation) is
//! kept as raw bytes and goes into the rebuilt parts unchanged.

use super::boxes::{Box, Cursor, name};
use crate::film::error::{FilmError, damaged};

/// One coded picture or sound packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// In the film's object.
    pub offset: u64,
    pub size: u32,
    pub duration: u32,
    /// Decode and presentation time in track units, as in the tables: no edit list applied.
    pub dts: i64,
    pub pts: i64,
    pub key: bool,
}

impl Sample {
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.size.into())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Video,
    Audio,
}

/// What of the media is shown, and when.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Edit {
    /// Seconds of nothing before the media.
    pub delay: f64,
    /// Media time of what is shown first.
    pub media: i64,
    /// Track units shown; `None`: all.
    pub length: Option<i64>,
}

/// Defaults for the samples of movie fragments (`trex`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Defaults {
    pub duration: u32,
    pub size: u32,
    pub flags: u32,
}

#[derive(Clone, Debug)]
pub struct Track {
    pub id: u32,
    pub kind: Kind,
    /// Units a second.
    pub timescale: u32,
    pub edit: Edit,
    /// First sample entry.
    pub codec: [u8; 4],
    pub stsd: Vec<u8>,
    pub tkhd: Vec<u8>,
    pub hdlr: Vec<u8>,
    /// `vmhd` or `smhd`, and `dinf`.
    pub media_info: Vec<u8>,
    pub samples: Vec<Sample>,
    pub defaults: Defaults,
}

/// The first track of a kind, without its samples, and the box it came from.
pub fn find<'a>(moov: &Box<'a>, wanted: Kind) -> Result<Option<(Track, Box<'a>)>, FilmError> {
    let movie_timescale = movie_timescale(moov)?;
    for child in moov.boxes() {
        let child = child?;
        if &child.kind == b"trak"
            && let Some(track) = describe(&child, wanted, movie_timescale)?
        {
            return Ok(Some((with_defaults(track, moov)?, child)));
        }
    }
    Ok(None)
}

fn movie_timescale(moov: &Box) -> Result<u32, FilmError> {
    let mvhd = moov.need(b"mvhd")?;
    let read = || {
        let mut c = mvhd.cursor();
        let (version, _) = c.version_flags()?;
        c.take(if version == 1 { 16 } else { 8 })?;
        c.u32()
    };
    read().filter(|&scale| scale > 0).ok_or_else(|| mvhd.short())
}

fn describe(trak: &Box, wanted: Kind, movie_timescale: u32) -> Result<Option<Track>, FilmError> {
    let mdia = trak.need(b"mdia")?;
    let hdlr = mdia.need(b"hdlr")?;
    let kind = match hdlr.body.get(8..12) {
        Some(b"vide") => Kind::Video,
        Some(b"soun") => Kind::Audio,
        _ => return Ok(None),
    };
    if kind != wanted {
        return Ok(None);
    }
    let tkhd = trak.need(b"tkhd")?;
    let minf = mdia.need(b"minf")?;
    let stsd = minf.need(b"stbl")?.need(b"stsd")?;
    let timescale = media_timescale(&mdia.need(b"mdhd")?)?;
    let mut media_info = Vec::new();
    for part in minf.boxes() {
        let part = part?;
        if matches!(&part.kind, b"vmhd" | b"smhd" | b"dinf") {
            media_info.extend_from_slice(part.whole);
        }
    }
    Ok(Some(Track {
        id: track_id(&tkhd).ok_or_else(|| tkhd.short())?,
        kind,
        timescale,
        edit: edit(trak, timescale, movie_timescale)?,
        codec: stsd.body.get(12..16).and_then(|code| code.try_into().ok()).ok_or_else(|| stsd.short())?,
        stsd: stsd.whole.to_vec(),
        tkhd: tkhd.whole.to_vec(),
        hdlr: hdlr.whole.to_vec(),
        media_info,
        samples: Vec::new(),
        defaults: Defaults::default(),
    }))
}

fn track_id(tkhd: &Box) -> Option<u32> {
    let mut c = tkhd.cursor();
    let (version, _) = c.version_flags()?;
    c.take(if version == 1 { 16 } else { 8 })?;
    c.u32()
}

fn media_timescale(mdhd: &Box) -> Result<u32, FilmError> {
    let read = || {
        let mut c = mdhd.cursor();
        let (version, _) = c.version_flags()?;
        c.take(if version == 1 { 16 } else { 8 })?;
        c.u32()
    };
    read().filter(|&scale| scale > 0).ok_or_else(|| mdhd.short())
}

/// Empty edits, then at most one real one; anything else shows the media in an order or speed that parts cannot keep.
fn edit(trak: &Box, timescale: u32, movie_timescale: u32) -> Result<Edit, FilmError> {
    let mut edit = Edit { delay: 0.0, media: 0, length: None };
    let Some(edts) = trak.child(b"edts")? else { return Ok(edit) };
    let Some(elst) = edts.child(b"elst")? else { return Ok(edit) };
    let mut c = elst.cursor();
    let (version, _) = c.version_flags().ok_or_else(|| elst.short())?;
    let count = c.u32().ok_or_else(|| elst.short())?;
    let mut real = 0;
    for _ in 0..count {
        let (length, media, speed) = edit_row(&mut c, version == 1).ok_or_else(|| elst.short())?;
        if media < 0 {
            if real > 0 {
                return Err(FilmError::EditList("a pause in the middle".into()));
            }
            edit.delay += length as f64 / f64::from(movie_timescale);
            continue;
        }
        real += 1;
        if real > 1 {
            return Err(FilmError::EditList("more than one edit".into()));
        }
        if speed != 1 << 16 {
            return Err(FilmError::EditList("a change of speed".into()));
        }
        edit.media = media;
        let units = u128::from(length) * u128::from(timescale) / u128::from(movie_timescale);
        edit.length = i64::try_from(units).ok().filter(|&units| units > 0);
    }
    Ok(edit)
}

fn edit_row(c: &mut Cursor, wide: bool) -> Option<(u64, i64, u32)> {
    let length = c.sized(wide)?;
    let media = if wide { c.u64()? as i64 } else { i64::from(c.u32()? as i32) };
    Some((length, media, c.u32()?))
}

fn with_defaults(mut track: Track, moov: &Box) -> Result<Track, FilmError> {
    let Some(mvex) = moov.child(b"mvex")? else { return Ok(track) };
    for child in mvex.boxes() {
        let trex = child?;
        let mut c = trex.cursor();
        if &trex.kind == b"trex" && c.take(4).is_some() && c.u32() == Some(track.id) {
            let read = |c: &mut Cursor| -> Option<Defaults> {
                c.u32()?; // sample description index
                Some(Defaults { duration: c.u32()?, size: c.u32()?, flags: c.u32()? })
            };
            track.defaults = read(&mut c).ok_or_else(|| trex.short())?;
        }
    }
    Ok(track)
}

impl Track {
    /// The fields of the first sample entry after its name: (size, body).
    pub fn entry(&self) -> Option<&[u8]> {
        let size = self.stsd.get(16..20)?;
        let size = u32::from_be_bytes(size.try_into().ok()?) as usize;
        self.stsd.get(16..)?.get(..size)
    }

    /// Pixels as coded.
    pub fn picture(&self) -> Option<(u32, u32)> {
        let mut c = Cursor(self.entry()?.get(32..)?);
        Some((c.u16()?.into(), c.u16()?.into()))
    }

    /// (hertz, channels) as the sample entry says.
    pub fn sound(&self) -> Option<(u32, u32)> {
        let entry = self.entry()?;
        let channels = Cursor(entry.get(24..)?).u16()?;
        let rate = Cursor(entry.get(32..)?).u32()? >> 16;
        Some((rate, channels.into()))
    }

    /// The number of samples that `stbl` claims, without unfolding it.
    pub fn count(trak: &Box) -> Result<u64, FilmError> {
        let stsz = stbl(trak)?.need(b"stsz")?;
        let mut c = stsz.cursor();
        let count = c.take(8).and_then(|_| c.u32()).ok_or_else(|| stsz.short())?;
        Ok(count.into())
    }

    /// Unfolds the sample tables of `trak`.
    pub fn unfold(&mut self, trak: &Box, samples_max: u64) -> Result<(), FilmError> {
        let stbl = stbl(trak)?;
        let count = Self::count(trak)?;
        if count > samples_max {
            return Err(FilmError::Limit { what: "samples of a track", limit: samples_max });
        }
        let sizes = sizes(&stbl, count)?;
        let offsets = chunk_offsets(&stbl)?;
        let mut samples = Vec::with_capacity(sizes.len());
        place(&stbl, &sizes, &offsets, &mut samples)?;
        decode_times(&stbl, &mut samples)?;
        composition_times(&stbl, &mut samples)?;
        key_frames(&stbl, &mut samples)?;
        self.samples = samples;
        Ok(())
    }
}

fn stbl<'a>(trak: &Box<'a>) -> Result<Box<'a>, FilmError> {
    trak.need(b"mdia")?.need(b"minf")?.need(b"stbl")
}

/// The rows of a full box that begins with a count, `width` bytes each; all of them must be there.
fn rows<'a>(table: &Box<'a>, width: usize) -> Result<impl Iterator<Item = Cursor<'a>> + use<'a>, FilmError> {
    let mut c = table.cursor();
    let count = c.take(4).and_then(|_| c.u32()).ok_or_else(|| table.short())?;
    let bytes = (count as usize).checked_mul(width).and_then(|len| c.take(len)).ok_or_else(|| table.short())?;
    Ok(bytes.chunks_exact(width).map(Cursor))
}

fn sizes(stbl: &Box, count: u64) -> Result<Vec<u32>, FilmError> {
    let stsz = stbl.need(b"stsz")?;
    let mut c = stsz.cursor();
    let all = c.take(4).and_then(|_| c.u32()).ok_or_else(|| stsz.short())?;
    if all > 0 {
        // A count backed by no bytes: the offsets must still lie in the file, but the list is made first.
        return Ok(vec![all; count as usize]);
    }
    let table = c.take(4).and_then(|_| c.take((count as usize).checked_mul(4)?)).ok_or_else(|| stsz.short())?;
    Ok(table.chunks_exact(4).map(|row| Cursor(row).u32().unwrap_or(0)).collect())
}

fn chunk_offsets(stbl: &Box) -> Result<Vec<u64>, FilmError> {
    if let Some(co64) = stbl.child(b"co64")? {
        return Ok(rows(&co64, 8)?.map(|mut row| row.u64().unwrap_or(0)).collect());
    }
    let stco = stbl.need(b"stco")?;
    Ok(rows(&stco, 4)?.map(|mut row| row.u32().unwrap_or(0).into()).collect())
}

fn place(stbl: &Box, sizes: &[u32], offsets: &[u64], samples: &mut Vec<Sample>) -> Result<(), FilmError> {
    let stsc = stbl.need(b"stsc")?;
    let runs: Vec<(u32, u32)> =
        rows(&stsc, 12)?.map(|mut row| (row.u32().unwrap_or(0), row.u32().unwrap_or(0))).collect();
    let mut sizes = sizes.iter();
    let mut run = 0;
    for (number, &offset) in (1u32..).zip(offsets) {
        while runs.get(run + 1).is_some_and(|&(first, _)| first <= number) {
            run += 1;
        }
        let per_chunk = runs.get(run).map_or(0, |&(_, samples)| samples);
        let mut offset = offset;
        for &size in sizes.by_ref().take(per_chunk as usize) {
            samples.push(Sample { offset, size, duration: 0, dts: 0, pts: 0, key: false });
            offset = offset.checked_add(size.into()).ok_or_else(|| damaged("a sample lies beyond any file"))?;
        }
    }
    if sizes.next().is_some() {
        return Err(damaged("fewer samples in chunks than sizes"));
    }
    Ok(())
}

fn decode_times(stbl: &Box, samples: &mut [Sample]) -> Result<(), FilmError> {
    let stts = stbl.need(b"stts")?;
    let mut time = 0i64;
    let mut rest = samples.iter_mut();
    for mut row in rows(&stts, 8)? {
        let (count, delta) = (row.u32().unwrap_or(0), row.u32().unwrap_or(0));
        for sample in rest.by_ref().take(count as usize) {
            sample.dts = time;
            sample.pts = time;
            sample.duration = delta;
            time = time.checked_add(delta.into()).ok_or_else(|| damaged("times overflow"))?;
        }
    }
    match rest.next() {
        Some(_) => Err(damaged(format!("{} covers fewer samples than there are", name(b"stts")))),
        None => Ok(()),
    }
}

/// Offsets are read as signed in both versions, as every writer means them.
fn composition_times(stbl: &Box, samples: &mut [Sample]) -> Result<(), FilmError> {
    let Some(ctts) = stbl.child(b"ctts")? else { return Ok(()) };
    let mut rest = samples.iter_mut();
    for mut row in rows(&ctts, 8)? {
        let (count, offset) = (row.u32().unwrap_or(0), row.u32().unwrap_or(0) as i32);
        for sample in rest.by_ref().take(count as usize) {
            sample.pts = sample.dts.checked_add(offset.into()).ok_or_else(|| damaged("times overflow"))?;
        }
    }
    Ok(())
}

fn key_frames(stbl: &Box, samples: &mut [Sample]) -> Result<(), FilmError> {
    let Some(stss) = stbl.child(b"stss")? else {
        samples.iter_mut().for_each(|sample| sample.key = true);
        return Ok(());
    };
    for mut row in rows(&stss, 4)? {
        let index = (row.u32().unwrap_or(0) as usize).checked_sub(1);
        if let Some(sample) = index.and_then(|index| samples.get_mut(index)) {
            sample.key = true;
        }
    }
    Ok(())
}
