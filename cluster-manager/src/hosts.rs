//! Which host manager runs which task: the cluster manager's view of its own machines. Pure.
//!
//! Tasks go to the host with the least work for its slots, more than it has slots, because a host loads what waits while
//! it encodes what runs. A host that has enough refuses; then it gets nothing until one of its tasks ends, or it says that it has free
//! slots. It is asked once for several, and asked again when it has answered.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::str::FromStr;

use federation::cluster::{Host, Run, Task};
use federation::id::{LeaseId, Millis};
use xmpp_parsers::jid::FullJid;

/// A host that was silent for this long is gone. Hosts refresh every few seconds.
pub const SILENT_MS: u64 = 20_000;

/// One attempt of one part under one lease, as host managers name it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TaskId {
    pub lease: LeaseId,
    pub part: u32,
    pub attempt: u32,
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.lease, self.part, self.attempt)
    }
}

impl FromStr for TaskId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut fields = text.rsplitn(3, ':');
        let attempt = fields.next().and_then(|f| f.parse().ok()).ok_or(())?;
        let part = fields.next().and_then(|f| f.parse().ok()).ok_or(())?;
        let lease = fields.next().filter(|f| !f.is_empty()).ok_or(())?;
        Ok(Self { lease: lease.into(), part, attempt })
    }
}

#[derive(Debug)]
struct Entry {
    host: Host,
    seen: Millis,
    tasks: BTreeSet<TaskId>,
    /// It has refused since its last task ended.
    full: bool,
    /// What it was asked to take and has not answered yet.
    asked: Vec<TaskId>,
}

/// A host is asked to take so many tasks more than it has slots: it loads some while it encodes others.
const BEYOND_SLOTS: u32 = 4;
/// Tasks in one [`Run`]: with the longest addresses they fit into a stanza.
const RUN_MAX: u32 = 32;

impl Entry {
    /// Most tasks in one [`Run`] for it.
    fn room(&self) -> usize {
        self.host.slots.saturating_add(BEYOND_SLOTS).min(RUN_MAX) as usize
    }

    /// It may be asked to take something.
    fn is_open(&self) -> bool {
        !self.full && self.host.slots > 0 && self.asked.is_empty()
    }

    fn load(&self) -> f64 {
        self.tasks.len() as f64 / f64::from(self.host.slots.max(1))
    }
}

/// Where a task finds its order, and its bytes if not in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Where {
    pub url: String,
    pub swarm: Option<String>,
}

#[derive(Debug, Default)]
pub struct Hosts {
    hosts: BTreeMap<FullJid, Entry>,
    waiting: VecDeque<(TaskId, Where)>,
    given: BTreeMap<TaskId, Where>,
}

impl Hosts {
    /// A host says what it has. Returns tasks of an earlier incarnation of it, which are lost.
    pub fn announced(&mut self, now: Millis, jid: FullJid, host: Host) -> Vec<TaskId> {
        let older: Vec<_> = self
            .hosts
            .iter()
            .filter(|(other, entry)| **other != jid && entry.host.name == host.name && entry.host.epoch < host.epoch)
            .map(|(other, _)| other.clone())
            .collect();
        let lost = older.iter().flat_map(|other| self.gone(other)).collect();
        let entry = self.hosts.entry(jid).or_insert_with(|| Entry {
            host: host.clone(),
            seen: now,
            tasks: BTreeSet::new(),
            full: false,
            asked: Vec::new(),
        });
        entry.seen = now;
        // Whose answer was lost took nothing by our count, so that none of its tasks would ever end.
        entry.full &= host.slots_free == 0;
        entry.host = host;
        lost
    }

    /// A host has left; its tasks are lost.
    pub fn gone(&mut self, jid: &FullJid) -> Vec<TaskId> {
        let tasks = self.hosts.remove(jid).map(|entry| entry.tasks).unwrap_or_default();
        for task in &tasks {
            self.given.remove(task);
        }
        tasks.into_iter().collect()
    }

    /// Hosts that have been silent too long, with their tasks.
    pub fn silent(&mut self, now: Millis) -> Vec<TaskId> {
        let silent: Vec<_> =
            self.hosts.iter().filter(|(_, e)| now.since(e.seen) > SILENT_MS).map(|(jid, _)| jid.clone()).collect();
        silent.iter().flat_map(|jid| self.gone(jid)).collect()
    }

    pub fn run(&mut self, task: TaskId, at: Where) {
        let known = self.given.contains_key(&task) || self.waiting.iter().any(|(waiting, _)| *waiting == task);
        if !known && self.holder(&task).is_none() {
            self.waiting.push_back((task, at));
        }
    }

    /// Whether something waits that [`assign`](Self::assign) would send.
    pub fn can_assign(&self) -> bool {
        !self.waiting.is_empty() && self.hosts.values().any(Entry::is_open)
    }

    /// What to send now: tasks that waited, to hosts with room for them.
    pub fn assign(&mut self) -> BTreeMap<FullJid, Run> {
        let mut runs = BTreeMap::<FullJid, Run>::new();
        while let Some((task, at)) = self.waiting.pop_front() {
            let has_room =
                |(jid, e): &(&FullJid, &mut Entry)| e.is_open() || runs.contains_key(*jid) && e.asked.len() < e.room();
            let hosts = self.hosts.iter_mut().filter(has_room);
            let Some((jid, entry)) = hosts.min_by(|(_, a), (_, b)| a.load().total_cmp(&b.load())) else {
                self.waiting.push_front((task, at));
                break;
            };
            let run = runs.entry(jid.clone()).or_insert(Run { tasks: Vec::new() });
            run.tasks.push(Task { id: task.to_string(), url: at.url.clone(), swarm: at.swarm.clone() });
            entry.tasks.insert(task.clone());
            entry.asked.push(task.clone());
            self.given.insert(task, at);
        }
        runs
    }

    /// The host has answered: it took so many, from the first on. What it did not take waits again, and the host with it.
    pub fn answered(&mut self, jid: &FullJid, taken: usize) {
        let Some(entry) = self.hosts.get_mut(jid) else { return };
        for task in std::mem::take(&mut entry.asked).into_iter().skip(taken).rev() {
            entry.tasks.remove(&task);
            entry.full = true;
            if let Some(at) = self.given.remove(&task) {
                self.waiting.push_front((task, at));
            }
        }
    }

    /// A host reports on a task, perhaps one that it was given before we restarted. False: that host is unknown.
    pub fn reported(&mut self, now: Millis, jid: &FullJid, task: &TaskId, ended: bool) -> bool {
        let Some(entry) = self.hosts.get_mut(jid) else { return false };
        entry.seen = now;
        if ended {
            entry.tasks.remove(task);
            entry.full = false;
            self.given.remove(task);
        } else {
            entry.tasks.insert(task.clone());
        }
        self.waiting.retain(|(waiting, _)| waiting != task);
        true
    }

    /// Forgets a task; returns the host to be told.
    pub fn stop(&mut self, task: &TaskId) -> Option<FullJid> {
        self.waiting.retain(|(waiting, _)| waiting != task);
        self.given.remove(task);
        let jid = self.holder(task)?;
        let entry = self.hosts.get_mut(&jid)?;
        entry.tasks.remove(task);
        entry.full = false;
        Some(jid)
    }

    /// Slots of all hosts, and how many of them have nothing to do.
    pub fn capacity(&self) -> (u32, u32) {
        let slots = self.hosts.values().map(|e| e.host.slots).fold(0, u32::saturating_add);
        let busy = self.hosts.values().map(|e| (e.tasks.len() as u32).min(e.host.slots)).fold(0, u32::saturating_add);
        (slots, slots.saturating_sub(busy).saturating_sub(self.waiting.len() as u32))
    }

    fn holder(&self, task: &TaskId) -> Option<FullJid> {
        self.hosts.iter().find(|(_, entry)| entry.tasks.contains(task)).map(|(jid, _)| jid.clone())
    }
}

#[cfg(test)]
mod tests {
    use federation::xmpp::{Element, STANZA_BYTES_MAX};

    use super::*;

    fn jid(name: &str) -> FullJid {
        format!("{name}@a.test/x").parse().unwrap()
    }

    fn task(part: u32) -> TaskId {
        TaskId { lease: "l:1".into(), part, attempt: 1 }
    }

    fn tasks(run: &Run) -> Vec<TaskId> {
        run.tasks.iter().map(|task| task.id.parse().unwrap()).collect()
    }

    fn hosts(slots: &[(&str, u32)]) -> Hosts {
        let mut hosts = Hosts::default();
        for (name, slots) in slots {
            let host = Host { name: (*name).into(), epoch: 1, seq: 0, slots: *slots, slots_free: *slots };
            assert!(hosts.announced(Millis(0), jid(name), host).is_empty());
        }
        hosts
    }

    #[test]
    fn a_task_id_survives_its_text() {
        let id = TaskId { lease: "a.test:j-1:3".into(), part: 7, attempt: 2 };
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("7:2".parse::<TaskId>(), Err(()));
    }

    #[test]
    fn work_is_shared_in_proportion_to_slots() {
        let mut hosts = hosts(&[("big", 3), ("small", 1)]);
        (0..8).for_each(|n| hosts.run(task(n), Where::default()));
        let mut counts = BTreeMap::new();
        for (jid, run) in hosts.assign() {
            hosts.answered(&jid, run.tasks.len());
            counts.insert(jid, run.tasks.len());
        }
        assert_eq!(counts[&jid("big")], 6);
        assert_eq!(counts[&jid("small")], 2);
        assert_eq!(hosts.capacity(), (4, 0));
    }

    #[test]
    fn a_refused_task_goes_to_another_host() {
        let mut hosts = hosts(&[("one", 1), ("two", 1)]);
        hosts.run(task(0), Where { url: "u".into(), swarm: None });
        let (first, run) = hosts.assign().pop_first().unwrap();
        hosts.answered(&first, 0);
        let (second, again) = hosts.assign().pop_first().unwrap();
        assert_ne!(first, second);
        assert_eq!((tasks(&again), again.tasks[0].url.as_str()), (tasks(&run), "u"));
    }

    #[test]
    fn a_host_that_takes_a_part_of_a_run_gets_no_more_until_one_has_ended() {
        let mut hosts = hosts(&[("one", 1)]);
        assert!(!hosts.can_assign(), "there is nothing to do");
        (0..10).for_each(|n| hosts.run(task(n), Where::default()));
        assert!(hosts.can_assign());
        let (one, run) = hosts.assign().pop_first().unwrap();
        assert_eq!(tasks(&run), (0..1 + BEYOND_SLOTS).map(task).collect::<Vec<_>>());
        assert!(!hosts.can_assign() && hosts.assign().is_empty(), "it has not answered");
        hosts.answered(&one, 2);
        assert!(!hosts.can_assign() && hosts.assign().is_empty(), "it is full");
        assert!(hosts.reported(Millis(1), &one, &task(0), true));
        assert!(hosts.can_assign());
        let (_, run) = hosts.assign().pop_first().unwrap();
        assert_eq!(tasks(&run), (2..3 + BEYOND_SLOTS).map(task).collect::<Vec<_>>());
        hosts.answered(&one, run.tasks.len());
        assert_eq!(tasks(&hosts.assign()[&one]), (3 + BEYOND_SLOTS..10).map(task).collect::<Vec<_>>());
    }

    #[test]
    fn a_host_that_did_not_answer_gets_tasks_again_once_it_says_it_is_free() {
        let mut hosts = hosts(&[("one", 2)]);
        hosts.run(task(0), Where::default());
        let (one, run) = hosts.assign().pop_first().unwrap();
        hosts.answered(&one, 0);
        let mut busy = Host { name: "one".into(), epoch: 1, seq: 1, slots: 2, slots_free: 0 };
        hosts.announced(Millis(1), one.clone(), busy.clone());
        assert!(hosts.assign().is_empty());
        busy.slots_free = 1;
        hosts.announced(Millis(2), one.clone(), busy);
        assert_eq!(tasks(&hosts.assign()[&one]), tasks(&run));
    }

    #[test]
    fn what_ended_or_was_stopped_before_the_host_answered_does_not_wait_again() {
        let mut hosts = hosts(&[("one", 1)]);
        (0..4).for_each(|n| hosts.run(task(n), Where::default()));
        let (one, _) = hosts.assign().pop_first().unwrap();
        assert_eq!(hosts.stop(&task(3)), Some(one.clone()));
        hosts.reported(Millis(1), &one, &task(1), true);
        hosts.answered(&one, 1);
        hosts.reported(Millis(1), &one, &task(0), true);
        assert_eq!(tasks(&hosts.assign()[&one]), [task(2)]);
    }

    #[test]
    fn a_run_for_a_large_host_fits_into_a_stanza() {
        let mut hosts = hosts(&[("one", 1000)]);
        (0..100).for_each(|n| hosts.run(task(n), Where { url: "u".repeat(4096), swarm: None }));
        let (_, run) = hosts.assign().pop_first().unwrap();
        assert_eq!(run.tasks.len(), RUN_MAX as usize);
        assert!(String::from(&Element::from(run)).len() < STANZA_BYTES_MAX);
    }

    #[test]
    fn tasks_of_a_silent_or_restarted_host_are_lost() {
        let mut hosts = hosts(&[("one", 1)]);
        hosts.run(task(0), Where::default());
        hosts.assign();
        assert!(hosts.silent(Millis(SILENT_MS)).is_empty());
        let reborn = Host { name: "one".into(), epoch: 2, seq: 0, slots: 1, slots_free: 1 };
        assert_eq!(hosts.announced(Millis(1), "hm@a.test/new".parse().unwrap(), reborn), [task(0)]);
        hosts.run(task(1), Where::default());
        hosts.assign();
        assert_eq!(hosts.silent(Millis(SILENT_MS + 2)), [task(1)]);
    }

    #[test]
    fn hosts_may_say_any_number_of_slots() {
        assert_eq!(hosts(&[("one", u32::MAX), ("two", u32::MAX)]).capacity(), (u32::MAX, u32::MAX));
    }

    #[test]
    fn a_repeated_order_is_not_run_twice() {
        let mut hosts = hosts(&[("one", 2)]);
        hosts.run(task(0), Where::default());
        hosts.run(task(0), Where::default());
        assert_eq!(tasks(&hosts.assign().pop_first().unwrap().1), [task(0)]);
        hosts.run(task(0), Where::default());
        assert!(hosts.assign().is_empty());
    }
}
