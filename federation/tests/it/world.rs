//! A federation in one process: domains joined by a network that loses, repeats, delays and reorders; clusters that take a
//! random time; crashes between any two journaled events. One seed decides everything.
//!
//! [`World::step`] checks the design's invariants after every event, from the outside: by what is journaled and said.

use std::collections::{BTreeMap, BTreeSet};

use federation::agreement::Agreements;
use federation::book::Book;
use federation::cluster::{Failure, Status};
use federation::domain::{Domain, DomainConfig, Input, Lost, Output};
use federation::event::Event;
use federation::id::{DomainId, JobId, LeaseId, Millis};
use federation::message::{self, Ad, Body, Decline, PartCall, Usage};
use federation::timers::Timers;

use crate::observer::Observer;

/// SplitMix64 (Steele, Lea and Flood 2014).
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// What goes wrong, in percent.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    pub loss: u64,
    pub repeat: u64,
    /// Longest delay of a packet, ms.
    pub delay_ms: u64,
    /// For each batch of outputs: the domain dies in the middle of it.
    pub crash: u64,
    /// For each task: it fails.
    pub task_failure: u64,
}

/// How a domain differs from an honest one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Habit {
    Honest,
    /// Results that are not in the store as said.
    WrongHash,
    /// Takes work and never does it, but goes on talking.
    Idle,
    /// Fails every task.
    BlackHole,
    /// Answers nothing but errors.
    Unavailable,
    /// Says of every part that its source is bad.
    Accuser,
    /// Bids for everything and takes nothing.
    Fickle,
}

pub struct Node {
    pub domain: Domain,
    pub config: DomainConfig,
    pub journal: Vec<Event>,
    /// The fold of the journal, event by event, through the bytes that it would hold.
    pub folded: Book,
    pub alive: bool,
    pub slots: u32,
    pub habit: Habit,
    tasks: BTreeMap<Key, Task>,
    outcome: BTreeMap<Key, Status>,
    pub ran: Vec<(JobId, u32, u32)>,
}

type Key = (LeaseId, u32, u32);

#[derive(Clone, Debug)]
struct Task {
    ended: Option<Status>,
}

enum Packet {
    Input(Box<Input>),
    TaskEnds(Key),
    Restart,
}

pub type Filter = Box<dyn FnMut(&DomainId, &DomainId, &Body, bool) -> bool>;

pub struct World {
    pub rng: Rng,
    pub faults: Faults,
    pub now: Millis,
    pub nodes: BTreeMap<DomainId, Node>,
    queue: BTreeMap<(Millis, u64), (DomainId, Packet)>,
    count: u64,
    pub seen: Observer,
    /// Pairs that cannot reach each other.
    pub cut: BTreeSet<(DomainId, DomainId)>,
    /// Takes away messages: (from, to, body, is an answer).
    pub filter: Filter,
    pub sent: Vec<(DomainId, DomainId, &'static str)>,
    /// Ends a job when all its parts are there.
    pub publish: bool,
    pub task_ms: (u64, u64),
    /// Jobs whose parts become known some time after they were expected: home, job and number of parts.
    expected: Vec<(DomainId, JobId, u32)>,
    pub said: Vec<(Millis, DomainId, Output)>,
}

pub fn d(name: &str) -> DomainId {
    DomainId::from(name)
}

pub fn j(name: &str) -> JobId {
    JobId::from(name)
}

fn submission(job: &JobId, parts: u32) -> Input {
    let (job, kind) = (job.clone(), "transcode".to_owned());
    Input::Submit { job, kind, parts: calls(parts), deadline: None, budget: None }
}

pub fn calls(parts: u32) -> Vec<PartCall> {
    (0..parts).map(|part| PartCall { part, bytes: 1_000_000, work_ms: 2_000 }).collect()
}

impl World {
    /// Domains `a`, `b`, ... with two slots each, all known to each other.
    pub fn new(seed: u64, count: usize) -> Self {
        let names: Vec<_> = (0..count).map(|i| char::from(b'a' + i as u8).to_string()).collect();
        let nodes = names.iter().map(|n| (d(n), Node::new(n, Agreements::default(), Timers::default()))).collect();
        let mut world = Self {
            rng: Rng(seed),
            faults: Faults { delay_ms: 20, ..Faults::default() },
            now: Millis(1_000_000),
            nodes,
            queue: BTreeMap::new(),
            count: 0,
            seen: Observer::default(),
            cut: BTreeSet::new(),
            filter: Box::new(|_, _, _, _| true),
            sent: Vec::new(),
            publish: true,
            task_ms: (1_000, 3_000),
            expected: Vec::new(),
            said: Vec::new(),
        };
        for name in &names {
            world.input(&d(name), Input::Capacity { slots: 2, free: 2 });
        }
        world.advertise();
        world
    }

    /// Every living domain sees the ad of every other; as presence would do now and then.
    pub fn advertise(&mut self) {
        let ads: Vec<_> = self.nodes.iter().filter(|(_, n)| n.alive).map(|(id, n)| n.ad(id, self.now)).collect();
        let names: Vec<_> = self.nodes.keys().cloned().collect();
        for ad in ads {
            for name in names.iter().filter(|n| **n != ad.domain) {
                if !self.cut.contains(&(ad.domain.clone(), name.clone())) {
                    self.input(name, Input::Ad(ad.clone()));
                }
            }
        }
    }

    pub fn submit(&mut self, home: &str, job: &str, parts: u32) {
        self.input(&d(home), submission(&j(job), parts));
    }

    pub fn expect(&mut self, home: &str, job: &str) {
        let (job, kind) = (j(job), "transcode".to_owned());
        self.input(&d(home), Input::Expect { job, kind, part_work_ms: 2_000, deadline: None, budget: None });
    }

    /// Expected now, and submitted within `ms`; said again by a driver that starts again.
    pub fn expect_and_submit(&mut self, home: &str, job: &str, parts: u32, ms: u64) {
        self.expected.push((d(home), j(job), parts));
        self.prepare(&d(home), ms);
    }

    fn prepare(&mut self, home: &DomainId, ms: u64) {
        for (_, job, parts) in self.expected.clone().into_iter().filter(|(of, _, _)| of == home) {
            self.expect(&home.0, &job.0);
            let wait = self.rng.below(ms + 1);
            self.later(wait, home, Packet::Input(Box::new(submission(&job, parts))));
        }
    }

    pub fn node(&mut self, name: &str) -> &mut Node {
        self.nodes.get_mut(&d(name)).expect("a domain of this world")
    }

    pub fn set_slots(&mut self, name: &str, slots: u32) {
        self.node(name).slots = slots;
        self.input(&d(name), Input::Capacity { slots, free: slots });
    }

    pub fn cut(&mut self, a: &str, b: &str) {
        self.cut.insert((d(a), d(b)));
        self.cut.insert((d(b), d(a)));
    }

    /// The next thing that happens anywhere; `false`: nothing ever will.
    pub fn step(&mut self) -> bool {
        let packet = self.queue.keys().next().copied();
        let alive = self.nodes.iter().filter(|(_, n)| n.alive);
        let tick = alive.filter_map(|(id, n)| Some((n.domain.deadline()?, id.clone()))).min();
        match (packet, tick) {
            (Some(at), Some((tick, id))) if tick < at.0 => self.tick(tick, &id),
            (None, Some((tick, id))) => self.tick(tick, &id),
            (Some(at), _) => {
                self.now = self.now.max(at.0);
                if let Some((to, packet)) = self.queue.remove(&at) {
                    self.deliver(&to, packet);
                }
            }
            (None, None) => return false,
        }
        true
    }

    fn tick(&mut self, at: Millis, id: &DomainId) {
        let late = self.now.since(at);
        self.now = self.now.max(at);
        self.input(id, Input::Tick);
        let next = self.nodes[id].domain.deadline();
        assert!(late > 0 || next.is_none_or(|n| n > at), "{id} does not get on: deadline {next:?} at {at:?}");
    }

    /// Until `done`, or for `ms`; true if done.
    pub fn run_until(&mut self, ms: u64, mut done: impl FnMut(&Self) -> bool) -> bool {
        let end = self.now.plus(ms);
        let mut next_ad = self.now.plus(15_000);
        while !done(self) {
            let packet = self.queue.keys().next().map(|k| k.0);
            let alive = self.nodes.values().filter(|n| n.alive);
            let next = alive.filter_map(|n| n.domain.deadline()).chain(packet).min();
            if next.is_none_or(|t| t > end.min(next_ad)) {
                self.now = self.now.max(end.min(next_ad));
                if end <= next_ad {
                    return done(self);
                }
                next_ad = self.now.plus(15_000);
                self.advertise();
                continue;
            }
            self.step();
        }
        true
    }

    pub fn run_for(&mut self, ms: u64) {
        self.run_until(ms, |_| false);
    }

    pub fn end_of(&self, home: &str, job: &str) -> Option<federation::event::End> {
        self.nodes[&d(home)].domain.book().jobs.get(&j(job))?.end.clone()
    }

    pub fn all_ended(&self) -> bool {
        let own = |n: &Node| n.domain.book().jobs.values().all(|j| j.end.is_some());
        self.nodes.values().all(|n| n.alive && own(n))
    }

    /// All have ended and nobody owes or holds anything.
    pub fn is_quiet(&self) -> bool {
        let quiet = |n: &Node| {
            n.domain.book().taken.is_empty() && n.domain.held() == 0 && n.tasks.values().all(|t| t.ended.is_some())
        };
        self.all_ended() && self.nodes.values().all(quiet)
    }

    /// Kills a domain now; its machines go on.
    pub fn crash(&mut self, name: &DomainId) {
        if let Some(node) = self.nodes.get_mut(name) {
            node.alive = false;
            self.seen.crashes += 1;
        }
    }

    /// Kills a domain, which comes back by itself.
    pub fn kill(&mut self, name: &DomainId) {
        self.crash(name);
        let at = 100 + self.rng.below(60_000);
        self.later(at, name, Packet::Restart);
    }

    /// For a person who looks for what hangs.
    pub fn unfinished(&self) -> String {
        let mut text = format!("now {:?}", self.now);
        for (id, node) in &self.nodes {
            let book = node.domain.book();
            text += &format!(
                "\n{id}: alive {}, held {}, deadline {:?}",
                node.alive,
                node.domain.held(),
                node.domain.deadline()
            );
            for (name, job) in book.jobs.iter().filter(|(_, j)| j.end.is_none()) {
                let states: Vec<_> = job.parts.iter().map(|(n, p)| format!("{n}:{:?}", p.state)).collect();
                text += &format!("\n  job {name}: {}", states.join(" "));
            }
            for (lease, taken) in &book.taken {
                let states: Vec<_> = taken.parts.iter().map(|(n, p)| format!("{n}:{:?}", p.state)).collect();
                text += &format!("\n  taken {lease}: {}", states.join(" "));
            }
        }
        text
    }

    pub fn restart(&mut self, name: &DomainId) {
        let node = self.nodes.get_mut(name).expect("a domain of this world");
        node.config.epoch += 1;
        node.domain = Domain::new(node.config.clone());
        for event in &node.journal {
            node.domain.replay(event);
        }
        check_shorter(&node.journal, node.domain.book());
        node.folded = node.domain.book().clone();
        node.alive = true;
        let slots = node.slots;
        self.input(name, Input::Restarted);
        self.input(name, Input::Capacity { slots, free: slots });
        let Some(node) = self.nodes.get(name) else { return };
        // The hosts tell what they have.
        let told: Vec<_> = node.tasks.iter().map(|(k, t)| (k.clone(), t.ended.clone())).collect();
        for (key, ended) in told {
            self.input(name, task_input(&key, ended.unwrap_or_else(|| status("running", Vec::new()))));
        }
        self.advertise();
        self.prepare(name, 1_000);
    }

    pub fn input(&mut self, to: &DomainId, input: Input) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(to).filter(|n| n.alive) else { return };
        let outputs = node.domain.handle(now, input);
        self.carry_out(to, outputs);
    }

    fn carry_out(&mut self, who: &DomainId, outputs: Vec<Output>) {
        let dies_at = self.rng.chance(self.faults.crash).then(|| self.rng.below(outputs.len() as u64 + 1) as usize);
        for (i, output) in outputs.into_iter().enumerate() {
            if dies_at == Some(i) {
                self.crash(who);
                let at = 100 + self.rng.below(20_000);
                self.later(at, who, Packet::Restart);
                return;
            }
            self.said.push((self.now, who.clone(), output.clone()));
            self.obey(who, output);
        }
        self.check(who);
    }

    fn obey(&mut self, who: &DomainId, output: Output) {
        match output {
            Output::Event(event) => {
                self.observe(who, &event);
                let node = self.node(&who.0);
                node.folded.apply(&through_bytes(&event));
                node.journal.push(event);
            }
            Output::Send { to, mut envelope, timeout_ms } => {
                self.check_sent(who, &to, &envelope);
                if let Body::Award(award) = &mut envelope.body {
                    for part in award.parts.iter_mut().filter(|p| p.url.is_empty()) {
                        part.url = format!("https://store/{}/{}/{}", envelope.job, part.part, part.attempt);
                    }
                }
                self.sent.push((who.clone(), to.clone(), verb(&envelope.body)));
                let (id, from) = (envelope.id.clone(), to.clone());
                let unavailable = self.nodes.get(&to).is_some_and(|n| n.habit == Habit::Unavailable);
                let (wait, lost) = if unavailable { (1, Lost::Unreachable) } else { (timeout_ms, Lost::Timeout) };
                self.later(wait, who, Packet::Input(Box::new(Input::Answer { id, from, result: Err(lost) })));
                if !unavailable && (self.filter)(who, &to, &envelope.body, false) {
                    self.transmit(who, &to, Input::Request(who.clone(), envelope));
                }
            }
            Output::Reply { to, re, mut envelope } => {
                if self.node(&who.0).habit == Habit::Fickle && matches!(envelope.body, Body::Accept(_)) {
                    envelope.body = Body::Decline(Decline { reason: "changed its mind".into() });
                }
                let passes = (self.filter)(who, &to, &envelope.body, true);
                let answer = Input::Answer { id: re, from: who.clone(), result: Ok(envelope) };
                if passes {
                    self.transmit(who, &to, answer);
                }
            }
            Output::Run { lease, part, attempt, url, job, home } => {
                assert!(home == *who || !url.is_empty(), "a foreign part has the address of its order");
                self.run_task(who, (lease, part, attempt), job);
            }
            Output::Stop { lease, part, attempt } => {
                self.node(&who.0).tasks.remove(&(lease, part, attempt));
            }
            Output::Check { job, part, attempt, outputs } => {
                let bad = outputs.iter().any(|o| o.sha256 == "wrong");
                let result = if bad { Err("hash differs".to_owned()) } else { Ok(()) };
                self.later(5, who, Packet::Input(Box::new(Input::Checked { job, part, attempt, result })));
            }
            Output::AllParts { job } if self.publish => {
                self.later(50, who, Packet::Input(Box::new(Input::Finish { job })))
            }
            _ => {}
        }
    }

    fn run_task(&mut self, who: &DomainId, key: Key, job: JobId) {
        let (from, to) = self.task_ms;
        let wait = from + self.rng.below(to - from);
        let fails = self.rng.chance(self.faults.task_failure);
        let node = self.nodes.get_mut(who).expect("known");
        if node.tasks.contains_key(&key) {
            return; // known already
        }
        node.tasks.insert(key.clone(), Task { ended: None });
        node.ran.push((job, key.1, key.2));
        let outcome = match node.habit {
            Habit::Idle => return,
            Habit::BlackHole => failed("internal", "black-hole"),
            Habit::Accuser => bad_source(),
            _ if fails => failed("internal", "encoder-failed"),
            Habit::WrongHash => status("done", vec![output(&key, "wrong")]),
            Habit::Honest | Habit::Unavailable | Habit::Fickle => done(&key, wait),
        };
        node.outcome.insert(key.clone(), outcome);
        let half = Status { bytes: 500, percent: 50.0, ..status("running", Vec::new()) };
        self.later(wait / 2, who, Packet::Input(Box::new(task_input(&key, half))));
        // Of a long one there is news every minute.
        for at in (60_000..wait).step_by(60_000) {
            let (bytes, percent) = (1_000 * at / wait, 100.0 * at as f32 / wait as f32);
            let report = Status { bytes, percent, ..status("running", Vec::new()) };
            self.later(at, who, Packet::Input(Box::new(task_input(&key, report))));
        }
        self.later(wait, who, Packet::TaskEnds(key));
    }

    fn deliver(&mut self, to: &DomainId, packet: Packet) {
        match packet {
            Packet::Restart if !self.nodes[to].alive => self.restart(to),
            Packet::Restart => {}
            Packet::Input(input) => {
                if self.nodes[to].alive {
                    self.hear(to, &input);
                }
                self.input(to, *input);
            }
            Packet::TaskEnds(key) => {
                let node = self.node(&to.0);
                let Some(outcome) = node.outcome.remove(&key) else { return };
                let Some(task) = node.tasks.get_mut(&key) else { return };
                task.ended = Some(outcome.clone());
                self.input(to, task_input(&key, outcome));
            }
        }
    }

    fn transmit(&mut self, from: &DomainId, to: &DomainId, input: Input) {
        if self.cut.contains(&(from.clone(), to.clone())) || !self.nodes.contains_key(to) {
            return;
        }
        let copies = if self.rng.chance(self.faults.repeat) { 2 } else { 1 };
        for _ in 0..copies {
            if !self.rng.chance(self.faults.loss) {
                let wait = 1 + self.rng.below(self.faults.delay_ms);
                self.later(wait, to, Packet::Input(Box::new(input.clone())));
            }
        }
    }

    fn later(&mut self, ms: u64, to: &DomainId, packet: Packet) {
        self.count += 1;
        self.queue.insert((self.now.plus(ms), self.count), (to.clone(), packet));
    }
}

impl Node {
    fn new(name: &str, agreements: Agreements, timers: Timers) -> Self {
        let me = d(name);
        let config = DomainConfig { me, epoch: 1, seed: [name.as_bytes()[0]; 32], agreements, timers };
        Self {
            domain: Domain::new(config.clone()),
            config,
            journal: Vec::new(),
            folded: Book::default(),
            alive: true,
            slots: 2,
            habit: Habit::Honest,
            tasks: BTreeMap::new(),
            outcome: BTreeMap::new(),
            ran: Vec::new(),
        }
    }

    fn ad(&self, id: &DomainId, now: Millis) -> Ad {
        Ad {
            domain: id.clone(),
            epoch: self.config.epoch,
            seq: now.0,
            health: "ok".into(),
            slots: self.slots,
            slots_free: self.slots,
            price: 1.0,
            region: None,
            kinds: "transcode load".into(),
            version: "0".into(),
        }
    }
}

pub fn through_bytes(event: &Event) -> Event {
    let bytes = serde_json::to_vec(event).expect("an event can be written");
    serde_json::from_slice(&bytes).expect("and read")
}

/// A journal says the same without what its book does not need; also once all jobs that are over are forgotten.
fn check_shorter(journal: &[Event], book: &Book) {
    let mut book = book.clone();
    let over = book.jobs.keys().filter(|job| book.is_over(job)).cloned();
    let forgotten: Vec<_> = over.map(|job| Event::Forgotten { at: Millis(0), job }).collect();
    let journal = || journal.iter().chain(&forgotten);
    forgotten.iter().for_each(|event| book.apply(event));
    let mut again = Book::default();
    journal().filter(|event| book.needs(event)).chain(&book.standings()).for_each(|event| again.apply(event));
    assert_eq!(again, book);
}

pub fn status(state: &str, outputs: Vec<message::Output>) -> Status {
    let usage = (state == "done").then(Usage::default);
    Status { task: String::new(), state: state.into(), bytes: 0, percent: 0.0, outputs, usage, failure: None }
}

pub fn done(key: &Key, took_ms: u64) -> Status {
    let usage = Some(message::Usage { process_ms: took_ms, ..Default::default() });
    Status { usage, ..status("done", vec![output(key, "right")]) }
}

pub fn failed(class: &str, code: &str) -> Status {
    let failure = Failure { class: class.into(), retryable: true, code: code.into(), log: "the tail".into() };
    Status { failure: Some(failure), ..status("failed", Vec::new()) }
}

pub fn bad_source() -> Status {
    let mut status = failed("input", "source-changed");
    if let Some(failure) = &mut status.failure {
        failure.retryable = false;
    }
    status
}

pub fn output(key: &(LeaseId, u32, u32), sha256: &str) -> message::Output {
    message::Output { key: format!("{}-{}-{}", key.0, key.1, key.2), size: 1, sha256: sha256.into(), fragments: None }
}

pub fn task_input(key: &Key, status: Status) -> Input {
    Input::Task { lease: key.0.clone(), part: key.1, attempt: key.2, status }
}

pub fn verb(body: &Body) -> &'static str {
    match body {
        Body::Cfp(_) => "cfp",
        Body::Award(_) => "award",
        Body::Commit(_) => "commit",
        Body::RejectBid(_) => "reject-bid",
        Body::Renew(_) => "renew",
        Body::Resync(_) => "resync",
        Body::Progress(_) => "progress",
        Body::PartDone(_) => "part-done",
        Body::PartFailed(_) => "part-failed",
        Body::Cancel(_) => "cancel",
        Body::Revoke(_) => "revoke",
        Body::Release(_) => "release",
        _ => "answer",
    }
}
