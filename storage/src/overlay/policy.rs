//! What the torrent controller decides: one pure object over announces, the same in the service and in the simulator.
//!
//! A node is capped → relay or leecher → peer → seeder. Blank answers until a relay holds blocks; then a tree of relays
//! and their children; once a quarter of the nodes hold something, an explicit regular graph. The origin gives by lease
//! only, every piece once before any twice: simulation and measurement agree that nothing else gains as much.
//! State is soft: announces carry what a node holds, so a new controller knows everything after one interval.
//!
//! `Mode::Paper` does what the paper describes (fixed relays, random repository fall-back) for comparison.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

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
}

#[derive(Clone, Debug)]
pub struct Config {
    pub mode: Mode,
    /// Nodes to come, if it is known; else as many as have announced.
    pub expected: u32,
    pub degree: usize,
    /// Between announces of a node; a node silent for [`TTL_INTERVALS`] of them is lost.
    pub interval_ms: Millis,
    /// Pieces that a relay holds before others hear of it.
    pub relay_pieces: u32,
    /// Leases a node may hold unacknowledged; small, so that a slow node takes few.
    pub leases_per_node: u32,
    /// Upper bound of leases being sent at once (connections the origin bears).
    pub slots_max: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mode: Mode::Ours,
            expected: 0,
            degree: 10,
            interval_ms: 1000,
            relay_pieces: 2,
            leases_per_node: 3,
            slots_max: 1024,
        }
    }
}

/// Announces a node may miss; also the number of smoothed lease times after which a lease is given to another.
const TTL_INTERVALS: u64 = 6;
const LEASE_PATIENCE: u64 = 8;
const LEASE_MS_MIN: Millis = 3000;
/// Patience while no lease was ever done: how long one takes is not known, and who is silent is lost anyway.
const LEASE_MS_FIRST: Millis = 30_000;
const LEASE_MS_MAX: Millis = 3_600_000;
/// Slots grow by this factor, at first and later; to have been worth it goodput must grow by this share as much.
const GROWTH: (f64, f64) = (2.0, 1.25);
const WORTH: f64 = 0.3;
/// A node whose leases take so many times longer than all do is slow.
const SLOW: f64 = 2.5;
/// Nodes that a node is told of because they want the same bytes, at most.
const KIN_MAX: usize = 8;
/// Useless edges moved per tick.
const SWITCHES: usize = 32;

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
    Given { node: NodeId },
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
    have: Bits,
    relay: Option<NodeId>,
    /// Others that want some of the same bytes, where not everybody wants everything: a random graph would seldom join them.
    kin: Vec<NodeId>,
    outstanding: u32,
    leased: u32,
    /// Smoothed time of its leases.
    lease_ms: f64,
    got: u32,
    cursor: u32,
    connected: bool,
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
    /// Nodes that may take a lease: fewest outstanding first, then fewest so far.
    ready: BTreeSet<(u32, u32, NodeId)>,
    /// Nodes for which nothing is free at the moment.
    dry: BTreeSet<NodeId>,
    slots: Slots,
    sending: u32,
    lease_ms: f64,
    /// Least patience with a lease: grows while leases are taken back and none is done.
    patience_ms: Millis,
    leases: u64,
    version: u64,
}

/// How many leases the origin sends at once: grows while goodput does, halves when the origin complains.
#[derive(Clone, Debug)]
struct Slots {
    now: u32,
    max: u32,
    window_start: Millis,
    done: u32,
    limited: bool,
    best: f64,
    grew: bool,
    /// The first window is past, in which bytes only began to flow.
    warm: bool,
    hold: u32,
    /// Doubling until the first time that more slots were not worth it.
    eager: bool,
}

impl Policy {
    pub fn new(config: Config, pieces: u32, seed: u64) -> Self {
        // A lease shares its receiver's downlink with as many neighbours: fewer leases leave the origin's own link idle.
        let busy = relays(config.expected).max(config.degree as u32 + 2);
        let first = if config.mode == Mode::Paper { config.slots_max } else { busy };
        let slots = Slots {
            now: first.min(config.slots_max.max(1)),
            max: config.slots_max.max(1),
            window_start: 0,
            done: 0,
            limited: false,
            best: 0.0,
            grew: false,
            warm: false,
            hold: 0,
            eager: true,
        };
        Self {
            rng: Rng::new(seed),
            nodes: BTreeMap::new(),
            graph: Graph::new(config.degree),
            meshed: false,
            pieces: vec![Piece::Free; pieces as usize],
            out: BTreeMap::new(),
            free: Bits::full(pieces),
            ready: BTreeSet::new(),
            dry: BTreeSet::new(),
            slots,
            sending: 0,
            lease_ms: 0.0,
            patience_ms: LEASE_MS_FIRST,
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
        let fresh = !self.meshed && serving < target;
        let cursor = demand[0].range.start;
        let have = Bits::new(if self.tracks_pieces() { pieces } else { 0 });
        let role = if fresh { Role::Relay } else { Role::Capped };
        let relay = (!fresh).then(|| self.draw_relay()).flatten();
        let rack = report.rack;
        let kin = self.kin(&demand);
        for other in &kin {
            self.nodes.get_mut(other).into_iter().for_each(|n| n.kin.push(id));
            self.version += 1;
        }
        let node = Node {
            role,
            rack,
            demand,
            have,
            relay,
            kin,
            outstanding: 0,
            leased: 0,
            lease_ms: 0.0,
            got: 0,
            cursor,
            connected: false,
            seen: now,
            complete: false,
        };
        self.nodes.insert(id, node);
        if fresh {
            self.graph.add(id, rack);
        } else {
            self.open(id);
        }
        self.slots.now = self.slots.now.max(target.min(self.slots.max));
    }

    fn wants_all(&self, demand: &[Demand]) -> bool {
        demand.iter().any(|d| d.range.len() == self.pieces.len())
    }

    fn kin(&self, demand: &[Demand]) -> Vec<NodeId> {
        if self.wants_all(demand) {
            return Vec::new();
        }
        let meet = |a: &Demand, b: &Demand| a.range.start < b.range.end && b.range.start < a.range.end;
        let shares = |n: &Node| n.demand.iter().any(|a| demand.iter().any(|b| meet(a, b)));
        let open = self.nodes.iter().filter(|(_, n)| n.kin.len() < KIN_MAX && !self.wants_all(&n.demand) && shares(n));
        open.map(|(id, _)| *id).take(KIN_MAX).collect()
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
        let kin = self.nodes.get(&id).into_iter().flat_map(|n| &n.kin).copied();
        let kin = kin.filter(|other| self.role(*other) != Role::Capped && self.role(id) != Role::Capped);
        let dealt = self.graph.neighbours(id).filter(|_| role != Role::Capped);
        let neighbours = dealt.chain(kin).collect::<BTreeSet<_>>().into_iter().collect();
        Orders { role, neighbours, origin: self.may_lease(role), interval_ms }
    }

    fn may_lease(&self, role: Role) -> bool {
        matches!(role, Role::Relay | Role::Leecher | Role::Peer)
    }

    fn learn(&mut self, id: NodeId, have: Bits) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let held = have.count();
        node.got = node.got.max(held);
        for piece in have.iter() {
            // A controller that was restarted learns what the origin need not send again.
            if self.free.clear(piece) {
                self.pieces[piece as usize] = Piece::Given { node: id };
            }
        }
        if node.have.len() == have.len() {
            node.have = have;
        }
        self.progress(id);
    }

    /// Something arrived at `id`: its children may be let in, and the tree may be ripe to become a mesh.
    fn progress(&mut self, id: NodeId) {
        if self.meshed {
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
        if holding * 4 >= waiting && self.nodes.len() * 4 >= waiting * 3 {
            self.mesh();
        }
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

    // ---- origin leases ----

    /// The node can take what the origin sends (it is connected to it, or asks for a lease by announce).
    pub fn connected(&mut self, id: NodeId, connected: bool) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.connected = connected;
        }
        if !connected {
            self.take_back(id);
        }
        self.refresh(id);
    }

    /// The next lease to send, if a slot and a ready node are there. Call again until `None`.
    pub fn next_lease(&mut self, now: Millis) -> Option<(NodeId, u32)> {
        while self.sending < self.slots.now {
            let (_, _, id) = *self.ready.first()?;
            match self.lease_for(now, id) {
                Some(piece) => return Some((id, piece)),
                None => {
                    self.unready(id);
                    self.dry.insert(id);
                }
            }
        }
        self.slots.limited |= !self.ready.is_empty();
        None
    }

    /// A lease for one node, as when it asks by announce to read from object storage itself.
    pub fn lease_for(&mut self, now: Millis, id: NodeId) -> Option<u32> {
        if self.sending >= self.slots.now {
            self.slots.limited = true;
            return None;
        }
        let node = self.nodes.get(&id)?;
        if node.outstanding >= self.config.leases_per_node || !self.may_lease(node.role) {
            return None;
        }
        let piece = match self.config.mode {
            Mode::Ours => self.next_free(node),
            Mode::Paper => self.random_missing(id),
        }?;
        self.unready(id);
        let node = self.nodes.get_mut(&id)?;
        node.outstanding += 1;
        node.leased += 1;
        node.cursor = piece + 1;
        self.free.clear(piece);
        self.pieces[piece as usize] = Piece::Leased;
        self.out.insert((id, piece), Lease { since: now, sent: false });
        self.sending += 1;
        self.leases += 1;
        self.refresh(id);
        Some(piece)
    }

    fn next_free(&self, node: &Node) -> Option<u32> {
        let inside =
            |range: &Range<u32>, from: u32| self.free.next_from(from.max(range.start)).filter(|p| *p < range.end);
        let (own, seed): (Vec<_>, Vec<_>) = node.demand.iter().partition(|d| !d.seed_only);
        let later = own.iter().filter_map(|d| inside(&d.range, node.cursor)).next();
        later
            .or_else(|| own.iter().filter_map(|d| inside(&d.range, 0)).next())
            .or_else(|| seed.iter().filter_map(|d| inside(&d.range, 0)).next())
    }

    /// The paper's repository fall-back: any piece the node lacks, whoever else has read it.
    fn random_missing(&mut self, id: NodeId) -> Option<u32> {
        let node = self.nodes.get(&id)?;
        let first = self.rng.index(node.demand.len());
        for Demand { range, .. } in node.demand[first..].iter().chain(&node.demand[..first]) {
            let from = range.start + self.rng.below(u64::from(range.end - range.start)) as u32;
            let lacks = |p: &u32| !node.have.get(*p) && !self.out.contains_key(&(id, *p));
            if let Some(piece) = (from..range.end).chain(range.start..from).find(lacks) {
                return Some(piece);
            }
        }
        None
    }

    /// All bytes of the lease have left the origin: its slot is free again.
    pub fn lease_sent(&mut self, now: Millis, id: NodeId, piece: u32) {
        if let Some(lease) = self.out.get_mut(&(id, piece))
            && !std::mem::replace(&mut lease.sent, true)
        {
            self.sending = self.sending.saturating_sub(1);
            self.slots.done += 1;
            self.slots.turn(now, self.lease_ms);
        }
    }

    /// The node holds the leased piece, verified.
    pub fn lease_done(&mut self, now: Millis, id: NodeId, piece: u32) {
        self.lease_sent(now, id, piece);
        let Some(Lease { since, .. }) = self.out.remove(&(id, piece)) else { return };
        let took = now.saturating_sub(since) as f64;
        self.lease_ms = if self.lease_ms == 0.0 { took } else { 0.9 * self.lease_ms + 0.1 * took };
        self.patience_ms = LEASE_MS_MIN;
        self.pieces[piece as usize] = Piece::Given { node: id };
        self.unready(id);
        if let Some(node) = self.nodes.get_mut(&id) {
            node.lease_ms = if node.lease_ms == 0.0 { took } else { 0.7 * node.lease_ms + 0.3 * took };
            node.outstanding = node.outstanding.saturating_sub(1);
            node.got += 1;
            node.have.set(piece);
        }
        self.refresh(id);
        self.progress(id);
    }

    /// The origin refused or failed (503, time-out): fewer at once, and the piece is free again.
    pub fn lease_failed(&mut self, now: Millis, id: NodeId, piece: u32) {
        if self.out.contains_key(&(id, piece)) {
            self.release(id, piece);
            self.slots.complain(now);
        }
    }

    fn release(&mut self, id: NodeId, piece: u32) {
        let Some(lease) = self.out.remove(&(id, piece)) else { return };
        if !lease.sent {
            self.sending = self.sending.saturating_sub(1);
        }
        self.unready(id);
        if let Some(node) = self.nodes.get_mut(&id) {
            node.outstanding = node.outstanding.saturating_sub(1);
        }
        if self.pieces[piece as usize] == Piece::Leased {
            self.free_again(piece);
        }
        self.refresh(id);
    }

    fn free_again(&mut self, piece: u32) {
        self.pieces[piece as usize] = Piece::Free;
        self.free.set(piece);
        let dry = std::mem::take(&mut self.dry);
        dry.into_iter().for_each(|id| self.refresh(id));
    }

    fn unready(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get(&id) {
            self.ready.remove(&(node.outstanding, node.leased, id));
        }
    }

    fn refresh(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get(&id) else { return };
        let key = (node.outstanding, node.leased, id);
        // What only a slow node holds, others wait for; but what it alone wants it must fetch.
        let slow = node.lease_ms > SLOW * self.lease_ms && self.wants_all(&node.demand);
        let fit = node.connected && !node.complete && !slow && self.may_lease(node.role);
        if fit && node.outstanding < self.config.leases_per_node && !self.dry.contains(&id) {
            self.ready.insert(key);
        } else {
            self.ready.remove(&key);
        }
    }

    /// Pieces that only `id` was to bring become free again.
    fn take_back(&mut self, id: NodeId) {
        let mine: Vec<_> = self.out.range((id, 0)..=(id, u32::MAX)).map(|((_, piece), _)| *piece).collect();
        mine.into_iter().for_each(|piece| self.release(id, piece));
    }

    /// The node is gone: what nobody else is known to hold must leave the origin again.
    pub fn leave(&mut self, id: NodeId) {
        self.connected(id, false);
        self.unready(id);
        self.dry.remove(&id);
        let Some(node) = self.nodes.remove(&id) else { return };
        for other in node.kin {
            self.nodes.get_mut(&other).into_iter().for_each(|n| n.kin.retain(|kin| *kin != id));
        }
        self.graph.leave(id, &mut self.rng);
        self.version += 1;
        for piece in 0..self.pieces.len() as u32 {
            if self.pieces[piece as usize] == (Piece::Given { node: id }) {
                match self.nodes.iter().find(|(_, n)| n.have.get(piece)).map(|(id, _)| *id) {
                    Some(node) => self.pieces[piece as usize] = Piece::Given { node },
                    None => self.free_again(piece),
                }
            }
        }
        let orphans: Vec<_> = self.nodes.iter().filter(|(_, n)| n.relay == Some(id)).map(|(id, _)| *id).collect();
        for orphan in orphans {
            let relay = self.draw_relay();
            let alone = relay.is_none() && !self.meshed;
            if let Some(node) = self.nodes.get_mut(&orphan) {
                node.relay = relay;
            }
            if alone {
                // The last relay died before it had children: promote one.
                self.set_role(orphan, Role::Relay);
                let rack = self.nodes[&orphan].rack;
                self.graph.add(orphan, rack);
            }
            self.open(orphan);
        }
    }

    /// Time passes: silent nodes are lost, late leases given to others, useless edges moved.
    pub fn tick(&mut self, now: Millis) {
        let silent = now.saturating_sub(TTL_INTERVALS * self.config.interval_ms);
        let lost: Vec<_> = self.nodes.iter().filter(|(_, n)| n.seen < silent).map(|(id, _)| *id).collect();
        lost.into_iter().for_each(|id| self.leave(id));
        let patience = ((self.lease_ms * LEASE_PATIENCE as f64) as Millis).max(self.patience_ms);
        // In the paper nobody watches over who reads what.
        let watched = self.config.mode == Mode::Ours;
        let late: Vec<_> = self
            .out
            .iter()
            .filter(|(_, l)| watched && now.saturating_sub(l.since) > patience)
            .map(|(key, _)| *key)
            .collect();
        // Large pieces from a slow origin take long: what is taken back before anything ends was not late.
        if !late.is_empty() {
            self.patience_ms = (self.patience_ms * LEASE_PATIENCE).min(LEASE_MS_MAX);
        }
        late.into_iter().for_each(|(id, piece)| self.release(id, piece));
        self.slots.turn(now, self.lease_ms);
        if self.meshed {
            self.move_edges();
        }
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
            sending: self.sending,
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

impl Slots {
    const WINDOW_MS: Millis = 400;
    /// A window spans several leases, so that slots just added have had time to bring something.
    const WINDOW_LEASES: f64 = 2.0;

    fn turn(&mut self, now: Millis, lease_ms: f64) {
        let span = now.saturating_sub(self.window_start);
        let window = Self::WINDOW_MS.max((lease_ms * Self::WINDOW_LEASES) as Millis);
        if span < window || self.done < self.now {
            return;
        }
        let goodput = f64::from(self.done) / span as f64;
        if !std::mem::replace(&mut self.warm, true) {
            (self.window_start, self.done) = (now, 0);
            return;
        }
        let growth = if self.eager { GROWTH.0 } else { GROWTH.1 };
        let worth = goodput >= self.best * (1.0 + (growth - 1.0) * WORTH);
        if self.grew && !worth {
            self.now = ((f64::from(self.now) / growth).round() as u32).max(1);
            self.hold = 3;
            self.eager = false;
        }
        self.grew = false;
        if self.hold > 0 {
            self.hold -= 1;
        } else if self.limited && self.now < self.max {
            let growth = if self.eager { GROWTH.0 } else { GROWTH.1 };
            self.now = ((f64::from(self.now) * growth).ceil() as u32).min(self.max);
            self.grew = true;
        }
        self.best = if worth { goodput } else { 0.9 * self.best + 0.1 * goodput };
        (self.window_start, self.done, self.limited) = (now, 0, false);
    }

    fn complain(&mut self, now: Millis) {
        self.now = (self.now / 2).max(1);
        self.hold = 5;
        self.eager = false;
        (self.window_start, self.done, self.grew) = (now, 0, false);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    fn policy(nodes: u64, pieces: u32) -> Policy {
        let mut policy = Policy::new(Config { expected: nodes as u32, ..Config::default() }, pieces, 1);
        for id in 0..nodes {
            policy.announce(0, id, Report::default());
        }
        policy
    }

    /// Serves leases at once to whoever may have them, until none is left.
    fn drain(policy: &mut Policy, nodes: u64, now: Millis) -> Vec<(NodeId, u32)> {
        let mut all = Vec::new();
        loop {
            for id in 0..nodes {
                let orders = policy.announce(now, id, Report::default());
                policy.connected(id, orders.origin);
            }
            let Some((id, piece)) = policy.next_lease(now) else { return all };
            policy.lease_done(now, id, piece);
            all.push((id, piece));
        }
    }

    #[test]
    fn relays_are_the_cube_of_the_decimal_logarithm() {
        assert_eq!([1, 10, 20, 100, 1000, 10_000].map(relays), [1, 1, 2, 8, 27, 64]);
    }

    #[test]
    fn answers_are_blank_until_the_relay_holds_blocks() {
        let mut policy = policy(20, 100);
        let roles = policy.snapshot().roles;
        assert_eq!((roles[Role::Relay as usize], roles[Role::Capped as usize]), (2, 18));
        let relay = (0..20).find(|id| policy.role(*id) == Role::Relay).unwrap();
        assert!(policy.announce(1, 19, Report::default()).neighbours.is_empty());
        policy.connected(relay, true);
        for _ in 0..2 {
            let (id, piece) = policy.next_lease(2).unwrap();
            assert_eq!(id, relay);
            policy.lease_done(3, id, piece);
        }
        let children: Vec<_> = (0..20).filter(|id| policy.role(*id) == Role::Leecher).collect();
        assert!(!children.is_empty());
        for child in children {
            let orders = policy.announce(4, child, Report::default());
            assert!(orders.neighbours.contains(&relay) && orders.origin);
        }
    }

    #[test]
    fn each_piece_leaves_the_origin_once_before_any_twice() {
        let mut policy = policy(20, 500);
        let given = drain(&mut policy, 20, 5);
        let distinct: BTreeSet<_> = given.iter().map(|(_, piece)| *piece).collect();
        assert_eq!((given.len(), distinct.len()), (500, 500));
        let mut per_node = BTreeMap::<_, u32>::new();
        given.iter().for_each(|(id, _)| *per_node.entry(*id).or_default() += 1);
        assert!(per_node.len() == 20 && per_node.values().all(|n| (15..=40).contains(n)), "{per_node:?}");
    }

    #[test]
    fn what_only_a_lost_node_held_is_leased_again() {
        let mut policy = policy(4, 40);
        let given = drain(&mut policy, 4, 0);
        let lost = given[5].0;
        let only_there: BTreeSet<_> = given.iter().filter(|(id, _)| *id == lost).map(|(_, p)| *p).collect();
        let spread = *only_there.first().unwrap();
        let mut have = Bits::new(40);
        have.set(spread);
        let other = (0..4).find(|id| *id != lost).unwrap();
        policy.announce(1, other, Report { have: Some(have), ..Report::default() });
        policy.leave(lost);
        let again: BTreeSet<_> = std::iter::from_fn(|| {
            let (id, piece) = policy.next_lease(2)?;
            policy.lease_done(2, id, piece);
            Some(piece)
        })
        .collect();
        assert_eq!(again, only_there.into_iter().filter(|p| *p != spread).collect());
    }

    #[test]
    fn a_late_lease_goes_to_another_and_a_silent_node_is_forgotten() {
        let mut policy = policy(2, 1);
        let all: Vec<_> = (0..2).filter(|id| policy.announce(0, *id, Report::default()).origin).collect();
        all.iter().for_each(|id| policy.connected(*id, true));
        let (first, piece) = policy.next_lease(0).unwrap();
        assert!(policy.next_lease(1).is_none());
        let other = 1 - first;
        policy.announce(7000, other, Report::default());
        policy.tick(7000);
        policy.connected(other, true);
        assert_eq!(policy.next_lease(7001), Some((other, piece)));
        assert_eq!(policy.snapshot().roles.iter().sum::<u32>(), 1);
    }

    #[test]
    fn leases_that_all_take_long_are_not_taken_back_for_ever() {
        let mut policy = policy(1, 1);
        policy.connected(0, true);
        // Each lease needs a minute, announced every second.
        let (mut since, mut now) = (0, 0);
        policy.next_lease(0).unwrap();
        while now - since < 60_000 {
            now += 1000;
            assert!(now < 600_000, "given and taken back for ten minutes");
            policy.announce(now, 0, Report::default());
            policy.tick(now);
            if policy.next_lease(now).is_some() {
                since = now;
            }
        }
    }

    #[test]
    fn who_wants_the_same_bytes_is_told_of_each_other() {
        let mut policy = Policy::new(Config { expected: 40, ..Config::default() }, 400, 1);
        let part = |i: u32| {
            vec![
                Demand { range: i * 10..i * 10 + 10, seed_only: false },
                Demand { range: (i + 1) % 40 * 10..(i + 1) % 40 * 10 + 3, seed_only: true },
            ]
        };
        let speak = |policy: &mut Policy, i: u32| {
            let orders = policy.announce(1, u64::from(i), Report { demand: part(i), ..Report::default() });
            policy.connected(u64::from(i), orders.origin);
            orders
        };
        (0..40).for_each(|i| drop(speak(&mut policy, i)));
        for _ in 0..400 {
            let Some((id, piece)) = policy.next_lease(2) else { break };
            policy.lease_done(2, id, piece);
            (0..40).for_each(|i| drop(speak(&mut policy, i)));
        }
        for i in 0..40 {
            let orders = speak(&mut policy, i);
            let around = [(i + 1) % 40, (i + 39) % 40].map(u64::from);
            assert!(around.iter().all(|kin| orders.neighbours.contains(kin)), "{i}: {orders:?}");
            assert!(orders.neighbours.len() <= 14, "{orders:?}");
        }
        policy.leave(5);
        assert!(!speak(&mut policy, 4).neighbours.contains(&5));
    }

    #[test]
    fn slots_double_only_while_that_brings_much_more() {
        // Leases of 100 ms each: an origin that sends at most `most` at full rate.
        let settled = |most: f64| {
            let mut slots = Policy::new(Config { expected: 20, ..Config::default() }, 9, 1).slots;
            assert_eq!(slots.now, 12);
            let mut now = 0.0;
            for _ in 0..100_000 {
                slots.limited = true;
                slots.done += 1;
                now += 100.0 / most.min(f64::from(slots.now));
                slots.turn(now as Millis, 100.0 * (f64::from(slots.now) / most).max(1.0));
            }
            slots.now
        };
        assert!((10..=16).contains(&settled(10.0)), "{}", settled(10.0));
        assert!((90..=200).contains(&settled(100.0)), "{}", settled(100.0));
    }

    #[test]
    fn a_node_whose_leases_take_long_gets_no_more_while_others_can_take_them() {
        let mut policy = policy(2, 100);
        (0..2).for_each(|id| policy.set_role(id, Role::Peer));
        (0..2).for_each(|id| policy.connected(id, true));
        let (mut now, mut out, mut to_slow) = (0, VecDeque::new(), 0);
        for _ in 0..60 {
            while let Some((id, piece)) = policy.next_lease(now) {
                to_slow += u32::from(id == 1);
                out.push_back((now + if id == 1 { 1000 } else { 100 }, id, piece));
            }
            out.make_contiguous().sort();
            let Some((at, id, piece)) = out.pop_front() else { break };
            now = at.max(now);
            policy.lease_done(now, id, piece);
        }
        assert!(to_slow <= 6, "{to_slow}");
    }

    #[test]
    fn a_restarted_controller_learns_from_announces_what_need_not_be_sent() {
        let mut policy = Policy::new(Config { expected: 2, ..Config::default() }, 10, 1);
        let mut have = Bits::new(10);
        have.set_range(0..9);
        let orders = policy.announce(0, 1, Report { have: Some(have), ..Report::default() });
        policy.connected(1, orders.origin);
        assert_eq!(policy.next_lease(0), Some((1, 9)));
        assert_eq!(policy.next_lease(0), None);
    }

    #[test]
    fn an_origin_that_complains_is_asked_for_half_as_much() {
        let mut policy = policy(1000, 5000);
        let before = policy.snapshot().slots;
        (0..1000).for_each(|id| policy.connected(id, true));
        let (id, piece) = policy.next_lease(0).unwrap();
        policy.lease_failed(1, id, piece);
        assert_eq!((before, policy.snapshot().slots), (27, 13));
    }

    #[test]
    fn the_same_trace_gives_the_same_decisions() {
        let run = || {
            let mut policy = policy(50, 200);
            (drain(&mut policy, 50, 3), policy.lambda2().to_bits())
        };
        assert_eq!(run(), run());
    }

    #[test]
    fn lambda2_falls_from_tree_to_swarm() {
        let mut policy = policy(200, 2000);
        let relay = (0..200).find(|id| policy.role(*id) == Role::Relay).unwrap();
        policy.connected(relay, true);
        for _ in 0..2 {
            let (id, piece) = policy.next_lease(2).unwrap();
            policy.lease_done(3, id, piece);
        }
        let tree = policy.lambda2();
        drain(&mut policy, 200, 5);
        let swarm = policy.lambda2();
        assert!(tree > 0.85 && swarm < 0.66, "{tree} {swarm}");
    }

    #[test]
    fn demand_outside_the_dataset_is_not_believed() {
        let mut policy = Policy::new(Config::default(), 10, 1);
        let demand = vec![Demand { range: 5..u32::MAX, seed_only: false }, Demand { range: 3..4, seed_only: false }];
        let orders = policy.announce(0, 1, Report { demand, ..Report::default() });
        policy.connected(1, orders.origin);
        assert_eq!(policy.next_lease(0), Some((1, 3)));
        assert_eq!(policy.next_lease(0), None);
    }
}
