//! Reading the index of a film and nothing else.
//!
//! The probe never reads by itself: [`Probe::step`] says which ranges it needs (all at once, so that the caller can get
//! them in parallel), [`Probe::supply`] takes them, and the last step gives the plan. Same bytes, same plan.

use super::error::FilmError;
use super::plan::{Heads, Plan, PlanOptions};
use super::sparse::{Halt, Sparse};
use super::{mkv, mp4, ts};
use crate::range::ByteRange;

/// Bytes of the first request, from the object's start: enough to know the container, and the whole index of an MP4 of two minutes. Asking again
/// for the rest takes longer than reading a little too much.
pub const HEAD_BYTES: u64 = 128 << 10;

/// One film being probed.
#[derive(Debug)]
pub struct Probe {
    options: PlanOptions,
    bytes: Sparse,
    supplied: u64,
    mp4: mp4::Walk,
    failed: Option<FilmError>,
}

/// What the probe wants next.
#[derive(Debug)]
pub enum Step {
    /// Bytes to supply, each range as one GET, before stepping on.
    Need(Vec<ByteRange>),
    Done(Box<Plan>, Heads),
}

impl Probe {
    /// `size` is the object's length in bytes.
    pub fn new(size: u64, options: PlanOptions) -> Probe {
        Probe { options, bytes: Sparse::new(size), supplied: 0, mp4: mp4::Walk::default(), failed: None }
    }

    /// Errors are final: stepping on gives the same.
    pub fn step(&mut self) -> Result<Step, FilmError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        match self.read() {
            Ok((plan, heads)) => Ok(Step::Done(Box::new(plan), heads)),
            Err(Halt::Need(ranges)) => {
                let wanted: u64 = ranges.iter().map(|range| range.len()).fold(0, u64::saturating_add);
                if self.supplied.saturating_add(wanted) > self.options.index_bytes_max {
                    return Err(
                        self.fail(FilmError::Limit { what: "bytes of index", limit: self.options.index_bytes_max })
                    );
                }
                Ok(Step::Need(ranges))
            }
            Err(Halt::Fail(error)) => Err(self.fail(error)),
        }
    }

    /// Steps to the end over bytes that are at hand: `read` gives each range asked for.
    pub fn run<E: From<FilmError>>(
        mut self,
        mut read: impl FnMut(ByteRange) -> Result<Vec<u8>, E>,
    ) -> Result<(Plan, Heads), E> {
        loop {
            match self.step()? {
                Step::Done(plan, heads) => return Ok((*plan, heads)),
                Step::Need(ranges) => {
                    for range in ranges {
                        let bytes = read(range)?;
                        self.supply(range, bytes);
                    }
                }
            }
        }
    }

    /// Gives the bytes of a range asked for. Fewer than asked for means that the object is not as long as it was said to be.
    pub fn supply(&mut self, range: ByteRange, bytes: Vec<u8>) {
        let in_object = range.end() <= self.bytes.size();
        if !in_object || bytes.len() as u64 != range.len() {
            let what = format!("{} bytes came for {}..{}", bytes.len(), range.start(), range.end());
            self.failed.get_or_insert(FilmError::Truncated(what));
            return;
        }
        self.supplied = self.supplied.saturating_add(range.len());
        self.bytes.insert(range.start(), bytes);
    }

    fn fail(&mut self, error: FilmError) -> FilmError {
        self.failed.insert(error).clone()
    }

    fn read(&mut self) -> Result<(Plan, Heads), Halt> {
        let size = self.bytes.size();
        if size == 0 {
            return Err(FilmError::ZeroBytes.into());
        }
        let head = self.bytes.get(0, size.min(HEAD_BYTES), HEAD_BYTES)?;
        if mkv::sniff(head) {
            Ok((mkv::read(&self.bytes, &self.options)?, Heads::default()))
        } else if ts::sniff(head) {
            Ok((ts::read(&self.bytes, &self.options)?, Heads::default()))
        } else if mp4::sniff(head) {
            let (plan, cut) = self.mp4.read(&self.bytes, &self.options)?;
            Ok((plan, Heads(Some(Box::new(cut)))))
        } else {
            Err(named(head).into())
        }
    }
}

/// Tells a film of another kind from no film at all.
fn named(head: &[u8]) -> FilmError {
    let kind = match head {
        [b'R', b'I', b'F', b'F', _, _, _, _, b'A', b'V', b'I', b' ', ..] => "AVI",
        [b'F', b'L', b'V', 1, ..] => "FLV",
        [b'O', b'g', b'g', b'S', ..] => "Ogg",
        [0, 0, 1, 0xba, ..] => "MPEG program stream",
        [0x30, 0x26, 0xb2, 0x75, ..] => "ASF",
        [0x06, 0x0e, 0x2b, 0x34, ..] => "MXF",
        _ => return FilmError::NotAFilm,
    };
    FilmError::UnsupportedContainer(kind.into())
}
