//! The bytes of a film known so far. A reader that meets a hole stops with the range it wants, and starts again when it
//! has come: readers stay plain functions, and nobody waits in them.

use std::collections::BTreeMap;

use super::error::FilmError;
use crate::range::{ByteRange, coalesce};

/// Why a reader stopped.
#[derive(Debug)]
pub enum Halt {
    Need(Vec<ByteRange>),
    Fail(FilmError),
}

impl From<FilmError> for Halt {
    fn from(error: FilmError) -> Self {
        Self::Fail(error)
    }
}

/// Non-touching runs of bytes by offset.
#[derive(Debug, Default)]
pub struct Sparse {
    size: u64,
    runs: BTreeMap<u64, Vec<u8>>,
}

impl Sparse {
    pub fn new(size: u64) -> Self {
        Self { size, runs: BTreeMap::new() }
    }

    /// Bytes in the whole object.
    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn insert(&mut self, start: u64, bytes: Vec<u8>) {
        let mut start = start;
        let mut bytes = bytes;
        if let Some((&before, run)) = self.runs.range_mut(..=start).next_back() {
            let run_end = before + run.len() as u64;
            if run_end >= start {
                let known = (run_end - start) as usize;
                run.extend_from_slice(bytes.get(known..).unwrap_or_default());
                start = before;
                bytes = self.runs.remove(&before).unwrap_or_default();
            }
        }
        loop {
            let end = start + bytes.len() as u64;
            let Some((&after, _)) = self.runs.range(start..=end).next() else { break };
            let run = self.runs.remove(&after).unwrap_or_default();
            bytes.extend_from_slice(run.get((end - after) as usize..).unwrap_or_default());
        }
        self.runs.insert(start, bytes);
    }

    /// What is known from `start` on without a hole.
    pub fn known(&self, start: u64) -> &[u8] {
        let Some((&at, run)) = self.runs.range(..=start).next_back() else { return &[] };
        usize::try_from(start - at).ok().and_then(|skip| run.get(skip..)).unwrap_or_default()
    }

    /// Exactly `len` bytes at `start`; in a hole, asks for at least `ahead` bytes so that what follows comes along.
    pub fn get(&self, start: u64, len: u64, ahead: u64) -> Result<&[u8], Halt> {
        let end = start.checked_add(len).filter(|&end| end <= self.size);
        let Some(end) = end else {
            return Err(FilmError::Truncated(format!("{len} bytes wanted at {start} of {}", self.size)).into());
        };
        let known = self.known(start);
        if let Some(found) = usize::try_from(len).ok().and_then(|len| known.get(..len)) {
            return Ok(found);
        }
        let from = start + known.len() as u64;
        let to = end.max(start.saturating_add(ahead).min(self.size));
        let range = ByteRange::new(from, to).map_err(|_| FilmError::Truncated("nothing left to read".into()))?;
        Err(Halt::Need(vec![range]))
    }
}

/// Collects wishes so that many holes cost one round trip.
pub fn all_of(needs: Vec<ByteRange>) -> Halt {
    Halt::Need(coalesce(needs, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_that_touch_or_overlap_become_one() {
        let mut sparse = Sparse::new(100);
        sparse.insert(10, (10..20).collect());
        sparse.insert(30, (30..40).collect());
        sparse.insert(15, (15..35).collect());
        assert_eq!(sparse.runs.len(), 1);
        assert_eq!(sparse.get(10, 30, 0).unwrap(), (10..40).collect::<Vec<u8>>());
    }

    #[test]
    fn a_hole_is_asked_for_with_what_follows_and_never_past_the_end() {
        let mut sparse = Sparse::new(100);
        sparse.insert(0, vec![0; 20]);
        let Err(Halt::Need(need)) = sparse.get(10, 20, 500) else { panic!("bytes from nowhere") };
        assert_eq!(need, [ByteRange::new(20, 100).unwrap()]);
        assert!(matches!(sparse.get(90, 11, 0), Err(Halt::Fail(FilmError::Truncated(_)))));
    }
}
