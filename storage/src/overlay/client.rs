//! A peer's talk with the torrent controller: the metainfo once, then announces until told to stop.
//!
//! When the controller cannot be reached the peer keeps the swarm it knows, and asks again.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures::StreamExt;
use tokio::time::Instant;

use super::announce::{PeerOrders, PeerReport};
use super::metainfo::{METAINFO_MAX, Metainfo};
use super::peer::Peer;
use super::policy::NodeId;

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
        // reqwest is built without a TLS provider; one that is installed already stays.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .timeout(TIMEOUT)
            .no_proxy()
            .local_address(Some(from).filter(|ip| !ip.is_unspecified()))
            .build();
        Ok(Self { http: http.map_err(|source| Error::Http { url: url.to_string(), source })?, url })
    }

    /// Reads the metainfo; no more of it than a metainfo may have.
    pub async fn metainfo(&self) -> Result<Metainfo, Error> {
        let url = self.url.to_string();
        let fail = |source| Error::Http { url: url.clone(), source };
        let response = self.http.get(self.url.clone()).send().await.map_err(fail)?;
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
        let mut url = self.url.clone();
        url.set_path("/swarm/announce");
        url.set_query(None);
        let fail = |source| Error::Http { url: url.to_string(), source };
        let response = self.http.post(url.clone()).json(report).send().await.map_err(fail)?;
        if response.status().is_success() {
            return response.json().await.map_err(fail);
        }
        let status = response.status().as_u16();
        Err(Error::Refused { url: url.to_string(), status, text: response.text().await.unwrap_or_default() })
    }

    /// Keeps `peer` told whom to talk to, as long as this future is polled.
    pub async fn follow(&self, peer: &Peer, meta: &Metainfo, node: NodeId, rack: u32) {
        let mut round = 0u64;
        loop {
            let started = Instant::now();
            let report = self.report(peer, meta, node, rack, round);
            match self.announce(&report).await {
                Ok(orders) => {
                    let origin = orders.origin.map(|address| self.reachable(address));
                    peer.know(&orders.peers, origin, orders.guests);
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

    /// Says goodbye, so that nobody waits for this node.
    pub async fn leave(&self, peer: &Peer, meta: &Metainfo, node: NodeId) {
        let report = PeerReport { stopped: true, wait_ms: 0, ..self.report(peer, meta, node, 0, 1) };
        let _ = tokio::time::timeout(Duration::from_secs(1), self.announce(&report)).await;
    }

    fn report(&self, peer: &Peer, meta: &Metainfo, node: NodeId, rack: u32, round: u64) -> PeerReport {
        let progress = peer.progress();
        let often = meta.layout.pieces() <= SMALL_PIECES || round.is_multiple_of(RARELY);
        PeerReport {
            info_hash: crate::hex::hex(&meta.info_hash),
            token: meta.token.clone(),
            node,
            port: peer.address.port(),
            rack,
            demand: Vec::new(),
            have: often.then(|| peer.pieces().to_hex()),
            complete: progress.groups_held == progress.groups,
            starving: progress.starving,
            stopped: false,
            wait_ms: WAIT.as_millis() as u64,
            received: (progress.from_peers, progress.from_origin),
        }
    }

    /// An origin that listens on all addresses is where its controller is.
    fn reachable(&self, origin: SocketAddr) -> SocketAddr {
        let host = self.url.host_str().and_then(|host| host.trim_matches(['[', ']']).parse::<IpAddr>().ok());
        match host {
            Some(ip) if origin.ip().is_unspecified() => SocketAddr::new(ip, origin.port()),
            _ => origin,
        }
    }
}
