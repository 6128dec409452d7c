//! The driver of one domain: rooms, host managers, journal and store on one side, the pure [`Domain`] on the other.
//!
//! One task owns everything. Whatever arrives becomes an [`Input`]; the outputs' events are journaled first, then the
//! rest is carried out. What takes time (an IQ, the store) runs in a task of its own and comes back as [`Done`], so the loop
//! itself never waits. It decides nothing about parts: that is `federation::domain`.

mod commands;
mod jobs;
mod orders;
mod replay;
mod rooms;
mod share;
mod tasks;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use federation::agreement::Agreements;
use federation::domain::{Domain, DomainConfig, Input, Lost, Output};
use federation::event::Event;
use federation::id::{DomainId, JobId, LeaseId, MessageId, Millis};
use federation::message::{Body, Envelope};
use federation::xmpp::{Agent, AgentEvent, FullJid, IqFailure, Responder};
use serde::{Deserialize, Serialize};
use storage::overlay::share::Choice;
use storage::s3::Store;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::{Instrument, error, info, info_span, trace, warn};
use xmpp_parsers::minidom::Element;

use crate::archive::Archive;
use crate::config::Config;
use crate::film::{CheckError, FilmFailure, Prepared, Verified};
use crate::hosts::{Hosts, TaskId};
use crate::journal::{Journal, JournalError, Settled};
use crate::record::{JobEvent, Piece, Record};
use crate::rest::{Located, Snapshot};
use crate::vault::Vault;

/// Results of work outside the loop; as many as tasks may end at once on a busy home.
const DONE_QUEUE: usize = 1024;
/// Between looks at hosts and ads.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// An ad is repeated this often even when nothing changed.
const AD_REFRESH_MS: u64 = 30_000;
/// Readers see what has changed after this; until then nobody's message waits for their documents.
const SHOW_AFTER: Duration = Duration::from_millis(50);
/// From a task that a host could take to the message that gives it: one for all that come meanwhile, and after the
/// negotiation that they come from. A guest takes ten times as long to start.
const HAND_OUT_AFTER: Duration = Duration::from_millis(20);

/// Target of what is traced when a partner has acknowledged its commitment: a job's times are whole milliseconds.
pub const CONFIRMED: &str = "starling::confirmed";

/// Orders wait so long at most until no answer to a message of ours is awaited.
const ORDERS_AFTER: Duration = Duration::from_millis(100);

/// Waits until no answer to a message of ours is awaited, so long at most.
async fn quiet(mut asked: watch::Receiver<usize>, most: Duration) {
    let _ = tokio::time::timeout(most, asked.wait_for(|asked| *asked == 0)).await;
}

/// A question from the REST side.
pub enum Ask {
    Locate { job: String, path: String, reply: oneshot::Sender<Located> },
}

/// What the journal holds.
#[derive(Debug, Serialize, Deserialize)]
enum Entry {
    Domain(Event),
    Job(JobEvent),
}

/// What work outside the loop brings back.
enum Done {
    Answer {
        id: MessageId,
        from: DomainId,
        result: Result<Box<Envelope>, Lost>,
    },
    Handed {
        jid: FullJid,
        taken: usize,
    },
    Ordered {
        task: TaskId,
        url: Result<String, String>,
    },
    /// How the bytes of a lease's parts reach the guests.
    Shared {
        lease: LeaseId,
        job: JobId,
        choice: Choice,
        swarm: Option<share::Swarm>,
    },
    Prepared {
        job: JobId,
        result: Result<Box<Prepared>, FilmFailure>,
    },
    Claimed {
        job: JobId,
        result: Result<(), FilmFailure>,
    },
    Loaded {
        job: JobId,
        part: u32,
        piece: Piece,
    },
    Checked {
        job: JobId,
        part: u32,
        attempt: u32,
        outputs: Vec<federation::message::Output>,
        result: Result<Verified, CheckError>,
    },
    Published {
        job: JobId,
        complete: bool,
        result: Result<(), FilmFailure>,
    },
    Told {
        job: JobId,
    },
    Released {
        job: JobId,
    },
    Settled(Result<Settled, JournalError>),
}

/// A domain that is in the Federation room now.
struct Peer {
    jid: FullJid,
}

pub struct Coordinator {
    config: Config,
    me: DomainId,
    epoch: u64,
    base_url: String,
    domain: Domain,
    journal: Journal,
    /// The journal waits for the disk.
    settling: bool,
    archive: Archive,
    vault: Vault,
    store: Option<Store>,
    /// Stores of jobs that bring their own credentials.
    stores: BTreeMap<JobId, Store>,
    agent: Agent,
    events: mpsc::Receiver<AgentEvent>,
    asks: mpsc::Receiver<Ask>,
    done: (mpsc::Sender<Done>, mpsc::Receiver<Done>),
    snapshot: watch::Sender<Arc<Snapshot>>,
    rooms: rooms::Rooms,
    peers: BTreeMap<DomainId, Peer>,
    /// Messages of ours whose answers have still to come, or to be acted upon.
    asked: watch::Sender<usize>,
    /// Requests of peers that the domain has still to answer.
    open: BTreeMap<(DomainId, MessageId), Responder>,
    hosts: Hosts,
    shares: BTreeMap<LeaseId, share::Share>,
    /// Requests that the store put off, as tasks told when they ended.
    throttled: Vec<(Millis, u64)>,
    records: BTreeMap<JobId, Record>,
    /// Jobs with a publication under way: whether another is wanted after it.
    publishing: BTreeMap<JobId, bool>,
    /// Ended jobs whose targets are being tidied.
    releasing: BTreeSet<JobId>,
    /// What is known of a verified part between the check and the domain's word that it counts.
    checked: BTreeMap<(JobId, u32, u32), Verified>,
    /// When the last ad went out, its number, and the capacity in it.
    ad: Option<(Millis, u64, (u32, u32))>,
    /// Since when the capacity is another than in the last ad.
    changed_at: Option<Millis>,
    /// The capacity that the domain object knows of.
    told: Option<(u32, u32)>,
    owners: jobs::Owners,
    /// Where the orders of first attempts will be, signed before they are needed.
    addresses: BTreeMap<JobId, Arc<orders::Addresses>>,
}

pub fn now() -> Millis {
    Millis(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64))
}

impl Coordinator {
    /// Opens journal, store and connection, and takes up again what was going on.
    pub async fn start(
        config: Config,
        base_url: String,
        asks: mpsc::Receiver<Ask>,
        snapshot: watch::Sender<Arc<Snapshot>>,
    ) -> Result<Self> {
        std::fs::create_dir_all(&config.state_dir).context("make the state directory")?;
        let mut journal = Journal::open(&config.state_dir.join("journal"))?;
        // Of an earlier life; its guests have turned to the store.
        let shares = Self::shares_dir(&config.state_dir);
        if shares.exists() {
            std::fs::remove_dir_all(&shares).context("clear the directory of shares")?;
        }
        let vault = Vault::open(&config.state_dir.join("vault.key"))?;
        let epoch = journal.next_epoch(now())?;
        let agreements = match &config.agreements.path {
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
                Agreements::parse(&text).with_context(|| format!("understand {}", path.display()))?
            }
            // Hosts load what comes next while they encode; so the sound of all parts is there early, and encoding it is no
            // tail of the job.
            None => Agreements::default(),
        };
        let store = match &config.s3 {
            Some(s3) => Some(Store::connect(s3).await.context("set up the object store")?),
            None => None,
        };
        let me = DomainId(config.domain.clone());
        let seed = journal.seed()?;
        let mut domain =
            Domain::new(DomainConfig { me: me.clone(), epoch, seed, agreements, timers: config.timers.clone() });
        let records = replay::take_up(&mut journal, &mut domain)?;
        let rooms = rooms::Rooms::new(&config)?;
        let (agent, events) = Agent::start(&config.xmpp)?;
        Ok(Self {
            me,
            epoch,
            domain,
            archive: journal.archive(&base_url),
            base_url,
            journal,
            settling: false,
            vault,
            store,
            stores: BTreeMap::new(),
            agent,
            events,
            asks,
            done: mpsc::channel(DONE_QUEUE),
            snapshot,
            rooms,
            peers: BTreeMap::new(),
            asked: watch::Sender::new(0),
            open: BTreeMap::new(),
            hosts: Hosts::default(),
            shares: BTreeMap::new(),
            throttled: Vec::new(),
            records,
            publishing: BTreeMap::new(),
            releasing: BTreeSet::new(),
            checked: BTreeMap::new(),
            ad: None,
            changed_at: None,
            told: None,
            owners: BTreeMap::new(),
            addresses: BTreeMap::new(),
            config,
        })
    }

    /// Runs until `stop` resolves, then leaves the rooms.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Result<()> {
        tokio::pin!(stop);
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        let (mut show_at, mut hand_out_at) = (None::<Instant>, None::<Instant>);
        self.enter().await;
        if !self.journal.is_empty() {
            self.step(Input::Restarted)?;
            self.resume_jobs().await?;
        }
        loop {
            let due = [self.domain.deadline(), self.ad_due()].into_iter().flatten().min();
            let due = due.map(|at| Duration::from_millis(at.since(now())));
            tokio::select! {
                () = &mut stop => break,
                event = self.events.recv() => match event {
                    Some(event) => self.on_agent(event).await?,
                    None => anyhow::bail!("the XMPP connection's task ended"),
                },
                Some(done) = self.done.1.recv() => self.on_done(done)?,
                Some(ask) = self.asks.recv() => self.on_ask(ask),
                () = tokio::time::sleep(due.unwrap_or(Duration::MAX)), if due.is_some() => self.step(Input::Tick)?,
                () = tokio::time::sleep_until(hand_out_at.unwrap_or_else(Instant::now)), if hand_out_at.is_some() => {
                    hand_out_at = None;
                    self.hand_out();
                }
                _ = housekeeping.tick() => self.keep_house().await?,
                () = tokio::time::sleep_until(show_at.unwrap_or_else(Instant::now)), if show_at.is_some() => {
                    show_at = None;
                    self.show();
                    continue;
                }
            }
            if self.hosts.can_assign() {
                hand_out_at.get_or_insert_with(|| Instant::now() + HAND_OUT_AFTER);
            }
            self.advertise().await?;
            show_at.get_or_insert_with(|| Instant::now() + SHOW_AFTER);
        }
        info!("leaving");
        self.journal.settle()?;
        self.agent.close().await;
        Ok(())
    }

    /// One input through the pure domain: journal, then carry out.
    fn step(&mut self, input: Input) -> Result<()> {
        let outputs = self.domain.handle(now(), input);
        let mut entries = Vec::new();
        let mut orders = Vec::new();
        for output in outputs {
            match output {
                Output::Event(event) => {
                    if let Event::Confirmed { lease, .. } = &event {
                        trace!(target: CONFIRMED, %lease, "a commitment is acknowledged");
                    }
                    entries.push(Entry::Domain(event));
                }
                other => {
                    entries.extend(self.note(&other).map(Entry::Job));
                    orders.push(other);
                }
            }
        }
        self.journal.append(&entries)?;
        for entry in entries {
            if let Entry::Job(event) = entry
                && let Some(record) = self.records.get_mut(event.id())
            {
                record.apply(event);
            }
        }
        for order in orders {
            self.carry_out(order)?;
        }
        Ok(())
    }

    /// Journals and applies what happened to a job outside its negotiation.
    fn journal_job(&mut self, event: JobEvent) -> Result<()> {
        let entry = Entry::Job(event);
        self.journal.append(std::slice::from_ref(&entry))?;
        if let Entry::Job(event) = entry
            && let Some(record) = self.records.get_mut(event.id())
        {
            record.apply(event);
        }
        Ok(())
    }

    fn carry_out(&mut self, output: Output) -> Result<()> {
        match output {
            Output::Event(_) => {}
            Output::Send { to, envelope, timeout_ms } => self.send(to, envelope, Duration::from_millis(timeout_ms)),
            Output::Reply { to, re, envelope } => {
                if let Some(responder) = self.open.remove(&(to, re)) {
                    responder.result(Some(envelope.into()));
                }
            }
            Output::Run { home, job, lease, part, attempt, url } => {
                let task = TaskId { lease, part, attempt };
                match url.is_empty() {
                    false => self.hand(task, url),
                    true => self.order_for_myself(&home, &job, task),
                }
            }
            Output::Stop { lease, part, attempt } => self.stop_task(TaskId { lease, part, attempt }),
            Output::Check { job, part, attempt, outputs } => self.check(job, part, attempt, outputs, Duration::ZERO),
            Output::Loaded { job, part, attempt, outputs } => self.check_sound(job, part, attempt, outputs),
            Output::PartVerified { job, .. } => {
                self.call_for_sound(&job)?;
                self.publish(&job);
            }
            Output::AllParts { job } => self.publish(&job),
            Output::JobFailed { job, code, message } => self.fail(&job, FilmFailure::at_work(&code, &message))?,
            Output::JobDone { .. } | Output::JobCancelled { .. } => {} // said by us
        }
        Ok(())
    }

    fn send(&self, to: DomainId, mut envelope: Envelope, timeout: Duration) {
        let done = self.done.0.clone();
        let id = envelope.id.clone();
        // Nobody waits for more.
        self.asked.send_if_modified(|asked| {
            *asked += 1;
            false
        });
        let Some(peer) = self.peers.get(&to).map(|p| p.jid.clone()) else {
            self.spawn("unreachable", async move {
                let _ = done.send(Done::Answer { id, from: to, result: Err(Lost::Unreachable) }).await;
            });
            return;
        };
        let (agent, asked) = (self.agent.clone(), self.asked.subscribe());
        let writer = self.order_writer(&envelope);
        let committed = match &envelope.body {
            Body::Commit(commit) => self.domain.book().leases.get(&commit.lease).map(|lease| lease.parts.clone()),
            _ => None,
        };
        self.spawn("send", async move {
            if let Body::Award(award) = &mut envelope.body
                && let Err(error) = orders::address_orders(award, writer.as_ref()).await
            {
                warn!(%error, "the orders have no address; the award is not sent");
                let _ = done.send(Done::Answer { id, from: to, result: Err(Lost::Unreachable) }).await;
                return;
            }
            let result = match agent.iq_set(peer.into(), Element::from(envelope), timeout).await {
                Ok(Some(payload)) => Envelope::try_from(payload).map(Box::new).map_err(|_| Lost::NotUnderstood),
                Ok(None) => Err(Lost::NotUnderstood),
                Err(IqFailure::Timeout) => Err(Lost::Timeout),
                Err(IqFailure::Reset | IqFailure::Closed) => Err(Lost::Reset),
                Err(IqFailure::Remote(_) | IqFailure::TooLarge { .. }) => Err(Lost::Unreachable),
            };
            let _ = done.send(Done::Answer { id, from: to, result }).await;
            // After the answer, whatever it is: no message waits for the store, and a guest waits for its order. Other domains' answers go first,
            // too: signing and writing take longer than a negotiation, and who was committed first has nothing to gain.
            if let (Some(writer), Some(parts)) = (writer, committed) {
                quiet(asked, ORDERS_AFTER).await;
                writer.write_all(&parts).await;
            }
        });
    }

    fn on_done(&mut self, done: Done) -> Result<()> {
        match done {
            Done::Answer { id, from, result } => {
                self.step(Input::Answer { id, from, result: result.map(|envelope| *envelope) })?;
                self.asked.send_if_modified(|asked| {
                    *asked -= 1;
                    *asked == 0
                });
                Ok(())
            }
            Done::Handed { jid, taken } => {
                self.hosts.answered(&jid, taken);
                Ok(())
            }
            Done::Ordered { task, url: Ok(url) } => {
                self.hand(task, url);
                Ok(())
            }
            Done::Shared { lease, job, choice, swarm } => {
                self.shared(lease, job, choice, swarm);
                Ok(())
            }
            Done::Ordered { task, url: Err(reason) } => self.task_lost(task, "order-not-written", &reason),
            Done::Prepared { job, result } => self.prepared(job, result),
            Done::Claimed { job, result } => self.claimed(job, result),
            Done::Loaded { job, part, piece } => self.loaded(job, part, piece),
            Done::Checked { job, part, attempt, outputs, result } => {
                self.part_checked(job, part, attempt, outputs, result)
            }
            Done::Published { job, complete, result } => self.published(job, complete, result),
            Done::Told { job } => self.journal_job(JobEvent::Told { id: job }),
            Done::Released { job } => {
                self.releasing.remove(&job);
                self.journal_job(JobEvent::Released { id: job })
            }
            Done::Settled(result) => {
                self.settling = false;
                Ok(self.journal.settled(result?)?)
            }
        }
    }

    async fn keep_house(&mut self) -> Result<()> {
        self.release_ended();
        self.archive_ended()?;
        self.settle();
        self.drop_shares();
        self.answer_broken_off().await?;
        for task in self.hosts.silent(now()) {
            self.task_lost(task, "host-silent", "its host manager fell silent")?;
        }
        Ok(())
    }

    /// Has the journal wait for the disk while the loop goes on: that takes as long as several messages.
    fn settle(&mut self) {
        if !self.settling
            && let Some(settling) = self.journal.settling()
        {
            self.settling = true;
            let done = self.done.0.clone();
            self.spawn("settle", async move {
                // Fails only when we are leaving, which waits for the disk itself.
                if let Ok(result) = tokio::task::spawn_blocking(|| settling.wait()).await {
                    let _ = done.send(Done::Settled(result)).await;
                }
            });
        }
    }

    fn spawn(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(work.instrument(info_span!("work", name, domain = %self.me)));
    }

    /// On a thread of its own: what computes more than it waits, messages would wait for. It ends with the coordinator.
    fn spawn_apart(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let (runtime, done) = (tokio::runtime::Handle::current(), self.done.0.clone());
        let work = async move {
            tokio::select! {
                () = done.closed() => {}
                () = work => {}
            }
        };
        let work = work.instrument(info_span!("work", name, domain = %self.me));
        tokio::task::spawn_blocking(move || runtime.block_on(work));
    }

    /// Replaces what readers see. Clients are answered from it, too: whoever is told of a job may ask for it over HTTP at once, and
    /// must find there no less.
    fn show(&self) -> Arc<Snapshot> {
        let jobs = self.live_documents();
        let domains = self.domain_documents();
        let ready = self.rooms.all_joined();
        let (loads, ended) = (self.load_documents(), Some(self.archive.clone()));
        let shown = Arc::new(Snapshot { ready, jobs, domains, loads, ended });
        self.snapshot.send_replace(shown.clone());
        shown
    }

    /// Logs what a person must look at.
    fn report(&self, what: &str, error: &(dyn std::error::Error + 'static)) {
        error!(error, "{what}");
    }
}

#[cfg(test)]
mod tests;
