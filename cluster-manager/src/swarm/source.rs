//! What `serve` serves, hashed once: a file, a directory, or objects of a store.
//!
//! Bytes of a store leave it once: the hashing pass keeps them on this node's disk, which then is the origin. With `--from-store`
//! they are not kept, and relays read them from the store under leases. What a pass found is kept in the cache directory, so that the
//! next `serve` of the same version hashes nothing, and one broken off goes on.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use clap::Args;
use futures::StreamExt;
use storage::error::StoreError;
use storage::hex::{hex, unhex};
use storage::object::ObjectPath;
use storage::overlay::layout::Layout;
use storage::overlay::metainfo::{self, File, GroupHash, Metainfo};
use storage::overlay::objects::Objects;
use storage::overlay::pass::Pass;
use storage::overlay::store::Files;
use storage::s3::{S3Config, Store};

use super::Failure;

/// Local files are hashed at 1-2 GB/s: less than this is not worth remembering.
const CACHE_FROM: u64 = 256 << 20;
/// Bytes between two savings of what a pass found.
/// What the cache holds goes when no run has used it for so long.
const UNUSED: Duration = Duration::from_secs(30 * 24 * 3600);
const SAVE_BYTES: u64 = 64 << 20;
const READ_BYTES: u64 = 1 << 20;

#[derive(Clone, Debug)]
pub enum Source {
    Local(PathBuf),
    /// As it was written; judged when it is opened.
    Store(String),
}

impl FromStr for Source {
    type Err = Infallible;
    fn from_str(text: &str) -> Result<Self, Infallible> {
        let store = text.starts_with("s3://");
        Ok(if store { Self::Store(text.to_owned()) } else { Self::Local(text.into()) })
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Local(path) => path.display().fmt(f),
            Self::Store(url) => f.write_str(url),
        }
    }
}

/// How to reach the store. Keys come from the file, or as everywhere from the AWS environment, profile or instance.
#[derive(Clone, Debug, Default, Args)]
pub struct StoreArgs {
    /// Endpoint of the store, http://HOST:PORT; AWS itself unless given
    #[arg(long, env = "AWS_ENDPOINT_URL", value_name = "URL")]
    pub endpoint: Option<String>,
    /// Region that signatures name
    #[arg(long, env = "AWS_REGION", value_name = "REGION")]
    pub region: Option<String>,
    /// TOML with the settings of the cluster manager's table `s3` (endpoint, access_key, secret_key_file, …)
    #[arg(long, value_name = "FILE")]
    pub s3_config: Option<PathBuf>,
}

impl StoreArgs {
    pub async fn connect(&self) -> Result<Store, Failure> {
        let mut config = match &self.s3_config {
            None => S3Config::default(),
            Some(file) => {
                let bad = |e: &dyn std::fmt::Display| Failure::new(2, "s3-config", format!("{}: {e}", file.display()));
                let text = std::fs::read_to_string(file).map_err(|e| bad(&e))?;
                toml::from_str(&text).map_err(|e| bad(&e))?
            }
        };
        config.endpoint = self.endpoint.clone().or(config.endpoint);
        config.region = self.region.clone().unwrap_or(config.region);
        Store::connect(&config).await.map_err(|e| at_store(&e))
    }
}

/// A failure of the store, with its hint.
pub fn at_store(error: &StoreError) -> Failure {
    Failure::new(3, error.code(), format!("{error} ({})", error.hint()))
}

/// How far a pass is; shared with whoever shows it.
#[derive(Debug, Default)]
pub struct Hashed {
    pub done: AtomicU64,
    pub total: AtomicU64,
    /// Bytes that left the store for it.
    pub from_store: AtomicU64,
    pub stop: AtomicBool,
    pub left_out: OnceLock<LeftOut>,
}

/// What of a directory is not served: all but files and the directories above them. Links are not followed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    count: usize,
    first: PathBuf,
}

impl LeftOut {
    fn add(&mut self, path: &[String]) {
        self.count += 1;
        if self.count == 1 {
            self.first = path.iter().collect();
        }
    }
}

impl std::fmt::Display for LeftOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { count, first } = self;
        write!(
            f,
            "only files are served: left out are {count} links, empty directories and the like, first {}",
            first.display()
        )
    }
}

/// A source ready to be served.
pub struct Opened {
    pub meta: Metainfo,
    pub hashes: Vec<Vec<GroupHash>>,
    pub held: Held,
    /// What may change while it is served; a copy of our own does not.
    pub original: Option<Original>,
}

/// Local files as they were when they were hashed.
#[derive(Debug)]
pub struct Original {
    pub path: PathBuf,
    list: Vec<File>,
    version: Vec<u8>,
}

impl Original {
    /// By names, lengths and times; a change that leaves these alone is found by the nodes, group by group.
    pub fn has_changed(&self) -> bool {
        // What is only gone from its directory is still open here.
        version(&self.path, &self.list).is_ok_and(|now| now != self.version)
    }
}

/// Where the bytes are.
pub enum Held {
    Here(Files),
    Store(Store, Objects),
}

/// What to do with a source.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    pub source: &'a Source,
    pub store: &'a StoreArgs,
    pub cache: Option<&'a Path>,
    pub from_store: bool,
    pub token: Option<&'a str>,
}

pub async fn open(wanted: Wanted<'_>, hashed: &Arc<Hashed>) -> Result<Opened, Failure> {
    let cache = wanted.cache.map_or_else(cache_dir, Path::to_owned);
    let _ = forget_unused(&cache); // no cache yet, or one that others clean
    match wanted.source {
        Source::Local(_) if wanted.from_store => {
            Err(Failure::new(2, "usage", "--from-store is for sources that begin with s3://"))
        }
        Source::Local(path) => {
            let (path, token, hashed) = (path.clone(), wanted.token.map(str::to_owned), hashed.clone());
            let opened = tokio::task::spawn_blocking(move || local(&path, &cache, token, &hashed)).await;
            opened.map_err(|e| Failure::new(4, "source-unreadable", e))?
        }
        Source::Store(url) => from_store(url, &wanted, &cache, hashed).await,
    }
}

/// Where passes are remembered, as XDG has it.
fn cache_dir() -> PathBuf {
    let set = |key: &str| std::env::var_os(key).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    base.unwrap_or_else(std::env::temp_dir).join("starling/swarm")
}

fn place(cache: &Path, name: &str) -> PathBuf {
    use sha2::Digest;
    cache.join(&hex(&sha2::Sha256::digest(name))[..16])
}

/// Removes what no run has used for [`UNUSED`]: copies of objects are large. Only what [`place`] may have named.
fn forget_unused(cache: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(cache)?.flatten() {
        let name = entry.file_name();
        let is_ours = name.len() == 16 && name.to_str().is_some_and(|name| unhex(name).is_some());
        // Each run writes in there; the bytes themselves may be older.
        let files = std::fs::read_dir(entry.path()).into_iter().flatten().flatten();
        let used = files.filter_map(|file| file.metadata().and_then(|meta| meta.modified()).ok()).max();
        if is_ours && used.and_then(|used| used.elapsed().ok()).is_some_and(|age| age > UNUSED) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}

/// What tells one version of a dataset, cut in one way, from all others.
fn identity(version: &[u8], layout: &Layout) -> [u8; 32] {
    use sha2::Digest;
    let [group, piece, chunk] = [layout.group_len_max(), layout.piece_len_max(), layout.chunk_len_max()];
    let cut = format!("{} {group} {piece} {chunk}", layout.total());
    sha2::Sha256::digest([version, cut.as_bytes()].concat()).into()
}

/// The swarm's secret: as given, else that of the last `serve` of the same version, else a new one.
fn secret(dir: &Path, given: Option<&str>) -> Result<String, Failure> {
    let path = dir.join("token");
    let old = std::fs::read_to_string(&path).ok().filter(|token| !token.is_empty());
    let token = given.map(str::to_owned).or(old).unwrap_or_else(fresh_token);
    let write = || {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600).open(&path)?.write_all(token.as_bytes())
    };
    write().map_err(|e| Failure::new(4, "cache-unwritable", format!("{}: {e}", path.display())))?;
    Ok(token)
}

fn fresh_token() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

fn on_disk(error: storage::overlay::store::Error) -> Failure {
    Failure::new(4, error.code(), format!("{error}: {}; {}", error.source, error.hint()))
}

fn empty() -> Failure {
    Failure::new(4, "source-empty", "there are no bytes to serve")
}

fn changed(source: impl std::fmt::Display) -> Failure {
    Failure::new(4, "source-changed", format!("{source} changed while it was read; serve it again"))
}

async fn from_store(url: &str, wanted: &Wanted<'_>, cache: &Path, hashed: &Hashed) -> Result<Opened, Failure> {
    let path: ObjectPath = url.parse().map_err(|e| Failure { exit: 2, ..at_store(&e) })?;
    let store = wanted.store.connect().await?;
    let objects = Objects::find(&store, &path).await.map_err(|e| at_store(&e))?;
    let files = objects.files(&path);
    let layout = Layout::for_total(objects.total()).ok_or_else(empty)?;
    let dir = place(cache, &format!("{url} at {:?}", wanted.store.endpoint));
    let identity = identity(&objects.identity(), &layout);
    let data = dir.join("data").join(&objects.name);
    let mut pass = Pass::open(&dir, identity, layout).map_err(on_disk)?;
    if !wanted.from_store && pass.at() > 0 && !data.exists() {
        // Hashed before, and not kept: the bytes must come again, so all of it begins anew.
        drop(pass);
        std::fs::remove_dir_all(&dir).map_err(|e| Failure::new(4, "cache-unwritable", e))?;
        pass = Pass::open(&dir, identity, layout).map_err(on_disk)?;
    }
    let keep = if wanted.from_store { None } else { Some(Files::create(&data, &files).map_err(on_disk)?) };
    hashed.total.store(layout.total(), Relaxed);
    let mut at = pass.at();
    hashed.done.store(at, Relaxed);
    let mut unsaved = 0;
    let mut blocks = std::pin::pin!(objects.read(&store, at));
    while let Some(block) = blocks.next().await {
        let block = block.map_err(|e| at_store(&e))?;
        if let Some(files) = &keep {
            files.write(at, &block).map_err(on_disk)?;
        }
        pass.update(&block);
        at += block.len() as u64;
        unsaved += block.len() as u64;
        hashed.done.store(at, Relaxed);
        hashed.from_store.fetch_add(block.len() as u64, Relaxed);
        if unsaved >= SAVE_BYTES {
            keep.as_ref().map_or(Ok(()), Files::sync).and_then(|()| pass.save()).map_err(on_disk)?;
            unsaved = 0;
        }
    }
    let token = secret(&dir, wanted.token)?;
    let finished = pass.finish(&objects.name, files, &token).map_err(on_disk)?;
    let (meta, hashes) = finished.ok_or_else(|| changed(url))?;
    let held = keep.map_or_else(|| Held::Store(store.clone(), objects.clone()), Held::Here);
    Ok(Opened { meta, hashes, held, original: None })
}

/// Reads a local source once and hashes it, or as much of it as is not known yet.
fn local(source: &Path, cache: &Path, token: Option<String>, hashed: &Hashed) -> Result<Opened, Failure> {
    let fail = |e: std::io::Error| Failure::new(4, "source-unreadable", format!("{}: {e}", source.display()));
    let path = source.canonicalize().map_err(fail)?;
    let name = path.file_name().and_then(|n| n.to_str());
    let name = name.ok_or_else(|| Failure::new(4, "source-name", "the source's name is not UTF-8"))?.to_owned();
    let (list, left_out) = list(&path).map_err(fail)?;
    if left_out.count > 0 {
        tracing::warn!(count = left_out.count, first = %left_out.first.display(), "only files are served");
        let _ = hashed.left_out.set(left_out);
    }
    metainfo::check_names(&name, &list).map_err(|e| Failure::new(4, e.code(), e))?;
    let layout = Layout::for_total(list.iter().map(|f| f.len).fold(0, u64::saturating_add)).ok_or_else(empty)?;
    hashed.total.store(layout.total(), Relaxed);
    let files = Files::open(&path, &list).map_err(on_disk)?;
    let version = version(&path, &list).map_err(fail)?;
    let dir = place(cache, &path.to_string_lossy());
    let kept = layout.total() >= CACHE_FROM;
    let mut pass = if kept {
        Pass::open(&dir, identity(&version, &layout), layout).map_err(on_disk)?
    } else {
        Pass::unkept(layout)
    };
    let (mut at, mut unsaved) = (pass.at(), 0);
    while at < layout.total() {
        if hashed.stop.load(Relaxed) {
            return Err(super::interruption());
        }
        let block = files.read(at..(at + READ_BYTES).min(layout.total())).map_err(on_disk)?;
        pass.update(&block);
        at += block.len() as u64;
        unsaved += block.len() as u64;
        hashed.done.store(at, Relaxed);
        if unsaved >= SAVE_BYTES {
            pass.save().map_err(on_disk)?;
            unsaved = 0;
        }
    }
    if version != self::version(&path, &list).map_err(fail)? {
        return Err(changed(source.display()));
    }
    let token = if kept { secret(&dir, token.as_deref())? } else { token.unwrap_or_else(fresh_token) };
    let finished = pass.finish(&name, list.clone(), &token).map_err(on_disk)?;
    let (meta, hashes) = finished.ok_or_else(|| changed(source.display()))?;
    Ok(Opened { meta, hashes, held: Held::Here(files), original: Some(Original { path, list, version }) })
}

/// Names, lengths and times of change.
fn version(root: &Path, list: &[File]) -> std::io::Result<Vec<u8>> {
    use std::os::unix::fs::MetadataExt;
    let mut text = String::new();
    for file in list {
        let path = file.path.iter().fold(root.to_owned(), |path, part| path.join(part));
        let meta = path.metadata()?;
        text += &format!("{:?} {} {} {}\n", file.path, meta.len(), meta.mtime(), meta.mtime_nsec());
    }
    Ok(text.into_bytes())
}

/// The files of a directory in order of names, or the file itself; and what else is there.
pub fn list(path: &Path) -> std::io::Result<(Vec<File>, LeftOut)> {
    let (mut list, mut left_out) = (Vec::new(), LeftOut::default());
    if path.is_dir() {
        walk(path, &mut Vec::new(), &mut list, &mut left_out)?;
    } else {
        list.push(File { path: vec![], len: path.metadata()?.len() });
    }
    Ok((list, left_out))
}

fn walk(dir: &Path, prefix: &mut Vec<String>, list: &mut Vec<File>, left_out: &mut LeftOut) -> std::io::Result<()> {
    let mut entries: Vec<_> = std::fs::read_dir(dir)?.collect::<Result<_, _>>()?;
    if entries.is_empty() && !prefix.is_empty() {
        left_out.add(prefix);
    }
    entries.sort_by_key(|e| e.file_name());
    for entry in entries {
        let name = entry.file_name().into_string().map_err(|_| std::io::Error::other("a file name is not UTF-8"))?;
        let kind = entry.file_type()?;
        prefix.push(name);
        if kind.is_dir() {
            walk(&entry.path(), prefix, list, left_out)?;
        } else if kind.is_file() {
            list.push(File { path: prefix.clone(), len: entry.metadata()?.len() });
        } else {
            left_out.add(prefix);
        }
        prefix.pop();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_has_used_for_long_leaves_the_cache_and_nothing_else_does() {
        let cache = tempfile::tempdir().unwrap();
        let make = |name: &str, days: u64| {
            let dir = cache.path().join(name);
            std::fs::create_dir_all(dir.join("data")).unwrap();
            let file = std::fs::File::create(dir.join("token")).unwrap();
            let used = std::time::SystemTime::now() - Duration::from_secs(days * 24 * 3600);
            file.set_modified(used).unwrap();
            std::fs::File::open(dir.join("data")).unwrap().set_modified(used).unwrap();
            dir
        };
        let old = make("0123456789abcdef", 31);
        let others = [make("fedcba9876543210", 29), make("holiday-pictures", 400), make("0123456789abcde", 400)];
        forget_unused(cache.path()).unwrap();
        assert!(!old.exists() && others.iter().all(|dir| dir.join("token").exists()));
        assert!(forget_unused(&cache.path().join("none")).is_err());
    }
}
