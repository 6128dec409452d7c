//! What the torrent controller decides: one pure object over announces, the same in the service and in the simulator.
//!
//! A node is capped → relay or leecher → peer → seeder. Blank answers until a relay holds blocks; then, unless they are few, a tree of
//! relays and their children; once a quarter of the nodes hold something, an explicit regular graph. The origin gives by lease
//! only, every piece once before any twice: simulation and measurement agree that nothing else gains as much.
//! State is soft: announces carry what a node holds, so a new controller knows everything after one interval.
//!
//! The other modes are there to be compared with: what the paper describes (fixed relays, random repository fall-back), and
//! three ways without leases and relays.

mod leases;
mod slots;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use self::slots::Slots;
use super::bits::Bits;
use super::graph::Graph;
pub use super::graph::NodeId;
use super::rng::Rng;

/// Milliseconds since the load began.
pub type Millis = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Ours,
    Paper,
    /// A swarm without leases or graph: everybody knows everybody, the origin gives any piece that is asked for.
    Plain,
    /// Every node takes all it wants from the origin.
    Central,
    /// A tree of arity 2, whose root alone reads from the origin.
    Tree,
}

impl Mode {
    pub const NAMES: [(&'static str, Self); 5] = [
        ("ours", Self::Ours),
        ("paper", Self::Paper),
        ("plain", Self::Plain),
        ("central", Self::Central),
        ("tree", Self::Tree),
    ];

    /// Without relays, tree of relays and graph.
    fn is_static(self) -> bool {
        !matches!(self, Self::Ours | Self::Paper)
    }
}

impl std::str::FromStr for Mode {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = || Self::NAMES.map(|(name, _)| name).join(", ");
        let found = Self::NAMES.iter().find(|(known, _)| *known == name);
        found.map(|(_, mode)| *mode).ok_or_else(|| format!("{name:?} is none of {}", known()))
    }
}

#[derive(Clone, Debug)]
pub struct Config {
    pub mode: Mode,
    /// Nodes to come, if it is known; else as many as have announced.
    pub expected: u32,
    /// Neighbours of a node. Each is asked for one group at all times, so as many flows share a link; 6 leave it idle at times.
    pub degree: usize,
    /// Between announces of a node; a node silent for [`TTL_INTERVALS`] of them is lost.
    pub interval_ms: Millis,
    /// Pieces that a relay holds before others hear of it.
    pub relay_pieces: u32,
    /// Leases a node may hold unacknowledged; small, so that a slow node takes few.
    pub leases_per_node: u32,
    /// Upper bound of leases being sent at once (connections the origin bears).
    pub slots_max: u32,
    /// Leases sent at once from the start: where the origin's limit is known it need not be found.
    pub slots_first: Option<u32>,
    /// A lease is given to another no sooner: long where a node reads much under one lease.
    pub lease_ms_min: Millis,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mode: Mode::Ours,
            expected: 0,
            degree: 8,
            interval_ms: 1000,
            relay_pieces: 2,
            leases_per_node: 3,
            slots_max: 1024,
            slots_first: None,
            lease_ms_min: 3000,
        }
    }
}

/// Announces a node may miss.
const TTL_INTERVALS: u64 = 6;
/// So long a relay may hold no blocks and take none; long enough to connect to the origin in.
const RELAY_INTERVALS: u64 = 3;
const RELAY_MS_MIN: Millis = 3000;
/// So long nothing may come to a node that starves until what others only say that they hold is doubted.
const STARVED_INTERVALS: u64 = 3;
/// Nodes that a node is told of because they want the same bytes, at most.
const KIN_MAX: usize = 8;
/// Edges moved per tick, of each kind.
const SWITCHES: usize = 32;
/// Who holds less than this share of what the node in the middle holds is behind; and what a neighbour holds is too little for it below that share of
/// its own. Told apart once the node in the middle holds so many pieces.
const BEHIND: f64 = 0.97;
const FAR_BEHIND: f64 = 0.75;
const TOLD: u32 = 32;
/// Neighbours in a plain swarm, as a public tracker names them.
const PLAIN_NEIGHBOURS: usize = 50;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Waits: nobody holds anything for it yet.
    Capped,
    /// Reads from the origin before all others.
    Relay,
    /// Hangs below a relay.
    Leecher,
    /// A member of the regular graph.
    Peer,
    /// Holds all it wants and gives.
    Seeder,
}

/// What a node wants: pieces `range`; `seed_only` ones are held for others (the partitioner's overlap).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand {
    pub range: Range<u32>,
    pub seed_only: bool,
}

/// What a node says.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub rack: u32,
    /// Only the first report's demand counts; empty means everything.
    pub demand: Vec<Demand>,
    /// Pieces held, if told this time.
    pub have: Option<Bits>,
    pub complete: bool,
    /// Its neighbours have nothing for it.
    pub starving: bool,
}

/// What the controller answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orders {
    pub role: Role,
    pub neighbours: Vec<NodeId>,
    /// May stand in connection with the origin.
    pub origin: bool,
    pub interval_ms: Millis,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    Free,
    Leased,
    Given {
        node: NodeId,
    },
    /// By the word of a node that had no lease of it.
    Said {
        node: NodeId,
    },
}

/// A piece on its way from the origin to a node.
#[derive(Clone, Copy, Debug)]
struct Lease {
    since: Millis,
    sent: bool,
}

#[derive(Clone, Debug)]
struct Node {
    role: Role,
    rack: u32,
    demand: Vec<Demand>,
    /// It wants everything, as others do: what it does not take from the origin they bring.
    wants_all: bool,
    have: Bits,
    relay: Option<NodeId>,
    /// Others that want some of the same bytes, where not everybody wants everything: a random graph would seldom join them.
    kin: Vec<NodeId>,
    outstanding: u32,
    leased: u32,
    /// Smoothed time of its leases, and whether that is long beside others'.
    lease_ms: f64,
    slow: bool,
    got: u32,
    /// The first tick since which no lease of it was done; and whether one was taken back or failed since.
    since: Option<Millis>,
    forfeited: bool,
    /// Since when nothing has come though it starves.
    starved: Option<Millis>,
    /// What it says that it holds did not reach who starved for it.
    doubted: bool,
    cursor: u32,
    seen: Millis,
    complete: bool,
}

#[derive(Clone, Debug)]
pub struct Policy {
    config: Config,
    rng: Rng,
    nodes: BTreeMap<NodeId, Node>,
    graph: Graph,
    meshed: bool,
    pieces: Vec<Piece>,
    out: BTreeMap<(NodeId, u32), Lease>,
    free: Bits,
    /// Who the origin can send to, also while it is not heard of: its connection outlives its silence.
    connected: BTreeSet<NodeId>,
    /// Nodes that may take a lease: fewest outstanding first, then fewest so far.
    ready: BTreeSet<(u32, u32, NodeId)>,
    /// Nodes for which nothing is free at the moment.
    dry: BTreeSet<NodeId>,
    /// Nodes that wait until the others have had as many leases.
    ahead: BTreeSet<NodeId>,
    tally: leases::Tally,
    slots: Slots,
    /// At the last tick somebody who is not slow could take leases.
    swift: bool,
    lease_ms: f64,
    /// Least patience with a lease: grows while leases are taken back and none is done.
    patience_ms: Millis,
    leases: u64,
    version: u64,
}

impl Policy {
    pub fn new(config: Config, pieces: u32, seed: u64) -> Self {
        // Many leases from the start are better in simulation (1.05 against 1.39 for 20 x 48 MB) and worse on real links, whose queues
        // they fill before anybody gives on (1.19 to 1.45 against 1.14 to 1.16): the origin begins with few.
        let first = match config.mode {
            Mode::Central | Mode::Paper => config.slots_max,
            _ => config.slots_first.unwrap_or_else(|| relays(config.expected).max(2)),
        };
        let slots = Slots::new(first, config.slots_max);
        Self {
            rng: Rng::new(seed),
            nodes: BTreeMap::new(),
            graph: Graph::new(config.degree),
            meshed: false,
            pieces: vec![Piece::Free; pieces as usize],
            out: BTreeMap::new(),
            free: Bits::full(pieces),
            connected: BTreeSet::new(),
            ready: BTreeSet::new(),
            dry: BTreeSet::new(),
            ahead: BTreeSet::new(),
            tally: leases::Tally::default(),
            slots,
            swift: false,
            lease_ms: 0.0,
            patience_ms: leases::MS_FIRST.max(config.lease_ms_min),
            leases: 0,
            version: 0,
            config,
        }
    }

    /// A node speaks; the answer says whom to connect to. Repeating it changes nothing.
    pub fn announce(&mut self, now: Millis, id: NodeId, report: Report) -> Orders {
        let pieces = self.pieces.len() as u32;
        if !self.nodes.contains_key(&id) {
            self.admit(now, id, &report);
        }
        let Some(node) = self.nodes.get_mut(&id) else { return self.orders(id) };
        node.seen = now;
        node.complete = report.complete;
        if let Some(have) = report.have.filter(|have| have.len() == pieces) {
            self.learn(id, have);
        }
        if report.complete && self.role(id) == Role::Peer {
            self.set_role(id, Role::Seeder);
        }
        if report.starving {
            self.starves(now, id);
        }
        if report.starving && self.meshed {
            let other = self.graph.neighbours(id).nth(self.rng.index(self.config.degree));
            if let Some(other) = other {
                self.graph.switch(id, other, &mut self.rng);
            }
        }
        self.orders(id)
    }

    fn admit(&mut self, now: Millis, id: NodeId, report: &Report) {
        let pieces = self.pieces.len() as u32;
        let mut demand = report.demand.clone();
        demand.retain(|d| d.range.start < d.range.end && d.range.end <= pieces);
        if demand.is_empty() {
            demand.push(Demand { range: 0..pieces, seed_only: false });
        }
        let expected = self.config.expected.max(self.nodes.len() as u32 + 1);
        let target = relays(expected);
        let serving = self.nodes.values().filter(|n| n.role == Role::Relay).count() as u32;
        let fixed = self.config.mode.is_static();
        let fresh = !self.meshed && !fixed && serving < target;
        // Where everybody wants everything each begins elsewhere (by the golden ratio, which needs no count of them): so a node is given
        // pieces of few chunks, and the origin sends it the hashes of those alone.
        let spread = (self.nodes.len() as f64 * 0.618_034).fract() * f64::from(pieces);
        let cursor = if self.wants_all(&demand) { spread as u32 } else { demand[0].range.start };
        let have = Bits::new(if self.tracks_pieces() { pieces } else { 0 });
        let role = if fresh { Role::Relay } else { Role::Capped };
        let relay = (!fresh && !fixed).then(|| self.draw_relay()).flatten();
        let rack = report.rack;
        let kin = self.kin(&demand);
        for other in &kin {
            self.nodes.get_mut(other).into_iter().for_each(|n| n.kin.push(id));
            self.version += 1;
        }
        let node = Node {
            role,
            rack,
            wants_all: self.wants_all(&demand),
            demand,
            have,
            relay,
            kin,
            outstanding: 0,
            leased: 0,
            lease_ms: 0.0,
            slow: false,
            got: 0,
            since: None,
            forfeited: false,
            starved: None,
            doubted: false,
            cursor,
            seen: now,
            complete: false,
        };
        self.nodes.insert(id, node);
        if fixed {
            self.graph.add(id, rack);
            self.plant();
            self.set_role(id, Role::Peer);
        } else if fresh {
            self.graph.add(id, rack);
            self.refresh(id);
        } else {
            self.open(id);
        }
        self.slots.now = self.slots.now.max(target.min(self.slots.max));
    }

    /// The first nodes that want some, but not all, of the same bytes.
    fn kin(&self, demand: &[Demand]) -> Vec<NodeId> {
        if self.wants_all(demand) {
            return Vec::new();
        }
        let meet = |a: &Demand, b: &Demand| a.range.start < b.range.end && b.range.start < a.range.end;
        let shares = |n: &Node| n.demand.iter().any(|a| demand.iter().any(|b| meet(a, b)));
        let open = self.nodes.iter().filter(|(_, n)| n.kin.len() < KIN_MAX && !n.wants_all && shares(n));
        open.map(|(id, _)| *id).take(KIN_MAX).collect()
    }

    fn wants_all(&self, demand: &[Demand]) -> bool {
        demand.iter().any(|d| d.range.len() == self.pieces.len())
    }

    /// Links each node with its parent in order of arrival, where a tree is asked for.
    fn plant(&mut self) {
        if self.config.mode == Mode::Tree {
            self.graph.grow_tree(2);
        }
    }

    /// Per-node sets of pieces are kept only while they are small beside what is loaded.
    fn tracks_pieces(&self) -> bool {
        self.pieces.len() <= 1 << 16
    }

    fn draw_relay(&mut self) -> Option<NodeId> {
        let relays: Vec<_> = self.nodes.iter().filter(|(_, n)| n.role == Role::Relay).map(|(id, _)| *id).collect();
        relays.get(self.rng.index(relays.len())).copied()
    }

    /// Lets a capped node in if its relay (or, in the mesh, anybody) holds blocks.
    fn open(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get(&id).filter(|n| n.role == Role::Capped) else { return };
        let rack = node.rack;
        if self.meshed {
            self.graph.join(id, rack, &mut self.rng);
            return self.set_role(id, Role::Peer);
        }
        let Some(relay) = node.relay.filter(|relay| self.holds(*relay)) else { return };
        let siblings: Vec<_> = self.graph.neighbours(relay).collect();
        self.graph.add(id, rack);
        self.graph.link(id, relay);
        for _ in 0..2 {
            if let Some(sibling) = siblings.get(self.rng.index(siblings.len())) {
                self.graph.link(id, *sibling);
            }
        }
        self.set_role(id, Role::Leecher);
    }

    fn holds(&self, id: NodeId) -> bool {
        self.nodes
            .get(&id)
            .is_some_and(|n| n.got >= self.config.relay_pieces.min(self.pieces.len() as u32) || n.complete)
    }

    fn set_role(&mut self, id: NodeId, role: Role) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.role = role;
            self.version += 1;
        }
        self.refresh(id);
    }

    fn role(&self, id: NodeId) -> Role {
        self.nodes.get(&id).map_or(Role::Capped, |n| n.role)
    }

    fn orders(&self, id: NodeId) -> Orders {
        let interval_ms = self.config.interval_ms;
        let role = self.role(id);
        let neighbours = match self.config.mode {
            _ if role == Role::Capped => Vec::new(),
            Mode::Plain => {
                let others = self.nodes.range(id + 1..).chain(self.nodes.range(..id));
                others.map(|(other, _)| *other).take(PLAIN_NEIGHBOURS).collect()
            }
            _ => {
                let kin = self.nodes.get(&id).into_iter().flat_map(|n| &n.kin).copied();
                let kin = kin.filter(|other| self.role(*other) != Role::Capped);
                self.graph.neighbours(id).chain(kin).collect::<BTreeSet<_>>().into_iter().collect()
            }
        };
        Orders { role, neighbours, origin: self.may_lease(id, role), interval_ms }
    }

    fn may_lease(&self, id: NodeId, role: Role) -> bool {
        match self.config.mode {
            Mode::Ours | Mode::Paper => matches!(role, Role::Relay | Role::Leecher | Role::Peer),
            Mode::Plain | Mode::Central => role == Role::Peer,
            Mode::Tree => role == Role::Peer && self.graph.first() == Some(id),
        }
    }

    fn learn(&mut self, id: NodeId, have: Bits) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let held = have.count();
        if held > node.got {
            (node.got, node.starved) = (held, None);
        }
        for piece in have.iter().filter(|_| !node.doubted) {
            // A controller that was restarted learns what the origin need not send again.
            if self.free.clear(piece) {
                self.pieces[piece as usize] = Piece::Said { node: id };
            }
        }
        if node.have.len() == have.len() {
            node.have = have;
        }
        self.progress(id);
    }

    /// Who says that it holds what it does not would keep it from all: when nobody brings it to a node that starves for it, it leaves the origin.
    fn starves(&mut self, now: Millis, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if now.saturating_sub(*node.starved.get_or_insert(now)) < STARVED_INTERVALS * self.config.interval_ms {
            return;
        }
        node.starved = None;
        let lacks = |piece: u32| !node.have.get(piece) && node.demand.iter().any(|d| d.range.contains(&piece));
        let said = self.pieces.iter().zip(0..).filter_map(|(state, piece)| match state {
            Piece::Said { node } if *node != id && lacks(piece) => Some(*node),
            _ => None,
        });
        for other in said.collect::<BTreeSet<_>>() {
            self.nodes.get_mut(&other).into_iter().for_each(|n| n.doubted = true);
            self.disown(other, false);
        }
    }

    /// What nobody but `id` is known to hold must leave the origin again; `given`: also what it had by lease.
    fn disown(&mut self, id: NodeId, given: bool) {
        for piece in 0..self.pieces.len() as u32 {
            let its = match self.pieces[piece as usize] {
                Piece::Given { node } => given && node == id,
                Piece::Said { node } => node == id,
                _ => false,
            };
            if its {
                let holds = |n: &Node| !n.doubted && n.have.get(piece);
                match self.nodes.iter().find(|(other, n)| **other != id && holds(n)).map(|(id, _)| *id) {
                    Some(node) => self.pieces[piece as usize] = Piece::Said { node },
                    None => self.free_again(piece),
                }
            }
        }
    }

    /// Something arrived at `id`: its children may be let in, and the tree may be ripe to become a mesh.
    fn progress(&mut self, id: NodeId) {
        if self.meshed || self.config.mode.is_static() {
            return;
        }
        if self.role(id) == Role::Relay && self.holds(id) {
            let children: Vec<_> = self
                .nodes
                .iter()
                .filter(|(_, n)| n.relay == Some(id) && n.role == Role::Capped)
                .map(|(id, _)| *id)
                .collect();
            children.into_iter().for_each(|child| self.open(child));
        }
        let holding = self.nodes.values().filter(|n| n.got > 0).count();
        let waiting = self.config.expected.max(self.nodes.len() as u32) as usize;
        // Few enough to be all linked need no tree: nobody is crowded, and each second in it is a second of idle uplinks.
        let ripe = holding * 4 >= waiting || (waiting <= self.graph.all_linked_max() && self.holds(id));
        if ripe && self.nodes.len() * 4 >= waiting * 3 {
            self.mesh();
        }
    }

    /// A relay that takes nothing (unreachable, hung, without a route to the store) would cap its children for ever: one of them takes its
    /// place. What it takes later it is leased as before.
    fn replace_relays(&mut self, now: Millis) {
        if self.meshed || self.config.mode != Mode::Ours {
            return;
        }
        let patience = RELAY_MS_MIN.max(RELAY_INTERVALS * self.config.interval_ms);
        let relays = self.nodes.iter_mut().filter(|(_, n)| n.role == Role::Relay);
        let late = relays
            .map(|(id, n)| (*id, now.saturating_sub(*n.since.get_or_insert(now))))
            .filter(|(_, ms)| *ms >= patience);
        for (old, _) in late.collect::<Vec<_>>() {
            let takes = |n: &Node| !n.forfeited && (n.outstanding > 0 || !self.slots.is_free());
            if self.holds(old) || self.nodes.get(&old).is_some_and(takes) {
                continue;
            }
            let capped = self.nodes.iter().filter(|(_, n)| n.role == Role::Capped);
            let Some(new) = capped.min_by_key(|(_, n)| n.relay != Some(old)).map(|(id, _)| *id) else { return };
            self.nodes.values_mut().filter(|n| n.relay == Some(old)).for_each(|n| n.relay = Some(new));
            self.set_role(old, Role::Leecher);
            self.promote(new);
            self.graph.link(old, new);
        }
    }

    fn promote(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        (node.relay, node.since) = (None, None);
        self.graph.add(id, node.rack);
        self.set_role(id, Role::Relay);
    }

    fn mesh(&mut self) {
        self.meshed = true;
        let all: Vec<_> = self.nodes.iter().map(|(id, n)| (*id, n.rack)).collect();
        all.iter().for_each(|(id, rack)| self.graph.add(*id, *rack));
        self.graph.deal(&mut self.rng);
        let paper_relay = |policy: &Self, id| policy.config.mode == Mode::Paper && policy.role(id) == Role::Relay;
        for (id, _) in all {
            if !paper_relay(self, id) {
                self.set_role(id, Role::Peer);
            }
        }
    }

    /// The node is gone: what nobody else is known to hold must leave the origin again.
    pub fn leave(&mut self, id: NodeId) {
        self.take_back(id);
        self.unready(id);
        self.dry.remove(&id);
        let Some(node) = self.nodes.remove(&id) else { return };
        self.uncount(&node);
        for other in node.kin {
            self.nodes.get_mut(&other).into_iter().for_each(|n| n.kin.retain(|kin| *kin != id));
        }
        self.graph.leave(id, &mut self.rng);
        self.plant();
        self.version += 1;
        self.disown(id, true);
        let orphans: Vec<_> = self.nodes.iter().filter(|(_, n)| n.relay == Some(id)).map(|(id, _)| *id).collect();
        for orphan in orphans {
            let relay = self.draw_relay();
            let alone = relay.is_none() && !self.meshed && !self.config.mode.is_static();
            if let Some(node) = self.nodes.get_mut(&orphan) {
                node.relay = relay;
            }
            if alone {
                // The last relay died before it had children: promote one.
                self.promote(orphan);
            }
            self.open(orphan);
        }
    }

    /// Time passes: silent nodes are lost, late leases given to others, useless edges moved.
    pub fn tick(&mut self, now: Millis) {
        let silent = now.saturating_sub(TTL_INTERVALS * self.config.interval_ms);
        let lost: Vec<_> = self.nodes.iter().filter(|(_, n)| n.seen < silent).map(|(id, _)| *id).collect();
        lost.into_iter().for_each(|id| self.leave(id));
        self.expire_leases(now);
        self.replace_relays(now);
        self.judge_speed(now);
        if self.meshed {
            self.move_edges();
            self.relieve();
        }
    }

    /// Deals a node that holds less than most another neighbour for one that holds far less still: a random graph deals somebody several
    /// slow ones, and nobody else would mend that. Of who never told what it holds (an ordinary client) nothing is known.
    fn relieve(&mut self) {
        let mut held: Vec<_> = self.nodes.values().map(|n| n.got).filter(|got| *got > 0).collect();
        held.sort_unstable();
        let usual = held.get(held.len() / 2).copied().unwrap_or(0);
        if usual < TOLD || !self.tracks_pieces() {
            return;
        }
        let below = |got: u32, of: u32, share: f64| got > 0 && f64::from(got) < f64::from(of) * share;
        let behind = self.nodes.iter().filter(|(_, n)| n.wants_all && !n.complete && below(n.got, usual, BEHIND));
        let weak = |id: &NodeId, got: u32| {
            let weak = |other: &NodeId| self.nodes.get(other).is_some_and(|n| below(n.got, got, FAR_BEHIND));
            self.graph.neighbours(*id).find(weak)
        };
        let pairs: Vec<_> = behind.filter_map(|(id, n)| Some((*id, weak(id, n.got)?))).take(SWITCHES).collect();
        pairs.into_iter().for_each(|(a, b)| {
            self.graph.switch(a, b, &mut self.rng);
        });
    }

    fn move_edges(&mut self) {
        let done = |id: &NodeId| self.nodes.get(id).is_some_and(|n| n.complete);
        if self.nodes.keys().all(&done) {
            return;
        }
        let useless: Vec<_> = self
            .nodes
            .keys()
            .filter(|id| done(id))
            .filter_map(|id| {
                self.graph.neighbours(*id).find(|other| other > id && done(other)).map(|other| (*id, other))
            })
            .take(SWITCHES)
            .collect();
        useless.into_iter().for_each(|(a, b)| {
            self.graph.switch(a, b, &mut self.rng);
        });
    }

    // ---- what can be seen ----

    /// Changes whenever some node's orders may have: who waits for an answer asks again.
    pub fn version(&self) -> u64 {
        self.version
    }

    pub fn lambda2(&self) -> f64 {
        self.graph.lambda2()
    }

    pub fn snapshot(&self) -> Snapshot {
        let mut roles = [0; 5];
        self.nodes.values().for_each(|n| roles[n.role as usize] += 1);
        Snapshot {
            roles,
            complete: self.nodes.values().filter(|n| n.complete).count() as u32,
            slots: self.slots.now,
            sending: self.slots.sending,
            free: self.free.count(),
            leases: self.leases,
            meshed: self.meshed,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Nodes by role, in the order of [`Role`].
    pub roles: [u32; 5],
    pub complete: u32,
    pub slots: u32,
    pub sending: u32,
    /// Pieces that have not left the origin yet.
    pub free: u32,
    /// Leases given in all; more than the number of pieces means that some went twice.
    pub leases: u64,
    pub meshed: bool,
}

/// The paper's number of initial relays: log(N)³, whose logarithm must be decimal for its own figures to fit.
pub fn relays(nodes: u32) -> u32 {
    let log = f64::from(nodes.max(1)).log10();
    (log.powi(3).round() as u32).clamp(1, nodes.max(1))
}
