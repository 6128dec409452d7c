//! `starling load`: one source onto N nodes of this machine, each with a directory of its own, and the life of the load before one's eyes.
//!
//! Nothing is imitated: a torrent controller with its origin as in `swarm serve`, and N peers as in `swarm get`, that meet over TCP.
//! Exit codes are those of `starling swarm`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use clap::Args;
use futures::future::try_join_all;
use indicatif::ProgressBar;
use serde::Serialize;
use serde_json::json;
use storage::overlay::bound::{Bound, Node as BoundNode, lower_bound};
use storage::overlay::client::{Controller, Joined, Member, Unfinished};
use storage::overlay::peer::{Config, Peer, Place, Progress};
use storage::overlay::store::{self, Store};

use crate::swarm::source::{Source, StoreArgs};
use crate::swarm::{self, Failure, Rate, ServeArgs, Served, Share, parse_duration, parse_overlap, parse_rate};
use crate::view::NodeDoc;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=… starling load s3://films/set/ --endpoint http://10.0.0.9:9000 --to 20 --dir /data
  starling load set.bin --to 4 --dir /tmp/four --rate 20mbit --origin-rate 20mbit --json
  starling load s3://films/big --to 4 --dir /data --parts --overlap 0.3 --from-store

Node I keeps its bytes in DIR/I, under their final name when whole and verified. What is interrupted goes on with the next run.

Exit codes: 0 all nodes whole, 2 usage, 3 the store or the controller, 4 a disk, 5 no byte came for too long, 130 interrupted.")]
pub struct LoadArgs {
    /// File, directory, or s3://BUCKET/KEY-or-PREFIX
    pub source: Source,
    #[command(flatten)]
    pub store: StoreArgs,
    /// Number of nodes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub to: u32,
    /// Directory of the nodes' directories 0 to N-1
    #[arg(long)]
    pub dir: PathBuf,
    /// Each node takes its share, 1/N, and not all
    #[arg(long)]
    pub parts: bool,
    /// With --parts: hold this share of the next part too, for others
    #[arg(long, default_value_t = 0.0, requires = "parts", value_parser = parse_overlap)]
    pub overlap: f64,
    /// Each node's limit each way, such as 10MB or 20mbit per second, or `none`
    #[arg(long, default_value = "none", value_parser = parse_rate)]
    pub rate: Rate,
    /// What the origin gives, per second; with --from-store the store's own limit, for the bound only
    #[arg(long, default_value = "none", value_parser = parse_rate)]
    pub origin_rate: Rate,
    /// Keep no copy of objects here: nodes read them from the store under leases
    #[arg(long)]
    pub from_store: bool,
    /// Where hashes (and the bytes of objects) are kept until unused for 30 days; ~/.cache/starling/swarm unless given
    #[arg(long, env = "STARLING_CACHE", value_name = "DIR")]
    pub cache: Option<PathBuf>,
    /// Give up when no node got a byte for so long
    #[arg(long, default_value = "120s", value_parser = parse_duration)]
    pub patience: Duration,
}

/// The last line of `--json`.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub event: &'static str,
    pub nodes: usize,
    /// Bytes of the source, and bytes that the nodes took in.
    pub bytes: u64,
    pub taken_in: u64,
    /// Hashing (only what was not known), then loading until the last node was whole.
    pub hashing_seconds: f64,
    pub seconds: f64,
    pub node_seconds: Vec<f64>,
    pub node_ends: Vec<NodeDoc>,
    /// Copies of each byte that left the origin while loading, and the store in all.
    pub origin_copies: f64,
    pub store_copies: f64,
    pub wasted: u64,
    /// Absent where no rate is limited.
    pub lower_bound_seconds: Option<f64>,
    pub binding_cut: Option<&'static str>,
    pub ratio: Option<f64>,
    /// `[seconds, λ2]`, once a second while it was another.
    pub lambda2: Vec<(f64, f64)>,
}

pub async fn run(args: LoadArgs, json: bool) -> ExitCode {
    match load(&args, json).await {
        Ok(report) if json => println!("{}", serde_json::to_string(&report).unwrap_or_default()),
        Ok(report) => print!("{}", words(&report)),
        Err(failure) => {
            eprintln!("load: {}", failure.text);
            return ExitCode::from(failure.exit);
        }
    }
    ExitCode::SUCCESS
}

pub async fn load(args: &LoadArgs, json: bool) -> Result<Report, Failure> {
    let began = Instant::now();
    let serve = ServeArgs {
        store: args.store.clone(),
        cache: args.cache.clone(),
        from_store: args.from_store,
        origin_patience: args.patience,
        expect: args.to,
        rate: args.origin_rate,
        json,
        ..ServeArgs::on_loopback(args.source.clone())
    };
    let bar = swarm::bar(json, 0);
    let served = swarm::open_shown(&serve, &bar).await?;
    let hashing_seconds = began.elapsed().as_secs_f64();
    let began = Instant::now();
    let mut nodes = Vec::new();
    for number in 0..args.to {
        nodes.push(Node::start(args, &served, number).await?);
    }
    let mut life = Life { began, lambda2: Vec::new(), json, bar };
    if let Err(failure) = life.until_whole(&nodes, &served, args.patience).await {
        // What arrived is kept, and said so on disk.
        end(nodes).await;
        return Err(failure);
    }
    let bound = bound(args, &nodes);
    let report = life.report(&nodes, &served, hashing_seconds, &bound);
    end(nodes).await;
    Ok(report)
}

async fn end(nodes: Vec<Node>) {
    for joined in nodes.into_iter().filter_map(|node| node.joined) {
        joined.end().await;
    }
}

/// The least time that this load could have taken.
fn bound(args: &LoadArgs, nodes: &[Node]) -> Bound {
    let (up, down) = (args.rate.per_second(), args.rate.per_second());
    let nodes = nodes.iter().map(|node| BoundNode { demand: node.demand.clone(), up, down, rack: 0 });
    lower_bound(&Vec::from_iter(nodes), args.origin_rate.per_second(), &[])
}

/// One node of the load.
struct Node {
    /// None where the bytes were there before.
    joined: Option<Joined>,
    demand: Vec<std::ops::Range<u64>>,
    /// When it was whole.
    seconds: OnceLock<f64>,
}

impl Node {
    async fn start(args: &LoadArgs, served: &Served, number: u32) -> Result<Self, Failure> {
        let dir = args.dir.join(number.to_string());
        let id = uuid::Uuid::new_v4().as_u64_pair().0;
        let mut member = Member { node: id, ..Member::default() };
        let mut demand = vec![0..served.meta.layout.total()];
        let mut part = None;
        if args.parts {
            let share = Share { number: number as usize + 1, of: args.to as usize };
            let own = swarm::part_of(&served.meta.layout, share, args.overlap)?;
            member.demand = own.pieces(&served.meta.layout);
            demand = own.demand();
            part = Some((format!("{}-of-{}", share.number, share.of), own));
        }
        let part = part.as_ref().map(|(label, part)| (label.as_str(), part));
        let opened = match part {
            Some((label, part)) => Store::open_part(&dir, &served.meta, label, part),
            None => Store::open(&dir, &served.meta),
        };
        let on_disk = |e: store::Error| Failure::new(4, e.code(), format!("{}; {}", swarm::chain(&e), e.hint()));
        let (store, have) = match opened {
            Ok(opened) => opened,
            Err(e) if e.code() == "already-there" => {
                let is_whole = Store::is_whole(&dir, &served.meta, part, |chunk| served.hashes(chunk));
                // An earlier run was done with this node, or something else bears the name.
                return match is_whole.map_err(on_disk)? {
                    true => Ok(Self { joined: None, demand, seconds: OnceLock::from(0.0) }),
                    false => Err(on_disk(e)),
                };
            }
            Err(e) => return Err(on_disk(e)),
        };
        let cannot = |e: &dyn std::error::Error| Failure::new(3, "cannot-join", swarm::chain(e));
        let listen = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        let config = Config { rate: args.rate.0, ..Config::new(listen, id) };
        let place = Place::Filling(store, have);
        let peer = Peer::start(served.meta.clone(), Vec::new(), place, config, None).await.map_err(|e| cannot(&e))?;
        let controller = Controller::new(&served.url, listen.ip()).map_err(|e| cannot(&e))?;
        let joined = Joined::start(controller, peer, served.meta.clone(), member);
        Ok(Self { joined: Some(joined), demand, seconds: OnceLock::new() })
    }

    fn progress(&self) -> Progress {
        self.joined.as_ref().map(Joined::progress).unwrap_or_default()
    }

    /// Bytes.
    fn wanted(&self) -> u64 {
        self.demand.iter().map(|r| r.end - r.start).sum()
    }

    fn seconds(&self) -> Option<f64> {
        self.seconds.get().copied()
    }

    async fn until_whole(&self, began: Instant) -> Result<(), Failure> {
        let Some(joined) = &self.joined else { return Ok(()) };
        // How long a node may wait is a matter of all of them together.
        match joined.whole(Duration::MAX, |_| ()).await {
            Ok(_) => {
                self.seconds.get_or_init(|| began.elapsed().as_secs_f64());
                Ok(())
            }
            Err(why @ Unfinished::Disk(_)) => Err(Failure { exit: 4, text: why.to_string() }),
            Err(why) => Err(Failure { exit: 3, text: why.to_string() }),
        }
    }

    fn document(&self, progress: &Progress) -> NodeDoc {
        let state = match (&self.joined, self.seconds()) {
            (None, _) => "there before",
            (_, Some(_)) => "whole",
            _ if progress.groups_held == 0 => "waiting",
            _ => "loading",
        };
        NodeDoc {
            address: None,
            state,
            bytes: if self.joined.is_some() { progress.bytes_held } else { self.wanted() },
            from_peers: progress.from_peers,
            from_origin: progress.from_origin,
            sources: progress.connections,
        }
    }
}

/// What is seen while it goes on.
struct Life {
    began: Instant,
    lambda2: Vec<(f64, f64)>,
    json: bool,
    bar: ProgressBar,
}

impl Life {
    async fn until_whole(&mut self, nodes: &[Node], served: &Served, patience: Duration) -> Result<(), Failure> {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        let mut grown = (Instant::now(), 0);
        let mut interrupted = std::pin::pin!(swarm::interrupted());
        let mut all = std::pin::pin!(try_join_all(nodes.iter().map(|node| node.until_whole(self.began))));
        loop {
            tokio::select! {
                done = &mut all => return done.map(drop),
                () = &mut interrupted => return Err(swarm::interruption()),
                _ = second.tick() => {}
            }
            self.show(nodes, served);
            let held = nodes.iter().map(|node| u64::from(node.progress().groups_held)).sum();
            if held > grown.1 {
                grown = (Instant::now(), held);
            } else if grown.0.elapsed() > patience {
                return Err(Failure::new(5, "stalled", "no node got a byte; what arrived is kept"));
            }
        }
    }

    fn show(&mut self, nodes: &[Node], served: &Served) {
        let status = served.controller.status();
        let seconds = self.began.elapsed().as_secs_f64();
        if self.lambda2.last().is_none_or(|(_, last)| *last != status.lambda2) {
            self.lambda2.push((seconds, status.lambda2));
        }
        let all: Vec<_> = nodes.iter().map(|node| node.document(&node.progress())).collect();
        self.bar.set_length(nodes.iter().map(Node::wanted).sum());
        self.bar.set_position(all.iter().map(|node| node.bytes).sum());
        let from_origin: u64 = all.iter().map(|node| node.from_origin).sum();
        let copies = from_origin as f64 / served.meta.layout.total() as f64;
        let of = |state| all.iter().filter(|node| node.state == state).count();
        self.bar.set_message(format!(
            "{} nodes wait, {} load, {} whole, {} relays, {copies:.2} copies from the origin, λ2 {:.2}",
            of("waiting"),
            of("loading"),
            of("whole") + of("there before"),
            status.relays,
            status.lambda2
        ));
        if self.json {
            println!("{}", json!({"event": "load", "seconds": seconds, "nodes": all, "status": status}));
        }
    }

    fn report(&self, nodes: &[Node], served: &Served, hashing_seconds: f64, bound: &Bound) -> Report {
        self.bar.finish_and_clear();
        let total = served.meta.layout.total();
        let status = served.controller.status();
        let all: Vec<_> = nodes.iter().map(Node::progress).collect();
        let node_seconds: Vec<_> = nodes.iter().map(|node| node.seconds().unwrap_or_default()).collect();
        let seconds = node_seconds.iter().copied().fold(0.0, f64::max);
        let copies = |bytes: u64| bytes as f64 / total as f64;
        let (lower_bound_seconds, binding_cut) = bound.binding().unzip();
        Report {
            event: "done",
            nodes: nodes.len(),
            bytes: total,
            taken_in: all.iter().map(|p| p.from_peers + p.from_origin).sum(),
            hashing_seconds,
            seconds,
            node_seconds,
            node_ends: nodes.iter().zip(&all).map(|(node, p)| node.document(p)).collect(),
            origin_copies: copies(served.given() + status.from_store),
            store_copies: copies(served.from_store + status.from_store),
            wasted: all.iter().map(|p| p.wasted).sum(),
            lower_bound_seconds,
            binding_cut,
            ratio: lower_bound_seconds.map(|bound| seconds / bound),
            lambda2: self.lambda2.clone(),
        }
    }
}

fn words(report: &Report) -> String {
    use std::fmt::Write;
    let mut text = format!(
        "{:>4}  {:12}  {:>7}  {:>14}  {:>14}  {:>14}  {:>7}\n",
        "node", "state", "seconds", "bytes held", "from peers", "from origin", "sources"
    );
    for (number, (node, seconds)) in report.node_ends.iter().zip(&report.node_seconds).enumerate() {
        let NodeDoc { state, bytes, from_peers, from_origin, sources, .. } = node;
        let _ = writeln!(
            text,
            "{number:>4}  {state:12}  {seconds:>7.1}  {bytes:>14}  {from_peers:>14}  {from_origin:>14}  {sources:>7}"
        );
    }
    let _ = writeln!(
        text,
        "{} nodes whole in {:.1} s ({:.1} s of hashing before): {} bytes taken in, {:.2} copies from the origin, {:.2} from the store",
        report.nodes,
        report.seconds,
        report.hashing_seconds,
        report.taken_in,
        report.origin_copies,
        report.store_copies
    );
    let _ = match (report.lower_bound_seconds, report.ratio, report.binding_cut) {
        (Some(bound), Some(ratio), Some(cut)) => {
            writeln!(text, "{ratio:.2} times the lower bound of {bound:.1} s (the {cut} binds)")
        }
        _ => writeln!(text, "no rate is limited, so there is no bound to compare with; give --rate or --origin-rate"),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_bar_counts_bytes_also_of_nodes_that_had_them_before() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("set");
        std::fs::write(&source, [7; 300_000]).unwrap();
        let serve = ServeArgs::on_loopback(Source::Local(source));
        let served = swarm::open(&serve, &Default::default()).await.unwrap();
        let had = |demand: std::ops::Range<u64>| Node { joined: None, demand: vec![demand], seconds: 0.0.into() };
        let nodes = [had(0..300_000), had(0..100_000)];
        let mut life = Life { began: Instant::now(), lambda2: vec![], json: false, bar: ProgressBar::hidden() };
        life.show(&nodes, &served);
        assert_eq!((life.bar.position(), life.bar.length()), (400_000, Some(400_000)));
    }
}
