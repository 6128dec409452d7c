//! A world with a film in its store, and a client of its home.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

use cluster_manager::view::{DomainDoc, JobDoc};
use federation::message::Ad;
use federation::xmpp::{Agent, AgentEvent, BareJid, XmppConfig};
use serde_json::Value;
use storage::s3::{ObjectPath, PutOptions, S3Config, Store};
use testbed::film::{self, Expected, Film};
use testbed::world::{Board, Client, DomainAccess, World, WorldOptions};
use tokio::process::{Child, Command};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};

pub const LOOK: Duration = Duration::from_millis(20);
/// On a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(240);
/// A world is heavy: two at a time, so that one works while the other waits.
static TURNS: Semaphore = Semaphore::const_new(2);

pub struct Stage {
    pub world: World,
    pub store: Store,
    dir: tempfile::TempDir,
    _turn: SemaphorePermit<'static>,
}

/// A job over the stage's film.
#[derive(Clone, Debug)]
pub struct Order {
    pub source: String,
    pub target: String,
    pub preset: &'static str,
    /// Of the rendition, in pixels.
    pub height: u32,
}

impl Order {
    pub fn new(source: &str, target: &str) -> Self {
        Self { source: source.into(), target: target.into(), preset: "veryfast", height: 240 }
    }

    /// Slow enough to be met at work, also on a fast machine.
    pub fn slow(target: &str) -> Self {
        Self { preset: "veryslow", height: 480, ..Self::new("film.mp4", target) }
    }

    pub fn xml(&self) -> String {
        let Self { source, target, preset, height } = self;
        format!(
            "<job xmlns=\"urn:starling:job:1\" kind=\"transcode\"><source>s3://films/{source}</source>\
             <target>s3://films/{target}/</target><rendition height=\"{height}\" codec=\"h264\" crf=\"23\" preset=\"{preset}\"/>\
             <options chunk-seconds=\"2\"/></job>"
        )
    }
}

/// Cut into four parts of two seconds; the sound is the fifth.
fn spec() -> Film {
    Film { seconds: 8, height: 360, ..Film::default() }
}

pub fn film_bytes() -> Vec<u8> {
    static FILM: OnceLock<Vec<u8>> = OnceLock::new();
    let make = || {
        let dir = tempfile::tempdir().unwrap();
        film::make(&spec(), &dir.path().join("film.mp4")).unwrap();
        std::fs::read(dir.path().join("film.mp4")).unwrap()
    };
    FILM.get_or_init(make).clone()
}

impl Stage {
    pub async fn start(set: impl FnOnce(&mut WorldOptions)) -> Self {
        Self::start_with_keys(None, set).await
    }

    /// Three, two or one domain, named from `a.test` on.
    pub async fn of(domains: usize, hosts: u32, slots: u32) -> Self {
        Self::start(|options| {
            options.domains.truncate(domains);
            (options.hosts, options.slots) = (hosts, slots);
        })
        .await
    }

    /// `keys`: those that open the store, where the world itself has others.
    pub async fn start_with_keys(keys: Option<S3Config>, set: impl FnOnce(&mut WorldOptions)) -> Self {
        let turn = TURNS.acquire().await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut options = WorldOptions::new(dir.path().join("world"));
        set(&mut options);
        let world = World::start(&options, &mut Board::silent()).await.unwrap();
        let store = Store::connect(&keys.unwrap_or_else(|| world.document.s3.config())).await.unwrap();
        let stage = Self { world, store, dir, _turn: turn };
        stage.put("film.mp4", film_bytes()).await;
        stage
    }

    pub async fn end(self) {
        self.world.end().await;
    }

    pub fn state(&self) -> &Path {
        self.world.state()
    }

    pub fn client(&self) -> Client {
        self.world.client().unwrap()
    }

    pub fn domain(&self, n: usize) -> &DomainAccess {
        &self.world.document.domains[n]
    }

    /// The account of a domain's cluster manager, in a session of its own.
    pub fn manager(&self, domain: &str) -> (Agent, mpsc::Receiver<AgentEvent>) {
        let config = std::fs::read_to_string(self.state().join(domain).join("cm/config.toml")).unwrap();
        let config: toml::Table = toml::from_str(&config).unwrap();
        let xmpp: XmppConfig = config["xmpp"].clone().try_into().unwrap();
        Agent::start(&xmpp).unwrap()
    }

    /// A file beside the world, for other programs to read.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    pub async fn put(&self, key: &str, bytes: Vec<u8>) {
        self.store.put(&object(key), bytes.into(), PutOptions::default()).await.unwrap();
    }

    /// Key and ETag of all objects below a prefix.
    pub async fn list(&self, prefix: &str) -> Vec<(String, String)> {
        let listed = self.store.list(&object(prefix), 10_000).await.unwrap();
        listed.into_iter().map(|object| (object.key, object.etag)).collect()
    }

    /// How many of so many requests the store answers with 503.
    pub async fn count_refusals(&self, requests: u32) -> u32 {
        let http = storage::fetch::http().no_proxy().build().unwrap();
        let mut refused = 0;
        for _ in 0..requests {
            let answer = http.get(&self.world.document.s3.endpoint).send().await.unwrap();
            refused += u32::from(answer.status() == 503);
        }
        refused
    }

    /// The command line, asked for JSON.
    pub fn starling(&self, arguments: &[&str]) -> Command {
        let mut starling = self.client().starling().unwrap();
        starling.arg("--json").args(arguments);
        starling.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        starling
    }

    /// What the command line prints, and its exit code.
    pub async fn ask(&self, arguments: &[&str]) -> (i32, Value) {
        answer(self.starling(arguments).spawn().unwrap()).await
    }

    /// Hands a job in as a person does; gives its id.
    pub async fn submit(&self, order: &Order) -> String {
        self.client().submit(&order.xml()).await.unwrap()
    }

    pub async fn job(&self, id: &str) -> JobDoc {
        self.client().job(id).await.unwrap()
    }

    /// All domains as the home sees them.
    pub async fn domains(&self) -> Vec<DomainDoc> {
        self.client().domains().await.unwrap()
    }

    /// Waits until `look` finds something.
    pub async fn wait<T>(&self, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
        let patience = tokio::time::Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look().await {
                return found;
            }
            assert!(tokio::time::Instant::now() < patience, "waited in vain for {what}");
            tokio::time::sleep(LOOK).await;
        }
    }

    pub async fn job_when(&self, id: &str, is_so: impl Fn(&JobDoc) -> bool) -> JobDoc {
        let client = self.client();
        let look = async || client.job(id).await.ok().filter(|job| is_so(job) || job.ended_at.is_some());
        let job = self.wait("the job", look).await;
        assert!(is_so(&job), "it has ended before: {job:?}");
        job
    }

    pub async fn end_of(&self, id: &str) -> JobDoc {
        self.job_when(id, |job| job.ended_at.is_some()).await
    }

    pub async fn ended(&self, order: &Order) -> JobDoc {
        self.end_of(&self.submit(order).await).await
    }

    pub async fn done(&self, order: &Order) -> JobDoc {
        let job = self.ended(order).await;
        assert_eq!(job.state, "done", "{:?}", job.error);
        job
    }

    /// Waits for the job's end and decodes what it made.
    pub async fn ends_right(&self, id: &str) -> JobDoc {
        let job = self.end_of(id).await;
        self.is_right(&job).await;
        job
    }

    /// Each frame of the result, decoded from outside.
    pub async fn is_right(&self, job: &JobDoc) {
        assert_eq!(job.state, "done", "{:?}", job.error);
        shows_each_frame(&job.results.as_ref().unwrap().hls).await;
    }

    /// The same for a player that has a copy of the result, because this store would refuse it too much.
    pub async fn is_right_when_copied(&self, target: &str) {
        let copy = self.dir.path().join("copy");
        for (key, _) in self.list(&format!("{target}/")).await {
            let file = copy.join(&key);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, self.store.get(&object(&key), 1 << 30).await.unwrap()).unwrap();
        }
        shows_each_frame(copy.join(target).join("master.m3u8").to_str().unwrap()).await;
    }

    /// Waits until the home holds this against that domain.
    pub async fn marked(&self, domain: &str, mark: &str) {
        let look = async || {
            let domains = self.domains().await;
            domains.iter().any(|d| d.name == domain && d.marks.iter().any(|m| m == mark)).then_some(())
        };
        self.wait(&format!("{domain} to be marked {mark}"), look).await;
    }

    pub async fn crash_and_restart(&mut self, name: &str) {
        let recipe = self.world.crash(name).await.unwrap();
        self.world.restart(recipe).await.unwrap();
    }

    /// Every cluster manager sees every domain in health and with all its slots.
    pub async fn is_whole(&self, slots: u32) {
        let http = storage::fetch::http().no_proxy().build().unwrap();
        for domain in &self.world.document.domains {
            let look = async || {
                let answer = http.get(format!("{}/api/domains", domain.console_url)).send().await.ok()?;
                let seen: Vec<DomainDoc> = answer.json().await.ok()?;
                let fine = |d: &&DomainDoc| d.health == "ok" && d.slots == slots;
                (seen.iter().filter(fine).count() == self.world.document.domains.len()).then_some(())
            };
            self.wait(&format!("{} to see all domains", domain.name), look).await;
        }
    }

    /// A process that works below the world's directory and whose command line begins so.
    pub async fn process(&self, program: &str, below: &str) -> i32 {
        let mark = self.state().join(below).display().to_string();
        let look =
            async || processes(&mark).into_iter().find(|(_, line)| line[0].ends_with(program)).map(|(pid, _)| pid);
        self.wait(&format!("{program} below {mark}"), look).await
    }
}

/// More room than anybody has, for nothing.
pub fn ad(domain: &str) -> Ad {
    Ad {
        domain: domain.into(),
        epoch: 1,
        seq: 1,
        health: "ok".into(),
        slots: 100,
        slots_free: 100,
        price: 0.0,
        region: None,
        kinds: "transcode".into(),
        version: "0".into(),
    }
}

/// The room where all domains meet, on the first one's server.
pub fn federation_room() -> BareJid {
    "federation@conference.a.test".parse().unwrap()
}

/// Ids and command lines of all processes that are told of this directory.
pub fn processes(mark: &str) -> Vec<(i32, Vec<String>)> {
    let pids = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    let line = |pid: i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).split('\0').map(str::to_owned).collect::<Vec<_>>()
    };
    pids.map(|pid| (pid, line(pid))).filter(|(_, line)| line.iter().any(|word| word.contains(mark))).collect()
}

/// The files below the directory that hold these bytes.
pub fn holds(dir: &Path, bytes: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => found.extend(holds(&path, bytes)),
            kind if kind.is_file() => {
                let text = std::fs::read(&path).unwrap_or_default();
                found.extend(text.windows(bytes.len()).any(|w| w == bytes.as_bytes()).then_some(path));
            }
            _ => {}
        }
    }
    found
}

/// What a command line that was asked for JSON printed, and its exit code.
pub async fn answer(child: Child) -> (i32, Value) {
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("an end").unwrap();
    let (said, complaint) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let document = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}\n{complaint}"));
    (output.status.code().unwrap_or(-1), document)
}

pub fn object(key: &str) -> ObjectPath {
    ObjectPath::new("films", key).unwrap()
}

async fn shows_each_frame(playlist: &str) {
    let expected = Expected { frames: spec().frames(), rate: spec().rate };
    let report = film::verify_any(playlist, expected).await.unwrap();
    assert_eq!(report.problems(expected), Vec::<String>::new());
    assert_eq!(report.video.len(), 1);
}
