//! Re-forwarding: parts of a lease taken are called out one level deeper, in a job of their own whose parent is that lease.
//!
//! A sale is tried once. What nobody buys is done here; what is sold gets one try, and its result or failure goes up under
//! the lease and the attempt of the parent, so that home alone counts tries and looks into the store.

use super::Broker;
use crate::book::{PartState, TakenPart, TakenState};
use crate::contractor::Contractor;
use crate::cx::Cx;
use crate::event::{End, Event, Kept, Order, Secret, Terms};
use crate::id::{JobId, LeaseId};
use crate::message::PartCall;

impl Broker {
    /// Offers parts of a lease to others, if there are any others.
    fn sell(&mut self, cx: &mut Cx, lease: &LeaseId, parts: &[u32]) {
        let Some(taken) = cx.book.taken.get(lease) else { return };
        let t = &taken.terms;
        if t.depth_left == 0 || self.partners(cx, &t.kind, &t.path).is_empty() {
            return;
        }
        let idle = |p: &&TakenPart| p.state == TakenState::Waiting;
        let awards: Vec<_> = parts.iter().filter_map(|n| taken.parts.get(n)).filter(idle).map(|p| &p.award).collect();
        let call = |a: &&crate::message::PartAward| PartCall { part: a.part, bytes: a.bytes, work_ms: a.work_ms };
        let calls: Vec<_> = awards.iter().map(call).collect();
        let order =
            |a: &&crate::message::PartAward| Order { part: a.part, attempt: a.attempt, url: Secret(a.url.clone()) };
        let terms = Terms {
            home: t.home.clone(),
            name: t.job.clone(),
            parent: Some(lease.clone()),
            kind: t.kind.clone(),
            deadline: None,
            // Nothing is lost by selling.
            budget: Some(t.price * calls.len() as f64),
            path: t.path.clone(),
            depth_left: t.depth_left - 1,
            orders: awards.iter().map(order).collect(),
        };
        let job = JobId(format!("{}/{lease}", t.job));
        if !calls.is_empty() && !cx.book.jobs.contains_key(&job) {
            self.take_on(cx, job, terms, calls);
        }
    }

    /// Brings each sale and the lease behind it into step; also after a crash between their events.
    pub fn settle_sales(&mut self, cx: &mut Cx, contractor: &mut Contractor) {
        for (lease, parts) in contractor.take_excess() {
            self.sell(cx, &lease, &parts);
        }
        let open = |(id, j): (&JobId, &crate::book::Job)| {
            let parent = j.terms.parent.clone().filter(|_| j.is_open())?;
            Some((id.clone(), parent))
        };
        let sales: Vec<_> = cx.book.jobs.iter().filter_map(open).collect();
        for (job, parent) in sales {
            self.settle(cx, contractor, &job, &parent);
        }
    }

    fn settle(&mut self, cx: &mut Cx, contractor: &mut Contractor, job: &JobId, parent: &LeaseId) {
        let Some(record) = cx.book.jobs.get(job) else { return };
        let awaited: Vec<u32> = cx.book.taken.get(parent).map_or(Vec::new(), |t| {
            let sold = |p: &TakenState| *p == TakenState::Sold(job.clone());
            t.parts.iter().filter(|(_, p)| sold(&p.state)).map(|(n, _)| *n).collect()
        });
        if awaited.is_empty() {
            self.close(cx, job, End::Done);
            return;
        }
        let tried = !self.rounds.contains_key(job) && !self.next_call.contains_key(job);
        let (mut results, mut unsold) = (Vec::new(), Vec::new());
        for n in awaited {
            let Some(p) = record.parts.get(&n) else { continue };
            match (&p.state, &p.result) {
                (PartState::Verified, Some(r)) => {
                    let (by, outputs, usage) = (Some(r.by.clone()), r.outputs.clone(), r.usage.clone());
                    results.push((n, Kept::Done { by, outputs, usage }));
                }
                (PartState::GivenUp(failure), _) => results.push((n, Kept::Failed(failure.clone()))),
                (PartState::Open, _) if tried => unsold.push(n),
                _ => contractor.sold_progress(parent, n, self.progress.get(&(job.clone(), n)), &p.loaded),
            }
        }
        if !unsold.is_empty() {
            cx.record(Event::Unsold { at: cx.now, lease: parent.clone(), parts: unsold });
        }
        for (n, result) in results {
            contractor.keep(cx, parent, n, result);
        }
    }
}
