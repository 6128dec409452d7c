//! The torrent controller as a service: announces in, the policy's decisions out.
//!
//! `GET /NAME` gives the metainfo (a torrent file; with `?pieces=0`, as our peers ask, without the SHA-1 pieces), `GET /NAME.I-of-N` the torrent of a
//! part, `GET /announce` serves
//! ordinary clients, `POST /swarm/announce` ours, `GET /swarm/status` whoever watches. All decisions are [`Policy`]'s; here are only addresses, clocks and waiting.
//! Where the origin is an object store, `POST /swarm/lease` gives relays what to read and `GET /swarm/hashes/CHUNK` proves it.
//! Nothing is kept on disk: after a restart one round of announces brings everything back.

mod leases;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Path, RawQuery, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::IncomingStream;
use axum::{Json, Router};
use serde::Serialize;
use storage::overlay::announce::{self, Error, PeerOrders, PeerReport, Query};
use storage::overlay::metainfo::{InfoHash, Metainfo};
use storage::overlay::peer::LeaseBook;
use storage::overlay::policy::{Config, Demand, Millis, NodeId, Orders, Policy, Report, Role};
use storage::overlay::wire::Handshake;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};

use crate::view::{NodeDoc, plain};

pub use self::leases::{LEASE_MS_MIN, StoreOrigin, leases_per_node};

/// Longest wait that an announce may ask for.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// Ordinary clients announce rarely: they are told more peers at once, and believed longer.
const ORDINARY_INTERVAL_S: u64 = 5;
const ORDINARY_TTL: Duration = Duration::from_secs(90);
const ORDINARY_PEERS: usize = 30;
/// Members of one swarm; more announces are refused rather than remembered.
const MEMBERS_MAX: usize = 100_000;
/// Nodes that said why they cannot become whole; remembered are the first.
const FAILED_MAX: usize = 1000;
/// Of such a reason; it comes from the network and goes to a terminal.
const WHY_CHARS: usize = 300;
const TICK: Duration = Duration::from_millis(200);

/// One swarm's controller; also the book that its origin asks.
pub struct TorrentController {
    meta: Arc<Metainfo>,
    start: Instant,
    origin: Origin,
    inner: Mutex<Inner>,
    version: watch::Sender<u64>,
    /// Somebody who waits for a lease may get one now.
    freed: Notify,
}

/// Who gives the first copy.
pub enum Origin {
    /// A peer that asks this controller whom to send what.
    Peer(SocketAddr),
    /// An object store; nodes read there what they are leased.
    Store(StoreOrigin),
}

struct Inner {
    policy: Policy,
    members: BTreeMap<NodeId, Member>,
    failed: BTreeMap<NodeId, FailedNode>,
    /// Since when every read of the store failed, how many have, and the bytes that left it.
    failing: Option<Instant>,
    refusals: u64,
    from_store: u64,
    /// Why the load is over, if it failed.
    failure: Option<String>,
}

struct Member {
    address: SocketAddr,
    /// Of its torrent: the whole's, or that of a part.
    info_hash: InfoHash,
    ordinary: bool,
    complete: bool,
    seen: Instant,
    told: Option<Orders>,
    received: (u64, u64),
}

/// A node that left because it cannot become whole; forgotten when it comes again.
#[derive(Clone, Debug, Serialize)]
pub struct FailedNode {
    pub address: SocketAddr,
    /// By its own word, as `code: text`.
    pub why: String,
}

/// Both ends of a connection to the controller.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    from: SocketAddr,
    to: Option<IpAddr>,
}

impl Connected<IncomingStream<'_, TcpListener>> for Ends {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
        Self { from: *stream.remote_addr(), to: stream.io().local_addr().ok().map(|to| to.ip().to_canonical()) }
    }
}

/// What a load looks like from the controller.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    pub name: String,
    pub seconds: f64,
    pub capped: u32,
    pub relays: u32,
    pub leechers: u32,
    pub peers: u32,
    pub seeders: u32,
    pub complete: u32,
    /// By the node's number.
    pub failed: BTreeMap<NodeId, FailedNode>,
    pub origin_slots: u32,
    pub pieces: u32,
    pub pieces_not_sent: u32,
    pub leases: u64,
    pub lambda2: f64,
    /// By the members' own word: display only.
    pub from_peers: u64,
    pub from_origin: u64,
    /// By the relays' word: bytes read from the store, and reads that it refused or broke off.
    pub from_store: u64,
    pub refusals: u64,
    pub failure: Option<String>,
}

impl TorrentController {
    pub fn new(meta: Arc<Metainfo>, config: Config, origin: Origin, seed: u64) -> Arc<Self> {
        let policy = Policy::new(config, meta.layout.pieces(), seed);
        let inner = Inner {
            policy,
            members: BTreeMap::new(),
            failed: BTreeMap::new(),
            failing: None,
            refusals: 0,
            from_store: 0,
            failure: None,
        };
        let (inner, version) = (Mutex::new(inner), watch::channel(0).0);
        Arc::new(Self { meta, start: Instant::now(), origin, inner, version, freed: Notify::new() })
    }

    /// Why the load is over, if it failed: `code: text`.
    pub fn failure(&self) -> Option<String> {
        self.inner().failure.clone()
    }

    /// Ends the load, unless it has failed already: every node hears why, as `code: text`.
    pub fn fail(&self, why: String) {
        self.inner().failure.get_or_insert(why);
    }

    /// The origin's peer, where there is one. On all addresses, it is where whoever asks found the controller: by the address in its URL
    /// (which may be translated on the way), else by this end of the connection.
    fn origin_peer(&self, headers: &HeaderMap, to: Option<IpAddr>) -> Option<SocketAddr> {
        let Origin::Peer(address) = self.origin else { return None };
        let asked = host(headers).parse::<Authority>().ok();
        let asked = asked.and_then(|asked| asked.host().trim_matches(['[', ']']).parse().ok());
        let ip = [Some(address.ip()), asked, to].into_iter().flatten().find(|ip| !ip.is_unspecified())?;
        Some(SocketAddr::new(ip, address.port()))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn now(&self) -> Millis {
        self.start.elapsed().as_millis() as Millis
    }

    /// Runs the policy, and wakes who waits if something changed.
    fn with<T>(&self, act: impl FnOnce(&mut Inner, Millis) -> T) -> T {
        let mut inner = self.inner();
        let result = act(&mut inner, self.now());
        let version = inner.policy.version();
        drop(inner);
        self.version.send_if_modified(|told| std::mem::replace(told, version) != version);
        result
    }

    /// Time passes. To be called every [`TorrentController::TICK`].
    pub fn tick(&self) {
        self.with(|inner, now| {
            inner.members.retain(|_, m| m.seen.elapsed() < ORDINARY_TTL);
            for (id, member) in inner.members.iter().filter(|(_, m)| m.ordinary) {
                inner.policy.announce(now, *id, Report { complete: member.complete, ..Report::default() });
            }
            inner.policy.tick(now);
        });
        self.freed.notify_waiters();
    }

    pub const TICK: Duration = TICK;

    pub fn status(&self) -> Status {
        let inner = self.inner();
        let seen = inner.policy.snapshot();
        let of = |role: Role| seen.roles[role as usize];
        Status {
            name: self.meta.name.clone(),
            seconds: self.start.elapsed().as_secs_f64(),
            capped: of(Role::Capped),
            relays: of(Role::Relay),
            leechers: of(Role::Leecher),
            peers: of(Role::Peer),
            seeders: of(Role::Seeder),
            complete: seen.complete,
            failed: inner.failed.clone(),
            origin_slots: seen.slots,
            pieces: self.meta.layout.pieces(),
            pieces_not_sent: seen.free,
            leases: seen.leases,
            lambda2: inner.policy.lambda2(),
            from_peers: inner.members.values().map(|m| m.received.0).fold(0, u64::saturating_add),
            from_origin: inner.members.values().map(|m| m.received.1).fold(0, u64::saturating_add),
            from_store: inner.from_store,
            refusals: inner.refusals,
            failure: inner.failure.clone(),
        }
    }

    /// The members, for people to look at: what one held before it came is not known here.
    pub fn nodes(&self) -> Vec<NodeDoc> {
        let node = |member: &Member| {
            let (from_peers, from_origin) = member.received;
            let bytes = from_peers.saturating_add(from_origin);
            let told = member.told.as_ref();
            NodeDoc {
                address: Some(member.address),
                state: if member.complete {
                    "whole"
                } else if bytes == 0 {
                    "waiting"
                } else {
                    "loading"
                },
                bytes,
                from_peers,
                from_origin,
                sources: told.map_or(0, |orders| orders.neighbours.len() + usize::from(orders.origin)),
            }
        };
        self.inner().members.values().map(node).collect()
    }

    /// Everything over HTTP; serve it with connect info.
    pub fn router(self: &Arc<Self>) -> Router {
        Router::new()
            .route("/announce", get(ordinary))
            .route("/swarm/announce", post(ours))
            .route("/swarm/lease", post(leases::lease))
            .route("/swarm/hashes/{chunk}", get(leases::hashes))
            .route("/swarm/status", get(|State(this): State<Arc<Self>>| async move { Json(this.status()) }))
            .route("/{name}", get(metainfo))
            .with_state(self.clone())
    }

    /// The pieces of the torrent that is spoken of.
    fn check(&self, info_hash: Option<InfoHash>, token: &str) -> Result<Range<u32>, Error> {
        let pieces = info_hash.and_then(|hash| self.meta.pieces_of(&hash)).ok_or(Error::Unknown)?;
        // Digests, so that the time taken says nothing of the token.
        let same = announce_digest(token) == announce_digest(&self.meta.token);
        if same { Ok(pieces) } else { Err(Error::Token) }
    }

    /// A member speaks for itself alone.
    fn speaks(&self, id: NodeId, from: SocketAddr) -> Result<(), Error> {
        let other = self.inner().members.get(&id).is_some_and(|member| member.address.ip() != from.ip());
        if other { Err(Error::Field("node")) } else { Ok(()) }
    }

    /// Announces for `id` until the orders are news to it or `wait` is over.
    async fn orders(&self, id: NodeId, member: Member, report: Report, wait: Duration) -> Option<Orders> {
        let deadline = tokio::time::Instant::now() + wait.min(WAIT_MAX);
        let mut version = self.version.subscribe();
        let known = self.with(|inner, _| {
            inner.failed.remove(&id);
            let told = inner.members.get(&id).and_then(|m| m.told.clone());
            let room = inner.members.len() < MEMBERS_MAX || inner.members.contains_key(&id);
            room.then(|| inner.members.insert(id, Member { told, ..member })).is_some()
        });
        if !known {
            return None;
        }
        let mut report = Some(report);
        loop {
            version.mark_unchanged();
            let (orders, news) = self.with(|inner, now| {
                let again =
                    Report { complete: inner.members.get(&id).is_some_and(|m| m.complete), ..Report::default() };
                let orders = inner.policy.announce(now, id, report.take().unwrap_or(again));
                let told = inner.members.get_mut(&id).map(|m| &mut m.told);
                let news = told.is_some_and(|told| told.replace(orders.clone()).as_ref() != Some(&orders));
                let fit = news && orders.role != Role::Capped;
                (orders, fit)
            });
            if news || tokio::time::timeout_at(deadline, version.changed()).await.is_err() {
                return Some(orders);
            }
        }
    }

    /// A node leaves; marked, if it says what went wrong.
    fn gone(&self, id: NodeId, address: SocketAddr, why: Option<String>) {
        let why: Option<String> = why.map(|why| plain(&why, WHY_CHARS));
        self.with(|inner, _| {
            inner.members.remove(&id);
            inner.policy.leave(id);
            if let Some(why) = why.filter(|_| inner.failed.len() < FAILED_MAX) {
                let said = FailedNode { address, why: why.clone() };
                if inner.failed.insert(id, said).is_none() {
                    tracing::warn!(%address, %why, "a node cannot become whole");
                }
            }
        });
    }

    /// Of those whom a member with this torrent can talk to: ours take all who dial, ordinary clients those with the same.
    fn addresses(&self, nodes: &[NodeId], info_hash: &InfoHash) -> Vec<SocketAddr> {
        let inner = self.inner();
        let members = nodes.iter().filter_map(|id| inner.members.get(id));
        members.filter(|m| !m.ordinary || m.info_hash == *info_hash).map(|m| m.address).collect()
    }
}

fn announce_digest(token: &str) -> [u8; 32] {
    use sha2::Digest;
    sha2::Sha256::digest(token.as_bytes()).into()
}

impl LeaseBook for TorrentController {
    fn connected(&self, node: NodeId, connected: bool) {
        self.with(|inner, _| inner.policy.connected(node, connected));
    }

    fn next(&self) -> Option<(NodeId, u32)> {
        self.with(|inner, now| inner.policy.next_lease(now))
    }

    fn sent(&self, node: NodeId, piece: u32) {
        self.with(|inner, now| inner.policy.lease_sent(now, node, piece));
    }

    fn done(&self, node: NodeId, piece: u32) {
        self.with(|inner, now| inner.policy.lease_done(now, node, piece));
    }

    fn guest(&self, theirs: &Handshake, ip: IpAddr) -> Option<NodeId> {
        let inner = self.inner();
        let id = Query::node_of(&theirs.peer_id, &theirs.info_hash);
        let by_id = inner.members.get(&id).filter(|m| m.ordinary).map(|_| id);
        let fits = |m: &Member| m.ordinary && m.address.ip() == ip && m.info_hash == theirs.info_hash;
        by_id.or_else(|| inner.members.iter().find(|(_, m)| fits(m)).map(|(id, _)| *id))
    }
}

fn host(headers: &HeaderMap) -> &str {
    headers.get("host").and_then(|h| h.to_str().ok()).unwrap_or("localhost")
}

async fn metainfo(
    State(this): State<Arc<TorrentController>>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let name = name.strip_suffix(".torrent").unwrap_or(&name);
    let announce = format!("http://{}/announce?token={}", host(&headers), this.meta.token);
    let torrent = match query.as_deref() {
        _ if name != this.meta.name => this.meta.encode_part(name, &announce),
        Some("pieces=0") => Some(this.meta.without_pieces().encode(&announce)),
        _ => Some(this.meta.encode(&announce)),
    };
    match torrent {
        Some(torrent) => ([("content-type", "application/x-bittorrent")], torrent).into_response(),
        None => (StatusCode::NOT_FOUND, "no such swarm here\n").into_response(),
    }
}

async fn ordinary(
    State(this): State<Arc<TorrentController>>,
    ConnectInfo(Ends { from, to }): ConnectInfo<Ends>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let refuse = |error: Error| error.bencoded().into_response();
    let query = match Query::parse(&query.unwrap_or_default()) {
        Ok(query) => query,
        Err(error) => return refuse(error),
    };
    let id = query.node();
    let checked = this.check(Some(query.info_hash), &query.token);
    let pieces = match checked.and_then(|pieces| this.speaks(id, from).map(|()| pieces)) {
        Ok(pieces) => pieces,
        Err(error) => return refuse(error),
    };
    if query.stopped {
        this.gone(id, SocketAddr::new(from.ip(), query.port), None);
        return announce::compact(ORDINARY_INTERVAL_S, &[]).into_response();
    }
    let complete = query.left == 0;
    let member = Member {
        address: SocketAddr::new(from.ip(), query.port),
        info_hash: query.info_hash,
        ordinary: true,
        complete,
        seen: Instant::now(),
        told: None,
        received: (0, 0),
    };
    let demand = vec![Demand { range: pieces, seed_only: false }];
    let report = Report { complete, demand, ..Report::default() };
    let Some(orders) = this.orders(id, member, report, Duration::from_secs(3)).await else {
        return refuse(Error::Unknown);
    };
    let mut peers = this.addresses(&orders.neighbours, &query.info_hash);
    if orders.role != Role::Capped && peers.len() < ORDINARY_PEERS {
        let others: Vec<_> =
            this.inner().members.keys().copied().filter(|other| *other != id).take(ORDINARY_PEERS).collect();
        peers.extend(this.addresses(&others, &query.info_hash));
    }
    if orders.origin {
        peers.extend(this.origin_peer(&headers, to));
    }
    peers.sort();
    peers.dedup();
    announce::compact(ORDINARY_INTERVAL_S, &peers).into_response()
}

async fn ours(
    State(this): State<Arc<TorrentController>>,
    ConnectInfo(Ends { from, to }): ConnectInfo<Ends>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let origin = this.origin_peer(&headers, to);
    match ours_checked(&this, from, origin, &body).await {
        Ok(orders) => Json(orders).into_response(),
        Err(error) => refused(&error),
    }
}

fn refused(error: &Error) -> Response {
    let status = if matches!(error, Error::Token) { StatusCode::FORBIDDEN } else { StatusCode::BAD_REQUEST };
    (status, format!("{}: {error}\n", error.code())).into_response()
}

async fn ours_checked(
    this: &TorrentController,
    from: SocketAddr,
    origin: Option<SocketAddr>,
    body: &[u8],
) -> Result<PeerOrders, Error> {
    let said = PeerReport::parse(body)?;
    this.check(said.info_hash(), &said.token)?;
    let info_hash = this.meta.info_hash;
    let report = said.report(this.meta.layout.pieces())?;
    this.speaks(said.node, from)?;
    let address = SocketAddr::new(from.ip(), said.port);
    if said.stopped || said.failed.is_some() {
        this.gone(said.node, address, said.failed);
        return Ok(PeerOrders {
            role: "gone".into(),
            interval_ms: 0,
            peers: vec![],
            guests: vec![],
            origin: None,
            store: false,
            stop: true,
            why: None,
        });
    }
    let member = Member {
        address,
        info_hash,
        ordinary: false,
        complete: said.complete,
        seen: Instant::now(),
        told: None,
        received: said.received,
    };
    let wait = Duration::from_millis(said.wait_ms);
    let orders = this.orders(said.node, member, report, wait).await.ok_or(Error::Unknown)?;
    let why = this.failure();
    let peers = this.addresses(&orders.neighbours, &info_hash);
    let guests = this.inner().members.values().filter(|m| m.ordinary).map(|m| m.address.ip()).collect();
    Ok(PeerOrders {
        role: format!("{:?}", orders.role).to_lowercase(),
        interval_ms: orders.interval_ms,
        peers,
        guests,
        origin: origin.filter(|_| orders.origin),
        store: matches!(this.origin, Origin::Store(_)),
        stop: why.is_some(),
        why,
    })
}
