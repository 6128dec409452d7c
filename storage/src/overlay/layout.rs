//! How a dataset is cut: chunks (unit of proof) > pieces (unit of BEP-3 and of origin leases) > groups (unit of sending).
//!
//! All lengths are powers of two, each a multiple of the next, so that a group belongs to one piece and one chunk.
//! Indices from peers pass through `group`/`piece` once and are in range afterwards.

use std::ops::Range;

/// A group's length lies in this range of bytes.
pub const GROUP_MIN: u64 = 16 << 10;
pub const GROUP_MAX: u64 = 64 << 10;
/// A chunk's length lies in this range of bytes.
pub const CHUNK_MIN: u64 = 4 << 20;
pub const CHUNK_MAX: u64 = 64 << 20;
/// A BEP-3 piece is never longer (ordinary clients hold one in memory).
pub const PIECE_MAX: u64 = 32 << 20;
/// More groups than this are refused, so that an index and what is reckoned with it fit into 32 bits.
const GROUPS_MAX: u64 = u32::MAX as u64 >> 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    total: u64,
    group: u64,
    piece: u64,
    chunk: u64,
}

impl Layout {
    /// `None` unless group, piece and chunk are powers of two in their ranges with group <= piece <= chunk, and there are 1 to 2^31 - 1 groups.
    pub fn new(total: u64, group: u64, piece: u64, chunk: u64) -> Option<Self> {
        let sound = total > 0
            && [group, piece, chunk].into_iter().all(u64::is_power_of_two)
            && (GROUP_MIN..=GROUP_MAX).contains(&group)
            && total.div_ceil(group) <= GROUPS_MAX
            && (group..=PIECE_MAX).contains(&piece)
            && (CHUNK_MIN..=CHUNK_MAX).contains(&chunk)
            && piece <= chunk;
        sound.then_some(Self { total, group, piece, chunk })
    }

    /// Groups and pieces small enough that there are about 1024, chunks such that there are at most about 4096. The last group takes as many turns of
    /// a link as it has ways to go, whatever the rate; so what a load lacks of its bound is some hundred groups' worth.
    pub fn for_total(total: u64) -> Option<Self> {
        let share = (total / 1024).max(1);
        let group = (1 << share.ilog2()).clamp(GROUP_MIN, GROUP_MAX);
        let piece = share.next_power_of_two().clamp(group, PIECE_MAX / 2);
        let chunk = (total / 4096).max(1).next_power_of_two().clamp(CHUNK_MIN, CHUNK_MAX);
        Self::new(total, group, piece, chunk)
    }

    pub fn total(&self) -> u64 {
        self.total
    }

    pub fn group_len_max(&self) -> u64 {
        self.group
    }

    pub fn piece_len_max(&self) -> u64 {
        self.piece
    }

    pub fn chunk_len_max(&self) -> u64 {
        self.chunk
    }

    pub fn groups(&self) -> u32 {
        self.total.div_ceil(self.group) as u32
    }

    pub fn pieces(&self) -> u32 {
        self.total.div_ceil(self.piece) as u32
    }

    pub fn chunks(&self) -> u32 {
        self.total.div_ceil(self.chunk) as u32
    }

    /// Bytes of group `g`; empty past the end.
    pub fn group_bytes(&self, g: u32) -> Range<u64> {
        self.clip(u64::from(g) * self.group, self.group)
    }

    pub fn piece_bytes(&self, p: u32) -> Range<u64> {
        self.clip(u64::from(p) * self.piece, self.piece)
    }

    pub fn chunk_bytes(&self, c: u32) -> Range<u64> {
        self.clip(u64::from(c) * self.chunk, self.chunk)
    }

    pub fn piece_groups(&self, p: u32) -> Range<u32> {
        self.to_groups(self.piece_bytes(p))
    }

    pub fn chunk_groups(&self, c: u32) -> Range<u32> {
        self.to_groups(self.chunk_bytes(c))
    }

    pub fn piece_of(&self, g: u32) -> u32 {
        (u64::from(g) * self.group / self.piece) as u32
    }

    pub fn chunk_of(&self, g: u32) -> u32 {
        (u64::from(g) * self.group / self.chunk) as u32
    }

    /// The group that byte `at` of the dataset lies in; `at` is no larger than the total.
    pub fn group_at(&self, at: u64) -> u32 {
        (at / self.group) as u32
    }

    /// Every group that `bytes` touches.
    pub fn to_groups(&self, bytes: Range<u64>) -> Range<u32> {
        let end = bytes.end.min(self.total);
        self.group_at(bytes.start.min(end))..end.div_ceil(self.group) as u32
    }

    fn clip(&self, start: u64, len: u64) -> Range<u64> {
        start.min(self.total)..(start + len).min(self.total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_each_kind_is_short_and_past_it_nothing() {
        let layout = Layout::new((4 << 20) + 70_000, GROUP_MAX, 256 << 10, 4 << 20).unwrap();
        assert_eq!((layout.chunks(), layout.pieces(), layout.groups()), (2, 17, 66));
        assert_eq!(layout.group_bytes(65), (65 << 16)..(4 << 20) + 70_000);
        assert_eq!(layout.chunk_groups(1), 64..66);
        assert!(layout.group_bytes(66).is_empty());
        assert_eq!((layout.piece_of(65), layout.chunk_of(65)), (16, 1));
    }

    #[test]
    fn lengths_that_do_not_nest_are_refused() {
        let refused = |total, group, piece, chunk| Layout::new(total, group, piece, chunk).is_none();
        assert!(!refused(1, GROUP_MIN, GROUP_MIN, CHUNK_MIN));
        assert!(refused(0, GROUP_MIN, GROUP_MIN, CHUNK_MIN));
        assert!(refused(1, GROUP_MIN, GROUP_MIN + 1, CHUNK_MIN));
        assert!(refused(1, GROUP_MIN, 8 << 20, CHUNK_MIN));
        assert!(refused(u64::MAX, GROUP_MAX, GROUP_MAX, CHUNK_MIN));
        assert!(refused(1, GROUP_MAX, GROUP_MIN, CHUNK_MIN));
        for group in [0, 1, 3 << 13, GROUP_MIN / 2, GROUP_MAX * 2] {
            assert!(refused(1, group, 1 << 20, CHUNK_MIN), "{group}");
        }
    }

    #[test]
    fn what_is_short_is_cut_into_about_as_many_groups_as_what_is_long() {
        let group = |total| Layout::for_total(total).unwrap().group_len_max() >> 10;
        let totals = [1, 24_000_000, (32 << 20) - 1, 32 << 20, 48_000_000, (64 << 20) - 1, 64 << 20, 100 << 40];
        assert_eq!(totals.map(group), [16, 16, 16, 32, 32, 32, 64, 64]);
    }
}
