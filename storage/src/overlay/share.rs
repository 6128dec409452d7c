//! A domain's share of a job: which bytes of the source its parts want, whether the overlay brings them, and where they lie in the
//! dataset that is then made of them. Pure.
//!
//! The dataset is the union of all ranges, end to end; its files are named by the range of the source that each holds, so that the
//! metainfo alone tells a guest where its own bytes are ([why so](../../../docs/decisions/0008-shares-through-the-overlay.md)).

use std::ops::Range;

use super::layout::Layout;
use super::metainfo::{File, Metainfo};
use super::partition::Part;
use crate::ledger::GETS_AT_ONCE;
use crate::range::{ByteRange, coalesce};

/// The overlay must spare the store at least this share of what is wanted: each byte that goes through it is read and hashed before
/// any guest has it.
const COMMON_MIN: f64 = 0.1;
/// So many requests put off are no accident.
const THROTTLED_MIN: u64 = 3;
/// The reason where there is nobody to share with.
pub const ONE_LOADS: &str = "one guest loads at a time";
/// Requests that a guest has open at the store while it loads one part.
const STREAMS_PER_LOAD: u32 = GETS_AT_ONCE as u32;

/// How the bytes of a share reach its guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Each guest reads its own ranges from the store.
    Direct,
    /// One reads them all, once, and the swarm spreads them.
    Overlay,
}

/// A way, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub way: Way,
    /// For people: one line.
    pub reason: String,
}

impl std::fmt::Display for Choice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let way = if self.way == Way::Overlay { "overlay" } else { "direct" };
        write!(f, "{way}: {}", self.reason)
    }
}

/// What the parts of a share want of the source, together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub parts: u32,
    /// A byte that two parts want counts twice.
    pub bytes: u64,
    /// Of these, all but the first of each.
    pub common: u64,
}

impl Wanted {
    /// `parts`: ranges of the source, for each part.
    pub fn of(parts: &[Vec<ByteRange>]) -> Self {
        let total = |ranges: &mut dyn Iterator<Item = &ByteRange>| ranges.map(|r| r.len()).sum::<u64>();
        let bytes = total(&mut parts.iter().flatten());
        Self { parts: parts.len() as u32, bytes, common: bytes - total(&mut union(parts).iter()) }
    }
}

/// What else is known when the way is chosen.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Parts that are loaded at the same time.
    pub loads: u32,
    /// Requests at one time that the store admits from this domain, where it limits them.
    pub streams: Option<u32>,
    /// Requests of this domain that the store has put off lately (429, 503).
    pub throttled: u64,
}

impl Facts {
    pub fn choose(&self, wanted: Wanted) -> Choice {
        let loads = self.loads.min(wanted.parts);
        let Wanted { bytes, common, .. } = wanted;
        let choice = |way, reason| Choice { way, reason };
        if loads < 2 || bytes == 0 {
            return choice(Way::Direct, ONE_LOADS.to_owned());
        }
        if common as f64 >= COMMON_MIN * bytes as f64 {
            return choice(Way::Overlay, format!("{common} of {bytes} bytes are wanted by two guests or more"));
        }
        match self.streams {
            Some(streams) if streams < loads * STREAMS_PER_LOAD => {
                let wish = loads * STREAMS_PER_LOAD;
                choice(
                    Way::Overlay,
                    format!("the store admits {streams} requests at a time, {loads} guests want {wish}"),
                )
            }
            _ if self.throttled >= THROTTLED_MIN => {
                choice(Way::Overlay, format!("the store put off {} requests lately", self.throttled))
            }
            _ => {
                choice(Way::Direct, format!("{common} of {bytes} bytes are wanted twice, and the store is not limited"))
            }
        }
    }
}

/// The bytes that any part wants, sorted and apart.
pub fn union(parts: &[Vec<ByteRange>]) -> Vec<ByteRange> {
    coalesce(parts.iter().flatten().copied(), 0)
}

/// One file for each range of the source.
pub fn files(union: &[ByteRange]) -> Vec<File> {
    let file = |r: &ByteRange| File { path: vec![format!("{:020}-{:020}", r.start(), r.end())], len: r.len() };
    union.iter().map(file).collect()
}

/// Where the bytes of a source lie in a dataset, and in the file of one part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    /// Range of the source, and where it begins in the dataset.
    spans: Vec<(ByteRange, u64)>,
}

impl Map {
    /// `None`: the names are not those that [`files`] gives.
    pub fn read(meta: &Metainfo) -> Option<Self> {
        let mut at = 0;
        let mut spans = Vec::with_capacity(meta.files.len());
        for file in &meta.files {
            let [name] = &file.path[..] else { return None };
            let (start, end) = name.split_once('-')?;
            let range = ByteRange::new(start.parse().ok()?, end.parse().ok()?).ok()?;
            if range.len() != file.len {
                return None;
            }
            spans.push((range, at));
            at += file.len;
        }
        Some(Self { spans })
    }

    /// Where a range of the source is in the dataset; `None` if it is not, or not whole.
    fn place(&self, wanted: ByteRange) -> Option<Range<u64>> {
        let holds = |(span, _): &&(ByteRange, u64)| span.start() <= wanted.start() && wanted.end() <= span.end();
        let (span, at) = self.spans.iter().find(holds)?;
        let start = at + wanted.start() - span.start();
        Some(start..start + wanted.len())
    }

    /// What a guest takes in to have these ranges: whole pieces, because the origin gives no less. `None`: some are not there.
    pub fn part(&self, layout: &Layout, ranges: &[ByteRange]) -> Option<Part> {
        let piece = layout.piece_len_max();
        let whole = |r: Range<u64>| {
            ByteRange::new(r.start / piece * piece, r.end.next_multiple_of(piece).min(layout.total())).ok()
        };
        let own = ranges.iter().map(|r| whole(self.place(*r)?)).collect::<Option<Vec<_>>>()?;
        let own = coalesce(own, 0).into_iter().map(|r| r.start()..r.end()).collect();
        Some(Part { own, seed_only: Vec::new() })
    }

    /// Where each range begins in the file that holds the part's own bytes end to end.
    pub fn offsets(&self, part: &Part, ranges: &[ByteRange]) -> Option<Vec<u64>> {
        let offset = |range: &ByteRange| {
            let place = self.place(*range)?;
            let mut before = 0;
            for own in &part.own {
                if own.start <= place.start && place.end <= own.end {
                    return Some(before + place.start - own.start);
                }
                before += own.end - own.start;
            }
            None
        };
        ranges.iter().map(offset).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::metainfo::Maker;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::new(start, end).unwrap()
    }

    fn way(parts: &[Vec<ByteRange>], loads: u32, streams: Option<u32>) -> Choice {
        Facts { loads, streams, throttled: 0 }.choose(Wanted::of(parts))
    }

    #[test]
    fn common_bytes_or_a_store_that_is_limited_make_it_the_overlay() {
        let apart = [vec![range(0, 100)], vec![range(100, 200)]];
        let same = [vec![range(0, 100)], vec![range(20, 120)]];
        assert_eq!(way(&apart, 2, None).way, Way::Direct);
        assert_eq!(way(&apart, 2, Some(8)).way, Way::Direct);
        assert_eq!(way(&apart, 2, Some(7)).way, Way::Overlay);
        let throttled = |n| Facts { loads: 2, streams: None, throttled: n }.choose(Wanted::of(&apart)).way;
        assert_eq!((throttled(2), throttled(3)), (Way::Direct, Way::Overlay));
        let choice = way(&same, 2, None);
        assert_eq!(choice.to_string(), "overlay: 80 of 200 bytes are wanted by two guests or more");
        assert_eq!(way(&same, 1, Some(1)).way, Way::Direct, "nobody to share with");
        assert_eq!(way(&[vec![range(0, 100)], vec![range(91, 191)]], 2, None).way, Way::Direct, "too little in common");
        assert_eq!(way(&[vec![], vec![]], 2, Some(1)).way, Way::Direct, "no bytes at all");
    }

    #[test]
    fn every_guest_finds_its_bytes_by_the_metainfo_alone() {
        let source: Vec<u8> = (0..900_000u32).map(|i| (i * 7 % 251) as u8).collect();
        let parts =
            [vec![range(500_000, 700_000), range(10, 90_000)], vec![range(80_000, 300_000), range(899_000, 900_000)]];
        let union = union(&parts);
        assert_eq!(union, [range(10, 300_000), range(500_000, 700_000), range(899_000, 900_000)]);
        let dataset: Vec<u8> =
            union.iter().flat_map(|r| &source[r.start() as usize..r.end() as usize]).copied().collect();
        let mut maker = Maker::new(Layout::for_total(dataset.len() as u64).unwrap());
        maker.update(&dataset);
        let meta = maker.finish("share", files(&union), "t").unwrap().0;
        let meta = Metainfo::decode(&meta.encode("http://x/announce")).unwrap();
        let map = Map::read(&meta).unwrap();
        for ranges in &parts {
            let part = map.part(&meta.layout, ranges).unwrap();
            assert!(part.own.iter().all(|r| r.start % meta.layout.piece_len_max() == 0));
            let file: Vec<u8> =
                part.own.iter().flat_map(|r| &dataset[r.start as usize..r.end as usize]).copied().collect();
            for (range, at) in ranges.iter().zip(map.offsets(&part, ranges).unwrap()) {
                let bytes = &file[at as usize..][..range.len() as usize];
                assert!(bytes == &source[range.start() as usize..range.end() as usize], "{range:?}");
            }
        }
        assert_eq!(map.part(&meta.layout, &[range(299_000, 301_000)]), None, "nobody wanted those");
    }
}
