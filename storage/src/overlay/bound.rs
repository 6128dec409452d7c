//! The least time that any plan can take: the largest of the cuts through which the bytes must pass.
//!
//! Full replication gives Kumar & Ross (HotWeb 2006); partitioned demand follows from the same cuts. Every result of a load
//! is quoted as time ÷ this bound.

use std::ops::Range;

/// One node: what it wants, and its rates in bytes per second (`f64::INFINITY` = no limit).
#[derive(Clone, Debug)]
pub struct Node {
    /// Bytes wanted, disjoint and sorted.
    pub demand: Vec<Range<u64>>,
    pub up: f64,
    /// The lesser of its downlink and its disk.
    pub down: f64,
    pub rack: u32,
}

/// The link between a rack and the rest, bytes per second each way.
#[derive(Clone, Copy, Debug)]
pub struct Rack {
    pub down: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Each demanded byte leaves the origin once.
    Origin,
    /// The node with the most to take in.
    Node,
    /// All that is taken in must have been sent by somebody.
    Upload,
    /// Distinct bytes wanted in a rack pass its downlink.
    Rack,
}

impl Cut {
    pub fn name(self) -> &'static str {
        match self {
            Cut::Origin => "origin",
            Cut::Node => "node",
            Cut::Upload => "total upload",
            Cut::Rack => "rack link",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    pub seconds: f64,
    pub cut: Cut,
    /// Demanded bytes, each counted once.
    pub distinct: u64,
    /// Demanded bytes, counted per node that wants them.
    pub total: u64,
    /// Most nodes that want one byte.
    pub multiplicity: u32,
}

impl Bound {
    /// Its seconds and the cut that binds; none where no rate is limited.
    pub fn binding(&self) -> Option<(f64, &'static str)> {
        (self.seconds > 0.0).then(|| (self.seconds, self.cut.name()))
    }
}

/// The bound for an origin that sends `origin` bytes per second. Racks absent from `racks` have no limit.
pub fn lower_bound(nodes: &[Node], origin: f64, racks: &[(u32, Rack)]) -> Bound {
    let (distinct, multiplicity) = cover(nodes.iter());
    let total: u64 = nodes.iter().map(Node::bytes).sum();
    let upload: f64 = origin + nodes.iter().map(|n| n.up).sum::<f64>();
    let mut bound = Bound { seconds: distinct as f64 / origin, cut: Cut::Origin, distinct, total, multiplicity };
    let mut cut = |seconds: f64, cut| {
        if seconds > bound.seconds {
            (bound.seconds, bound.cut) = (seconds, cut);
        }
    };
    nodes.iter().for_each(|n| cut(n.bytes() as f64 / n.down, Cut::Node));
    cut(total as f64 / upload, Cut::Upload);
    for (id, rack) in racks {
        let (inside, _) = cover(nodes.iter().filter(|n| n.rack == *id));
        cut(inside as f64 / rack.down, Cut::Rack);
    }
    bound
}

impl Node {
    fn bytes(&self) -> u64 {
        self.demand.iter().map(|r| r.end - r.start).sum()
    }
}

/// Distinct bytes demanded, and the most nodes that demand one byte.
fn cover<'a>(nodes: impl Iterator<Item = &'a Node>) -> (u64, u32) {
    let mut edges: Vec<(u64, i32)> = nodes.flat_map(|n| &n.demand).flat_map(|r| [(r.start, 1), (r.end, -1)]).collect();
    edges.sort_unstable();
    let (mut distinct, mut most, mut open, mut from) = (0, 0, 0, 0);
    for (at, step) in edges {
        if open > 0 {
            distinct += at - from;
        }
        (open, from) = (open + step, at);
        most = most.max(open);
    }
    (distinct, most as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(demand: Range<u64>, up: f64, down: f64) -> Node {
        Node { demand: vec![demand], up, down, rack: 0 }
    }

    #[test]
    fn replication_obeys_kumar_and_ross() {
        let nodes = vec![node(0..100, 1.0, 10.0); 9];
        assert_eq!(lower_bound(&nodes, 1.0, &[]).seconds, 100.0);
        let scarce = lower_bound(&nodes, 2.0, &[]);
        assert!((scarce.seconds - 900.0 / 11.0).abs() < 1e-9 && scarce.cut == Cut::Upload);
        let slow = lower_bound(&vec![node(0..100, 50.0, 0.5); 3], 1000.0, &[]);
        assert_eq!((slow.seconds, slow.cut), (200.0, Cut::Node));
    }

    #[test]
    fn the_papers_terabyte_on_a_hundred_nodes_is_bound_by_its_own_cap() {
        // 30 % overlap at 10 MB/s per node: 21.7 minutes, and the paper measured 21 (§V-A).
        let part = 10u64.pow(10);
        let nodes: Vec<_> = (0..100)
            .map(|i| Node { demand: vec![i * part..i * part + part * 13 / 10], up: 10e6, down: 10e6, rack: 0 })
            .collect();
        let bound = lower_bound(&nodes, 1.25e9, &[]);
        assert!((bound.seconds / 60.0 - 21.67).abs() < 0.01 && bound.cut == Cut::Node && bound.multiplicity == 2);
    }

    #[test]
    fn overlap_never_lessens_what_the_origin_must_send() {
        let apart = lower_bound(&[node(0..50, 9.0, 9.0), node(50..100, 9.0, 9.0)], 1.0, &[]);
        let lapped = lower_bound(&[node(0..60, 9.0, 9.0), node(50..100, 9.0, 9.0)], 1.0, &[]);
        assert_eq!((apart.seconds, lapped.seconds, lapped.distinct, lapped.total), (100.0, 100.0, 100, 110));
    }

    #[test]
    fn a_thin_rack_link_binds() {
        let bound = lower_bound(&vec![node(0..100, 50.0, 50.0); 4], 100.0, &[(0, Rack { down: 4.0 })]);
        assert_eq!((bound.seconds, bound.cut), (25.0, Cut::Rack));
    }
}
