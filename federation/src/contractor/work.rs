//! Tasks in the own cluster, their progress, and results that are repeated until they are acknowledged.

use super::{Contractor, RUNS_MAX, Repeat, Report, Work};
use crate::book::{Book, Taken, TakenState};
use crate::cluster::{Failure, Status};
use crate::cx::{About, Cx, Frame};
use crate::domain::{Lost, Output};
use crate::event::{Event, Kept};
use crate::id::{DomainId, LeaseId, Millis};
use crate::message::{self, Body, PartDone, PartFailed, PartProgress, PartRef, Progress, Revoke, Usage};

/// Weight of the newest part in what is learnt about the pace.
const PACE_WEIGHT: f64 = 0.3;

impl Default for Work {
    fn default() -> Self {
        let (state, by, outputs) = ("waiting".to_owned(), None, Vec::new());
        Self { state, bytes: 0, percent: 0.0, by, outputs, runs: 1, adopt_by: None }
    }
}

impl Contractor {
    pub fn capacity(&mut self, cx: &Cx, slots: u32) {
        self.slots = slots;
        self.give_back_at = match slots {
            // A manager that has just started has not seen its hosts yet.
            0 => Some(self.give_back_at.unwrap_or(cx.now.plus(cx.config.timers.adopt_ms))),
            _ => None,
        };
    }

    /// Nothing will start here for a while: others may have what waits, also what was promised before and committed since.
    pub(super) fn tick_capacity(&mut self, cx: &mut Cx) {
        if self.give_back_at.is_none_or(|at| at > cx.now) {
            return;
        }
        let waiting: Vec<_> = foreign_waiting(cx.book, &cx.config.me).collect();
        for (lease, n) in waiting {
            self.keep(cx, &lease, n, Kept::Revoked("no host is left".into()));
        }
    }

    /// Starts what waits, first come first served, as far as the hosts take tasks.
    pub(super) fn start_waiting(&mut self, cx: &mut Cx) {
        let running = parts(cx, |s| *s == TakenState::Started).count();
        let tasks = self.slots.saturating_mul(cx.config.agreements.tasks_per_slot);
        let free = (tasks as usize).saturating_sub(running);
        if free == 0 {
            return;
        }
        let mut waiting: Vec<_> = parts(cx, |s| *s == TakenState::Waiting).collect();
        waiting.sort_by_key(|(lease, n, _)| (cx.book.taken.get(lease).map(|t| t.at), lease.clone(), *n));
        for (lease, part, attempt) in waiting.into_iter().take(free) {
            cx.record(Event::Started { at: cx.now, lease: lease.clone(), part, attempt });
            self.work.insert((lease.clone(), part), Work::default());
            run(cx, &lease, part);
        }
    }

    pub(super) fn tick_adoption(&mut self, cx: &mut Cx) {
        let orphans: Vec<_> =
            self.work.iter().filter(|(_, w)| w.adopt_by.is_some_and(|t| t <= cx.now)).map(|(k, _)| k.clone()).collect();
        for (lease, part) in orphans {
            if let Some(work) = self.work.get_mut(&(lease.clone(), part)) {
                work.adopt_by = None;
            }
            run(cx, &lease, part);
        }
    }

    /// A host manager's word about a task.
    pub fn task(&mut self, cx: &mut Cx, lease: &LeaseId, n: u32, attempt: u32, status: Status) {
        let part = cx.book.taken.get(lease).and_then(|t| t.parts.get(&n)).filter(|p| p.award.attempt == attempt);
        let (Some(part), Some(work)) = (part, self.work.get_mut(&(lease.clone(), n))) else {
            return cx.out.push(Output::Stop { lease: lease.clone(), part: n, attempt });
        };
        if part.state != TakenState::Started {
            return; // done already, and on its way home
        }
        work.adopt_by = None;
        match status.state.as_str() {
            "done" => {
                if let Some(took_ms) = status.usage.as_ref().map(Usage::wall_ms).filter(|ms| *ms > 0) {
                    let pace = took_ms as f64 / part.award.work_ms.max(1) as f64;
                    self.pace = Some(self.pace.map_or(pace, |before| before + (pace - before) * PACE_WEIGHT));
                }
                let usage = status.usage.unwrap_or_default();
                self.keep(cx, lease, n, Kept::Done { by: None, outputs: status.outputs, usage });
            }
            "failed" => {
                let failure = status.failure.unwrap_or_else(|| failure("internal", "unexplained", ""));
                self.keep(cx, lease, n, Kept::Failed(failure));
            }
            "unknown" if work.runs >= RUNS_MAX => {
                let lost = failure("resource", "host-lost", "its host forgot the task each time");
                self.keep(cx, lease, n, Kept::Failed(lost));
            }
            "unknown" => {
                work.runs += 1;
                run(cx, lease, n);
            }
            _ => {
                let loaded = work.outputs.len() != status.outputs.len();
                (work.state, work.bytes, work.percent) = (status.state, status.bytes, status.percent);
                work.outputs = status.outputs;
                self.news(lease, loaded);
            }
        }
    }

    /// What is known of a part that was sold on.
    pub fn sold_progress(
        &mut self,
        lease: &LeaseId,
        n: u32,
        said: Option<&PartProgress>,
        loaded: &Option<(u32, Vec<message::Output>)>,
    ) {
        let Some(said) = said else { return };
        let work = self.work.entry((lease.clone(), n)).or_default();
        let outputs = loaded.as_ref().map(|l| l.1.clone()).unwrap_or_default();
        let same = work.bytes == said.bytes && work.percent == said.percent && work.state == said.state;
        if same && work.outputs == outputs {
            return;
        }
        let urgent = work.outputs != outputs;
        (work.state, work.bytes, work.percent) = (said.state.clone(), said.bytes, said.percent);
        (work.by, work.outputs) = (said.by.clone(), outputs);
        self.news(lease, urgent);
    }

    fn news(&mut self, lease: &LeaseId, urgent: bool) {
        let report = self.reports.entry(lease.clone()).or_default();
        report.news = true;
        if urgent {
            report.next = Millis(0);
        }
    }

    /// Keeps a result until it is acknowledged.
    pub fn keep(&mut self, cx: &mut Cx, lease: &LeaseId, n: u32, result: Kept) {
        let Some(part) = cx.book.taken.get(lease).and_then(|t| t.parts.get(&n)) else { return };
        let attempt = part.award.attempt;
        cx.record(Event::Kept { at: cx.now, lease: lease.clone(), part: n, attempt, result });
        let repeat = Repeat { next: cx.now, wait_ms: cx.config.timers.repeat_ms, asked: false };
        self.repeats.insert((lease.clone(), n), repeat);
    }

    pub(super) fn tick_repeats(&mut self, cx: &mut Cx) {
        for ((lease, n), repeat) in &mut self.repeats {
            if repeat.asked || repeat.next > cx.now {
                continue;
            }
            repeat.asked = true;
            let Some(taken) = cx.book.taken.get(lease) else { continue };
            let Some((attempt, body)) = result(taken, lease, *n) else { continue };
            let about = About::Result { lease: lease.clone(), part: *n, attempt };
            let (to, frame) = (taken.terms.from.clone(), frame(taken));
            cx.ask(&to, frame, body, about);
        }
    }

    pub fn result_answered(
        &mut self,
        cx: &mut Cx,
        lease: &LeaseId,
        part: u32,
        attempt: u32,
        answer: Result<Body, Lost>,
    ) {
        let key = (lease.clone(), part);
        match answer {
            Ok(Body::Ack(_) | Body::Stale(_)) => {
                self.heard.insert(lease.clone(), cx.now);
                self.repeats.remove(&key);
                self.work.remove(&key);
                cx.record(Event::Settled { at: cx.now, lease: lease.clone(), part, attempt });
                self.close_if_done(cx, lease, "done");
            }
            Ok(_) | Err(_) => {
                if let Some(repeat) = self.repeats.get_mut(&key) {
                    (repeat.asked, repeat.next) = (false, cx.now.plus(repeat.wait_ms));
                    repeat.wait_ms = repeat.wait_ms.saturating_mul(2).min(cx.config.timers.repeat_max_ms);
                }
            }
        }
    }

    pub(super) fn tick_reports(&mut self, cx: &mut Cx) {
        let due = |r: &Report| r.news && !r.asked && r.next <= cx.now;
        let due: Vec<_> = self.reports.iter().filter(|(_, r)| due(r)).map(|(id, _)| id.clone()).collect();
        for lease in due {
            let Some(taken) = cx.book.taken.get(&lease) else {
                self.reports.remove(&lease);
                continue;
            };
            let (to, frame, secret) = (taken.terms.from.clone(), frame(taken), taken.terms.secret.0.clone());
            let parts = taken.parts.keys().filter_map(|n| self.progress(cx.book, &lease, *n)).collect();
            let next = cx.now.plus(cx.config.timers.progress_ms);
            self.reports.insert(lease.clone(), Report { next, news: false, asked: true });
            let body = Body::Progress(Progress { lease: lease.clone(), secret, parts });
            cx.ask(&to, frame, body, About::Progress(lease));
        }
    }

    pub fn progress_answered(&mut self, cx: &mut Cx, lease: &LeaseId, answer: Result<Body, Lost>) {
        let Some(report) = self.reports.get_mut(lease) else { return };
        report.asked = false;
        match answer {
            Ok(Body::Ack(_)) => {
                self.heard.insert(lease.clone(), cx.now);
            }
            Ok(Body::Stale(_)) => self.drop_unfinished(cx, lease, |_| true, "home has no such lease"),
            // What it said is still true, and may be news to home.
            Ok(_) | Err(_) => {
                report.news = true;
                report.next = report.next.max(cx.now.plus(cx.config.timers.repeat_ms));
            }
        }
        self.close_if_done(cx, lease, "done");
    }

    /// Stops and forgets those parts that have no result yet.
    pub(super) fn drop_unfinished(
        &mut self,
        cx: &mut Cx,
        lease: &LeaseId,
        which: impl Fn(&PartRef) -> bool,
        reason: &str,
    ) {
        let Some(taken) = cx.book.taken.get(lease) else { return };
        let mut dropped = Vec::new();
        for (n, part) in &taken.parts {
            let r = PartRef { part: *n, attempt: part.award.attempt };
            if matches!(part.state, TakenState::Kept(_)) || !which(&r) {
                continue;
            }
            if part.state == TakenState::Started {
                cx.out.push(Output::Stop { lease: lease.clone(), part: r.part, attempt: r.attempt });
            }
            self.work.remove(&(lease.clone(), *n));
            dropped.push(r);
        }
        if !dropped.is_empty() {
            let (at, lease) = (cx.now, lease.clone());
            cx.record(Event::Dropped { at, lease, parts: dropped, reason: reason.into() });
        }
    }

    pub fn take_excess(&mut self) -> Vec<(LeaseId, Vec<u32>)> {
        std::mem::take(&mut self.excess)
    }
}

/// Parts of other domains that are not started.
pub(super) fn foreign_waiting<'a>(book: &'a Book, me: &'a DomainId) -> impl Iterator<Item = (LeaseId, u32)> + 'a {
    book.taken.iter().filter(move |(_, t)| t.terms.from != *me).flat_map(|(id, t)| {
        let waiting = t.parts.iter().filter(|(_, p)| p.state == TakenState::Waiting);
        waiting.map(|(n, _)| (id.clone(), *n))
    })
}

/// Parts taken, in that state: lease, number, attempt.
fn parts<'a>(
    cx: &'a Cx,
    state: impl Fn(&TakenState) -> bool + Copy + 'a,
) -> impl Iterator<Item = (LeaseId, u32, u32)> + 'a {
    cx.book.taken.iter().flat_map(move |(id, t)| {
        let these = t.parts.iter().filter(move |(_, p)| state(&p.state));
        these.map(|(n, p)| (id.clone(), *n, p.award.attempt))
    })
}

fn run(cx: &mut Cx, id: &LeaseId, n: u32) {
    let Some(taken) = cx.book.taken.get(id) else { return };
    let Some(part) = taken.parts.get(&n) else { return };
    let (home, job, lease) = (taken.terms.home.clone(), taken.terms.job.clone(), id.clone());
    let (attempt, url) = (part.award.attempt, part.award.url.clone());
    cx.out.push(Output::Run { home, job, lease, part: n, attempt, url });
}

fn frame(taken: &Taken) -> Frame {
    let t = &taken.terms;
    Frame { job: t.job.clone(), home: t.home.clone(), path: t.path.clone() }
}

fn result(taken: &Taken, lease: &LeaseId, n: u32) -> Option<(u32, Body)> {
    let part = taken.parts.get(&n)?;
    let TakenState::Kept(kept) = part.state.clone() else { return None };
    let (lease, secret, attempt) = (lease.clone(), taken.terms.secret.0.clone(), part.award.attempt);
    let body = match kept {
        Kept::Done { by, outputs, usage } => {
            Body::PartDone(PartDone { lease, secret, part: n, attempt, by, outputs, usage })
        }
        Kept::Failed(Failure { class, retryable, code, log }) => {
            Body::PartFailed(PartFailed { lease, secret, part: n, attempt, class, retryable, code, log })
        }
        Kept::Revoked(reason) => {
            let parts = vec![PartRef { part: n, attempt }];
            Body::Revoke(Revoke { lease, secret, reason, parts })
        }
    };
    Some((attempt, body))
}

fn failure(class: &str, code: &str, log: &str) -> Failure {
    Failure { class: class.into(), retryable: true, code: code.into(), log: log.into() }
}
