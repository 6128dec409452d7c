//! A peer's talk with the torrent controller: the metainfo once, then announces until told to stop.
//!
//! When the controller cannot be reached the peer keeps the swarm it knows, and asks again.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::Instant;

use super::announce::{self, PeerOrders, PeerReport};
use super::lease::{LeaseAnswer, LeaseAsk};
use super::metainfo::{GroupHash, METAINFO_MAX, Metainfo};
use super::peer::{Peer, Progress};
use super::policy::NodeId;
use super::relay;

/// How long the controller may hold an answer back until something changes.
const WAIT: Duration = Duration::from_millis(1000);
/// Least time between two announces: changes come in bursts.
const PAUSE: Duration = Duration::from_millis(60);
const TIMEOUT: Duration = Duration::from_secs(10);
/// The bitfield is told with every announce while it is small, else every so many.
const SMALL_PIECES: u32 = 8192;
const RARELY: u64 = 10;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("asking {url}")]
    Http { url: String, source: reqwest::Error },
    #[error("{url} answered {status}: {text}")]
    Refused { url: String, status: u16, text: String },
    #[error("the metainfo at {url} is not to be trusted")]
    Metainfo { url: String, source: super::metainfo::Error },
    #[error("{0:?} is not the URL of a swarm (http://HOST:PORT/NAME)")]
    Url(String),
}

impl Error {
    pub fn code(&self) -> &'static str {
        match self {
            Error::Http { .. } => "controller-unreachable",
            Error::Refused { .. } => "controller-refused",
            Error::Metainfo { source, .. } => source.code(),
            Error::Url(_) => "swarm-url",
        }
    }
}

/// The controller's last word to a node: why the load is over for it, as `code: text`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopped(pub String);

/// What a node tells of itself with every announce.
#[derive(Clone, Debug, Default)]
pub struct Member {
    pub node: NodeId,
    pub rack: u32,
    /// Pieces wanted, `[start, end, seed only]`; empty means all.
    pub demand: Vec<(u32, u32, bool)>,
}

/// The controller of one swarm.
#[derive(Clone, Debug)]
pub struct Controller {
    http: reqwest::Client,
    url: reqwest::Url,
}

impl Controller {
    /// `url` is `http://HOST:PORT/NAME`, as `swarm serve` prints it. The controller knows a peer by the address it asks
    /// from, so a peer that listens on one address only asks from there.
    pub fn new(url: &str, from: IpAddr) -> Result<Self, Error> {
        let parsed = reqwest::Url::parse(url).ok().filter(|u| u.host().is_some() && u.path().len() > 1);
        let url = parsed.ok_or_else(|| Error::Url(url.to_owned()))?;
        let http = crate::fetch::http()
            .timeout(TIMEOUT)
            .no_proxy()
            .local_address(Some(from).filter(|ip| !ip.is_unspecified()))
            .build();
        Ok(Self { http: http.map_err(|source| Error::Http { url: url.to_string(), source })?, url })
    }

    /// Reads the metainfo, without pieces where the controller knows how; no more of it than a metainfo may have.
    pub async fn metainfo(&self) -> Result<Metainfo, Error> {
        let mut asked = self.url.clone();
        asked.set_query(Some("pieces=0"));
        let url = asked.to_string();
        let fail = |source| Error::Http { url: url.clone(), source };
        let response = self.http.get(asked).send().await.map_err(fail)?;
        if !response.status().is_success() {
            let status = response.status().as_u16();
            let text = response.text().await.unwrap_or_default().chars().take(200).collect();
            return Err(Error::Refused { url, status, text });
        }
        let mut body = Vec::new();
        let mut stream = response.bytes_stream();
        while let Some(part) = stream.next().await {
            body.extend_from_slice(&part.map_err(fail)?);
            if body.len() > METAINFO_MAX {
                return Err(Error::Metainfo { url, source: super::metainfo::Error::TooLarge(body.len()) });
            }
        }
        Metainfo::decode(&body).map_err(|source| Error::Metainfo { url, source })
    }

    /// One announce.
    pub async fn announce(&self, report: &PeerReport) -> Result<PeerOrders, Error> {
        self.post("/swarm/announce", report).await
    }

    /// What became of a read, and the next one.
    pub async fn lease(&self, ask: &LeaseAsk) -> Result<LeaseAnswer, Error> {
        self.post("/swarm/lease", ask).await
    }

    /// Hashes of the `count` groups of a chunk; to be proven by its root.
    pub async fn hashes(&self, chunk: u32, count: usize) -> Result<Vec<GroupHash>, Error> {
        let url = self.at(&format!("/swarm/hashes/{chunk}"));
        let fail = |source| Error::Http { url: url.to_string(), source };
        let response = self.http.get(url.clone()).send().await.map_err(fail)?;
        let status = response.status().as_u16();
        let body = response.bytes().await.map_err(fail)?;
        if status == 200 && body.len() == count * 32 {
            return Ok(body.as_chunks::<32>().0.to_vec());
        }
        Err(Error::Refused { url: url.to_string(), status, text: format!("{} bytes of hashes", body.len()) })
    }

    fn at(&self, path: &str) -> reqwest::Url {
        let mut url = self.url.clone();
        url.set_path(path);
        url.set_query(None);
        url
    }

    async fn post<A: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<A, Error> {
        let url = self.at(path);
        let fail = |source| Error::Http { url: url.to_string(), source };
        let response = self.http.post(url.clone()).json(body).send().await.map_err(fail)?;
        if response.status().is_success() {
            return response.json().await.map_err(fail);
        }
        let status = response.status().as_u16();
        Err(Error::Refused { url: url.to_string(), status, text: response.text().await.unwrap_or_default() })
    }

    /// Keeps `peer` told whom to talk to and what to read, as long as this future is polled. Ends when the controller says that
    /// the load is over.
    pub async fn follow(&self, peer: &Peer, meta: &Metainfo, member: &Member) -> Stopped {
        let (store, mut told) = watch::channel(false);
        let reading = async {
            let _ = told.wait_for(|store| *store).await;
            relay::run(self, peer, meta, member.node).await
        };
        tokio::select! {
            stopped = self.announce_on(peer, meta, member, &store) => stopped,
            stopped = reading => stopped,
        }
    }

    async fn announce_on(&self, peer: &Peer, meta: &Metainfo, member: &Member, store: &watch::Sender<bool>) -> Stopped {
        let mut round = 0u64;
        loop {
            let started = Instant::now();
            match self.announce(&self.report(peer, meta, member, round)).await {
                Ok(PeerOrders { stop: true, why: Some(why), .. }) => return Stopped(why),
                Ok(orders) => {
                    peer.know(&orders.peers, orders.origin, orders.guests);
                    store.send_if_modified(|told| std::mem::replace(told, orders.store) != orders.store);
                }
                Err(Error::Refused { text, .. }) if is_replaced(&text) => {
                    return Stopped(
                        "swarm-replaced: the controller serves another version by now, or with another token".into(),
                    );
                }
                Err(error) => {
                    tracing::warn!(%error, "controller not reached; going on with the peers that are known");
                    tokio::time::sleep(WAIT).await;
                }
            }
            round += 1;
            tokio::time::sleep(PAUSE.saturating_sub(started.elapsed())).await;
        }
    }

    /// Says goodbye, so that nobody waits for this node, and what went wrong if something did.
    pub async fn leave(&self, peer: &Peer, meta: &Metainfo, member: &Member) {
        let report = PeerReport { stopped: true, wait_ms: 0, ..self.report(peer, meta, member, 1) };
        let _ = tokio::time::timeout(Duration::from_secs(1), self.announce(&report)).await;
    }

    fn report(&self, peer: &Peer, meta: &Metainfo, member: &Member, round: u64) -> PeerReport {
        let progress = peer.progress();
        let often = meta.layout.pieces() <= SMALL_PIECES || round.is_multiple_of(RARELY);
        PeerReport {
            info_hash: crate::hex::hex(&meta.info_hash),
            token: meta.token.clone(),
            node: member.node,
            port: peer.address.port(),
            rack: member.rack,
            demand: member.demand.clone(),
            have: often.then(|| peer.pieces().to_hex()),
            complete: progress.groups_held == progress.groups,
            starving: progress.starving,
            stopped: false,
            failed: progress.failed.clone(),
            wait_ms: WAIT.as_millis() as u64,
            received: (progress.from_peers, progress.from_origin),
        }
    }
}

/// What the controller says of a swarm that it served before it was started anew.
fn is_replaced(text: &str) -> bool {
    [announce::Error::Unknown, announce::Error::Token].iter().any(|error| text.starts_with(error.code()))
}

/// Why a node did not become whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfinished {
    /// As `code: text (hint)`.
    #[error("{0}")]
    Disk(String),
    /// The controller's last word, as `code: text`.
    #[error("{0}")]
    Stopped(String),
    #[error("stalled: no byte came for {0:?}")]
    Stalled(Duration),
}

/// A node in a swarm: its peer, and the task that keeps it told. Dropped, it is gone at once.
pub struct Joined {
    peer: Arc<Peer>,
    following: tokio::task::JoinHandle<()>,
    stopped: watch::Receiver<Option<Stopped>>,
    farewell: (Controller, Arc<Metainfo>, Member),
}

impl Joined {
    pub fn start(controller: Controller, peer: Peer, meta: Arc<Metainfo>, member: Member) -> Self {
        let (stop, stopped) = watch::channel(None);
        let peer = Arc::new(peer);
        let farewell = (controller.clone(), meta.clone(), member.clone());
        let followed = peer.clone();
        let following = tokio::spawn(async move {
            let why = controller.follow(&followed, &meta, &member).await;
            stop.send_replace(Some(why));
        });
        Self { peer, following, stopped, farewell }
    }

    pub fn progress(&self) -> Progress {
        self.peer.progress()
    }

    /// Waits until all that is wanted is on disk, under its final name. `on_progress` hears of it several times a second; without a
    /// byte for `patience` it is [`Unfinished::Stalled`].
    pub async fn whole(
        &self,
        patience: Duration,
        mut on_progress: impl FnMut(&Progress),
    ) -> Result<PathBuf, Unfinished> {
        let (mut progress, mut stopped) = (self.peer.watch(), self.stopped.clone());
        let mut grown = (Instant::now(), 0);
        loop {
            let seen = self.peer.progress();
            on_progress(&seen);
            if let Some(path) = seen.done {
                return Ok(path);
            }
            if let Some(why) = seen.failed {
                return Err(Unfinished::Disk(why));
            }
            if let Some(Stopped(why)) = stopped.borrow().clone() {
                return Err(Unfinished::Stopped(why));
            }
            if seen.groups_held > grown.1 {
                grown = (Instant::now(), seen.groups_held);
            } else if grown.0.elapsed() > patience {
                return Err(Unfinished::Stalled(patience));
            }
            // The peer speaks at least some times a second.
            tokio::select! {
                _ = progress.changed() => {}
                Ok(()) = stopped.changed() => {}
            }
        }
    }

    /// Says goodbye, so that nobody waits for this node, and ends.
    pub async fn leave(self) {
        let (controller, meta, member) = &self.farewell;
        controller.leave(&self.peer, meta, member).await;
        self.end().await;
    }

    /// Ends with its state on disk.
    pub async fn end(mut self) {
        self.following.abort();
        let _ = (&mut self.following).await;
        let peer = self.peer.clone();
        drop(self);
        if let Some(peer) = Arc::into_inner(peer) {
            peer.stop().await;
        }
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.following.abort();
    }
}
