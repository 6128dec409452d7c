//! Pieces on their way: who asks whom, and what an arrival sets going.

use storage::overlay::policy::NodeId;

use super::{Event, World};
use crate::simulate::load::Control;
use crate::simulate::rates::FlowId;

/// Pieces that the seed of a swarm without a controller sends at once.
const PLAIN_SEED_SLOTS: usize = 8;
/// The picker's name for the origin, and the place of its flows' sender.
pub(super) const ORIGIN: u32 = u32::MAX;

/// A piece (global number) on its way.
#[derive(Clone, Copy)]
pub(super) struct Transfer {
    pub from: u32,
    pub to: u32,
    pub piece: u32,
    since: f64,
}

impl World<'_> {
    pub(super) fn fetch_all(&mut self) {
        (0..self.load.nodes).for_each(|node| self.fetch(node));
    }

    /// Fills the free download slots of a node from neighbours with free upload slots.
    pub(super) fn fetch(&mut self, id: u32) {
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

    pub(super) fn start(&mut self, from: u32, to: u32, piece: u32) {
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

    pub(super) fn let_go(&mut self, flow: FlowId) -> Transfer {
        let transfer = self.transfers[flow as usize];
        self.nodes[transfer.to as usize].taking.retain(|(f, _)| *f != flow);
        match self.nodes.get_mut(transfer.from as usize) {
            Some(sender) => sender.sending.retain(|f| *f != flow),
            None => self.crowd(-1),
        }
        transfer
    }

    pub(super) fn arrived(&mut self, transfer: Transfer) {
        let Transfer { from, to, piece, since } = transfer;
        let now = self.millis();
        let node = &mut self.nodes[to as usize];
        let Some(local) = node.local(piece) else { return };
        let arrival = node.picker.arrived(u64::from(from), local);
        if !arrival.fresh {
            // From two sources at the same moment; the lease must end, or the node would never bear another.
            if from == ORIGIN {
                self.policy.lease_done(now, NodeId::from(to), piece);
            }
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

    pub(super) fn tell(&mut self, id: u32, piece: u32) {
        self.tell_only(id, piece);
        self.offer(id);
    }

    /// Slots at both ends of a transfer that ended are filled again.
    pub(super) fn go_on(&mut self, Transfer { from, to, .. }: Transfer) {
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
}
