//! One load, piece by piece: the controller's own policy object and the peer's own picker over a network of max-min fair flows.
//!
//! What is modelled: links, announces and the time until an answer, leases, upload and download slots, one flow for
//! each pair of nodes, the time until a neighbour hears of a piece. A piece is forwarded when it is whole; so a load with large
//! pieces comes out slower here than with peers that forward each verified group.

mod node;
mod world;

use storage::overlay::bound::{self, Bound, lower_bound};
use storage::overlay::policy::Demand;

use self::world::World;

/// Who decides where bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Control {
    /// The policy as the product runs it.
    Ours,
    /// The policy in its `paper` mode, and an origin that nobody shields.
    Paper,
    /// Our picker in a random graph with the origin as one more seeder: no controller.
    Plain,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wanted {
    All,
    Parts,
}

/// How the origin bears readers that nobody admitted: `c` of them together get the share `min(1, (streams / c)^exponent)` of its
/// rate. Calibrated, not measured here.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Crowd {
    pub streams: f64,
    pub exponent: f64,
}

impl Crowd {
    pub fn share(&self, readers: usize) -> f64 {
        (self.streams / readers.max(1) as f64).powf(self.exponent).min(1.0)
    }
}

/// Racks of equal size, each with a link to the others.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Racks {
    pub count: u32,
    pub rate: f64,
}

/// One load to be simulated. Rates are payload bytes per second.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Load {
    pub nodes: u32,
    pub bytes: u64,
    pub pieces: u32,
    pub up: f64,
    /// The lesser of downlink and disk.
    pub down: f64,
    /// Of each node by itself, both ways; empty = all as above.
    pub node_rates: Vec<f64>,
    pub origin: f64,
    /// Front ends that share the origin's rate.
    pub fronts: u32,
    pub wanted: Wanted,
    /// Share of the next part that a node holds for others.
    pub overlap: f64,
    pub control: Control,
    pub crowd: Crowd,
    pub racks: Option<Racks>,
    /// Share of nodes at a quarter of the rate: the last ones.
    pub slow: f64,
    pub uploads: usize,
    pub downloads: usize,
    /// Nodes first speak within this time.
    pub boot_s: f64,
    /// From a controller's change of mind to its arrival.
    pub answer_s: f64,
    /// Between announces; by default a hundredth of the bound.
    pub interval_s: Option<f64>,
    /// From a piece's arrival until a neighbour that was told can have its first byte.
    pub hop_s: f64,
    /// Who dies, and when (share of the bound).
    pub kills: Vec<(f64, Kill)>,
    /// Gives up after so many bounds.
    pub patience: f64,
    pub seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub enum Kill {
    Share(f64),
    /// One of those that read from the origin first.
    Relay,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            nodes: 100,
            bytes: 10_000_000_000,
            pieces: 1000,
            up: 10e6,
            down: 10e6,
            node_rates: Vec::new(),
            origin: 10e6,
            fronts: 1,
            wanted: Wanted::All,
            overlap: 0.0,
            control: Control::Ours,
            crowd: super::paper::CROWD,
            racks: None,
            slow: 0.0,
            uploads: 4,
            downloads: 4,
            boot_s: 0.2,
            answer_s: 0.05,
            interval_s: None,
            hop_s: 0.0,
            kills: Vec::new(),
            patience: 20.0,
            seed: 1,
        }
    }
}

/// A value over time in seconds.
type Curve = Vec<(f64, f64)>;

/// What a simulated load came to. Times in seconds; infinite if somebody who lives never ended.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Outcome {
    pub bound_s: f64,
    pub bound_cut: &'static str,
    pub last_s: f64,
    pub median_s: f64,
    pub ratio_last: f64,
    pub ratio_median: f64,
    /// Of nodes at full speed, against the bound without what slow ones want.
    pub ratio_last_fast: f64,
    /// Copies of the distinct demanded bytes that left the origin.
    pub origin_copies: f64,
    /// Of the nodes' downlinks, from first to last byte, over all nodes.
    pub use_of_down: f64,
    pub transfers: u64,
    pub events: u64,
    /// (seconds, λ2) of the overlay.
    pub lambda2: Curve,
    /// (seconds, share of the demanded bytes that has arrived).
    pub arrived: Curve,
    /// Seconds of each node; null for who never ended.
    pub times: Vec<Option<f64>>,
    pub unfinished: u32,
}

impl Load {
    /// Runs the load to its end; `progress` hears the share of nodes that ended and the events so far, now and then.
    pub fn run(&self, progress: &mut dyn FnMut(f64, u64)) -> Outcome {
        let bound = self.bound(true);
        let mut world = World::new(self, &bound);
        let (lambda2, arrived) = world.play(bound.seconds, progress);
        let nodes = &world.nodes[..self.nodes as usize];
        let last = |slow: bool| {
            let ends = nodes.iter().enumerate().filter(|(i, n)| n.alive && (slow || !self.is_slow(*i as u32)));
            ends.map(|(_, n)| n.finished.unwrap_or(f64::INFINITY)).fold(0.0, f64::max)
        };
        let mut ends: Vec<_> = nodes.iter().filter(|n| n.alive).filter_map(|n| n.finished).collect();
        ends.sort_by(f64::total_cmp);
        let (last_s, median_s) = (last(true), ends.get(ends.len() / 2).copied().unwrap_or(f64::INFINITY));
        let taken: f64 = nodes.iter().map(|n| f64::from(n.picker.have().count())).sum::<f64>() * world.piece_bytes;
        Outcome {
            bound_s: bound.seconds,
            bound_cut: bound.cut.name(),
            last_s,
            median_s,
            ratio_last: last_s / bound.seconds,
            ratio_median: median_s / bound.seconds,
            ratio_last_fast: last(false) / self.bound(false).seconds,
            origin_copies: world.from_origin as f64 * world.piece_bytes / bound.distinct as f64,
            use_of_down: taken / (f64::from(self.nodes) * self.down * last_s),
            transfers: world.ended,
            events: world.events,
            lambda2,
            arrived,
            times: nodes.iter().map(|n| n.finished).collect(),
            unfinished: nodes.iter().filter(|n| n.alive && n.finished.is_none()).count() as u32,
        }
    }

    pub fn is_slow(&self, node: u32) -> bool {
        f64::from(node) >= f64::from(self.nodes) * (1.0 - self.slow)
    }

    fn rates(&self, node: u32) -> (f64, f64) {
        if let Some(rate) = self.node_rates.get(node as usize) {
            return (*rate, *rate);
        }
        let share = if self.is_slow(node) { 0.25 } else { 1.0 };
        (self.up * share, self.down * share)
    }

    fn demand(&self, node: u32) -> Vec<Demand> {
        if self.wanted == Wanted::All {
            return vec![Demand { range: 0..self.pieces, seed_only: false }];
        }
        let cut = |i: u32| (u64::from(self.pieces) * u64::from(i) / u64::from(self.nodes)) as u32;
        let next = (node + 1) % self.nodes;
        let lap = (f64::from(cut(next + 1) - cut(next)) * self.overlap).round() as u32;
        let own = Demand { range: cut(node)..cut(node + 1), seed_only: false };
        let held = Demand { range: cut(next)..cut(next) + lap, seed_only: true };
        [own, held].into_iter().filter(|d| !d.range.is_empty()).collect()
    }

    fn rack(&self, node: u32) -> u32 {
        self.racks.map_or(0, |racks| node % racks.count.max(1))
    }

    /// The least time that any plan takes; without `slow`, the slow nodes give and want nothing for themselves.
    pub fn bound(&self, slow: bool) -> Bound {
        let piece = self.bytes / u64::from(self.pieces);
        let nodes = (0..self.nodes).map(|i| {
            let wants = slow || !self.is_slow(i);
            let demand = if wants { self.demand(i) } else { Vec::new() };
            let range = |d: &Demand| u64::from(d.range.start) * piece..u64::from(d.range.end) * piece;
            let mut demand: Vec<_> = demand.iter().map(range).collect();
            demand.sort_by_key(|r| r.start);
            let (up, down) = self.rates(i);
            bound::Node { demand, up, down, rack: self.rack(i) }
        });
        // The origin stands in the first rack's place but behind its own link, so every rack's distinct bytes come in.
        let racks: Vec<_> = self
            .racks
            .iter()
            .flat_map(|racks| (0..racks.count).map(|id| (id, bound::Rack { down: racks.rate })))
            .collect();
        lower_bound(&nodes.collect::<Vec<_>>(), self.origin, &racks)
    }
}

#[cfg(test)]
mod tests;
