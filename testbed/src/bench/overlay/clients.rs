//! How each client is started: ours, and those that others wrote.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use storage::overlay::layout::Layout;
use storage::overlay::metainfo::{File as Entry, Maker};

use super::children::{Children, HELPER};
use super::net::Net;
use super::{Client, OverlayArgs, POLL};

const MIXTURE: [Client; 4] = [Client::Starling, Client::Aria2, Client::Libtorrent, Client::Transmission];

/// What `serve` is told, for the clients that are our own peer.
fn mode(client: Client) -> Option<&'static str> {
    match client {
        Client::Starling | Client::Mixed => Some("ours"),
        Client::Paper => Some("paper"),
        Client::Plain => Some("plain"),
        Client::Central => Some("central"),
        Client::Tree => Some("tree"),
        Client::Aria2 | Client::Libtorrent | Client::LibtorrentSuper | Client::Transmission => None,
    }
}

/// What hosts need to know: the swarm's URL for ours, the torrent file for others.
pub struct Start {
    starling: Vec<String>,
    url: String,
    torrent: PathBuf,
}

pub async fn start_seed(
    args: &OverlayArgs,
    client: Client,
    net: &Net,
    place: &Path,
    source: &Path,
    children: &mut Children,
) -> anyhow::Result<Start> {
    let torrent = place.join("set.torrent");
    let mut starling: Vec<String> = args.starling.split_whitespace().map(str::to_owned).collect();
    // Ours is built beside this program and need not be installed.
    if let Some(program) = starling.first_mut().filter(|program| *program == "starling") {
        *program = crate::process::workspace_binary("starling")?.display().to_string();
    }
    ensure!(!starling.is_empty(), "--starling names no command");
    let url = format!("http://{}:7000/set.bin", Net::address(0));
    let mut start = Start { starling, url, torrent };
    if let Some(mode) = mode(client) {
        let mut command = net.inside(0, &start.starling[0]);
        let listen = format!("{}:7000", Net::address(0));
        command.args(&start.starling[1..]).arg("serve").arg(source);
        command.args(["--listen", &listen, "--mode", mode, "--json"]);
        if let Some(streams) = args.streams {
            command.args(["--streams", &streams.to_string()]);
        }
        children.spawn(0, &mut command, &place.join("seed.log"))?;
        await_text(&place.join("seed.log"), "serving").await?;
        if client == Client::Mixed {
            let mut fetch = Command::new("ip");
            fetch.args(["netns", "exec", &net.name("root"), "/usr/bin/python3", "-c", FETCH, &start.url]);
            let fetched = fetch.arg(&start.torrent).status().context("running python3")?;
            ensure!(fetched.success(), "the torrent file could not be fetched");
        }
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
    children.spawn(HELPER, &mut tracker, &place.join("tracker.log"))?;
    await_text(&place.join("tracker.log"), "ready").await?;
    other(client, net, 0, &place.join("seed"), &start, children, true)?;
    // Let the seed announce before anybody asks for peers.
    await_text(&place.join("tracker.log"), "peer 10.").await?;
    Ok(start)
}

pub fn start_host(
    args: &OverlayArgs,
    client: Client,
    net: &Net,
    host: u32,
    dir: &Path,
    start: &Start,
    children: &mut Children,
) -> anyhow::Result<()> {
    let client = if client == Client::Mixed { MIXTURE[host as usize % MIXTURE.len()] } else { client };
    if mode(client).is_none() {
        ensure!(!args.parts, "parts are for our own peer");
        return other(client, net, host, dir, start, children, false);
    }
    let mut command = net.inside(host, &start.starling[0]);
    command.args(&start.starling[1..]).args(["get", &start.url, "--rate", "none", "--seed-for", "1h", "--json"]);
    command.args(["--listen", &format!("{}:0", Net::address(host)), "--dir"]).arg(dir);
    if let Some(share) = args.share(host) {
        command.args(["--part", &format!("{}/{}", share.number, share.of), "--overlap", &args.overlap.to_string()]);
    }
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
        ours => anyhow::bail!("{ours:?} is started elsewhere"),
    };
    children.spawn(host, &mut command, &dir.join("log"))
}

async fn await_text(path: &Path, text: &str) -> anyhow::Result<()> {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(20) {
        if fs::read_to_string(path).is_ok_and(|found| found.contains(text)) {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
    anyhow::bail!("{} never said {text:?}: {}", path.display(), fs::read_to_string(path).unwrap_or_default())
}

const FETCH: &str =
    "import urllib.request, sys; open(sys.argv[2], 'wb').write(urllib.request.urlopen(sys.argv[1]).read())";

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
