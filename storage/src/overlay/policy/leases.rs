//! Origin leases: which piece leaves the origin for which node, each once before any twice.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{Demand, Lease, Millis, Mode, Node, NodeId, Piece, Policy};

/// After so many smoothed lease times, but never sooner than the least, a lease is given to another.
const PATIENCE: u64 = 8;
/// The least while no lease was ever done: how long one takes is not known, and who is silent is lost anyway.
pub(super) const MS_FIRST: Millis = 30_000;
const MS_MAX: Millis = 3_600_000;
/// A node whose leases take so many times as long as those of the node in the middle is slow. Of what others want too it is given none, since what
/// only it holds would come late to all; of its own part one at a time, when others have as many as this more.
const SLOW_FACTOR: f64 = 2.0;
const SLOW_BEHIND: u32 = 2;
/// Of what is held against a slow node so much is left after each tick: in some seconds it is tried again. Not any more when so few pieces
/// are free, for each lease that is out: what it is given last, all others wait for.
const FORGIVEN: f64 = 0.98;
const LAST_ROUNDS: usize = 8;
/// Leases unacknowledged in all, among nodes that want everything; twice the slots where that is more. What waits beyond that in the origin's
/// queue only makes each lease late: nobody has a byte to pass on before all first leases come together.
const LEASES_OUT: u32 = 16;

impl Node {
    /// Leases that it bears already; a slow node counts as bearing more.
    fn burden(&self) -> u32 {
        self.outstanding + if self.slow { SLOW_BEHIND } else { 0 }
    }

    /// Who is next: least burden first, then fewest leases so far. A slow node with a part of its own has its turn like all: nobody
    /// else brings those bytes, and put last it would begin when the others are done.
    fn turn(&self, id: NodeId) -> (u32, u32, NodeId) {
        (if self.wants_all { self.burden() } else { self.outstanding }, self.leased, id)
    }
}

/// How many leases the nodes have had that want everything and had any.
#[derive(Clone, Debug, Default)]
pub struct Tally(BTreeMap<u32, u32>);

impl Tally {
    /// What the node in the middle had, of two the one with more.
    fn usual(&self) -> u32 {
        let mut before = self.0.values().sum::<u32>() / 2;
        let middle = self.0.iter().find(|(_, nodes)| before.checked_sub(**nodes).map(|left| before = left).is_none());
        middle.map_or(0, |(leases, _)| *leases)
    }

    /// A node had `from` leases and now has `to`; `None`: it is gone. Who had none was not counted.
    fn change(&mut self, from: u32, to: Option<u32>) {
        if let Some(nodes) = self.0.get_mut(&from) {
            *nodes -= 1;
        }
        self.0.retain(|_, nodes| *nodes > 0);
        if let Some(to) = to {
            *self.0.entry(to).or_default() += 1;
        }
    }
}

impl Policy {
    /// The node can take what the origin sends (it is connected to it, or asks for a lease by announce).
    pub fn connected(&mut self, id: NodeId, connected: bool) {
        if connected {
            self.connected.insert(id);
        } else {
            self.connected.remove(&id);
            self.take_back(id);
        }
        self.refresh(id);
    }

    /// The next lease to send, if a slot and a ready node are there. Call again until `None`.
    pub fn next_lease(&mut self, now: Millis) -> Option<(NodeId, u32)> {
        if self.out.is_empty() && self.ready.is_empty() {
            self.let_ahead();
        }
        while self.slots.is_free() {
            let (_, _, id) = *self.ready.first()?;
            let node = self.nodes.get(&id)?;
            if self.is_full(node) {
                return None;
            }
            let (bears, ahead) = (self.bears(node), self.is_ahead(node));
            if !bears || ahead {
                self.unready(id);
                self.ahead.extend(ahead.then_some(id));
                continue;
            }
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
        if !self.slots.is_free() {
            self.slots.limited = true;
            return None;
        }
        let node = self.nodes.get(&id)?;
        if self.is_full(node) || !self.bears(node) || self.is_ahead(node) || !self.may_lease(id, node.role) {
            return None;
        }
        let piece = match self.config.mode {
            Mode::Ours | Mode::Tree => self.next_free(node),
            Mode::Central => self.next_missing(id, node),
            Mode::Paper | Mode::Plain => self.random_missing(id),
        }?;
        self.unready(id);
        self.count(id);
        let node = self.nodes.get_mut(&id)?;
        node.outstanding += 1;
        node.cursor = piece + 1;
        self.free.clear(piece);
        self.pieces[piece as usize] = Piece::Leased;
        self.out.insert((id, piece), Lease { since: now, sent: false });
        self.slots.begin(now);
        self.leases += 1;
        self.refresh(id);
        Some(piece)
    }

    /// Has had more leases than the node in the middle, by as many as a node may hold. Each node must pass what it alone was given to all
    /// others, so that with twice the leases it would need twice the time; and the origin's fastest connection takes them all, if it
    /// may, since it is fast because nothing makes it wait. An origin that has nothing else to send is not kept idle.
    fn is_ahead(&self, node: &Node) -> bool {
        let busy = !self.out.is_empty();
        busy && self.in_step(node) && node.leased >= self.tally.usual() + self.config.leases_per_node
    }

    fn in_step(&self, node: &Node) -> bool {
        self.config.mode == Mode::Ours && node.wants_all
    }

    /// One lease more. Who has its first one late begins where the others are.
    fn count(&mut self, id: NodeId) {
        let Some((leased, in_step)) = self.nodes.get(&id).map(|node| (node.leased, self.in_step(node))) else { return };
        let usual = self.tally.usual();
        let now = if in_step && leased == 0 { usual } else { leased } + 1;
        self.nodes.get_mut(&id).into_iter().for_each(|node| node.leased = now);
        if in_step {
            self.tally.change(leased, Some(now));
            if self.tally.usual() > usual {
                self.let_ahead();
            }
        }
    }

    /// The node is gone; without it the one in the middle may be another.
    pub(super) fn uncount(&mut self, node: &Node) {
        if self.in_step(node) {
            self.tally.change(node.leased, None);
            self.let_ahead();
        }
    }

    fn let_ahead(&mut self) {
        std::mem::take(&mut self.ahead).into_iter().for_each(|id| self.refresh(id));
    }

    /// Has room for a lease. A slow node bears one, unless there is somebody better to bring the same bytes.
    fn bears(&self, node: &Node) -> bool {
        let others_bring = node.slow && self.swift && node.wants_all;
        !others_bring && (node.outstanding == 0 || node.burden() < self.config.leases_per_node)
    }

    /// Enough leases are on their way.
    fn is_full(&self, node: &Node) -> bool {
        self.in_step(node) && self.out.len() as u32 >= LEASES_OUT.max(2 * self.slots.now)
    }

    /// Who is slow: measured by the node in the middle, so that never more than half of them are. A lease kept too long counts
    /// before it ends, and who gets none is forgiven with time.
    pub(super) fn judge_speed(&mut self, now: Millis) {
        let mut times: Vec<_> = self.nodes.values().map(|n| n.lease_ms).filter(|ms| *ms > 0.0).collect();
        times.sort_by(f64::total_cmp);
        let Some(usual) = times.get(times.len() / 2) else { return };
        let limit = SLOW_FACTOR * usual;
        let mut kept: BTreeMap<NodeId, f64> = BTreeMap::new();
        for ((id, _), lease) in &self.out {
            let age = kept.entry(*id).or_default();
            *age = age.max(now.saturating_sub(lease.since) as f64);
        }
        let ending = self.free.count() as usize <= LAST_ROUNDS * self.out.len().max(1);
        let mut swift = false;
        let mut changed = Vec::new();
        for (id, node) in &self.nodes {
            let lease_ms = match kept.get(id) {
                Some(age) => node.lease_ms.max(age / SLOW_FACTOR),
                None if node.slow && !ending => node.lease_ms * FORGIVEN,
                None => node.lease_ms,
            };
            let slow = lease_ms > limit;
            swift |= !slow
                && !node.complete
                && (self.connected.contains(id) || node.leased > 0)
                && self.may_lease(*id, node.role);
            changed.extend((slow || node.slow).then_some((*id, lease_ms, slow)));
        }
        self.swift = swift;
        for (id, lease_ms, slow) in changed {
            self.unready(id);
            if let Some(node) = self.nodes.get_mut(&id) {
                (node.lease_ms, node.slow) = (lease_ms, slow);
            }
            self.refresh(id);
        }
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

    /// The next piece that the node lacks, whoever else has read it.
    fn next_missing(&self, id: NodeId, node: &Node) -> Option<u32> {
        let lacks = |p: &u32| !node.have.get(*p) && !self.out.contains_key(&(id, *p));
        node.demand.iter().flat_map(|d| d.range.clone()).find(lacks)
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
            self.slots.sent(now, lease.since, self.lease_ms);
        }
    }

    /// The node holds the leased piece, verified.
    pub fn lease_done(&mut self, now: Millis, id: NodeId, piece: u32) {
        self.lease_sent(now, id, piece);
        let Some(Lease { since, .. }) = self.out.remove(&(id, piece)) else { return };
        let took = now.saturating_sub(since) as f64;
        self.lease_ms = if self.lease_ms == 0.0 { took } else { 0.9 * self.lease_ms + 0.1 * took };
        self.patience_ms = self.config.lease_ms_min;
        self.pieces[piece as usize] = Piece::Given { node: id };
        self.unready(id);
        if let Some(node) = self.nodes.get_mut(&id) {
            node.lease_ms = if node.lease_ms == 0.0 { took } else { 0.7 * node.lease_ms + 0.3 * took };
            node.outstanding = node.outstanding.saturating_sub(1);
            node.got += 1;
            (node.since, node.forfeited, node.starved) = (None, false, None);
            node.have.set(piece);
        }
        self.refresh(id);
        self.progress(id);
    }

    /// The origin refused or failed (503, time-out): fewer at once, and the piece is free again.
    pub fn lease_failed(&mut self, now: Millis, id: NodeId, piece: u32) {
        if self.out.contains_key(&(id, piece)) {
            self.forfeit(id, piece);
            self.slots.complain(now);
        }
    }

    /// The origin took `first_byte_ms` to its first byte: far beyond its least, its queue grows and it complains so.
    pub fn origin_answered(&mut self, now: Millis, first_byte_ms: Millis) {
        self.slots.answered(now, first_byte_ms as f64);
    }

    fn release(&mut self, id: NodeId, piece: u32) {
        let Some(lease) = self.out.remove(&(id, piece)) else { return };
        if !lease.sent {
            self.slots.give_up();
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

    pub(super) fn free_again(&mut self, piece: u32) {
        self.pieces[piece as usize] = Piece::Free;
        self.free.set(piece);
        let dry = std::mem::take(&mut self.dry);
        dry.into_iter().for_each(|id| self.refresh(id));
    }

    pub(super) fn unready(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get(&id) {
            self.ready.remove(&node.turn(id));
        }
    }

    pub(super) fn refresh(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get(&id) else { return };
        let key = node.turn(id);
        let fit = self.connected.contains(&id) && !node.complete && self.may_lease(id, node.role);
        if fit && self.bears(node) && !self.dry.contains(&id) {
            self.ready.insert(key);
        } else {
            self.ready.remove(&key);
        }
    }

    /// Pieces that only `id` was to bring become free again.
    pub(super) fn take_back(&mut self, id: NodeId) {
        let mine: Vec<_> = self.out.range((id, 0)..=(id, u32::MAX)).map(|((_, piece), _)| *piece).collect();
        mine.into_iter().for_each(|piece| self.release(id, piece));
    }

    /// Leases that took too long are given to others.
    pub(super) fn expire_leases(&mut self, now: Millis) {
        let patience = ((self.lease_ms * PATIENCE as f64) as Millis).max(self.patience_ms);
        // In the paper nobody watches over who reads what.
        let watched = self.config.mode != Mode::Paper;
        let late = self.out.iter().filter(|(_, l)| watched && now.saturating_sub(l.since) > patience);
        let late: Vec<_> = late.map(|(key, _)| *key).collect();
        // Large pieces from a slow origin take long: what is taken back before anything ends was not late.
        if !late.is_empty() {
            self.patience_ms = (self.patience_ms * PATIENCE).min(MS_MAX);
        }
        self.slots.turn(now, self.lease_ms);
        late.into_iter().for_each(|(id, piece)| self.forfeit(id, piece));
    }

    fn forfeit(&mut self, id: NodeId, piece: u32) {
        self.nodes.get_mut(&id).into_iter().for_each(|node| node.forfeited = true);
        self.release(id, piece);
    }
}
