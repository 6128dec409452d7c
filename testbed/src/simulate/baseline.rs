//! Ways to load many machines without a swarm: everybody at the repository, and a binary tree.

use std::collections::BTreeMap;

use super::flows::Flows;
use super::load::Crowd;
use super::rates::{FlowId, LinkId};

/// Everybody reads `bytes` from the repository by themselves, admitted by nobody. With the whole dataset this is *centralised*, with
/// a part of it *centralised-sharded*.
#[derive(Clone, Copy, Debug)]
pub struct Central {
    pub nodes: u32,
    /// Of each node.
    pub bytes: f64,
    pub down: f64,
    pub origin: f64,
    pub crowd: Crowd,
}

impl Central {
    /// Seconds of each node.
    pub fn run(&self) -> Vec<f64> {
        let mut flows = Flows::new(0.0, 0.0);
        let origin = flows.link(self.origin);
        let mut running: BTreeMap<FlowId, usize> = BTreeMap::new();
        for node in 0..self.nodes as usize {
            let down = flows.link(self.down);
            running.insert(flows.start(self.bytes, &[origin, down]), node);
        }
        let mut ends = vec![f64::INFINITY; self.nodes as usize];
        let mut now = 0.0;
        loop {
            flows.set_cap(origin, self.origin * self.crowd.share(running.len()));
            flows.settle(now);
            let Some(next) = flows.next_end() else { return ends };
            now = next;
            while let Some(node) = flows.ended(now).and_then(|flow| running.remove(&flow)) {
                ends[node] = now;
            }
        }
    }
}

/// *Hierarchical ×2*: a tree in which each machine feeds two others, piece by piece, in order.
#[derive(Clone, Debug)]
pub struct Tree {
    pub nodes: u32,
    pub bytes: f64,
    pub pieces: u32,
    /// Of each node, each way.
    pub rate: f64,
    pub origin: f64,
    /// The first machine dies at this time; what hangs below it begins anew when it is back after the second time.
    pub failure: Option<(f64, f64)>,
}

const CHILDREN: usize = 2;

struct Edge {
    up: LinkId,
    down: LinkId,
    got: u32,
    /// The piece that flows to it now.
    flow: Option<FlowId>,
}

impl Tree {
    /// Seconds of each node.
    pub fn run(&self) -> Vec<f64> {
        let mut flows = Flows::new(0.0, 0.0);
        let origin = flows.link(self.origin);
        let mut edges: Vec<_> = (0..self.nodes)
            .map(|_| Edge { up: flows.link(self.rate), down: flows.link(self.rate), got: 0, flow: None })
            .collect();
        let mut ends = vec![f64::INFINITY; edges.len()];
        let mut running: BTreeMap<FlowId, usize> = BTreeMap::new();
        let (mut fails, mut returns) =
            self.failure.map_or((f64::INFINITY, f64::INFINITY), |(at, wait)| (at, at + wait));
        let mut down = false;
        let mut now = 0.0;
        loop {
            for node in 0..edges.len() {
                let waits = edges[node].flow.is_some() || edges[node].got == self.pieces || (down && below(node));
                let (held, sender) = match parent(node) {
                    Some(parent) => (edges[parent].got, edges[parent].up),
                    None => (self.pieces, origin),
                };
                if !waits && held > edges[node].got {
                    let flow = flows.start(self.bytes / f64::from(self.pieces), &[sender, edges[node].down]);
                    edges[node].flow = Some(flow);
                    running.insert(flow, node);
                }
            }
            flows.settle(now);
            let end = flows.next_end().unwrap_or(f64::INFINITY);
            let next = end.min(fails).min(returns);
            if !next.is_finite() || ends.iter().all(|end| end.is_finite()) {
                return ends;
            }
            now = next;
            if now == fails {
                (fails, down) = (f64::INFINITY, true);
                for node in (0..edges.len()).filter(|node| below(*node)) {
                    if let Some(flow) = edges[node].flow.take() {
                        flows.stop(flow);
                        running.remove(&flow);
                    }
                    (edges[node].got, ends[node]) = (0, f64::INFINITY);
                }
            }
            if now == returns {
                (returns, down) = (f64::INFINITY, false);
            }
            while let Some(node) = flows.ended(now).and_then(|flow| running.remove(&flow)) {
                edges[node].flow = None;
                edges[node].got += 1;
                if edges[node].got == self.pieces {
                    ends[node] = now;
                }
            }
        }
    }
}

/// The repository feeds the first two; node i feeds 2i+2 and 2i+3.
fn parent(node: usize) -> Option<usize> {
    node.checked_sub(CHILDREN).map(|n| n / CHILDREN)
}

/// Whether the first node stands between this one and the repository, or is it.
fn below(node: usize) -> bool {
    let mut at = node;
    while let Some(up) = parent(at) {
        at = up;
    }
    at == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALM: Crowd = Crowd { streams: 1e9, exponent: 1.0 };

    #[test]
    fn a_calm_repository_is_shared_and_a_crowded_one_collapses() {
        let central = Central { nodes: 10, bytes: 100.0, down: 50.0, origin: 100.0, crowd: CALM };
        assert!(central.run().iter().all(|end| (end - 10.0).abs() < 1e-9));
        let crowded = Central { crowd: Crowd { streams: 5.0, exponent: 1.0 }, ..central };
        assert!(crowded.run().iter().all(|end| (end - 20.0).abs() < 1e-9));
    }

    #[test]
    fn a_binary_tree_takes_twice_the_bytes_over_the_rate_and_a_little_per_level() {
        let tree = Tree { nodes: 30, bytes: 1000.0, pieces: 100, rate: 10.0, origin: 100.0, failure: None };
        let last = tree.run().into_iter().fold(0.0, f64::max);
        assert!((200.0..210.0).contains(&last), "{last}");
    }

    #[test]
    fn a_late_failure_costs_the_subtree_another_whole_load() {
        let tree = Tree { nodes: 30, bytes: 1000.0, pieces: 100, rate: 10.0, origin: 100.0, failure: None };
        let last = |at| Tree { failure: Some((at, 5.0)), ..tree.clone() }.run().into_iter().fold(0.0, f64::max);
        let (early, late) = (last(10.0), last(190.0));
        assert!((212.0..226.0).contains(&early) && (392.0..406.0).contains(&late), "{early} {late}");
    }
}
