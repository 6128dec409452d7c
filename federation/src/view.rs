//! What a person or a program may see of a domain: read-only, and free of secrets.

use serde::Serialize;

use crate::book::{Job, Part, PartState, Record, Times};
use crate::domain::Domain;
use crate::event::{End, Mark, Offer};
use crate::id::{DomainId, JobId, LeaseId, Millis};
use crate::message::{Ad, Output, Usage};

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JobView {
    pub id: JobId,
    pub kind: String,
    /// `bidding`, `running`, `finalising`, `done`, `failed` or `cancelled`.
    pub state: &'static str,
    /// Of a job that failed or was cancelled.
    pub code: Option<String>,
    pub message: Option<String>,
    pub parts: Vec<PartView>,
    pub offers: Vec<OfferView>,
    pub usage: Vec<DomainUsage>,
    pub budget: Option<f64>,
    pub spend: f64,
    pub timeline: Times,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PartView {
    pub n: u32,
    /// `open`, `offered`, `awarded`, `committed`, `running`, `suspect`, `uploaded` or `verified`.
    pub state: &'static str,
    /// What the domain says it is doing: `loading`, `running`, ...
    pub step: Option<String>,
    pub domain: Option<DomainId>,
    /// Who really does it, when it was sold on.
    pub by: Option<DomainId>,
    pub attempt: u32,
    pub failures: u32,
    pub last_failure: Option<String>,
    pub percent: f32,
    /// Bytes to fetch, and fetched.
    pub bytes_total: u64,
    pub bytes: u64,
    pub outputs: Vec<OutputView>,
}

/// An object in the store.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OutputView {
    pub key: String,
    pub size: u64,
    pub sha256: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OfferView {
    pub at: Millis,
    pub domain: DomainId,
    pub parts_max: Option<u32>,
    pub slots: Option<u32>,
    pub price: Option<f64>,
    pub refused: Option<String>,
}

/// What one domain did for a job, by who really did it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DomainUsage {
    pub domain: DomainId,
    pub parts: u32,
    pub price: f64,
    pub usage: Usage,
}

/// A domain as it is known here.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DomainView {
    pub domain: DomainId,
    /// Its own domain's cluster is not in the room.
    pub ad: Option<Ad>,
    pub me: bool,
    /// May it send us work; may ours go there?
    pub admitted: bool,
    pub may_receive: bool,
    pub mark: Option<Mark>,
    pub marked_until: Option<Millis>,
    pub marked: u32,
    pub verified: u32,
    pub failures: u32,
    pub lost: u32,
}

/// A lease that this domain works on for another (or itself).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TakenView {
    pub lease: LeaseId,
    pub from: DomainId,
    pub home: DomainId,
    pub job: JobId,
    pub parts: Vec<TakenPartView>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TakenPartView {
    pub n: u32,
    pub attempt: u32,
    pub state: String,
    pub percent: f32,
    pub bytes: u64,
    pub by: Option<DomainId>,
}

impl Domain {
    /// The jobs that are at home here.
    pub fn jobs(&self) -> impl Iterator<Item = JobView> {
        self.book().jobs.iter().filter(|(_, j)| j.terms.parent.is_none()).map(|(id, j)| self.view(id, j))
    }

    pub fn job(&self, id: &JobId) -> Option<JobView> {
        self.book().jobs.get(id).map(|job| self.view(id, job))
    }

    /// This domain and all that are known by an ad or a record.
    pub fn domains(&self) -> impl Iterator<Item = DomainView> {
        let (ads, marks) = (&self.broker().ads, &self.book().marks);
        let mut all: Vec<_> = ads.keys().chain(marks.keys()).chain([&self.config().me]).cloned().collect();
        all.sort_unstable();
        all.dedup();
        all.into_iter().map(|domain| self.domain_view(domain))
    }

    /// What this domain works on.
    pub fn taken(&self) -> impl Iterator<Item = TakenView> {
        self.book().taken.iter().map(|(id, t)| {
            let progress = |n: &u32| self.contractor().progress(self.book(), id, *n);
            let view = |p: crate::message::PartProgress| TakenPartView {
                n: p.part,
                attempt: p.attempt,
                state: p.state,
                percent: p.percent,
                bytes: p.bytes,
                by: p.by,
            };
            let parts = t.parts.keys().filter_map(progress).map(view).collect();
            let (from, home, job) = (t.terms.from.clone(), t.terms.home.clone(), t.terms.job.clone());
            TakenView { lease: id.clone(), from, home, job, parts }
        })
    }

    /// Parts that are reserved for bids and awards just now, and not committed.
    pub fn held(&self) -> u32 {
        self.contractor().held()
    }

    fn domain_view(&self, domain: DomainId) -> DomainView {
        let record = self.book().marks.get(&domain).cloned().unwrap_or_default();
        let Record { mark, until, marked, failures, verified, lost, .. } = record;
        let policy = self.config().agreements.with(&domain);
        let mark = mark.filter(|_| until > self.now());
        DomainView {
            ad: self.broker().ads.get(&domain).map(|(ad, _)| ad.clone()),
            me: domain == self.config().me,
            admitted: policy.admitted,
            may_receive: policy.may_receive,
            mark,
            marked_until: mark.map(|_| until),
            marked,
            verified,
            failures,
            lost,
            domain,
        }
    }

    fn view(&self, id: &JobId, job: &Job) -> JobView {
        let (code, message) = match &job.end {
            Some(End::Failed { code, message }) => (Some(code.clone()), Some(message.clone())),
            Some(End::Cancelled { reason }) => (Some("cancelled".into()), Some(reason.clone())),
            Some(End::Done) | None => (None, None),
        };
        JobView {
            id: id.clone(),
            kind: job.terms.kind.clone(),
            state: state(job),
            code,
            message,
            parts: job.parts.iter().map(|(n, part)| self.part_view(id, *n, part)).collect(),
            offers: job.offers.iter().map(|(at, domain, offer)| offer_view(*at, domain, offer)).collect(),
            usage: usage(job),
            budget: job.terms.budget,
            spend: self.book().spend(job),
            timeline: job.times.clone(),
        }
    }

    fn part_view(&self, job: &JobId, n: u32, part: &Part) -> PartView {
        let said = self.broker().progress_of(job, n).filter(|p| p.attempt == part.attempt);
        let lease = part.live();
        let working = said.is_some_and(|s| s.state != "waiting");
        let state = match &part.state {
            PartState::Open if self.broker().is_calling(job) => "offered",
            PartState::Open | PartState::GivenUp(_) => "open",
            PartState::Awarded(_) => "awarded",
            PartState::Committed(l) if self.broker().is_suspect(l) => "suspect",
            PartState::Committed(_) if working => "running",
            PartState::Committed(_) => "committed",
            PartState::Uploaded(_) => "uploaded",
            PartState::Verified => "verified",
        };
        let result = part.result.as_ref();
        let holder = lease.and_then(|l| self.book().leases.get(l)).map(|l| l.domain.clone());
        let outputs = result.map(|r| r.outputs.as_slice()).unwrap_or_default();
        PartView {
            n,
            state,
            step: said.map(|s| s.state.clone()),
            domain: result.map(|r| r.domain.clone()).or(holder.clone()),
            by: result.map(|r| r.by.clone()).or_else(|| said.and_then(|s| s.by.clone())).or(holder),
            attempt: result.map_or(part.attempt, |r| r.attempt),
            failures: part.failures,
            last_failure: part.last_failure.as_ref().map(|f| f.code.clone()),
            percent: if result.is_some() { 100.0 } else { said.map_or(0.0, |s| s.percent) },
            bytes_total: part.call.bytes,
            bytes: result.map(|r| r.usage.bytes_in).or(said.map(|s| s.bytes)).unwrap_or(0),
            outputs: outputs.iter().map(output_view).collect(),
        }
    }
}

fn output_view(o: &Output) -> OutputView {
    OutputView { key: o.key.clone(), size: o.size, sha256: o.sha256.clone() }
}

fn state(job: &Job) -> &'static str {
    let committed = job.parts.values().any(|p| !matches!(p.state, PartState::Open | PartState::Awarded(_)));
    match &job.end {
        Some(End::Done) => "done",
        Some(End::Failed { .. }) => "failed",
        Some(End::Cancelled { .. }) => "cancelled",
        None if !committed => "bidding",
        None if job.parts.values().all(|p| p.state == PartState::Verified) => "finalising",
        None => "running",
    }
}

fn offer_view(at: Millis, domain: &DomainId, offer: &Offer) -> OfferView {
    let domain = domain.clone();
    match offer {
        Offer::Bid(b) => {
            let (parts_max, slots, price) = (Some(b.parts_max), Some(b.slots), Some(b.price));
            OfferView { at, domain, parts_max, slots, price, refused: None }
        }
        Offer::Refused(reason) => {
            OfferView { at, domain, parts_max: None, slots: None, price: None, refused: Some(reason.clone()) }
        }
    }
}

fn usage(job: &Job) -> Vec<DomainUsage> {
    let mut all: Vec<DomainUsage> = Vec::new();
    for result in job.parts.values().filter_map(|p| p.result.as_ref()) {
        let found = all.iter().position(|u| u.domain == result.by);
        let index = found.unwrap_or_else(|| {
            all.push(DomainUsage { domain: result.by.clone(), parts: 0, price: 0.0, usage: Usage::default() });
            all.len() - 1
        });
        let (sum, u) = (&mut all[index], &result.usage);
        sum.parts += 1;
        sum.price = (sum.price + result.price).min(f64::MAX);
        sum.usage.bytes_in = sum.usage.bytes_in.saturating_add(u.bytes_in);
        sum.usage.bytes_out = sum.usage.bytes_out.saturating_add(u.bytes_out);
        sum.usage.download_ms = sum.usage.download_ms.saturating_add(u.download_ms);
        sum.usage.load_ms = sum.usage.load_ms.saturating_add(u.load_ms);
        sum.usage.process_ms = sum.usage.process_ms.saturating_add(u.process_ms);
        sum.usage.publish_ms = sum.usage.publish_ms.saturating_add(u.publish_ms);
        sum.usage.cpu_ms = sum.usage.cpu_ms.saturating_add(u.cpu_ms);
    }
    all.sort_by(|a, b| a.domain.cmp(&b.domain));
    all
}
