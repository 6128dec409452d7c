//! An S3 server in this process or in one of its own: the demo's and the tests' store, with real signatures, over real HTTP.
//!
//! Protocol by the `s3s` crate; storage in `disk`; verbs in `protocol`. It holds what the product relies on: preconditions on reads
//! and writes, stored ETags, objects that appear whole. No versions, no ACLs, no TLS: it listens on loopback.

mod disk;
mod layer;
mod list;
mod protocol;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use s3s::{
    S3Request, S3Result,
    access::{S3Access, S3AccessContext},
    auth::{Credentials, SimpleAuth},
    dto::{CopyObjectInput, CopySource},
    path::S3Path,
    s3_error,
    service::S3ServiceBuilder,
};
use storage::s3::{S3Config, Secret};
use tokio::{
    net::TcpListener,
    task::{JoinHandle, JoinSet},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::Instrument;

use self::layer::{Cors, Counting, Faulty, Http};
pub use self::layer::{Counters, Faults};

/// How long answers under way may take once the server is told to stop.
const DRAIN: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub struct S3ServerConfig {
    /// Directory of the objects; created when missing.
    pub root: PathBuf,
    /// Port 0 lets the kernel choose.
    pub listen: SocketAddr,
    pub access_key: String,
    pub secret_key: Secret,
    /// Said to clients only: a signature for any region is accepted.
    pub region: String,
    /// Created at start when missing.
    pub buckets: Vec<String>,
    /// Further buckets and the secret of each one's own key, which is named as the bucket: it opens that one and no other, and no
    /// other key opens it.
    pub own: BTreeMap<String, Secret>,
    /// `bucket/prefix` whose objects anyone may GET and HEAD without a signature.
    pub public_read: Vec<String>,
    /// `bucket/prefix` whose objects no key may touch.
    pub forbidden: Vec<String>,
    pub faults: Faults,
}

impl Default for S3ServerConfig {
    /// A port of the kernel's choice and a key made up now.
    fn default() -> Self {
        Self {
            root: PathBuf::from("s3"),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            access_key: "starling".into(),
            secret_key: Secret::new(uuid::Uuid::new_v4().simple().to_string()),
            region: "us-east-1".into(),
            buckets: vec!["films".into()],
            own: BTreeMap::new(),
            public_read: Vec::new(),
            forbidden: Vec::new(),
            faults: Faults::default(),
        }
    }
}

/// A running server; it ends when dropped, and more gently by [`S3Server::stop`].
#[derive(Debug)]
pub struct S3Server {
    address: SocketAddr,
    key: (String, Secret),
    counters: Arc<Mutex<Counters>>,
    accepting: JoinHandle<()>,
    ending: DropGuard,
}

impl S3Server {
    pub async fn start(config: S3ServerConfig) -> anyhow::Result<Self> {
        let disk = disk::Disk::open(&config.root)?;
        for bucket in config.buckets.iter().chain(config.own.keys()) {
            anyhow::ensure!(s3s::path::check_bucket_name(bucket), "{bucket:?} is not a bucket name");
            disk.create_bucket(bucket).with_context(|| format!("create bucket {bucket}"))?;
        }
        let listener =
            TcpListener::bind(config.listen).await.with_context(|| format!("listen on {}", config.listen))?;
        let mut builder = S3ServiceBuilder::new(protocol::Backend::new(disk));
        let mut auth = SimpleAuth::from_single(config.access_key.clone(), config.secret_key.expose().to_owned());
        for (bucket, secret) in &config.own {
            auth.register(bucket.clone(), secret.expose().into());
        }
        builder.set_auth(auth);
        let own = config.own.into_keys().collect();
        builder.set_access(Access { own, public_read: config.public_read, forbidden: config.forbidden });
        let counters = Arc::<Mutex<Counters>>::default();
        let service =
            Counting { inner: Cors { inner: Faulty::new(builder.build(), config.faults) }, counters: counters.clone() };
        let (address, ending) = (listener.local_addr()?, CancellationToken::new());
        let accepting =
            tokio::spawn(accept(listener, service, ending.clone()).instrument(tracing::info_span!("s3", %address)));
        let key = (config.access_key, config.secret_key);
        Ok(Self { address, key, counters, accepting, ending: ending.drop_guard() })
    }

    /// For who comes in with this server's key.
    pub fn client(&self) -> S3Config {
        let endpoint = Some(self.endpoint());
        S3Config {
            endpoint,
            access_key: Some(self.key.0.clone()),
            secret_key: Some(self.key.1.clone()),
            ..S3Config::default()
        }
    }

    /// `http://address:port`
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn counters(&self) -> Counters {
        self.counters.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes no new connection, lets answers under way come to their end for a moment, and frees the port.
    pub async fn stop(self) {
        drop(self.ending);
        let _ = self.accepting.await;
    }
}

async fn accept<S: Http + Clone + Send + 'static>(listener: TcpListener, service: S, ending: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = ending.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let socket = match accepted {
            Ok((socket, _)) => socket,
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let _ = socket.set_nodelay(true);
        let (service, ending) = (service.clone(), ending.clone());
        connections.spawn(
            async move {
                let serving =
                    http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(socket), service);
                let mut serving = std::pin::pin!(serving);
                tokio::select! {
                    _ = serving.as_mut() => {}
                    () = ending.cancelled() => {
                        serving.as_mut().graceful_shutdown();
                        let _ = serving.await;
                    }
                }
            }
            .in_current_span(),
        );
    }
    drop(listener);
    let _ = tokio::time::timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await;
}

/// Who signed may do all in the buckets of that key but what is forbidden; who did not may read what is public.
struct Access {
    /// Buckets with a key of their own, which bears their name.
    own: BTreeSet<String>,
    public_read: Vec<String>,
    forbidden: Vec<String>,
}

impl Access {
    fn opens(&self, key: &Credentials, bucket: &str) -> bool {
        let key = key.access_key.as_str();
        if self.own.contains(bucket) { key == bucket } else { !self.own.contains(key) }
    }
}

#[async_trait::async_trait]
impl S3Access for Access {
    async fn check(&self, cx: &mut S3AccessContext<'_>) -> S3Result<()> {
        let (bucket, path) = match cx.s3_path() {
            S3Path::Object { bucket, key } => (Some(bucket), format!("{bucket}/{key}")),
            S3Path::Bucket { bucket } => (Some(bucket), String::new()),
            S3Path::Root => (None, String::new()),
        };
        let within = |prefixes: &[String]| prefixes.iter().any(|prefix| path.starts_with(prefix.as_str()));
        let public = matches!(cx.s3_op().name(), "GetObject" | "HeadObject") && within(&self.public_read);
        let opens = |key| bucket.is_none_or(|bucket| self.opens(key, bucket));
        let known = public || cx.credentials().is_some_and(opens);
        if known && !within(&self.forbidden) { Ok(()) } else { Err(s3_error!(AccessDenied)) }
    }

    async fn copy_object(&self, request: &mut S3Request<CopyObjectInput>) -> S3Result<()> {
        match (&request.input.copy_source, &request.credentials) {
            (CopySource::Bucket { bucket, .. }, Some(key)) if self.opens(key, bucket) => Ok(()),
            _ => Err(s3_error!(AccessDenied)),
        }
    }
}

/// Runs the S3 server alone until SIGINT or SIGTERM.
#[derive(Clone, Debug, clap::Args)]
pub struct S3Args {
    /// Directory of the objects.
    #[arg(long)]
    pub root: PathBuf,
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    #[arg(long, default_value = "starling")]
    pub access_key: String,
    /// A file whose first line is the secret key.
    #[arg(long)]
    pub secret_key_file: PathBuf,
    #[arg(long, default_value = "us-east-1")]
    pub region: String,
    /// Created when missing; may be repeated.
    #[arg(long = "bucket", default_value = "films")]
    pub buckets: Vec<String>,
    /// BUCKET=FILE: a bucket with a key of its own, named as the bucket, whose secret is FILE's first line; may be repeated.
    #[arg(long = "own-bucket", value_name = "BUCKET=FILE")]
    pub own: Vec<String>,
    /// BUCKET/PREFIX that anyone may read without a signature; may be repeated.
    #[arg(long)]
    pub public_read: Vec<String>,
    /// BUCKET/PREFIX that no key may touch; may be repeated.
    #[arg(long = "forbid", value_name = "BUCKET/PREFIX")]
    pub forbidden: Vec<String>,
    #[command(flatten)]
    pub faults: Faults,
}

/// Serves as `args` say, prints the endpoint in one line when ready, and returns after SIGINT or SIGTERM.
pub async fn run_command(args: S3Args) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut own = BTreeMap::new();
    for own_bucket in &args.own {
        let (bucket, file) = own_bucket.split_once('=').context("--own-bucket is BUCKET=FILE")?;
        own.insert(bucket.to_owned(), read_secret(Path::new(file))?);
    }
    let secret_key = read_secret(&args.secret_key_file)?;
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let server = S3Server::start(S3ServerConfig {
        root: args.root,
        listen: args.listen,
        access_key: args.access_key,
        secret_key,
        region: args.region,
        buckets: args.buckets,
        own,
        public_read: args.public_read,
        forbidden: args.forbidden,
        faults: args.faults,
    })
    .await?;
    println!("{}", server.endpoint());
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    server.stop().await;
    Ok(())
}

pub(crate) fn first_line(file: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read the secret key from {}", file.display()))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

fn read_secret(file: &Path) -> anyhow::Result<Secret> {
    let line = first_line(file)?;
    let secret = line.trim();
    anyhow::ensure!(!secret.is_empty(), "{} holds no secret key", file.display());
    Ok(Secret::new(secret))
}
