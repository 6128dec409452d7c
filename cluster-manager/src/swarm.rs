//! `starling swarm`: the overlay by itself, without XMPP or a broker.
//!
//! `serve` is controller and origin in one; `get` is a peer. Exit codes: 0 whole and verified, 2 usage, 3 the controller, its metainfo
//! or the store is at fault, 4 the disk is, 5 no byte came for too long, 130 interrupted (what arrived is kept).

pub mod source;

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use futures::future::{self, OptionFuture};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use storage::hex::percent_encoded;
use storage::overlay::client::{Controller, Member, Stopped};
use storage::overlay::layout::Layout;
use storage::overlay::metainfo::{GroupHash, Metainfo};
use storage::overlay::partition::{self, Part};
use storage::overlay::peer::{Config, LeaseBook, Peer, Place, Progress};
use storage::overlay::policy::{self, Mode};
use storage::overlay::store::Store;
use tokio::net::TcpListener;

use self::source::{Hashed, Held, Opened, Original, Source, StoreArgs, Wanted};
use crate::torrent_controller::{self, Ends, LEASE_MS_MIN, Origin, Status, StoreOrigin, TorrentController};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a file, a directory or objects of a store: torrent controller and origin in one
    #[command(after_help = "\
Examples:
  starling swarm serve set.bin --listen 10.0.0.1:7000
  AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=… starling swarm serve s3://films/set/ --endpoint http://10.0.0.9:9000 --json

Objects are read once, hashed, and kept in --cache, which then is the origin; with --from-store they are not kept, and the nodes
read them from the store under leases. Either way a later run goes on with what the cache holds.

Exit codes: 0 interrupted while serving, 2 usage, 3 the store or the address, 4 the source or the disk, 130 interrupted before.")]
    Serve(ServeArgs),
    /// Fetch what `serve` serves, and give it on
    #[command(after_help = "\
Examples:
  starling swarm get http://10.0.0.1:7000/set.bin --dir /data --rate none
  starling swarm get http://10.0.0.1:7000/set.bin --dir /data --part 3/20 --overlap 0.3

Exit codes: 0 whole and verified, 2 usage, 3 the controller, its metainfo or the store, 4 the disk, 5 no byte came for too long,
130 interrupted; what arrived is kept, and the next run goes on from it.")]
    Get(GetArgs),
}

#[derive(Debug, Args)]
pub struct ServeArgs {
    /// File, directory, or s3://BUCKET/KEY-or-PREFIX to serve
    pub source: Source,
    #[command(flatten)]
    pub store: StoreArgs,
    /// Where hashes (and the bytes of objects) are kept until unused for 30 days; ~/.cache/starling/swarm unless given
    #[arg(long, env = "STARLING_CACHE", value_name = "DIR")]
    pub cache: Option<PathBuf>,
    /// Keep no bytes of objects here: nodes read them from the store under leases
    #[arg(long)]
    pub from_store: bool,
    /// How long the store may refuse every read before the load is given up
    #[arg(long, default_value = "120s", value_parser = parse_duration)]
    pub origin_patience: Duration,
    /// Address and port of the controller (HTTP); the origin's peer takes another port of the same address. On all addresses, the
    /// URL printed bears this machine's name
    #[arg(long, default_value = "0.0.0.0:7000")]
    pub listen: SocketAddr,
    /// Port of the origin's peer; 0 = any
    #[arg(long, default_value_t = 0)]
    pub peer_port: u16,
    /// Upload limit, such as 10MB or 20mbit per second, or `none`
    #[arg(long, default_value = "none", value_parser = parse_rate)]
    pub rate: Rate,
    /// Number of nodes that will come, if it is known
    #[arg(long, default_value_t = 0)]
    pub expect: u32,
    /// Secret of the swarm; needed to resume a load after `serve` was restarted. Random if absent
    #[arg(long, env = "STARLING_SWARM_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Also serve torrents of N equal parts, at URL.1-of-N to URL.N-of-N, for ordinary clients
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub parts: Option<u32>,
    /// Who gives what to whom: ours; or, to compare with, paper, plain, central, tree
    #[arg(long, default_value = "ours")]
    pub mode: Mode,
    /// Leases that the origin can send at once, where that is known; else it is found, up to 1024
    #[arg(long)]
    pub streams: Option<u32>,
    /// Print one JSON object per line
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct GetArgs {
    /// The URL that `serve` printed: http://HOST:PORT/NAME
    pub url: String,
    /// Where to put it
    #[arg(long, default_value = ".")]
    pub dir: PathBuf,
    /// Limit each way, such as 10MB or 20mbit per second, or `none`
    #[arg(long, default_value = "10MB", value_parser = parse_rate)]
    pub rate: Rate,
    /// How long to give it on afterwards, such as 30s or 5m
    #[arg(long, default_value = "30s", value_parser = parse_duration)]
    pub seed_for: Duration,
    /// Address and port to listen on for other peers; port 0 = any
    #[arg(long, default_value = "0.0.0.0:0")]
    pub listen: SocketAddr,
    /// Take one of N equal parts, such as 3/20: it becomes the file NAME.3-of-20
    #[arg(long, value_parser = parse_share, value_name = "I/N")]
    pub part: Option<Share>,
    /// With --part: hold this share of the next part too, for others
    #[arg(long, default_value_t = 0.0, requires = "part", value_parser = parse_overlap)]
    pub overlap: f64,
    /// Number of this machine's rack: peers of the same rack are preferred
    #[arg(long, default_value_t = 0)]
    pub rack: u32,
    /// Give up when no byte came for so long
    #[arg(long, default_value = "120s", value_parser = parse_duration)]
    pub patience: Duration,
    /// Print one JSON object per line
    #[arg(long)]
    pub json: bool,
}

/// Bytes per second; `None` = no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(pub Option<u64>);

impl Rate {
    /// As the bound counts: infinite without a limit.
    pub fn per_second(self) -> f64 {
        self.0.map_or(f64::INFINITY, |rate| rate as f64)
    }
}

/// One of `of` parts, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    pub number: usize,
    pub of: usize,
}

/// The origin is everybody's neighbour.
const ORIGIN_CONNECTIONS: usize = 16_384;
/// Between looks at the files that are served.
const LOOK_AT_SOURCE: Duration = Duration::from_secs(1);
/// How long a failed load is still told to its nodes, in seconds.
const LAST_WORDS_S: u32 = 5;

/// Why a command ended early: its exit code, and what to say.
#[derive(Debug)]
pub struct Failure {
    pub exit: u8,
    pub text: String,
}

impl Failure {
    pub fn new(exit: u8, code: &str, text: impl std::fmt::Display) -> Self {
        Self { exit, text: format!("{code}: {text}") }
    }
}

pub fn interruption() -> Failure {
    Failure { exit: 130, text: "interrupted; the next run goes on from here".into() }
}

pub async fn run(command: Command) -> ExitCode {
    let done = match command {
        Command::Serve(args) => serve(args).await,
        Command::Get(args) => get(args).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("swarm: {}", failure.text);
            ExitCode::from(failure.exit)
        }
    }
}

// ---- serve ----

impl ServeArgs {
    /// Any free port of this machine alone, and no limits.
    pub fn on_loopback(source: Source) -> Self {
        Self {
            source,
            store: StoreArgs::default(),
            cache: None,
            from_store: false,
            origin_patience: Duration::from_secs(120),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            peer_port: 0,
            rate: Rate(None),
            expect: 0,
            token: None,
            parts: None,
            mode: Mode::Ours,
            streams: None,
            json: false,
        }
    }
}

/// A swarm being served: controller, origin, and the task that lets time pass.
pub struct Served {
    pub url: String,
    pub meta: Arc<Metainfo>,
    pub controller: Arc<TorrentController>,
    /// None where the nodes read from the store themselves.
    pub origin: Option<Peer>,
    /// Bytes that left the store while the source was hashed.
    pub from_store: u64,
    service: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.service.abort();
    }
}

impl Served {
    /// The group hashes of a chunk.
    pub fn hashes(&self, chunk: u32) -> Option<Vec<GroupHash>> {
        self.origin.as_ref().map_or_else(|| self.controller.hashes(chunk), |origin| origin.hashes(chunk))
    }

    /// Bytes that the origin's peer has given.
    pub fn given(&self) -> u64 {
        self.origin.as_ref().map_or(0, |origin| origin.progress().given)
    }
}

/// Hashes the source and starts serving it.
pub async fn open(args: &ServeArgs, hashed: &Arc<Hashed>) -> Result<Served, Failure> {
    let wanted = Wanted {
        source: &args.source,
        store: &args.store,
        cache: args.cache.as_deref(),
        from_store: args.from_store,
        token: args.token.as_deref(),
    };
    let opened = source::open(wanted, hashed).await?;
    start(args, opened, hashed.from_store.load(Relaxed)).await
}

/// Starts serving what was hashed; `from_store` bytes left the store for that.
pub async fn start(args: &ServeArgs, opened: Opened, from_store: u64) -> Result<Served, Failure> {
    let Opened { mut meta, hashes, held, original } = opened;
    if let Some(parts) = args.parts {
        meta = meta.with_parts(parts as usize).map_err(|e| Failure::new(2, e.code(), e))?;
    }
    let meta = Arc::new(meta);
    let cannot = |e: std::io::Error| Failure::new(3, "cannot-listen", e);
    let http = TcpListener::bind(args.listen).await.map_err(cannot)?;
    let listen = http.local_addr().map_err(cannot)?;
    let mut config = policy::Config { mode: args.mode, expected: args.expect, ..policy::Config::default() };
    (config.slots_first, config.slots_max) = (args.streams, args.streams.unwrap_or(config.slots_max));
    let (controller, origin) = match held {
        Held::Here(files) => {
            // The controller names the origin's address, and the origin asks the controller: find the port first.
            let at = free_port(SocketAddr::new(listen.ip(), args.peer_port)).await.map_err(cannot)?;
            let controller = TorrentController::new(meta.clone(), config, Origin::Peer(at), seed());
            let own = Config::new(at, seed());
            let config = Config { rate: args.rate.0, connections_max: ORIGIN_CONNECTIONS, ..own };
            let hashes = hashes.into_iter().map(Some).collect();
            // In a plain swarm the origin is a seed like any other.
            let book = (args.mode != Mode::Plain).then(|| controller.clone() as Arc<dyn LeaseBook>);
            let origin = Peer::start(meta.clone(), hashes, Place::Whole(files), config, book);
            (controller, Some(origin.await.map_err(cannot)?))
        }
        Held::Store(store, objects) => {
            let layout = &meta.layout;
            config.leases_per_node = torrent_controller::leases_per_node(layout.total(), layout.piece_len_max());
            config.lease_ms_min = LEASE_MS_MIN;
            let origin = StoreOrigin { store, objects, hashes, patience: args.origin_patience };
            (TorrentController::new(meta.clone(), config, Origin::Store(origin), seed()), None)
        }
    };
    let router = controller.router().into_make_service_with_connect_info::<Ends>();
    let ticking = controller.clone();
    let service = tokio::spawn(async move {
        let passing = async {
            loop {
                tokio::time::sleep(TorrentController::TICK).await;
                ticking.tick();
            }
        };
        let watching = OptionFuture::from(original.map(|original| watch_over(original.into(), &ticking)));
        tokio::select! {
            ended = async { axum::serve(http, router).await } => ended,
            ((), _) = future::join(passing, watching) => Ok(()),
        }
    });
    let url = swarm_url(listen, &meta.name);
    Ok(Served { url, meta, controller, origin, from_store, service })
}

/// The URL at which nodes find the swarm: on all addresses, by this machine's name. Names may hold what URLs may not.
fn swarm_url(listen: SocketAddr, name: &str) -> String {
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| "localhost".into());
    let at =
        if listen.ip().is_unspecified() { format!("{}:{}", machine.trim(), listen.port()) } else { listen.to_string() };
    format!("http://{at}/{}", percent_encoded(name))
}

/// Waits for the pass while showing it; interrupted, what it found is kept.
pub async fn open_shown(args: &ServeArgs, bar: &ProgressBar) -> Result<Served, Failure> {
    let hashed = Arc::<Hashed>::default();
    let mut opening = std::pin::pin!(open(args, &hashed));
    let second = Duration::from_secs(1);
    let mut second = tokio::time::interval_at(tokio::time::Instant::now() + second, second);
    loop {
        tokio::select! {
            opened = &mut opening => {
                if let Some(left_out) = hashed.left_out.get() {
                    bar.suspend(|| eprintln!("swarm: {left_out}"));
                }
                return opened;
            }
            _ = second.tick() => {
                let (done, total) = (hashed.done.load(Relaxed), hashed.total.load(Relaxed));
                if args.json {
                    println!("{}", json!({"event": "hashing", "bytes": done, "total": total}));
                }
                bar.set_length(total);
                bar.set_position(done);
                bar.set_message("hashing");
            }
            () = interrupted() => {
                hashed.stop.store(true, Relaxed);
                return Err(interruption());
            }
        }
    }
}

async fn serve(args: ServeArgs) -> Result<(), Failure> {
    let bar = bar(args.json, 0);
    let mut served = open_shown(&args, &bar).await?;
    let (bytes, from_store) = (served.meta.layout.total(), served.from_store);
    if args.json {
        let peer = served.origin.as_ref().map(|origin| origin.address);
        let serving = json!({"event": "serving", "url": served.url, "bytes": bytes, "peer": peer, "from_store": from_store, "parts": args.parts});
        println!("{serving}");
    } else {
        println!("serving {} ({bytes} bytes) at {}", served.meta.name, served.url);
        if let Some(parts) = args.parts {
            println!("torrents of its parts are at {url}.1-of-{parts} to {url}.{parts}-of-{parts}", url = served.url);
        }
    }
    let mut second = tokio::time::interval(Duration::from_secs(1));
    let (mut failed, mut marked) = (0, BTreeSet::new());
    loop {
        tokio::select! {
            _ = second.tick() => {
                let status = served.controller.status();
                show_status(&served, &status, args.json, &bar);
                if !args.json {
                    for node in status.failed.iter().filter(|(id, _)| !marked.contains(*id)).map(|(_, node)| node) {
                        bar.suspend(|| eprintln!("swarm: the node at {} cannot become whole: {}", node.address, node.why));
                    }
                    marked = status.failed.into_keys().collect();
                }
                if let Some(why) = served.controller.failure() {
                    // Nodes announce once a second: each hears why before the controller ends.
                    failed += 1;
                    if failed > LAST_WORDS_S {
                        return Err(Failure { exit: 3, text: why });
                    }
                }
            }
            ended = &mut served.service => {
                let why = ended.map_err(|e| e.to_string()).and_then(|e| e.map_err(|e| e.to_string()));
                return Err(Failure::new(3, "controller-ended", why.err().unwrap_or_default()));
            }
            () = interrupted() => return Ok(()),
        }
    }
}

fn show_status(served: &Served, status: &Status, as_json: bool, bar: &ProgressBar) {
    let given = served.given() + status.from_store;
    if as_json {
        let value = serde_json::to_value(status).unwrap_or_default();
        println!("{}", json!({"event": "status", "status": value, "given": given}));
    } else {
        let layout = &served.meta.layout;
        bar.set_length(layout.total());
        let sent = u64::from(status.pieces - status.pieces_not_sent) * layout.piece_len_max();
        bar.set_position(sent.min(layout.total()));
        let nodes = status.capped + status.relays + status.leechers + status.peers + status.seeders;
        let failed = if status.failed.is_empty() { String::new() } else { format!(", {} failed", status.failed.len()) };
        bar.set_message(format!(
            "{nodes} nodes, {} complete{failed}, {given} bytes given, λ2 {:.2}",
            status.complete, status.lambda2
        ));
    }
}

/// A port that is free now; the peer binds it again with address reuse.
async fn free_port(wanted: SocketAddr) -> std::io::Result<SocketAddr> {
    TcpListener::bind(wanted).await?.local_addr()
}

// ---- get ----

async fn get(args: GetArgs) -> Result<(), Failure> {
    let started = Instant::now();
    let at_fault = |e: storage::overlay::client::Error| Failure::new(3, e.code(), chain(&e));
    let controller = Controller::new(&args.url, args.listen.ip()).map_err(at_fault)?;
    let meta = Arc::new(controller.metainfo().await.map_err(at_fault)?);
    let on_disk =
        |e: storage::overlay::store::Error| Failure::new(4, e.code(), format!("{e}: {}; {}", e.source, e.hint()));
    let node = seed();
    let mut member = Member { node, rack: args.rack, demand: Vec::new() };
    let (store, have) = match args.part {
        None => Store::open(&args.dir, &meta),
        Some(share) => {
            let part = part_of(&meta.layout, share, args.overlap)?;
            member.demand = part.pieces(&meta.layout);
            Store::open_part(&args.dir, &meta, &format!("{}-of-{}", share.number, share.of), &part)
        }
    }
    .map_err(on_disk)?;
    let resumed = have.count();
    let config = Config { rate: args.rate.0, ..Config::new(args.listen, node) };
    let peer = Peer::start(meta.clone(), Vec::new(), Place::Filling(store, have), config, None).await;
    let peer = peer.map_err(|e| Failure::new(3, "cannot-listen", e))?;
    let (end, path) = tokio::select! {
        Stopped(text) = controller.follow(&peer, &meta, &member) => (Err(Failure { exit: 3, text }), peer.progress().done),
        end = fill_and_seed(&peer, &args, started, resumed) => end,
        () = interrupted() => (Err(interruption()), peer.progress().done),
    };
    controller.leave(&peer, &meta, &member).await;
    peer.stop().await;
    // Interrupted while seeding is not a failure: the file is whole.
    if path.is_some() { Ok(()) } else { end }
}

/// Ends the load once the source is no longer what was hashed.
async fn watch_over(original: Arc<Original>, controller: &TorrentController) {
    loop {
        tokio::time::sleep(LOOK_AT_SOURCE).await;
        let looked = original.clone();
        // Many files, or a file system far away, take their time.
        if tokio::task::spawn_blocking(move || looked.has_changed()).await.is_ok_and(|changed| changed) {
            let path = original.path.display();
            return controller.fail(format!("origin-changed: {path} changed while it was served; serve it again"));
        }
    }
}

/// The bytes of one share: parts are equal, and cut where pieces are.
pub fn part_of(layout: &Layout, share: Share, overlap: f64) -> Result<Part, Failure> {
    let total = layout.total();
    let binary = partition::Binary { align: layout.piece_len_max() };
    let mut parts = binary.of_length(total, share.of).map_err(|e| Failure::new(2, e.code(), e))?;
    partition::overlap(&mut parts, overlap);
    // Seed-only ranges are held by whole pieces.
    let align = layout.piece_len_max();
    parts.iter_mut().flat_map(|p| &mut p.seed_only).for_each(|r| r.end = r.end.next_multiple_of(align).min(total));
    let part = parts.into_iter().nth(share.number.wrapping_sub(1)).filter(|part| !part.own.is_empty());
    let none = || format!("{} pieces cannot be cut into {} parts", layout.pieces(), share.of);
    part.ok_or_else(|| Failure::new(2, "partition-count", none()))
}

type End = (Result<(), Failure>, Option<PathBuf>);

async fn fill_and_seed(peer: &Peer, args: &GetArgs, started: Instant, resumed: u32) -> End {
    let bar = bar(args.json, peer.progress().bytes_wanted);
    let mut last_growth = (Instant::now(), 0);
    let mut told = Instant::now();
    let mut watch = peer.watch();
    let path = loop {
        // The peer speaks at least ten times a second.
        let _ = watch.changed().await;
        let progress = watch.borrow_and_update().clone();
        if let Some(why) = progress.failed {
            return (Err(Failure { exit: 4, text: why }), None);
        }
        if progress.groups_held > last_growth.1 {
            last_growth = (Instant::now(), progress.groups_held);
        } else if last_growth.0.elapsed() > args.patience {
            return (
                Err(Failure::new(5, "stalled", "no byte came; is the controller there? What arrived is kept")),
                None,
            );
        }
        bar.set_position(progress.bytes_held);
        if args.json && told.elapsed() >= Duration::from_secs(1) {
            told = Instant::now();
            println!("{}", event("progress", &progress, started));
        }
        if let Some(path) = progress.done.clone() {
            finish_line(args.json, &bar, &progress, &path, started, resumed);
            break path;
        }
    };
    tokio::select! {
        () = tokio::time::sleep(args.seed_for) => {}
        () = interrupted() => {}
    }
    (Ok(()), Some(path))
}

fn finish_line(as_json: bool, bar: &ProgressBar, progress: &Progress, path: &Path, started: Instant, resumed: u32) {
    bar.finish_and_clear();
    if as_json {
        let mut line = event("done", progress, started);
        line["path"] = json!(path);
        line["resumed_groups"] = json!(resumed);
        println!("{line}");
    } else {
        let (seconds, bytes) = (started.elapsed().as_secs_f64(), progress.bytes_held);
        let share = 100.0 * progress.from_peers as f64 / (progress.from_peers + progress.from_origin).max(1) as f64;
        println!("{}: {bytes} bytes, verified, in {seconds:.1} s; {share:.0} % from peers", path.display());
    }
}

fn event(name: &str, progress: &Progress, started: Instant) -> serde_json::Value {
    json!({
        "event": name,
        "seconds": started.elapsed().as_secs_f64(),
        "bytes": progress.bytes_held,
        "from_peers": progress.from_peers,
        "from_origin": progress.from_origin,
        "given": progress.given,
        "wasted": progress.wasted,
        "connections": progress.connections,
        "blamed": progress.blamed,
    })
}

// ---- small things ----

pub fn bar(as_json: bool, len: u64) -> ProgressBar {
    if as_json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {percent}% {bytes_per_sec} {eta} {msg}");
    let bar = ProgressBar::new(len);
    style.map_or(bar.clone(), |style| bar.with_style(style))
}

pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn seed() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0
}

pub async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut term) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        _ = term.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

/// A share from 0 to 1.
pub fn parse_overlap(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "a share from 0 to 1 is meant, such as 0.3".to_owned())
}

/// `10MB`, `500k`, `20mbit`, plain bytes, or `none`; per second.
pub fn parse_rate(text: &str) -> Result<Rate, String> {
    let lower = text.trim().to_ascii_lowercase();
    if lower == "none" {
        return Ok(Rate(None));
    }
    let digits = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let number: f64 = number.parse().map_err(|_| format!("{text:?} is not a rate, such as 10MB, 20mbit or none"))?;
    let factor = match unit.trim().trim_end_matches("/s") {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "kbit" => 125.0,
        "mbit" => 125e3,
        "gbit" => 125e6,
        unit => return Err(format!("unknown unit {unit:?}: use k, MB, GB, mbit or gbit")),
    };
    let rate = number * factor;
    if rate >= 1.0 {
        Ok(Rate(Some(rate as u64)))
    } else {
        Err("a rate of nothing fetches nothing; use `none` for no limit".into())
    }
}

/// `3/20`.
pub fn parse_share(text: &str) -> Result<Share, String> {
    let share = text.split_once('/').and_then(|(i, n)| Some(Share { number: i.parse().ok()?, of: n.parse().ok()? }));
    let share = share.filter(|s| (1..=s.of).contains(&s.number));
    share.ok_or_else(|| format!("{text:?} is not a part, such as 3/20"))
}

/// `30s`, `5m`, `2h`, `500ms`, or plain seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is not a time, such as 30s or 5m"))?;
    let millis = match unit {
        "ms" => Some(1),
        "" | "s" => Some(1000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    let millis = millis.and_then(|factor| number.checked_mul(factor));
    millis.map(Duration::from_millis).ok_or_else(|| format!("{text:?} is not a time, such as 30s or 5m"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_bar_of_serve_counts_bytes_that_were_sent() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("set"), [7; 300_000]).unwrap();
        let args = ServeArgs::on_loopback(Source::Local(dir.path().join("set")));
        let served = open(&args, &Default::default()).await.unwrap();
        let (status, bar) = (served.controller.status(), ProgressBar::hidden());
        for (not_sent, bytes) in [(status.pieces, 0), (status.pieces - 1, 16_384), (0, 300_000)] {
            show_status(&served, &Status { pieces_not_sent: not_sent, ..status.clone() }, false, &bar);
            assert_eq!((bar.position(), bar.length()), (bytes, Some(300_000)));
        }
    }

    #[test]
    fn rates_are_read_in_bytes_and_bits() {
        assert_eq!(parse_rate("none"), Ok(Rate(None)));
        assert_eq!(parse_rate("20mbit"), Ok(Rate(Some(2_500_000))));
        assert_eq!(parse_rate("10MB/s"), Ok(Rate(Some(10_000_000))));
        ["", "x", "0", "-1", "5 miles"].iter().for_each(|bad| assert!(parse_rate(bad).is_err(), "{bad}"));
    }

    #[test]
    fn times_are_read_with_units() {
        assert_eq!(parse_duration("5m"), Ok(Duration::from_secs(300)));
        ["", "m", "1y", "99999999999999999h"].iter().for_each(|bad| assert!(parse_duration(bad).is_err(), "{bad}"));
    }
}
