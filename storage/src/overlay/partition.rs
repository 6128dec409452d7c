//! The partitioner: who gets which bytes of a dataset. Logical: it makes an index and moves no data.
//!
//! One trait, a strategy per kind of data; overlap r is added afterwards by [`overlap`] as explicit ranges that a node
//! holds for others only (Vaquero et al. 2015, §III-B).

use std::io;
use std::ops::Range;

use super::bound::Node;
use super::layout::Layout;

/// Reads some bytes of the dataset: a file here, ranged GETs there.
pub trait ReadAt {
    fn len(&self) -> u64;

    /// Fills `buffer` from `at`; fewer bytes only at the end.
    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize>;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl ReadAt for &[u8] {
    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }

    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let from = self.get(at as usize..).unwrap_or_default();
        let n = from.len().min(buffer.len());
        buffer[..n].copy_from_slice(&from[..n]);
        Ok(n)
    }
}

impl ReadAt for std::fs::File {
    fn len(&self) -> u64 {
        self.metadata().map_or(0, |m| m.len())
    }

    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match std::os::unix::fs::FileExt::read_at(self, &mut buffer[done..], at + done as u64)? {
                0 => break,
                n => done += n,
            }
        }
        Ok(done)
    }
}

/// The partition of one node.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Part {
    /// Bytes the node works on: disjoint over all parts, sorted; together the whole dataset.
    pub own: Vec<Range<u64>>,
    /// Bytes it holds for its neighbours only.
    pub seed_only: Vec<Range<u64>>,
}

impl Part {
    /// All that it holds in the end, sorted.
    pub fn demand(&self) -> Vec<Range<u64>> {
        let mut all: Vec<_> = self.own.iter().chain(&self.seed_only).cloned().collect();
        all.sort_by_key(|range| range.start);
        all
    }

    /// The same in pieces, as announces tell it: `[start, end, seed only]`.
    pub fn pieces(&self, layout: &Layout) -> Vec<(u32, u32, bool)> {
        let pieces = |bytes: &Range<u64>, seed_only| {
            let groups = layout.to_groups(bytes.clone());
            (layout.piece_of(groups.start), layout.piece_of(groups.end.saturating_sub(1)) + 1, seed_only)
        };
        let own = self.own.iter().map(|r| pieces(r, false));
        own.chain(self.seed_only.iter().map(|r| pieces(r, true))).collect()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot cut into {0} parts")]
    Parts(usize),
    #[error("reading the dataset around byte {at}")]
    Read { at: u64, source: io::Error },
    #[error("line {line} is not an edge (two vertex numbers)")]
    Edge { line: u64 },
    #[error("a record at byte {at} is longer than {max} bytes")]
    Record { at: u64, max: u64 },
}

impl Error {
    pub fn code(&self) -> &'static str {
        match self {
            Error::Parts(_) => "partition-count",
            Error::Read { .. } => "partition-read",
            Error::Edge { .. } => "partition-not-an-edge",
            Error::Record { .. } => "partition-record-too-long",
        }
    }
}

/// A way to cut a dataset into `parts` for as many nodes.
pub trait Partitioner {
    fn partition(&self, data: &dyn ReadAt, parts: usize) -> Result<Vec<Part>, Error>;
}

/// Equal byte ranges, cut at multiples of `align` bytes.
#[derive(Clone, Copy, Debug)]
pub struct Binary {
    pub align: u64,
}

impl Binary {
    /// The cut needs no byte of the data, only their number.
    pub fn of_length(&self, len: u64, parts: usize) -> Result<Vec<Part>, Error> {
        let align = self.align.max(1);
        let units = len.div_ceil(align);
        let cuts = even_cuts(units, parts)?.into_iter().map(|cut| (cut * align).min(len)).collect::<Vec<_>>();
        Ok(between(&cuts))
    }
}

impl Partitioner for Binary {
    fn partition(&self, data: &dyn ReadAt, parts: usize) -> Result<Vec<Part>, Error> {
        self.of_length(data.len(), parts)
    }
}

/// Near-equal ranges that end after a newline; reads only around the cuts.
#[derive(Clone, Copy, Debug)]
pub struct Lines {
    /// A longer record is an error: the file is not made of lines.
    pub record_max: u64,
}

impl Partitioner for Lines {
    fn partition(&self, data: &dyn ReadAt, parts: usize) -> Result<Vec<Part>, Error> {
        let mut cuts = even_cuts(data.len(), parts)?;
        let last = cuts.len() - 1;
        for cut in &mut cuts[1..last] {
            *cut = self.after_newline(data, *cut)?;
        }
        Ok(between(&cuts))
    }
}

impl Lines {
    /// The first record start at or after `at`.
    fn after_newline(&self, data: &dyn ReadAt, at: u64) -> Result<u64, Error> {
        let mut from = at.saturating_sub(1);
        let mut buffer = [0; 8192];
        while from < data.len() {
            if from - at.min(from) > self.record_max {
                return Err(Error::Record { at, max: self.record_max });
            }
            let n = data.read_at(from, &mut buffer).map_err(|source| Error::Read { at: from, source })?;
            if n == 0 {
                break;
            }
            if let Some(newline) = buffer[..n].iter().position(|b| *b == b'\n') {
                return Ok(from + newline as u64 + 1);
            }
            from += n as u64;
        }
        Ok(data.len())
    }
}

/// An edge list (`source<blank>target` per line, `#` comments): the node of vertex v is v modulo the number of workers.
///
/// The index is per worker: the runs of lines whose source vertex is its own. Lines of a list sorted by vertex hop
/// from worker to worker, so runs closer than `gap` bytes are joined where the same worker follows again.
#[derive(Clone, Copy, Debug)]
pub struct VertexModulus;

impl Partitioner for VertexModulus {
    fn partition(&self, data: &dyn ReadAt, parts: usize) -> Result<Vec<Part>, Error> {
        if parts == 0 {
            return Err(Error::Parts(0));
        }
        let mut found = vec![Part::default(); parts];
        let (mut at, mut line_number, mut start) = (0u64, 1u64, 0u64);
        let mut line = Vec::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            let n = data.read_at(at, &mut buffer).map_err(|source| Error::Read { at, source })?;
            for byte in &buffer[..n] {
                at += 1;
                line.push(*byte);
                if *byte == b'\n' {
                    assign(&mut found, &line, start..at, line_number)?;
                    (line_number, start) = (line_number + 1, at);
                    line.clear();
                } else if line.len() > 4096 {
                    return Err(Error::Record { at: start, max: 4096 });
                }
            }
            if n == 0 {
                if !line.is_empty() {
                    assign(&mut found, &line, start..at, line_number)?;
                }
                return Ok(found);
            }
        }
    }
}

fn assign(parts: &mut [Part], line: &[u8], range: Range<u64>, number: u64) -> Result<(), Error> {
    let text = std::str::from_utf8(line).map_err(|_| Error::Edge { line: number })?.trim();
    let worker = if text.is_empty() || text.starts_with('#') {
        0
    } else {
        let mut fields = text.split_ascii_whitespace().map(str::parse::<u64>);
        let (Some(Ok(vertex)), Some(Ok(_))) = (fields.next(), fields.next()) else {
            return Err(Error::Edge { line: number });
        };
        (vertex % parts.len() as u64) as usize
    };
    match parts[worker].own.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => parts[worker].own.push(range),
    }
    Ok(())
}

/// Cut points given from elsewhere (the film planner's key frames), near-equal parts in bytes.
#[derive(Clone, Debug)]
pub struct AtCuts {
    /// Where a part may begin, sorted; 0 is implied.
    pub starts: Vec<u64>,
}

impl Partitioner for AtCuts {
    fn partition(&self, data: &dyn ReadAt, parts: usize) -> Result<Vec<Part>, Error> {
        let mut cuts = even_cuts(data.len(), parts)?;
        let last = cuts.len() - 1;
        for cut in &mut cuts[1..last] {
            let next = self.starts.partition_point(|start| *start < *cut);
            let candidates = [next.checked_sub(1), Some(next)].into_iter().flatten().filter_map(|i| self.starts.get(i));
            *cut =
                candidates.copied().filter(|s| *s <= data.len()).min_by_key(|s| s.abs_diff(*cut)).unwrap_or(data.len());
        }
        cuts.sort_unstable();
        Ok(between(&cuts))
    }
}

/// Adds to each part the first `r` (0 to 1) of the next one's bytes, to hold for others.
pub fn overlap(parts: &mut [Part], r: f64) {
    let own: Vec<_> = parts.iter().map(|p| p.own.clone()).collect();
    let next = own.iter().cycle().skip(1);
    for (part, next) in parts.iter_mut().zip(next).filter(|_| own.len() > 1) {
        let total: u64 = next.iter().map(|r| r.end - r.start).sum();
        let mut left = (total as f64 * r.clamp(0.0, 1.0)) as u64;
        for range in next {
            let take = left.min(range.end - range.start);
            if take > 0 {
                part.seed_only.push(range.start..range.start + take);
            }
            left -= take;
        }
    }
}

/// Parts as nodes for the lower bound: overlap is taken in like everything else.
pub fn demands(parts: &[Part], up: f64, down: f64) -> Vec<Node> {
    parts.iter().map(|part| Node { demand: part.demand(), up, down, rack: 0 }).collect()
}

fn even_cuts(len: u64, parts: usize) -> Result<Vec<u64>, Error> {
    if parts == 0 || parts > 1 << 20 {
        return Err(Error::Parts(parts));
    }
    let cut = |i: usize| (u128::from(len) * i as u128 / parts as u128) as u64;
    Ok((0..=parts).map(cut).collect())
}

fn between(cuts: &[u64]) -> Vec<Part> {
    let part =
        |pair: &[u64]| Part { own: Vec::from_iter((pair[0] < pair[1]).then(|| pair[0]..pair[1])), seed_only: vec![] };
    cuts.windows(2).map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(parts: &[Part]) -> Vec<Range<u64>> {
        let mut all: Vec<_> = parts.iter().flat_map(|p| p.own.clone()).collect();
        all.sort_by_key(|r| r.start);
        all
    }

    fn covers(parts: &[Part], len: u64) {
        let all = joined(parts);
        assert_eq!(all.first().map(|r| r.start), Some(0));
        assert_eq!(all.last().map(|r| r.end), Some(len));
        assert!(all.windows(2).all(|w| w[0].end == w[1].start), "{all:?}");
    }

    #[test]
    fn every_strategy_covers_the_dataset_once() {
        let text: String = (0..500).map(|i| format!("{} {}\n", i * 7 % 90, i)).collect();
        let data = text.as_bytes();
        let strategies: [&dyn Partitioner; 4] = [
            &Binary { align: 64 },
            &Lines { record_max: 4096 },
            &VertexModulus,
            &AtCuts { starts: vec![10, 2000, 2500] },
        ];
        for strategy in strategies {
            for parts in [1, 3, 7] {
                let found = strategy.partition(&data, parts).unwrap();
                assert_eq!(found.len(), parts);
                covers(&found, data.len() as u64);
            }
        }
    }

    #[test]
    fn lines_are_never_cut() {
        let data = b"one\ntwo\nthree\nfour\nfive\nsix";
        for parts in 1..9 {
            for part in (Lines { record_max: 99 }).partition(&&data[..], parts).unwrap() {
                for range in part.own {
                    assert!(range.start == 0 || data[range.start as usize - 1] == b'\n');
                }
            }
        }
    }

    #[test]
    fn an_edge_goes_to_the_worker_of_its_source() {
        let data = b"# c\n1 2\n4 1\n2 9\n";
        let parts = VertexModulus.partition(&&data[..], 3).unwrap();
        assert_eq!(parts[1].own, vec![4..12]);
        assert_eq!(parts[2].own, vec![12..16]);
        assert!(matches!(VertexModulus.partition(&&b"1 2\nx y\n"[..], 2), Err(Error::Edge { line: 2 })));
    }

    #[test]
    fn overlap_is_explicit_and_for_others_only() {
        let mut parts = Binary { align: 1 }.partition(&&[0u8; 100][..], 4).unwrap();
        overlap(&mut parts, 0.2);
        assert_eq!(parts[0].seed_only, vec![25..30]);
        assert_eq!(parts[3].seed_only, vec![0..5]);
        assert_eq!(demands(&parts, 1.0, 1.0)[3].demand, vec![0..5, 75..100]);
    }

    #[test]
    fn no_parts_and_endless_records_are_refused() {
        assert_eq!(Binary { align: 1 }.partition(&&b"x"[..], 0).unwrap_err().code(), "partition-count");
        let endless = vec![b'x'; 100_000];
        assert_eq!(
            (Lines { record_max: 9000 }).partition(&&endless[..], 2).unwrap_err().code(),
            "partition-record-too-long"
        );
    }
}
