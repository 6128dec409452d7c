//! One load, piece by piece: the controller's own policy object and the peer's own picker over a network of max-min fair flows.
//!
//! What is modelled: links, announces and the time until an answer, leases, upload and download slots, one flow for
//! each pair of nodes, the time until a neighbour hears of a piece. A piece is forwarded when it is whole; so a load with large
//! pieces comes out slower here than with peers that forward each verified group.

mod node;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use storage::overlay::bound::{self, Bound, lower_bound};
use storage::overlay::graph::Graph;
use storage::overlay::policy::{Config, Demand, Mode, NodeId, Policy, Report};
use storage::overlay::rng::Rng;

use self::node::Node;
use super::flows::Flows;
use super::rates::{FlowId, LinkId};

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

/// Announces per bound, if nothing else is said.
const ANNOUNCES: f64 = 100.0;
/// Ends of flows are rounded up to this share of the time that one piece takes at full rate.
const QUANTUM: f64 = 1e-3;
/// Sampled points: each is this much later than the one before.
const SAMPLE_STEP: f64 = 1.15;
/// Neighbours in a swarm without a controller, and pieces that its seed sends at once.
const PLAIN_DEGREE: usize = 20;
const PLAIN_SEED_SLOTS: usize = 8;
/// The picker's name for the origin, and the place of its flows' sender.
const ORIGIN: u32 = u32::MAX;

enum Event {
    Announce(u32),
    AnnounceAll,
    Heard { node: u32, piece: u32 },
    Tick,
    Kill(Kill),
}

struct At(f64, u64, Event);

impl PartialEq for At {
    fn eq(&self, other: &Self) -> bool {
        self.1 == other.1
    }
}

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

/// A piece (global number) on its way.
#[derive(Clone, Copy)]
struct Transfer {
    from: u32,
    to: u32,
    piece: u32,
    since: f64,
}

struct World<'a> {
    load: &'a Load,
    policy: Policy,
    nodes: Vec<Node>,
    flows: Flows,
    transfers: Vec<Transfer>,
    fronts: Vec<LinkId>,
    racks: Vec<(LinkId, LinkId)>,
    piece_bytes: f64,
    queue: BinaryHeap<Reverse<At>>,
    sequence: u64,
    now: f64,
    version: u64,
    pending_all: bool,
    readers: usize,
    from_origin: u64,
    ended: u64,
    events: u64,
    living: u32,
    rng: Rng,
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

/// Between ticks of the controller; it has 0.2 s, which long loads need not.
fn tick_s(bound_s: f64) -> f64 {
    (bound_s / 4000.0).clamp(0.2, 2.0)
}

impl<'a> World<'a> {
    fn new(load: &'a Load, bound: &Bound) -> Self {
        let mut rng = Rng::new(load.seed);
        let piece_bytes = (load.bytes / u64::from(load.pieces)) as f64;
        let interval_s = load.interval_s.unwrap_or((bound.seconds / ANNOUNCES).clamp(0.5, 60.0));
        let paper = load.control == Control::Paper;
        let config = Config {
            mode: if paper { Mode::Paper } else { Mode::Ours },
            expected: load.nodes,
            interval_ms: (interval_s * 1000.0) as u64,
            // Who is not admitted reads by one stream, whenever it likes.
            leases_per_node: if paper { 1 } else { Config::default().leases_per_node },
            slots_max: if paper { u32::MAX } else { Config::default().slots_max },
            ..Config::default()
        };
        let exact = load.nodes <= 200;
        let quantum = if exact { 0.0 } else { QUANTUM * piece_bytes / load.up.max(load.down) };
        let mut flows = Flows::new(quantum, if exact { 0.0 } else { 1e-3 });
        let count = load.fronts.max(1);
        let fronts = (0..count).map(|_| flows.link(load.origin / f64::from(count))).collect();
        let racks = load.racks.map_or(0, |racks| racks.count);
        let rack_rate = load.racks.map_or(0.0, |racks| racks.rate);
        let racks = (0..racks).map(|_| (flows.link(rack_rate), flows.link(rack_rate))).collect();
        let mut nodes: Vec<_> = (0..load.nodes)
            .map(|i| {
                let (up, down) = load.rates(i);
                Node::new(load.demand(i), (flows.link(up), flows.link(down)), load.rack(i), rng.draw())
            })
            .collect();
        if load.control == Control::Plain {
            let everything = vec![Demand { range: 0..load.pieces, seed_only: false }];
            let mut seed = Node::new(everything, (flows.link(load.origin), flows.link(1.0)), 0, rng.draw());
            seed.fill();
            nodes.push(seed);
        }
        let mut world = Self {
            load,
            policy: Policy::new(config, load.pieces, load.seed),
            nodes,
            flows,
            transfers: Vec::new(),
            fronts,
            racks,
            piece_bytes,
            queue: BinaryHeap::new(),
            sequence: 0,
            now: 0.0,
            version: 0,
            pending_all: false,
            readers: 0,
            from_origin: 0,
            ended: 0,
            events: 0,
            living: load.nodes,
            rng,
        };
        if load.control == Control::Plain {
            world.link_at_random();
        } else {
            for node in 0..load.nodes {
                let at = world.rng.unit() * load.boot_s;
                world.schedule(at, Event::Announce(node));
            }
        }
        world.schedule(tick_s(bound.seconds), Event::Tick);
        for (share, kill) in &load.kills {
            world.schedule(share * bound.seconds, Event::Kill(*kill));
        }
        world
    }

    fn schedule(&mut self, at: f64, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse(At(at, self.sequence, event)));
    }

    fn millis(&self) -> u64 {
        (self.now * 1000.0) as u64
    }

    fn interval_s(&self, bound_s: f64) -> f64 {
        self.load.interval_s.unwrap_or((bound_s / ANNOUNCES).clamp(0.5, 60.0))
    }

    fn play(&mut self, bound_s: f64, progress: &mut dyn FnMut(f64, u64)) -> (Curve, Curve) {
        let (mut lambda2, mut arrived) = (Vec::new(), Vec::new());
        let interval_s = self.interval_s(bound_s);
        let wanted: f64 = self.nodes[..self.load.nodes as usize].iter().map(|n| f64::from(n.picker.wanted())).sum();
        let mut sample_at = 0.0;
        let mut batch = Vec::new();
        self.fetch_all();
        self.flows.settle(0.0);
        while self.living > 0 {
            let end = self.flows.next_end();
            let timer = self.queue.peek().map(|Reverse(at)| at.0);
            let next = end.unwrap_or(f64::INFINITY).min(timer.unwrap_or(f64::INFINITY));
            if !next.is_finite() || next > bound_s * self.load.patience {
                break;
            }
            self.now = next;
            if end == Some(next) {
                // All are taken out before anything starts: a flow that starts may get the number of one that ended.
                while let Some(flow) = self.flows.ended(next) {
                    batch.push(self.let_go(flow));
                }
                self.events += batch.len() as u64;
                batch.iter().for_each(|transfer| self.arrived(*transfer));
                batch.iter().for_each(|transfer| self.go_on(*transfer));
                batch.clear();
            }
            while self.queue.peek().is_some_and(|Reverse(at)| at.0 <= next) {
                let Some(Reverse(At(_, _, event))) = self.queue.pop() else { break };
                self.events += 1;
                match event {
                    Event::Announce(node) => {
                        self.announce(node);
                        self.schedule(next + interval_s, Event::Announce(node));
                    }
                    Event::AnnounceAll => {
                        self.pending_all = false;
                        (0..self.load.nodes).for_each(|node| self.announce(node));
                    }
                    Event::Heard { node, piece } => self.tell(node, piece),
                    Event::Kill(kill) => self.kill(kill),
                    Event::Tick => {
                        self.policy.tick(self.millis());
                        if next >= sample_at {
                            sample_at = next * SAMPLE_STEP;
                            if self.load.control != Control::Plain {
                                lambda2.push((next, self.policy.lambda2()));
                            }
                            arrived.push((next, self.ended as f64 / wanted));
                        }
                        progress(1.0 - f64::from(self.living) / f64::from(self.load.nodes), self.events);
                        self.schedule(next + tick_s(bound_s), Event::Tick);
                    }
                }
            }
            if self.load.control != Control::Plain {
                if self.policy.version() != self.version && !self.pending_all {
                    self.version = self.policy.version();
                    self.pending_all = true;
                    // In long loads answers that change are gathered: each asks every node anew.
                    self.schedule(next + self.load.answer_s.max(interval_s / 50.0), Event::AnnounceAll);
                }
                self.lease();
            }
            self.flows.settle(next);
        }
        arrived.push((self.now, self.ended as f64 / wanted));
        (lambda2, arrived)
    }

    fn announce(&mut self, id: u32) {
        let now = self.millis();
        let node = &self.nodes[id as usize];
        if !node.alive {
            return;
        }
        // Which pieces a node holds is told where that is small, as by the real peer.
        let have = (self.load.wanted == Wanted::All && self.load.pieces <= 8192).then(|| node.picker.have().clone());
        let idle = node.finished.is_none() && node.taking.is_empty();
        let report = Report {
            rack: node.rack,
            demand: if node.known { Vec::new() } else { node.demand.clone() },
            have,
            complete: node.finished.is_some(),
            starving: idle && node.idle,
        };
        let node = &mut self.nodes[id as usize];
        (node.idle, node.known) = (idle, true);
        let orders = self.policy.announce(now, NodeId::from(id), report);
        self.policy.connected(NodeId::from(id), orders.origin);
        let mut told: Vec<u32> = orders.neighbours.iter().map(|n| *n as u32).collect();
        told.sort_unstable();
        if told != self.nodes[id as usize].neighbours {
            // A connection exists as soon as one end knows of it, and ends when one has let go.
            let old = self.nodes[id as usize].neighbours.clone();
            for other in old.into_iter().filter(|other| told.binary_search(other).is_err()) {
                // What is under way comes to its end first.
                if !self.nodes[id as usize].takes_from(other) && !self.nodes[other as usize].takes_from(id) {
                    self.nodes[id as usize].unlink(other);
                    self.nodes[other as usize].unlink(id);
                }
            }
            told.into_iter().for_each(|other| self.connect(id, other));
        }
        self.fetch(id);
    }

    fn link_at_random(&mut self) {
        let mut graph = Graph::new(PLAIN_DEGREE);
        let seed = self.load.nodes;
        (0..=seed).for_each(|node| graph.join(NodeId::from(node), 0, &mut self.rng));
        for node in 0..=seed {
            let around: Vec<_> = graph.neighbours(NodeId::from(node)).collect();
            around.into_iter().for_each(|other| self.connect(node, other as u32));
        }
    }

    fn connect(&mut self, a: u32, b: u32) {
        if !self.nodes[a as usize].alive || !self.nodes[b as usize].alive {
            return;
        }
        for (me, other) in [(a, b), (b, a)] {
            if self.nodes[me as usize].link(other) {
                let held: Vec<_> = self.nodes[other as usize].held().collect();
                let node = &mut self.nodes[me as usize];
                held.into_iter().for_each(|piece| node.hears(other, piece));
            }
        }
    }

    /// Starts what leases the policy gives.
    fn lease(&mut self) {
        let now = self.millis();
        while let Some((node, piece)) = self.policy.next_lease(now) {
            let to = &mut self.nodes[node as usize];
            let wanted = to.local(piece).is_some_and(|local| to.picker.ask(now, u64::from(ORIGIN), local));
            if wanted {
                self.from_origin += 1;
                self.start(ORIGIN, node as u32, piece);
            } else {
                // It came from a peer meanwhile.
                self.policy.lease_done(now, node, piece);
            }
        }
    }

    fn fetch_all(&mut self) {
        (0..self.load.nodes).for_each(|node| self.fetch(node));
    }

    /// Fills the free download slots of a node from neighbours with free upload slots.
    fn fetch(&mut self, id: u32) {
        let node = &self.nodes[id as usize];
        let count = node.neighbours.len();
        if !node.alive || count == 0 || node.picker.complete() {
            return;
        }
        let first = self.rng.index(count);
        for i in 0..count {
            if self.nodes[id as usize].taking.len() >= self.load.downloads {
                return;
            }
            let source = self.nodes[id as usize].neighbours[(first + i) % count];
            self.fetch_from(id, source);
        }
    }

    fn fetch_from(&mut self, id: u32, source: u32) {
        let giver = &self.nodes[source as usize];
        let slots = if source == self.load.nodes { PLAIN_SEED_SLOTS } else { self.load.uploads };
        if giver.sending.len() >= slots || !giver.alive {
            return;
        }
        let now = self.millis();
        let node = &mut self.nodes[id as usize];
        if node.taking.len() >= self.load.downloads || !node.alive || node.taking.iter().any(|(_, s)| *s == source) {
            return;
        }
        if let Some(local) = node.picker.pick(now, u64::from(source), node.patience_ms(), |_| true) {
            let piece = node.global(local);
            if source == self.load.nodes {
                self.from_origin += 1;
            }
            self.start(source, id, piece);
        }
    }

    fn start(&mut self, from: u32, to: u32, piece: u32) {
        let receiver = &self.nodes[to as usize];
        let mut way = [receiver.links.1, 0, 0, 0];
        let mut len = 1;
        let mut pass = |link| {
            way[len] = link;
            len += 1;
        };
        if from == ORIGIN {
            // The least used front end.
            let front = self.fronts.iter().copied().min_by_key(|link| self.flows.on(*link));
            front.into_iter().for_each(&mut pass);
            if let Some((_, down)) = self.racks.get(receiver.rack as usize) {
                pass(*down);
            }
        } else {
            let sender = &self.nodes[from as usize];
            pass(sender.links.0);
            if sender.rack != receiver.rack || from == self.load.nodes {
                let up = self.racks.get(sender.rack as usize).filter(|_| from != self.load.nodes).map(|l| l.0);
                up.into_iter().chain(self.racks.get(receiver.rack as usize).map(|l| l.1)).for_each(&mut pass);
            }
        }
        let flow = self.flows.start(self.piece_bytes, &way[..len]);
        let transfer = Transfer { from, to, piece, since: self.now };
        match self.transfers.get_mut(flow as usize) {
            Some(place) => *place = transfer,
            None => self.transfers.push(transfer),
        }
        self.nodes[to as usize].taking.push((flow, from));
        match self.nodes.get_mut(from as usize) {
            Some(sender) => sender.sending.push(flow),
            None => self.crowd(1),
        }
    }

    /// One reader of the origin more or less: unshielded, it serves them the worse the more they are.
    fn crowd(&mut self, more: isize) {
        self.readers = self.readers.saturating_add_signed(more);
        if self.load.control == Control::Paper {
            let share = self.load.crowd.share(self.readers) / self.fronts.len() as f64;
            for front in &self.fronts {
                self.flows.set_cap(*front, self.load.origin * share);
            }
        }
    }

    fn let_go(&mut self, flow: FlowId) -> Transfer {
        let transfer = self.transfers[flow as usize];
        self.nodes[transfer.to as usize].taking.retain(|(f, _)| *f != flow);
        match self.nodes.get_mut(transfer.from as usize) {
            Some(sender) => sender.sending.retain(|f| *f != flow),
            None => self.crowd(-1),
        }
        transfer
    }

    fn arrived(&mut self, transfer: Transfer) {
        let Transfer { from, to, piece, since } = transfer;
        let now = self.millis();
        let node = &mut self.nodes[to as usize];
        let Some(local) = node.local(piece) else { return };
        let arrival = node.picker.arrived(u64::from(from), local);
        if !arrival.fresh {
            return;
        }
        self.ended += 1;
        if from == ORIGIN {
            self.policy.lease_done(now, NodeId::from(to), piece);
        } else {
            node.took(self.now - since);
        }
        let late: Vec<_> = node.taking.iter().filter(|(f, _)| self.transfers[*f as usize].piece == piece).collect();
        let late: Vec<_> = late.into_iter().map(|(flow, _)| *flow).collect();
        for flow in late {
            self.flows.stop(flow);
            if self.let_go(flow).from == ORIGIN {
                self.policy.lease_done(now, NodeId::from(to), piece);
            }
        }
        let node = &self.nodes[to as usize];
        let done = node.picker.complete() && node.finished.is_none();
        if done {
            self.nodes[to as usize].finished = Some(self.now);
            self.living -= 1;
            if self.load.control != Control::Plain {
                self.announce(to);
            }
        }
        if self.load.hop_s > 0.0 {
            self.schedule(self.now + self.load.hop_s, Event::Heard { node: to, piece });
        } else {
            self.tell_only(to, piece);
        }
    }

    fn tell_only(&mut self, id: u32, piece: u32) {
        for i in 0..self.nodes[id as usize].neighbours.len() {
            let other = self.nodes[id as usize].neighbours[i];
            self.nodes[other as usize].hears(id, piece);
        }
    }

    fn tell(&mut self, id: u32, piece: u32) {
        self.tell_only(id, piece);
        self.offer(id);
    }

    /// Slots at both ends of a transfer that ended are filled again.
    fn go_on(&mut self, Transfer { from, to, .. }: Transfer) {
        self.fetch(to);
        self.offer(to);
        if from != ORIGIN {
            self.offer(from);
        }
    }

    /// A node has something new, or a free upload slot: its neighbours may ask.
    fn offer(&mut self, id: u32) {
        let node = &self.nodes[id as usize];
        let (count, slots) =
            (node.neighbours.len(), if id == self.load.nodes { PLAIN_SEED_SLOTS } else { self.load.uploads });
        if count == 0 || !node.alive {
            return;
        }
        let first = self.rng.index(count);
        for i in 0..count {
            if self.nodes[id as usize].sending.len() >= slots {
                return;
            }
            let other = self.nodes[id as usize].neighbours[(first + i) % count];
            if other != self.load.nodes {
                self.fetch_from(other, id);
            }
        }
    }

    /// Nobody is told of a death but by silence and broken connections.
    fn kill(&mut self, kill: Kill) {
        let dead: Vec<u32> = match kill {
            Kill::Share(share) => {
                let mut all: Vec<_> = (0..self.load.nodes).collect();
                self.rng.shuffle(&mut all);
                all.truncate((f64::from(self.load.nodes) * share) as usize);
                all
            }
            Kill::Relay => {
                let most = (0..self.load.nodes).filter(|id| self.nodes[*id as usize].alive);
                most.max_by_key(|id| self.nodes[*id as usize].picker.have().count()).into_iter().collect()
            }
        };
        for id in dead {
            let node = &mut self.nodes[id as usize];
            if !std::mem::replace(&mut node.alive, false) {
                continue;
            }
            self.living -= u32::from(node.finished.is_none());
            let broken: Vec<_> = node.sending.iter().copied().chain(node.taking.iter().map(|(f, _)| *f)).collect();
            let neighbours = std::mem::take(&mut node.neighbours);
            for flow in broken {
                let Transfer { from, to, piece, .. } = self.let_go(flow);
                self.flows.stop(flow);
                let receiver = &mut self.nodes[to as usize];
                if let Some(local) = receiver.local(piece) {
                    receiver.picker.failed(u64::from(from), local);
                }
            }
            self.policy.connected(NodeId::from(id), false);
            for other in neighbours {
                self.nodes[other as usize].unlink(id);
                self.fetch(other);
            }
        }
    }
}

#[cfg(test)]
mod tests;
