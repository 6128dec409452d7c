//! Tasks of this domain's own hosts, and the ad that tells what room is left.

use std::time::Duration;

use anyhow::Result;
use federation::cluster::{Failure, Status, Stop, Taken};
use federation::domain::Input;
use federation::id::Millis;
use federation::message::Ad;
use tracing::{info, warn};

use super::{AD_REFRESH_MS, Coordinator, Done, now};
use crate::hosts::TaskId;

/// How long a host manager has to take a task.
pub(super) const HAND_OUT: Duration = Duration::from_secs(5);
/// The kinds of job this build works on.
const KINDS: &str = "transcode";
/// From a change to the ad that tells it. Everybody in the room hears it, so it comes once, and after the negotiation that caused it.
const AD_DELAY_MS: u64 = 500;

impl Coordinator {
    pub(super) fn task_lost(&mut self, task: TaskId, code: &str, reason: &str) -> Result<()> {
        warn!(%task, code, "a task is lost");
        let failure = Failure { class: "resource".into(), retryable: true, code: code.into(), log: reason.into() };
        let status = Status {
            task: task.to_string(),
            state: "failed".into(),
            bytes: 0,
            percent: 0.0,
            outputs: Vec::new(),
            usage: None,
            failure: Some(failure),
        };
        let TaskId { lease, part, attempt } = task;
        self.step(Input::Task { lease, part, attempt, status })
    }

    pub(super) fn stop_task(&mut self, task: TaskId) {
        let Some(jid) = self.hosts.stop(&task) else { return };
        let agent = self.agent.clone();
        self.spawn("stop", async move {
            if let Err(error) = agent.iq_set(jid.into(), Stop { task: task.to_string() }.into(), HAND_OUT).await {
                warn!(%task, %error, "could not be stopped; its result will be refused");
            }
        });
    }

    /// Gives waiting tasks to hosts with room.
    pub(super) fn hand_out(&mut self) {
        for (jid, run) in self.hosts.assign() {
            let (agent, done) = (self.agent.clone(), self.done.0.clone());
            self.spawn("hand out", async move {
                let answer = agent.iq_set(jid.clone().into(), run.into(), HAND_OUT).await;
                if let Err(error) = &answer {
                    info!(%jid, %error, "no task was taken");
                }
                let answer = answer.ok().flatten().and_then(|answer| Taken::try_from(answer).ok());
                let taken = answer.map_or(0, |taken| taken.tasks);
                let _ = done.send(Done::Handed { jid, taken }).await; // fails only when we are leaving
            });
        }
    }

    pub(super) fn ad(&self) -> Ad {
        let (slots, slots_free) = self.hosts.capacity();
        Ad {
            domain: self.me.clone(),
            epoch: self.epoch,
            seq: self.ad.map_or(0, |(_, seq, _)| seq) + 1,
            health: "ok".into(),
            slots,
            slots_free,
            price: self.domain.config().agreements.price,
            region: self.config.region.clone(),
            kinds: KINDS.into(),
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }

    /// Tells the own domain object at once and the federation soon when capacity changes.
    pub(super) async fn advertise(&mut self) -> Result<()> {
        let capacity = self.hosts.capacity();
        if self.told != Some(capacity) {
            self.told = Some(capacity);
            self.step(Input::Capacity { slots: capacity.0, free: capacity.1 })?;
        }
        let (at, seq, last) = self.ad.unwrap_or_default();
        self.changed_at = if last == capacity { None } else { self.changed_at.or(Some(now())) };
        if self.ad.is_none() || self.ad_due().unwrap_or(at.plus(AD_REFRESH_MS)) <= now() {
            let ad = self.ad();
            self.ad = Some((now(), seq + 1, capacity));
            self.changed_at = None;
            self.agent.update_presence(&self.rooms.federation.clone(), ad.into()).await?;
        }
        Ok(())
    }

    /// When a change of capacity is told at the latest.
    pub(super) fn ad_due(&self) -> Option<Millis> {
        self.changed_at.map(|at| at.plus(AD_DELAY_MS))
    }
}
