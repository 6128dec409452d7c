//! What comes in over a connection, and what follows from it.

use std::sync::Arc;

use bytes::Bytes;

use super::{BLOCK, Breach, CONTROL_MAX, Kind, SLOW_MS, STORE, State, UPLOADS_MAX, Upload};
use crate::overlay::bits::Bits;
use crate::overlay::layout::Layout;
use crate::overlay::metainfo::{GroupHash, Metainfo};
use crate::overlay::picker::SourceId;
use crate::overlay::policy::Millis;
use crate::overlay::wire::{self, Block, Message, Ours};

impl State {
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
                // aria2 says so, too, what it has got since, where that is shorter than a HAVE for each.
                let conn = self.conns.get_mut(&id);
                let left = conn.into_iter().flat_map(|c| c.lease_left.extract_if(.., |piece, _| pieces.get(*piece)));
                acknowledged.extend(left.map(|(piece, _)| piece));
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
                // Written out when there is room for them: asking costs nothing, so it must not fill memory here.
                if let (Some(Some(_)), Some(conn)) = (self.hashes.get(chunk as usize), self.conns.get_mut(&id)) {
                    conn.hashes_due.insert(chunk);
                    conn.wake.notify_one();
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
                if held && !conn.leases_only && conn.uploads.len() < UPLOADS_MAX {
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
        let group = layout.group_at(at.min(layout.total()));
        let offset = at.checked_sub(layout.group_bytes(group).start)? as usize;
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

    /// Hashes to check `group` with, unless it is held already, not wanted here, or cannot be checked.
    pub fn hashes_for(&mut self, group: u32, bytes: usize, layout: &Layout) -> Option<Arc<Vec<GroupHash>>> {
        let hashes = self.hashes.get(layout.chunk_of(group) as usize).cloned().flatten();
        let wanted = self.picker.lacks(group);
        if !wanted || hashes.is_none() {
            self.counts.wasted += bytes as u64;
        }
        hashes.filter(|_| wanted)
    }

    /// A verified group came from `id`; false if another source was faster.
    pub fn arrived(&mut self, now: Millis, id: SourceId, group: u32, bytes: usize, meta: &Metainfo) -> bool {
        let arrival = self.picker.arrived(id, group);
        let mut from_origin = id == STORE;
        if !from_origin && self.conns.get(&id).is_some_and(|c| c.kind != Kind::Origin) {
            self.paced(now, bytes, &meta.layout);
        }
        let windows = self.windows();
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.strikes = 0;
            from_origin = conn.kind == Kind::Origin;
            if let Some(asked_at) = arrival.asked_at.filter(|_| !from_origin) {
                let took = now.saturating_sub(asked_at);
                self.pace.quickest = Some(self.pace.quickest.map_or(took, |least| least.min(took)));
                self.latency = if self.latency == 0.0 { took as f64 } else { 0.95 * self.latency + 0.05 * took as f64 };
                conn.asked = conn.asked.saturating_sub(1);
                let next = if took > SLOW_MS { conn.window.saturating_sub(1) } else { conn.window + 1 };
                conn.window = next.clamp(*windows.start(), *windows.end());
            }
        }
        for other in arrival.cancel {
            self.cancel(other, group, &meta.layout);
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

    /// Groups (with their bytes) are on disk: from now on others may have them.
    pub fn store(&mut self, groups: impl Iterator<Item = (u32, usize)>) {
        for (group, bytes) in groups {
            if self.stored.set(group) {
                self.counts.bytes_held += bytes as u64;
                self.log.push(group);
            }
        }
        if self.is_idle() {
            self.conns.values().for_each(|c| c.wake.notify_one());
        }
    }
}
