//! Buckets and objects in a directory.
//!
//! Data files are written once, under a name of their own, and never changed; an object is a small JSON record that names its data
//! file. Renaming the record into place is the moment at which an object appears, whole, with its ETag: a reader has the old file or
//! the new one. Keys are hashed into record names, so no key is ever a path. All records are also held in memory, which gives
//! listings their order and preconditions their one lock. Multipart uploads live in memory and end with the process.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use storage::hex::hex;
use uuid::Uuid;

/// The record of one object.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Object {
    pub key: String,
    pub size: u64,
    /// Without quotes.
    pub etag: String,
    pub modified: SystemTime,
    #[serde(flatten)]
    pub about: About,
    /// Name of the data file in the bucket's directory.
    data: String,
}

/// What the writer said of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    pub content_type: Option<String>,
    pub metadata: BTreeMap<String, String>,
}

/// What must hold for a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    None,
    Absent,
    /// Present with this ETag, or with any.
    Present(Option<String>),
}

/// Why a write did not happen.
#[derive(Debug)]
pub enum Refusal {
    NoBucket,
    Precondition,
    Io(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

type Bucket = BTreeMap<String, Arc<Object>>;

#[derive(Debug)]
pub struct Disk {
    root: PathBuf,
    buckets: Mutex<BTreeMap<String, Bucket>>,
}

/// A data file that belongs to no object yet; deleted unless it is committed.
#[derive(Debug)]
pub struct Staged {
    path: PathBuf,
    committed: bool,
}

impl Staged {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Data that is whole and waits for its name.
#[derive(Debug)]
pub struct Written {
    pub data: Staged,
    pub size: u64,
    pub etag: String,
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.committed {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Disk {
    /// Reads what is in `root` and sweeps away what an earlier process left half done.
    pub fn open(root: &Path) -> anyhow::Result<Self> {
        let staging = root.join(".staging");
        if staging.exists() {
            fs::remove_dir_all(&staging).context("sweep the staging directory")?;
        }
        fs::create_dir_all(&staging).with_context(|| format!("create {}", staging.display()))?;
        let mut buckets = BTreeMap::new();
        for entry in fs::read_dir(root).with_context(|| format!("read {}", root.display()))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type()?.is_dir() && !name.starts_with('.') {
                buckets.insert(name.clone(), load(&entry.path()).with_context(|| format!("read bucket {name}"))?);
            }
        }
        Ok(Self { root: root.to_owned(), buckets: Mutex::new(buckets) })
    }

    /// Runs `look` on a bucket; none when there is no such bucket.
    pub fn with_bucket<T>(&self, bucket: &str, look: impl FnOnce(&BTreeMap<String, Arc<Object>>) -> T) -> Option<T> {
        self.lock().get(bucket).map(look)
    }

    pub fn bucket_names(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// False when it was there already.
    pub fn create_bucket(&self, bucket: &str) -> io::Result<bool> {
        let mut buckets = self.lock();
        if buckets.contains_key(bucket) {
            return Ok(false);
        }
        fs::create_dir_all(self.root.join(bucket))?;
        buckets.insert(bucket.to_owned(), Bucket::new());
        Ok(true)
    }

    /// False when it holds objects.
    pub fn delete_bucket(&self, bucket: &str) -> io::Result<bool> {
        let mut buckets = self.lock();
        if buckets.get(bucket).is_some_and(|objects| !objects.is_empty()) {
            return Ok(false);
        }
        buckets.remove(bucket);
        fs::remove_dir_all(self.root.join(bucket))?;
        Ok(true)
    }

    pub fn find(&self, bucket: &str, key: &str) -> Option<Arc<Object>> {
        self.with_bucket(bucket, |objects| objects.get(key).cloned()).flatten()
    }

    /// Opens the object as it is now: record and bytes belong together, whoever writes meanwhile.
    pub fn read(&self, bucket: &str, key: &str) -> io::Result<(Arc<Object>, fs::File)> {
        let buckets = self.lock();
        let object = buckets.get(bucket).and_then(|objects| objects.get(key)).ok_or(io::ErrorKind::NotFound)?;
        let file = fs::File::open(self.root.join(bucket).join(&object.data))?;
        Ok((object.clone(), file))
    }

    /// A new place to write data to.
    pub fn stage(&self) -> Staged {
        Staged { path: self.root.join(".staging").join(Uuid::new_v4().simple().to_string()), committed: false }
    }

    /// Makes staged data the object, if `condition` holds; of several writers under one key exactly one sees it absent.
    pub fn commit(
        &self,
        bucket: &str,
        key: &str,
        written: Written,
        about: About,
        condition: &Condition,
    ) -> Result<Arc<Object>, Refusal> {
        let Written { mut data, size, etag } = written;
        let mut buckets = self.lock();
        let objects = buckets.get_mut(bucket).ok_or(Refusal::NoBucket)?;
        let holds = match (condition, objects.get(key)) {
            (Condition::None, _) | (Condition::Absent, None) | (Condition::Present(None), Some(_)) => true,
            (Condition::Present(Some(etag)), Some(there)) => *etag == there.etag,
            _ => false,
        };
        if !holds {
            return Err(Refusal::Precondition);
        }
        let dir = self.root.join(bucket);
        let name = format!("{}.data", Uuid::new_v4().simple());
        let object =
            Arc::new(Object { key: key.to_owned(), size, etag, modified: SystemTime::now(), about, data: name });
        let record = self.stage();
        fs::write(record.path(), serde_json::to_vec(&*object).map_err(io::Error::other)?)?;
        fs::rename(data.path(), dir.join(&object.data))?;
        data.committed = true;
        fs::rename(record.path(), dir.join(record_name(key)))?;
        if let Some(old) = objects.insert(key.to_owned(), object.clone()) {
            let _ = fs::remove_file(dir.join(&old.data));
        }
        Ok(object)
    }

    /// A second name for an object's data, to be committed elsewhere: a copy without copying.
    pub fn link(&self, bucket: &str, object: &Object) -> io::Result<Staged> {
        let staged = self.stage();
        fs::hard_link(self.root.join(bucket).join(&object.data), staged.path())?;
        Ok(staged)
    }

    pub fn delete(&self, bucket: &str, key: &str) -> Result<(), Refusal> {
        let mut buckets = self.lock();
        let objects = buckets.get_mut(bucket).ok_or(Refusal::NoBucket)?;
        if let Some(object) = objects.remove(key) {
            let dir = self.root.join(bucket);
            fs::remove_file(dir.join(record_name(key)))?;
            let _ = fs::remove_file(dir.join(&object.data));
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Bucket>> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn record_name(key: &str) -> String {
    hex(&Sha256::digest(key)) + ".json"
}

fn load(dir: &Path) -> anyhow::Result<Bucket> {
    let names: Vec<_> = fs::read_dir(dir)?.collect::<Result<Vec<_>, _>>()?.iter().map(fs::DirEntry::path).collect();
    let is = |path: &&PathBuf, end: &str| path.extension().is_some_and(|found| found == end);
    let mut objects = Bucket::new();
    for record in names.iter().filter(|path| is(path, "json")) {
        let object: Object =
            serde_json::from_slice(&fs::read(record)?).with_context(|| format!("read {}", record.display()))?;
        objects.insert(object.key.clone(), Arc::new(object));
    }
    for data in names.iter().filter(|path| is(path, "data")) {
        if !objects.values().any(|object| data.ends_with(&object.data)) {
            fs::remove_file(data)?;
        }
    }
    Ok(objects)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(disk: &Disk, key: &str, bytes: &[u8], condition: &Condition) -> Result<Arc<Object>, Refusal> {
        let staged = disk.stage();
        fs::write(staged.path(), bytes)?;
        let written = Written { data: staged, size: bytes.len() as u64, etag: "e".into() };
        disk.commit("films", key, written, About::default(), condition)
    }

    #[test]
    fn objects_outlive_the_process_and_leftovers_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path()).unwrap();
        disk.create_bucket("films").unwrap();
        put(&disk, "../../x", b"one", &Condition::None).unwrap();
        put(&disk, "../../x", b"two", &Condition::None).unwrap();
        fs::write(dir.path().join("films/orphan.data"), b"half").unwrap();
        fs::write(dir.path().join(".staging/left"), b"half").unwrap();
        let disk = Disk::open(dir.path()).unwrap();
        let (object, file) = disk.read("films", "../../x").unwrap();
        assert_eq!((object.size, io::read_to_string(file).unwrap().as_str()), (3, "two"));
        let files = |dir: PathBuf| fs::read_dir(dir).unwrap().count();
        assert_eq!((files(dir.path().join("films")), files(dir.path().join(".staging"))), (2, 0));
    }

    #[test]
    fn a_refused_write_leaves_the_object_and_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path()).unwrap();
        disk.create_bucket("films").unwrap();
        put(&disk, "a", b"one", &Condition::Absent).unwrap();
        assert!(matches!(put(&disk, "a", b"two", &Condition::Absent), Err(Refusal::Precondition)));
        assert!(matches!(put(&disk, "b", b"two", &Condition::Present(None)), Err(Refusal::Precondition)));
        assert!(put(&disk, "a", b"two", &Condition::Present(Some("e".into()))).is_ok());
        assert_eq!(fs::read_dir(dir.path().join(".staging")).unwrap().count(), 0);
    }
}
