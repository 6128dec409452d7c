//! A part of an MP4 as an MP4 of its own: a new `moov` for the part's samples, an `mdat` header, then the source's bytes.
//!
//! No edit list is written: times start at the first decode time of the part, and presentation times are `shift` later
//! than in the tables so that no composition offset is negative (readers disagree about those).

use std::ops::Range;

use super::boxes::Writer;
use super::track::{Sample, Track};
use crate::film::error::FilmError;
use crate::range::{ByteRange, coalesce};

/// Holes up to this size (or a thousandth of the film, if that is less) are fetched along rather than cost a request.
const GAP_BYTES: u64 = 64 << 10;
const RANGES_MAX: usize = 10_000;

/// One track of a part.
pub struct Slice<'a> {
    pub track: &'a Track,
    pub samples: &'a [Sample],
    pub shift: i64,
}

/// Where the bytes of these samples are; `size` of the film in bytes.
pub fn ranges(slices: &[Slice], size: u64) -> Result<Vec<ByteRange>, FilmError> {
    let used = slices.iter().flat_map(|slice| slice.samples);
    let ranges = coalesce(used.filter_map(|s| ByteRange::new(s.offset, s.end()).ok()), GAP_BYTES.min(size / 1024));
    if ranges.len() > RANGES_MAX {
        return Err(FilmError::Limit { what: "pieces of a part in the file", limit: RANGES_MAX as u64 });
    }
    Ok(ranges)
}

/// What stands before these ranges.
pub fn head(ftyp: &[u8], mvhd: &[u8], slices: &[Slice], ranges: &[ByteRange]) -> Vec<u8> {
    let layout = Layout::new(ranges);
    let (mut w, mut offsets) = (Writer::default(), Vec::new());
    w.raw(ftyp);
    w.boxed(b"moov", |w| {
        w.raw(mvhd);
        for slice in slices {
            trak(w, slice, &layout, &mut offsets);
        }
    });
    w.u32(1);
    w.raw(b"mdat");
    w.u64(layout.length.saturating_add(16));
    let mut head = w.0;
    // Offsets count from the start of the file, and where the data begins is known only now.
    let data = head.len() as u64;
    for offset in offsets.into_iter().flat_map(|table: Range<usize>| table.step_by(8)) {
        if let Some(place) = head.get_mut(offset..).and_then(<[u8]>::first_chunk_mut) {
            *place = u64::from_be_bytes(*place).saturating_add(data).to_be_bytes();
        }
    }
    head
}

/// Where source bytes stand when the ranges are joined.
struct Layout {
    /// Source start and joined start, rising.
    starts: Vec<(u64, u64)>,
    length: u64,
}

impl Layout {
    fn new(ranges: &[ByteRange]) -> Self {
        let mut length = 0u64;
        let mut start = |range: &ByteRange| {
            let at = length;
            length += range.len();
            (range.start(), at)
        };
        Self { starts: ranges.iter().map(&mut start).collect(), length }
    }

    fn place(&self, offset: u64) -> u64 {
        let after = self.starts.partition_point(|&(start, _)| start <= offset);
        let before = after.checked_sub(1).and_then(|i| self.starts.get(i));
        before.map_or(0, |&(start, at)| at + (offset - start))
    }
}

/// Where tables of offsets into the data stand is added to `offsets`.
fn trak(w: &mut Writer, slice: &Slice, layout: &Layout, offsets: &mut Vec<Range<usize>>) {
    let track = slice.track;
    let duration: u64 = slice.samples.iter().map(|sample| u64::from(sample.duration)).sum();
    w.boxed(b"trak", |w| {
        w.raw(&track.tkhd);
        w.boxed(b"mdia", |w| {
            w.full(b"mdhd", 1, 0, |w| {
                w.u64(0);
                w.u64(0);
                w.u32(track.timescale);
                w.u64(duration);
                w.u32(0x55c4_0000); // language: undetermined
            });
            w.raw(&track.hdlr);
            w.boxed(b"minf", |w| {
                w.raw(&track.media_info);
                w.boxed(b"stbl", |w| {
                    w.raw(&track.stsd);
                    tables(w, slice, layout, offsets);
                });
            });
        });
    });
}

fn tables(w: &mut Writer, slice: &Slice, layout: &Layout, offsets: &mut Vec<Range<usize>>) {
    let samples = slice.samples;
    let pair = |w: &mut Writer, &(count, value): &(u32, u32)| {
        w.u32(count);
        w.u32(value);
    };
    w.full(b"stts", 0, 0, |w| w.rows(&runs(deltas(samples)), pair));
    let shown = samples.iter().map(|s| s.pts.saturating_sub(s.dts).saturating_add(slice.shift));
    let shown = runs(shown.map(|after| u32::try_from(after).unwrap_or(u32::MAX)));
    if shown.iter().any(|&(_, after)| after != 0) {
        w.full(b"ctts", 0, 0, |w| w.rows(&shown, pair));
    }
    if samples.iter().any(|sample| !sample.key) {
        let keys: Vec<u32> = (1u32..).zip(samples).filter(|(_, sample)| sample.key).map(|(number, _)| number).collect();
        w.full(b"stss", 0, 0, |w| w.rows(&keys, |w, &number| w.u32(number)));
    }
    w.full(b"stsz", 0, 0, |w| {
        w.u32(0);
        w.rows(samples, |w, sample| w.u32(sample.size));
    });
    let chunks = chunks(samples);
    w.full(b"stsc", 0, 0, |w| {
        let mut rows: Vec<(u32, u32)> = (1u32..).zip(chunks.iter().map(|&(_, count)| count)).collect();
        rows.dedup_by_key(|&mut (_, count)| count);
        w.rows(&rows, |w, &(first, count)| {
            w.u32(first);
            w.u32(count);
            w.u32(1);
        });
    });
    w.full(b"co64", 0, 0, |w| {
        w.rows(&chunks, |w, &(offset, _)| w.u64(layout.place(offset)));
        offsets.push(w.0.len() - 8 * chunks.len()..w.0.len());
    });
}

/// Differences of decode times; the last sample keeps its own duration.
fn deltas(samples: &[Sample]) -> impl Iterator<Item = u32> {
    let next = samples.iter().skip(1).map(|sample| Some(sample.dts)).chain([None]);
    samples.iter().zip(next).map(|(sample, next)| {
        let delta = next.and_then(|next| u32::try_from(next.checked_sub(sample.dts)?).ok());
        delta.unwrap_or(sample.duration)
    })
}

/// Run lengths: (count, value).
fn runs(values: impl Iterator<Item = u32>) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for value in values {
        match runs.last_mut() {
            Some((count, last)) if *last == value => *count += 1,
            _ => runs.push((1, value)),
        }
    }
    runs
}

/// Samples that stand next to each other in the file: (offset, count).
fn chunks(samples: &[Sample]) -> Vec<(u64, u32)> {
    let mut chunks: Vec<(u64, u32)> = Vec::new();
    let mut end = None;
    for sample in samples {
        match chunks.last_mut() {
            Some((_, count)) if end == Some(sample.offset) => *count += 1,
            _ => chunks.push((sample.offset, 1)),
        }
        end = Some(sample.end());
    }
    chunks
}
