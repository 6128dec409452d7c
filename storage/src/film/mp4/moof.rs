//! Movie fragments (`moof`): the same sample lists, told a few at a time.

use super::boxes::{Box, Cursor};
use super::track::{Sample, Track};
use crate::film::error::{FilmError, damaged};

const BASE_DATA_OFFSET: u32 = 0x1;
const SAMPLE_DESCRIPTION: u32 = 0x2;
const DEFAULT_DURATION: u32 = 0x8;
const DEFAULT_SIZE: u32 = 0x10;
const DEFAULT_FLAGS: u32 = 0x20;
const DEFAULT_BASE_IS_MOOF: u32 = 0x2_0000;

const DATA_OFFSET: u32 = 0x1;
const FIRST_FLAGS: u32 = 0x4;
const DURATIONS: u32 = 0x100;
const SIZES: u32 = 0x200;
const FLAGS: u32 = 0x400;
const COMPOSITION: u32 = 0x800;

const NON_SYNC: u32 = 0x1_0000;

/// Appends the samples that the fragment at `start` has for the tracks; samples of other tracks are skipped.
pub fn append(moof: &Box, start: u64, tracks: &mut [&mut Track], samples_max: u64) -> Result<(), FilmError> {
    // Without a base of its own, data follows that of the track fragment before (ISO/IEC 14496-12 8.8.7).
    let mut follow = start;
    for traf in moof.boxes() {
        let traf = traf?;
        if &traf.kind == b"traf" {
            follow = append_traf(&traf, start, follow, tracks, samples_max)?;
        }
    }
    Ok(())
}

fn append_traf(
    traf: &Box,
    moof: u64,
    follow: u64,
    tracks: &mut [&mut Track],
    samples_max: u64,
) -> Result<u64, FilmError> {
    let tfhd = traf.need(b"tfhd")?;
    let (id, flags, mut c) = open(&tfhd).ok_or_else(|| tfhd.short())?;
    let mut other = None;
    let track = tracks.iter_mut().find(|track| track.id == id);
    let defaults = track.as_ref().map(|track| track.defaults).unwrap_or_default();
    let mut read = || {
        let base = if flags & BASE_DATA_OFFSET != 0 { Some(c.u64()?) } else { None };
        if flags & SAMPLE_DESCRIPTION != 0 {
            c.u32()?;
        }
        let mut word = |flag, default| if flags & flag != 0 { c.u32() } else { Some(default) };
        let duration = word(DEFAULT_DURATION, defaults.duration)?;
        let size = word(DEFAULT_SIZE, defaults.size)?;
        let sample_flags = word(DEFAULT_FLAGS, defaults.flags)?;
        Some((base, duration, size, sample_flags))
    };
    let (base, duration, size, sample_flags) = read().ok_or_else(|| tfhd.short())?;
    let base = base.unwrap_or(if flags & DEFAULT_BASE_IS_MOOF != 0 { moof } else { follow });
    let samples = match track {
        Some(track) => &mut track.samples,
        None => other.insert(Vec::new()),
    };
    let mut run = Run { base, offset: base, time: next_time(traf, samples)?, duration, size, flags: sample_flags };
    for trun in traf.boxes() {
        let trun = trun?;
        if &trun.kind == b"trun" {
            run.append(&trun, samples, samples_max)?;
        }
    }
    Ok(run.offset)
}

fn open<'a>(full: &Box<'a>) -> Option<(u32, u32, Cursor<'a>)> {
    let mut c = full.cursor();
    let (_, flags) = c.version_flags()?;
    Some((c.u32()?, flags, c))
}

/// `tfdt`, or the end of what came before.
fn next_time(traf: &Box, samples: &[Sample]) -> Result<i64, FilmError> {
    let Some(tfdt) = traf.child(b"tfdt")? else {
        return Ok(samples.last().map_or(0, |last| last.dts.saturating_add(last.duration.into())));
    };
    let mut c = tfdt.cursor();
    let time = c.version_flags().and_then(|(version, _)| c.sized(version == 1)).ok_or_else(|| tfdt.short())?;
    // Far from overflow in every sum below.
    i64::try_from(time).ok().filter(|&time| time < 1 << 60).ok_or_else(|| damaged("a fragment beyond any time"))
}

/// Where the next sample lies, in bytes and time, and what it is if it does not say.
struct Run {
    base: u64,
    offset: u64,
    time: i64,
    duration: u32,
    size: u32,
    flags: u32,
}

impl Run {
    fn append(&mut self, trun: &Box, samples: &mut Vec<Sample>, samples_max: u64) -> Result<(), FilmError> {
        let short = || trun.short();
        let mut c = trun.cursor();
        let (_, flags) = c.version_flags().ok_or_else(short)?;
        let count = c.u32().ok_or_else(short)?;
        if (samples.len() as u64).saturating_add(count.into()) > samples_max {
            return Err(FilmError::Limit { what: "samples of a track", limit: samples_max });
        }
        if flags & DATA_OFFSET != 0 {
            let offset = i64::from(c.u32().ok_or_else(short)? as i32);
            self.offset = self.base.checked_add_signed(offset).ok_or_else(|| damaged("data before the file"))?;
        }
        let mut first = if flags & FIRST_FLAGS != 0 { Some(c.u32().ok_or_else(short)?) } else { None };
        for _ in 0..count {
            let mut word = |flag, default| if flags & flag != 0 { c.u32() } else { Some(default) };
            let mut read = || {
                let duration = word(DURATIONS, self.duration)?;
                let size = word(SIZES, self.size)?;
                let sample_flags = word(FLAGS, first.take().unwrap_or(self.flags))?;
                Some((duration, size, sample_flags, word(COMPOSITION, 0)? as i32))
            };
            let (duration, size, sample_flags, composition) = read().ok_or_else(short)?;
            let sample = Sample {
                offset: self.offset,
                size,
                duration,
                dts: self.time,
                pts: self.time.saturating_add(composition.into()),
                key: sample_flags & NON_SYNC == 0,
            };
            self.offset = self.offset.checked_add(size.into()).ok_or_else(|| damaged("data beyond any file"))?;
            self.time = self.time.saturating_add(duration.into());
            samples.push(sample);
        }
        Ok(())
    }
}
