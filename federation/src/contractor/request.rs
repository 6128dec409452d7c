//! Answers to whoever calls for bids and awards leases.

use super::{Accepted, Contractor, HOLDS_MAX, Hold, Report};
use crate::book::TakenState;
use crate::broker::stale;
use crate::cx::{Cx, contract};
use crate::event::{Event, Kept, Secret, TakenTerms};
use crate::id::{BidId, DomainId, LeaseId};
use crate::message::{
    Accept, Ack, Award, Bid, Body, Cancel, Cfp, Commit, Decline, Envelope, Inventory, PartProgress, PartRef, Refuse,
    Renew,
};

impl Contractor {
    /// `None`: not a request.
    pub fn request(&mut self, cx: &mut Cx, from: &DomainId, envelope: &Envelope) -> Option<Body> {
        Some(match &envelope.body {
            Body::Cfp(cfp) => match self.weigh(cx, from, envelope, cfp) {
                Ok(bid) => Body::Bid(bid),
                Err((reason, retry_after_ms)) => Body::Refuse(Refuse { reason: reason.into(), retry_after_ms }),
            },
            Body::Award(award) => match self.accept(cx, from, award) {
                Ok(contract) => Body::Accept(Accept { lease: award.lease.clone(), contract }),
                Err(reason) => Body::Decline(Decline { reason: reason.into() }),
            },
            Body::Commit(commit) => self.commit(cx, from, commit),
            Body::RejectBid(reject) => {
                self.free(from, &reject.bid);
                Body::Ack(Ack {})
            }
            Body::Renew(renew) => match self.known(cx, from, &renew.lease, &renew.secret) {
                true => self.renew(cx, renew),
                false => unknown(&renew.lease),
            },
            Body::Resync(resync) => match self.known(cx, from, &resync.lease, &resync.secret) {
                true => self.inventory(cx, &resync.lease),
                false => unknown(&resync.lease),
            },
            Body::Cancel(cancel) => {
                if self.known(cx, from, &cancel.lease, &cancel.secret) {
                    self.cancel(cx, cancel);
                }
                self.free_lease(from, &cancel.lease);
                Body::Ack(Ack {})
            }
            Body::Release(release) => {
                if self.known(cx, from, &release.lease, &release.secret) {
                    self.close(cx, &release.lease, "released");
                }
                self.free_lease(from, &release.lease);
                Body::Ack(Ack {})
            }
            _ => return None,
        })
    }

    /// Reserves, then bids.
    fn weigh(
        &mut self,
        cx: &mut Cx,
        from: &DomainId,
        envelope: &Envelope,
        cfp: &Cfp,
    ) -> Result<Bid, (&'static str, Option<u64>)> {
        let (agreements, path) = (&cx.config.agreements, &envelope.path);
        if path.last() != Some(from) || path.first() != Some(&envelope.home) {
            return Err(("policy", None)); // not who it says it is
        }
        if path.contains(&cx.config.me) && *path != [cx.me()] {
            return Err(("loop", None));
        }
        if path.len() > agreements.max_depth as usize + 1 {
            return Err(("depth", None));
        }
        if *from != cx.config.me && !agreements.takes(from, &cfp.kind) {
            return Err(("policy", None));
        }
        let price = agreements.price_for(from);
        if cfp.budget_left.is_some_and(|left| left < price) {
            return Err(("price", None));
        }
        let room = self.room(cx, from);
        let parts_max = room.min(cfp.parts);
        if parts_max == 0 || self.holds.len() >= HOLDS_MAX {
            return Err(("busy", Some(cx.config.timers.recall_ms)));
        }
        let slots = self.slots.min(parts_max).max(1);
        let mean_ms = cfp.work_ms as f64 / f64::from(cfp.parts.max(1));
        let before = self.claimed(cx.book, None) / self.slots.max(1);
        let waves = parts_max.div_ceil(slots).saturating_add(before);
        let wave_ms = (mean_ms * self.pace.unwrap_or(1.0)).max(1.0);
        let after = |waves: f64| (wave_ms * waves) as u64;
        let start_p50_ms = after(f64::from(before));
        let (finish_p50_ms, finish_p90_ms) = (after(f64::from(waves)), after(f64::from(waves) * 1.5));
        if cfp.deadline.is_some_and(|d| cx.now.plus(after(f64::from(before) + 1.0)) > d) {
            return Err(("deadline", None));
        }
        let until = cx.now.plus(cfp.hold_ms.min(cx.config.timers.hold_ms));
        let bid: BidId = cx.ids.fresh();
        let hold = Hold {
            from: from.clone(),
            home: envelope.home.clone(),
            job: envelope.job.clone(),
            kind: cfp.kind.clone(),
            path: path.clone(),
            depth_left: cfp.depth_left.min(agreements.max_depth),
            parts_max,
            price,
            until,
        };
        self.holds.insert(bid.clone(), hold);
        Ok(Bid { bid, parts_max, slots, price, start_p50_ms, finish_p50_ms, finish_p90_ms, hold_until: until })
    }

    fn accept(&mut self, cx: &mut Cx, from: &DomainId, award: &Award) -> Result<String, &'static str> {
        let contract = contract(award);
        if let Some(known) = self.accepted.get(&award.lease) {
            let same = known.hold.from == *from && known.contract == contract;
            return if same { Ok(contract) } else { Err("lease exists") };
        }
        if cx.book.taken.contains_key(&award.lease) || self.over.contains(&award.lease) {
            return Err("lease exists");
        }
        let hold = self.holds.get(&award.bid).filter(|h| h.from == *from && h.until > cx.now).ok_or("no hold")?;
        let mut numbers: Vec<_> = award.parts.iter().map(|p| p.part).collect();
        numbers.sort_unstable();
        numbers.dedup();
        if numbers.len() != award.parts.len() || numbers.is_empty() || numbers.len() > hold.parts_max as usize {
            return Err("not what was bid");
        }
        // A hair for the rounding of sums.
        let enough = (hold.price * numbers.len() as f64).min(f64::MAX) - 1e-9;
        if award.price_cap.is_nan() || award.price_cap < enough {
            return Err("price");
        }
        let mut hold = self.holds.remove(&award.bid).ok_or("no hold")?;
        hold.until = cx.now.plus(cx.config.timers.hold_ms);
        self.accepted.insert(award.lease.clone(), Accepted { award: award.clone(), hold, contract: contract.clone() });
        Ok(contract)
    }

    fn commit(&mut self, cx: &mut Cx, from: &DomainId, commit: &Commit) -> Body {
        if self.known(cx, from, &commit.lease, &commit.secret) {
            self.heard.insert(commit.lease.clone(), cx.now);
            return Body::Ack(Ack {}); // said again
        }
        let fits =
            |a: &Accepted| a.hold.from == *from && a.award.secret == commit.secret && a.contract == commit.contract;
        if !self.accepted.get(&commit.lease).is_some_and(fits) {
            return stale("lease");
        }
        let Some(Accepted { award, hold, contract }) = self.accepted.remove(&commit.lease) else {
            return stale("lease");
        };
        let mut path = hold.path;
        if path.last() != Some(&cx.config.me) {
            path.push(cx.me());
        }
        let terms = TakenTerms {
            from: hold.from,
            home: hold.home,
            job: hold.job,
            kind: hold.kind,
            secret: Secret(award.secret),
            contract,
            ttl_ms: award.ttl_ms,
            price: hold.price,
            path,
            depth_left: hold.depth_left,
            common: award.common,
        };
        let id = award.lease;
        self.heard.insert(id.clone(), cx.now);
        self.reports.insert(id.clone(), Report::default());
        cx.record(Event::Taken { at: cx.now, lease: id.clone(), terms, parts: award.parts });
        self.note_excess(cx, &id);
        Body::Ack(Ack {})
    }

    /// What cannot be started soon may be sold on: the last parts.
    fn note_excess(&mut self, cx: &Cx, id: &LeaseId) {
        let Some(taken) = cx.book.taken.get(id).filter(|t| t.terms.depth_left > 0) else { return };
        if !cx.config.agreements.resell {
            return;
        }
        let soon = self.slots.saturating_mul(cx.config.agreements.waves_soon) as usize;
        let doing = |s: &TakenState| matches!(s, TakenState::Waiting | TakenState::Started);
        let queue: usize = cx.book.taken.values().map(|t| t.parts.values().filter(|p| doing(&p.state)).count()).sum();
        let excess = queue.saturating_sub(soon).min(taken.parts.len());
        if excess > 0 {
            let parts = taken.parts.keys().rev().take(excess).copied().collect();
            self.excess.push((id.clone(), parts));
        }
    }

    fn renew(&mut self, cx: &mut Cx, renew: &Renew) -> Body {
        self.heard.insert(renew.lease.clone(), cx.now);
        let wanted = |r: &PartRef| renew.parts.contains(r);
        self.drop_unfinished(cx, &renew.lease, |r| !wanted(r), "not wanted any more");
        self.inventory(cx, &renew.lease)
    }

    fn inventory(&mut self, cx: &mut Cx, id: &LeaseId) -> Body {
        self.heard.insert(id.clone(), cx.now);
        let parts = cx.book.taken.get(id).map_or(Vec::new(), |t| t.parts.keys().copied().collect());
        let parts = parts.into_iter().filter_map(|n| self.progress(cx.book, id, n)).collect();
        Body::Inventory(Inventory { lease: id.clone(), known: true, parts })
    }

    /// Where a part of a lease stands.
    pub fn progress(&self, book: &crate::book::Book, id: &LeaseId, n: u32) -> Option<PartProgress> {
        let part = book.taken.get(id)?.parts.get(&n)?;
        let work = self.work.get(&(id.clone(), n));
        let state = match &part.state {
            TakenState::Kept(Kept::Done { .. }) => "done",
            TakenState::Kept(_) => "failed",
            TakenState::Waiting => "waiting",
            _ => work.map_or("waiting", |w| w.state.as_str()),
        };
        Some(PartProgress {
            part: n,
            attempt: part.award.attempt,
            state: state.into(),
            bytes: work.map_or(0, |w| w.bytes),
            percent: work.map_or(0.0, |w| w.percent),
            by: work.and_then(|w| w.by.clone()),
            outputs: work.map_or(Vec::new(), |w| w.outputs.clone()),
        })
    }

    fn cancel(&mut self, cx: &mut Cx, cancel: &Cancel) {
        self.heard.insert(cancel.lease.clone(), cx.now);
        if cancel.parts.is_empty() {
            return self.close(cx, &cancel.lease, &cancel.reason);
        }
        self.drop_unfinished(cx, &cancel.lease, |r| cancel.parts.contains(r), &cancel.reason);
        self.close_if_done(cx, &cancel.lease, &cancel.reason);
    }

    /// Whether `from` holds the other end of this lease.
    fn known(&self, cx: &Cx, from: &DomainId, lease: &LeaseId, secret: &str) -> bool {
        let taken = cx.book.taken.get(lease);
        taken.is_some_and(|t| t.terms.from == *from && t.terms.secret.0 == secret)
    }

    fn free(&mut self, from: &DomainId, bid: &BidId) {
        if self.holds.get(bid).is_some_and(|h| h.from == *from) {
            self.holds.remove(bid);
        }
        let of_bid = |a: &Accepted| a.award.bid == *bid && a.hold.from == *from;
        let lease = self.accepted.iter().find(|(_, a)| of_bid(a)).map(|(id, _)| id.clone());
        if let Some(lease) = lease {
            self.free_lease(from, &lease);
        }
    }

    fn free_lease(&mut self, from: &DomainId, lease: &LeaseId) {
        if self.accepted.get(lease).is_some_and(|a| a.hold.from == *from) {
            self.accepted.remove(lease);
            self.bury(lease.clone());
        }
    }
}

fn unknown(lease: &LeaseId) -> Body {
    Body::Inventory(Inventory { lease: lease.clone(), known: false, parts: Vec::new() })
}
