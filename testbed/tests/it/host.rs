//! The host manager as it runs: the real binary and its guest, on a real Prosody, with film and results on the S3 server.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use federation::cluster::{Host, Manager, Run, Status, Taken, Task};
use federation::xmpp::{Agent, AgentEvent, BareJid, Condition, Element, FullJid, IqFailure, XmppConfig};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sha2::{Digest, Sha256};
use storage::film::part::{PartSpec, Rendition, RenditionOutput, Source, VideoWork, Work};
use storage::film::{FilmError, Plan, PlanOptions, Probe};
use storage::hex::hex;
use storage::range::ByteRange;
use storage::s3::{ObjectPath, PutOptions, Store};
use testbed::ca::Ca;
use testbed::prosody::{Ports, Prosody, ProsodyConfig};
use testbed::s3::{S3Server, S3ServerConfig};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// One domain with a store and a host; all end when it is dropped.
struct Domain {
    server: Prosody,
    store: Store,
    host: Child,
    _s3: S3Server,
    dir: tempfile::TempDir,
}

impl Domain {
    async fn start(ip_end: u8) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let [_, b, c, _] = std::process::id().to_be_bytes();
        let ip = IpAddr::V4(Ipv4Addr::new(127, b | 2, c, ip_end));
        let accounts = ["cm", "hm", "stranger"].map(|user| (user.to_owned(), user.to_owned())).to_vec();
        let place = (ip, Ports::pick(ip).unwrap());
        let config = ProsodyConfig::new("a.test", dir.path().join("prosody"), place, accounts);
        let server = Prosody::start(config, &Ca::new("test CA").unwrap()).await.unwrap();
        let s3_config = S3ServerConfig { root: dir.path().join("s3"), ..S3ServerConfig::default() };
        let s3 = S3Server::start(s3_config).await.unwrap();
        let store = Store::connect(&s3.client()).await.unwrap();
        let host = start_host(dir.path(), &server);
        Self { server, store, host, _s3: s3, dir }
    }

    async fn agent(&self, user: &str) -> (Agent, mpsc::Receiver<AgentEvent>) {
        let mut config = XmppConfig::new(format!("{user}@a.test"), user, self.server.c2s().to_string());
        config.ca_file = Some(self.server.ca_file());
        Agent::start(&config).unwrap()
    }

    /// Puts a film and the order to make it anew into the store; returns the order's URL.
    async fn order(&self, preset: &str) -> (String, Plan) {
        let film = film();
        let source = object("film.mp4");
        let etag = self.store.put(&source, film.clone().into(), PutOptions::default()).await.unwrap();
        let plan = plan(&film);
        let put = self.store.presign_put(&object("out.mp4"), HOUR, None).await.unwrap();
        let rendition = Rendition { height: 90, codec: "h264".into(), crf: 30, preset: preset.into() };
        let work = VideoWork {
            source: Source { url: self.store.presign_get(&source, HOUR).await.unwrap(), etag, size: film.len() as u64 },
            input: plan.parts[0].input.clone(),
            clip: plan.parts[0].clip,
            renditions: vec![RenditionOutput { rendition, key: "out.mp4".into(), put }],
            audio: None,
        };
        let spec = PartSpec { job: "j".into(), part: 0, attempt: 1, work: Work::Video(work) };
        let json = serde_json::to_vec(&spec).unwrap();
        self.store.put(&object("order.json"), json.into(), PutOptions::default()).await.unwrap();
        (self.store.presign_get(&object("order.json"), HOUR).await.unwrap(), plan)
    }

    /// Ids of the guests and encoders that work in this domain's directory.
    fn processes(&self) -> Vec<i32> {
        let mark = self.dir.path().join("hm/vms").to_str().unwrap().to_owned();
        let pids = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
        let line = |pid: &i32| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        pids.filter(|pid| String::from_utf8_lossy(&line(pid)).contains(&mark)).collect()
    }

    async fn nothing_is_left(&self) {
        let wait = async {
            while !self.processes().is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("guests and encoders gone in time");
    }
}

fn start_host(dir: &Path, server: &Prosody) -> Child {
    let config = format!(
        "name = \"host1\"\nstate_dir = {:?}\nslots = 1\nbacklog = 0\n[xmpp]\njid = \"hm@a.test\"\npassword = \"hm\"\n\
         address = \"{}\"\nca_file = {:?}\n[rooms]\ncluster = \"cluster@conference.a.test\"\n",
        dir.join("hm"),
        server.c2s(),
        server.ca_file(),
    );
    std::fs::write(dir.join("hm.toml"), config).unwrap();
    let log = std::fs::File::create(dir.join("hm.log")).unwrap();
    let mut command = Command::new(testbed::process::workspace_binary("host-manager").unwrap());
    command.arg("--config").arg(dir.join("hm.toml")).stdin(Stdio::null()).stderr(log).kill_on_drop(true);
    command.spawn().unwrap()
}

fn object(key: &str) -> ObjectPath {
    ObjectPath::new("films", key).unwrap()
}

fn film() -> Vec<u8> {
    let file = tempfile::Builder::new().suffix(".mp4").tempfile().unwrap();
    let order =
        "-y -v error -f lavfi -i testsrc2=s=320x180:r=25:d=4 -c:v libx264 -preset ultrafast -g 25 -pix_fmt yuv420p";
    let made = std::process::Command::new("ffmpeg").args(order.split(' ')).arg(file.path()).status().unwrap();
    assert!(made.success());
    std::fs::read(file.path()).unwrap()
}

fn plan(film: &[u8]) -> Plan {
    let options = PlanOptions { parts_min: 1, parts_max: 1, ..PlanOptions::default() };
    let read = |range: ByteRange| Ok::<_, FilmError>(film[range.start() as usize..range.end() as usize].to_vec());
    let (mut plan, heads) = Probe::new(film.len() as u64, options).run(read).unwrap();
    heads.fill(&mut plan);
    plan
}

async fn wait<T>(events: &mut mpsc::Receiver<AgentEvent>, mut wanted: impl FnMut(AgentEvent) -> Option<T>) -> T {
    let listen = async {
        loop {
            if let Some(found) = wanted(events.recv().await.expect("a living agent")) {
                return found;
            }
        }
    };
    tokio::time::timeout(PATIENCE, listen).await.expect("the event in time")
}

/// Joins the Cluster room as the active manager and waits for the host to announce itself.
async fn manage(agent: &Agent, events: &mut mpsc::Receiver<AgentEvent>) -> (FullJid, Host) {
    let room = BareJid::new("cluster@conference.a.test").unwrap();
    agent.join(&room, "active", Some(Manager { epoch: 7 }.into())).await.unwrap();
    wait(events, announced).await
}

fn announced(event: AgentEvent) -> Option<(FullJid, Host)> {
    let AgentEvent::DirectedPresence { from, available: true, payloads } = event else { return None };
    let host = payloads.into_iter().find_map(|payload| Host::try_from(payload).ok())?;
    Some((from.try_into_full().ok()?, host))
}

/// A status, answered.
fn told(event: AgentEvent) -> Option<Status> {
    let AgentEvent::Request { payload, reply, .. } = event else { return None };
    let status = Status::try_from(payload).ok()?;
    reply.result(None);
    Some(status)
}

fn run_of(ids: &[&str], url: &str) -> Element {
    let task = |id: &&str| Task { id: (*id).into(), url: url.into(), swarm: None };
    Run { tasks: ids.iter().map(task).collect() }.into()
}

fn taken(answer: Option<Element>) -> usize {
    Taken::try_from(answer.expect("an answer with a number")).unwrap().tasks
}

#[tokio::test]
async fn a_host_offers_itself_runs_what_the_manager_orders_and_obeys_no_stranger() {
    let domain = Domain::start(11).await;
    let (manager, mut events) = domain.agent("cm").await;
    let (host_jid, host) = manage(&manager, &mut events).await;
    assert_eq!((host.name.as_str(), host.slots, host.slots_free), ("host1", 1, 1));
    let (url, plan) = domain.order("ultrafast").await;
    let run = |id: &str| run_of(&[id], &url);

    let (stranger, _events) = domain.agent("stranger").await;
    let refused = stranger.iq_set(host_jid.clone().into(), run("evil"), PATIENCE).await.unwrap_err();
    assert!(matches!(refused, IqFailure::Remote(ref e) if e.defined_condition == Condition::Forbidden), "{refused}");

    for _ in 0..2 {
        let answer = manager.iq_set(host_jid.clone().into(), run("l:0:1"), PATIENCE).await.unwrap();
        assert_eq!(taken(answer), 1);
    }
    let mut seen = Vec::new();
    let last = wait(&mut events, |event| {
        let status = told(event)?;
        assert_eq!(status.task, "l:0:1");
        seen.push(status.state.clone());
        matches!(status.state.as_str(), "done" | "failed").then_some(status)
    })
    .await;
    assert_eq!((last.state.as_str(), &last.failure), ("done", &None), "{seen:?}");
    let object_bytes = domain.store.get(&object("out.mp4"), 1 << 24).await.unwrap();
    let sha256 = hex(&Sha256::digest(&object_bytes));
    assert_eq!((last.outputs[0].size, &last.outputs[0].sha256), (object_bytes.len() as u64, &sha256));
    let fragments = last.outputs[0].fragments.as_deref().unwrap();
    let summary: storage::film::part::FragmentSummary = serde_json::from_str(fragments).unwrap();
    assert_eq!(summary.samples, plan.film.frames);
    assert!(last.usage.unwrap().cpu_ms > 0);
}

#[tokio::test]
async fn a_host_that_is_full_says_so_and_tells_a_new_manager_everything() {
    let domain = Domain::start(12).await;
    let (manager, mut events) = domain.agent("cm").await;
    let (host_jid, _) = manage(&manager, &mut events).await;
    let (url, _) = domain.order("placebo").await;
    for (ids, taken_of_them) in [(["one", "two"], 1), (["two", "one"], 0)] {
        let answer = manager.iq_set(host_jid.clone().into(), run_of(&ids, &url), PATIENCE).await.unwrap();
        assert_eq!(taken(answer), taken_of_them, "{ids:?}");
    }
    manager.close().await;

    let (manager, mut events) = domain.agent("cm").await;
    let room = BareJid::new("cluster@conference.a.test").unwrap();
    manager.join(&room, "active", Some(Manager { epoch: 8 }.into())).await.unwrap();
    let (mut host, mut status) = (None, None);
    wait(&mut events, |event| {
        match &event {
            AgentEvent::DirectedPresence { .. } => host = announced(event).or(host.take()),
            _ => status = told(event).or(status.take()),
        }
        (host.is_some() && status.is_some()).then_some(())
    })
    .await;
    assert_eq!(host.unwrap().1.slots_free, 0);
    assert_eq!(status.unwrap().task, "one");
}

#[tokio::test]
async fn neither_a_killed_nor_an_ended_host_leaves_a_process() {
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let mut domain = Domain::start(13).await;
        let (manager, mut events) = domain.agent("cm").await;
        let (host_jid, _) = manage(&manager, &mut events).await;
        let (url, _) = domain.order("placebo").await;
        manager.iq_set(host_jid.into(), run_of(&["t"], &url), PATIENCE).await.unwrap();
        wait(&mut events, |event| told(event).filter(|status| status.state == "running")).await;
        assert_eq!(domain.processes().len(), 2, "a guest and its encoder");
        kill(Pid::from_raw(domain.host.id().unwrap() as i32), signal).unwrap();
        let ended = tokio::time::timeout(PATIENCE, domain.host.wait()).await.expect("an end in time").unwrap();
        assert_eq!(ended.success(), signal == Signal::SIGTERM, "{ended}");
        domain.nothing_is_left().await;
    }
}
