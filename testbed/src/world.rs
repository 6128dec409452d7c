//! Three domains, their XMPP servers and an S3 store, started in order on loopback and taken down without a leftover.
//!
//! The world owns processes and files, nothing else: agents get a configuration file each and find each other over XMPP, as
//! they would anywhere. Clients get `world.json`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cluster_manager::config::Overlay;
use federation::agreement::Agreements;
use federation::timers::Timers;
use serde::Deserialize;

mod board;
mod claim;
mod client;
mod document;
mod domain;
mod store;

pub use board::Board;
pub use client::Client;
pub use document::{ClientAccess, DomainAccess, ProcessNote, S3Access, WorldDocument};
pub use store::StoreOptions;

use crate::process::{Process, Recipe};
use claim::Claim;
use domain::DomainFiles;

/// How long the world may take until every domain sees every other: some seconds, but for a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(180);
const LOOK: Duration = Duration::from_millis(50);

/// What world to make.
#[derive(Clone, Debug)]
pub struct WorldOptions {
    /// Everything is written below; made if it is not there.
    pub state: PathBuf,
    /// XMPP host names; the first one is home to the Federation room and to the films.
    pub domains: Vec<String>,
    /// Host managers in each domain.
    pub hosts: u32,
    /// Parts that each host manager runs at the same time.
    pub slots: u32,
    pub store: StoreOptions,
    /// Waiting times of all cluster managers.
    pub timers: Timers,
    /// Agreements of a domain; where there are none, everybody is a partner.
    pub agreements: BTreeMap<String, Agreements>,
    /// How all domains load their shares.
    pub overlay: Overlay,
    /// Domains with an XMPP server and accounts, but without agents: somebody else plays them.
    pub unmanned: Vec<String>,
    /// The encoder that all guests run; none: `ffmpeg` from the path.
    pub ffmpeg: Option<PathBuf>,
}

impl WorldOptions {
    pub fn new(state: impl Into<PathBuf>) -> Self {
        let domains = ["a.test", "b.test", "c.test"].map(str::to_owned).to_vec();
        Self {
            state: state.into(),
            domains,
            hosts: 2,
            slots: 1,
            store: StoreOptions::default(),
            timers: Timers::default(),
            agreements: BTreeMap::new(),
            overlay: Overlay::default(),
            unmanned: Vec::new(),
            ffmpeg: None,
        }
    }

    fn check(&self) -> Result<()> {
        ensure!(!self.domains.is_empty(), "a world has at least one domain");
        for (n, name) in self.domains.iter().enumerate() {
            let fine = name.split('.').all(|label| {
                !label.is_empty() && label.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
            });
            ensure!(fine, "a domain is a host name in lower case, not {name:?}");
            ensure!(!self.domains[..n].contains(name), "the domain {name} is named twice");
        }
        ensure!(!self.unmanned.contains(&self.domains[0]), "the home domain has agents of its own");
        ensure!((1..=100).contains(&self.hosts), "a domain has 1 to 100 host managers");
        ensure!(self.slots > 0, "a host manager has at least one slot");
        Ok(())
    }
}

/// A running world. [`World::end`] takes it down in peace; dropping it kills everything at once.
#[derive(Debug)]
pub struct World {
    pub document: WorldDocument,
    // In starting order. Declared before the claim: all are gone when the directory is free again.
    processes: Vec<Process>,
    state: PathBuf,
    _claim: Claim,
}

impl World {
    /// Starts everything and waits until each cluster manager is ready and sees all domains well.
    ///
    /// # Errors
    /// A bad option, a claimed directory, a child that ended, or no consent within three minutes. Nothing is left running then.
    pub async fn start(options: &WorldOptions, board: &mut Board) -> Result<Self> {
        options.check()?;
        let claim = Claim::take(&options.state)?;
        let state = options.state.canonicalize().context("find the state directory")?;
        let mut processes = Vec::new();

        let s3 = store::open(&options.store, &options.domains, &state, &mut processes, board).await?;
        let domains = domain::prepare(options, &state, &s3, &mut processes, board).await?;
        let (manned, unmanned): (Vec<_>, Vec<_>) = domains.iter().partition(|d| !options.unmanned.contains(&d.name));
        for domain in &manned {
            for recipe in domain.agents(options)? {
                board.starting(&recipe.name, "starting");
                processes.push(Process::start(recipe)?);
            }
        }
        let consoles = await_consent(&manned, &mut processes, board).await?;

        let notes = processes.iter().map(|process| ProcessNote {
            role: process.recipe.role.clone(),
            domain: process.recipe.domain.clone(),
            pid: process.pid,
            log: process.recipe.log.clone(),
        });
        let s3 = s3.into_iter().next().flatten().context("find the first domain's store")?;
        let document = WorldDocument {
            s3,
            domains: manned
                .iter()
                .zip(consoles)
                .map(|(domain, console)| domain.access(console))
                .chain(unmanned.iter().map(|domain| domain.access(String::new())))
                .collect(),
            processes: notes.collect(),
        };
        document.write(&state)?;
        Ok(Self { document, processes, state, _claim: claim })
    }

    /// Where everything is written.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Waits until any process ends by itself, which none should; the text says which, and how its log ends.
    pub async fn failure(&mut self) -> String {
        let ends = self.processes.iter_mut().map(|process| Box::pin(process.ended()));
        futures::future::select_all(ends).await.0
    }

    /// Ends agents before servers, each asked first, and removes `world.json`.
    pub async fn end(mut self) {
        let _ = std::fs::remove_file(self.state.join(document::FILE));
        let agents = self.processes.extract_if(.., |process| process.recipe.role.ends_with("manager"));
        futures::future::join_all(agents.map(Process::end).collect::<Vec<_>>()).await;
        futures::future::join_all(self.processes.drain(..).map(Process::end)).await;
    }

    /// Ends a process as a power cut does, guests and all; [`World::restart`] brings it back.
    ///
    /// # Errors
    /// There is no such process.
    pub async fn crash(&mut self, name: &str) -> Result<Recipe> {
        let at = self.processes.iter().position(|p| p.recipe.name == name).with_context(|| format!("find {name}"))?;
        Ok(self.processes.remove(at).crash().await)
    }

    /// Starts a crashed process again, with the same state and configuration. `world.json` then has its new process id and, of
    /// a cluster manager, its new console; all else is as it was.
    ///
    /// # Errors
    /// It does not start, or a cluster manager does not listen.
    pub async fn restart(&mut self, recipe: Recipe) -> Result<()> {
        let mut process = Process::start(recipe)?;
        let Recipe { role, domain, log, .. } = &process.recipe;
        if let Some(note) = self.document.processes.iter_mut().find(|note| note.log == *log) {
            note.pid = process.pid;
        }
        let access = self.document.domains.iter_mut().find(|access| Some(&access.name) == domain.as_ref());
        if let (Some(access), "cluster-manager") = (access, role.as_str()) {
            access.console_url = process.announcement(announced_http).await?;
        }
        self.processes.push(process);
        self.document.write(&self.state)
    }
}

/// What `GET /api/domains` says of one, as far as it matters here.
#[derive(Deserialize)]
struct Seen {
    name: String,
    health: String,
    slots: u32,
}

/// Waits for each cluster manager: until it listens, is ready, and sees all domains in health and with all their slots.
/// Gives the consoles' URLs.
async fn await_consent(domains: &[&DomainFiles], processes: &mut [Process], board: &mut Board) -> Result<Vec<String>> {
    let mut consoles = Vec::new();
    for process in processes.iter_mut().filter(|process| process.recipe.role == "cluster-manager") {
        let url = process.announcement(announced_http).await?;
        board.starting(&process.recipe.name, &format!("listens at {url}"));
        consoles.push(url);
    }
    let http = storage::fetch::http().no_proxy().timeout(Duration::from_secs(5)).build()?;
    let patience = tokio::time::Instant::now() + PATIENCE;
    let mut last = vec![String::new(); consoles.len()];
    loop {
        for process in processes.iter_mut() {
            if let Some(death) = process.death()? {
                bail!("{death}");
            }
        }
        let mut waiting = Vec::new();
        for (n, url) in consoles.iter().enumerate() {
            let (name, state) = (&domains[n].name, standing(&http, url, domains).await);
            let words = state.as_ref().err().map_or_else(|| format!("ready at {url}"), ToString::to_string);
            if last[n] != words {
                let line = format!("{name} cm");
                if state.is_ok() {
                    board.ready(&line, &words)
                } else {
                    board.starting(&line, &words)
                }
                last[n] = words;
            }
            waiting.extend(state.err().map(|reason| format!("{name}: {reason}")));
        }
        if waiting.is_empty() {
            break;
        }
        ensure!(
            tokio::time::Instant::now() < patience,
            "the world is not whole after {} s: {}",
            PATIENCE.as_secs(),
            waiting.join("; ")
        );
        tokio::time::sleep(LOOK).await;
    }
    for process in processes.iter().filter(|process| process.recipe.role == "host-manager") {
        board.ready(&process.recipe.name, &format!("ready, pid {}", process.pid));
    }
    Ok(consoles)
}

fn announced_http(line: &str) -> Option<String> {
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).ok()?;
    Some(object.get("http")?.as_str()?.to_owned())
}

/// `Ok` when the cluster manager has nothing left to wait for, else what it lacks.
async fn standing(http: &reqwest::Client, url: &str, domains: &[&DomainFiles]) -> Result<()> {
    #[derive(Deserialize)]
    struct Health {
        ready: bool,
    }
    let health = http.get(format!("{url}/healthz")).send().await.map_err(|_| anyhow::anyhow!("no answer yet"))?;
    let health: Health = health.json().await.map_err(|_| anyhow::anyhow!("no health yet"))?;
    ensure!(health.ready, "not ready yet");
    let seen: Vec<Seen> = http.get(format!("{url}/api/domains")).send().await?.error_for_status()?.json().await?;
    for domain in domains {
        let found = seen.iter().find(|seen| seen.name == domain.name);
        let found = found.with_context(|| format!("does not see {} yet", domain.name))?;
        ensure!(found.health == "ok", "{} is {}", domain.name, found.health);
        ensure!(found.slots >= domain.slots, "{} has {} of {} slots", domain.name, found.slots, domain.slots);
    }
    Ok(())
}
