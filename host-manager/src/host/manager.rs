//! The loop of a host manager: hears the room, the manager's orders and the guests; asks the [`Board`]; carries out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use federation::cluster::{Failure, Manager as ManagerMark, NS, Run, Status, Stop, Taken, Task};
use federation::id::Millis;
use federation::message::{Output, Usage};
use federation::xmpp::{Agent, AgentEvent, Condition, Element, FullJid, IqFailure, Jid, Responder};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use super::board::{Action, Board, Fate, NotManager, Offer};
use super::client::GuestClient;
use super::config::{Config, Rooms};
use super::pool::{GuestEvent, Pool};
use crate::guest::task::{Order, TaskState};
use crate::vm::Vm;
use crate::vm::process::ProcessDriver;

/// A manager that is alive answers a status in ms; the repeat comes from the board.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);
/// Reports of guests and fates of statuses not yet looked at; who brings more waits.
const QUEUE: usize = 64;
/// Bytes of a task's name.
const TASK_BYTES_MAX: usize = 256;

/// A running host manager.
pub struct HostManager {
    rooms: Rooms,
    board: Board,
    agent: Agent,
    agent_events: mpsc::Receiver<AgentEvent>,
    pool: Pool,
    guest_events: mpsc::Receiver<GuestEvent>,
    guests: BTreeMap<usize, Vm>,
    client: GuestClient,
    reports: mpsc::Receiver<Report>,
    reporter: mpsc::Sender<Report>,
    followers: BTreeMap<String, (usize, JoinHandle<()>)>,
}

/// What the tasks of the driver bring back to its loop.
enum Report {
    State { guest: usize, state: TaskState },
    Answered { task: String, token: u64, fate: Fate },
}

impl HostManager {
    /// Starts the guests and the XMPP session; neither needs to be up yet when this returns.
    pub async fn start(config: Config) -> Result<Self> {
        std::fs::create_dir_all(&config.state_dir).context("make the state directory")?;
        let offer = Offer {
            name: config.name.clone(),
            epoch: next_epoch(&config).context("count this start")?,
            slots: config.slots,
            backlog: config.backlog,
            guests: config.guests as usize,
        };
        info!(name = offer.name, epoch = offer.epoch, slots = offer.slots, "host manager starts");
        let driver = ProcessDriver::open(&config.state_dir.join("vms"), config.guest_command()?);
        let driver = Arc::new(driver.context("open the directory of the machines")?);
        let (guest_sender, guest_events) = mpsc::channel(QUEUE);
        let pool = Pool::start(driver, config.guests, config.slots, guest_sender)?;
        let (agent, agent_events) = Agent::start(&config.xmpp).context("start the XMPP session")?;
        agent.join(&config.rooms.cluster, &config.name, None).await.context("join the Cluster room")?;
        let (reporter, reports) = mpsc::channel(QUEUE);
        Ok(Self {
            rooms: config.rooms,
            board: Board::new(offer),
            agent,
            agent_events,
            pool,
            guest_events,
            guests: BTreeMap::new(),
            client: GuestClient::new().context("make an HTTP client")?,
            reports,
            reporter,
            followers: BTreeMap::new(),
        })
    }

    /// Runs until `stop`, then ends the guests and the session.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Result<()> {
        tokio::pin!(stop);
        let mut ended = Ok(());
        loop {
            for action in self.board.poll(now()) {
                self.carry_out(action).await;
            }
            let deadline = self.board.deadline();
            tokio::select! {
                () = &mut stop => break,
                event = self.agent_events.recv() => match event {
                    Some(AgentEvent::Ended) | None => {
                        ended = Err(anyhow::anyhow!("the XMPP session ended by itself"));
                        break;
                    }
                    Some(event) => self.on_agent(event),
                },
                Some(event) = self.guest_events.recv() => self.on_guest(event),
                Some(report) = self.reports.recv() => self.on_report(report),
                () = sleep_until(deadline) => (),
            }
        }
        info!("host manager ends");
        for (_, follower) in self.followers.into_values() {
            follower.abort();
        }
        // While the guests end, the room is told that we leave.
        tokio::join!(self.pool.close(), self.agent.close());
        ended
    }

    fn on_agent(&mut self, event: AgentEvent) {
        match event {
            AgentEvent::Occupant { room, nick, real, role, affiliation, available, payloads, own } => {
                if room != self.rooms.cluster || nick != self.rooms.manager_nick || own {
                    return;
                }
                self.on_manager(real, &role, &affiliation, available, &payloads);
            }
            AgentEvent::Request { from, set, payload, reply } => self.on_request(&from, set, payload, reply),
            AgentEvent::RoomJoined { room, .. } => info!(%room, "joined"),
            AgentEvent::RoomLost { room, why } => {
                warn!(%room, why, "not in the room");
                self.board.manager_gone(None);
            }
            AgentEvent::Online { jid, fresh } => info!(%jid, fresh, "online"),
            AgentEvent::Offline => warn!("offline"),
            AgentEvent::AuthFailed(why) => tracing::error!(why, "the server refuses the account"),
            AgentEvent::ConnectFailed { error, retry_in } => warn!(error, ?retry_in, "cannot connect"),
            AgentEvent::DirectedPresence { .. } | AgentEvent::Message { .. } | AgentEvent::Ended => (),
        }
    }

    /// Somebody holds, or gave up, the manager's nickname. Anybody may take a free nickname; only who has the rights of a
    /// manager in the room is one.
    fn on_manager(
        &mut self,
        real: Option<FullJid>,
        role: &str,
        affiliation: &str,
        available: bool,
        payloads: &[Element],
    ) {
        if !available {
            info!("the active cluster manager left");
            return self.board.manager_gone(real.as_ref());
        }
        let Some(real) = real else {
            return warn!("the room hides who holds the manager's nickname; nothing is obeyed");
        };
        if role != "moderator" && !matches!(affiliation, "owner" | "admin") {
            return warn!(%real, role, affiliation, "a stranger holds the manager's nickname; nothing is obeyed");
        }
        let mark = payloads.iter().find(|p| p.is("manager", NS)).and_then(|p| ManagerMark::try_from(p.clone()).ok());
        let epoch = mark.map_or(0, |mark| mark.epoch);
        if self.board.manager() != Some(&real) {
            info!(%real, epoch, "active cluster manager");
        }
        self.board.manager_seen(real, epoch);
    }

    fn on_request(&mut self, from: &Jid, set: bool, payload: Element, reply: Responder) {
        let ours = payload.ns() == NS && set;
        let Some(from) = from.try_as_full().ok().filter(|_| ours) else {
            return reply.error(Condition::ServiceUnavailable, "not understood here");
        };
        let answer = match payload.name() {
            "run" => match Run::try_from(payload) {
                Ok(Run { tasks }) if tasks.iter().all(|task| (1..=TASK_BYTES_MAX).contains(&task.id.len())) => {
                    self.take(from, tasks).map(|tasks| Some(Taken { tasks }.into()))
                }
                _ => {
                    return reply
                        .error(Condition::BadRequest, "run: tasks, each with an id of 1 to 256 bytes and a url");
                }
            },
            "stop" => match Stop::try_from(payload) {
                Ok(stop) => {
                    debug!(task = stop.task, "stop");
                    self.board.stop(from, &stop.task).map(|action| {
                        action.into_iter().for_each(|action| self.forget(action));
                        None
                    })
                }
                Err(_) => return reply.error(Condition::BadRequest, "stop: a task"),
            },
            _ => return reply.error(Condition::FeatureNotImplemented, "not understood here"),
        };
        match answer {
            Ok(payload) => reply.result(payload),
            Err(NotManager) => {
                warn!(%from, "an order from somebody who is not the active manager");
                reply.error(Condition::Forbidden, &NotManager.to_string());
            }
        }
    }

    /// How many it takes, from the first on.
    fn take(&mut self, from: &FullJid, tasks: Vec<Task>) -> Result<usize, NotManager> {
        let mut taken = 0;
        for Task { id, url, swarm } in tasks {
            if !self.board.run(from, &id, Order { url, swarm })? {
                break;
            }
            debug!(task = id, "run");
            taken += 1;
        }
        Ok(taken)
    }

    fn on_guest(&mut self, event: GuestEvent) {
        match event {
            GuestEvent::Up(guest, vm) => {
                self.guests.insert(guest, vm);
                self.board.guest_up(guest);
            }
            GuestEvent::Down(guest) => {
                self.guests.remove(&guest);
                self.followers.retain(|_, (at, follower)| {
                    if *at == guest {
                        follower.abort();
                    }
                    *at != guest
                });
                self.board.guest_down(now(), guest);
            }
        }
    }

    fn on_report(&mut self, report: Report) {
        match report {
            Report::State { guest, state } => {
                let ended = state.state.is_final();
                self.board.guest_says(now(), guest, status(state), ended);
            }
            Report::Answered { task, token, fate } => self.board.answered(&task, token, fate),
        }
    }

    async fn carry_out(&mut self, action: Action) {
        match action {
            Action::Start { guest, task, order } => self.follow(guest, task, order),
            Action::Forget { .. } => self.forget(action),
            Action::Tell { to, token, status } => self.tell(to, token, *status),
            Action::Announce { to, host } => {
                if let Err(error) = self.agent.directed_presence(to, Some(host.into()), true).await {
                    warn!(%error, "not announced");
                }
            }
        }
    }

    fn follow(&mut self, guest: usize, task: String, order: Order) {
        let Some(vm) = self.guests.get(&guest).cloned() else { return };
        let (client, reporter, id) = (self.client.clone(), self.reporter.clone(), task.clone());
        let follower = tokio::spawn(async move {
            let (states, mut seen) = tokio::sync::watch::channel(None);
            let following = async move {
                client.follow(&vm, &id, &order, |state| drop(states.send_replace(Some(state)))).await;
            };
            // A slow loop skips states but never the last one.
            let passing = async {
                while seen.changed().await.is_ok() {
                    let state = seen.borrow_and_update().clone();
                    let Some(state) = state else { continue };
                    let _ = reporter.send(Report::State { guest, state }).await;
                }
            };
            tokio::join!(following, passing);
        });
        self.followers.insert(task, (guest, follower));
    }

    fn forget(&mut self, action: Action) {
        let Action::Forget { guest, task } = action else { return };
        if let Some((_, follower)) = self.followers.remove(&task) {
            follower.abort();
        }
        let Some(vm) = self.guests.get(&guest).cloned() else { return };
        let client = self.client.clone();
        tokio::spawn(async move { client.forget(&vm, &task).await });
    }

    fn tell(&self, to: FullJid, token: u64, status: Status) {
        let (agent, reporter, task) = (self.agent.clone(), self.reporter.clone(), status.task.clone());
        tokio::spawn(async move {
            let fate = match agent.iq_set(to.into(), status.into(), STATUS_TIMEOUT).await {
                Ok(_) => Fate::Settled,
                Err(IqFailure::Remote(error)) if error.defined_condition == Condition::ItemNotFound => Fate::Settled,
                Err(IqFailure::TooLarge { bytes }) => {
                    warn!(task, bytes, "status too large to be sent");
                    Fate::Lost
                }
                Err(error) => {
                    debug!(task, %error, "status not answered");
                    Fate::Lost
                }
            };
            let _ = reporter.send(Report::Answered { task, token, fate }).await;
        });
    }
}

/// The guest's words in those of the cluster.
fn status(state: TaskState) -> Status {
    let usage = state.usage;
    let output = |o: storage::film::part::OutputObject| Output {
        key: o.key,
        size: o.size,
        sha256: o.sha256,
        fragments: o.fragments.and_then(|fragments| serde_json::to_string(&fragments).ok()),
    };
    Status {
        task: state.task,
        state: state.state.as_str().to_owned(),
        bytes: state.bytes,
        percent: state.percent,
        outputs: state.outputs.into_iter().map(output).collect(),
        usage: Some(Usage {
            bytes_in: usage.bytes_in,
            bytes_out: usage.bytes_out,
            throttled: usage.throttled,
            download_ms: usage.download_ms,
            load_ms: usage.load_ms,
            process_ms: usage.process_ms,
            publish_ms: usage.publish_ms,
            cpu_ms: usage.cpu_ms,
            loaded: None,
        }),
        failure: state.failure.map(|f| Failure { class: f.class, retryable: f.retryable, code: f.code, log: f.log }),
    }
}

fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

async fn sleep_until(deadline: Option<Millis>) {
    match deadline {
        Some(deadline) => tokio::time::sleep(Duration::from_millis(deadline.since(now()))).await,
        None => std::future::pending().await,
    }
}

/// The clock, but always more than at the last start, whatever the clock did meanwhile.
fn next_epoch(config: &Config) -> std::io::Result<u64> {
    let file = config.state_dir.join("epoch");
    let last = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0_u64);
    let epoch = now().0.max(last.saturating_add(1));
    let fresh = config.state_dir.join("epoch.new");
    std::fs::write(&fresh, epoch.to_string())?;
    std::fs::rename(fresh, file)?;
    Ok(epoch)
}
