//! What a peer asks of whom, and for how long it waits.

use std::ops::RangeInclusive;

use super::{ASKED_MIN, BLOCK, Kind, Partial, REDIAL_MS, STRIKES, State, WINDOW_MAX};
use crate::overlay::layout::Layout;
use crate::overlay::metainfo::Metainfo;
use crate::overlay::picker::SourceId;
use crate::overlay::policy::Millis;
use crate::overlay::wire::{Block, Message, Ours};

/// At the end, a group is asked of another no sooner than this.
const PATIENCE_MS: Millis = 100;
/// Hashes that have not come by then are asked of another.
const HASHES_MS: Millis = 1000;
/// So much is asked of all neighbours together as came in so long lately (milliseconds), or in so many of the quickest answer where all are far: enough to
/// keep a link busy while requests are on their way, and no more, since a group that waits with one neighbour is passed on the later.
const AHEAD_MS: f64 = 100.0;
const AHEAD_ANSWERS: f64 = 1.5;
/// How often what came is counted, sooner where so many groups have come; and what of the best count is left each time.
const PACE_MS: Millis = 250;
const PACE_SOONEST_MS: Millis = 20;
const PACE_GROUPS: u64 = 64;
const PACE_KEPT: f64 = 0.98;

/// What came from peers lately, and how much is asked of them therefore.
#[derive(Default)]
pub(super) struct Pace {
    since: Millis,
    bytes: u64,
    /// Bytes per millisecond, when it went best.
    rate: f64,
    pub(super) quickest: Option<Millis>,
    /// Groups asked of all neighbours together; [`ASKED_MIN`] where that is more.
    pub(super) asked_most: u32,
}

/// Groups that a peer to which `rate` bytes come per millisecond asks of all its neighbours together, none of whom is far.
pub fn groups_ahead(rate: f64, layout: &Layout) -> u32 {
    ahead(rate, AHEAD_MS, layout)
}

fn ahead(rate: f64, ahead_ms: f64, layout: &Layout) -> u32 {
    ((rate * ahead_ms / layout.group_len_max() as f64).round() as u32).max(ASKED_MIN)
}

/// A group as the blocks that ordinary clients are asked for.
fn blocks(layout: &Layout, group: u32) -> impl Iterator<Item = Block> {
    let bytes = layout.group_bytes(group);
    let piece = layout.piece_of(group);
    let base = (bytes.start - layout.piece_bytes(piece).start) as u32;
    let len = (bytes.end - bytes.start) as u32;
    (0..len).step_by(BLOCK as usize).map(move |at| Block { piece, begin: base + at, len: BLOCK.min(len - at) })
}

impl State {
    /// `bytes` came from a neighbour. Who holds less than most of its neighbours asks for half as much again: of equal hosts one would else fall
    /// behind by chance, ask for less since less comes, and end seconds after the others.
    pub(super) fn paced(&mut self, now: Millis, bytes: usize, layout: &Layout) {
        let pace = &mut self.pace;
        pace.bytes += bytes as u64;
        let took = now.saturating_sub(pace.since);
        let enough = took >= PACE_SOONEST_MS && pace.bytes >= PACE_GROUPS * layout.group_len_max();
        if took < PACE_MS && !enough {
            return;
        }
        pace.rate = (pace.bytes as f64 / took as f64).max(pace.rate * PACE_KEPT);
        (pace.since, pace.bytes) = (now, 0);
        let ours = self.conns.iter().filter(|(_, conn)| conn.kind == Kind::Ours);
        let behind = self.picker.behind(ours.map(|(id, _)| *id));
        let ahead_ms = pace.quickest.map_or(AHEAD_MS, |took| (took as f64 * AHEAD_ANSWERS).max(AHEAD_MS));
        let fair = ahead(pace.rate, ahead_ms, layout);
        pace.asked_most = if behind { fair + fair / 2 } else { fair };
    }

    fn asked_most(&self) -> u32 {
        self.pace.asked_most.max(ASKED_MIN)
    }

    /// Groups that may be asked of one neighbour: its part of what is asked of all, and how little it may become however late it answers.
    pub(super) fn windows(&self) -> RangeInclusive<u32> {
        let links = self.conns.len().max(1) as u32;
        let least = (ASKED_MIN / links).clamp(1, WINDOW_MAX);
        least..=self.asked_most().div_ceil(links).clamp(least, WINDOW_MAX)
    }

    pub(super) fn fill(&mut self, now: Millis, id: SourceId, meta: &Metainfo) {
        let patience = ((self.latency * 1.5) as Millis).max(PATIENCE_MS);
        // A large window is filled by quarters: several requests then make one packet.
        if self.conns.get(&id).is_some_and(|c| c.window.saturating_sub(c.asked) < (c.window / 4).max(1)) {
            return;
        }
        // One of each, however many they are.
        let most = self.asked_most().max(self.conns.len() as u32);
        let mut of_all: u32 = self.conns.values().map(|conn| conn.asked).sum();
        loop {
            let Some(conn) = self.conns.get_mut(&id) else { return };
            let idle = conn.choked || conn.kind == Kind::Origin || conn.is_over(now);
            if idle || conn.asked >= conn.window || of_all >= most || self.failed.is_some() {
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
                        && asked.get(&chunk).is_none_or(|(by, at)| *by == id || now.saturating_sub(*at) > HASHES_MS))
            };
            let Some(group) = self.picker.pick(now, id, patience, allowed) else {
                if ordinary && of_all == 0 {
                    self.ask_origin_for_hashes(now, id, layout);
                }
                return;
            };
            conn.asked += 1;
            of_all += 1;
            let chunk = layout.chunk_of(group);
            if hashes.get(chunk as usize).is_some_and(Option::is_none)
                && self.hash_asked.get(&chunk).is_none_or(|(by, _)| *by != id)
            {
                self.hash_asked.insert(chunk, (id, now));
                conn.control.push_back(Message::Ours(Ours::HashesWanted { chunk }));
            }
            if ordinary {
                let bytes = layout.group_bytes(group);
                let data = vec![0; (bytes.end - bytes.start) as usize];
                conn.partial.insert(group, Partial { data, blocks: 0 });
                conn.control.extend(blocks(layout, group).map(Message::Request));
            } else {
                conn.control.push_back(Message::Ours(Ours::Request { group }));
            }
            conn.wake.notify_one();
        }
    }

    /// What an ordinary client holds is checked by hashes that it cannot give, and a chunk that was leased to such clients alone none of ours has: so the
    /// origin is asked, when nothing else is left to do.
    fn ask_origin_for_hashes(&mut self, now: Millis, id: SourceId, layout: &Layout) {
        let Some((origin, conn)) = self.conns.iter_mut().find(|(_, conn)| conn.kind == Kind::Origin) else { return };
        let missing = |chunk: u32| self.hashes.get(chunk as usize).is_some_and(Option::is_none);
        let silent = |chunk: u32| self.hash_asked.get(&chunk).is_none_or(|(_, at)| now.saturating_sub(*at) > HASHES_MS);
        let mut chunks = self.picker.wishes(id).map(|group| layout.chunk_of(group));
        if let Some(chunk) = chunks.find(|chunk| missing(*chunk) && silent(*chunk)) {
            self.hash_asked.insert(chunk, (*origin, now));
            conn.control.push_back(Message::Ours(Ours::HashesWanted { chunk }));
            conn.wake.notify_one();
        }
    }

    pub fn fill_all(&mut self, now: Millis, meta: &Metainfo) {
        let ids: Vec<_> = self.conns.keys().copied().collect();
        ids.into_iter().for_each(|id| self.fill(now, id, meta));
    }

    /// What was asked of `id` need not come any more.
    pub(super) fn cancel(&mut self, id: SourceId, group: u32, layout: &Layout) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.asked = conn.asked.saturating_sub(1);
        match conn.kind {
            // To an ordinary client our extension is noise: transmission 3.00, sent a message of it, reads nothing more of that connection.
            Kind::Ordinary => {
                let came = conn.partial.remove(&group).map_or(u32::MAX, |partial| partial.blocks);
                let waits = blocks(layout, group).enumerate().filter(|(number, _)| came & (1 << number) == 0);
                conn.control.extend(waits.map(|(_, block)| Message::Cancel(block)));
            }
            Kind::Ours | Kind::Origin => conn.control.push_back(Message::Ours(Ours::Cancel { group })),
        }
        conn.wake.notify_one();
    }

    /// Late answers are asked of others; who is late again and again is let go.
    pub fn expire(&mut self, now: Millis, layout: &Layout) {
        let patience = ((self.latency * 6.0) as Millis).max(2000);
        for (id, group) in self.picker.expire(now, patience) {
            // What the origin sends it sends unasked.
            let Some(conn) = self.conns.get_mut(&id).filter(|conn| conn.kind != Kind::Origin) else { continue };
            conn.window = 1;
            conn.strikes += 1;
            if conn.strikes >= STRIKES {
                let listen = conn.listen;
                self.drop_conn(id);
                self.not_before.insert(listen, now + 4 * REDIAL_MS);
            } else {
                self.cancel(id, group, layout);
            }
        }
        let idle = self.picker.lacking() > 0 && self.conns.values().all(|c| c.asked == 0);
        self.starving_since = idle.then(|| self.starving_since.unwrap_or(now));
        self.starving = self.starving_since.is_some_and(|since| now.saturating_sub(since) > 1000);
    }
}
