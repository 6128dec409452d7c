//! What a peer knows, behind one lock: no waiting, no I/O.

mod store;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

pub use self::store::STORE;
use super::Progress;
use crate::overlay::bits::Bits;
use crate::overlay::layout::{GROUP, Layout};
use crate::overlay::metainfo::{GroupHash, Metainfo};
use crate::overlay::picker::{Picker, SourceId};
use crate::overlay::policy::{Millis, NodeId};
use crate::overlay::wire::{self, Block, Message, Ours};

/// Groups asked of one connection and not here yet, at most.
const WINDOW_MAX: u32 = 32;
/// Answers faster than this ask for more at once, slower than that for less (milliseconds).
const FAST_MS: Millis = 100;
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
    /// Groups the origin leased to us: it hears when they are here.
    leased: BTreeSet<u32>,
    /// Groups of each piece leased to it that it has not acknowledged.
    lease_left: BTreeMap<u32, u32>,
    hashes_sent: BTreeSet<u32>,
    /// Pieces an ordinary client was told of.
    shown: BTreeSet<u32>,
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

impl State {
    pub fn new(meta: &Metainfo, hashes: Vec<Option<Vec<GroupHash>>>, want: Bits, have: Bits, me: NodeId) -> Self {
        let mut hashes: Vec<_> = hashes.into_iter().map(|h| h.map(Arc::new)).collect();
        hashes.resize(meta.layout.chunks() as usize, None);
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
            guests: BTreeSet::new(),
            not_before: BTreeMap::new(),
            blamed: BTreeSet::new(),
            banned: BTreeSet::new(),
            me,
            starving_since: None,
            starving: false,
            counts: Progress::default(),
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
            wake: wake.clone(),
            listen,
            outgoing,
            control: VecDeque::new(),
            uploads: VecDeque::new(),
            log_at: self.log.len(),
            window: 2,
            asked: 0,
            strikes: 0,
            choked: kind == Kind::Ordinary,
            leased: BTreeSet::new(),
            lease_left: BTreeMap::new(),
            hashes_sent: BTreeSet::new(),
            shown: BTreeSet::new(),
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
        conn.control.drain(..).for_each(|message| wire::encode(&message, out));
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
                        wire::encode(&Message::Have(piece), out);
                    }
                }
            }
        }
        Some(conn.uploads.pop_front())
    }

    pub fn flush_haves(&mut self) {
        let end = self.log.len();
        self.conns.values().filter(|c| c.log_at < end).for_each(|c| c.wake.notify_one());
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

    // ---- what comes in ----

    /// Takes in everything but data. Answers pieces whose lease the sender has acknowledged.
    pub fn heard(&mut self, now: Millis, id: SourceId, message: Message, meta: &Metainfo) -> Result<Vec<u32>, Breach> {
        let layout = &meta.layout;
        let Some(kind) = self.conns.get(&id).map(|c| c.kind) else { return Err(Breach("gone")) };
        let mut acknowledged = Vec::new();
        match message {
            Message::Ours(ours) if kind != Kind::Ordinary => acknowledged = self.heard_ours(now, id, ours, meta)?,
            Message::Ours(_) => return Err(Breach("our extension from a stranger")),
            Message::Have(piece) => {
                layout.piece_groups(piece).for_each(|g| self.picker.source_has(id, g));
                let conn = self.conns.get_mut(&id);
                acknowledged.extend(conn.and_then(|c| c.lease_left.remove(&piece)).map(|_| piece));
            }
            Message::Bitfield(bits) => {
                let pieces = Bits::from_wire(layout.pieces(), &bits).ok_or(Breach("bitfield of another length"))?;
                pieces.iter().flat_map(|p| layout.piece_groups(p)).for_each(|g| self.picker.source_has(id, g));
            }
            Message::Choke => self.choked(id),
            Message::Unchoke => self.conns.get_mut(&id).into_iter().for_each(|c| c.choked = false),
            Message::Request(block) => self.wanted(id, block, layout)?,
            Message::Cancel(block) => {
                self.conns.get_mut(&id).into_iter().for_each(|c| c.uploads.retain(|u| *u != Upload::Block(block)));
            }
            Message::Interested
            | Message::NotInterested
            | Message::KeepAlive
            | Message::Hello(_)
            | Message::Ignored => {}
            Message::Piece { .. } => {}
        }
        self.fill(now, id, meta);
        let full = self.conns.get(&id).is_some_and(|c| c.control.len() > CONTROL_MAX);
        if full { Err(Breach("does not read")) } else { Ok(acknowledged) }
    }

    fn heard_ours(&mut self, now: Millis, id: SourceId, ours: Ours, meta: &Metainfo) -> Result<Vec<u32>, Breach> {
        let layout = &meta.layout;
        let mut acknowledged = Vec::new();
        match ours {
            Ours::Have(groups) => {
                for group in groups {
                    self.picker.source_has(id, group);
                    let piece = layout.piece_of(group);
                    if let Some(conn) = self.conns.get_mut(&id)
                        && let Some(left) = conn.lease_left.get_mut(&piece)
                    {
                        *left = left.saturating_sub(1);
                        if *left == 0 {
                            conn.lease_left.remove(&piece);
                            acknowledged.push(piece);
                        }
                    }
                }
            }
            Ours::Bits { first, bits } => {
                let set = bits.iter().enumerate().flat_map(|(at, byte)| {
                    let base = first.saturating_add(at as u32 * 8);
                    (0..8).filter(move |bit| byte & (0x80 >> bit) != 0).map(move |bit| base.saturating_add(bit))
                });
                set.for_each(|group| self.picker.source_has(id, group));
            }
            Ours::HashesWanted { chunk } => {
                if let Some(Some(hashes)) = self.hashes.get(chunk as usize).cloned() {
                    self.send(id, Message::Ours(Ours::Hashes { chunk, hashes: hashes.to_vec() }));
                }
            }
            Ours::Hashes { chunk, hashes } => {
                if self.hashes.get(chunk as usize).is_some_and(Option::is_none) {
                    if !meta.check_hashes(chunk, &hashes) {
                        return Err(Breach("hashes that do not give the chunk's root"));
                    }
                    self.hashes[chunk as usize] = Some(Arc::new(hashes));
                    self.hash_asked.remove(&chunk);
                }
            }
            Ours::Lease { first, count } => {
                if self.conns.get(&id).is_none_or(|c| c.kind != Kind::Origin) {
                    return Err(Breach("a lease from one who is not the origin"));
                }
                let groups = first..first.saturating_add(count).min(layout.groups());
                let held: Vec<_> = groups.clone().filter(|g| self.stored.get(*g)).collect();
                for group in groups {
                    self.picker.ask(now, id, group);
                    if let Some(conn) = self.conns.get_mut(&id) {
                        conn.leased.insert(group);
                    }
                }
                for group in held {
                    self.conns.get_mut(&id).into_iter().for_each(|c| {
                        c.leased.remove(&group);
                    });
                    self.send(id, Message::Ours(Ours::Cancel { group }));
                    self.send(id, Message::Ours(Ours::Have(vec![group])));
                }
            }
            Ours::Request { group } => {
                let held = self.stored.get(group);
                let Some(conn) = self.conns.get_mut(&id) else { return Err(Breach("gone")) };
                if held && conn.uploads.len() < UPLOADS_MAX {
                    conn.uploads.push_back(Upload::Group { group, ends: None });
                    conn.wake.notify_one();
                } else {
                    self.send(id, Message::Ours(Ours::Reject { group }));
                }
            }
            Ours::Cancel { group } => {
                if let Some(conn) = self.conns.get_mut(&id) {
                    conn.uploads.retain(|u| !matches!(u, Upload::Group { group: g, ends: None } if *g == group));
                }
            }
            Ours::Reject { group } => {
                self.picker.failed(id, group);
                self.conns.get_mut(&id).into_iter().for_each(|c| {
                    c.asked = c.asked.saturating_sub(1);
                    c.window = 1;
                });
            }
            Ours::Data { .. } => {}
        }
        Ok(acknowledged)
    }

    fn choked(&mut self, id: SourceId) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.choked = true;
        conn.asked = 0;
        let groups: Vec<_> = std::mem::take(&mut conn.partial).into_keys().collect();
        groups.into_iter().for_each(|group| self.picker.failed(id, group));
    }

    /// An ordinary client asks for a block.
    fn wanted(&mut self, id: SourceId, block: Block, layout: &Layout) -> Result<(), Breach> {
        let bytes = layout.piece_bytes(block.piece);
        let inside = u64::from(block.begin) + u64::from(block.len) <= bytes.end - bytes.start;
        let Some(conn) = self.conns.get_mut(&id) else { return Err(Breach("gone")) };
        if block.len == 0 || block.len > wire::BLOCK_MAX || !inside || !conn.shown.contains(&block.piece) {
            return Err(Breach("a request for what was not offered"));
        }
        // BEP-3 has no refusal: what is too much is left unanswered, and asked again.
        if conn.uploads.len() < UPLOADS_MAX * 8 {
            conn.uploads.push_back(Upload::Block(block));
            conn.wake.notify_one();
        }
        Ok(())
    }

    /// A block of an ordinary client: answers the whole group once its last block is here.
    pub fn block(
        &mut self,
        id: SourceId,
        piece: u32,
        begin: u32,
        data: &[u8],
        layout: &Layout,
    ) -> Option<(u32, Bytes)> {
        let conn = self.conns.get_mut(&id)?;
        let at = layout.piece_bytes(piece).start + u64::from(begin);
        let group = u32::try_from(at / GROUP).ok()?;
        let offset = (at % GROUP) as usize;
        let partial = conn.partial.get_mut(&group)?;
        let blocks = partial.data.len().div_ceil(BLOCK as usize);
        let number = offset / BLOCK as usize;
        let room = partial.data.get_mut(offset..offset + data.len())?;
        let expected = (BLOCK as usize).min(room.len());
        if !offset.is_multiple_of(BLOCK as usize) || data.len() != expected {
            return None;
        }
        room.copy_from_slice(data);
        partial.blocks |= 1 << number;
        (partial.blocks.count_ones() as usize == blocks)
            .then(|| conn.partial.remove(&group))
            .flatten()
            .map(|whole| (group, whole.data.into()))
    }

    /// Hashes to check `group` with, unless it is held already or cannot be checked.
    pub fn hashes_for(&mut self, group: u32, bytes: usize, layout: &Layout) -> Option<Arc<Vec<GroupHash>>> {
        let hashes = self.hashes.get(layout.chunk_of(group) as usize).cloned().flatten();
        let wanted = group < self.picker.have().len() && !self.picker.have().get(group);
        if !wanted || hashes.is_none() {
            self.counts.wasted += bytes as u64;
        }
        hashes.filter(|_| wanted)
    }

    /// A verified group came from `id`; false if another source was faster.
    pub fn arrived(&mut self, now: Millis, id: SourceId, group: u32, bytes: usize, meta: &Metainfo) -> bool {
        let arrival = self.picker.arrived(id, group);
        let mut from_origin = id == STORE;
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.strikes = 0;
            from_origin = conn.kind == Kind::Origin;
            if let Some(asked_at) = arrival.asked_at.filter(|_| !from_origin) {
                let took = now.saturating_sub(asked_at);
                self.latency = if self.latency == 0.0 { took as f64 } else { 0.95 * self.latency + 0.05 * took as f64 };
                conn.asked = conn.asked.saturating_sub(1);
                if took < FAST_MS {
                    conn.window = (conn.window + 1).min(WINDOW_MAX);
                } else if took > SLOW_MS {
                    conn.window = (conn.window - 1).max(1);
                }
            }
        }
        for other in arrival.cancel {
            self.send(other, Message::Ours(Ours::Cancel { group }));
            self.conns.get_mut(&other).into_iter().for_each(|c| c.asked = c.asked.saturating_sub(1));
        }
        let counter = match (arrival.fresh, from_origin) {
            (false, _) => &mut self.counts.wasted,
            (true, true) => &mut self.counts.from_origin,
            (true, false) => &mut self.counts.from_peers,
        };
        *counter += bytes as u64;
        self.fill(now, id, meta);
        arrival.fresh
    }

    /// A group is on disk: from now on others may have it.
    pub fn store(&mut self, group: u32, bytes: usize) {
        if self.stored.set(group) {
            self.counts.bytes_held += bytes as u64;
            self.log.push(group);
        }
    }

    // ---- what to ask for ----

    fn fill(&mut self, now: Millis, id: SourceId, meta: &Metainfo) {
        let patience = ((self.latency * 1.5) as Millis).max(FAST_MS);
        loop {
            let Some(conn) = self.conns.get_mut(&id) else { return };
            if conn.choked || conn.kind == Kind::Origin || conn.asked >= conn.window || self.failed.is_some() {
                return;
            }
            let (hashes, asked) = (&self.hashes, &self.hash_asked);
            let layout = &meta.layout;
            let ordinary = conn.kind == Kind::Ordinary;
            let allowed = |group: u32| {
                let chunk = layout.chunk_of(group);
                let known = hashes.get(chunk as usize).is_some_and(Option::is_some);
                known
                    || (!ordinary
                        && asked.get(&chunk).is_none_or(|(by, at)| *by == id || now.saturating_sub(*at) > 1000))
            };
            let Some(group) = self.picker.pick(now, id, patience, allowed) else { return };
            conn.asked += 1;
            let chunk = layout.chunk_of(group);
            if hashes.get(chunk as usize).is_some_and(Option::is_none)
                && self.hash_asked.get(&chunk).is_none_or(|(by, _)| *by != id)
            {
                self.hash_asked.insert(chunk, (id, now));
                conn.control.push_back(Message::Ours(Ours::HashesWanted { chunk }));
            }
            if ordinary {
                let bytes = layout.group_bytes(group);
                let len = (bytes.end - bytes.start) as u32;
                let piece = layout.piece_of(group);
                let base = (bytes.start - layout.piece_bytes(piece).start) as u32;
                conn.partial.insert(group, Partial { data: vec![0; len as usize], blocks: 0 });
                conn.control.extend(
                    (0..len)
                        .step_by(BLOCK as usize)
                        .map(|at| Message::Request(Block { piece, begin: base + at, len: BLOCK.min(len - at) })),
                );
            } else {
                conn.control.push_back(Message::Ours(Ours::Request { group }));
            }
            conn.wake.notify_one();
        }
    }

    pub fn fill_all(&mut self, now: Millis, meta: &Metainfo) {
        let ids: Vec<_> = self.conns.keys().copied().collect();
        ids.into_iter().for_each(|id| self.fill(now, id, meta));
    }

    /// Late answers are asked of others; who is late again and again is let go.
    pub fn expire(&mut self, now: Millis) {
        let patience = ((self.latency * 6.0) as Millis).max(2000);
        for (id, group) in self.picker.expire(now, patience) {
            let Some(conn) = self.conns.get_mut(&id) else { continue };
            conn.asked = conn.asked.saturating_sub(1);
            conn.window = 1;
            conn.partial.remove(&group);
            if conn.kind == Kind::Origin {
                continue;
            }
            conn.strikes += 1;
            if conn.kind == Kind::Ours {
                conn.control.push_back(Message::Ours(Ours::Cancel { group }));
                conn.wake.notify_one();
            }
            if conn.strikes >= STRIKES {
                let listen = conn.listen;
                self.drop_conn(id);
                self.not_before.insert(listen, now + 4 * REDIAL_MS);
            }
        }
        let idle = self.picker.lacking() > 0 && self.conns.values().all(|c| c.asked == 0);
        self.starving_since = idle.then(|| self.starving_since.unwrap_or(now));
        self.starving = self.starving_since.is_some_and(|since| now.saturating_sub(since) > 1000);
    }

    // ---- what can be seen ----

    pub fn is_stored(&self) -> bool {
        self.stored.count() == self.picker.wanted()
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

    pub fn progress(&self, meta: &Metainfo) -> Progress {
        let held = u64::from(self.stored.count()) * GROUP;
        Progress {
            groups: self.picker.wanted(),
            groups_held: self.stored.count(),
            bytes_held: held.min(meta.layout.total()),
            connections: self.conns.len(),
            blamed: self.blamed.iter().copied().collect(),
            starving: self.starving,
            done: self.done.clone(),
            failed: self.failed.clone(),
            ..self.counts.clone()
        }
    }
}
