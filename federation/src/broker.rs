//! The home side: calls for bids, awards, renews leases, and gives parts to others when they fail or are lost.
//!
//! The lasting state is in the [`Book`]; here is only what can be learned again. A lease, as seen from here:
//! `awarded → committed → confirmed → over`. Work may have started from `committed` on, so from there a part comes free only
//! when the domain itself says so, or after its lease and the grace have passed in silence.

mod late;
mod lease;
mod round;
mod sale;

use std::collections::BTreeMap;

use crate::book::{Book, PartResult, PartState, Stage};
use crate::cluster::Failure;
use crate::cx::{About, Cx, Frame};
use crate::domain::{DomainConfig, Lost, Output};
use crate::event::{End, Event, Mark, Terms};
use crate::id::{DomainId, JobId, LeaseId, Millis};
use crate::message::{Ack, Ad, Body, Envelope, PartCall, PartProgress, Stale};

use late::Late;
use lease::Watch;
use round::{NextCall, Round};

/// A part is tried this often in all.
pub(crate) const TRIES_MAX: u32 = 3;
/// Domains that must blame the source before a job fails for it.
const OPINIONS: usize = 2;
/// Failures in a row that make a domain a black hole; calls in a row without answer, awards not accepted, and wins given back, that make it suspect.
const ROW_MAX: u32 = 3;
const DISHONEST_FACTOR: u64 = 10;
/// Ads of more domains than this are not kept.
const ADS_MAX: usize = 4_096;

#[derive(Default)]
pub(crate) struct Broker {
    pub ads: BTreeMap<DomainId, (Ad, Millis)>,
    rounds: BTreeMap<JobId, Round>,
    round_count: u64,
    next_call: BTreeMap<JobId, NextCall>,
    /// Jobs whose parts are not known yet, with the work of a likely one. To be said again after a restart.
    expected: BTreeMap<JobId, u64>,
    watch: BTreeMap<LeaseId, Watch>,
    progress: BTreeMap<(JobId, u32), PartProgress>,
    /// When a domain last got on with anything.
    moved: BTreeMap<DomainId, Millis>,
    /// Calls in a row that a domain has not answered, or with an error.
    unanswered: BTreeMap<DomainId, u32>,
    /// Awards in a row that a domain has not accepted.
    unaccepted: BTreeMap<DomainId, u32>,
    /// Results of attempts that were given up, while they are looked at.
    late: BTreeMap<(JobId, u32, u32), Late>,
}

impl Broker {
    pub fn submit(
        &mut self,
        cx: &mut Cx,
        job: JobId,
        kind: String,
        parts: Vec<PartCall>,
        deadline: Option<Millis>,
        budget: Option<f64>,
    ) {
        match cx.book.jobs.get(&job) {
            None => {
                let terms = own_terms(cx, &job, kind, deadline, budget);
                self.take_on(cx, job, terms, parts);
            }
            Some(expected) if expected.parts.is_empty() => self.add_parts(cx, &job, parts),
            Some(_) => {} // said twice
        }
    }

    /// Calls for bids before there are parts: finding out what they are takes as long as the call.
    pub fn expect(
        &mut self,
        cx: &mut Cx,
        job: JobId,
        kind: String,
        part_work_ms: u64,
        deadline: Option<Millis>,
        budget: Option<f64>,
    ) {
        let known = cx.book.jobs.get(&job);
        if known.is_some_and(|known| !known.is_open() || !known.parts.is_empty()) {
            return;
        }
        self.expected.insert(job.clone(), part_work_ms);
        if known.is_some() {
            return self.call_soon(cx.now, &job);
        }
        let terms = own_terms(cx, &job, kind, deadline, budget);
        self.take_on(cx, job, terms, Vec::new());
    }

    fn take_on(&mut self, cx: &mut Cx, job: JobId, terms: Terms, parts: Vec<PartCall>) {
        cx.record(Event::Submitted { at: cx.now, job: job.clone(), terms, parts });
        self.next_call.insert(job, NextCall { at: cx.now, empty: 0 });
    }

    pub fn add_parts(&mut self, cx: &mut Cx, job: &JobId, parts: Vec<PartCall>) {
        self.expected.remove(job);
        let Some(record) = cx.book.jobs.get(job).filter(|j| j.is_open()) else { return };
        let parts: Vec<_> = parts.into_iter().filter(|p| !record.parts.contains_key(&p.part)).collect();
        if !parts.is_empty() {
            cx.record(Event::PartsAdded { at: cx.now, job: job.clone(), parts });
            self.call_soon(cx.now, job);
        }
    }

    pub fn finish(&mut self, cx: &mut Cx, job: &JobId) {
        if self.close(cx, job, End::Done) {
            cx.out.push(Output::JobDone { job: job.clone() });
        }
    }

    pub fn fail(&mut self, cx: &mut Cx, job: &JobId, code: String, message: String) {
        if self.close(cx, job, End::Failed { code: code.clone(), message: message.clone() }) {
            cx.out.push(Output::JobFailed { job: job.clone(), code, message });
        }
    }

    pub fn cancel(&mut self, cx: &mut Cx, job: &JobId, reason: String) {
        if self.close(cx, job, End::Cancelled { reason: reason.clone() }) {
            cx.out.push(Output::JobCancelled { job: job.clone(), reason });
        }
    }

    fn close(&mut self, cx: &mut Cx, job: &JobId, end: End) -> bool {
        if !cx.book.jobs.get(job).is_some_and(|j| j.is_open()) {
            return false;
        }
        cx.record(Event::Closed { at: cx.now, job: job.clone(), end });
        self.next_call.remove(job);
        self.expected.remove(job);
        self.progress.retain(|(j, _), _| j != job);
        self.late.retain(|(j, _, _), _| j != job);
        self.drop_round(cx, job);
        self.farewell(cx, job);
        true
    }

    pub fn forget(&mut self, cx: &mut Cx, job: &JobId) {
        if cx.book.jobs.contains_key(job) && cx.book.is_over(job) {
            cx.record(Event::Forgotten { at: cx.now, job: job.clone() });
        }
    }

    pub fn ad(&mut self, cx: &mut Cx, ad: Ad) {
        if ad.domain == cx.config.me {
            return;
        }
        let old = self.ads.get(&ad.domain).map(|(a, _)| (a.epoch, a.seq));
        if old.is_some_and(|old| old > (ad.epoch, ad.seq)) || (old.is_none() && self.ads.len() >= ADS_MAX) {
            return;
        }
        if old.is_some_and(|(epoch, _)| epoch < ad.epoch) {
            self.ask_soon(cx, &ad.domain);
        }
        if ad.slots_free > 0 {
            self.something_freed();
        }
        self.ads.insert(ad.domain.clone(), (ad, cx.now));
    }

    pub fn ad_gone(&mut self, domain: &DomainId) {
        self.ads.remove(domain);
    }

    /// A later call may find more bidders than the last did.
    pub fn something_freed(&mut self) {
        for next in self.next_call.values_mut() {
            next.empty = 0;
        }
    }

    pub fn checked(&mut self, cx: &mut Cx, job: &JobId, part: u32, attempt: u32, result: Result<(), String>) {
        let Some(record) = cx.book.jobs.get(job).filter(|j| j.is_open()) else { return };
        if let Some(late) = self.late.remove(&(job.clone(), part, attempt)) {
            return self.adopt(cx, job, part, late, result);
        }
        let Some(p) = record.parts.get(&part).filter(|p| p.attempt == attempt) else { return };
        let (PartState::Uploaded(lease), Some(done)) = (p.state.clone(), p.result.clone()) else { return };
        match result {
            Ok(()) => {
                cx.record(Event::Verified { at: cx.now, job: job.clone(), part, attempt });
                self.verified(cx, job, part, done);
            }
            Err(what) => {
                let (class, code) = ("internal".into(), "wrong-hash".into());
                let failure = Failure { class, retryable: true, code, log: what };
                self.mark(cx, &done.domain, Mark::Dishonest);
                self.part_failed(cx, &lease, part, attempt, failure);
            }
        }
    }

    /// A part has its result for good.
    fn verified(&mut self, cx: &mut Cx, job: &JobId, part: u32, result: PartResult) {
        let PartResult { attempt, domain, by, outputs, usage, .. } = result;
        self.progress.remove(&(job.clone(), part));
        cx.out.push(Output::PartVerified { job: job.clone(), part, attempt, domain, by, outputs, usage });
        let accusers = cx.book.jobs.get(job).and_then(|j| j.parts.get(&part)).map(|p| p.accusers.clone());
        for accuser in accusers.unwrap_or_default() {
            self.mark_black_hole(cx, &accuser);
        }
        self.something_freed();
        self.tell_if_all(cx, job);
    }

    fn tell_if_all(&self, cx: &mut Cx, job: &JobId) {
        let Some(record) = cx.book.jobs.get(job).filter(|j| j.is_open() && j.terms.parent.is_none()) else { return };
        if !record.parts.is_empty() && record.parts.values().all(|p| p.state == PartState::Verified) {
            cx.out.push(Output::AllParts { job: job.clone() });
        }
    }

    fn part_failed(&mut self, cx: &mut Cx, lease: &LeaseId, part: u32, attempt: u32, failure: Failure) {
        let Some((job, domain)) = cx.book.leases.get(lease).map(|l| (l.job.clone(), l.domain.clone())) else { return };
        cx.record(Event::Failed { at: cx.now, lease: lease.clone(), part, attempt, failure });
        self.progress.remove(&(job.clone(), part));
        self.moved.insert(domain.clone(), cx.now);
        self.mark_black_hole(cx, &domain);
        self.judge(cx, &job);
        self.call_soon(cx.now, &job);
    }

    fn mark_black_hole(&mut self, cx: &mut Cx, domain: &DomainId) {
        if cx.book.marks.get(domain).is_some_and(|r| r.failures_in_row >= ROW_MAX) {
            self.mark(cx, domain, Mark::BlackHole);
        }
    }

    /// Fails a job that has a hopeless part. What is sold on is not judged here. That the source is to blame must be said by two
    /// domains or by the own cluster: one alone may be mistaken, or lie.
    fn judge(&mut self, cx: &mut Cx, job: &JobId) {
        let Some(record) = cx.book.jobs.get(job).filter(|j| j.is_open() && j.terms.parent.is_none()) else { return };
        let hopeless = record.parts.iter().find_map(|(n, p)| {
            let last = p.last_failure.as_ref().filter(|_| p.state == PartState::Open)?;
            let agreed = p.accusers.len() >= OPINIONS || p.accusers.contains(&cx.config.me);
            (agreed || p.failures >= TRIES_MAX).then(|| (*n, p.failures, last.clone()))
        });
        if let Some((n, tries, last)) = hopeless {
            let message = format!("part {n} failed after {tries} tries: {}", last.log);
            self.fail(cx, job, last.code, message);
        }
    }

    /// No awards for this domain for a while: of two marks the graver counts, for the longer time. The own cluster is not marked: there is
    /// nobody to hide behind.
    pub fn mark(&mut self, cx: &mut Cx, domain: &DomainId, mark: Mark) {
        let cool_down_ms = cx.config.timers.cool_down_ms;
        let factor = if mark == Mark::Dishonest { DISHONEST_FACTOR } else { 1 };
        let until = cx.now.plus(cool_down_ms.saturating_mul(factor));
        let held = cx.book.marks.get(domain).filter(|r| r.until > cx.now);
        let (held, held_until) = held.map_or((None, cx.now), |r| (r.mark, r.until));
        // What would add less than a cool-down is not written down: it may be said very often.
        let known = held >= Some(mark) && until <= held_until.plus(cool_down_ms);
        if *domain == cx.config.me || known {
            return;
        }
        let (mark, until) = (held.map_or(mark, |held| held.max(mark)), until.max(held_until));
        cx.record(Event::Marked { at: cx.now, domain: domain.clone(), mark, until });
    }

    /// What a domain says about a lease that it holds from here; `None`: not for this side.
    pub fn request(&mut self, cx: &mut Cx, from: &DomainId, envelope: &Envelope) -> Option<Body> {
        let (lease, secret) = match &envelope.body {
            Body::Progress(b) => (&b.lease, &b.secret),
            Body::PartDone(b) => (&b.lease, &b.secret),
            Body::PartFailed(b) => (&b.lease, &b.secret),
            Body::Revoke(b) => (&b.lease, &b.secret),
            _ => return None,
        };
        let Some(granted) = cx.book.leases.get(lease) else { return Some(stale("lease")) };
        if granted.domain != *from || cx.secret(lease).0 != *secret {
            self.mark(cx, from, Mark::Dishonest);
            return Some(stale("not your lease"));
        }
        if granted.stage < Stage::Committed {
            return Some(stale("not committed"));
        }
        if granted.stage != Stage::Over {
            self.heard(cx.now, lease);
            self.confirm(cx, lease);
        }
        Some(self.word(cx, lease, &envelope.body))
    }

    fn word(&mut self, cx: &mut Cx, lease: &LeaseId, body: &Body) -> Body {
        match body {
            Body::Progress(b) => {
                if cx.book.leases.get(lease).is_none_or(|l| l.stage == Stage::Over) {
                    return stale("over");
                }
                self.inventory(cx, lease, &b.parts);
                Body::Ack(Ack {})
            }
            Body::PartDone(b) => self.part_done(cx, lease, b),
            Body::PartFailed(b) => {
                if !is_live(cx.book, lease, b.part, b.attempt) {
                    return stale("attempt");
                }
                let (class, retryable, code, log) = (b.class.clone(), b.retryable, b.code.clone(), tail(&b.log));
                self.part_failed(cx, lease, b.part, b.attempt, Failure { class, retryable, code, log });
                self.end_if_done(cx, lease);
                Body::Ack(Ack {})
            }
            Body::Revoke(b) => {
                let live = b.parts.iter().filter(|p| is_live(cx.book, lease, p.part, p.attempt)).copied().collect();
                self.returned(cx, lease, live, &b.reason);
                Body::Ack(Ack {})
            }
            _ => stale("verb"),
        }
    }

    pub fn answered(&mut self, cx: &mut Cx, about: About, from: &DomainId, answer: Result<(Millis, Body), Lost>) {
        match about {
            About::Cfp { job, round } => self.offer(cx, &job, round, from, answer),
            About::Award(lease) => self.award_answered(cx, &lease, answer.map(|a| a.1)),
            About::Commit(lease) => self.commit_answered(cx, &lease, answer.map(|a| a.1)),
            About::Inventory(lease) => self.inventory_answered(cx, &lease, answer.map(|a| a.1)),
            About::Cancel(lease) => self.cancel_answered(cx, &lease, answer.map(|a| a.1)),
            About::Nothing | About::Progress(_) | About::Result { .. } => {}
        }
    }

    pub fn restarted(&mut self, cx: &mut Cx) {
        let leases: Vec<_> = cx.book.leases.iter().map(|(id, l)| (id.clone(), l.stage)).collect();
        for (id, stage) in leases {
            match stage {
                Stage::Awarded => self.withdraw(cx, &id, "home restarted"),
                Stage::Committed | Stage::Confirmed => {
                    self.watch.insert(id, Watch::new(cx.now, cx.now));
                }
                Stage::Over => {}
            }
        }
        let jobs: Vec<_> = cx.book.jobs.iter().filter(|(_, j)| j.is_open()).map(|(id, _)| id.clone()).collect();
        for job in jobs {
            self.judge(cx, &job);
            let Some(record) = cx.book.jobs.get(&job).filter(|j| j.is_open()) else { continue };
            let sold = record.terms.parent.is_some();
            let uploaded: Vec<_> = record
                .parts
                .iter()
                .filter(|(_, p)| matches!(p.state, PartState::Uploaded(_)))
                .filter_map(|(n, p)| Some((*n, p.attempt, p.result.as_ref()?.outputs.clone())))
                .collect();
            for (part, attempt, outputs) in uploaded {
                if sold {
                    cx.record(Event::Verified { at: cx.now, job: job.clone(), part, attempt });
                } else {
                    cx.out.push(Output::Check { job: job.clone(), part, attempt, outputs });
                }
            }
            self.call_soon(cx.now, &job);
            self.tell_if_all(cx, &job);
        }
    }

    /// Everything whose time has come.
    pub fn tick(&mut self, cx: &mut Cx) {
        let timers = &cx.config.timers;
        self.ads.retain(|_, (_, at)| at.plus(timers.ad_stale_ms) > cx.now);
        let late: Vec<_> = cx
            .book
            .jobs
            .iter()
            .filter(|(_, j)| j.is_open() && j.terms.parent.is_none() && j.terms.deadline.is_some_and(|d| d <= cx.now))
            .map(|(id, _)| id.clone())
            .collect();
        for job in late {
            self.fail(cx, &job, "deadline-passed".into(), "the deadline has passed".into());
        }
        // Of what was sold on nothing is shown once the lease that it came with is closed.
        let is_settled = |parent: &Option<LeaseId>| parent.as_ref().is_some_and(|p| !cx.book.taken.contains_key(p));
        let closed = cx.book.jobs.iter().filter(|(_, j)| !j.is_open() && is_settled(&j.terms.parent));
        let sold: Vec<_> = closed.map(|(id, _)| id.clone()).collect();
        for job in sold {
            self.forget(cx, &job);
        }
        self.tick_rounds(cx);
        self.tick_leases(cx);
        self.tick_calls(cx);
    }

    pub fn deadline(&self, book: &Book, config: &DomainConfig) -> Option<Millis> {
        let jobs = book.jobs.values().filter(|j| j.is_open() && j.terms.parent.is_none());
        let deadlines = jobs.filter_map(|j| j.terms.deadline);
        let rounds = self.rounds.values().filter(|r| !r.planned).map(|r| r.close_at);
        let calls = self.next_call.iter().filter(|(job, _)| !self.rounds.contains_key(*job)).map(|(_, c)| c.at);
        let leases = self.watch.iter().filter_map(|(id, w)| w.deadline(book.leases.get(id)?, config));
        deadlines.chain(rounds).chain(calls).chain(leases).min()
    }

    pub fn progress_of(&self, job: &JobId, part: u32) -> Option<&PartProgress> {
        self.progress.get(&(job.clone(), part))
    }

    pub fn is_calling(&self, job: &JobId) -> bool {
        self.rounds.contains_key(job)
    }
}

pub(crate) fn stale(reason: &str) -> Body {
    Body::Stale(Stale { reason: reason.into() })
}

/// Counts one more; true, and from the start again, where that is enough.
fn is_row(counts: &mut BTreeMap<DomainId, u32>, domain: &DomainId) -> bool {
    let count = counts.entry(domain.clone()).or_default();
    *count += 1;
    *count >= ROW_MAX && counts.remove(domain).is_some()
}

fn is_live(book: &Book, lease: &LeaseId, part: u32, attempt: u32) -> bool {
    book.live_parts(lease).any(|(r, _)| r.part == part && r.attempt == attempt)
}

fn own_terms(cx: &Cx, job: &JobId, kind: String, deadline: Option<Millis>, budget: Option<f64>) -> Terms {
    let (home, path, depth_left) = (cx.me(), vec![cx.me()], cx.config.agreements.max_depth);
    Terms { home, name: job.clone(), parent: None, kind, deadline, budget, path, depth_left, orders: Vec::new() }
}

fn frame(book: &Book, job: &JobId) -> Option<Frame> {
    let terms = &book.jobs.get(job)?.terms;
    Some(Frame { job: terms.name.clone(), home: terms.home.clone(), path: terms.path.clone() })
}

/// The last 4 KiB of a log.
fn tail(log: &str) -> String {
    let mut from = log.len().saturating_sub(4096);
    while !log.is_char_boundary(from) {
        from += 1;
    }
    log[from..].to_owned()
}
