//! Loading a share: when the first part of a lease is to be run, look at what its parts want, choose the way of the bytes, and if it is
//! the overlay read them once, hash them, and serve them to the guests.
//!
//! The choice is [`storage::overlay::share`]'s; here are its facts, its doing, and the queue of tasks that wait for it. Whatever goes
//! wrong on the way makes it the direct way: the store has the bytes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use federation::book::{TakenPart, TakenState};
use federation::id::{JobId, LeaseId};
use federation::message::Usage;
use futures::stream::{self, StreamExt, TryStreamExt};
use storage::fetch::Fetcher;
use storage::film::part::{PartSpec, Source, Work};
use storage::ledger::GETS_AT_ONCE;
use storage::overlay::layout::Layout;
use storage::overlay::metainfo::File;
use storage::overlay::pass::Pass;
use storage::overlay::share::{Choice, Facts, ONE_LOADS, Wanted, Way, files, union};
use storage::overlay::store::Files;
use storage::range::ByteRange;
use tempfile::TempDir;
use tracing::{info, warn};

use super::orders::OrderWriter;
use super::{Coordinator, Done, now};
use crate::config::{Overlay, OverlayMode};
use crate::hosts::{TaskId, Where};
use crate::swarm::source::{Held, Opened};
use crate::swarm::{self, ServeArgs, Served};
use crate::view::LoadDoc;

const ORDERS_AT_ONCE: usize = 16;
/// Home writes orders right after the commitment. One that is later than this is the guest's to wait for.
const ORDER_WAIT: Duration = Duration::from_secs(10);
/// What the store did longer ago says nothing of today.
const LATELY_MS: u64 = 10 * 60_000;
const HASH_BLOCK: usize = 1 << 20;

/// What is known of the way of one lease's bytes.
pub(super) enum Share {
    /// Being looked at; these tasks wait.
    Looking(Vec<(TaskId, String)>),
    Known {
        job: JobId,
        choice: Choice,
        swarm: Option<Swarm>,
    },
}

/// A share that is being served to the guests.
pub(super) struct Swarm {
    served: Served,
    /// The bytes; gone with it.
    _dir: TempDir,
}

/// Where the wishes of the parts stand.
enum Wishes {
    /// In our own plan: ranges of the source.
    Planned(Box<OrderWriter>, Vec<Vec<ByteRange>>),
    /// In orders that home writes.
    Ordered(Vec<String>),
}

/// Everything that the work outside the loop needs.
struct Look {
    wishes: Wishes,
    mode: OverlayMode,
    facts: Facts,
    listen: std::net::IpAddr,
    dir: PathBuf,
}

impl Coordinator {
    /// Where shares lie while they are loaded.
    pub(super) fn shares_dir(state_dir: &Path) -> PathBuf {
        state_dir.join("shares")
    }

    /// Gives a task to the hosts as soon as the way of its lease's bytes is known. One that was stopped meanwhile is let go.
    pub(super) fn hand(&mut self, task: TaskId, url: String) {
        let Some(taken) = self.domain.book().taken.get(&task.lease) else { return };
        let started = |part: &TakenPart| part.state == TakenState::Started && part.award.attempt == task.attempt;
        if !taken.parts.get(&task.part).is_some_and(started) {
            return;
        }
        let job = taken.terms.job.clone();
        match self.shares.get_mut(&task.lease) {
            Some(Share::Looking(waiting)) => return waiting.push((task, url)),
            Some(Share::Known { swarm, .. }) => {
                let swarm = swarm.as_ref().map(|swarm| swarm.served.url.clone());
                return self.hosts.run(task, Where { url, swarm });
            }
            None => {}
        }
        let lease = task.lease.clone();
        let share = match self.look(&lease) {
            Ok(look) => {
                let (done, lease) = (self.done.0.clone(), lease.clone());
                self.spawn("share", async move {
                    let (choice, swarm) = look.run().await;
                    let _ = done.send(Done::Shared { lease, job, choice, swarm }).await; // fails only when we are leaving
                });
                Share::Looking(Vec::new())
            }
            Err(choice) => Share::Known { job, choice, swarm: None },
        };
        self.shares.insert(lease, share);
        self.hand(task, url);
    }

    /// What is to be looked at before the way of a lease's bytes is chosen; or the direct way, if that is clear without. Nobody's order is
    /// read in vain: that would cost the store as many requests as there are parts, while the first guests begin.
    fn look(&self, lease: &LeaseId) -> Result<Look, Choice> {
        let direct = |reason: &str| Choice { way: Way::Direct, reason: reason.to_owned() };
        let Overlay { mode, listen, origin_streams: streams } = self.config.overlay;
        if mode == OverlayMode::Never {
            return Err(direct("the overlay is switched off"));
        }
        let throttled = self.throttled.iter().map(|(_, requests)| *requests).fold(0, u64::saturating_add);
        let facts = Facts { loads: self.hosts.capacity().0, streams, throttled };
        let (wishes, wanted) = self.wishes(lease).filter(|_| facts.loads > 1).ok_or_else(|| direct(ONE_LOADS))?;
        match wanted.map(|wanted| facts.choose(wanted)) {
            Some(choice) if choice.way == Way::Direct && mode == OverlayMode::Auto => Err(choice),
            _ => Ok(Look { wishes, mode, facts, listen, dir: Self::shares_dir(&self.config.state_dir) }),
        }
    }

    /// What the parts of a lease want, and how much that is if anybody has said so; `None` when there is but one.
    fn wishes(&self, lease: &LeaseId) -> Option<(Wishes, Option<Wanted>)> {
        let taken = self.domain.book().taken.get(lease).filter(|taken| taken.parts.len() > 1)?;
        if taken.terms.home != self.me {
            let urls = taken.parts.values().map(|part| part.award.url.clone()).collect();
            let bytes = taken.parts.values().map(|part| part.award.bytes).fold(0, u64::saturating_add);
            let parts = taken.parts.len() as u32;
            return Some((Wishes::Ordered(urls), taken.terms.common.map(|common| Wanted { parts, bytes, common })));
        }
        let writer = self.writer(&self.me, &taken.terms.job)?;
        let ranges: Vec<_> = taken.parts.keys().filter_map(|part| writer.ranges(*part)).collect();
        let wanted = Wanted::of(&ranges);
        Some((Wishes::Planned(Box::new(writer), ranges), Some(wanted)))
    }

    pub(super) fn shared(&mut self, lease: LeaseId, job: JobId, choice: Choice, swarm: Option<Swarm>) {
        info!(%lease, %job, %choice, "way of the share");
        let known = Share::Known { job, choice, swarm };
        if let Some(Share::Looking(waiting)) = self.shares.insert(lease, known) {
            for (task, url) in waiting {
                self.hand(task, url);
            }
        }
    }

    /// The way of a task's bytes, for its final report.
    pub(super) fn way_of(&self, lease: &LeaseId) -> Option<String> {
        match self.shares.get(lease)? {
            Share::Looking(_) => None,
            Share::Known { choice, .. } => Some(choice.to_string()),
        }
    }

    /// Notes what a task met at the store.
    pub(super) fn met(&mut self, usage: &Usage) {
        if usage.throttled > 0 {
            self.throttled.push((now(), usage.throttled));
        }
    }

    /// Shares of leases that have ended are served no longer, and what the store did long ago is forgotten.
    pub(super) fn drop_shares(&mut self) {
        self.throttled.retain(|(at, _)| now().since(*at) < LATELY_MS);
        let taken = &self.domain.book().taken;
        self.shares.retain(|lease, _| taken.contains_key(lease));
    }

    pub(super) fn load_documents(&self) -> Vec<LoadDoc> {
        let document = |(lease, share): (&LeaseId, &Share)| match share {
            Share::Looking(_) => None,
            Share::Known { job, choice, swarm } => Some(LoadDoc {
                lease: lease.to_string(),
                job: job.to_string(),
                loaded: choice.to_string(),
                swarm: swarm.as_ref().map(|swarm| swarm.served.controller.status()),
                given: swarm.as_ref().map_or(0, |swarm| swarm.served.given()),
                nodes: swarm.as_ref().map_or_else(Vec::new, |swarm| swarm.served.controller.nodes()),
            }),
        };
        self.shares.iter().filter_map(document).collect()
    }
}

impl Look {
    /// Reads what the parts want, chooses, and opens the swarm if that is the way.
    async fn run(self) -> (Choice, Option<Swarm>) {
        let direct = |reason: String| Choice { way: Way::Direct, reason };
        let (source, parts) = match self.wishes.read().await {
            Ok(read) => read,
            Err(error) => {
                warn!(error = format!("{error:#}"), "what the parts want is not known");
                return (direct("what the parts want is not known".to_owned()), None);
            }
        };
        let mut choice = self.facts.choose(Wanted::of(&parts));
        let union = union(&parts);
        if self.mode == OverlayMode::Always && !union.is_empty() {
            choice = Choice { way: Way::Overlay, reason: "configured".to_owned() };
        }
        let (Way::Overlay, Some(source)) = (choice.way, source) else { return (choice, None) };
        match self.open(&source, &union, parts.len() as u32).await {
            Ok(swarm) => (choice, Some(swarm)),
            Err(error) => {
                warn!(error = format!("{error:#}"), "the share cannot be served; guests read from the store");
                (direct(format!("the share could not be served ({})", choice.reason)), None)
            }
        }
    }

    /// Reads the bytes once, as many at a time as the store admits, and serves them.
    async fn open(&self, source: &Source, union: &[ByteRange], nodes: u32) -> Result<Swarm> {
        std::fs::create_dir_all(&self.dir).context("make the directory of shares")?;
        let dir = tempfile::tempdir_in(&self.dir).context("make the directory of a share")?;
        let path = dir.path().join("bytes");
        // A store that puts requests off without a known limit is asked for one thing at a time.
        let streams = self.facts.streams.unwrap_or(if self.facts.throttled > 0 { 1 } else { u32::MAX }).max(1);
        let fetcher = Fetcher::shared()?.with_parallel(GETS_AT_ONCE.min(streams as usize));
        let mut file = tokio::fs::File::create(&path).await.context("make the file of a share")?;
        let stats = fetcher.ranges_to_file(&source.url, &source.etag, union, &mut file, &mut |_| ()).await?;
        drop(file);
        let (list, whole) = (files(union), File { path: vec![], len: stats.bytes });
        let hashing = path.clone();
        let opened = tokio::task::spawn_blocking(move || -> Result<Opened> {
            let bytes = Files::open(&hashing, &[whole])?;
            let layout = Layout::for_total(stats.bytes).ok_or_else(|| anyhow!("no bytes"))?;
            let mut pass = Pass::unkept(layout);
            for at in (0..layout.total()).step_by(HASH_BLOCK) {
                pass.update(&bytes.read(at..(at + HASH_BLOCK as u64).min(layout.total()))?);
            }
            let token = uuid::Uuid::new_v4().simple().to_string();
            let found = pass.finish("share", list, &token)?;
            let (meta, hashes) = found.ok_or_else(|| anyhow!("the share was not read whole"))?;
            Ok(Opened { meta, hashes, held: Held::Here(bytes), original: None })
        });
        let args = ServeArgs {
            listen: (self.listen, 0).into(),
            expect: nodes,
            ..ServeArgs::on_loopback(swarm::source::Source::Local(path))
        };
        let served = swarm::start(&args, opened.await??, stats.fetched).await;
        Ok(Swarm { served: served.map_err(|failure| anyhow!(failure.text))?, _dir: dir })
    }
}

impl Wishes {
    /// The source, if any part wants bytes of it, and which.
    async fn read(&self) -> Result<(Option<Source>, Vec<Vec<ByteRange>>)> {
        match self {
            Self::Planned(writer, ranges) => Ok((Some(writer.source().await?), ranges.clone())),
            Self::Ordered(urls) => {
                let fetcher = Fetcher::shared()?;
                let read = stream::iter(urls.clone()).map(|url| order(fetcher, url)).buffered(ORDERS_AT_ONCE);
                let specs: Vec<PartSpec> = read.try_collect().await?;
                let (mut source, mut parts) = (None, Vec::new());
                for spec in specs {
                    if let Work::Video(work) = spec.work {
                        parts.push(work.input.ranges);
                        source = Some(work.source);
                    }
                }
                Ok((source, parts))
            }
        }
    }
}

/// Home writes it while we ask for it.
async fn order(fetcher: &Fetcher, url: String) -> Result<PartSpec> {
    let json = fetcher.get_when_written(&url, PartSpec::BYTES_MAX, ORDER_WAIT).await?;
    serde_json::from_slice(&json).context("understand an order")
}
