//! The foreign side: reserves, bids, accepts, works, and keeps results until they are acknowledged.
//!
//! A bid's hold and an accepted award free themselves by the clock alone. Only a commitment is journaled ([`Event::Taken`]):
//! a domain that restarts before it simply does not know the lease, which home takes as "not working on it".

mod request;
mod work;

use std::collections::{BTreeMap, VecDeque};

use crate::book::{Book, TakenState};
use crate::cx::Cx;
use crate::domain::DomainConfig;
use crate::event::Event;
use crate::id::{BidId, DomainId, JobId, LeaseId, Millis};
use crate::message::{Award, Output};

/// Bids held at the same time for all homes together.
const HOLDS_MAX: usize = 1_024;
/// Names of ended leases that are remembered, so that a late commitment does not start them again.
const OVER_MAX: usize = 4_096;
/// A task that its host has forgotten is started this often.
const RUNS_MAX: u32 = 3;

#[derive(Default)]
pub(crate) struct Contractor {
    slots: u32,
    /// No host is left; what waits is given back then.
    give_back_at: Option<Millis>,
    holds: BTreeMap<BidId, Hold>,
    accepted: BTreeMap<LeaseId, Accepted>,
    over: VecDeque<LeaseId>,
    /// The last word of whoever awarded the lease.
    heard: BTreeMap<LeaseId, Millis>,
    work: BTreeMap<(LeaseId, u32), Work>,
    reports: BTreeMap<LeaseId, Report>,
    repeats: BTreeMap<(LeaseId, u32), Repeat>,
    excess: Vec<(LeaseId, Vec<u32>)>,
    /// Wall ms that a ms of estimated work takes in one slot here: learnt from the hosts' own clocks, for what they say may
    /// come late.
    pace: Option<f64>,
}

/// Capacity behind a bid.
struct Hold {
    from: DomainId,
    home: DomainId,
    job: JobId,
    kind: String,
    path: Vec<DomainId>,
    depth_left: u32,
    parts_max: u32,
    price: f64,
    until: Millis,
}

/// An award that waits for its commitment; its capacity is held until then.
struct Accepted {
    award: Award,
    hold: Hold,
    contract: String,
}

/// What a task said last.
struct Work {
    state: String,
    bytes: u64,
    percent: f32,
    by: Option<DomainId>,
    outputs: Vec<Output>,
    runs: u32,
    /// Started in an earlier life: started again then, if its host has not told of it.
    adopt_by: Option<Millis>,
}

#[derive(Default)]
struct Report {
    next: Millis,
    news: bool,
    asked: bool,
}

struct Repeat {
    next: Millis,
    wait_ms: u64,
    asked: bool,
}

impl Contractor {
    /// Parts that have a claim on this cluster: held, accepted, or taken and not done.
    fn claimed(&self, book: &Book, from: Option<&DomainId>) -> u32 {
        let of = |d: &DomainId| from.is_none_or(|f| f == d);
        let held = self.holds.values().filter(|h| of(&h.from)).map(|h| h.parts_max as usize);
        let accepted = self.accepted.values().filter(|a| of(&a.hold.from)).map(|a| a.award.parts.len());
        let taken = book.taken.values().filter(|t| of(&t.terms.from)).map(|t| {
            let busy = |s: &TakenState| !matches!(s, TakenState::Kept(_));
            t.parts.values().filter(|p| busy(&p.state)).count()
        });
        held.chain(accepted).chain(taken).sum::<usize>().try_into().unwrap_or(u32::MAX)
    }

    /// Parts that could be held for `from`.
    fn room(&self, cx: &Cx, from: &DomainId) -> u32 {
        let agreements = &cx.config.agreements;
        let all = self.slots.saturating_mul(agreements.waves_max).saturating_sub(self.claimed(cx.book, None));
        match agreements.with(from).parts_max {
            Some(max) => all.min(max.saturating_sub(self.claimed(cx.book, Some(from)))),
            None => all,
        }
    }

    pub fn restarted(&mut self, cx: &mut Cx) {
        let leases: Vec<_> = cx.book.taken.keys().cloned().collect();
        for id in leases {
            self.heard.insert(id.clone(), cx.now);
            self.close_if_done(cx, &id, "done");
        }
        for (id, taken) in &cx.book.taken {
            for (n, part) in &taken.parts {
                match part.state {
                    TakenState::Started => {
                        let adopt_by = Some(cx.now.plus(cx.config.timers.adopt_ms));
                        self.work.insert((id.clone(), *n), Work { adopt_by, ..Work::default() });
                    }
                    TakenState::Kept(_) => {
                        let repeat = Repeat { next: cx.now, wait_ms: cx.config.timers.repeat_ms, asked: false };
                        self.repeats.insert((id.clone(), *n), repeat);
                    }
                    TakenState::Waiting | TakenState::Sold(_) => {}
                }
            }
        }
    }

    pub fn tick(&mut self, cx: &mut Cx) {
        let now = cx.now;
        self.holds.retain(|_, h| h.until > now);
        let late: Vec<_> =
            self.accepted.iter().filter(|(_, a)| a.hold.until <= now).map(|(id, _)| id.clone()).collect();
        for id in late {
            self.accepted.remove(&id);
            self.bury(id);
        }
        self.tick_silence(cx);
        self.tick_adoption(cx);
        self.tick_capacity(cx);
        self.start_waiting(cx);
        self.tick_repeats(cx);
        self.tick_reports(cx);
    }

    /// Stops what is not done when whoever awarded it has been silent for the lease and its grace; results are kept longer.
    fn tick_silence(&mut self, cx: &mut Cx) {
        let timers = cx.config.timers.clone();
        let leases: Vec<_> = cx.book.taken.iter().map(|(id, t)| (id.clone(), t.terms.ttl_ms)).collect();
        for (id, ttl_ms) in leases {
            let silence = cx.now.since(*self.heard.entry(id.clone()).or_insert(cx.now));
            let patience = ttl_ms.saturating_add(timers.detach_grace_ms);
            if silence >= patience.saturating_add(timers.keep_ms) {
                self.close(cx, &id, "kept too long");
            } else if silence >= patience {
                self.drop_unfinished(cx, &id, |_| true, "home is silent");
            }
            self.close_if_done(cx, &id, "done");
        }
    }

    pub fn deadline(&self, book: &Book, config: &DomainConfig) -> Option<Millis> {
        let timers = &config.timers;
        let holds = self.holds.values().map(|h| h.until);
        let accepted = self.accepted.values().map(|a| a.hold.until);
        let silence = book.taken.iter().filter_map(|(id, t)| {
            let patience = t.terms.ttl_ms.saturating_add(timers.detach_grace_ms);
            let unfinished = t.parts.values().any(|p| !matches!(p.state, TakenState::Kept(_)));
            let keep = if unfinished { 0 } else { timers.keep_ms };
            Some(self.heard.get(id)?.plus(patience).plus(keep))
        });
        let give_back = self.give_back_at.filter(|_| work::foreign_waiting(book, &config.me).next().is_some());
        let adoption = self.work.values().filter_map(|w| w.adopt_by);
        let repeats = self.repeats.values().filter(|r| !r.asked).map(|r| r.next);
        let reports = self.reports.values().filter(|r| r.news && !r.asked).map(|r| r.next);
        holds.chain(accepted).chain(silence).chain(give_back).chain(adoption).chain(repeats).chain(reports).min()
    }

    /// Remembers that a lease is over.
    fn bury(&mut self, id: LeaseId) {
        if self.over.len() >= OVER_MAX {
            self.over.pop_front();
        }
        self.over.push_back(id);
    }

    fn close_if_done(&mut self, cx: &mut Cx, id: &LeaseId, reason: &str) {
        if cx.book.taken.get(id).is_some_and(|t| t.parts.is_empty()) {
            self.close(cx, id, reason);
        }
    }

    fn close(&mut self, cx: &mut Cx, id: &LeaseId, reason: &str) {
        self.drop_unfinished(cx, id, |_| true, reason);
        if cx.book.taken.contains_key(id) {
            cx.record(Event::LeaseClosed { at: cx.now, lease: id.clone(), reason: reason.into() });
        }
        self.heard.remove(id);
        self.reports.remove(id);
        self.repeats.retain(|(lease, _), _| lease != id);
        self.work.retain(|(lease, _), _| lease != id);
        self.bury(id.clone());
    }

    /// Parts behind bids and awards that are not committed.
    pub fn held(&self) -> u32 {
        let accepted = self.accepted.values().map(|a| a.award.parts.len() as u32);
        self.holds.values().map(|h| h.parts_max).chain(accepted).fold(0, u32::saturating_add)
    }
}
