//! `starling swarm`: the overlay by itself, without XMPP or a broker.
//!
//! `serve` is controller and origin in one; `get` is a peer. Exit codes: 0 whole and verified, 3 the controller or its metainfo
//! is at fault, 4 the disk is, 5 no byte came for too long, 130 interrupted (what arrived is kept).

use std::io::{IsTerminal, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use storage::overlay::client::Controller;
use storage::overlay::layout::Layout;
use storage::overlay::metainfo::{File, GroupHash, Maker, Metainfo};
use storage::overlay::peer::{Config, LeaseBook, Peer, Place, Progress};
use storage::overlay::policy::{self, Mode};
use storage::overlay::store::{Files, Store};
use tokio::net::TcpListener;

use crate::torrent_controller::TorrentController;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a file or a directory: torrent controller and origin in one
    Serve(ServeArgs),
    /// Fetch what `serve` serves, and give it on
    Get(GetArgs),
}

#[derive(Debug, Args)]
pub struct ServeArgs {
    /// File or directory to serve
    pub source: PathBuf,
    /// Address and port of the controller (HTTP); the origin's peer takes another port of the same address
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
    /// Who gives what to whom: ours; or, to compare with, paper, plain, central, tree
    #[arg(long, default_value = "ours")]
    pub mode: Mode,
    /// Leases that the origin sends at once, at most
    #[arg(long, default_value_t = 1024)]
    pub streams: u32,
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

/// Groups being written at once, and connections, for a peer and for the origin.
const PEER_SLOTS: usize = 4;
const PEER_CONNECTIONS: usize = 64;
const ORIGIN_CONNECTIONS: usize = 16_384;

/// Why a command ended early: its exit code, and what to say.
#[derive(Debug)]
pub struct Failure {
    pub exit: u8,
    pub text: String,
}

impl Failure {
    fn new(exit: u8, code: &str, text: impl std::fmt::Display) -> Self {
        Self { exit, text: format!("{code}: {text}") }
    }
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

/// A swarm being served: controller, origin, and the task that lets time pass.
pub struct Served {
    pub url: String,
    pub controller: Arc<TorrentController>,
    pub origin: Peer,
    service: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.service.abort();
    }
}

/// Hashes the source and starts serving it.
pub async fn open(args: &ServeArgs) -> Result<Served, Failure> {
    let token = args.token.clone().unwrap_or_else(|| uuid::Uuid::new_v4().simple().to_string());
    let source = args.source.clone();
    let scanned = tokio::task::spawn_blocking(move || scan(&source, &token)).await;
    let (meta, hashes, files) = scanned.map_err(|e| Failure::new(4, "source-unreadable", e))??;
    let meta = Arc::new(meta);
    let cannot = |e: std::io::Error| Failure::new(3, "cannot-listen", e);
    let http = TcpListener::bind(args.listen).await.map_err(cannot)?;
    let listen = http.local_addr().map_err(cannot)?;
    // The controller names the origin's address, and the origin asks the controller: find the port first.
    let at = free_port(SocketAddr::new(listen.ip(), args.peer_port)).await.map_err(cannot)?;
    let config =
        policy::Config { mode: args.mode, expected: args.expect, slots_max: args.streams, ..policy::Config::default() };
    let controller = TorrentController::new(meta.clone(), config, at, seed());
    let config = Config {
        listen: at,
        rate: args.rate.0,
        upload_slots: PEER_SLOTS,
        connections_max: ORIGIN_CONNECTIONS,
        node: seed(),
    };
    let hashes = hashes.into_iter().map(Some).collect();
    // In a plain swarm the origin is a seed like any other.
    let book = (args.mode != Mode::Plain).then(|| controller.clone() as Arc<dyn LeaseBook>);
    let origin = Peer::start(meta.clone(), hashes, Place::Whole(files), config, book);
    let origin = origin.await.map_err(cannot)?;
    let router = controller.router().into_make_service_with_connect_info::<SocketAddr>();
    let ticking = controller.clone();
    let service = tokio::spawn(async move {
        let passing = async {
            loop {
                tokio::time::sleep(TorrentController::TICK).await;
                ticking.tick();
            }
        };
        tokio::select! {
            ended = async { axum::serve(http, router).await } => ended,
            () = passing => Ok(()),
        }
    });
    Ok(Served { url: format!("http://{listen}/{}", meta.name), controller, origin, service })
}

async fn serve(args: ServeArgs) -> Result<(), Failure> {
    let mut served = open(&args).await?;
    let status = served.controller.status();
    let bytes = served.origin.progress().bytes_held;
    if args.json {
        println!("{}", json!({"event": "serving", "url": served.url, "bytes": bytes, "peer": served.origin.address}));
    } else {
        println!("serving {} ({bytes} bytes) at {}", status.name, served.url);
    }
    let bar = bar(args.json, u64::from(status.pieces));
    let mut second = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            _ = second.tick() => show_status(&served.controller, &served.origin, args.json, &bar),
            ended = &mut served.service => {
                let why = ended.map_err(|e| e.to_string()).and_then(|e| e.map_err(|e| e.to_string()));
                return Err(Failure::new(3, "controller-ended", why.err().unwrap_or_default()));
            }
            () = interrupted() => return Ok(()),
        }
    }
}

fn show_status(controller: &TorrentController, peer: &Peer, as_json: bool, bar: &ProgressBar) {
    let status = controller.status();
    let given = peer.progress().given;
    if as_json {
        let value = serde_json::to_value(&status).unwrap_or_default();
        println!("{}", json!({"event": "status", "status": value, "given": given}));
    } else {
        bar.set_position(u64::from(status.pieces - status.pieces_not_sent));
        let nodes = status.capped + status.relays + status.leechers + status.peers + status.seeders;
        bar.set_message(format!(
            "{nodes} nodes, {} complete, {given} bytes given, λ2 {:.2}",
            status.complete, status.lambda2
        ));
    }
}

/// A port that is free now; the peer binds it again with address reuse.
async fn free_port(wanted: SocketAddr) -> std::io::Result<SocketAddr> {
    TcpListener::bind(wanted).await?.local_addr()
}

/// Reads the source once and hashes it.
fn scan(source: &Path, token: &str) -> Result<(Metainfo, Vec<Vec<GroupHash>>, Files), Failure> {
    let fail = |e: std::io::Error| Failure::new(4, "source-unreadable", format!("{}: {e}", source.display()));
    let path = source.canonicalize().map_err(fail)?;
    let name = path.file_name().and_then(|n| n.to_str());
    let name = name.ok_or_else(|| Failure::new(4, "source-name", "the source's name is not UTF-8"))?.to_owned();
    let mut list = Vec::new();
    if path.is_dir() {
        walk(&path, &mut Vec::new(), &mut list).map_err(fail)?;
    } else {
        list.push(File { path: vec![], len: path.metadata().map_err(fail)?.len() });
    }
    let total = list.iter().map(|f| f.len).sum();
    let layout =
        Layout::for_total(total).ok_or_else(|| Failure::new(4, "source-empty", "there are no bytes to serve"))?;
    let mut maker = Maker::new(layout);
    let mut buffer = vec![0; 1 << 20];
    for file in &list {
        let mut reader =
            std::fs::File::open(file.path.iter().fold(path.clone(), |p, part| p.join(part))).map_err(fail)?;
        loop {
            match reader.read(&mut buffer).map_err(fail)? {
                0 => break,
                n => maker.update(&buffer[..n]),
            }
        }
    }
    let files = Files::open(&path, &list).map_err(|e| Failure::new(4, e.code(), format!("{e}: {}", e.source)))?;
    let made = maker.finish(&name, list, token);
    let (meta, hashes) =
        made.ok_or_else(|| Failure::new(4, "source-changed", "the source changed while it was read"))?;
    Ok((meta, hashes, files))
}

fn walk(dir: &Path, prefix: &mut Vec<String>, list: &mut Vec<File>) -> std::io::Result<()> {
    let mut entries: Vec<_> = std::fs::read_dir(dir)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(|e| e.file_name());
    for entry in entries {
        let name = entry.file_name().into_string().map_err(|_| std::io::Error::other("a file name is not UTF-8"))?;
        let kind = entry.file_type()?;
        prefix.push(name);
        if kind.is_dir() {
            walk(&entry.path(), prefix, list)?;
        } else if kind.is_file() {
            list.push(File { path: prefix.clone(), len: entry.metadata()?.len() });
        }
        prefix.pop();
    }
    Ok(())
}

// ---- get ----

async fn get(args: GetArgs) -> Result<(), Failure> {
    let started = Instant::now();
    let at_fault = |e: storage::overlay::client::Error| Failure::new(3, e.code(), chain(&e));
    let controller = Controller::new(&args.url, args.listen.ip()).map_err(at_fault)?;
    let meta = Arc::new(controller.metainfo().await.map_err(at_fault)?);
    let on_disk =
        |e: storage::overlay::store::Error| Failure::new(4, e.code(), format!("{e}: {}; {}", e.source, e.hint()));
    let (store, have) = Store::open(&args.dir, &meta).map_err(on_disk)?;
    let resumed = have.count();
    let node = seed();
    let config = Config {
        listen: args.listen,
        rate: args.rate.0,
        upload_slots: PEER_SLOTS,
        connections_max: PEER_CONNECTIONS,
        node,
    };
    let peer = Peer::start(meta.clone(), Vec::new(), Place::Filling(store, have), config, None).await;
    let peer = peer.map_err(|e| Failure::new(3, "cannot-listen", e))?;
    let (end, path) = tokio::select! {
        () = controller.follow(&peer, &meta, node, args.rack) => unreachable_follow(),
        end = fill_and_seed(&peer, &meta, &args, started, resumed) => end,
        () = interrupted() => (Err(Failure { exit: 130, text: "interrupted; the next run goes on from here".into() }), None),
    };
    controller.leave(&peer, &meta, node).await;
    peer.stop().await;
    // Interrupted while seeding is not a failure: the file is whole.
    if path.is_some() { Ok(()) } else { end }
}

type End = (Result<(), Failure>, Option<PathBuf>);

fn unreachable_follow() -> End {
    (Err(Failure::new(3, "controller-ended", "announcing ended")), None)
}

async fn fill_and_seed(peer: &Peer, meta: &Metainfo, args: &GetArgs, started: Instant, resumed: u32) -> End {
    let bar = bar(args.json, meta.layout.total());
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

fn bar(as_json: bool, len: u64) -> ProgressBar {
    if as_json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {percent}% {bytes_per_sec} {eta} {msg}");
    let bar = ProgressBar::new(len);
    style.map_or(bar.clone(), |style| bar.with_style(style))
}

fn chain(error: &dyn std::error::Error) -> String {
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

async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut term) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        _ = term.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
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
