//! The design's invariants, judged from outside: by what is journaled, said and run.

use std::collections::{BTreeMap, BTreeSet};

use federation::book::TakenState;
use federation::domain::{Domain, Input};
use federation::event::{Event, Offer};
use federation::id::{BidId, DomainId, JobId, LeaseId, MessageId, Millis};
use federation::message::{Body, Envelope};

use crate::world::{World, through_bytes};

#[derive(Default)]
pub struct Observer {
    bids: BTreeMap<BidId, u32>,
    spent_bids: BTreeSet<BidId>,
    /// (home, job, part) → the lease that may be working on it.
    claims: BTreeMap<(DomainId, JobId, u32), LeaseId>,
    leases: BTreeMap<LeaseId, Granted>,
    verified: BTreeSet<(DomainId, JobId, u32)>,
    last_word: BTreeMap<LeaseId, Millis>,
    /// Until when an answer counts.
    asked: BTreeMap<MessageId, Millis>,
    requests: BTreeSet<MessageId>,
    epochs: BTreeMap<(DomainId, DomainId), u64>,
    pub events: u64,
    pub commits: u64,
    pub lost: u64,
    pub late: u64,
    pub adopted: u64,
    pub sold: u64,
    pub failed: u64,
    pub replays: u64,
    pub inputs: u64,
    pub crashes: u64,
}

struct Granted {
    job: JobId,
    domain: DomainId,
    ttl_ms: u64,
}

impl World {
    /// Somebody hears of a lease that it granted.
    pub fn hear(&mut self, to: &DomainId, input: &Input) {
        let envelope = match input {
            // Nor is a repeat, or what an earlier incarnation said.
            Input::Request(from, envelope) => {
                let epoch = self.seen.epochs.entry((to.clone(), from.clone())).or_default();
                if envelope.epoch < *epoch || !self.seen.requests.insert(envelope.id.clone()) {
                    return;
                }
                *epoch = envelope.epoch;
                envelope
            }
            // An answer that comes too late, or again, is none.
            Input::Answer { id, result: Ok(envelope), .. } => match self.seen.asked.remove(id) {
                Some(until) if self.now < until => envelope,
                _ => return,
            },
            _ => return,
        };
        let lease = match &envelope.body {
            Body::Accept(b) => &b.lease,
            Body::Inventory(b) => &b.lease,
            Body::Progress(b) => &b.lease,
            Body::PartDone(b) => &b.lease,
            Body::PartFailed(b) => &b.lease,
            Body::Revoke(b) => &b.lease,
            _ => return,
        };
        self.seen.last_word.insert(lease.clone(), self.now);
    }

    /// Called for every event as it is journaled.
    pub fn observe(&mut self, who: &DomainId, event: &Event) {
        self.seen.events += 1;
        let now = self.now;
        match event {
            Event::Offered { offer: Offer::Bid(bid), .. } => {
                self.seen.bids.insert(bid.bid.clone(), bid.parts_max);
            }
            Event::Awarded { job, lease, domain, bid, parts, ttl_ms, price, .. } => {
                let policy = self.nodes[who].domain.config().agreements.with(domain);
                assert!(policy.may_receive && policy.price_max.is_none_or(|max| *price <= max), "{domain} at {price}");
                let held = self.seen.bids.get(bid).copied().unwrap_or(0) as usize;
                assert!(parts.len() <= held, "invariant 4: {} parts awarded, {held} held", parts.len());
                assert!(self.seen.spent_bids.insert(bid.clone()), "invariant 4: a bid is awarded twice");
                for part in parts {
                    let key = (who.clone(), job.clone(), part.part);
                    let other = self.seen.claims.insert(key.clone(), lease.clone());
                    assert_eq!(other, None, "invariant 2: {key:?} awarded again, to {lease}");
                }
                let granted = Granted { job: job.clone(), domain: domain.clone(), ttl_ms: *ttl_ms };
                self.seen.leases.insert(lease.clone(), granted);
            }
            Event::Taken { terms, .. } => {
                let agreements = &self.nodes[who].domain.config().agreements;
                assert!(agreements.takes(&terms.from, &terms.kind), "{who} takes {} of {}", terms.kind, terms.from);
            }
            Event::Withdrawn { lease, .. } => self.unclaim_all(who, lease),
            Event::Committed { lease, .. } => {
                self.seen.last_word.insert(lease.clone(), now);
            }
            Event::Confirmed { .. } => self.seen.commits += 1,
            Event::Lost { lease, .. } => {
                self.seen.lost += 1;
                let ttl = self.seen.leases[lease].ttl_ms + self.nodes[who].config.timers.detach_grace_ms;
                let silent = now.since(self.seen.last_word[lease]);
                assert!(silent >= ttl, "invariant 2: {lease} lost after only {silent} ms");
                self.unclaim_all(who, lease);
            }
            Event::Failed { lease, part, .. } => {
                self.seen.failed += 1;
                self.unclaim(who, lease, *part);
            }
            Event::Returned { lease, parts, .. } => {
                for part in parts {
                    self.nobody_works(lease, part.part);
                    self.unclaim(who, lease, part.part);
                }
            }
            Event::Late { lease, parts, .. } => {
                self.seen.late += 1;
                parts.iter().for_each(|part| self.unclaim(who, lease, part.part));
            }
            Event::Verified { job, part, .. } => {
                let key = (who.clone(), job.clone(), *part);
                assert!(self.seen.verified.insert(key.clone()), "invariant 1: {key:?} committed twice");
            }
            Event::Adopted { lease, part, .. } => {
                let key = (who.clone(), self.seen.leases[lease].job.clone(), *part);
                assert!(self.seen.verified.insert(key.clone()), "invariant 1: {key:?} committed twice");
                self.seen.adopted += 1;
            }
            Event::Submitted { terms, .. } if terms.parent.is_some() => self.seen.sold += 1,
            _ => {}
        }
    }

    /// A part that its domain has given back is not worked on there.
    fn nobody_works(&self, lease: &LeaseId, part: u32) {
        let Some(node) = self.nodes.get(&self.seen.leases[lease].domain).filter(|n| n.alive) else { return };
        let there = node.domain.book().taken.get(lease).and_then(|t| t.parts.get(&part));
        let works = there.is_some_and(|p| !matches!(p.state, TakenState::Kept(_)));
        assert!(!works, "invariant 2: {lease} part {part} is free at home and not at its domain");
    }

    fn unclaim(&mut self, who: &DomainId, lease: &LeaseId, part: u32) {
        let job = self.seen.leases[lease].job.clone();
        let key = (who.clone(), job, part);
        if self.seen.claims.get(&key) == Some(lease) {
            self.seen.claims.remove(&key);
        }
    }

    fn unclaim_all(&mut self, who: &DomainId, lease: &LeaseId) {
        self.seen.claims.retain(|(home, _, _), l| home != who || l != lease);
    }

    pub fn check_sent(&mut self, who: &DomainId, to: &DomainId, envelope: &Envelope) {
        self.seen.asked.insert(envelope.id.clone(), self.now.plus(self.nodes[who].config.timers.answer_ms));
        let Body::Cfp(cfp) = &envelope.body else { return };
        let mut path = envelope.path.clone();
        assert_eq!(path.last(), Some(who), "invariant 8: the sender is last");
        assert!(!path.contains(to), "invariant 8: {to} is asked again on {path:?}");
        let max = self.nodes[&envelope.home].config.agreements.max_depth as usize;
        assert!(path.len() + cfp.depth_left as usize <= max + 1, "invariant 8: depth grows on {path:?}");
        path.sort_unstable();
        path.dedup();
        assert_eq!(path.len(), envelope.path.len(), "invariant 8: {:?} repeats", envelope.path);
    }

    /// After every batch.
    pub fn check(&mut self, who: &DomainId) {
        self.seen.inputs += 1;
        let node = &self.nodes[who];
        let room = node.config.agreements.waves_max * 16;
        assert!(node.domain.held() <= room, "more is held than there ever was");
        if node.domain.held() > 0 {
            let wake = node.domain.deadline().expect("a hold frees itself");
            assert!(wake <= self.now.plus(node.config.timers.hold_ms), "invariant 3: nothing frees the hold");
        }
        let mut taken: BTreeMap<&DomainId, usize> = BTreeMap::new();
        for lease in node.domain.book().taken.values() {
            let busy = lease.parts.values().filter(|part| !matches!(part.state, TakenState::Kept(_)));
            *taken.entry(&lease.terms.from).or_default() += busy.count();
        }
        for (from, parts) in taken {
            let max = node.domain.config().agreements.with(from).parts_max;
            assert!(
                max.is_none_or(|max| parts <= max as usize),
                "{who} holds {parts} parts for {from}, agreed are {max:?}"
            );
        }
        for (id, job) in &node.domain.book().jobs {
            let (spend, budget) = (node.domain.book().spend(job), job.terms.budget.unwrap_or(f64::INFINITY));
            assert!(spend <= budget + 1e-6, "invariant 5: {id} spends {spend} of {budget}");
        }
        assert_eq!(node.domain.book(), &node.folded, "invariant 6: the journal is not the state");
        if self.rng.chance(2) {
            self.check_replay(who);
        }
    }

    /// Invariant 6, from the journal's beginning.
    pub fn check_replay(&mut self, who: &DomainId) {
        self.seen.replays += 1;
        let node = &self.nodes[who];
        let fold = || {
            let mut domain = Domain::new(node.config.clone());
            node.journal.iter().for_each(|event| domain.replay(&through_bytes(event)));
            domain
        };
        let (once, again) = (fold(), fold());
        assert_eq!(once.book(), again.book(), "invariant 6: two replays differ");
        assert_eq!(node.domain.book(), once.book(), "invariant 6: the journal is not the state");
    }
}

impl World {
    /// For a test that cuts a journal: what was seen of `a` after the cut is not history.
    pub fn forget_claims(&mut self) {
        let home = crate::world::d("a");
        let events = self.nodes[&home].journal.clone();
        let seen = &mut self.seen;
        seen.claims.retain(|(h, _, _), _| *h != home);
        seen.verified.retain(|(h, _, _)| *h != home);
        seen.spent_bids.clear();
        for event in events {
            self.observe(&home, &event);
        }
    }
}
