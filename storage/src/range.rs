//! Half-open byte ranges, the unit in which a source is split, fetched and accounted.

use serde::{Deserialize, Serialize};

/// Bytes `start..end` of an object; never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "(u64, u64)", into = "(u64, u64)")]
pub struct ByteRange {
    start: u64,
    end: u64,
}

/// A range whose end does not lie after its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("byte range {start}..{end} is empty or backwards")]
pub struct EmptyRange {
    pub start: u64,
    pub end: u64,
}

impl ByteRange {
    pub fn new(start: u64, end: u64) -> Result<Self, EmptyRange> {
        if start < end { Ok(Self { start, end }) } else { Err(EmptyRange { start, end }) }
    }

    pub fn start(&self) -> u64 {
        self.start
    }

    /// First byte after the range.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Length in bytes, at least 1.
    #[expect(clippy::len_without_is_empty, reason = "a range is never empty")]
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// The value of an HTTP `Range` header (RFC 9110 §14.1.2: the last byte is inclusive there).
    pub fn http_header(&self) -> String {
        format!("bytes={}-{}", self.start, self.end - 1)
    }
}

impl TryFrom<(u64, u64)> for ByteRange {
    type Error = EmptyRange;
    fn try_from((start, end): (u64, u64)) -> Result<Self, EmptyRange> {
        Self::new(start, end)
    }
}

impl From<ByteRange> for (u64, u64) {
    fn from(range: ByteRange) -> Self {
        (range.start, range.end)
    }
}

/// Sorts ranges and joins those that overlap or stand at most `gap` bytes apart.
pub fn coalesce(ranges: impl IntoIterator<Item = ByteRange>, gap: u64) -> Vec<ByteRange> {
    let mut sorted: Vec<_> = ranges.into_iter().collect();
    sorted.sort();
    let mut joined: Vec<ByteRange> = Vec::new();
    for range in sorted {
        match joined.last_mut() {
            Some(last) if range.start <= last.end.saturating_add(gap) => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::new(start, end).unwrap()
    }

    #[test]
    fn an_empty_or_backward_range_cannot_be_made() {
        assert!(ByteRange::new(4, 4).is_err());
        assert!(serde_json::from_str::<ByteRange>("[9,3]").is_err());
    }

    #[test]
    fn http_ranges_name_their_last_byte() {
        assert_eq!(range(0, 1).http_header(), "bytes=0-0");
    }

    #[test]
    fn near_ranges_are_joined_and_far_ones_kept() {
        let joined = coalesce([range(50, 60), range(0, 10), range(8, 20), range(25, 30)], 5);
        assert_eq!(joined, [range(0, 30), range(50, 60)]);
    }
}
