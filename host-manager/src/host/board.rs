//! The bookkeeping of a host manager, pure: `(now, input)` in, [`Action`]s and the next deadline out. Who drives it does all
//! waiting and all sending.
//!
//! A task is `waiting` until a guest is up, then whatever its guest says, and in the end final. What the manager has not
//! answered is sent again: the present state only, never a history. A new active manager is told about everything, so one that
//! was restarted finds its tasks again.

use std::collections::BTreeMap;

use federation::cluster::{Failure, Host, Status};
use federation::id::Millis;
use xmpp_parsers::jid::FullJid;

use crate::guest::task::Order;

/// Same-state progress of one task is told this often at most, ms.
const PROGRESS_EVERY_MS: u64 = 500;
/// Longest wait before a status is repeated that was not answered, ms.
const REPEAT_MS_MAX: u64 = 5_000;
/// The host announces itself anew this often, ms.
const ANNOUNCE_EVERY_MS: u64 = 5_000;
/// Ended tasks remembered, so that a repeated order is recognised.
const ENDED_MAX: usize = 256;
/// Guests that may die under one task before the task is blamed.
const GUESTS_PER_TASK_MAX: u32 = 2;

/// What the host offers.
#[derive(Clone, Debug)]
pub struct Offer {
    pub name: String,
    /// Incarnation: grows with each start.
    pub epoch: u64,
    pub slots: u32,
    /// Tasks taken beyond the slots, to load while others are encoded.
    pub backlog: u32,
    /// Number of guests the tasks are spread over.
    pub guests: usize,
}

/// Something to be done by the driver.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Run the task on this guest and report every state by [`Board::guest_says`].
    Start { guest: usize, task: String, order: Order },
    /// End it on this guest if it still runs, and forget it there.
    Forget { guest: usize, task: String },
    /// Send the status and report the fate by [`Board::answered`] with the same `token`.
    Tell { to: FullJid, token: u64, status: Box<Status> },
    /// Directed presence.
    Announce { to: FullJid, host: Host },
}

/// An order is not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("only the active cluster manager gives orders here")]
pub struct NotManager;

/// What became of a status that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Answered, or refused for good: the manager does not know the task.
    Settled,
    /// No answer in time, or an error that may pass.
    Lost,
}

/// All tasks of a host, and who may give orders.
pub struct Board {
    offer: Offer,
    seq: u64,
    manager: Option<FullJid>,
    /// Highest epoch of any manager seen; a lower one is a ghost.
    epoch_seen: u64,
    announced: Option<(Millis, u32)>,
    guests_up: Vec<bool>,
    tasks: BTreeMap<String, Entry>,
    next_token: u64,
}

struct Entry {
    order: Order,
    status: Status,
    guest: Option<usize>,
    guests_used: u32,
    ended: Option<Millis>,
    /// The guest has been told to forget it.
    forgotten: bool,
    /// The manager does not have the present status yet.
    dirty: bool,
    /// Something else than numbers changed: not throttled.
    urgent: bool,
    in_flight: Option<(u64, Status)>,
    told_at: Option<Millis>,
    losses: u32,
}

impl Board {
    pub fn new(offer: Offer) -> Self {
        let guests_up = vec![false; offer.guests];
        let (seq, epoch_seen, next_token) = (0, 0, 0);
        Self { offer, seq, manager: None, epoch_seen, announced: None, guests_up, tasks: BTreeMap::new(), next_token }
    }

    /// The occupant that holds the manager's nickname with the rights of one.
    pub fn manager_seen(&mut self, jid: FullJid, epoch: u64) {
        if epoch < self.epoch_seen {
            return;
        }
        let known = self.manager.as_ref() == Some(&jid) && epoch == self.epoch_seen;
        self.epoch_seen = epoch;
        if known {
            return;
        }
        self.manager = Some(jid);
        self.announced = None;
        for entry in self.tasks.values_mut() {
            (entry.dirty, entry.urgent, entry.in_flight, entry.losses) = (true, true, None, 0);
        }
    }

    pub fn manager_gone(&mut self, jid: Option<&FullJid>) {
        if jid.is_none() || self.manager.as_ref() == jid {
            self.manager = None;
        }
    }

    pub fn manager(&self) -> Option<&FullJid> {
        self.manager.as_ref()
    }

    /// An order to run a task. The same task is never run twice. False: no slot is free for it.
    pub fn run(&mut self, from: &FullJid, task: &str, order: Order) -> Result<bool, NotManager> {
        self.check(from)?;
        if let Some(entry) = self.tasks.get_mut(task) {
            (entry.dirty, entry.urgent) = (true, true); // who asks again has not heard
            return Ok(true);
        }
        if self.active() >= self.offer.slots as usize + self.offer.backlog as usize {
            return Ok(false);
        }
        let status = Status {
            task: task.to_owned(),
            state: "waiting".to_owned(),
            bytes: 0,
            percent: 0.0,
            outputs: Vec::new(),
            usage: None,
            failure: None,
        };
        let entry = Entry {
            order,
            status,
            guest: None,
            guests_used: 0,
            ended: None,
            forgotten: false,
            dirty: true,
            urgent: true,
            in_flight: None,
            told_at: None,
            losses: 0,
        };
        self.tasks.insert(task.to_owned(), entry);
        Ok(true)
    }

    /// An order to stop and forget; fine for an unknown task. Answers what the driver has to do at once.
    pub fn stop(&mut self, from: &FullJid, task: &str) -> Result<Option<Action>, NotManager> {
        self.check(from)?;
        let guest = self.tasks.remove(task).and_then(|entry| entry.guest);
        Ok(guest.map(|guest| Action::Forget { guest, task: task.to_owned() }))
    }

    pub fn guest_up(&mut self, guest: usize) {
        if let Some(up) = self.guests_up.get_mut(guest) {
            *up = true;
        }
    }

    /// The guest is gone with all it did. Its tasks are run once more elsewhere; the second time they fail.
    pub fn guest_down(&mut self, now: Millis, guest: usize) {
        if let Some(up) = self.guests_up.get_mut(guest) {
            *up = false;
        }
        for entry in self.tasks.values_mut().filter(|e| e.guest == Some(guest)) {
            entry.guest = None;
            entry.forgotten = true;
            if entry.ended.is_some() {
                continue;
            }
            (entry.dirty, entry.urgent) = (true, true);
            entry.status.percent = 0.0;
            if entry.guests_used < GUESTS_PER_TASK_MAX {
                entry.status.state = "waiting".to_owned();
                continue;
            }
            entry.ended = Some(now);
            entry.status.state = "failed".to_owned();
            entry.status.failure = Some(Failure {
                class: "resource".to_owned(),
                retryable: true,
                code: "guest-lost".to_owned(),
                log: format!("{GUESTS_PER_TASK_MAX} guests died while they ran it"),
            });
        }
    }

    /// What a guest says about a task; `ended` when it will say no more.
    pub fn guest_says(&mut self, now: Millis, guest: usize, status: Status, ended: bool) {
        let Some(entry) = self.tasks.get_mut(&status.task).filter(|e| e.guest == Some(guest) && e.ended.is_none())
        else {
            return;
        };
        if entry.status == status {
            return;
        }
        entry.dirty = true;
        entry.urgent |= entry.status.state != status.state || entry.status.outputs.len() != status.outputs.len();
        entry.status = status;
        if ended {
            entry.ended = Some(now);
        }
    }

    pub fn answered(&mut self, task: &str, token: u64, fate: Fate) {
        let Some(entry) = self.tasks.get_mut(task) else { return };
        let Some((_, sent)) = entry.in_flight.take_if(|(sent_as, _)| *sent_as == token) else { return };
        match fate {
            Fate::Settled => {
                entry.losses = 0;
                entry.dirty = sent != entry.status;
            }
            Fate::Lost => entry.losses += 1,
        }
    }

    /// Tasks that take room: neither done nor failed.
    pub fn active(&self) -> usize {
        self.tasks.values().filter(|entry| entry.ended.is_none()).count()
    }

    /// All that is due at `now`.
    pub fn poll(&mut self, now: Millis) -> Vec<Action> {
        let mut actions = Vec::new();
        self.assign(&mut actions);
        self.tell(now, &mut actions);
        self.announce(now, &mut actions);
        self.prune();
        actions
    }

    /// When to poll again if nothing happens before.
    pub fn deadline(&self) -> Option<Millis> {
        self.manager.as_ref()?;
        let statuses = self.tasks.values().filter_map(Entry::due);
        statuses.chain(self.announced.map(|(at, _)| at.plus(ANNOUNCE_EVERY_MS))).min()
    }

    fn check(&self, from: &FullJid) -> Result<(), NotManager> {
        if self.manager.as_ref() == Some(from) { Ok(()) } else { Err(NotManager) }
    }

    fn assign(&mut self, actions: &mut Vec<Action>) {
        let mut load = vec![0_usize; self.offer.guests];
        for guest in self.tasks.values().filter(|e| e.ended.is_none()).filter_map(|e| e.guest) {
            load[guest] += 1;
        }
        for (task, entry) in &mut self.tasks {
            if entry.ended.is_some() {
                if let (false, Some(guest)) = (entry.forgotten, entry.guest) {
                    entry.forgotten = true;
                    actions.push(Action::Forget { guest, task: task.clone() });
                }
            } else if entry.guest.is_none() {
                let up = (0..self.offer.guests).filter(|guest| self.guests_up[*guest]);
                let Some(guest) = up.min_by_key(|guest| load[*guest]) else { continue };
                load[guest] += 1;
                entry.guest = Some(guest);
                entry.guests_used += 1;
                entry.forgotten = false;
                actions.push(Action::Start { guest, task: task.clone(), order: entry.order.clone() });
            }
        }
    }

    fn tell(&mut self, now: Millis, actions: &mut Vec<Action>) {
        let Some(manager) = &self.manager else { return };
        for entry in self.tasks.values_mut() {
            if entry.due().is_none_or(|due| due > now) {
                continue;
            }
            self.next_token += 1;
            entry.in_flight = Some((self.next_token, entry.status.clone()));
            entry.told_at = Some(now);
            entry.urgent = false;
            actions.push(Action::Tell {
                to: manager.clone(),
                token: self.next_token,
                status: Box::new(entry.status.clone()),
            });
        }
    }

    fn announce(&mut self, now: Millis, actions: &mut Vec<Action>) {
        let Some(manager) = &self.manager else { return };
        let slots_free = self.offer.slots.saturating_sub(u32::try_from(self.active()).unwrap_or(u32::MAX));
        let fresh = self.announced.is_some_and(|(at, free)| free == slots_free && now.since(at) < ANNOUNCE_EVERY_MS);
        if fresh {
            return;
        }
        self.announced = Some((now, slots_free));
        self.seq += 1;
        let Offer { name, epoch, slots, .. } = &self.offer;
        let host = Host { name: name.clone(), epoch: *epoch, seq: self.seq, slots: *slots, slots_free };
        actions.push(Action::Announce { to: manager.clone(), host });
    }

    fn prune(&mut self) {
        let settled = |e: &Entry| e.ended.filter(|_| !e.dirty && e.forgotten);
        while self.tasks.values().filter_map(settled).count() > ENDED_MAX {
            let oldest = self.tasks.iter().filter_map(|(task, e)| Some((settled(e)?, task.clone()))).min();
            let Some((_, task)) = oldest else { return };
            self.tasks.remove(&task);
        }
    }
}

impl Entry {
    /// When the status is to be sent; `None` while there is nothing new or an answer is awaited.
    fn due(&self) -> Option<Millis> {
        if !self.dirty || self.in_flight.is_some() {
            return None;
        }
        let Some(told_at) = self.told_at else { return Some(Millis(0)) };
        let wait = match self.losses {
            0 if self.urgent => 0,
            losses => (PROGRESS_EVERY_MS << losses.min(8)).min(REPEAT_MS_MAX),
        };
        Some(told_at.plus(wait))
    }
}

#[cfg(test)]
mod tests;
