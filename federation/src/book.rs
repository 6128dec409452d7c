//! The lasting state of a domain: the fold of its events.
//!
//! Part, as its home sees it: `open → awarded → committed → uploaded → verified`; back to `open` only by an event that ends the
//! lease's claim on it ([`Event::Withdrawn`], [`Event::Failed`], [`Event::Returned`], [`Event::Late`], [`Event::Lost`]), and the next award
//! counts a new attempt. Applying is total: an event that does not fit changes nothing.

mod compact;

use std::collections::{BTreeMap, BTreeSet};

use crate::cluster::Failure;
use crate::event::{End, Event, Kept, Mark, Offer, TakenTerms, Terms};
use crate::id::{BidId, DomainId, JobId, LeaseId, Millis};
use crate::message::{Output, PartAward, PartCall, PartRef, Usage};

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Book {
    pub jobs: BTreeMap<JobId, Job>,
    /// Leases granted.
    pub leases: BTreeMap<LeaseId, Lease>,
    /// Leases taken.
    pub taken: BTreeMap<LeaseId, Taken>,
    pub marks: BTreeMap<DomainId, Record>,
}

/// A job that this domain answers for.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    pub terms: Terms,
    pub parts: BTreeMap<u32, Part>,
    /// Every bid and refusal, for `why`; the newest last, a bounded number.
    pub offers: Vec<(Millis, DomainId, Offer)>,
    pub times: Times,
    pub end: Option<End>,
}

/// When what happened first (or last); the timeline. The negotiation is that of the first round of bids that placed anything: later rounds
/// place what came free again, or was not there yet.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Times {
    pub submitted: Millis,
    /// Rounds so far, from the first on that placed anything.
    pub calls: u32,
    pub first_call: Option<Millis>,
    pub last_bid: Option<Millis>,
    pub first_commit: Option<Millis>,
    /// When the last domain said that it knows of its commitment.
    pub last_commit: Option<Millis>,
    pub first_fetch: Option<Millis>,
    pub first_upload: Option<Millis>,
    pub last_upload: Option<Millis>,
    pub last_verified: Option<Millis>,
    pub ended: Option<Millis>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    pub call: PartCall,
    pub state: PartState,
    /// Awards so far.
    pub attempt: u32,
    /// Tries that failed.
    pub failures: u32,
    /// Domains that failed at it, gave it back or were late with it.
    pub avoid: BTreeSet<DomainId>,
    /// Those of them that blame the source: nobody would do better.
    pub accusers: BTreeSet<DomainId>,
    pub last_failure: Option<Failure>,
    /// Sound packets and the like that were there before the end.
    pub loaded: Option<(u32, Vec<Output>)>,
    pub result: Option<PartResult>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum PartState {
    Open,
    Awarded(LeaseId),
    Committed(LeaseId),
    Uploaded(LeaseId),
    Verified,
    /// Only for parts that are sold on: one try here, and then the word goes up to who gave them.
    GivenUp(Failure),
}

#[derive(Clone, Debug, PartialEq)]
pub struct PartResult {
    pub attempt: u32,
    /// Whose lease it was, and who did it in the end.
    pub domain: DomainId,
    pub by: DomainId,
    pub price: f64,
    pub outputs: Vec<Output>,
    pub usage: Usage,
    pub at: Millis,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Lease {
    pub at: Millis,
    pub job: JobId,
    pub domain: DomainId,
    pub bid: BidId,
    pub ttl_ms: u64,
    pub renew_ms: u64,
    pub finish_p90_ms: u64,
    /// Of one part.
    pub price: f64,
    /// As awarded, for ever; which of them are still its own is said by the job's parts.
    pub parts: Vec<PartRef>,
    pub stage: Stage,
    /// Won in the job's first round of bids.
    pub first_round: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    Awarded,
    Committed,
    Confirmed,
    /// Lost, withdrawn or ended: nothing it says counts any more.
    Over,
}

/// A lease taken, with what is still to be done or said.
#[derive(Clone, Debug, PartialEq)]
pub struct Taken {
    pub terms: TakenTerms,
    pub at: Millis,
    pub parts: BTreeMap<u32, TakenPart>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct TakenPart {
    pub award: PartAward,
    pub state: TakenState,
}

#[derive(Clone, Debug, PartialEq)]
pub enum TakenState {
    Waiting,
    Started,
    /// Offered to others by this job.
    Sold(JobId),
    Kept(Kept),
}

/// What is held against a domain.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Record {
    pub mark: Option<Mark>,
    pub until: Millis,
    pub marked: u32,
    pub failures: u32,
    /// Failures since its last good part.
    pub failures_in_row: u32,
    /// Times since its last good part that it won parts and gave some back; and when it last did.
    #[serde(default)]
    pub returns_in_row: u32,
    #[serde(default)]
    pub returned_at: Millis,
    pub verified: u32,
    pub lost: u32,
}

/// More offers than this are not kept for `why`.
const OFFERS_MAX: usize = 1024;

impl Part {
    fn new(call: PartCall) -> Self {
        Self {
            call,
            state: PartState::Open,
            attempt: 0,
            failures: 0,
            avoid: BTreeSet::new(),
            accusers: BTreeSet::new(),
            last_failure: None,
            loaded: None,
            result: None,
        }
    }

    /// The lease that has a claim on it and has not delivered.
    pub fn live(&self) -> Option<&LeaseId> {
        match &self.state {
            PartState::Awarded(lease) | PartState::Committed(lease) => Some(lease),
            _ => None,
        }
    }
}

impl Job {
    pub fn is_open(&self) -> bool {
        self.end.is_none()
    }

    pub fn open_parts(&self) -> impl Iterator<Item = (u32, &Part)> {
        self.parts.iter().filter(|(_, p)| p.state == PartState::Open).map(|(n, p)| (*n, p))
    }
}

impl Book {
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Submitted { at, job, terms, parts } => self.submitted(*at, job, terms, parts),
            Event::PartsAdded { job, parts, .. } => {
                if let Some(job) = self.jobs.get_mut(job) {
                    for call in parts {
                        job.parts.entry(call.part).or_insert_with(|| Part::new(call.clone()));
                    }
                }
            }
            Event::Called { at, job, .. } => {
                let placed = self.jobs.get(job).is_some_and(|job| job.parts.values().any(|part| part.attempt > 0));
                self.time(job, |t| {
                    t.first_call = t.first_call.or(Some(*at));
                    t.calls = if placed { t.calls + 1 } else { 1 };
                });
            }
            Event::Offered { at, job, domain, offer } => {
                if let Some(job) = self.jobs.get_mut(job) {
                    if matches!(offer, Offer::Bid(_)) && job.times.calls <= 1 {
                        job.times.last_bid = Some(*at);
                    }
                    if job.offers.len() >= OFFERS_MAX {
                        job.offers.remove(0);
                    }
                    job.offers.push((*at, domain.clone(), offer.clone()));
                }
            }
            Event::Awarded { at, job, lease, domain, bid, ttl_ms, renew_ms, finish_p90_ms, price, parts } => {
                let Some(record) = self.jobs.get_mut(job) else { return };
                for part in parts {
                    if let Some(p) = record.parts.get_mut(&part.part) {
                        p.attempt = part.attempt;
                        p.state = PartState::Awarded(lease.clone());
                    }
                }
                let (job, domain, bid) = (job.clone(), domain.clone(), bid.clone());
                let (at, ttl_ms, renew_ms, finish_p90_ms) = (*at, *ttl_ms, *renew_ms, *finish_p90_ms);
                let (price, parts, stage, first_round) =
                    (*price, parts.clone(), Stage::Awarded, record.times.calls <= 1);
                let granted =
                    Lease { at, job, domain, bid, ttl_ms, renew_ms, finish_p90_ms, price, parts, stage, first_round };
                self.leases.insert(lease.clone(), granted);
            }
            Event::Withdrawn { lease, .. } => self.reopen_all(lease, &given_back("not-accepted", "")),
            Event::Committed { at, lease } => self.committed(*at, lease),
            Event::Confirmed { at, lease } => {
                self.stage(lease, Stage::Confirmed);
                if let Some(job) = self.leases.get(lease).filter(|l| l.first_round).map(|l| l.job.clone()) {
                    self.time(&job, |t| t.last_commit = Some(*at));
                }
            }
            Event::Fetching { at, job } => self.time(job, |t| t.first_fetch = t.first_fetch.or(Some(*at))),
            Event::Loaded { job, part, attempt, outputs, .. } => {
                let result_of = |p: &Part| p.result.as_ref().is_some_and(|r| r.attempt == *attempt);
                if let Some(p) = self.part(job, *part).filter(|p| p.attempt == *attempt || result_of(p)) {
                    p.loaded = Some((*attempt, outputs.clone()));
                }
            }
            Event::Uploaded { at, lease, part, attempt, by, outputs, usage } => {
                let Some((job, result)) = self.result(*at, lease, *attempt, by, outputs, usage) else { return };
                if let Some(p) = self.part(&job, *part).filter(|p| p.live() == Some(lease)) {
                    p.state = PartState::Uploaded(lease.clone());
                    p.result = Some(result);
                }
                self.uploaded(*at, &job);
            }
            Event::Verified { at, job, part, attempt } => self.verified(*at, job, *part, *attempt),
            Event::Adopted { at, lease, part, attempt, by, outputs, usage } => {
                let Some((job, result)) = self.result(*at, lease, *attempt, by, outputs, usage) else { return };
                let open = |p: &&mut Part| p.state == PartState::Open || p.live().is_some();
                if let Some(p) = self.part(&job, *part).filter(open) {
                    p.result = Some(result);
                    self.uploaded(*at, &job);
                    self.verified(*at, &job, *part, *attempt);
                }
            }
            Event::Failed { lease, part, failure, .. } => self.failed(lease, *part, failure),
            Event::Returned { at, lease, parts, reason } => self.returned(*at, lease, parts, reason),
            Event::Lost { lease, .. } => {
                if let Some(domain) = self.leases.get(lease).map(|l| l.domain.clone()) {
                    self.marks.entry(domain).or_default().lost += 1;
                }
                self.reopen_all(lease, &given_back("lease-lost", "silent for longer than its lease"));
            }
            Event::Late { lease, parts, .. } => self.late(lease, parts),
            Event::Ended { lease, .. } => self.stage(lease, Stage::Over),
            Event::Closed { at, job, end } => {
                if let Some(job) = self.jobs.get_mut(job) {
                    job.end.get_or_insert_with(|| end.clone());
                    job.times.ended.get_or_insert(*at);
                }
            }
            Event::Forgotten { job, .. } => {
                self.jobs.remove(job);
                self.leases.retain(|_, lease| lease.job != *job);
            }
            Event::Marked { domain, mark, until, .. } => {
                let record = self.marks.entry(domain.clone()).or_default();
                (record.mark, record.until) = (Some(*mark), *until);
                (record.failures_in_row, record.returns_in_row) = (0, 0);
                record.marked += 1;
            }
            Event::Standing { domain, record } => drop(self.marks.insert(domain.clone(), record.clone())),
            Event::Taken { at, lease, terms, parts } => {
                let parts = parts.iter().map(|p| (p.part, TakenPart { award: p.clone(), state: TakenState::Waiting }));
                let taken = Taken { terms: terms.clone(), at: *at, parts: parts.collect() };
                self.taken.insert(lease.clone(), taken);
            }
            Event::Started { lease, part, .. } => self.taken_state(lease, *part, TakenState::Started),
            Event::Kept { lease, part, result, .. } => self.taken_state(lease, *part, TakenState::Kept(result.clone())),
            Event::Settled { lease, part, .. } => self.forget(lease, &[*part]),
            Event::Dropped { lease, parts, .. } => {
                self.forget(lease, &parts.iter().map(|p| p.part).collect::<Vec<_>>());
            }
            Event::Unsold { lease, parts, .. } => {
                for part in parts {
                    let state = self.taken.get(lease).and_then(|t| t.parts.get(part)).map(|p| p.state.clone());
                    if let Some(TakenState::Sold(job)) = state {
                        self.taken_state(lease, *part, TakenState::Waiting);
                        if let Some(job) = self.jobs.get_mut(&job) {
                            job.parts.remove(part);
                        }
                    }
                }
            }
            Event::LeaseClosed { lease, .. } => {
                self.taken.remove(lease);
            }
        }
    }

    pub fn is_marked(&self, domain: &DomainId, now: Millis) -> bool {
        self.marks.get(domain).is_some_and(|r| r.mark.is_some() && r.until > now)
    }

    /// A job that has ended, and of whose leases nobody has to be told any more.
    pub fn is_over(&self, job: &JobId) -> bool {
        self.jobs.get(job).is_none_or(|job| !job.is_open())
            && self.leases.values().all(|lease| lease.job != *job || lease.stage == Stage::Over)
    }

    /// Parts of a granted lease that it still has to deliver.
    pub fn live_parts<'a>(&'a self, id: &'a LeaseId) -> impl Iterator<Item = (PartRef, &'a Part)> {
        let lease = self.leases.get(id);
        let job = lease.and_then(|l| self.jobs.get(&l.job));
        let parts = lease.map(|l| l.parts.as_slice()).unwrap_or_default();
        parts.iter().filter_map(move |r| {
            let part = job?.parts.get(&r.part)?;
            (part.live() == Some(id)).then_some((*r, part))
        })
    }

    /// What is promised or spent for a job.
    pub fn spend(&self, job: &Job) -> f64 {
        let price = |p: &Part| match &p.state {
            PartState::Open | PartState::GivenUp(_) => 0.0,
            PartState::Verified => p.result.as_ref().map_or(0.0, |r| r.price),
            PartState::Awarded(l) | PartState::Committed(l) | PartState::Uploaded(l) => {
                self.leases.get(l).map_or(0.0, |l| l.price)
            }
        };
        job.parts.values().map(price).sum::<f64>().min(f64::MAX)
    }

    fn submitted(&mut self, at: Millis, job: &JobId, terms: &Terms, parts: &[PartCall]) {
        if let Some(parent) = terms.parent.as_ref().and_then(|l| self.taken.get_mut(l)) {
            for call in parts {
                if let Some(p) = parent.parts.get_mut(&call.part) {
                    p.state = TakenState::Sold(job.clone());
                }
            }
        }
        let times = Times { submitted: at, ..Times::default() };
        let parts = parts.iter().map(|c| (c.part, Part::new(c.clone()))).collect();
        let job_new = Job { terms: terms.clone(), parts, offers: Vec::new(), times, end: None };
        self.jobs.entry(job.clone()).or_insert(job_new);
    }

    fn committed(&mut self, at: Millis, lease: &LeaseId) {
        self.stage(lease, Stage::Committed);
        let Some(granted) = self.leases.get(lease) else { return };
        let (job, parts) = (granted.job.clone(), granted.parts.clone());
        for part in parts {
            if let Some(p) = self.part(&job, part.part).filter(|p| p.live() == Some(lease)) {
                p.state = PartState::Committed(lease.clone());
            }
        }
        self.time(&job, |t| t.first_commit = t.first_commit.or(Some(at)));
    }

    fn result(
        &self,
        at: Millis,
        lease: &LeaseId,
        attempt: u32,
        by: &DomainId,
        outputs: &[Output],
        usage: &Usage,
    ) -> Option<(JobId, PartResult)> {
        let Lease { job, domain, price, .. } = self.leases.get(lease)?;
        let (by, outputs, usage) = (by.clone(), outputs.to_vec(), usage.clone());
        Some((job.clone(), PartResult { attempt, domain: domain.clone(), by, price: *price, outputs, usage, at }))
    }

    fn uploaded(&mut self, at: Millis, job: &JobId) {
        self.time(job, |t| {
            t.first_upload = t.first_upload.or(Some(at));
            t.last_upload = Some(at);
        });
    }

    fn verified(&mut self, at: Millis, job: &JobId, part: u32, attempt: u32) {
        let Some(p) = self.part(job, part) else { return };
        let Some(result) = p.result.as_ref().filter(|r| r.attempt == attempt) else { return };
        let domain = result.domain.clone();
        p.state = PartState::Verified;
        let wrong: Vec<_> = p.accusers.iter().filter(|d| **d != domain).cloned().collect();
        wrong.into_iter().for_each(|accuser| self.count_failure(accuser));
        let record = self.marks.entry(domain).or_default();
        record.verified += 1;
        (record.failures_in_row, record.returns_in_row) = (0, 0);
        self.time(job, |t| t.last_verified = Some(at));
    }

    fn failed(&mut self, lease: &LeaseId, part: u32, failure: &Failure) {
        let Some((job, domain)) = self.leases.get(lease).map(|l| (l.job.clone(), l.domain.clone())) else { return };
        self.reopen(lease, part, failure);
        if let Some(p) = self.part(&job, part) {
            p.failures += 1;
            p.avoid.insert(domain.clone());
            if failure.blames_source() {
                p.accusers.insert(domain.clone());
            }
            p.last_failure = Some(failure.clone());
        }
        // What is wrong with the source says nothing about the domain, unless another finds it right.
        if !failure.blames_source() {
            self.count_failure(domain);
        }
    }

    fn count_failure(&mut self, domain: DomainId) {
        let record = self.marks.entry(domain).or_default();
        record.failures += 1;
        record.failures_in_row += 1;
    }

    /// What it gives back goes to others if any other bids. Whoever needs its capacity gives back all it has, in many words: that counts
    /// once, and again only for what it has won since.
    fn returned(&mut self, at: Millis, lease: &LeaseId, parts: &[PartRef], reason: &str) {
        let Some((domain, won_at)) = self.leases.get(lease).map(|l| (l.domain.clone(), l.at)) else { return };
        self.move_on(lease, parts, &given_back("returned", reason));
        let record = self.marks.entry(domain).or_default();
        if won_at > record.returned_at {
            record.returned_at = at;
            record.returns_in_row += 1;
        }
    }

    fn late(&mut self, lease: &LeaseId, parts: &[PartRef]) {
        let Some(domain) = self.leases.get(lease).map(|l| l.domain.clone()) else { return };
        self.marks.entry(domain).or_default().lost += 1;
        self.move_on(lease, parts, &given_back("late", "it did not get on with it"));
    }

    /// Parts that others are to have, if any other bids.
    fn move_on(&mut self, lease: &LeaseId, parts: &[PartRef], why: &Failure) {
        let Some((job, domain)) = self.leases.get(lease).map(|l| (l.job.clone(), l.domain.clone())) else { return };
        for part in parts {
            self.reopen(lease, part.part, why);
            if let Some(p) = self.part(&job, part.part) {
                p.avoid.insert(domain.clone());
            }
        }
    }

    /// Ends the claim of `lease` on a part. What was sold on is not tried again here once work may have started.
    fn reopen(&mut self, lease: &LeaseId, part: u32, why: &Failure) {
        let Some(job) = self.leases.get(lease).and_then(|l| self.jobs.get_mut(&l.job)) else { return };
        let sold = job.terms.parent.is_some();
        let Some(p) = job.parts.get_mut(&part) else { return };
        let idle = p.state == PartState::Awarded(lease.clone());
        if idle || p.live() == Some(lease) || p.state == PartState::Uploaded(lease.clone()) {
            p.state = if sold && !idle { PartState::GivenUp(why.clone()) } else { PartState::Open };
            (p.result, p.loaded) = (None, None);
        }
    }

    fn reopen_all(&mut self, lease: &LeaseId, why: &Failure) {
        let live: Vec<u32> = self.live_parts(lease).map(|(r, _)| r.part).collect();
        for part in live {
            self.reopen(lease, part, why);
        }
        self.stage(lease, Stage::Over);
    }

    fn forget(&mut self, lease: &LeaseId, parts: &[u32]) {
        if let Some(taken) = self.taken.get_mut(lease) {
            taken.parts.retain(|n, _| !parts.contains(n));
        }
    }

    fn taken_state(&mut self, lease: &LeaseId, part: u32, state: TakenState) {
        if let Some(p) = self.taken.get_mut(lease).and_then(|t| t.parts.get_mut(&part)) {
            p.state = state;
        }
    }

    fn stage(&mut self, lease: &LeaseId, stage: Stage) {
        if let Some(lease) = self.leases.get_mut(lease) {
            lease.stage = stage;
        }
    }

    fn part(&mut self, job: &JobId, part: u32) -> Option<&mut Part> {
        self.jobs.get_mut(job)?.parts.get_mut(&part)
    }

    fn time(&mut self, job: &JobId, set: impl FnOnce(&mut Times)) {
        if let Some(job) = self.jobs.get_mut(job) {
            set(&mut job.times);
        }
    }
}

fn given_back(code: &str, log: &str) -> Failure {
    Failure { class: "preempted".into(), retryable: true, code: code.into(), log: log.into() }
}
