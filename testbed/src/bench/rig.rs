//! A world whose S3 server counts for us, and jobs submitted to it as a person would.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cluster_manager::view::JobDoc;
use storage::s3::{S3Config, Secret};
use tokio::runtime::Runtime;

use super::cpu;
use crate::demo::{job_xml, put_film};
use crate::film::{self, Film};
use crate::s3::{Counters, S3Server, S3ServerConfig};
use crate::world::{Board, StoreOptions, World, WorldOptions};

/// No film here takes longer; a job that does hangs.
const PATIENCE: Duration = Duration::from_secs(3600);
const SECRET: &str = "benchmark-only";

/// An S3 server on a thread of its own, with its counters at hand.
pub struct Shelf {
    server: S3Server,
    // The server's tasks live in it.
    runtime: Option<Runtime>,
    pub key_file: PathBuf,
}

impl Shelf {
    pub async fn start(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let key_file = dir.join("s3-secret");
        std::fs::write(&key_file, SECRET).context("write the key of the store")?;
        let config =
            S3ServerConfig { root: dir.join("objects"), secret_key: Secret::new(SECRET), ..S3ServerConfig::default() };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let server = runtime.spawn(S3Server::start(config)).await??;
        Ok(Self { server, runtime: Some(runtime), key_file })
    }

    pub fn endpoint(&self) -> String {
        self.server.endpoint()
    }

    pub fn config(&self) -> S3Config {
        self.server.client()
    }

    pub fn counters(&self) -> Counters {
        self.server.counters()
    }

    pub fn options(&self) -> StoreOptions {
        StoreOptions {
            s3_endpoint: Some(self.endpoint()),
            s3_access_key: Some("starling".to_owned()),
            s3_secret_key_file: Some(self.key_file.clone()),
            ..StoreOptions::default()
        }
    }
}

impl Drop for Shelf {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Three domains and the store.
pub struct Rig {
    pub world: World,
    pub shelf: Shelf,
    // Removed last.
    pub dir: tempfile::TempDir,
}

/// What a job was and took.
pub struct Outcome {
    pub document: JobDoc,
    /// From submission to the end, by the cluster manager's clock.
    pub wall: Duration,
    /// The same by ours, with starting `starling` and logging in, both ways.
    pub outside: Duration,
    /// Of all the world's processes but the store, by program.
    pub cpu_seconds: BTreeMap<String, f64>,
}

impl Rig {
    /// `hosts` host managers in each of three domains, with one slot each.
    pub async fn start(hosts: u32) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("starling-bench-").tempdir()?;
        let shelf = Shelf::start(&dir.path().join("s3")).await?;
        let options = WorldOptions { hosts, store: shelf.options(), ..WorldOptions::new(dir.path().join("world")) };
        let world = World::start(&options, &mut Board::silent()).await?;
        Ok(Self { world, shelf, dir })
    }

    /// Makes the film and puts it into the store: its path here, its `s3://` name.
    pub async fn film(&self, film: &Film) -> Result<(PathBuf, String)> {
        let name = format!("f-{}.{}", uuid::Uuid::new_v4().simple(), film.container.extension());
        let (path, film) = (self.dir.path().join(name), film.clone());
        let made = path.clone();
        tokio::task::spawn_blocking(move || film::make(&film, &made)).await??;
        let source = put_film(&self.world.document.s3, &path, None).await?;
        Ok((path, source))
    }

    /// Submits a job for `source` to the first domain and waits until it is done.
    ///
    /// # Errors
    /// The job failed, or a process of the world ended.
    pub async fn job(&mut self, source: &str) -> Result<Outcome> {
        let client = self.world.client()?;
        let target = format!("s3://{}/out/{}/", self.world.document.s3.bucket, uuid::Uuid::new_v4().simple());
        let job = job_xml(source, &target, &[480]);
        let pids: Vec<u32> = self.world.document.processes.iter().map(|process| process.pid).collect();
        let (began, before) = (Instant::now(), cpu::seconds_by_name(&pids));
        let work = async {
            let id = client.submit(&job).await?;
            tokio::time::timeout(PATIENCE, client.ended(&id)).await?
        };
        let document = tokio::select! {
            document = work => document?,
            failure = self.world.failure() => bail!("{failure}"),
        };
        let outside = began.elapsed();
        if document.state != "done" {
            bail!("the job is {}: {:?}", document.state, document.error);
        }
        let wall = Duration::from_millis(document.ended_at.unwrap_or(0).saturating_sub(document.submitted_at));
        let mut cpu_seconds = cpu::seconds_by_name(&pids);
        cpu_seconds.iter_mut().for_each(|(name, s)| *s -= before.get(name).copied().unwrap_or_default());
        cpu_seconds.retain(|_, s| *s >= 0.01);
        Ok(Outcome { document, wall, outside, cpu_seconds })
    }
}
