//! The range ledger: which bytes of one object are needed, on their way, or here.
//!
//! Pure; `fetch` carries its decisions out. A piece is one GET, and is in exactly one of three states. Ranges keep the order in which
//! they were asked for, and each byte asked for has one place in the output.
//!
//! ```text
//! needed --start--> in flight --finish--> done
//!    ^                  |
//!    '-----fail---------'   while the piece has tries and the whole has budget
//! ```

use crate::range::ByteRange;

/// GETs of one load that are under way together, unless somebody says otherwise: enough to fill a line from one store.
pub const GETS_AT_ONCE: usize = 4;

/// How ranges become GETs, and how many may fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LedgerLimits {
    /// No GET spans more bytes (unless one range's remainder is cut evenly, never more).
    pub get_bytes_max: u64,
    /// Ranges that follow each other at most this many bytes apart share a GET; the gap is thrown away.
    pub gap_bytes_max: u64,
    /// Tries of one piece.
    pub attempts_max: u32,
    /// Repeats in all: this many, and one more for each piece.
    pub retries_max: u64,
}

impl Default for LedgerLimits {
    /// 8 MiB keeps a retry cheap and the overhead of a request small; 32 KiB is sooner sent than asked for again.
    fn default() -> Self {
        Self { get_bytes_max: 8 << 20, gap_bytes_max: 32 << 10, attempts_max: 12, retries_max: 32 }
    }
}

/// A part of a piece that was asked for, and where it belongs in the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    pub source: ByteRange,
    /// Offset of its first byte in the output.
    pub offset: u64,
}

/// One GET to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Get {
    /// Index of the piece; give it back to [`Ledger::finish`] or [`Ledger::fail`].
    pub piece: usize,
    pub span: ByteRange,
    /// In ascending order of source and output.
    pub slices: Vec<Slice>,
    /// 1 at the first try.
    pub attempt: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Needed,
    InFlight,
    Done,
}

#[derive(Clone, Debug)]
struct Piece {
    span: ByteRange,
    slices: Vec<Slice>,
    state: State,
    attempts: u32,
}

/// The account of one object's ranges.
#[derive(Clone, Debug)]
pub struct Ledger {
    limits: LedgerLimits,
    pieces: Vec<Piece>,
    /// Pieces before this one are not needed any more.
    first_needed: usize,
    bytes: u64,
    done_bytes: u64,
    retries: u64,
}

impl Ledger {
    /// Cuts `ranges` into pieces. Ranges may overlap and stand in any order: each is put out whole, in the order given.
    pub fn new(ranges: &[ByteRange], limits: LedgerLimits) -> Self {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut bytes = 0u64;
        for slice in ranges.iter().flat_map(|range| cut(*range, limits.get_bytes_max.max(1))) {
            let slice = Slice { source: slice, offset: bytes };
            bytes = bytes.saturating_add(slice.source.len());
            match pieces.last_mut().and_then(|last| joined(last.span, slice.source, &limits).map(|span| (last, span))) {
                Some((last, span)) => {
                    last.span = span;
                    last.slices.push(slice);
                }
                None => {
                    pieces.push(Piece { span: slice.source, slices: vec![slice], state: State::Needed, attempts: 0 })
                }
            }
        }
        Self { limits, pieces, first_needed: 0, bytes, done_bytes: 0, retries: 0 }
    }

    /// The next GET to make, lowest first; none when all is in flight or done.
    pub fn start(&mut self) -> Option<Get> {
        while self.pieces.get(self.first_needed)?.state != State::Needed {
            self.first_needed += 1;
        }
        let index = self.first_needed;
        let piece = self.pieces.get_mut(index)?;
        piece.state = State::InFlight;
        piece.attempts += 1;
        Some(Get { piece: index, span: piece.span, slices: piece.slices.clone(), attempt: piece.attempts })
    }

    /// The piece is here. False when it was not in flight: nothing is counted twice.
    pub fn finish(&mut self, piece: usize) -> bool {
        match self.pieces.get_mut(piece) {
            Some(found) if found.state == State::InFlight => {
                found.state = State::Done;
                self.done_bytes += found.slices.iter().map(|slice| slice.source.len()).sum::<u64>();
                true
            }
            _ => false,
        }
    }

    /// The piece did not come. True when it is needed again, false when it was not in flight, or tries or budget are used up.
    pub fn fail(&mut self, piece: usize) -> bool {
        let budget = self.limits.retries_max.saturating_add(self.pieces.len() as u64);
        match self.pieces.get_mut(piece) {
            Some(found)
                if found.state == State::InFlight
                    && found.attempts < self.limits.attempts_max
                    && self.retries < budget =>
            {
                found.state = State::Needed;
                self.retries += 1;
                self.first_needed = self.first_needed.min(piece);
                true
            }
            _ => false,
        }
    }

    pub fn is_done(&self) -> bool {
        self.done_bytes == self.bytes
    }

    /// Bytes of output in all.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of output that are here.
    pub fn done_bytes(&self) -> u64 {
        self.done_bytes
    }

    /// Repeats so far.
    pub fn retries(&self) -> u64 {
        self.retries
    }

    /// Pieces in all.
    pub fn pieces(&self) -> usize {
        self.pieces.len()
    }
}

/// Cuts a range into as few even pieces as `max` allows, so that no tiny rest costs a request of its own.
fn cut(range: ByteRange, max: u64) -> impl Iterator<Item = ByteRange> {
    let count = range.len().div_ceil(max);
    let at = move |i: u64| range.start() + (u128::from(range.len()) * u128::from(i) / u128::from(count)) as u64;
    (0..count).filter_map(move |i| ByteRange::new(at(i), at(i + 1)).ok())
}

/// The span of both when they may share a GET.
fn joined(last: ByteRange, next: ByteRange, limits: &LedgerLimits) -> Option<ByteRange> {
    let gap = next.start().checked_sub(last.end())?;
    let span = ByteRange::new(last.start(), next.end()).ok()?;
    (gap <= limits.gap_bytes_max && span.len() <= limits.get_bytes_max).then_some(span)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranges() -> impl Strategy<Value = Vec<ByteRange>> {
        prop::collection::vec((0u64..5_000, 1u64..700), 0..12)
            .prop_map(|list| list.into_iter().map(|(start, len)| ByteRange::new(start, start + len).unwrap()).collect())
    }

    const SMALL: LedgerLimits = LedgerLimits { get_bytes_max: 256, gap_bytes_max: 16, attempts_max: 3, retries_max: 5 };

    #[test]
    fn neighbours_share_a_get_and_far_ranges_do_not() {
        let range = |start, end| ByteRange::new(start, end).unwrap();
        let mut ledger = Ledger::new(&[range(0, 10), range(20, 30), range(60, 70), range(0, 5)], SMALL);
        let spans: Vec<_> = std::iter::from_fn(|| ledger.start()).map(|get| get.span).collect();
        assert_eq!(spans, [range(0, 30), range(60, 70), range(0, 5)]);
    }

    #[test]
    fn nothing_asked_is_done_at_once() {
        let mut ledger = Ledger::new(&[], SMALL);
        assert!(ledger.is_done() && ledger.start().is_none() && !ledger.finish(0) && !ledger.fail(0));
    }

    proptest! {
        /// A driver that fills the output from the slices gets the ranges in order, whatever fails on the way, or is told to give up.
        #[test]
        fn the_output_is_the_ranges_in_order_under_any_failures(ranges in ranges(), fates in prop::collection::vec((any::<bool>(), 0usize..4), 0..400)) {
            let source: Vec<u8> = (0..6_000u32).map(|i| (i * 31 % 251) as u8).collect();
            let wanted: Vec<u8> = ranges.iter().flat_map(|r| source[r.start() as usize..r.end() as usize].to_vec()).collect();
            let mut ledger = Ledger::new(&ranges, SMALL);
            prop_assert_eq!(ledger.bytes(), wanted.len() as u64);
            let (mut output, mut flying, mut fates) = (vec![0u8; wanted.len()], Vec::new(), fates.into_iter());
            let mut gave_up = false;
            loop {
                while flying.len() < 4 && let Some(get) = ledger.start() {
                    prop_assert!(get.span.len() <= SMALL.get_bytes_max && get.attempt <= SMALL.attempts_max);
                    flying.push(get);
                }
                if flying.is_empty() { break }
                let (fails, pick) = fates.next().unwrap_or((false, 0));
                let get: Get = flying.remove(pick % flying.len());
                if fails {
                    if !ledger.fail(get.piece) { gave_up = true; break }
                    continue;
                }
                for slice in &get.slices {
                    prop_assert!(get.span.start() <= slice.source.start() && slice.source.end() <= get.span.end());
                    let (from, to) = (slice.source.start() as usize, slice.source.end() as usize);
                    output[slice.offset as usize..][..to - from].copy_from_slice(&source[from..to]);
                }
                prop_assert!(ledger.finish(get.piece));
                prop_assert!(!ledger.finish(get.piece), "a piece counts once");
            }
            prop_assert!(ledger.retries() <= SMALL.retries_max + ledger.pieces() as u64);
            if !gave_up {
                prop_assert!(ledger.is_done());
                prop_assert_eq!(output, wanted);
            }
        }
    }
}
