//! A lease after its award: accept, commit, renewals, results, silence, and its end.

use std::collections::BTreeMap;

use super::{Broker, ROW_MAX, frame, is_live, is_row, stale};
use crate::book::{Book, Lease, Part, Stage};
use crate::cx::{About, Cx, contract};
use crate::domain::{DomainConfig, Lost, Output};
use crate::event::{Event, Mark};
use crate::id::{DomainId, JobId, LeaseId, Millis};
use crate::message::{self, Ack, Body, Cancel, Commit, PartDone, PartProgress, PartRef, Release, Renew, Resync};

/// Questions in a row without answer that make a domain silent: no new awards.
const SILENT: u32 = 2;
/// A part that is not got on with for so many times what was bid for all of them is late.
const LATE_FACTOR: u64 = 4;

/// What is known about the other side of a lease just now.
pub(super) struct Watch {
    heard: Millis,
    missed: u32,
    /// When to say the next thing: the award or the commitment again, a renewal, a cancellation.
    next: Millis,
    asked: bool,
    /// An award is withdrawn then.
    accept_by: Millis,
    /// The clock has been stopped once since it was heard.
    amnestied: bool,
    /// It has not been asked yet what it has since this domain started.
    resync: bool,
    /// When it was committed, or this domain started.
    since: Millis,
    /// What was said of each part last, and since when it is so.
    said: BTreeMap<u32, (PartProgress, Millis)>,
}

impl Watch {
    /// Of a lease in the journal: it is asked first, and its clock starts now.
    pub fn new(now: Millis, accept_by: Millis) -> Self {
        let (amnestied, resync, said) = (false, true, BTreeMap::new());
        Self { heard: now, missed: 0, next: now, asked: false, accept_by, amnestied, resync, since: now, said }
    }

    /// Since when a part is what it is. One that waits gets on when any other of its domain does.
    fn unchanged_since(&self, part: u32, domain_moved: Option<Millis>) -> Millis {
        match self.said.get(&part) {
            Some((said, since)) if said.state != "waiting" => *since,
            _ => domain_moved.map_or(self.since, |moved| moved.max(self.since)),
        }
    }

    fn lost_at(&self, lease: &Lease, config: &DomainConfig) -> Millis {
        self.heard.plus(lease.ttl_ms).plus(config.timers.detach_grace_ms)
    }

    pub fn deadline(&self, lease: &Lease, config: &DomainConfig) -> Option<Millis> {
        let ask = (!self.asked).then_some(self.next);
        let end = if lease.stage == Stage::Awarded { self.accept_by } else { self.lost_at(lease, config) };
        (lease.stage != Stage::Over).then(|| ask.map_or(end, |ask| ask.min(end)))
    }
}

impl Broker {
    pub(super) fn send_award(&mut self, cx: &mut Cx, id: &LeaseId) {
        let accept_by = cx.now.plus(cx.config.timers.accept_ms);
        let watch = self.watch.entry(id.clone()).or_insert(Watch { resync: false, ..Watch::new(cx.now, accept_by) });
        watch.asked = true;
        let (Some(award), Some(lease)) = (self.terms_of(cx, id), cx.book.leases.get(id)) else { return };
        let (Some(frame), domain) = (frame(cx.book, &lease.job), lease.domain.clone()) else { return };
        cx.ask(&domain, frame, Body::Award(award), About::Award(id.clone()));
    }

    pub(super) fn award_answered(&mut self, cx: &mut Cx, id: &LeaseId, answer: Result<Body, Lost>) {
        let Some(lease) = cx.book.leases.get(id).filter(|l| l.stage == Stage::Awarded) else {
            return; // withdrawn meanwhile; the bid was rejected then
        };
        let domain = lease.domain.clone();
        let agreed = self.terms_of(cx, id).map(|a| contract(&a));
        match answer {
            Ok(Body::Accept(accept)) if accept.lease == *id && Some(&accept.contract) == agreed.as_ref() => {
                self.unaccepted.remove(&domain);
                cx.record(Event::Committed { at: cx.now, lease: id.clone() });
                self.watch.insert(id.clone(), Watch { resync: false, ..Watch::new(cx.now, cx.now) });
                self.ask_lease(cx, id);
            }
            Ok(Body::Decline(decline)) => self.not_accepted(cx, id, &decline.reason),
            Ok(_) => self.not_accepted(cx, id, "answer not understood"),
            Err(Lost::Timeout | Lost::Reset) => {
                if let Some(watch) = self.watch.get_mut(id) {
                    (watch.asked, watch.next) = (false, cx.now); // said again until `accept_by`
                }
            }
            Err(lost) => self.not_accepted(cx, id, &format!("no answer: {lost:?}")),
        }
    }

    /// Who bids and does not take what it wins is not called for ever.
    fn not_accepted(&mut self, cx: &mut Cx, id: &LeaseId, reason: &str) {
        let Some(domain) = cx.book.leases.get(id).map(|l| l.domain.clone()) else { return };
        if is_row(&mut self.unaccepted, &domain) {
            self.mark(cx, &domain, Mark::Suspect);
        }
        self.withdraw(cx, id, reason);
    }

    /// The award is void; the parts go to others, all at once.
    pub(super) fn withdraw(&mut self, cx: &mut Cx, id: &LeaseId, reason: &str) {
        let Some(lease) = cx.book.leases.get(id) else { return };
        let (job, domain, bid) = (lease.job.clone(), lease.domain.clone(), lease.bid.clone());
        cx.record(Event::Withdrawn { at: cx.now, lease: id.clone(), reason: reason.into() });
        self.watch.remove(id);
        self.reject(cx, &job, &domain, bid);
        let sold = cx.book.jobs.get(&job).is_some_and(|j| j.terms.parent.is_some());
        if !sold && cx.book.jobs.get(&job).is_some_and(|j| j.is_open()) {
            let next = self.next_call.entry(job).or_insert(super::NextCall { at: cx.now, empty: 0 });
            next.at = next.at.max(cx.now);
        }
    }

    pub(super) fn commit_answered(&mut self, cx: &mut Cx, id: &LeaseId, answer: Result<Body, Lost>) {
        if cx.book.leases.get(id).is_none_or(|l| l.stage == Stage::Over) {
            return;
        }
        match answer {
            Ok(Body::Ack(_)) => {
                self.heard(cx.now, id);
                self.confirm(cx, id);
            }
            // It says itself that it does not work on it.
            Ok(_) => self.all_returned(cx, id, "commit refused"),
            Err(_) => self.missed(cx, id),
        }
    }

    pub(super) fn confirm(&mut self, cx: &mut Cx, id: &LeaseId) {
        let Some(lease) = cx.book.leases.get(id).filter(|l| l.stage == Stage::Committed) else { return };
        let renew_ms = lease.renew_ms;
        cx.record(Event::Confirmed { at: cx.now, lease: id.clone() });
        if let Some(watch) = self.watch.get_mut(id) {
            (watch.asked, watch.next) = (false, cx.now.plus(renew_ms));
        }
    }

    /// A word from the other side.
    pub(super) fn heard(&mut self, now: Millis, id: &LeaseId) {
        if let Some(watch) = self.watch.get_mut(id) {
            (watch.heard, watch.missed, watch.amnestied) = (now, 0, false);
        }
    }

    fn missed(&mut self, cx: &Cx, id: &LeaseId) {
        let renew_ms = cx.book.leases.get(id).map_or(0, |l| l.renew_ms);
        if let Some(watch) = self.watch.get_mut(id) {
            // One retry at once, then at the pace of renewals.
            let wait = if watch.missed == 0 { 0 } else { renew_ms };
            (watch.asked, watch.missed, watch.next) = (false, watch.missed + 1, cx.now.plus(wait));
        }
    }

    pub(super) fn is_silent(&self, book: &Book, domain: &DomainId) -> bool {
        let silent = |(id, w): (&LeaseId, &Watch)| {
            w.missed >= SILENT && book.leases.get(id).is_some_and(|l| l.domain == *domain)
        };
        self.watch.iter().any(silent)
    }

    /// The domain has started anew: what does it still have?
    pub(super) fn ask_soon(&mut self, cx: &Cx, domain: &DomainId) {
        for (id, watch) in &mut self.watch {
            if cx.book.leases.get(id).is_some_and(|l| l.domain == *domain && l.stage == Stage::Confirmed) {
                (watch.resync, watch.next) = (true, cx.now);
            }
        }
    }

    /// Says to the holder of a lease what is to be said at its stage.
    fn ask_lease(&mut self, cx: &mut Cx, id: &LeaseId) {
        let Some(lease) = cx.book.leases.get(id) else { return };
        let Some(job) = cx.book.jobs.get(&lease.job) else { return };
        let (stage, domain, closing) = (lease.stage, lease.domain.clone(), !job.is_open());
        let (Some(frame), Some(award)) = (frame(cx.book, &lease.job), self.terms_of(cx, id)) else { return };
        let Some(watch) = self.watch.get_mut(id) else { return };
        watch.asked = true;
        let (lease, secret) = (id.clone(), award.secret.clone());
        let (body, about) = if closing {
            let reason = "the job has ended".into();
            (Body::Cancel(Cancel { lease, secret, reason, parts: Vec::new() }), About::Cancel(id.clone()))
        } else if stage == Stage::Committed {
            let contract = contract(&award);
            (Body::Commit(Commit { lease, secret, contract }), About::Commit(id.clone()))
        } else if watch.resync {
            (Body::Resync(Resync { lease, secret }), About::Inventory(id.clone()))
        } else {
            let parts = cx.book.live_parts(id).map(|(r, _)| r).collect();
            (Body::Renew(Renew { lease, secret, parts }), About::Inventory(id.clone()))
        };
        cx.ask(&domain, frame, body, about);
    }

    pub(super) fn inventory_answered(&mut self, cx: &mut Cx, id: &LeaseId, answer: Result<Body, Lost>) {
        let Some(lease) = cx.book.leases.get(id).filter(|l| l.stage != Stage::Over) else { return };
        let renew_ms = lease.renew_ms;
        let inventory = match answer {
            Ok(Body::Inventory(inventory)) if inventory.lease == *id => inventory,
            Ok(Body::Stale(_)) => return self.all_returned(cx, id, "lease unknown there"),
            Ok(_) | Err(_) => return self.missed(cx, id),
        };
        if !inventory.known {
            return self.all_returned(cx, id, "lease unknown there");
        }
        self.heard(cx.now, id);
        if let Some(watch) = self.watch.get_mut(id) {
            (watch.asked, watch.resync, watch.next) = (false, false, cx.now.plus(renew_ms));
        }
        self.inventory(cx, id, &inventory.parts);
        let there = |r: &PartRef| inventory.parts.iter().any(|p| p.part == r.part && p.attempt == r.attempt);
        let gone: Vec<_> = cx.book.live_parts(id).map(|(r, _)| r).filter(|r| !there(r)).collect();
        self.returned(cx, id, gone, "not there any more");
    }

    /// Takes up what a domain says about its parts.
    pub(super) fn inventory(&mut self, cx: &mut Cx, id: &LeaseId, parts: &[PartProgress]) {
        let Some((job, domain)) = cx.book.leases.get(id).map(|l| (l.job.clone(), l.domain.clone())) else { return };
        for said in parts {
            if !is_live(cx.book, id, said.part, said.attempt) {
                continue;
            }
            let Some(record) = cx.book.jobs.get(&job) else { return };
            let first = record.times.first_fetch.is_none() && said.bytes > 0;
            if first {
                cx.record(Event::Fetching { at: cx.now, job: job.clone() });
            }
            loaded(cx, &job, said.part, said.attempt, &said.outputs);
            if let Some(watch) = self.watch.get_mut(id)
                && watch.said.get(&said.part).is_none_or(|(last, _)| last != said)
            {
                watch.said.insert(said.part, (said.clone(), cx.now));
                self.moved.insert(domain.clone(), cx.now);
            }
            let known = self.progress.get(&(job.clone(), said.part));
            // Reports may overtake each other.
            let older =
                known.is_some_and(|k| k.attempt == said.attempt && (k.bytes, k.percent) > (said.bytes, said.percent));
            if !older {
                self.progress.insert((job.clone(), said.part), said.clone());
            }
        }
        self.take_back_late(cx, id, &job, &domain);
    }

    /// Judged by fresh words alone: what a domain that is cut off does meanwhile nobody knows.
    fn take_back_late(&mut self, cx: &mut Cx, id: &LeaseId, job: &JobId, domain: &DomainId) {
        let (Some(watch), Some(lease)) = (self.watch.get(id), cx.book.leases.get(id)) else { return };
        if cx.book.jobs.get(job).is_none_or(|j| !j.is_open()) {
            return; // cancelled already
        }
        let timers = &cx.config.timers;
        // A bid may say anything: a day at most.
        let patience = lease.finish_p90_ms.saturating_mul(LATE_FACTOR).min(timers.keep_ms).max(timers.late_ms);
        let moved = self.moved.get(domain).copied();
        let is_late = |r: &PartRef| watch.unchanged_since(r.part, moved).plus(patience) <= cx.now;
        let parts: Vec<_> = cx.book.live_parts(id).map(|(r, _)| r).filter(is_late).collect();
        if parts.is_empty() {
            return;
        }
        for part in &parts {
            self.progress.remove(&(job.clone(), part.part));
        }
        cx.record(Event::Late { at: cx.now, lease: id.clone(), parts: parts.clone() });
        self.mark(cx, domain, Mark::Suspect);
        self.take_back(cx, job, id, parts, "late");
        self.call_soon(cx.now, job);
    }

    pub(super) fn part_done(&mut self, cx: &mut Cx, id: &LeaseId, done: &PartDone) -> Body {
        let Some(lease) = cx.book.leases.get(id) else { return stale("lease") };
        let (job, domain) = (lease.job.clone(), lease.domain.clone());
        if !is_live(cx.book, id, done.part, done.attempt) {
            let part = cx.book.jobs.get(&job).and_then(|j| j.parts.get(&done.part));
            let known = part.and_then(|p| p.result.as_ref());
            let same = known.is_some_and(|r| r.attempt == done.attempt && r.domain == domain);
            return if same || self.take_late(cx, id, done) { Body::Ack(Ack {}) } else { stale("attempt") };
        }
        let (at, part, attempt, usage) = (cx.now, done.part, done.attempt, done.usage.clone());
        let (by, outputs) = (done.by.clone().unwrap_or_else(|| domain.clone()), done.outputs.clone());
        // The report of it may have been lost, or said while home was down.
        loaded(cx, &job, part, attempt, &outputs);
        cx.record(Event::Uploaded { at, lease: id.clone(), part, attempt, by, outputs: outputs.clone(), usage });
        self.progress.remove(&(job.clone(), part));
        self.moved.insert(domain, cx.now);
        if cx.book.jobs.get(&job).is_some_and(|j| j.terms.parent.is_some()) {
            // Who sells on holds no key; home will look.
            cx.record(Event::Verified { at, job: job.clone(), part, attempt });
        } else {
            cx.out.push(Output::Check { job: job.clone(), part, attempt, outputs });
        }
        // There is room for one more at that domain.
        if let Some(next) = self.next_call.get_mut(&job) {
            (next.empty, next.at) = (0, next.at.min(at.plus(cx.config.timers.recall_ms)));
        }
        self.end_if_done(cx, id);
        Body::Ack(Ack {})
    }

    pub(super) fn returned(&mut self, cx: &mut Cx, id: &LeaseId, parts: Vec<PartRef>, reason: &str) {
        let Some((job, domain)) = cx.book.leases.get(id).map(|l| (l.job.clone(), l.domain.clone())) else { return };
        if !parts.is_empty() {
            for part in &parts {
                self.progress.remove(&(job.clone(), part.part));
            }
            cx.record(Event::Returned { at: cx.now, lease: id.clone(), parts, reason: reason.into() });
            if cx.book.marks.get(&domain).is_some_and(|r| r.returns_in_row >= ROW_MAX) {
                self.mark(cx, &domain, Mark::Suspect);
            }
            self.call_soon(cx.now, &job);
        }
        self.end_if_done(cx, id);
    }

    fn all_returned(&mut self, cx: &mut Cx, id: &LeaseId, reason: &str) {
        let parts = cx.book.live_parts(id).map(|(r, _)| r).collect();
        self.returned(cx, id, parts, reason);
    }

    /// Ends a lease that has nothing more to deliver.
    pub(super) fn end_if_done(&mut self, cx: &mut Cx, id: &LeaseId) {
        let Some(lease) = cx.book.leases.get(id).filter(|l| l.stage > Stage::Awarded && l.stage != Stage::Over) else {
            return;
        };
        if cx.book.live_parts(id).next().is_some() {
            return;
        }
        let (domain, frame) = (lease.domain.clone(), frame(cx.book, &lease.job));
        self.end(cx, id);
        let secret = cx.secret(id).0;
        if let Some(frame) = frame {
            cx.ask(&domain, frame, Body::Release(Release { lease: id.clone(), secret }), About::Nothing);
        }
    }

    fn end(&mut self, cx: &mut Cx, id: &LeaseId) {
        cx.record(Event::Ended { at: cx.now, lease: id.clone() });
        self.watch.remove(id);
    }

    /// The job has ended: whoever works for it is told, until it has heard it or is lost.
    pub(super) fn farewell(&mut self, cx: &mut Cx, job: &crate::id::JobId) {
        let leases: Vec<_> = cx.book.leases.iter().filter(|(_, l)| l.job == *job && l.stage != Stage::Over).collect();
        let leases: Vec<_> = leases.into_iter().map(|(id, l)| (id.clone(), l.stage)).collect();
        for (id, stage) in leases {
            if stage == Stage::Awarded {
                self.withdraw(cx, &id, "the job has ended");
            } else {
                let now = cx.now;
                self.watch.entry(id.clone()).or_insert(Watch::new(now, now)).next = now;
                self.ask_lease(cx, &id);
            }
        }
    }

    pub(super) fn cancel_answered(&mut self, cx: &mut Cx, id: &LeaseId, answer: Result<Body, Lost>) {
        if cx.book.leases.get(id).is_none_or(|l| l.stage == Stage::Over) {
            return;
        }
        match answer {
            Ok(_) => self.end(cx, id),
            Err(_) => self.missed(cx, id),
        }
    }

    pub(super) fn tick_leases(&mut self, cx: &mut Cx) {
        let all: Vec<_> = self.watch.keys().cloned().collect();
        for id in all {
            let Some(lease) = cx.book.leases.get(&id) else { continue };
            let Some(watch) = self.watch.get(&id) else { continue };
            let (stage, ask) = (lease.stage, !watch.asked && watch.next <= cx.now);
            match stage {
                Stage::Awarded if watch.accept_by <= cx.now => self.not_accepted(cx, &id, "not accepted in time"),
                Stage::Awarded if ask => self.send_award(cx, &id),
                Stage::Committed | Stage::Confirmed if watch.lost_at(lease, cx.config) <= cx.now => {
                    self.judge_lost(cx, &id);
                }
                Stage::Committed | Stage::Confirmed if ask => self.ask_lease(cx, &id),
                _ => {}
            }
        }
    }

    /// When most holders of leases are silent at once, it is rather this domain that is cut off: each clock is stopped once,
    /// for the length of the lease.
    fn judge_lost(&mut self, cx: &mut Cx, id: &LeaseId) {
        let Some(lease) = cx.book.leases.get(id) else { return };
        let (ttl_ms, domain, job) = (lease.ttl_ms, lease.domain.clone(), lease.job.clone());
        let mut peers: Vec<_> = self.watch.keys().filter_map(|l| cx.book.leases.get(l)).map(|l| &l.domain).collect();
        peers.retain(|d| **d != cx.config.me);
        peers.sort_unstable();
        peers.dedup();
        let silent = peers.iter().filter(|d| self.is_silent(cx.book, d)).count();
        let amnesty = peers.len() >= 2 && silent * 2 > peers.len();
        if let Some(watch) = self.watch.get_mut(id)
            && amnesty
            && !watch.amnestied
        {
            (watch.amnestied, watch.heard) = (true, watch.heard.plus(ttl_ms));
            return;
        }
        let closing = cx.book.jobs.get(&job).is_none_or(|j| !j.is_open());
        if closing {
            return self.end(cx, id);
        }
        cx.record(Event::Lost { at: cx.now, lease: id.clone() });
        self.watch.remove(id);
        self.mark(cx, &domain, Mark::Suspect);
        let secret = cx.secret(id).0;
        if let Some(frame) = frame(cx.book, &job) {
            let reason = "lease lost".into();
            let cancel = Cancel { lease: id.clone(), secret, reason, parts: Vec::new() };
            cx.ask(&domain, frame, Body::Cancel(cancel), About::Nothing);
        }
        self.call_soon(cx.now, &job);
    }

    /// Whether a lease's holder has missed questions, for views.
    pub fn is_suspect(&self, id: &LeaseId) -> bool {
        self.watch.get(id).is_some_and(|w| w.missed >= SILENT)
    }
}

/// Takes up a part's first objects, once for each attempt.
pub(super) fn loaded(cx: &mut Cx, job: &JobId, part: u32, attempt: u32, outputs: &[message::Output]) {
    let Some(record) = cx.book.jobs.get(job) else { return };
    let own = record.terms.parent.is_none();
    let known = |p: &Part| p.loaded.as_ref().is_some_and(|(of, _)| *of == attempt);
    if outputs.is_empty() || record.parts.get(&part).is_none_or(known) {
        return;
    }
    let (job, outputs) = (job.clone(), outputs.to_vec());
    cx.record(Event::Loaded { at: cx.now, job: job.clone(), part, attempt, outputs: outputs.clone() });
    if own {
        cx.out.push(Output::Loaded { job, part, attempt, outputs });
    }
}
