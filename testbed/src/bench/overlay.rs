//! `testbed bench overlay`: ours and other BitTorrent clients under the same caps, measured by the kernel.
//!
//! One network namespace per host, joined by a bridge; `tbf` on the host's end of its veth caps the uplink, on the bridge's
//! end the downlink. Bytes are read from the bridge's ports, CPU time and memory from /proc, completion from each
//! client's own hook; nothing is taken from a client's word. Needs root, `ip` and `tc`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use cluster_manager::swarm::{Rate, parse_rate};
use serde::Serialize;
use storage::overlay::bound::{Node, lower_bound};
use storage::overlay::layout::Layout;
use storage::overlay::metainfo::{File as Entry, Maker};

#[derive(Clone, Debug, Args)]
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
    Aria2,
    Libtorrent,
    LibtorrentSuper,
    Transmission,
}

/// One client's run.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    pub client: Client,
    pub hosts: u32,
    pub bytes: u64,
    pub bound_s: f64,
    pub p50_s: f64,
    pub last_s: f64,
    pub ratio_p50: f64,
    pub ratio_last: f64,
    /// Copies of the dataset that left the seed, and that all hosts sent together, framing taken off.
    pub seed_copies: f64,
    pub total_copies: f64,
    pub cpu_s_per_gb: f64,
    pub rss_max_mb: f64,
    pub incomplete: u32,
    pub corrupt: u32,
    pub load_before: f64,
    pub congestion: String,
}

/// Payload's share of a full Ethernet frame of TCP with timestamps.
const FRAMING: f64 = 1514.0 / 1448.0;
const POLL: Duration = Duration::from_millis(20);

/// `48M`, `1G`, plain bytes; powers of 1000.
fn parse_size(text: &str) -> Result<u64, String> {
    match parse_rate(text)? {
        Rate(Some(bytes)) => Ok(bytes),
        Rate(None) => Err("a size is a number, such as 48M".into()),
    }
}

pub fn run(args: &OverlayArgs) -> anyhow::Result<()> {
    ensure!(args.hosts >= 1 && args.hosts <= 200, "--hosts must be 1 to 200");
    println!(
        "congestion control {}, {} hosts, {} bytes, rate {:?} bytes/s",
        args.congestion, args.hosts, args.size, args.rate.0
    );
    let mut runs = Vec::new();
    for round in 0..args.runs {
        for client in &args.peers {
            let run = one(args, *client, round).with_context(|| format!("running {client:?}"))?;
            println!(
                "{:?}: last {:.1} s = {:.2} x bound ({:.1} s), p50 {:.2}, seed copies {:.3}, total {:.2}, {:.1} CPU-s/GB, {:.0} MB, incomplete {}, corrupt {}, load {:.1}",
                client,
                run.last_s,
                run.ratio_last,
                run.bound_s,
                run.ratio_p50,
                run.seed_copies,
                run.total_copies,
                run.cpu_s_per_gb,
                run.rss_max_mb,
                run.incomplete,
                run.corrupt,
                run.load_before
            );
            runs.push(run);
        }
    }
    for client in &args.peers {
        let of = |value: fn(&Run) -> f64| median(runs.iter().filter(|r| r.client == *client).map(value).collect());
        println!(
            "median {client:?}: last {:.3}, p50 {:.3}, seed copies {:.3}, {:.1} CPU-s/GB, {:.0} MB",
            of(|r| r.ratio_last),
            of(|r| r.ratio_p50),
            of(|r| r.seed_copies),
            of(|r| r.cpu_s_per_gb),
            of(|r| r.rss_max_mb)
        );
    }
    if let Some(path) = &args.json {
        fs::write(path, serde_json::to_vec_pretty(&runs)?).context("writing the numbers")?;
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn one(args: &OverlayArgs, client: Client, round: u32) -> anyhow::Result<Run> {
    let load_before = fs::read_to_string("/proc/loadavg")?.split(' ').next().unwrap_or("0").parse()?;
    let net = Net::up(args)?;
    let place = tempfile::Builder::new().prefix("bench").tempdir_in("/dev/shm")?;
    let seed_dir = place.path().join("seed");
    fs::create_dir(&seed_dir)?;
    let source = seed_dir.join("set.bin");
    fill(&source, args.size, u64::from(round) + 1)?;
    let mut children = Children::default();
    let start = start_seed(args, client, &net, place.path(), &source, &mut children)?;
    let counters = net.counters()?;
    let t0 = Instant::now();
    let mut hosts = Vec::new();
    for host in 1..=args.hosts {
        let dir = place.path().join(format!("h{host}"));
        fs::create_dir(&dir)?;
        start_host(client, &net, host, &dir, &start, &mut children)?;
        hosts.push((host, dir, None::<f64>));
    }
    let bytes = args.size;
    let rate = args.rate.0.map_or(f64::INFINITY, |r| r as f64);
    let wanting = Node { demand: vec![0..bytes], up: rate, down: rate, rack: 0 };
    let bound_s = lower_bound(&vec![wanting; args.hosts as usize], rate, &[]).seconds * FRAMING;
    let patience = if bound_s > 0.0 { bound_s * args.patience } else { 600.0 };
    let mut killed = args.kill == 0;
    while hosts.iter().any(|(_, _, done)| done.is_none()) && t0.elapsed().as_secs_f64() < patience {
        std::thread::sleep(POLL);
        for (_, dir, done) in hosts.iter_mut().filter(|(_, _, done)| done.is_none()) {
            let whole =
                if client == Client::Starling { dir.join("set.bin").exists() } else { dir.join("done").exists() };
            if whole {
                *done = Some(t0.elapsed().as_secs_f64());
            }
        }
        if !killed && t0.elapsed().as_secs_f64() > bound_s / 2.0 {
            killed = true;
            let count = args.hosts * args.kill / 100;
            (1..=count).for_each(|host| children.kill(host));
            hosts.retain(|(host, ..)| *host > count);
        }
    }
    let after = net.counters()?;
    let (cpu_s, rss_max_mb) = children.usage();
    let expected = fs::read(&source)?;
    let corrupt = hosts
        .iter()
        .filter(|(_, dir, done)| done.is_some() && fs::read(dir.join("set.bin")).ok().as_ref() != Some(&expected));
    let corrupt = corrupt.count() as u32;
    drop(children);
    let mut times: Vec<_> = hosts.iter().filter_map(|(_, _, done)| *done).collect();
    times.sort_by(f64::total_cmp);
    let incomplete = (hosts.len() - times.len()) as u32;
    let last_s = if incomplete == 0 { times.last().copied().unwrap_or(f64::NAN) } else { f64::INFINITY };
    let p50_s = times.get(times.len() / 2).copied().unwrap_or(f64::INFINITY);
    let copies = |ports: u64| ports as f64 / FRAMING / bytes as f64;
    let sent: Vec<_> = after.iter().zip(&counters).map(|(a, b)| a - b).collect();
    Ok(Run {
        client,
        hosts: args.hosts,
        bytes,
        bound_s,
        p50_s,
        last_s,
        ratio_p50: p50_s / bound_s,
        ratio_last: last_s / bound_s,
        seed_copies: copies(sent[0]),
        total_copies: copies(sent.iter().sum()),
        cpu_s_per_gb: cpu_s / (bytes as f64 * f64::from(args.hosts) / 1e9),
        rss_max_mb,
        incomplete,
        corrupt,
        load_before,
        congestion: args.congestion.clone(),
    })
}

fn fill(path: &Path, bytes: u64, seed: u64) -> anyhow::Result<()> {
    let mut rng = storage::overlay::rng::Rng::new(seed);
    let words = std::iter::repeat_with(|| rng.draw().to_le_bytes());
    let data: Vec<u8> = words.flatten().take(bytes as usize).collect();
    fs::write(path, data).context("writing the dataset")
}

/// What hosts need to know: the swarm's URL for ours, the torrent file for others.
struct Start {
    starling: Vec<String>,
    url: String,
    torrent: PathBuf,
}

fn start_seed(
    args: &OverlayArgs,
    client: Client,
    net: &Net,
    place: &Path,
    source: &Path,
    children: &mut Children,
) -> anyhow::Result<Start> {
    let torrent = place.join("set.torrent");
    let starling: Vec<String> = args.starling.split_whitespace().map(str::to_owned).collect();
    ensure!(!starling.is_empty(), "--starling names no command");
    let url = format!("http://{}:7000/set.bin", Net::address(0));
    let mut start = Start { starling, url, torrent };
    if client == Client::Starling {
        let mut command = net.inside(0, &start.starling[0]);
        command.args(&start.starling[1..]).arg("serve").arg(source).args([
            "--listen",
            &format!("{}:7000", Net::address(0)),
            "--json",
        ]);
        children.spawn(0, &mut command, &place.join("seed.log"))?;
        await_text(&place.join("seed.log"), "serving")?;
        return Ok(start);
    }
    let data = fs::read(source)?;
    let mut maker = Maker::new(Layout::for_total(args.size).context("sizing")?);
    maker.update(&data);
    let (meta, _) = maker.finish("set.bin", vec![Entry { path: vec![], len: args.size }], "none").context("hashing")?;
    fs::write(&start.torrent, meta.encode(&format!("http://{}:6969/announce", Net::TRACKER)))?;
    start.torrent = start.torrent.canonicalize()?;
    let mut tracker = Command::new("ip");
    tracker.args(["netns", "exec", &net.name("root"), "/usr/bin/python3", "-c", TRACKER, Net::TRACKER]);
    children.spawn(u32::MAX, &mut tracker, &place.join("tracker.log"))?;
    await_text(&place.join("tracker.log"), "ready")?;
    other(client, net, 0, &place.join("seed"), &start, children, true)?;
    // Let the seed announce before anybody asks for peers.
    await_text(&place.join("tracker.log"), "peer 10.")?;
    Ok(start)
}

fn start_host(
    client: Client,
    net: &Net,
    host: u32,
    dir: &Path,
    start: &Start,
    children: &mut Children,
) -> anyhow::Result<()> {
    if client != Client::Starling {
        return other(client, net, host, dir, start, children, false);
    }
    let mut command = net.inside(host, &start.starling[0]);
    command.args(&start.starling[1..]).args(["get", &start.url, "--rate", "none", "--seed-for", "1h", "--json"]);
    command.args(["--listen", &format!("{}:0", Net::address(host)), "--dir"]).arg(dir);
    children.spawn(host, &mut command, &dir.join("log"))
}

fn other(
    client: Client,
    net: &Net,
    host: u32,
    dir: &Path,
    start: &Start,
    children: &mut Children,
    seed: bool,
) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let hook = dir.join("hook");
    fs::write(&hook, format!("#!/bin/sh\ntouch '{}'\n", dir.join("done").display()))?;
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755))?;
    let mut command = match client {
        Client::Aria2 => {
            let mut command = net.inside(host, "aria2c");
            command.args([
                "--no-conf",
                "--enable-dht=false",
                "--enable-dht6=false",
                "--bt-enable-lpd=false",
                "--seed-ratio=0",
            ]);
            command.args([
                "--bt-tracker-interval=2",
                "--file-allocation=none",
                "--disable-ipv6=true",
                "--bt-max-peers=50",
            ]);
            command.arg("--on-bt-download-complete").arg(&hook).arg("--dir").arg(dir);
            command.args(seed.then_some("--bt-seed-unverified=true")).arg(&start.torrent);
            command
        }
        Client::Libtorrent | Client::LibtorrentSuper => {
            let mode = if !seed {
                "get"
            } else if client == Client::LibtorrentSuper {
                "super"
            } else {
                "seed"
            };
            let mut command = net.inside(host, "/usr/bin/python3");
            command.args(["-c", LIBTORRENT]).arg(&start.torrent).arg(dir).arg(mode);
            command
        }
        Client::Transmission => {
            fs::write(dir.join("settings.json"), TRANSMISSION)?;
            let mut command = net.inside(host, "transmission-cli");
            command.arg("-g").arg(dir).arg("-w").arg(dir).arg("-f").arg(&hook).arg(&start.torrent);
            command.args(seed.then_some("-v"));
            command
        }
        Client::Starling => anyhow::bail!("ours is started elsewhere"),
    };
    children.spawn(host, &mut command, &dir.join("log"))
}

fn await_text(path: &Path, text: &str) -> anyhow::Result<()> {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(20) {
        if fs::read_to_string(path).is_ok_and(|found| found.contains(text)) {
            return Ok(());
        }
        std::thread::sleep(POLL);
    }
    anyhow::bail!("{} never said {text:?}: {}", path.display(), fs::read_to_string(path).unwrap_or_default())
}

/// The processes of a run; ended by their own pid when dropped.
#[derive(Default)]
struct Children(Vec<(u32, Child)>);

impl Children {
    fn spawn(&mut self, host: u32, command: &mut Command, log: &Path) -> anyhow::Result<()> {
        let log = File::create(log)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.0.push((host, command.spawn().with_context(|| format!("starting {command:?}"))?));
        Ok(())
    }

    fn kill(&mut self, host: u32) {
        for (_, child) in self.0.iter_mut().filter(|(h, _)| *h == host) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// CPU seconds of all clients, and the most memory that a host's client held (MB).
    fn usage(&self) -> (f64, f64) {
        let mut cpu = 0.0;
        let mut rss = 0.0f64;
        for (_, child) in self.0.iter().filter(|(host, _)| *host != u32::MAX) {
            let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap_or_default();
            let fields: Vec<_> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
            let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
            // Linux on every platform that we run on counts these in hundredths of a second.
            cpu += (ticks(11) + ticks(12)) / 100.0;
            let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
            let high = status
                .lines()
                .find_map(|l| l.strip_prefix("VmHWM:"))
                .and_then(|l| l.trim().split(' ').next()?.parse::<f64>().ok());
            rss = rss.max(high.unwrap_or(0.0) / 1000.0);
        }
        (cpu, rss)
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        for (_, child) in &mut self.0 {
            let _ = child.kill();
        }
        for (_, child) in &mut self.0 {
            let _ = child.wait();
        }
    }
}

/// Namespaces, bridge and caps; gone when dropped.
struct Net {
    tag: String,
    hosts: u32,
}

impl Net {
    const TRACKER: &'static str = "10.77.255.254";

    fn address(host: u32) -> String {
        format!("10.77.{}.{}", (host + 1) / 250, (host + 1) % 250)
    }

    fn name(&self, host: impl std::fmt::Display) -> String {
        format!("{}{host}", self.tag)
    }

    fn up(args: &OverlayArgs) -> anyhow::Result<Self> {
        let net = Self { tag: format!("ovb{}x", std::process::id()), hosts: args.hosts };
        let root = net.name("root");
        ip(&["netns", "add", &root])?;
        ip(&["-n", &root, "link", "add", "name", "br0", "type", "bridge"])?;
        ip(&["-n", &root, "addr", "add", &format!("{}/16", Self::TRACKER), "dev", "br0"])?;
        ip(&["-n", &root, "link", "set", "br0", "up"])?;
        for host in 0..=args.hosts {
            let (name, port) = (net.name(host), format!("p{host}"));
            ip(&["netns", "add", &name])?;
            ip(&["-n", &root, "link", "add", &port, "type", "veth", "peer", "name", "e0", "netns", &name])?;
            ip(&["-n", &root, "link", "set", &port, "master", "br0", "up"])?;
            ip(&["-n", &name, "addr", "add", &format!("{}/16", Self::address(host)), "dev", "e0"])?;
            ip(&["-n", &name, "link", "set", "e0", "up"])?;
            ip(&["-n", &name, "link", "set", "lo", "up"])?;
            let set = format!("net.ipv4.tcp_congestion_control={}", args.congestion);
            command("ip", &["netns", "exec", &name, "sysctl", "-qw", &set])?;
            if let Some(rate) = args.rate.0 {
                let rate = format!("{}bit", rate * 8);
                let cap = ["root", "tbf", "rate", &rate, "burst", "16kb", "latency", "100ms"];
                for (namespace, device) in [(&name, "e0"), (&root, port.as_str())] {
                    command("tc", &[&["-n", namespace, "qdisc", "add", "dev", device], &cap[..]].concat())?;
                }
            }
        }
        Ok(net)
    }

    fn inside(&self, host: u32, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(host), program]);
        command
    }

    /// Bytes that came from each host so far.
    fn counters(&self) -> anyhow::Result<Vec<u64>> {
        let out = Command::new("ip").args(["-n", &self.name("root"), "-s", "-j", "link"]).output()?;
        let links: serde_json::Value = serde_json::from_slice(&out.stdout).context("reading the counters")?;
        let of = |host: u32| {
            let link = links.as_array()?.iter().find(|l| l["ifname"] == format!("p{host}"))?;
            link["stats64"]["rx"]["bytes"].as_u64()
        };
        (0..=self.hosts).map(|host| of(host).with_context(|| format!("no counter for host {host}"))).collect()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in (0..=self.hosts).map(|h| self.name(h)).chain([self.name("root")]) {
            let _ = Command::new("ip").args(["netns", "del", &name]).stderr(Stdio::null()).status();
        }
    }
}

fn ip(args: &[&str]) -> anyhow::Result<()> {
    command("ip", args)
}

fn command(program: &str, args: &[&str]) -> anyhow::Result<()> {
    let out = Command::new(program).args(args).output().with_context(|| format!("running {program}"))?;
    ensure!(out.status.success(), "{program} {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr).trim());
    Ok(())
}

/// Names every peer to every peer, as a public tracker does.
const TRACKER: &str = r#"
import http.server, socketserver, sys, urllib.parse
peers = {}
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        q = dict(p.split('=', 1) for p in self.path.split('?', 1)[1].split('&') if '=' in p)
        ip = self.client_address[0]
        peers[q['peer_id']] = bytes(map(int, ip.split('.'))) + int(q['port']).to_bytes(2, 'big')
        print('peer', ip, flush=True)
        own = peers[q['peer_id']]
        body = b''.join(p for p in peers.values() if p != own)
        body = b'd8:intervali2e12:min intervali2e5:peers' + str(len(body)).encode() + b':' + body + b'e'
        self.send_response(200); self.send_header('Content-Length', str(len(body))); self.end_headers(); self.wfile.write(body)
    def log_message(self, *a): pass
class S(socketserver.ThreadingMixIn, http.server.HTTPServer): request_queue_size = 256; daemon_threads = True
s = S((sys.argv[1], 6969), H); print('ready', flush=True); s.serve_forever()
"#;

const LIBTORRENT: &str = r#"
import libtorrent as lt, sys, time
s = lt.session({'listen_interfaces': '0.0.0.0:6881', 'enable_dht': False, 'enable_lsd': False, 'enable_upnp': False, 'enable_natpmp': False,
  'enable_outgoing_utp': False, 'enable_incoming_utp': False, 'min_announce_interval': 2, 'unchoke_slots_limit': 8})
p = {'ti': lt.torrent_info(sys.argv[1]), 'save_path': sys.argv[2]}
if sys.argv[3] != 'get': p['flags'] = lt.torrent_flags.seed_mode | (lt.torrent_flags.super_seeding if sys.argv[3] == 'super' else 0)
h = s.add_torrent(p)
while True:
    if h.status().is_seeding: open(sys.argv[2] + '/done', 'w').close()
    time.sleep(0.02)
"#;

const TRANSMISSION: &str = r#"{"dht-enabled": false, "lpd-enabled": false, "pex-enabled": false, "port-forwarding-enabled": false,
 "utp-enabled": false, "rpc-enabled": false, "encryption": 0, "upload-slots-per-torrent": 8, "speed-limit-up-enabled": false}"#;
