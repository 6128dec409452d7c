//! What happens in a load, event by event.

mod transfer;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use storage::overlay::bound::Bound;
use storage::overlay::graph::Graph;
use storage::overlay::policy::{Config, Demand, Mode, NodeId, Policy, Report};
use storage::overlay::rng::Rng;

use self::transfer::{ORIGIN, Transfer};
use super::node::Node;
use super::{Control, Curve, Kill, Load, Wanted};
use crate::simulate::flows::Flows;
use crate::simulate::rates::LinkId;

/// Announces per bound, if nothing else is said.
const ANNOUNCES: f64 = 100.0;
/// Ends of flows are rounded up to this share of the time that one piece takes at full rate.
const QUANTUM: f64 = 1e-3;
/// When nothing was on its way for so many announces of every node, nothing ever will be.
const STUCK: f64 = 100.0;
/// Sampled points: each is this much later than the one before.
const SAMPLE_STEP: f64 = 1.15;
/// Neighbours in a swarm without a controller.
const PLAIN_DEGREE: usize = 20;

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

pub(super) struct World<'a> {
    load: &'a Load,
    policy: Policy,
    pub nodes: Vec<Node>,
    flows: Flows,
    transfers: Vec<Transfer>,
    fronts: Vec<LinkId>,
    racks: Vec<(LinkId, LinkId)>,
    pub piece_bytes: f64,
    queue: BinaryHeap<Reverse<At>>,
    sequence: u64,
    now: f64,
    version: u64,
    pending_all: bool,
    readers: usize,
    pub from_origin: u64,
    pub ended: u64,
    pub events: u64,
    living: u32,
    rng: Rng,
}

/// Between ticks of the controller; it has 0.2 s, which long loads need not.
fn tick_s(bound_s: f64) -> f64 {
    (bound_s / 4000.0).clamp(0.2, 2.0)
}

impl<'a> World<'a> {
    pub fn new(load: &'a Load, bound: &Bound) -> Self {
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

    pub fn play(&mut self, bound_s: f64, progress: &mut dyn FnMut(f64, u64)) -> (Curve, Curve) {
        let (mut lambda2, mut arrived) = (Vec::new(), Vec::new());
        let interval_s = self.interval_s(bound_s);
        let wanted: f64 = self.nodes[..self.load.nodes as usize].iter().map(|n| f64::from(n.picker.wanted())).sum();
        let (mut sample_at, mut moved) = (0.0, 0.0);
        let mut batch = Vec::new();
        self.fetch_all();
        self.flows.settle(0.0);
        while self.living > 0 {
            let end = self.flows.next_end();
            let timer = self.queue.peek().map(|Reverse(at)| at.0);
            let next = end.unwrap_or(f64::INFINITY).min(timer.unwrap_or(f64::INFINITY));
            if end.is_some() {
                moved = next;
            }
            if !next.is_finite() || next > bound_s * self.load.patience || next > moved + STUCK * interval_s {
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
