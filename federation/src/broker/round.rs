//! One round of bids: a call, the offers, the awards, and the rest of the bids let go.

use std::collections::{BTreeMap, BTreeSet};

use super::{Broker, frame, is_row};
use crate::book::{PartState, Stage};
use crate::cx::{About, Cx};
use crate::domain::Lost;
use crate::event::{Event, Mark, Offer};
use crate::id::{BidId, DomainId, JobId, LeaseId, Millis};
use crate::message::{Award, Bid, Body, Cfp, PartAward, PartRef, RejectBid};
use crate::plan;

/// Parts called out in one round at most; the rest follows when these have their place.
const CALL_MAX: usize = 1_000;

/// Until then bids for parts that are not known yet are held: they are for all that a domain has.
const AHEAD_HOLD_MS: u64 = 5_000;

/// Calls in a row without a change after which a part goes even to who has blamed the source for it.
const NEED_CALLS: u32 = 3;

pub(super) struct Round {
    id: u64,
    called_at: Millis,
    pub close_at: Millis,
    waiting: BTreeSet<DomainId>,
    bids: BTreeMap<DomainId, Held>,
    pub planned: bool,
    /// Called before the parts were known.
    ahead: bool,
    /// Refusals because the budget is too small, and for any other reason.
    dear: u32,
    unable: u32,
}

/// A bid, and until when its hold lasts by this domain's clock.
struct Held {
    bid: Bid,
    until: Millis,
}

pub(super) struct NextCall {
    pub at: Millis,
    /// Calls in a row that placed nothing.
    pub empty: u32,
}

impl Broker {
    /// A part has come free: call at once, but not more often than the timer says.
    pub(super) fn call_soon(&mut self, now: Millis, job: &JobId) {
        let next = self.next_call.entry(job.clone()).or_insert(NextCall { at: now, empty: 0 });
        next.empty = 0;
        next.at = next.at.min(now);
    }

    pub(super) fn tick_calls(&mut self, cx: &mut Cx) {
        let due: Vec<_> = self.next_call.iter().filter(|(_, c)| c.at <= cx.now).map(|(j, _)| j.clone()).collect();
        for job in due {
            if !self.rounds.contains_key(&job) {
                self.call(cx, &job);
            }
        }
    }

    fn call(&mut self, cx: &mut Cx, job: &JobId) {
        let ahead = self.expected.get(job).map(|work_ms| (CALL_MAX as u32, 0, work_ms.saturating_mul(CALL_MAX as u64)));
        let open = cx.book.jobs.get(job).filter(|j| j.is_open());
        let open = open.into_iter().flat_map(|record| record.open_parts().take(CALL_MAX));
        let known = open.fold((0, 0u64, 0u64), |(n, bytes, work_ms), (_, part)| {
            (n + 1, bytes.saturating_add(part.call.bytes), work_ms.saturating_add(part.call.work_ms))
        });
        let (parts, bytes, work_ms) = ahead.unwrap_or(known);
        if parts == 0 {
            self.next_call.remove(job);
            return;
        }
        let nominees = self.nominees(cx, job);
        let (Some(record), Some(frame)) = (cx.book.jobs.get(job), frame(cx.book, job)) else { return };
        let timers = &cx.config.timers;
        let close_at = cx.now.plus(timers.bid_window_ms);
        let cfp = Cfp {
            kind: record.terms.kind.clone(),
            deadline: record.terms.deadline,
            budget_left: record.terms.budget.map(|b| (b - cx.book.spend(record)).max(0.0)),
            bid_by: close_at,
            hold_ms: if ahead.is_some() { timers.hold_ms.min(AHEAD_HOLD_MS) } else { timers.hold_ms },
            depth_left: record.terms.depth_left,
            parts,
            bytes,
            work_ms,
        };
        self.round_count += 1;
        let (id, waiting) = (self.round_count, nominees.iter().cloned().collect());
        let round = Round {
            id,
            called_at: cx.now,
            close_at,
            waiting,
            bids: BTreeMap::new(),
            planned: false,
            ahead: ahead.is_some(),
            dear: 0,
            unable: 0,
        };
        self.rounds.insert(job.clone(), round);
        // A sale is tried once.
        if record.terms.parent.is_some() {
            self.next_call.remove(job);
        }
        cx.record(Event::Called { at: cx.now, job: job.clone(), domains: nominees.clone() });
        for domain in nominees {
            let about = About::Cfp { job: job.clone(), round: id };
            cx.ask(&domain, frame.clone(), Body::Cfp(cfp.clone()), about);
        }
    }

    /// Who is asked: whoever is known, may have it, and has no mark.
    pub(super) fn nominees(&self, cx: &Cx, job: &JobId) -> Vec<DomainId> {
        let Some(terms) = cx.book.jobs.get(job).map(|j| &j.terms) else { return Vec::new() };
        let me = terms.parent.is_none().then(|| cx.me());
        let others = self.partners(cx, &terms.kind, &terms.path);
        me.into_iter().chain(others).collect()
    }

    pub(super) fn partners(&self, cx: &Cx, kind: &str, path: &[DomainId]) -> Vec<DomainId> {
        let fit = |(domain, (ad, _)): &(&DomainId, &(crate::message::Ad, Millis))| {
            cx.config.agreements.with(domain).may_receive
                && ad.health == "ok"
                && ad.kinds.split_whitespace().any(|k| k == kind)
                && !path.contains(domain)
                && !cx.book.is_marked(domain, cx.now)
                && !self.is_silent(cx.book, domain)
        };
        self.ads.iter().filter(fit).map(|(domain, _)| domain.clone()).collect()
    }

    pub(super) fn offer(
        &mut self,
        cx: &mut Cx,
        job: &JobId,
        round: u64,
        from: &DomainId,
        answer: Result<(Millis, Body), Lost>,
    ) {
        // An error is no answer; but our own lost session says nothing about others.
        match answer {
            Ok((_, Body::Bid(_) | Body::Refuse(_))) => drop(self.unanswered.remove(from)),
            Err(Lost::Reset) => {}
            _ if is_row(&mut self.unanswered, from) => self.mark(cx, from, Mark::Suspect),
            _ => {}
        }
        let (offer, held) = match answer {
            Ok((sent_at, Body::Bid(bid))) => match fault(cx, from, &bid) {
                None => (Offer::Bid(bid.clone()), Some((sent_at, bid))),
                Some(fault) => (Offer::Refused(fault.into()), None),
            },
            Ok((_, Body::Refuse(refuse))) => (Offer::Refused(refuse.reason), None),
            Ok(_) => (Offer::Refused("not-understood".into()), None),
            Err(lost) => (Offer::Refused(format!("no answer: {lost:?}")), None),
        };
        let Some(open) = self.rounds.get_mut(job).filter(|r| r.id == round) else {
            if let Some((_, bid)) = held {
                self.reject(cx, job, from, bid.bid); // too late
            }
            return;
        };
        open.waiting.remove(from);
        match &offer {
            Offer::Refused(reason) if reason == "price" => open.dear += 1,
            Offer::Refused(_) => open.unable += 1,
            Offer::Bid(_) => {}
        }
        if let Some((sent_at, bid)) = held {
            // Measured by the bidder's clock alone, counted from when it was asked.
            let until = open.called_at.plus(bid.hold_until.since(sent_at));
            open.bids.insert(from.clone(), Held { bid, until });
        }
        cx.record(Event::Offered { at: cx.now, job: job.clone(), domain: from.clone(), offer });
    }

    pub(super) fn tick_rounds(&mut self, cx: &mut Cx) {
        let jobs: Vec<_> = self.rounds.keys().cloned().collect();
        for job in jobs {
            if let Some(round) = self.rounds.get_mut(&job) {
                round.planned |= round.waiting.is_empty() || round.close_at <= cx.now;
            }
            self.place(cx, &job);
        }
    }

    /// Awards open parts to bids that are left, and ends the round when nothing more can come of it.
    fn place(&mut self, cx: &mut Cx, job: &JobId) {
        let Some(mut round) = self.rounds.remove(job) else { return };
        if !round.planned || self.expected.contains_key(job) {
            self.rounds.insert(job.clone(), round);
            return;
        }
        let Some(record) = cx.book.jobs.get(job).filter(|j| j.is_open()) else { return };
        let usable = |d: &DomainId, h: &Held| h.until > cx.now && !cx.book.is_marked(d, cx.now);
        let bids: BTreeMap<_, _> =
            round.bids.iter().filter(|(d, h)| usable(d, h)).map(|(d, h)| (d.clone(), h.bid.clone())).collect();
        let open: Vec<_> = record.open_parts().take(CALL_MAX).collect();
        let budget_left = record.terms.budget.map(|b| b - cx.book.spend(record));
        let too_dear = bids.values().filter(|b| budget_left.is_some_and(|left| b.price > left)).count();
        let poor =
            too_dear == bids.len() && too_dear + round.dear as usize > 0 && round.unable == 0 && !open.is_empty();
        let in_need = self.next_call.get(job).is_some_and(|c| c.empty >= NEED_CALLS);
        let shares = plan::assign(&open, &bids, budget_left, in_need);
        for (domain, parts) in shares {
            if let Some(held) = round.bids.remove(&domain) {
                self.award(cx, job, &domain, held.bid, &parts);
            }
        }
        let in_vain = round.ahead && bids.is_empty();
        let Some(record) = cx.book.jobs.get(job) else { return };
        let pending = cx.book.leases.values().any(|l| l.job == *job && l.stage == Stage::Awarded);
        if pending && !round.bids.is_empty() {
            self.rounds.insert(job.clone(), round); // for those who do not accept
            return;
        }
        let placed = record.parts.values().any(|p| p.live().is_some() || matches!(p.state, PartState::Uploaded(_)));
        let (is_open, sold) = (record.open_parts().next().is_some(), record.terms.parent.is_some());
        for (domain, held) in round.bids {
            self.reject(cx, job, &domain, held.bid.bid);
        }
        if poor && !placed && !sold {
            let message = "no bid fits into what is left of the budget".into();
            return self.fail(cx, job, "budget-exhausted".into(), message);
        }
        if is_open && !sold {
            let next = self.next_call.entry(job.clone()).or_insert(NextCall { at: cx.now, empty: 0 });
            if in_vain {
                next.at = cx.now; // reading the index took longer than the holds, or nobody had room then
                return;
            }
            next.at = cx.now.plus(cx.config.timers.recall_ms << next.empty.min(3));
            next.empty = next.empty.saturating_add(1);
        } else if !pending {
            self.next_call.remove(job);
        }
    }

    fn award(&mut self, cx: &mut Cx, job: &JobId, domain: &DomainId, bid: Bid, parts: &[u32]) {
        let Some(record) = cx.book.jobs.get(job) else { return };
        let refs = parts.iter().filter_map(|n| {
            // What is sold on keeps the attempt under which its order was written.
            let sold = record.terms.orders.iter().find(|o| o.part == *n).map(|o| o.attempt);
            Some(PartRef { part: *n, attempt: sold.unwrap_or(record.parts.get(n)?.attempt.saturating_add(1)) })
        });
        let (parts, timers) = (refs.collect(), &cx.config.timers);
        let (at, lease) = (cx.now, cx.ids.fresh::<LeaseId>());
        cx.record(Event::Awarded {
            at,
            job: job.clone(),
            lease: lease.clone(),
            domain: domain.clone(),
            bid: bid.bid,
            ttl_ms: timers.lease_ttl_ms,
            renew_ms: timers.renew_ms(),
            finish_p90_ms: bid.finish_p90_ms,
            price: bid.price,
            parts,
        });
        self.send_award(cx, &lease);
    }

    /// The terms of a lease, the same each time it is said.
    pub(super) fn terms_of(&self, cx: &Cx, id: &LeaseId) -> Option<Award> {
        let lease = cx.book.leases.get(id)?;
        let job = cx.book.jobs.get(&lease.job)?;
        let part = |r: &PartRef| {
            let call = &job.parts.get(&r.part)?.call;
            let order = job.terms.orders.iter().find(|o| o.part == r.part);
            let url = order.map(|o| o.url.0.clone()).unwrap_or_default();
            Some(PartAward { part: r.part, attempt: r.attempt, bytes: call.bytes, work_ms: call.work_ms, url })
        };
        Some(Award {
            bid: lease.bid.clone(),
            lease: id.clone(),
            secret: cx.secret(id).0,
            ttl_ms: lease.ttl_ms,
            renew_ms: lease.renew_ms,
            price_cap: (lease.price * lease.parts.len() as f64).min(f64::MAX),
            urls: None,
            common: None,
            parts: lease.parts.iter().filter_map(part).collect(),
        })
    }

    pub(super) fn reject(&mut self, cx: &mut Cx, job: &JobId, domain: &DomainId, bid: BidId) {
        if let Some(frame) = frame(cx.book, job) {
            cx.ask(domain, frame, Body::RejectBid(RejectBid { bid }), About::Nothing);
        }
    }

    pub(super) fn drop_round(&mut self, cx: &mut Cx, job: &JobId) {
        if let Some(round) = self.rounds.remove(job) {
            for (domain, held) in round.bids {
                self.reject(cx, job, &domain, held.bid.bid);
            }
        }
    }
}

/// What makes a bid unusable.
fn fault(cx: &Cx, from: &DomainId, bid: &Bid) -> Option<&'static str> {
    let dear = cx.config.agreements.with(from).price_max.is_some_and(|max| bid.price > max);
    match bid {
        Bid { parts_max: 0, .. } | Bid { slots: 0, .. } => Some("empty bid"),
        _ if dear => Some("price"),
        _ => None,
    }
}
