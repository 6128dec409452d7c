//! What a peer asks for next: rarest first among what it wants, each group from one source, doubled only at the end.
//!
//! Pure. A wanted group is held, asked for, or open; `open` is a bit set, so a pick scans words: all of them for a small
//! dataset, a random stretch of a large one (rarest of some hundred candidates is as good as rarest of all).

use std::collections::BTreeMap;

use super::bits::{Bits, ones};
use super::policy::Millis;
use super::rng::Rng;

pub type SourceId = u64;

/// Words with candidates that one pick looks at.
const WORDS_MAX: usize = 16;
/// Sources that one group may be asked of at the end.
const DOUBLES: usize = 2;

#[derive(Debug)]
pub struct Picker {
    want: Bits,
    have: Bits,
    open: Bits,
    copies: Vec<u16>,
    sources: BTreeMap<SourceId, Bits>,
    asked: BTreeMap<u32, Vec<(SourceId, Millis)>>,
    rng: Rng,
}

impl Picker {
    pub fn new(want: Bits, have: Bits, seed: u64) -> Self {
        let mut open = Bits::new(want.len());
        want.iter().filter(|g| !have.get(*g)).for_each(|g| {
            open.set(g);
        });
        let copies = vec![0; want.len() as usize];
        Self { want, have, open, copies, sources: BTreeMap::new(), asked: BTreeMap::new(), rng: Rng::new(seed) }
    }

    pub fn have(&self) -> &Bits {
        &self.have
    }

    /// Groups wanted and not held.
    pub fn lacking(&self) -> u32 {
        self.open.count() + self.asked.len() as u32
    }

    /// Whether `group` is wanted and not held.
    pub fn lacks(&self, group: u32) -> bool {
        self.want.get(group) && !self.have.get(group)
    }

    pub fn complete(&self) -> bool {
        self.lacking() == 0
    }

    pub fn wanted(&self) -> u32 {
        self.want.count()
    }

    pub fn source(&mut self, id: SourceId) {
        self.sources.entry(id).or_insert_with(|| Bits::new(self.want.len()));
    }

    /// The source is gone; what it was asked for is open again.
    pub fn source_gone(&mut self, id: SourceId) {
        if let Some(bits) = self.sources.remove(&id) {
            bits.iter().for_each(|g| self.copies[g as usize] = self.copies[g as usize].saturating_sub(1));
        }
        let asked: Vec<_> = self.asked.keys().copied().collect();
        asked.into_iter().for_each(|g| self.failed(id, g));
    }

    /// The source says that it holds `group`; out of range is ignored.
    pub fn source_has(&mut self, id: SourceId, group: u32) {
        if self.sources.get_mut(&id).is_some_and(|bits| bits.set(group)) {
            self.copies[group as usize] = self.copies[group as usize].saturating_add(1);
        }
    }

    pub fn source_count(&self, id: SourceId) -> u32 {
        self.sources.get(&id).map_or(0, Bits::count)
    }

    /// Whether most of these sources hold more than is held here. One that is slow does not count for more than one.
    pub fn behind(&self, sources: impl Iterator<Item = SourceId>) -> bool {
        let held = sources.map(|id| self.source_count(id) > self.have.count());
        let (more, all) = held.fold((0, 0), |(more, all), is_more| (more + usize::from(is_more), all + 1));
        2 * more > all
    }

    /// Whether the source holds something that is wanted and not held here.
    pub fn useful(&self, id: SourceId) -> bool {
        let Some(bits) = self.sources.get(&id) else { return false };
        self.open.words().iter().zip(bits.words()).any(|(a, b)| a & b != 0) || self.asked.keys().any(|g| bits.get(*g))
    }

    /// What the source holds that is asked of nobody and not held here.
    pub fn wishes(&self, id: SourceId) -> impl Iterator<Item = u32> {
        let held = self.sources.get(&id).into_iter().flat_map(Bits::iter);
        held.filter(|group| self.open.get(*group))
    }

    /// The next group to ask of `id`. `allowed` may veto (hashes not known yet). At the end, a group asked of another more
    /// than `patience` ago may be asked again.
    pub fn pick(&mut self, now: Millis, id: SourceId, patience: Millis, allowed: impl Fn(u32) -> bool) -> Option<u32> {
        let bits = self.sources.get(&id)?;
        let words = self.open.words();
        let start = self.rng.index(words.len());
        // Ties go to the first one met: the walk begins anywhere, in the words and in each word.
        let turn = self.rng.below(64) as u32;
        let mut best: Option<(u16, u32)> = None;
        let mut looked = 0;
        for i in (start..words.len()).chain(0..start) {
            let candidates = words[i] & bits.words()[i];
            if candidates == 0 {
                continue;
            }
            for bit in ones(candidates.rotate_right(turn)) {
                let group = i as u32 * 64 + (bit + turn) % 64;
                let copies = self.copies[group as usize];
                if best.is_none_or(|(least, _)| copies < least) && allowed(group) {
                    best = Some((copies, group));
                }
            }
            looked += 1;
            if looked >= WORDS_MAX && best.is_some() {
                break;
            }
        }
        let late = |sources: &[(SourceId, Millis)]| {
            sources.len() < DOUBLES && sources.iter().all(|(s, t)| *s != id && now.saturating_sub(*t) >= patience)
        };
        let group = match best {
            Some((_, group)) => group,
            None if self.open.is_empty() => {
                *self.asked.iter().find(|(g, sources)| bits.get(**g) && late(sources) && allowed(**g))?.0
            }
            None => return None,
        };
        self.ask(now, id, group);
        Some(group)
    }

    /// Marks `group` as coming from `id` (picked, or leased by the origin). False if it is held or not wanted.
    pub fn ask(&mut self, now: Millis, id: SourceId, group: u32) -> bool {
        if self.open.clear(group) || self.asked.contains_key(&group) {
            let sources = self.asked.entry(group).or_default();
            if sources.iter().all(|(s, _)| *s != id) {
                sources.push((id, now));
            }
            return true;
        }
        false
    }

    /// Whether `group` was asked of `id` and has not come.
    pub fn expects(&self, id: SourceId, group: u32) -> bool {
        self.asked.get(&group).is_some_and(|sources| sources.iter().any(|(s, _)| *s == id))
    }

    /// `group` is here, verified. Answers when it was asked of `id`, and whom to send a CANCEL.
    pub fn arrived(&mut self, id: SourceId, group: u32) -> Arrival {
        let sources = self.asked.remove(&group).unwrap_or_default();
        self.open.clear(group);
        let fresh = self.have.set(group);
        let asked_at = sources.iter().find(|(s, _)| *s == id).map(|(_, t)| *t);
        Arrival { fresh, asked_at, cancel: sources.into_iter().map(|(s, _)| s).filter(|s| *s != id).collect() }
    }

    /// The source will not bring `group`.
    pub fn failed(&mut self, id: SourceId, group: u32) {
        let Some(sources) = self.asked.get_mut(&group) else { return };
        sources.retain(|(s, _)| *s != id);
        if sources.is_empty() {
            self.asked.remove(&group);
            if self.want.get(group) && !self.have.get(group) {
                self.open.set(group);
            }
        }
    }

    /// What was asked longer than `patience` ago, with whom: each is open again.
    pub fn expire(&mut self, now: Millis, patience: Millis) -> Vec<(SourceId, u32)> {
        let late: Vec<_> = self
            .asked
            .iter()
            .flat_map(|(g, sources)| sources.iter().map(move |(s, t)| (*s, *g, *t)))
            .filter(|(_, _, t)| now.saturating_sub(*t) > patience)
            .map(|(s, g, _)| (s, g))
            .collect();
        late.iter().for_each(|(s, g)| self.failed(*s, *g));
        late
    }
}

#[derive(Debug, PartialEq, Eq)]
pub struct Arrival {
    pub fresh: bool,
    pub asked_at: Option<Millis>,
    pub cancel: Vec<SourceId>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picker(groups: u32) -> Picker {
        Picker::new(Bits::full(groups), Bits::new(groups), 1)
    }

    fn holding(picker: &mut Picker, id: SourceId, groups: impl IntoIterator<Item = u32>) {
        picker.source(id);
        groups.into_iter().for_each(|g| picker.source_has(id, g));
    }

    #[test]
    fn the_rarest_is_asked_first_and_each_group_once() {
        let mut picker = picker(200);
        holding(&mut picker, 1, 0..200);
        holding(&mut picker, 2, (0..200).filter(|g| *g != 77));
        assert_eq!(picker.pick(0, 1, 10, |_| true), Some(77));
        let mut rest: Vec<_> = std::iter::from_fn(|| picker.pick(0, 1, 10, |_| true)).collect();
        rest.sort();
        assert_eq!(rest, (0..200).filter(|g| *g != 77).collect::<Vec<_>>());
    }

    #[test]
    fn two_peers_with_the_same_view_do_not_ask_in_the_same_order() {
        let order = |seed| {
            let mut picker = Picker::new(Bits::full(64), Bits::new(64), seed);
            holding(&mut picker, 1, 0..64);
            std::iter::from_fn(|| picker.pick(0, 1, 9, |_| true)).collect::<Vec<_>>()
        };
        assert_ne!(order(1), order(2));
    }

    #[test]
    fn at_the_end_a_late_group_is_doubled_and_the_loser_cancelled() {
        let mut picker = picker(1);
        holding(&mut picker, 1, [0]);
        holding(&mut picker, 2, [0]);
        assert_eq!(picker.pick(0, 1, 50, |_| true), Some(0));
        assert_eq!(picker.pick(49, 2, 50, |_| true), None);
        assert_eq!(picker.pick(50, 2, 50, |_| true), Some(0));
        assert_eq!(picker.arrived(2, 0), Arrival { fresh: true, asked_at: Some(50), cancel: vec![1] });
        assert!(picker.complete());
        assert!(!picker.arrived(1, 0).fresh);
    }

    #[test]
    fn what_a_lost_or_silent_source_owed_is_asked_of_others() {
        let mut picker = picker(2);
        holding(&mut picker, 1, 0..2);
        holding(&mut picker, 2, 0..2);
        picker.pick(0, 1, 50, |_| true);
        picker.pick(0, 1, 50, |_| true);
        assert_eq!(picker.lacking(), 2);
        assert_eq!(picker.expire(100, 80).len(), 2);
        assert!(picker.pick(100, 2, 50, |_| true).is_some());
        picker.source_gone(2);
        assert_eq!(std::iter::from_fn(|| picker.pick(100, 1, 50, |_| true)).count(), 2);
    }

    #[test]
    fn groups_out_of_range_or_vetoed_are_never_asked() {
        let mut picker = picker(3);
        holding(&mut picker, 1, [0, 1, 2, 3, u32::MAX]);
        assert_eq!(picker.source_count(1), 3);
        let asked: Vec<_> = std::iter::from_fn(|| picker.pick(0, 1, 9, |g| g != 1)).collect();
        assert!(asked.len() == 2 && !asked.contains(&1));
    }
}
