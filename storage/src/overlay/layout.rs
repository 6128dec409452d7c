//! How a dataset is cut: chunks (unit of proof) > pieces (unit of BEP-3 and of origin leases) > groups (unit of sending).
//!
//! All lengths are powers of two, each a multiple of the next, so that a group belongs to one piece and one chunk.
//! Indices from peers pass through `group`/`piece` once and are in range afterwards.

use std::ops::Range;

/// Smallest thing that is verified and forwarded, in bytes.
pub const GROUP: u64 = 64 << 10;
/// A chunk's length lies in this range of bytes.
pub const CHUNK_MIN: u64 = 4 << 20;
pub const CHUNK_MAX: u64 = 64 << 20;
/// A BEP-3 piece is never longer (ordinary clients hold one in memory).
pub const PIECE_MAX: u64 = 32 << 20;
/// More bytes than group indices of 32 bits can name are refused.
pub const TOTAL_MAX: u64 = GROUP * (u32::MAX as u64 >> 1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    total: u64,
    piece: u64,
    chunk: u64,
}

impl Layout {
    /// `None` unless 0 < total <= [`TOTAL_MAX`], and piece and chunk are powers of two with GROUP <= piece <= chunk.
    pub fn new(total: u64, piece: u64, chunk: u64) -> Option<Self> {
        let sound = total > 0
            && total <= TOTAL_MAX
            && piece.is_power_of_two()
            && chunk.is_power_of_two()
            && (GROUP..=PIECE_MAX).contains(&piece)
            && (CHUNK_MIN..=CHUNK_MAX).contains(&chunk)
            && piece <= chunk;
        sound.then_some(Self { total, piece, chunk })
    }

    /// Pieces small enough that 1024 leases exist, chunks such that there are at most about 4096.
    pub fn for_total(total: u64) -> Option<Self> {
        let piece = (total / 1024).max(1).next_power_of_two().clamp(GROUP, PIECE_MAX / 2);
        let chunk = (total / 4096).max(1).next_power_of_two().clamp(CHUNK_MIN, CHUNK_MAX);
        Self::new(total, piece, chunk)
    }

    pub fn total(&self) -> u64 {
        self.total
    }

    pub fn piece_len_max(&self) -> u64 {
        self.piece
    }

    pub fn chunk_len_max(&self) -> u64 {
        self.chunk
    }

    pub fn groups(&self) -> u32 {
        self.total.div_ceil(GROUP) as u32
    }

    pub fn pieces(&self) -> u32 {
        self.total.div_ceil(self.piece) as u32
    }

    pub fn chunks(&self) -> u32 {
        self.total.div_ceil(self.chunk) as u32
    }

    /// Bytes of group `g`; empty past the end.
    pub fn group_bytes(&self, g: u32) -> Range<u64> {
        self.clip(u64::from(g) * GROUP, GROUP)
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
        (u64::from(g) * GROUP / self.piece) as u32
    }

    pub fn chunk_of(&self, g: u32) -> u32 {
        (u64::from(g) * GROUP / self.chunk) as u32
    }

    /// Every group that `bytes` touches.
    pub fn to_groups(&self, bytes: Range<u64>) -> Range<u32> {
        let end = bytes.end.min(self.total);
        (bytes.start.min(end) / GROUP) as u32..end.div_ceil(GROUP) as u32
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
        let layout = Layout::new((4 << 20) + 70_000, 256 << 10, 4 << 20).unwrap();
        assert_eq!((layout.chunks(), layout.pieces(), layout.groups()), (2, 17, 66));
        assert_eq!(layout.group_bytes(65), (65 << 16)..(4 << 20) + 70_000);
        assert_eq!(layout.chunk_groups(1), 64..66);
        assert!(layout.group_bytes(66).is_empty());
        assert_eq!((layout.piece_of(65), layout.chunk_of(65)), (16, 1));
    }

    #[test]
    fn lengths_that_do_not_nest_are_refused() {
        assert!(Layout::new(0, GROUP, CHUNK_MIN).is_none());
        assert!(Layout::new(1, GROUP + 1, CHUNK_MIN).is_none());
        assert!(Layout::new(1, 8 << 20, CHUNK_MIN).is_none());
        assert!(Layout::new(u64::MAX, GROUP, CHUNK_MIN).is_none());
    }
}
