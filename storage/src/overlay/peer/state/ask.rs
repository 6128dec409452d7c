//! What a peer asks of whom, and for how long it waits.

use super::{BLOCK, FAST_MS, Kind, Partial, REDIAL_MS, STRIKES, State};
use crate::overlay::metainfo::Metainfo;
use crate::overlay::picker::SourceId;
use crate::overlay::policy::Millis;
use crate::overlay::wire::{Block, Message, Ours};

impl State {
    pub(super) fn fill(&mut self, now: Millis, id: SourceId, meta: &Metainfo) {
        let patience = ((self.latency * 1.5) as Millis).max(FAST_MS);
        // A large window is filled by quarters: several requests then make one packet.
        if self.conns.get(&id).is_some_and(|c| c.window.saturating_sub(c.asked) < (c.window / 4).max(1)) {
            return;
        }
        loop {
            let Some(conn) = self.conns.get_mut(&id) else { return };
            let idle = conn.choked || conn.kind == Kind::Origin || conn.is_over(now);
            if idle || conn.asked >= conn.window || self.failed.is_some() {
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
}
