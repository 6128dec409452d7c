//! A load under fire: peers, relays and the controller are killed at random, and everybody ends with the right bytes.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use storage::overlay::rng::Rng;

const NODES: usize = 8;
const KILLS: usize = 100;
const BYTES: usize = 12_000_000;
/// So slow that the load outlasts the kills.
const ORIGIN_RATE: &str = "500k";
const LIMIT: Duration = Duration::from_secs(120);
const ORIGIN: &str = "127.0.9.100";

/// A process that is killed when this is dropped.
struct Victim(Child);

impl Victim {
    fn start(arguments: &[&str], log: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_starling"));
        command.arg("swarm").args(arguments).env("STARLING_SWARM_TOKEN", "under-fire");
        let log = File::create(log).unwrap();
        Self(command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap())
    }

    fn ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Origin {
    source: PathBuf,
    log: PathBuf,
    port: u16,
}

impl Origin {
    /// Comes up on the same port each time; answers once it serves.
    fn start(&self) -> Victim {
        let (source, listen) = (self.source.to_str().unwrap(), format!("{ORIGIN}:{}", self.port));
        let arguments = ["serve", source, "--listen", &listen, "--rate", ORIGIN_RATE, "--json"];
        let mut victim = Victim::start(&arguments, &self.log);
        until("the origin serves", || {
            assert!(!victim.ended(), "the origin ended: {:?}", std::fs::read_to_string(&self.log));
            let mut lines = BufReader::new(File::open(&self.log).unwrap()).lines();
            lines.any(|line| line.is_ok_and(|line| line.contains("serving")))
        });
        victim
    }
}

struct Node {
    number: usize,
    dir: PathBuf,
    url: String,
}

impl Node {
    fn start(&self) -> Victim {
        std::fs::create_dir_all(&self.dir).unwrap();
        let (dir, listen) = (self.dir.to_str().unwrap(), format!("127.0.9.{}:0", self.number + 1));
        let arguments =
            ["get", &self.url, "--dir", dir, "--listen", &listen, "--rate", "none", "--seed-for", "1h", "--json"];
        Victim::start(&arguments, &self.dir.join("log"))
    }

    /// Who comes while there is no controller is told so and ends, and is started again; nothing else may end it.
    fn keep_up(&self, running: &mut Option<Victim>) {
        if running.as_mut().is_some_and(Victim::ended) {
            let log = std::fs::read_to_string(self.dir.join("log")).unwrap();
            assert!(log.contains("controller-unreachable"), "node {} gave up: {log}", self.number);
            *running = Some(self.start());
        }
    }

    fn target(&self) -> PathBuf {
        self.dir.join("set.bin")
    }

    /// Something has been written to its disk.
    fn holds_bytes(&self) -> bool {
        let staged = self.dir.join(".set.bin.starling/data/set.bin");
        self.target().exists() || staged.metadata().is_ok_and(|m| m.blocks() > 0)
    }
}

fn until(what: &str, mut fits: impl FnMut() -> bool) {
    let start = Instant::now();
    while !fits() {
        assert!(start.elapsed() < LIMIT, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn after_a_hundred_random_kills_of_peers_relays_and_controller_every_node_has_the_right_bytes() {
    let seed = std::env::var("KILLS_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(4);
    println!("KILLS_SEED={seed}");
    let mut rng = Rng::new(seed);
    let place = tempfile::tempdir().unwrap();
    let source = place.path().join("set.bin");
    let data: Vec<u8> = std::iter::repeat_with(|| rng.draw() as u8).take(BYTES).collect();
    std::fs::write(&source, &data).unwrap();
    // The port is free now, and nobody else asks for this address.
    let port = std::net::TcpListener::bind((ORIGIN, 0)).unwrap().local_addr().unwrap().port();
    let origin = Origin { source, log: place.path().join("origin.log"), port };
    let mut serving = Some(origin.start());
    let url = format!("http://{ORIGIN}:{port}/set.bin");
    let nodes: Vec<_> =
        (0..NODES).map(|n| Node { number: n, dir: place.path().join(n.to_string()), url: url.clone() }).collect();
    let mut running: Vec<_> = nodes.iter().map(|node| Some(node.start())).collect();
    let mut killed = BTreeSet::new();
    for _ in 0..KILLS {
        let victim = rng.index(NODES + 1);
        killed.insert(victim);
        match nodes.get(victim) {
            None => {
                drop(serving.take());
                serving = Some(origin.start());
            }
            Some(node) => {
                until("a node to be killed holds bytes", || {
                    node.keep_up(&mut running[victim]);
                    node.holds_bytes()
                });
                drop(running[victim].take());
                // Killed after the end: it has its file, and whoever starts anew starts from nothing.
                if node.target().exists() {
                    assert!(std::fs::read(node.target()).unwrap() == data, "node {victim}: bytes differ");
                    std::fs::remove_file(node.target()).unwrap();
                }
                running[victim] = Some(node.start());
            }
        }
    }
    assert_eq!(killed.len(), NODES + 1, "somebody was spared");
    for node in &nodes {
        until("a node is whole", || {
            node.keep_up(&mut running[node.number]);
            node.target().exists()
        });
        assert!(std::fs::read(node.target()).unwrap() == data, "node {}: bytes differ", node.number);
    }
}
