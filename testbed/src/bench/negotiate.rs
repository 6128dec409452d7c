//! From submission to the last commitment with more and more foreign domains: real coordinators with their journals in this
//! process, each domain on a thread of its own, one Prosody for all, a real film in a real store.
//!
//! Their host managers take every task and do nothing with it, so that no encoder stands in the way of what is measured. What is
//! measured ends when the last domain has acknowledged its commitment. The yardstick is what the same server needs, in the same run,
//! for the bare IQs of that: one to home, as the submission is, and then three rounds to as many agents: call and bid, award
//! and acceptance, commitment and its acknowledgement. Beside it stands what the store needs for a bare request for the index,
//! without which there are no parts to award.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use cluster_manager::cli::access::Access;
use cluster_manager::cli::link::{Answer, Link};
use cluster_manager::config::Config;
use cluster_manager::coordinator::{CONFIRMED, Coordinator};
use cluster_manager::rest::Snapshot;
use cluster_manager::shell::Command;
use cluster_manager::timeline::Phase;
use federation::cluster::{Host, Run, Taken};
use federation::xmpp::{Agent, AgentEvent, BareJid, Element, FullJid, XmppConfig};
use serde::Serialize;
use storage::object::ObjectPath;
use storage::range::ByteRange;
use storage::s3::{PutOptions, Store};
use tokio::sync::{mpsc, oneshot, watch};
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::layer::{self, Layer, SubscriberExt};

use super::rig::Shelf;
use super::{Figure, load_average, median, ms};
use crate::ca::Ca;
use crate::demo::job_xml;
use crate::film::{self, Film};
use crate::process::{Process, Recipe};
use crate::prosody::{Ports, ProsodyConfig};

const HOME: &str = "home.test";
const PASSWORD: &str = "benchmark-only";
/// Tasks that a foreign domain runs at the same time.
const SLOTS: u32 = 16;
/// More parts than domains, so that every domain gets an award; the same number for any number of domains.
const PARTS: u32 = 40;
const PATIENCE: Duration = Duration::from_secs(40);
const LOOK: Duration = Duration::from_millis(20);
/// For commitments that are on their way, and orders that are written after them.
const SETTLE: Duration = Duration::from_millis(1500);
/// A host manager that is silent longer than some times this is taken for gone.
const ANNOUNCE: Duration = Duration::from_secs(5);
/// For one bare IQ.
const ANSWER: Duration = Duration::from_secs(10);

#[derive(Args)]
pub struct NegotiateArgs {
    /// Numbers of foreign domains.
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8,16")]
    pub domains: Vec<usize>,
    /// Jobs with each number of domains.
    #[arg(long, default_value_t = 5)]
    pub runs: u32,
}

impl Default for NegotiateArgs {
    fn default() -> Self {
        Self { domains: vec![1, 2, 4, 8, 16], runs: 5 }
    }
}

#[derive(Debug, Serialize)]
struct Row {
    domains: usize,
    /// From the client's sending to the last commitment, the reading of the film's index included.
    submit_ms: f64,
    /// One bare IQ, and three rounds of them to all domains at once.
    bare_ms: f64,
    /// A bare request to the store.
    store_ms: f64,
    all: Vec<Sample>,
}

#[derive(Debug, Serialize)]
struct Sample {
    submit_ms: f64,
    bare_ms: f64,
    store_ms: f64,
}

pub async fn run(args: NegotiateArgs) -> Result<Vec<Figure>> {
    ensure!(args.runs > 0 && !args.domains.is_empty(), "at least one run with one number of domains");
    let mut rows = Vec::new();
    for &n in &args.domains {
        ensure!((1..=100).contains(&n), "1 to 100 foreign domains");
        let row = measure(n, args.runs).await?;
        println!(
            "{n} foreign: submit to last commit {:.1} ms, bare IQs {:.1} ms and store request {:.1} ms; load {}",
            row.submit_ms,
            row.bare_ms,
            row.store_ms,
            load_average()
        );
        rows.push(row);
    }
    let submit = |row: &Row| row.submit_ms / row.bare_ms;
    let with_store = |row: &Row| row.submit_ms / (row.bare_ms + row.store_ms);
    let each = |of: &dyn Fn(&Row) -> String| rows.iter().map(of).collect::<Vec<_>>().join(", ");
    let counts = each(&|row| row.domains.to_string());
    let flat = |of: &dyn Fn(&Row) -> f64| {
        let values = rows.iter().map(of).collect::<Vec<_>>();
        values.iter().copied().fold(0.0, f64::max) / values.iter().copied().fold(f64::INFINITY, f64::min)
    };
    let detail = serde_json::to_value(&rows)?;
    let figure = |measure: String, must: &str, measured: String, met: Option<bool>| Figure {
        measure,
        must: must.to_owned(),
        measured,
        met,
        detail: detail.clone(),
    };
    Ok(vec![
        figure(
            format!("submit to last commit, {counts} foreign domains, against bare IQ round trips"),
            "<= 2 x",
            each(&|row| format!("{:.1} x ({:.0}/{:.1} ms)", submit(row), row.submit_ms, row.bare_ms)),
            Some(rows.iter().all(|row| submit(row) <= 2.0)),
        ),
        figure(
            "the same against bare IQs and the bare store request for the index".to_owned(),
            "",
            each(&|row| format!("{:.1} x ({:.1} ms for the store)", with_store(row), row.store_ms)),
            None,
        ),
        figure(
            format!("submit to last commit, slowest of {counts} against fastest"),
            "<= 2 x",
            format!("{:.2} x", flat(&|row| row.submit_ms)),
            Some(flat(&|row| row.submit_ms) <= 2.0),
        ),
    ])
}

fn domain(n: usize) -> String {
    if n == 0 { HOME.to_owned() } else { format!("d{n}.test") }
}

async fn measure(foreign: usize, runs: u32) -> Result<Row> {
    let dir = tempfile::Builder::new().prefix("starling-bench-").tempdir()?;
    let shelf = Shelf::start(&dir.path().join("s3")).await?;
    let (server, prosody) = prosody(dir.path(), foreign)?;
    let mut prosody = Process::start(prosody)?;
    let address = format!("{}:{}", server.ip, server.ports.c2s);
    let patience = Instant::now() + PATIENCE;
    while tokio::net::TcpStream::connect(&address).await.is_err() {
        if let Some(death) = prosody.death()? {
            anyhow::bail!("{death}");
        }
        ensure!(Instant::now() < patience, "Prosody does not listen");
        tokio::time::sleep(LOOK).await;
    }

    let account = |user: &str, n: usize| XmppConfig {
        ca_file: Some(server.ca_file()),
        ..XmppConfig::new(format!("{user}@{}", domain(n)), PASSWORD, address.clone())
    };
    let mut managers = Vec::new();
    let mut hosts = Vec::new();
    let confirmed = Confirmed::default();
    for n in 0..=foreign {
        let config = manager_config(dir.path(), &shelf, &server, &address, n)?;
        let (host, clock) = if n > 0 { (Some(account("hm1", n)), None) } else { (None, Some(confirmed.clone())) };
        let manager = Manager::start(config, host, clock).await?;
        hosts.extend(manager.host.clone());
        managers.push(manager);
    }
    let home = &managers[0];
    let patience = Instant::now() + PATIENCE;
    loop {
        let snapshot = home.snapshot.borrow().clone();
        let fit = snapshot.domains.iter().filter(|d| d.health == "ok" && d.slots == SLOTS).count();
        if snapshot.ready && fit == foreign {
            break;
        }
        ensure!(Instant::now() < patience, "home sees {fit} of {foreign} domains: {:?}", snapshot.domains);
        tokio::time::sleep(LOOK).await;
    }

    let (store, source) = short_film(dir.path(), &shelf).await?;
    let client = Link::open(Access { shell: format!("shell@conference.{HOME}"), xmpp: account("client", 0) }).await?;
    let (prober, mut events) = Agent::start(&account("prober", 0))?;
    tokio::spawn(async move { while events.recv().await.is_some() {} });
    let mut all = Vec::new();
    // The first is for links and caches.
    for n in 0..=runs {
        // What cancelling the job before has set going is over.
        tokio::time::sleep(SETTLE).await;
        let mut bare_ms = bare(&prober, &hosts[..1]).await?;
        for _ in 0..3 {
            bare_ms += bare(&prober, &hosts).await?;
        }
        let store_ms = bare_store(&store, &source).await?;
        let submit_ms = negotiation(&client, &source.to_string(), home, &confirmed).await?;
        if n > 0 {
            all.push(Sample { submit_ms, bare_ms, store_ms });
        }
    }
    client.close().await;
    prober.close().await;
    for manager in managers {
        manager.end().await?;
    }
    prosody.end().await;
    let middle = |of: fn(&Sample) -> f64| median(all.iter().map(of));
    let (submit_ms, bare_ms, store_ms) = (middle(|s| s.submit_ms), middle(|s| s.bare_ms), middle(|s| s.store_ms));
    Ok(Row { domains: foreign, submit_ms, bare_ms, store_ms, all })
}

/// One server with a virtual host and a component for rooms for each domain.
fn prosody(dir: &std::path::Path, foreign: usize) -> Result<(ProsodyConfig, Recipe)> {
    let ca = Ca::new("Starling benchmark")?;
    let ip = "127.0.0.1".parse()?;
    let ports = Ports::pick(ip)?;
    let accounts = ["cm", "hm1", "client", "prober"].map(|user| (user.to_owned(), PASSWORD.to_owned()));
    let config = |n: usize| ProsodyConfig {
        federation_members: (n == 0).then(|| (1..=foreign).map(|other| format!("cm@{}", domain(other))).collect()),
        ..ProsodyConfig::new(&domain(n), dir.join("prosody"), (ip, ports), accounts.to_vec())
    };
    let mut hosts = String::new();
    for n in 1..=foreign {
        // Each writes accounts and a certificate of its own, and the file whose end is its host.
        let config = config(n);
        config.write(&ca)?;
        let text = std::fs::read_to_string(config.config_path())?;
        let own = text.split_once("\nVirtualHost ").context("find the host in the configuration")?.1;
        let (name, rest) = own.split_once('\n').context("find the host's name")?;
        let cert = config.dir.join("certs").join(domain(n)).display().to_string();
        hosts +=
            &format!("\nVirtualHost {name}\n\tssl = {{ certificate = \"{cert}.crt\"; key = \"{cert}.key\" }}\n{rest}");
    }
    let home = config(0);
    home.write(&ca)?;
    let text = std::fs::read_to_string(home.config_path())?;
    std::fs::write(home.config_path(), text + &hosts)?;
    let recipe = Recipe {
        name: "prosody".to_owned(),
        role: "prosody".to_owned(),
        domain: None,
        program: "prosody".into(),
        arguments: vec!["-F".into(), "--config".into(), home.config_path().into()],
        log: dir.join("prosody.out"),
    };
    Ok((home, recipe))
}

/// A domain on a thread of its own, as it would be a process: its cluster manager and, of a foreign one, its host manager.
struct Manager {
    snapshot: watch::Receiver<Arc<Snapshot>>,
    host: Option<FullJid>,
    stop: oneshot::Sender<()>,
    thread: std::thread::JoinHandle<Result<()>>,
}

/// When the last commitment was acknowledged, by a finer clock than that of a job's times.
#[derive(Clone, Default)]
struct Confirmed(Arc<Mutex<Option<Instant>>>);

impl Confirmed {
    fn set(&self, at: Option<Instant>) -> Option<Instant> {
        std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), at)
    }
}

impl<S: tracing::Subscriber> Layer<S> for Confirmed {
    fn on_event(&self, _: &tracing::Event<'_>, _: layer::Context<'_, S>) {
        self.set(Some(Instant::now()));
    }
}

impl Manager {
    async fn start(config: Config, host_account: Option<XmppConfig>, clock: Option<Confirmed>) -> Result<Self> {
        let (shown, snapshot) = watch::channel(Arc::new(Snapshot::default()));
        let (stop, told) = oneshot::channel::<()>();
        let (ready, started) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let _traced = clock.map(|clock| {
                let clock = clock.with_filter(filter_fn(|event| event.target() == CONFIRMED));
                let said = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_filter(LevelFilter::WARN);
                tracing::subscriber::set_default(tracing_subscriber::registry().with(clock).with(said))
            });
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let (_asks, asks) = mpsc::channel(1);
                let room: BareJid = config.rooms.cluster.parse()?;
                let coordinator = Coordinator::start(config, String::new(), asks, shown).await?;
                let host = match host_account {
                    Some(account) => Some(host(&account, room).await?),
                    None => None,
                };
                let _ = ready.send(host.as_ref().map(|(_, jid)| jid.clone()));
                let outcome = coordinator.run(async { drop(told.await) }).await;
                if let Some((agent, _)) = host {
                    agent.close().await;
                }
                outcome
            })
        });
        match started.await {
            Ok(host) => Ok(Self { snapshot, host, stop, thread }),
            Err(_) => Err(ended(thread).await.err().context("a domain ended before it had begun")?),
        }
    }

    async fn end(self) -> Result<()> {
        let _ = self.stop.send(()); // fails when it has ended before, and says why now
        ended(self.thread).await
    }
}

async fn ended(thread: std::thread::JoinHandle<Result<()>>) -> Result<()> {
    let joined = tokio::task::spawn_blocking(|| thread.join()).await?;
    joined.unwrap_or_else(|_| bail!("a domain's thread panicked"))
}

fn manager_config(
    dir: &std::path::Path,
    shelf: &Shelf,
    server: &ProsodyConfig,
    address: &str,
    n: usize,
) -> Result<Config> {
    let name = domain(n);
    let config = serde_json::json!({
        "domain": name,
        "state_dir": dir.join(&name),
        "xmpp": { "jid": format!("cm@{name}"), "password": PASSWORD, "address": address, "ca_file": server.ca_file() },
        "rooms": {
            "cluster": format!("cluster@conference.{name}"),
            "shell": format!("shell@conference.{name}"),
            "federation": format!("federation@conference.{HOME}"),
        },
        "job": { "chunk_seconds": 2.0 },
    });
    let mut config: Config = serde_json::from_value(config)?;
    config.s3 = (n == 0).then(|| shelf.config());
    Ok(config)
}

/// Announces itself with free slots, takes what it is given, and does nothing. Its full JID.
async fn host(account: &XmppConfig, room: BareJid) -> Result<(Agent, FullJid)> {
    let (agent, mut events) = Agent::start(account)?;
    agent.join(&room, "hm1", None).await?;
    let (online, jid) = oneshot::channel();
    let speaker = agent.clone();
    tokio::spawn(async move {
        let (mut online, mut manager, mut seq) = (Some(online), None, 0);
        let mut again = tokio::time::interval(ANNOUNCE);
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    None => break,
                    Some(AgentEvent::Online { jid, .. }) => drop(online.take().map(|online| online.send(jid))),
                    Some(AgentEvent::Occupant { nick, real: Some(real), available: true, .. }) if nick == "active" => {
                        manager = Some(real);
                        again.reset_immediately();
                    }
                    Some(AgentEvent::Request { payload, reply, .. }) => {
                        let taken = Run::try_from(payload).ok().map(|run| Taken { tasks: run.tasks.len() }.into());
                        reply.result(taken);
                    }
                    Some(_) => {}
                },
                _ = again.tick() => if let Some(manager) = manager.clone() {
                    seq += 1;
                    let host = Host { name: "hm1".into(), epoch: 1, seq, slots: SLOTS, slots_free: SLOTS };
                    let _ = speaker.directed_presence(manager, Some(host.into()), true).await;
                },
            }
        }
    });
    Ok((agent, tokio::time::timeout(PATIENCE, jid).await.context("log a host manager in")??))
}

/// Many short parts, little picture.
async fn short_film(dir: &std::path::Path, shelf: &Shelf) -> Result<(Store, ObjectPath)> {
    let path = dir.join("film.mp4");
    let (film, made) = (Film { seconds: PARTS * 2, height: 120, ..Film::default() }, path.clone());
    tokio::task::spawn_blocking(move || film::make(&film, &made)).await??;
    let place = "s3://films/film.mp4".parse()?;
    let bytes = tokio::fs::read(&path).await?;
    let store = Store::connect(&shelf.config()).await?;
    store.put(&place, bytes.into(), PutOptions::default()).await?;
    Ok((store, place))
}

/// Milliseconds of empty IQs to all these hosts at once.
async fn bare(prober: &Agent, hosts: &[FullJid]) -> Result<f64> {
    let began = Instant::now();
    let ping = || Element::bare("ping", "urn:xmpp:ping");
    let asked = hosts.iter().map(|host| prober.iq_set(host.clone().into(), ping(), ANSWER));
    futures::future::try_join_all(asked).await.context("send a bare IQ")?;
    Ok(ms(began.elapsed()))
}

/// Milliseconds of a small GET.
async fn bare_store(store: &Store, source: &ObjectPath) -> Result<f64> {
    let began = Instant::now();
    store.get_range(source, ByteRange::new(0, 1024)?, None).await?;
    Ok(ms(began.elapsed()))
}

/// Submits one job, waits until all its parts are given away, and cancels it. Milliseconds from submission to the last commitment.
async fn negotiation(client: &Link, source: &str, home: &Manager, confirmed: &Confirmed) -> Result<f64> {
    let target = format!("s3://films/out/{}/", uuid::Uuid::new_v4().simple());
    confirmed.set(None);
    let sent = Instant::now();
    let answer = client.ask(&Command::Submit(job_xml(source, &target, &[480]))).await?;
    let Answer::Document(document) = answer else { anyhow::bail!("the job was refused") };
    let id = document["id"].as_str().context("learn the job's name")?.to_owned();
    let patience = Instant::now() + PATIENCE;
    loop {
        let job = home.snapshot.borrow().jobs.get(&id).cloned();
        if let Some(job) = job {
            ensure!(job.error.is_none(), "the job failed: {:?}", job.error);
            // Offered and awarded parts are still under negotiation.
            let given = |state: &str| !matches!(state, "open" | "offered" | "awarded");
            let is_given = job.parts.iter().all(|part| part.kind == "audio" || given(&part.state));
            // Acknowledged by all, too.
            if !job.parts.is_empty() && is_given && job.timeline.iter().any(|s| s.phase == Phase::ForwardRequests) {
                tokio::time::sleep(SETTLE).await;
                break;
            }
        }
        ensure!(Instant::now() < patience, "the parts of a job are not given away in time");
        tokio::time::sleep(LOOK).await;
    }
    let last = confirmed.set(None).context("hear of the last commitment")?;
    client.ask(&Command::Cancel(id)).await?;
    Ok(ms(last - sent))
}
