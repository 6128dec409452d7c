//! Results of attempts that home has given up: a domain that was cut off goes on working, and what it then brings may be right.
//!
//! While the part has no result, such a one is looked at like any other, and the part is taken from whoever has it now only once
//! the objects were found right. Nothing of this is journaled before: if home restarts meanwhile, the part is simply made again.

use super::lease::loaded;
use super::{Broker, frame};
use crate::book::{Lease, PartResult, PartState, Stage};
use crate::cx::{About, Cx};
use crate::domain::Output;
use crate::event::{Event, Mark};
use crate::id::{JobId, LeaseId};
use crate::message::{Body, Cancel, PartDone, PartRef};

pub(super) struct Late {
    lease: LeaseId,
    done: PartDone,
}

impl Broker {
    /// Whether the result of a part that is no longer this lease's will be looked at, or has been already.
    pub(super) fn take_late(&mut self, cx: &mut Cx, id: &LeaseId, done: &PartDone) -> bool {
        let Some(lease) = cx.book.leases.get(id) else { return false };
        let Some(job) = cx.book.jobs.get(&lease.job).filter(|j| j.is_open() && j.terms.parent.is_none()) else {
            return false;
        };
        let was_its = lease.parts.contains(&PartRef { part: done.part, attempt: done.attempt });
        let wanted = job.parts.get(&done.part).is_some_and(|p| p.state == PartState::Open || p.live().is_some());
        let mark = cx.book.marks.get(&lease.domain).filter(|r| r.until > cx.now).and_then(|r| r.mark);
        // One that vanished is welcome back; one that was caught at a lie, and maybe floods since, is not.
        if !was_its || !wanted || mark >= Some(Mark::Dishonest) {
            return false;
        }
        let (job, part, attempt, outputs) = (lease.job.clone(), done.part, done.attempt, done.outputs.clone());
        let late = Late { lease: id.clone(), done: done.clone() };
        if self.late.insert((job.clone(), part, attempt), late).is_none() {
            cx.out.push(Output::Check { job, part, attempt, outputs });
        }
        true
    }

    pub(super) fn adopt(&mut self, cx: &mut Cx, job: &JobId, part: u32, late: Late, result: Result<(), String>) {
        let Late { lease, done } = late;
        let Some(domain) = cx.book.leases.get(&lease).map(|l| l.domain.clone()) else { return };
        if result.is_err() {
            return self.mark(cx, &domain, Mark::Dishonest);
        }
        let Some(p) = cx.book.jobs.get(job).and_then(|j| j.parts.get(&part)) else { return };
        let (open, holder, now_at) = (p.state == PartState::Open, p.live().cloned(), p.attempt);
        if !open && holder.is_none() {
            return; // another result came first
        }
        let (at, attempt, by) = (cx.now, done.attempt, done.by.unwrap_or(domain));
        let (outputs, usage) = (done.outputs, done.usage);
        cx.record(Event::Adopted { at, lease, part, attempt, by, outputs: outputs.clone(), usage });
        loaded(cx, job, part, attempt, &outputs);
        let result: Option<PartResult> = cx.book.jobs.get(job).and_then(|j| j.parts.get(&part)?.result.clone());
        if let Some(result) = result {
            self.verified(cx, job, part, result);
        }
        if let Some(holder) = holder {
            self.take_back(cx, job, &holder, vec![PartRef { part, attempt: now_at }], "another's result came first");
        }
    }

    /// Tells the holder of a lease that parts of it are not wanted any more; a renewal says it again.
    pub(super) fn take_back(&mut self, cx: &mut Cx, job: &JobId, id: &LeaseId, parts: Vec<PartRef>, reason: &str) {
        let committed = |l: &&Lease| l.stage > Stage::Awarded;
        let Some(domain) = cx.book.leases.get(id).filter(committed).map(|l| l.domain.clone()) else { return };
        let (lease, secret) = (id.clone(), cx.secret(id).0);
        if let Some(frame) = frame(cx.book, job) {
            let cancel = Cancel { lease, secret, reason: reason.into(), parts };
            cx.ask(&domain, frame, Body::Cancel(cancel), About::Nothing);
        }
        self.end_if_done(cx, id);
    }
}
