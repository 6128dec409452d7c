//! A world with a film in its store, and a client of its home.

use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use cluster_manager::view::{DomainDoc, JobDoc};
use serde::de::DeserializeOwned;
use storage::s3::{ObjectPath, PutOptions, S3Config, Secret, Store};
use testbed::film::{self, Expected, Film};
use testbed::process::{tied, workspace_binary};
use testbed::world::{Board, World, WorldOptions};

pub const LOOK: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(120);
/// A world is heavy: one at a time.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

pub struct Stage {
    pub world: World,
    pub film: Vec<u8>,
    pub store: Store,
    http: reqwest::Client,
    dir: tempfile::TempDir,
    _turn: tokio::sync::MutexGuard<'static, ()>,
}

/// A job over the stage's film.
#[derive(Clone, Debug)]
pub struct Order {
    pub source: String,
    pub target: String,
    pub preset: &'static str,
}

impl Order {
    pub fn new(source: &str, target: &str) -> Self {
        Self { source: source.into(), target: target.into(), preset: "veryfast" }
    }

    fn xml(&self) -> String {
        let Self { source, target, preset } = self;
        format!(
            "<job xmlns=\"urn:starling:job:1\" kind=\"transcode\"><source>s3://films/{source}</source>\
             <target>s3://films/{target}/</target><rendition height=\"240\" codec=\"h264\" crf=\"23\" preset=\"{preset}\"/>\
             <options chunk-seconds=\"2\"/></job>"
        )
    }
}

fn spec() -> Film {
    Film { seconds: 8, height: 360, ..Film::default() }
}

fn film_bytes() -> Vec<u8> {
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
        let turn = TURN.lock().await;
        let dir = tempfile::tempdir().unwrap();
        let mut options = WorldOptions::new(dir.path());
        set(&mut options);
        let world = World::start(&options, &mut Board::new()).await.unwrap();
        let s3 = &world.document.s3;
        let config = S3Config {
            endpoint: Some(s3.endpoint.clone()),
            region: s3.region.clone(),
            access_key: Some(s3.access_key.clone()),
            secret_key: Some(Secret::new(s3.secret_key.clone())),
            ..S3Config::default()
        };
        let store = Store::connect(&config).await.unwrap();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let stage = Self { world, film: film_bytes(), store, http, dir, _turn: turn };
        stage.put("film.mp4", stage.film.clone()).await;
        stage
    }

    pub async fn end(self) {
        self.world.end().await;
    }

    pub fn state(&self) -> &Path {
        self.world.state()
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
        let mut refused = 0;
        for _ in 0..requests {
            let answer = self.http.get(&self.world.document.s3.endpoint).send().await.unwrap();
            refused += u32::from(answer.status() == 503);
        }
        refused
    }

    /// Hands a job in as a person does; gives its id.
    pub async fn submit(&self, order: &Order) -> String {
        let file = self.dir.path().join(format!("{}.xml", order.target));
        std::fs::write(&file, order.xml()).unwrap();
        let mut starling = tokio::process::Command::from(tied(workspace_binary("starling").unwrap()));
        let output = starling.arg("--json").arg("--state").arg(self.state()).arg("submit").arg(file).output();
        let output = output.await.unwrap();
        assert!(output.status.success(), "{output:?}");
        let job: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        job["id"].as_str().unwrap().to_owned()
    }

    pub async fn job(&self, id: &str) -> JobDoc {
        self.ask(&format!("api/jobs/{id}")).await
    }

    /// All domains as the home sees them.
    pub async fn domains(&self) -> Vec<DomainDoc> {
        self.ask("api/domains").await
    }

    async fn ask<T: DeserializeOwned>(&self, path: &str) -> T {
        let url = format!("{}/{path}", self.world.document.domains[0].console_url);
        self.http.get(url).send().await.unwrap().error_for_status().unwrap().json().await.unwrap()
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
        let look = async || Some(self.job(id).await).filter(|job| is_so(job) || job.ended_at.is_some());
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
