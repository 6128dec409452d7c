//! `testbed simulate`: a load of up to thousands of nodes under the real controller policy and the real picker.
//!
//! Events are transfer ends, announces and failures. A transfer runs at the lesser of its source's and its sink's equal share
//! (bottleneck-fair: re-computed at the two ends of every transfer that starts or ends; not global max-min filling).
//! No randomness but the seed's: the same arguments give the same output.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::time::Instant;

use clap::{Args, ValueEnum};
use storage::overlay::bits::Bits;
use storage::overlay::bound::{self, Bound, lower_bound};
use storage::overlay::picker::Picker;
use storage::overlay::policy::{Config, Demand, Mode, NodeId, Policy, Report};
use storage::overlay::rng::Rng;

#[derive(Clone, Debug, Args)]
pub struct SimulateArgs {
    #[arg(long, default_value_t = 100)]
    pub nodes: u32,
    /// Bytes of the dataset
    #[arg(long, default_value_t = 10_000_000_000)]
    pub bytes: u64,
    /// Pieces it is cut into
    #[arg(long, default_value_t = 1000)]
    pub pieces: u32,
    /// Rate of every node each way, bytes per second
    #[arg(long, default_value_t = 10e6)]
    pub rate: f64,
    /// Rate of the origin, bytes per second
    #[arg(long, default_value_t = 10e6)]
    pub origin: f64,
    /// Every node wants everything, or its own part only
    #[arg(long, value_enum, default_value_t = Wanted::All)]
    pub wanted: Wanted,
    /// Overlap of parts that is held for others (0 to 1)
    #[arg(long, default_value_t = 0.0)]
    pub overlap: f64,
    /// Do what the paper describes
    #[arg(long)]
    pub paper: bool,
    /// Percentage of nodes killed half way
    #[arg(long, default_value_t = 0)]
    pub kill: u32,
    /// Percentage of nodes at a quarter of the rate
    #[arg(long, default_value_t = 0)]
    pub slow: u32,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Print the outcome as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Wanted {
    All,
    Parts,
}

/// What a simulated load came to.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Outcome {
    pub bound_s: f64,
    pub bound_cut: &'static str,
    pub last_s: f64,
    pub median_s: f64,
    pub ratio_last: f64,
    pub ratio_median: f64,
    /// Copies of the distinct demanded bytes that left the origin.
    pub origin_copies: f64,
    pub transfers: u64,
    /// (seconds, λ2) as the tree becomes a mesh.
    pub lambda2: Vec<(f64, f64)>,
    pub unfinished: u32,
}

/// Transfers a node sends and takes at once, and the origin sends to one node.
const UPLOADS: usize = 4;
const DOWNLOADS: usize = 4;
/// Announces per lower bound, and from a controller's change of mind to its arrival.
const ANNOUNCES: f64 = 100.0;
const ANSWER_S: f64 = 0.05;
/// Values of λ2 that are kept, each 0.05 from the one before.
const SAMPLES: usize = 16;
const ORIGIN: usize = usize::MAX;

pub fn run(args: &SimulateArgs) -> anyhow::Result<()> {
    anyhow::ensure!(
        args.nodes > 0 && args.pieces > 0 && args.rate > 0.0 && args.origin > 0.0,
        "sizes and rates must be positive"
    );
    let wall = Instant::now();
    let outcome = simulate(args);
    if args.json {
        println!("{}", serde_json::to_string(&outcome)?);
        return Ok(());
    }
    println!("bound {:.1} s ({})", outcome.bound_s, outcome.bound_cut);
    println!(
        "last node {:.1} s = {:.3} x bound; median {:.3} x",
        outcome.last_s, outcome.ratio_last, outcome.ratio_median
    );
    println!(
        "origin copies {:.3}, transfers {}, unfinished {}",
        outcome.origin_copies, outcome.transfers, outcome.unfinished
    );
    for (seconds, lambda2) in &outcome.lambda2 {
        println!("  t {seconds:8.2} s  lambda2 {lambda2:.3}");
    }
    println!("simulated in {:.1} s", wall.elapsed().as_secs_f64());
    Ok(())
}

#[derive(PartialEq, PartialOrd)]
enum Event {
    Ended { transfer: usize, version: u32 },
    Announce { node: usize },
    AnnounceAll,
    Tick,
    Kill,
}

#[derive(PartialEq)]
struct At(f64, u64, Event);

impl Eq for At {}

impl PartialOrd for At {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for At {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0).then(self.1.cmp(&other.1))
    }
}

struct Transfer {
    from: usize,
    to: usize,
    piece: u32,
    left: f64,
    rate: f64,
    since: f64,
    version: u32,
}

struct Node {
    up: f64,
    down: f64,
    picker: Picker,
    demand: Vec<Demand>,
    neighbours: BTreeSet<usize>,
    sending: BTreeSet<usize>,
    taking: BTreeSet<usize>,
    finished: Option<f64>,
    /// Since when it has fetched nothing, at its last announce.
    idle: Option<f64>,
    alive: bool,
}

struct World {
    policy: Policy,
    nodes: Vec<Node>,
    transfers: Vec<Transfer>,
    origin_rate: f64,
    origin_sending: BTreeSet<usize>,
    piece_bytes: f64,
    queue: BinaryHeap<Reverse<At>>,
    sequence: u64,
    now: f64,
    version: u64,
    pending_all: bool,
    from_origin: u64,
    ended: u64,
    rng: Rng,
}

/// Runs one load to its end.
pub fn simulate(args: &SimulateArgs) -> Outcome {
    let mut rng = Rng::new(args.seed);
    let demands: Vec<_> = (0..args.nodes).map(|i| demand(args, i)).collect();
    let slow = |i: u32| i * 100 >= args.nodes * (100 - args.slow.min(100));
    let rate = |i: u32| if slow(i) && args.slow > 0 { args.rate / 4.0 } else { args.rate };
    let bound = bound_of(args, &demands, rate);
    let interval_s = (bound.seconds / ANNOUNCES).clamp(0.5, 60.0);
    let mode = if args.paper { Mode::Paper } else { Mode::Ours };
    let config = Config { mode, expected: args.nodes, interval_ms: (interval_s * 1000.0) as u64, ..Config::default() };
    let nodes = demands.iter().enumerate().map(|(i, demand)| {
        let mut want = Bits::new(args.pieces);
        demand.iter().for_each(|d| want.set_range(d.range.clone()));
        let r = rate(i as u32);
        Node {
            up: r,
            down: r,
            picker: Picker::new(want, Bits::new(args.pieces), rng.draw()),
            demand: demand.clone(),
            neighbours: BTreeSet::new(),
            sending: BTreeSet::new(),
            taking: BTreeSet::new(),
            finished: None,
            idle: None,
            alive: true,
        }
    });
    let nodes: Vec<_> = nodes.collect();
    let mut world = World {
        policy: Policy::new(config, args.pieces, args.seed),
        nodes,
        transfers: Vec::new(),
        origin_rate: args.origin,
        origin_sending: BTreeSet::new(),
        piece_bytes: args.bytes as f64 / f64::from(args.pieces),
        queue: BinaryHeap::new(),
        sequence: 0,
        now: 0.0,
        version: 0,
        pending_all: false,
        from_origin: 0,
        ended: 0,
        rng,
    };
    for node in 0..args.nodes as usize {
        let at = world.rng.unit() * 0.2;
        world.schedule(at, Event::Announce { node });
    }
    world.schedule(interval_s, Event::Tick);
    if args.kill > 0 {
        world.schedule(bound.seconds / 2.0, Event::Kill);
    }
    let lambda2 = world.play(interval_s, bound.seconds, args.kill);
    let mut times: Vec<_> = world.nodes.iter().filter(|n| n.alive).filter_map(|n| n.finished).collect();
    times.sort_by(f64::total_cmp);
    let unfinished = world.nodes.iter().filter(|n| n.alive && n.finished.is_none()).count() as u32;
    let last_s = times.last().copied().unwrap_or(f64::INFINITY);
    let median_s = times.get(times.len() / 2).copied().unwrap_or(f64::INFINITY);
    Outcome {
        bound_s: bound.seconds,
        bound_cut: bound.cut.name(),
        last_s,
        median_s,
        ratio_last: last_s / bound.seconds,
        ratio_median: median_s / bound.seconds,
        origin_copies: world.from_origin as f64 * world.piece_bytes / bound.distinct as f64,
        transfers: world.ended,
        lambda2,
        unfinished,
    }
}

fn demand(args: &SimulateArgs, node: u32) -> Vec<Demand> {
    if args.wanted == Wanted::All {
        return vec![Demand { range: 0..args.pieces, seed_only: false }];
    }
    let cut = |i: u32| (u64::from(args.pieces) * u64::from(i) / u64::from(args.nodes)) as u32;
    let next = (node + 1) % args.nodes;
    let lap = (f64::from(cut(next + 1) - cut(next)) * args.overlap) as u32;
    let own = Demand { range: cut(node)..cut(node + 1), seed_only: false };
    let held = Demand { range: cut(next)..cut(next) + lap, seed_only: true };
    [own, held].into_iter().filter(|d| !d.range.is_empty()).collect()
}

fn bound_of(args: &SimulateArgs, demands: &[Vec<Demand>], rate: impl Fn(u32) -> f64) -> Bound {
    let piece = args.bytes / u64::from(args.pieces);
    let nodes = demands.iter().enumerate().map(|(i, demand)| {
        let mut wanted: Vec<_> =
            demand.iter().map(|d| u64::from(d.range.start) * piece..u64::from(d.range.end) * piece).collect();
        wanted.sort_by_key(|r| r.start);
        bound::Node { demand: wanted, up: rate(i as u32), down: rate(i as u32), rack: 0 }
    });
    lower_bound(&nodes.collect::<Vec<_>>(), args.origin, &[])
}

impl World {
    fn schedule(&mut self, at: f64, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse(At(at, self.sequence, event)));
    }

    fn millis(&self) -> u64 {
        (self.now * 1000.0) as u64
    }

    fn play(&mut self, interval_s: f64, bound_s: f64, kill: u32) -> Vec<(f64, f64)> {
        let mut lambda2: Vec<(f64, f64)> = Vec::new();
        while let Some(Reverse(At(at, _, event))) = self.queue.pop() {
            self.now = at;
            if at > bound_s * 20.0 || self.nodes.iter().all(|n| !n.alive || n.finished.is_some()) {
                break;
            }
            match event {
                Event::Ended { transfer, version } if self.transfers[transfer].version == version => self.end(transfer),
                Event::Ended { .. } => {}
                Event::Announce { node } => {
                    self.announce(node);
                    self.schedule(at + interval_s, Event::Announce { node });
                }
                Event::AnnounceAll => {
                    self.pending_all = false;
                    (0..self.nodes.len()).for_each(|node| self.announce(node));
                }
                Event::Tick => {
                    self.policy.tick(self.millis());
                    let now = self.policy.lambda2();
                    if lambda2.len() < SAMPLES && lambda2.last().is_none_or(|(_, last)| (last - now).abs() > 0.05) {
                        lambda2.push((at, now));
                    }
                    self.schedule(at + interval_s, Event::Tick);
                }
                Event::Kill => self.kill(kill),
            }
            if self.policy.version() != self.version && !self.pending_all {
                self.version = self.policy.version();
                self.pending_all = true;
                self.schedule(at + ANSWER_S, Event::AnnounceAll);
            }
            self.lease();
        }
        lambda2
    }

    fn announce(&mut self, id: usize) {
        let now = self.millis();
        let node = &self.nodes[id];
        if !node.alive {
            return;
        }
        // Which pieces a node holds is told where that is small, as by the real peer.
        let have = (node.picker.have().len() <= 8192).then(|| node.picker.have().clone());
        let idle = node.finished.is_none() && node.taking.is_empty();
        let starving = idle && node.idle.is_some();
        let report = Report { rack: 0, demand: node.demand.clone(), have, complete: node.finished.is_some(), starving };
        self.nodes[id].idle = idle.then_some(self.now);
        let orders = self.policy.announce(now, id as NodeId, report);
        self.policy.connected(id as NodeId, orders.origin);
        let told: BTreeSet<usize> = orders.neighbours.iter().map(|n| *n as usize).collect();
        if told == self.nodes[id].neighbours {
            return self.fetch(id);
        }
        // A connection exists as soon as one end knows of it, and ends when both have let go.
        for other in &told {
            self.connect(id, *other);
        }
        let dropped: Vec<_> = self.nodes[id].neighbours.difference(&told).copied().collect();
        for other in dropped {
            self.nodes[id].neighbours.remove(&other);
            self.nodes[other].neighbours.remove(&id);
        }
        self.fetch(id);
    }

    fn connect(&mut self, a: usize, b: usize) {
        if !self.nodes[a].alive || !self.nodes[b].alive {
            return;
        }
        for (me, other) in [(a, b), (b, a)] {
            if self.nodes[me].neighbours.insert(other) {
                let held: Vec<_> = self.nodes[other].picker.have().iter().collect();
                let picker = &mut self.nodes[me].picker;
                picker.source(other as u64);
                held.into_iter().for_each(|piece| picker.source_has(other as u64, piece));
            }
        }
    }

    /// Starts what leases the policy gives.
    fn lease(&mut self) {
        let now = self.millis();
        while let Some((node, piece)) = self.policy.next_lease(now) {
            let to = node as usize;
            let wanted = self.nodes[to].picker.ask(now, ORIGIN as u64, piece);
            if wanted {
                self.from_origin += 1;
                self.start(ORIGIN, to, piece);
            } else {
                // It came from a peer meanwhile.
                self.policy.lease_done(now, node, piece);
            }
        }
    }

    /// Fills the free download slots of a node from neighbours with free upload slots.
    fn fetch(&mut self, id: usize) {
        if !self.nodes[id].alive || self.nodes[id].picker.complete() {
            return;
        }
        let mut sources: Vec<_> = self.nodes[id].neighbours.iter().copied().collect();
        self.rng.shuffle(&mut sources);
        for source in sources {
            self.fetch_from(id, source);
        }
    }

    fn fetch_from(&mut self, id: usize, source: usize) {
        let (node, giver) = (&self.nodes[id], &self.nodes[source]);
        if node.taking.len() >= DOWNLOADS || giver.sending.len() >= UPLOADS || !giver.alive || !node.alive {
            return;
        }
        let now = self.millis();
        if let Some(piece) = self.nodes[id].picker.pick(now, source as u64, u64::MAX, |_| true) {
            self.start(source, id, piece);
        }
    }

    fn start(&mut self, from: usize, to: usize, piece: u32) {
        let id = self.transfers.len();
        let left = self.piece_bytes;
        self.transfers.push(Transfer { from, to, piece, left, rate: 0.0, since: self.now, version: 0 });
        self.sending(from).insert(id);
        self.nodes[to].taking.insert(id);
        self.share(from, to);
    }

    fn sending(&mut self, from: usize) -> &mut BTreeSet<usize> {
        if from == ORIGIN { &mut self.origin_sending } else { &mut self.nodes[from].sending }
    }

    /// New rates for everything that shares an end with (from, to).
    fn share(&mut self, from: usize, to: usize) {
        let mut touched: BTreeSet<usize> = self.sending(from).clone();
        touched.extend(&self.nodes[to].taking);
        for id in touched {
            let Transfer { from, to, rate, .. } = self.transfers[id];
            let (up, sending) = match from {
                ORIGIN => (self.origin_rate, self.origin_sending.len()),
                _ => (self.nodes[from].up, self.nodes[from].sending.len()),
            };
            let fair = (up / sending as f64).min(self.nodes[to].down / self.nodes[to].taking.len() as f64);
            if fair == rate {
                continue;
            }
            let now = self.now;
            let transfer = &mut self.transfers[id];
            transfer.left = (transfer.left - transfer.rate * (now - transfer.since)).max(0.0);
            (transfer.rate, transfer.since) = (fair, now);
            transfer.version += 1;
            let (version, at) = (transfer.version, now + transfer.left / fair);
            self.schedule(at, Event::Ended { transfer: id, version });
        }
    }

    fn end(&mut self, id: usize) {
        let Transfer { from, to, piece, .. } = self.transfers[id];
        self.transfers[id].version += 1;
        self.sending(from).remove(&id);
        self.nodes[to].taking.remove(&id);
        self.share(from, to);
        self.ended += 1;
        let now = self.millis();
        self.nodes[to].picker.arrived(from as u64, piece);
        if from == ORIGIN {
            self.policy.lease_done(now, to as NodeId, piece);
        }
        if self.nodes[to].picker.complete() && self.nodes[to].finished.is_none() {
            self.nodes[to].finished = Some(self.now);
            self.announce(to);
        }
        let neighbours: Vec<_> = self.nodes[to].neighbours.iter().copied().collect();
        for other in neighbours {
            self.nodes[other].picker.source_has(to as u64, piece);
        }
        self.fetch(to);
        self.offer(to);
        if from != ORIGIN {
            self.offer(from);
        }
    }

    /// A node has something new, or a free upload slot: its neighbours may ask.
    fn offer(&mut self, id: usize) {
        let mut around: Vec<_> = self.nodes[id].neighbours.iter().copied().collect();
        self.rng.shuffle(&mut around);
        for other in around {
            if self.nodes[id].sending.len() >= UPLOADS {
                return;
            }
            self.fetch_from(other, id);
        }
    }

    /// Kills a share of the nodes at once; nobody is told but by silence and broken connections.
    fn kill(&mut self, percent: u32) {
        let count = self.nodes.len() * percent as usize / 100;
        let mut all: Vec<_> = (0..self.nodes.len()).collect();
        self.rng.shuffle(&mut all);
        for id in all.into_iter().take(count) {
            self.nodes[id].alive = false;
            self.policy.connected(id as NodeId, false);
            let broken: Vec<_> = self.nodes[id].sending.iter().chain(&self.nodes[id].taking).copied().collect();
            for transfer in broken {
                let Transfer { from, to, piece, .. } = self.transfers[transfer];
                self.transfers[transfer].version += 1;
                self.sending(from).remove(&transfer);
                self.nodes[to].taking.remove(&transfer);
                self.nodes[to].picker.failed(from as u64, piece);
                self.share(from, to);
            }
            let neighbours = std::mem::take(&mut self.nodes[id].neighbours);
            for other in neighbours {
                self.nodes[other].neighbours.remove(&id);
                self.nodes[other].picker.source_gone(id as u64);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> SimulateArgs {
        SimulateArgs {
            nodes: 50,
            bytes: 50_000_000,
            pieces: 400,
            rate: 2.5e6,
            origin: 2.5e6,
            wanted: Wanted::All,
            overlap: 0.0,
            paper: false,
            kill: 0,
            slow: 0,
            seed: 1,
            json: false,
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_load() {
        assert_eq!(simulate(&args()), simulate(&args()));
    }

    #[test]
    fn every_node_ends_and_no_piece_leaves_the_origin_twice() {
        let outcome = simulate(&args());
        assert_eq!(outcome.unfinished, 0);
        assert!((outcome.origin_copies - 1.0).abs() < 1e-9 && outcome.ratio_last >= 1.0, "{outcome:?}");
        assert!(outcome.ratio_last < 1.4, "{outcome:?}");
    }

    #[test]
    fn survivors_end_when_a_tenth_is_killed() {
        let outcome = simulate(&SimulateArgs { kill: 10, ..args() });
        assert_eq!(outcome.unfinished, 0);
        assert!(outcome.ratio_last < 1.8, "{outcome:?}");
    }

    #[test]
    fn parts_leave_the_origin_once_with_or_without_overlap() {
        for overlap in [0.0, 0.3] {
            let outcome = simulate(&SimulateArgs { wanted: Wanted::Parts, overlap, origin: 10e6, ..args() });
            assert_eq!(outcome.unfinished, 0);
            assert!((outcome.origin_copies - 1.0).abs() < 0.02, "{overlap} {outcome:?}");
        }
    }
}
