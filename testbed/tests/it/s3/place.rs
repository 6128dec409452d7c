//! A store to ask, and the clients that ask it.

use std::{
    any::Any,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use bytes::Bytes;
use storage::{
    fetch::{FetchOptions, Fetcher},
    retry::RetryPolicy,
    s3::{ObjectPath, PutOptions, S3Config, Secret, Store},
};
use tempfile::TempDir;
use testbed::s3::{Faults, S3Server, S3ServerConfig};

pub const HOUR: Duration = Duration::from_secs(3600);
/// Patient as in the product, but quick.
pub const QUICK: RetryPolicy = RetryPolicy { attempts_max: 12, first_delay_ms: 1, longest_delay_ms: 20 };

/// One store with a bucket `films`; it ends when dropped.
pub struct Place {
    pub store: Store,
    pub fetcher: Fetcher,
    pub config: S3Config,
    _keep: Box<dyn Any>,
}

impl Place {
    pub async fn embedded() -> Self {
        let (place, server) = Self::faulty(Faults::default()).await;
        Self { _keep: Box::new((place._keep, server)), ..place }
    }

    /// The embedded server with faults; it is given beside the place, so that tests can count.
    pub async fn faulty(faults: Faults) -> (Self, S3Server) {
        let dir = tempfile::tempdir().unwrap();
        let server = S3Server::start(config(&dir, faults)).await.unwrap();
        let place = Self::at(server.endpoint(), Box::new(dir)).await;
        (place, server)
    }

    /// None, and a word on stderr, where there is no `versitygw`.
    pub async fn versitygw() -> Option<Self> {
        let Some(program) = versitygw() else {
            eprintln!("skipped: no versitygw in STARLING_VERSITYGW or PATH");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        for name in ["data/films", "meta"] {
            std::fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new(program)
            .args([
                "--port",
                &format!("127.0.0.1:{port}"),
                "--access",
                "starling",
                "--secret",
                "hush-hush",
                "--quiet",
                "posix",
                "--sidecar",
            ])
            .args([dir.path().join("meta"), dir.path().join("data")])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut child = Ended(child);
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            assert!(child.0.try_wait().unwrap().is_none(), "versitygw ended");
            tokio::task::yield_now().await;
        }
        Some(Self::at(format!("http://127.0.0.1:{port}"), Box::new((child, dir))).await)
    }

    pub async fn at(endpoint: String, keep: Box<dyn Any>) -> Self {
        let config = S3Config {
            endpoint: Some(endpoint),
            access_key: Some("starling".into()),
            secret_key: Some(Secret::new("hush-hush")),
            retry: QUICK,
            ..Default::default()
        };
        let fetcher =
            Fetcher::new(FetchOptions { retry: QUICK, get_bytes_max: 256 << 10, ..Default::default() }).unwrap();
        Self { store: Store::connect(&config).await.unwrap(), fetcher, config, _keep: keep }
    }

    pub async fn put(&self, key: &str, bytes: impl Into<Bytes>) -> String {
        self.store.put(&path(key), bytes.into(), PutOptions::default()).await.unwrap()
    }

    pub async fn url(&self, key: &str) -> String {
        self.store.presign_get(&path(key), HOUR).await.unwrap()
    }
}

pub fn config(dir: &TempDir, faults: Faults) -> S3ServerConfig {
    S3ServerConfig {
        root: dir.path().to_owned(),
        secret_key: Secret::new("hush-hush"),
        public_read: vec!["films/public/".into()],
        faults,
        ..Default::default()
    }
}

pub fn path(key: &str) -> ObjectPath {
    ObjectPath::new("films", key).unwrap()
}

/// Bytes of which no two runs are alike.
pub fn noise(length: usize) -> Bytes {
    let mut rng = fastrand::Rng::with_seed(7);
    std::iter::repeat_with(|| rng.u8(..)).take(length).collect()
}

/// A request as any HTTP client makes it, without retries and judgement.
pub fn plain(method: reqwest::Method, url: &str) -> reqwest::RequestBuilder {
    storage::fetch::http().build().unwrap().request(method, url)
}

fn versitygw() -> Option<PathBuf> {
    let named = std::env::var_os("STARLING_VERSITYGW").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    named.or_else(|| std::env::split_paths(&path).map(|dir| dir.join("versitygw")).find(|file| file.is_file()))
}

/// A process that does not outlive its test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
