//! What a peer knows, behind one lock: no waiting, no I/O.

mod ask;
mod heard;
mod store;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

use self::ask::Pace;
pub use self::ask::groups_ahead;
pub use self::store::STORE;
use super::Progress;
use super::part::to_part;
use crate::overlay::bits::Bits;
use crate::overlay::layout::Layout;
use crate::overlay::metainfo::{GroupHash, Metainfo};
use crate::overlay::picker::{Picker, SourceId};
use crate::overlay::policy::{Millis, NodeId};
use crate::overlay::wire::{self, Block, Message, Ours};

/// Groups asked of one connection and not here yet, at most.
const WINDOW_MAX: u32 = 32;
/// However slow the answers, so many groups are asked of all neighbours together, and one of each: who has few neighbours would else be served
/// less often than the others, and end long after them. What is asked beyond that waits with them, and comes late to all.
const ASKED_MIN: u32 = 8;
/// A neighbour whose answers take longer is asked for less at once (milliseconds).
const SLOW_MS: Millis = 350;
/// Requests of one peer that wait for an upload slot; more are rejected.
const UPLOADS_MAX: usize = 64;
/// Unsent control messages; a peer that causes more does not read and is dropped.
const CONTROL_MAX: usize = 4096;
/// Late answers in a row after which a peer is let go.
const STRIKES: u32 = 4;
/// What ordinary clients ask for and are asked for.
const BLOCK: u32 = 16 << 10;
/// Groups of one HAVE message.
const HAVES_MAX: usize = 16_384;
/// Bytes of bits in one message.
const BITS_MAX: usize = 128 << 10;
const REDIAL_MS: Millis = 2000;
/// A neighbour that the controller has not named for so long is asked for nothing more: by then the other side has heard of it too.
const UNNAMED_MS: Millis = 3000;
/// Neighbours that hear of new groups in one tick; of more, all in every second tick, and so on.
const LINKS_PER_TICK: usize = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ours,
    Origin,
    Ordinary,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upload {
    /// `ends`: the piece whose lease is sent with this group.
    Group {
        group: u32,
        ends: Option<u32>,
    },
    Block(Block),
}

pub enum Leased {
    Pushed,
    Shown,
    Gone,
}

pub struct Conn {
    pub node: NodeId,
    pub kind: Kind,
    /// Those of its torrent.
    pub pieces: Range<u32>,
    pub wake: Arc<Notify>,
    /// Where it listens, as far as known.
    listen: SocketAddr,
    outgoing: bool,
    control: VecDeque<Message>,
    uploads: VecDeque<Upload>,
    log_at: usize,
    window: u32,
    asked: u32,
    strikes: u32,
    choked: bool,
    /// Since when the controller no longer names it as a neighbour.
    unnamed: Option<Millis>,
    /// Groups the origin leased to us: it hears when they are here.
    leased: BTreeSet<u32>,
    /// Groups of each piece leased to it that it has not acknowledged.
    lease_left: BTreeMap<u32, u32>,
    hashes_sent: BTreeSet<u32>,
    /// Chunks whose hashes it asked for.
    hashes_due: BTreeSet<u32>,
    /// Pieces an ordinary client was told of.
    shown: BTreeSet<u32>,
    /// We are the origin: it is given what was leased to it, and nothing that it asks for.
    leases_only: bool,
    partial: BTreeMap<u32, Partial>,
}

struct Partial {
    data: Vec<u8>,
    blocks: u32,
}

pub struct State {
    picker: Picker,
    pub stored: Bits,
    hashes: Vec<Option<Arc<Vec<GroupHash>>>>,
    hash_asked: BTreeMap<u32, (SourceId, Millis)>,
    log: Vec<u32>,
    pub conns: BTreeMap<SourceId, Conn>,
    nodes: BTreeMap<NodeId, SourceId>,
    next: SourceId,
    latency: f64,
    pace: Pace,
    pub guests: BTreeSet<IpAddr>,
    not_before: BTreeMap<SocketAddr, Millis>,
    blamed: BTreeSet<SocketAddr>,
    banned: BTreeSet<NodeId>,
    me: NodeId,
    starving_since: Option<Millis>,
    starving: bool,
    counts: Progress,
    pub done: Option<PathBuf>,
    failed: Option<String>,
}

/// The connection broke the protocol, or lied.
#[derive(Debug, PartialEq, Eq)]
pub struct Breach(pub &'static str);

impl Conn {
    fn is_over(&self, now: Millis) -> bool {
        self.unnamed.is_some_and(|since| now.saturating_sub(since) >= UNNAMED_MS)
    }
}

impl State {
    pub fn new(meta: &Metainfo, hashes: Vec<Option<Vec<GroupHash>>>, want: Bits, have: Bits, me: NodeId) -> Self {
        let mut hashes: Vec<_> = hashes.into_iter().map(|h| h.map(Arc::new)).collect();
        hashes.resize(meta.layout.chunks() as usize, None);
        let bytes = |groups: &Bits| groups.iter().map(|g| meta.layout.group_bytes(g)).map(|r| r.end - r.start).sum();
        let counts = Progress { bytes_wanted: bytes(&want), bytes_held: bytes(&have), ..Progress::default() };
        Self {
            picker: Picker::new(want, have.clone(), me),
            stored: have,
            hashes,
            hash_asked: BTreeMap::new(),
            log: Vec::new(),
            conns: BTreeMap::new(),
            nodes: BTreeMap::new(),
            next: 0,
            latency: 0.0,
            pace: Pace::default(),
            guests: BTreeSet::new(),
            not_before: BTreeMap::new(),
            blamed: BTreeSet::new(),
            banned: BTreeSet::new(),
            me,
            starving_since: None,
            starving: false,
            counts,
            done: None,
            failed: None,
        }
    }

    // ---- connections ----

    pub fn may_dial(&mut self, now: Millis, address: SocketAddr) -> bool {
        let known = |c: &Conn| c.listen == address || (c.kind == Kind::Ordinary && c.listen.ip() == address.ip());
        let free = !self.conns.values().any(known) && self.not_before.get(&address).is_none_or(|t| *t <= now);
        if free {
            self.not_before.insert(address, now + REDIAL_MS);
        }
        free && !self.blamed.contains(&address)
    }

    /// The controller's list of neighbours. Who is no longer on it is let go once nothing is on its way, by the side that dialled: links that stay would
    /// make of a graph that is re-dealt again and again one in which everybody is linked with everybody.
    pub fn named(&mut self, now: Millis, peers: &[SocketAddr]) {
        // A controller that was just started knows nobody yet.
        if peers.is_empty() {
            return;
        }
        for conn in self.conns.values_mut().filter(|conn| conn.kind == Kind::Ours) {
            conn.unnamed = if peers.contains(&conn.listen) { None } else { conn.unnamed.or(Some(now)) };
        }
        let over = |c: &Conn| c.is_over(now) && c.outgoing && c.asked == 0 && c.uploads.is_empty();
        let over: Vec<_> = self.conns.iter().filter(|(_, conn)| over(conn)).map(|(id, _)| *id).collect();
        over.into_iter().for_each(|id| drop(self.drop_conn(id)));
    }

    pub fn dial_failed(&mut self, now: Millis, address: SocketAddr) {
        self.not_before.insert(address, now + REDIAL_MS);
    }

    /// Takes in a connection whose handshake is done; of two with the same node, the one that the lower node dialled stays.
    pub fn register(
        &mut self,
        meta: &Metainfo,
        node: NodeId,
        kind: Kind,
        listen: SocketAddr,
        outgoing: bool,
        giver: bool,
    ) -> Option<(SourceId, Arc<Notify>)> {
        if node == self.me || self.banned.contains(&node) {
            return None;
        }
        if let Some(old) = self.nodes.get(&node).copied() {
            let dialled_by_lower = |out: bool| out == (self.me < node);
            let keep_old = self.conns.get(&old).is_some_and(|c| c.outgoing == outgoing || dialled_by_lower(c.outgoing));
            if keep_old && kind != Kind::Ordinary {
                return None;
            }
            self.drop_conn(old);
        }
        let id = self.next;
        self.next += 1;
        let wake = Arc::new(Notify::new());
        let mut conn = Conn {
            node,
            kind,
            pieces: 0..meta.layout.pieces(),
            wake: wake.clone(),
            listen,
            outgoing,
            control: VecDeque::new(),
            uploads: VecDeque::new(),
            log_at: self.log.len(),
            window: 1,
            asked: 0,
            strikes: 0,
            choked: kind == Kind::Ordinary,
            unnamed: None,
            leased: BTreeSet::new(),
            lease_left: BTreeMap::new(),
            hashes_sent: BTreeSet::new(),
            hashes_due: BTreeSet::new(),
            shown: BTreeSet::new(),
            leases_only: giver,
            partial: BTreeMap::new(),
        };
        let show = !giver && kind != Kind::Origin && !self.stored.is_empty();
        match kind {
            Kind::Ordinary => {
                let pieces = if show { self.pieces(&meta.layout) } else { Bits::new(meta.layout.pieces()) };
                conn.shown.extend(pieces.iter());
                conn.control.push_back(Message::Bitfield(pieces.to_wire().into()));
                conn.control.extend([Message::Unchoke, Message::Interested]);
            }
            _ if show => {
                let bits = Bytes::from(self.stored.to_wire());
                for start in (0..bits.len()).step_by(BITS_MAX) {
                    let part = bits.slice(start..bits.len().min(start + BITS_MAX));
                    conn.control.push_back(Message::Ours(Ours::Bits { first: start as u32 * 8, bits: part }));
                }
            }
            _ => {}
        }
        self.picker.source(id);
        self.conns.insert(id, conn);
        self.nodes.insert(node, id);
        Some((id, wake))
    }

    pub fn drop_conn(&mut self, id: SourceId) -> Option<Conn> {
        let conn = self.conns.remove(&id)?;
        if self.nodes.get(&conn.node) == Some(&id) {
            self.nodes.remove(&conn.node);
        }
        self.picker.source_gone(id);
        self.hash_asked.retain(|_, (source, _)| *source != id);
        conn.wake.notify_one();
        Some(conn)
    }

    /// The sender of a bad group is let go for good.
    pub fn blame(&mut self, id: SourceId, bytes: usize) {
        self.counts.wasted += bytes as u64;
        if let Some(conn) = self.drop_conn(id) {
            self.blamed.insert(conn.listen);
            self.banned.insert(conn.node);
        }
    }

    fn send(&mut self, id: SourceId, message: Message) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.control.push_back(message);
            conn.wake.notify_one();
        }
    }

    // ---- what goes out ----

    /// Appends what is to be said to `out` and answers what is to be uploaded next; `None` when the connection has ended.
    pub fn output(&mut self, id: SourceId, layout: &Layout, out: &mut BytesMut) -> Option<Option<Upload>> {
        let conn = self.conns.get_mut(&id)?;
        for message in conn.control.drain(..) {
            debug_assert!(conn.kind != Kind::Ordinary || !matches!(message, Message::Ours(_)), "{message:?}");
            to_part(&conn.pieces, layout, message).iter().for_each(|message| wire::encode(message, out));
        }
        if let Some(chunk) = conn.hashes_due.pop_first()
            && let Some(Some(hashes)) = self.hashes.get(chunk as usize)
        {
            wire::encode(&Message::Ours(Ours::Hashes { chunk, hashes: hashes.to_vec() }), out);
        }
        let fresh = &self.log[conn.log_at..];
        conn.log_at = self.log.len();
        match conn.kind {
            Kind::Ours => fresh.chunks(HAVES_MAX).for_each(|groups| {
                wire::encode(&Message::Ours(Ours::Have(groups.to_vec())), out);
            }),
            Kind::Origin => {
                let mine: Vec<_> = fresh.iter().filter(|g| conn.leased.remove(g)).copied().collect();
                if !mine.is_empty() {
                    wire::encode(&Message::Ours(Ours::Have(mine)), out);
                }
            }
            Kind::Ordinary => {
                for piece in fresh.iter().map(|g| layout.piece_of(*g)) {
                    if layout.piece_groups(piece).all(|g| self.stored.get(g)) && conn.shown.insert(piece) {
                        to_part(&conn.pieces, layout, Message::Have(piece))
                            .iter()
                            .for_each(|have| wire::encode(have, out));
                    }
                }
            }
        }
        Some(conn.uploads.pop_front())
    }

    /// Tells what came since the last time. Each neighbour hears of it with whatever is sent to it anyway; a packet of its own
    /// goes out the less often the more neighbours there are, so that news cost a peer the same wherever it stands.
    pub fn flush_haves(&mut self, tick: u32) {
        let turns = self.conns.len().div_ceil(LINKS_PER_TICK).max(1) as u32;
        let end = self.log.len();
        for (id, conn) in self.conns.iter().filter(|(_, c)| c.log_at < end) {
            if conn.kind == Kind::Origin || tick.wrapping_add(*id as u32).is_multiple_of(turns) {
                conn.wake.notify_one();
            }
        }
    }

    /// Nothing is being asked of this peer: what it has just got is news that cannot wait.
    fn is_idle(&self) -> bool {
        self.conns.values().all(|c| c.uploads.is_empty())
    }

    pub fn given(&mut self, bytes: usize) {
        self.counts.given += bytes as u64;
    }

    /// The origin sends a piece to a node, unasked.
    pub fn lease(&mut self, meta: &Metainfo, node: NodeId, piece: u32) -> Leased {
        let Some(id) = self.nodes.get(&node).copied() else { return Leased::Gone };
        let groups = meta.layout.piece_groups(piece);
        let chunk = meta.layout.chunk_of(groups.start);
        let hashes = self.hashes.get(chunk as usize).cloned().flatten();
        let Some(conn) = self.conns.get_mut(&id) else { return Leased::Gone };
        conn.wake.notify_one();
        if conn.kind == Kind::Ordinary {
            if conn.shown.insert(piece) {
                conn.control.push_back(Message::Have(piece));
            }
            conn.lease_left.insert(piece, 1);
            return Leased::Shown;
        }
        if let Some(hashes) = hashes.filter(|_| conn.hashes_sent.insert(chunk)) {
            conn.control.push_back(Message::Ours(Ours::Hashes { chunk, hashes: hashes.to_vec() }));
        }
        let count = groups.len() as u32;
        conn.control.push_back(Message::Ours(Ours::Lease { first: groups.start, count }));
        conn.lease_left.insert(piece, count);
        let last = groups.end - 1;
        conn.uploads.extend(groups.map(|group| Upload::Group { group, ends: (group == last).then_some(piece) }));
        Leased::Pushed
    }

    // ---- what can be seen ----

    pub fn is_stored(&self) -> bool {
        self.stored.count() == self.picker.wanted()
    }

    pub fn hashes(&self, chunk: u32) -> Option<Vec<GroupHash>> {
        self.hashes.get(chunk as usize)?.as_deref().cloned()
    }

    pub fn fail(&mut self, why: String) {
        self.failed.get_or_insert(why);
    }

    pub fn pieces(&self, layout: &Layout) -> Bits {
        let mut pieces = Bits::new(layout.pieces());
        for piece in 0..layout.pieces() {
            if layout.piece_groups(piece).all(|g| self.stored.get(g)) {
                pieces.set(piece);
            }
        }
        pieces
    }

    pub fn progress(&self) -> Progress {
        Progress {
            groups: self.picker.wanted(),
            groups_held: self.stored.count(),
            connections: self.conns.len(),
            blamed: self.blamed.iter().copied().collect(),
            starving: self.starving,
            done: self.done.clone(),
            failed: self.failed.clone(),
            ..self.counts.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::overlay::metainfo::{File, Maker};

    fn meta(len: usize) -> Metainfo {
        let mut maker = Maker::new(Layout::for_total(len as u64).unwrap());
        maker.update(&vec![7; len]);
        maker.finish("set", vec![File { path: vec![], len: len as u64 }], "t").unwrap().0
    }

    /// A peer of `links` neighbours that holds nothing yet.
    fn peer(links: u64, meta: &Metainfo) -> (State, Vec<(SourceId, Arc<Notify>)>) {
        let groups = meta.layout.groups();
        let mut state = State::new(meta, vec![], Bits::full(groups), Bits::new(groups), 0);
        let listen = |node: u64| SocketAddr::from(([127, 0, 0, 1], node as u16));
        let conns = (1..=links).map(|node| state.register(meta, node, Kind::Ours, listen(node), true, false).unwrap());
        let conns = conns.collect();
        (state, conns)
    }

    /// The same, whose neighbours hold all and are asked.
    fn peer_of_seeders(links: u64, meta: &Metainfo) -> (State, Vec<(SourceId, Arc<Notify>)>) {
        let (mut state, conns) = peer(links, meta);
        for (id, _) in &conns {
            (0..meta.layout.groups()).for_each(|g| state.picker.source_has(*id, g));
            state.fill(0, *id, meta);
        }
        (state, conns)
    }

    #[test]
    fn what_is_not_wanted_is_not_taken_however_right_it_is() {
        let meta = meta(3 << 20);
        let (mut want, groups) = (Bits::new(meta.layout.groups()), meta.layout.groups());
        want.set_range(0..groups / 2);
        let hashes = vec![Some(vec![]); meta.layout.chunks() as usize];
        let mut state = State::new(&meta, hashes, want, Bits::new(groups), 0);
        assert!(state.hashes_for(0, 1, &meta.layout).is_some());
        assert!(state.hashes_for(groups / 2, 1, &meta.layout).is_none());
        assert!(state.hashes_for(u32::MAX, 1, &meta.layout).is_none());
        assert_eq!(state.counts.wasted, 2);
    }

    #[test]
    fn bytes_wanted_and_held_are_told_exactly_also_where_the_last_group_is_short() {
        let meta = meta((1 << 20) + 5);
        let groups = meta.layout.groups();
        let (mut want, mut have) = (Bits::new(groups), Bits::new(groups));
        want.set_range(groups - 2..groups);
        have.set(groups - 1);
        let mut state = State::new(&meta, vec![], want, have, 0);
        let group = meta.layout.group_len_max();
        assert_eq!((state.progress().bytes_wanted, state.progress().bytes_held), (group + 5, 5));
        state.store([(groups - 2, group as usize)].into_iter());
        assert_eq!(state.progress().bytes_held, group + 5);
    }

    #[test]
    fn a_lease_is_acknowledged_also_by_a_bitfield() {
        let meta = meta(3 << 20);
        let pieces = meta.layout.pieces();
        let mut state =
            State::new(&meta, vec![], Bits::full(meta.layout.groups()), Bits::full(meta.layout.groups()), 0);
        let listen = SocketAddr::from(([127, 0, 0, 1], 9));
        let (guest, _) = state.register(&meta, 9, Kind::Ordinary, listen, false, true).unwrap();
        for piece in 1..4 {
            state.lease(&meta, 9, piece);
        }
        let mut held = Bits::new(pieces);
        held.set_range(0..3);
        let told = Message::Bitfield(held.to_wire().into());
        assert_eq!(state.heard(0, guest, told, &meta), Ok(vec![1, 2]));
        assert_eq!(state.heard(0, guest, Message::Have(3), &meta), Ok(vec![3]));
    }

    #[test]
    fn an_origin_gives_what_it_leased_and_hashes_once_however_often_they_are_asked_for() {
        let meta = meta(3 << 20);
        let groups = meta.layout.groups();
        let hashes = vec![Some(vec![[7; 32]; 4]); meta.layout.chunks() as usize];
        let mut state = State::new(&meta, hashes, Bits::full(groups), Bits::full(groups), 0);
        let listen = SocketAddr::from(([127, 0, 0, 1], 1));
        let (id, _) = state.register(&meta, 1, Kind::Ours, listen, false, true).unwrap();
        state.heard(0, id, Message::Ours(Ours::Request { group: 3 }), &meta).unwrap();
        for _ in 0..CONTROL_MAX * 2 {
            state.heard(0, id, Message::Ours(Ours::HashesWanted { chunk: 0 }), &meta).unwrap();
        }
        let mut out = BytesMut::new();
        assert_eq!(state.output(id, &meta.layout, &mut out), Some(None));
        let said: Vec<_> = std::iter::from_fn(|| wire::decode(&mut out).unwrap()).collect();
        let answers = [Ours::Reject { group: 3 }, Ours::Hashes { chunk: 0, hashes: vec![[7; 32]; 4] }];
        assert_eq!(said, answers.map(Message::Ours));
        state.lease(&meta, 1, 0);
        assert!(matches!(state.output(id, &meta.layout, &mut out), Some(Some(_))));
    }

    #[test]
    fn packets_of_news_of_a_busy_peer_do_not_grow_with_the_neighbours_and_each_hears_in_turn() {
        let meta = meta(3 << 20);
        let packets = |links| {
            let (mut state, conns) = peer(links, &meta);
            let mut heard = vec![0; conns.len()];
            for tick in 0..40 {
                // Busy: somebody waits for an upload.
                let first = state.conns.values_mut().next().unwrap();
                first.uploads.push_back(Upload::Group { group: 0, ends: None });
                state.store([(tick, 1)].into_iter());
                state.flush_haves(tick);
                for ((id, wake), heard) in conns.iter().zip(&mut heard) {
                    if wake.notified().now_or_never().is_some() {
                        let mut out = BytesMut::new();
                        state.output(*id, &meta.layout, &mut out).unwrap();
                        *heard += usize::from(!out.is_empty());
                    }
                }
            }
            assert!(heard.iter().all(|n| *n > 0), "{heard:?}");
            heard.into_iter().sum::<usize>()
        };
        assert_eq!((packets(1), packets(10), packets(40)), (40, 400, 400));
    }

    #[test]
    fn news_of_an_idle_peer_do_not_wait() {
        let meta = meta(1 << 20);
        let (mut state, conns) = peer(40, &meta);
        state.store([(0, 1)].into_iter());
        assert!(conns.iter().all(|(_, wake)| wake.notified().now_or_never().is_some()));
    }

    #[test]
    fn neighbours_that_answer_late_are_asked_for_as_much_together_however_few_they_are() {
        let meta = meta(64 << 20);
        for (links, each) in [(1, 8), (4, 2), (8, 1), (50, 1)] {
            let (mut state, conns) = peer(links, &meta);
            let id = conns[0].0;
            (0..meta.layout.groups()).for_each(|g| state.picker.source_has(id, g));
            state.fill(0, id, &meta);
            for now in (1..100).map(|n| n * 2 * SLOW_MS) {
                let asked = (0..meta.layout.groups()).find(|g| state.picker.expects(id, *g)).unwrap();
                state.arrived(now, id, asked, 1, &meta);
            }
            assert_eq!(state.conns[&id].window, each, "{links} neighbours");
        }
    }

    #[test]
    fn so_much_is_asked_of_all_together_as_comes_in_a_tenth_of_a_second() {
        let meta = meta(64 << 20);
        let (mut state, conns) = peer_of_seeders(4, &meta);
        let asked = |state: &State| state.conns.values().map(|conn| conn.asked).collect::<Vec<_>>();
        assert_eq!(asked(&state), [1; 4]);
        // A group every 2 ms.
        for now in (2..=500).step_by(2) {
            let id = conns[now / 2 % 4].0;
            let group = (0..meta.layout.groups()).find(|g| state.picker.expects(id, *g)).unwrap();
            state.arrived(now as Millis, id, group, 65_536, &meta);
        }
        let most = asked(&state).iter().sum::<u32>();
        // Half as much again, as the neighbours hold all.
        assert!((68..=82).contains(&most), "{:?}", asked(&state));
    }

    #[test]
    fn neighbours_all_of_whom_are_far_are_asked_for_more_and_more() {
        let meta = meta(64 << 20);
        let (mut state, conns) = peer_of_seeders(4, &meta);
        let expected = |state: &State| {
            let of = |id: SourceId| {
                (0..meta.layout.groups()).filter(move |g| state.picker.expects(id, *g)).map(move |g| (id, g))
            };
            conns.iter().flat_map(|(id, _)| of(*id)).collect::<Vec<_>>()
        };
        for round in 1..=20 {
            for (id, group) in expected(&state) {
                state.arrived(150 * round, id, group, 65_536, &meta);
            }
        }
        assert!(expected(&state).len() >= 32, "{}", expected(&state).len());
    }

    #[test]
    fn who_holds_less_than_most_of_its_neighbours_asks_for_half_as_much_again() {
        let meta = meta(64 << 20);
        let (mut state, conns) = peer(4, &meta);
        let id = conns[0].0;
        for group in 0..10 {
            state.picker.source_has(id, group);
            state.picker.ask(0, id, group);
            state.picker.arrived(id, group);
        }
        let mut now = 0;
        let mut most = |held: [u32; 4]| {
            for ((id, _), held) in conns.iter().zip(held) {
                (state.picker.source_count(*id)..held).for_each(|g| state.picker.source_has(*id, g));
            }
            now += 250;
            state.paced(now, 20 * 65_536 * 250 / 100, &meta.layout);
            (state.pace.asked_most, *state.windows().end())
        };
        assert_eq!(most([0, 0, 10, 10]), (20, 5));
        // Half of them are not most of them, however far ahead.
        assert_eq!(most([0, 0, 900, 900]), (20, 5));
        assert_eq!(most([0, 11, 900, 900]), (30, 8));
    }

    #[test]
    fn a_neighbour_no_longer_named_is_asked_for_nothing_and_let_go_when_nothing_is_on_its_way() {
        let meta = meta(8 << 20);
        let (mut state, conns) = peer(2, &meta);
        let (kept, let_go) = (conns[0].0, conns[1].0);
        (0..meta.layout.groups()).for_each(|g| state.picker.source_has(let_go, g));
        state.fill(0, let_go, &meta);
        let asked = (0..meta.layout.groups()).filter(|g| state.picker.expects(let_go, *g)).collect::<Vec<_>>();
        let named = [state.conns[&kept].listen];
        for now in [0, UNNAMED_MS - 1, UNNAMED_MS] {
            state.named(now, &named);
            state.named(now, &[]); // says nothing
        }
        for group in asked {
            assert!(state.conns.contains_key(&let_go));
            state.arrived(UNNAMED_MS, let_go, group, 1, &meta);
            state.named(UNNAMED_MS, &named);
        }
        assert_eq!(state.conns.keys().collect::<Vec<_>>(), [&kept]);
        // Named again in time, it stays.
        state.named(2 * UNNAMED_MS, &[SocketAddr::from(([127, 0, 0, 9], 9))]);
        state.named(3 * UNNAMED_MS - 1, &named);
        state.named(4 * UNNAMED_MS, &named);
        assert!(state.conns.contains_key(&kept));
    }

    #[test]
    fn an_ordinary_client_is_told_in_its_own_words_what_need_not_come_any_more() {
        let meta = meta(64 << 20);
        let (mut state, conns) = peer_of_seeders(1, &meta);
        state.hashes.fill(Some(Arc::new(vec![])));
        let listen = SocketAddr::from(([127, 0, 0, 9], 9));
        let (guest, _) = state.register(&meta, 9, Kind::Ordinary, listen, false, false).unwrap();
        (0..meta.layout.groups()).for_each(|g| state.picker.source_has(guest, g));
        let said = |state: &mut State| {
            let mut out = BytesMut::new();
            state.output(guest, &meta.layout, &mut out).unwrap();
            std::iter::from_fn(|| wire::decode(&mut out).unwrap()).collect::<Vec<_>>()
        };
        let request = |message| if let Message::Request(block) = message { Some(block) } else { None };
        let blocks = |state: &mut State| said(state).into_iter().filter_map(request).collect::<Vec<_>>();
        state.heard(0, guest, Message::Unchoke, &meta).unwrap();
        let [first, rest @ ..] = &blocks(&mut state)[..] else { panic!("nothing is asked") };
        let group = (0..meta.layout.groups()).find(|g| state.picker.expects(guest, *g)).unwrap();
        assert_eq!(state.block(guest, first.piece, first.begin, &[7; BLOCK as usize], &meta.layout), None);
        // The group comes from another.
        assert!(state.picker.ask(0, conns[0].0, group) && state.arrived(1, conns[0].0, group, 1, &meta));
        assert_eq!(said(&mut state), rest.iter().copied().map(Message::Cancel).collect::<Vec<_>>());
        // The next is late.
        state.fill(1, guest, &meta);
        let late = blocks(&mut state);
        state.expire(3_000, &meta.layout);
        assert_eq!((late.len(), said(&mut state)), (4, late.into_iter().map(Message::Cancel).collect()));
    }

    #[test]
    fn hashes_of_what_only_an_ordinary_client_holds_are_asked_of_the_origin_when_nothing_else_is_left() {
        let meta = meta(64 << 20);
        let (mut state, conns) = peer(1, &meta);
        let listen = |node: u16| SocketAddr::from(([127, 0, 0, 9], node));
        let (origin, _) = state.register(&meta, 8, Kind::Origin, listen(8), true, false).unwrap();
        let (guest, _) = state.register(&meta, 9, Kind::Ordinary, listen(9), false, false).unwrap();
        let last = meta.layout.chunks() - 1;
        let of_last = |g: &u32| meta.layout.chunk_of(*g) == last;
        (0..meta.layout.groups()).filter(of_last).for_each(|g| state.picker.source_has(guest, g));
        let wanted = |state: &State| {
            state.conns[&origin]
                .control
                .iter()
                .filter(|m| matches!(m, Message::Ours(Ours::HashesWanted { chunk }) if *chunk == last))
                .count()
        };
        // Something is on its way from a neighbour.
        state.picker.source_has(conns[0].0, 0);
        state.fill(0, conns[0].0, &meta);
        state.heard(0, guest, Message::Unchoke, &meta).unwrap();
        assert_eq!((wanted(&state), state.conns[&conns[0].0].asked), (0, 1));
        state.arrived(1, conns[0].0, 0, 1, &meta);
        for now in [2, 3, 1_002] {
            state.fill(now, guest, &meta);
        }
        assert_eq!((wanted(&state), state.conns[&guest].asked), (1, 0));
        state.fill(1_003, guest, &meta);
        assert_eq!(wanted(&state), 2, "asked again after a second without an answer");
        state.hashes[last as usize] = Some(Arc::new(vec![]));
        state.fill(1_004, guest, &meta);
        assert_eq!((wanted(&state), state.conns[&guest].asked), (2, 1));
    }

    #[test]
    fn a_large_window_is_filled_by_quarters() {
        let meta = meta(8 << 20);
        let (mut state, conns) = peer(1, &meta);
        let id = conns[0].0;
        (0..meta.layout.groups()).for_each(|g| state.picker.source_has(id, g));
        state.conns.get_mut(&id).unwrap().window = 16;
        state.pace.asked_most = 16;
        state.fill(0, id, &meta);
        assert_eq!(state.conns[&id].asked, 16);
        let asked = |state: &mut State, done: u32| {
            state.conns.get_mut(&id).unwrap().asked -= done;
            state.fill(0, id, &meta);
            state.conns[&id].asked
        };
        assert_eq!((asked(&mut state, 3), asked(&mut state, 1)), (13, 16));
    }
}
