//! `testbed bench overlay`: ours and other BitTorrent clients under the same caps, measured by the kernel.
//!
//! One network namespace per host, joined by a bridge; `tbf` on the host's end of its veth caps the uplink, on the bridge's
//! end the downlink. Bytes are read from the bridge's ports, CPU time and memory from /proc, completion from each
//! client's own hook; nothing is taken from a client's word. Needs root, `ip` and `tc`.

mod children;
mod clients;
mod net;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use cluster_manager::swarm::{Rate, Share, parse_rate, part_of};
use serde::Serialize;
use storage::overlay::bound::{Node, lower_bound};
use storage::overlay::layout::Layout;
use storage::overlay::partition::{Part, demands};

use self::children::Children;
use self::clients::{start_host, start_seed};
use self::net::{Counters, Net};

#[derive(Clone, Debug, Args)]
#[command(after_help = "Cases of the table in docs/benchmarks.md:
  testbed bench overlay --hosts 20 --size 48M --rate 20mbit
  testbed bench overlay --hosts 8 --size 512M --rate none --peers starling,aria2
  testbed bench overlay --kill 10 --peers starling
  testbed bench overlay --slow 10 --peers starling
  testbed bench overlay --peers starling,plain,central,tree,paper
  testbed bench overlay --parts --overlap 0.3 --origin-rate 160mbit --streams 8 --size 400M --peers starling
  testbed bench overlay --peers mixed")]
pub struct OverlayArgs {
    #[arg(long, default_value_t = 20)]
    pub hosts: u32,
    /// Bytes, such as 48M
    #[arg(long, default_value = "48M", value_parser = parse_size)]
    pub size: u64,
    /// Cap of every host each way, or `none`
    #[arg(long, default_value = "20mbit", value_parser = parse_rate)]
    pub rate: Rate,
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "starling,aria2,libtorrent,libtorrent-super,transmission"
    )]
    pub peers: Vec<Client>,
    #[arg(long, default_value_t = 5)]
    pub runs: u32,
    /// Congestion control in every namespace
    #[arg(long, default_value = "reno")]
    pub congestion: String,
    /// The command that has `serve` and `get`
    #[arg(long, default_value = "starling swarm")]
    pub starling: String,
    /// Percentage of hosts killed half way (of the bound)
    #[arg(long, default_value_t = 0)]
    pub kill: u32,
    /// Percentage of hosts at a quarter of the rate; the figures are those of the others
    #[arg(long, default_value_t = 0)]
    pub slow: u32,
    /// Each host takes its share, 1/N, and not all; for our own peer
    #[arg(long)]
    pub parts: bool,
    /// With --parts: each host holds this share of the next part too, for others
    #[arg(long, default_value_t = 0.0, requires = "parts")]
    pub overlap: f64,
    /// Cap of the origin, where it is another than that of the hosts
    #[arg(long, value_parser = parse_rate)]
    pub origin_rate: Option<Rate>,
    /// Hosts that the origin serves at a time, where it is limited; for our own peer
    #[arg(long)]
    pub streams: Option<u32>,
    /// Give up a run after so many bounds
    #[arg(long, default_value_t = 20.0)]
    pub patience: f64,
    /// Where the numbers go as well
    #[arg(long)]
    pub json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Client {
    Starling,
    /// Our peer under other rules: what the paper describes
    Paper,
    /// Our peer without leases and without a graph: everybody knows everybody, the origin is a seed
    Plain,
    /// Our peer, everything from the origin
    Central,
    /// Our peer in a tree of arity 2
    Tree,
    Aria2,
    Libtorrent,
    LibtorrentSuper,
    Transmission,
    /// Ours, aria2, libtorrent and transmission in turn, in one swarm of ours
    Mixed,
}

/// One client's run.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    pub client: Client,
    pub hosts: u32,
    pub bytes: u64,
    /// Bytes per second each way of the origin and of each host; `null` = no cap.
    pub rates: Vec<Option<u64>>,
    pub kill_percent: u32,
    pub slow_percent: u32,
    /// Whether each host took a part; what it held of the next one; hosts that the origin served at a time.
    pub parts: bool,
    pub overlap: f64,
    pub streams: Option<u32>,
    pub bound_s: f64,
    pub p50_s: f64,
    pub last_s: f64,
    pub ratio_p50: f64,
    pub ratio_last: f64,
    /// The slow hosts' last, against the bound that counts them too.
    pub ratio_slow: Option<f64>,
    /// Copies of the dataset that left the seed, and that all hosts sent together, framing taken off.
    pub seed_copies: f64,
    pub total_copies: f64,
    pub cpu_s_per_gb: f64,
    pub rss_max_mb: f64,
    pub incomplete: u32,
    pub corrupt: u32,
    pub load_before: f64,
    /// Share of the machine's CPU time that nobody used during the run: where it is small, the times are the machine's.
    pub cpu_idle: f64,
    /// Share of it that other machines on the same hardware took.
    pub cpu_stolen: f64,
    pub congestion: String,
    /// Packets that the caps threw away, at the hosts' ends and at the bridge's.
    pub drops: (u64, u64),
    /// When each host was done, in seconds; `null` = killed or never.
    pub finished: Vec<Option<f64>>,
    pub trace: Vec<Sample>,
}

/// What the kernel counted up to a moment.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    pub s: f64,
    pub origin_sent: u64,
    pub hosts_sent: u64,
    pub hosts_received: u64,
}

/// Payload's share of a full Ethernet frame of TCP with timestamps.
const FRAMING: f64 = 1514.0 / 1448.0;
const POLL: Duration = Duration::from_millis(20);
const SAMPLE: Duration = Duration::from_millis(250);

/// `48M`, `1G`, plain bytes; powers of 1000.
fn parse_size(text: &str) -> Result<u64, String> {
    match parse_rate(text)? {
        Rate(Some(bytes)) => Ok(bytes),
        Rate(None) => Err("a size is a number, such as 48M".into()),
    }
}

pub async fn run(args: &OverlayArgs) -> anyhow::Result<()> {
    ensure!(args.hosts >= 1 && args.hosts <= 200, "--hosts must be 1 to 200");
    println!(
        "congestion control {}, {} hosts, {} bytes, rate {:?} bytes/s",
        args.congestion, args.hosts, args.size, args.rate.0
    );
    let mut runs = Vec::new();
    for round in 0..args.runs {
        for client in &args.peers {
            let run = one(args, *client, round).await.with_context(|| format!("running {client:?}"))?;
            print(&run);
            runs.push(run);
        }
    }
    for client in &args.peers {
        let of = |value: fn(&Run) -> f64| median(runs.iter().filter(|r| r.client == *client).map(value).collect());
        println!(
            "median {client:?}: last {:.3}, p50 {:.3}, seed copies {:.3}, total {:.2}, {:.2} CPU-s/GB, {:.0} MB",
            of(|r| r.ratio_last),
            of(|r| r.ratio_p50),
            of(|r| r.seed_copies),
            of(|r| r.total_copies),
            of(|r| r.cpu_s_per_gb),
            of(|r| r.rss_max_mb)
        );
    }
    if let Some(path) = &args.json {
        fs::write(path, serde_json::to_vec_pretty(&runs)?).context("writing the numbers")?;
    }
    Ok(())
}

fn print(run: &Run) {
    let slow = run.ratio_slow.map(|ratio| format!(", slow hosts {ratio:.2}")).unwrap_or_default();
    println!(
        "{:?}: last {:.1} s = {:.3} x bound ({:.1} s), p50 {:.3}{slow}, seed copies {:.3}, total {:.2}, {:.2} CPU-s/GB, {:.0} MB, drops {:?}, incomplete {}, corrupt {}, load {:.1}, idle {:.2}, stolen {:.2}",
        run.client,
        run.last_s,
        run.ratio_last,
        run.bound_s,
        run.ratio_p50,
        run.seed_copies,
        run.total_copies,
        run.cpu_s_per_gb,
        run.rss_max_mb,
        run.drops,
        run.incomplete,
        run.corrupt,
        run.load_before,
        run.cpu_idle,
        run.cpu_stolen
    );
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

struct Host {
    number: u32,
    dir: PathBuf,
    killed: bool,
    slow: bool,
    done: Option<f64>,
}

impl Host {
    /// Ours give the final name only to what is whole; others have a hook.
    fn is_whole(&self, args: &OverlayArgs) -> bool {
        self.dir.join("done").exists() || (!self.dir.join("hook").exists() && self.file(args).exists())
    }

    fn file(&self, args: &OverlayArgs) -> PathBuf {
        match args.share(self.number) {
            Some(share) => self.dir.join(format!("set.bin.{}-of-{}", share.number, share.of)),
            None => self.dir.join("set.bin"),
        }
    }
}

impl OverlayArgs {
    /// A host's share, where each takes one.
    fn share(&self, host: u32) -> Option<Share> {
        self.parts.then_some(Share { number: host as usize, of: self.hosts as usize })
    }

    /// What a host takes in, and what of it it wants itself.
    fn part(&self, host: u32) -> anyhow::Result<Part> {
        let whole = Part { own: vec![0..self.size], seed_only: vec![] };
        let Some(share) = self.share(host) else { return Ok(whole) };
        let layout = Layout::for_total(self.size).context("sizing")?;
        part_of(&layout, share, self.overlap).map_err(|failure| anyhow::anyhow!(failure.text))
    }
}

/// Whoever drops this ends the run: nothing of it stays behind.
async fn one(args: &OverlayArgs, client: Client, round: u32) -> anyhow::Result<Run> {
    let load_before = fs::read_to_string("/proc/loadavg")?.split(' ').next().unwrap_or("0").parse()?;
    // Killed hosts are the first to come (relays among them), slow ones the last.
    let slow_from = args.hosts - args.hosts * args.slow.min(100) / 100;
    let quarter = |host: u32| if host > slow_from { 4 } else { 1 };
    let mut rates: Vec<_> = (0..=args.hosts).map(|host| args.rate.0.map(|rate| rate / quarter(host))).collect();
    if let Some(rate) = args.origin_rate {
        rates[0] = rate.0;
    }
    let net = Net::up(&rates, &args.congestion)?;
    let place = tempfile::Builder::new().prefix("bench").tempdir_in("/dev/shm")?;
    let seed_dir = place.path().join("seed");
    fs::create_dir(&seed_dir)?;
    let source = seed_dir.join("set.bin");
    fill(&source, args.size, u64::from(round) + 1)?;
    let mut children = Children::default();
    let start = start_seed(args, client, &net, place.path(), &source, &mut children).await?;
    let before = net.counters()?;
    let ticks = Ticks::now()?;
    let t0 = Instant::now();
    let mut hosts = Vec::new();
    for number in 1..=args.hosts {
        let dir = place.path().join(format!("h{number}"));
        fs::create_dir(&dir)?;
        start_host(args, client, &net, number, &dir, &start, &mut children)?;
        hosts.push(Host { number, dir, killed: false, slow: number > slow_from, done: None });
    }
    let bound_s = bound(args, &rates, |host| host <= slow_from)?;
    let patience = if bound_s > 0.0 { bound_s * args.patience } else { 600.0 };
    let mut kill = args.kill > 0;
    let mut trace = vec![sample(t0, &before, &before)];
    let seconds = || t0.elapsed().as_secs_f64();
    while hosts.iter().any(|h| h.done.is_none() && !h.killed) && seconds() < patience {
        tokio::time::sleep(POLL).await;
        for host in hosts.iter_mut().filter(|h| h.done.is_none() && !h.killed) {
            host.done = host.is_whole(args).then(seconds);
        }
        if kill && seconds() > bound_s / 2.0 {
            kill = false;
            for host in hosts.iter_mut().take((args.hosts * args.kill / 100) as usize) {
                children.kill(host.number);
                host.killed = true;
            }
        }
        if seconds() >= trace.len() as f64 * SAMPLE.as_secs_f64() {
            trace.push(sample(t0, &before, &net.counters()?));
        }
    }
    let after = net.counters()?;
    let ticks = Ticks::now()?.since(&ticks);
    trace.push(sample(t0, &before, &after));
    let (cpu_s, rss_max_mb) = children.usage();
    let drops = net.drops();
    let mut corrupt = 0;
    for host in hosts.iter().filter(|h| h.done.is_some()) {
        corrupt += u32::from(!same(&source, &args.part(host.number)?.own, &host.file(args))?);
    }
    drop(children);
    let mut times: Vec<_> = hosts.iter().filter(|h| !h.slow).filter_map(|h| h.done).collect();
    times.sort_by(f64::total_cmp);
    let incomplete = hosts.iter().filter(|h| h.done.is_none() && !h.killed).count() as u32;
    let worst = |slow: bool| {
        let ends = hosts.iter().filter(|h| h.slow == slow && !h.killed).map(|h| h.done.unwrap_or(f64::INFINITY));
        ends.fold(0.0, f64::max)
    };
    let last_s = worst(false);
    let p50_s = times.get(times.len() / 2).copied().unwrap_or(f64::INFINITY);
    let copies = |bytes: u64| bytes as f64 / FRAMING / args.size as f64;
    let slow_bound = if args.slow > 0 { Some(bound(args, &rates, |_| true)?) } else { None };
    let sent: Vec<_> = after.from.iter().zip(&before.from).map(|(a, b)| a - b).collect();
    Ok(Run {
        client,
        hosts: args.hosts,
        bytes: args.size,
        kill_percent: args.kill,
        slow_percent: args.slow,
        parts: args.parts,
        overlap: args.overlap,
        streams: args.streams,
        bound_s,
        p50_s,
        last_s,
        ratio_p50: p50_s / bound_s,
        ratio_last: last_s / bound_s,
        ratio_slow: slow_bound.map(|bound| worst(true) / bound),
        seed_copies: copies(sent[0]),
        total_copies: copies(sent.iter().sum()),
        cpu_s_per_gb: cpu_s / (wanted(args)? as f64 / 1e9),
        rss_max_mb,
        incomplete,
        corrupt,
        load_before,
        cpu_idle: ticks.idle / ticks.all.max(1.0),
        cpu_stolen: ticks.stolen / ticks.all.max(1.0),
        congestion: args.congestion.clone(),
        drops,
        finished: hosts.iter().map(|h| h.done).collect(),
        trace,
        rates,
    })
}

/// Bytes that all hosts take in together.
fn wanted(args: &OverlayArgs) -> anyhow::Result<u64> {
    let of = |host| Ok(args.part(host)?.demand().into_iter().map(|range| range.end - range.start).sum::<u64>());
    (1..=args.hosts).map(of).sum()
}

/// The least time in which those who count can be done, while all give. An origin that serves few at a time gives what they can take.
fn bound(args: &OverlayArgs, rates: &[Option<u64>], counts: impl Fn(u32) -> bool) -> anyhow::Result<f64> {
    let speed = |rate: &Option<u64>| rate.map_or(f64::INFINITY, |rate| rate as f64);
    let node = |host: u32| {
        let rate = speed(&rates[host as usize]);
        let demand = if counts(host) { demands(&[args.part(host)?], rate, rate).remove(0).demand } else { vec![] };
        anyhow::Ok(Node { demand, up: rate, down: rate, rack: 0 })
    };
    let nodes = (1..=args.hosts).map(node).collect::<anyhow::Result<Vec<_>>>()?;
    let streams = args.streams.map_or(f64::INFINITY, |streams| f64::from(streams) * speed(&args.rate.0));
    Ok(lower_bound(&nodes, speed(&rates[0]).min(streams), &[]).seconds * FRAMING)
}

fn sample(t0: Instant, before: &Counters, now: &Counters) -> Sample {
    let all = |now: &[u64], before: &[u64]| now.iter().skip(1).sum::<u64>() - before.iter().skip(1).sum::<u64>();
    Sample {
        s: t0.elapsed().as_secs_f64(),
        origin_sent: now.from[0] - before.from[0],
        hosts_sent: all(&now.from, &before.from),
        hosts_received: all(&now.to, &before.to),
    }
}

/// Time of all CPUs since boot (proc(5), `/proc/stat`).
struct Ticks {
    idle: f64,
    stolen: f64,
    all: f64,
}

impl Ticks {
    fn now() -> anyhow::Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
        let first = stat.lines().next().unwrap_or_default();
        let ticks: Vec<f64> = first.split_whitespace().skip(1).take(8).filter_map(|field| field.parse().ok()).collect();
        let field = |n: usize| ticks.get(n).copied().unwrap_or(0.0);
        Ok(Self { idle: field(3), stolen: field(7), all: ticks.iter().sum() })
    }

    fn since(&self, before: &Self) -> Self {
        Self { idle: self.idle - before.idle, stolen: self.stolen - before.stolen, all: self.all - before.all }
    }
}

fn fill(path: &Path, bytes: u64, seed: u64) -> anyhow::Result<()> {
    let mut rng = storage::overlay::rng::Rng::new(seed);
    let mut file = File::create(path).context("writing the dataset")?;
    let mut left = bytes as usize;
    while left > 0 {
        let words = std::iter::repeat_with(|| rng.draw().to_le_bytes());
        let block: Vec<u8> = words.flatten().take(left.min(1 << 20)).collect();
        file.write_all(&block).context("writing the dataset")?;
        left -= block.len();
    }
    Ok(())
}

/// Whether a file holds these ranges of the source, end to end.
fn same(source: &Path, ranges: &[Range<u64>], path: &Path) -> anyhow::Result<bool> {
    let (source, Ok(mut file)) = (File::open(source)?, File::open(path)) else { return Ok(false) };
    if file.metadata()?.len() != ranges.iter().map(|r| r.end - r.start).sum::<u64>() {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for range in ranges {
        let mut at = range.start;
        while at < range.end {
            let n = left.len().min((range.end - at) as usize);
            source.read_exact_at(&mut left[..n], at)?;
            file.read_exact(&mut right[..n])?;
            if left[..n] != right[..n] {
                return Ok(false);
            }
            at += n as u64;
        }
    }
    Ok(true)
}
