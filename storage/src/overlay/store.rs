//! The dataset on a node's disk: a hidden staging directory until whole, then its final name.
//!
//! `DIR/.NAME.starling/data/NAME` takes the verified groups, `DIR/.NAME.starling/have` says which ones are there, so that a
//! restart reads no good byte again. The have file is written after the data was flushed; it never claims too much. `lock` beside
//! them is held by whoever fills.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha1::{Digest, Sha1};

use super::bits::Bits;
use super::metainfo::{GroupHash, Metainfo};
use super::partition::Part;

#[derive(Debug, thiserror::Error)]
#[error("{what} {}", path.display())]
pub struct Error {
    pub what: &'static str,
    pub path: PathBuf,
    pub source: io::Error,
}

impl Error {
    pub fn code(&self) -> &'static str {
        match self.source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "disk-full",
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => "permission-denied",
            io::ErrorKind::NotFound => "directory-vanished",
            io::ErrorKind::AlreadyExists => "already-there",
            io::ErrorKind::ResourceBusy => "in-use",
            _ => "disk-error",
        }
    }

    pub fn hint(&self) -> &'static str {
        match self.code() {
            "disk-full" => {
                "free space or choose another --dir; what has arrived is kept and the next run goes on from it"
            }
            "permission-denied" => "make the directory writable for this user",
            "in-use" => "end the other process, or give this one another directory",
            "already-there" => "move the existing file away, or choose another --dir",
            _ => "see the cause below; the next run goes on from what is on disk",
        }
    }
}

/// Files laid end to end, read and written by position in the whole.
#[derive(Debug)]
pub struct Files {
    files: Vec<Span>,
}

/// Bytes of the dataset that lie in a file from `at` on.
#[derive(Debug)]
struct Span {
    bytes: Range<u64>,
    at: u64,
    path: PathBuf,
    file: File,
}

impl Files {
    /// No files at all.
    pub(super) fn none() -> Self {
        Self { files: Vec::new() }
    }

    /// Opens a dataset for reading: `path` is the file, or the directory that holds the files.
    pub fn open(path: &Path, meta_files: &[super::metainfo::File]) -> Result<Self, Error> {
        Self::each(path, meta_files, OpenOptions::new().read(true), false)
    }

    /// Opens a dataset for filling: what is missing is made, at full length, and what is there is kept.
    pub fn create(path: &Path, meta_files: &[super::metainfo::File]) -> Result<Self, Error> {
        Self::each(path, meta_files, OpenOptions::new().read(true).write(true).create(true).truncate(false), true)
    }

    fn each(root: &Path, list: &[super::metainfo::File], options: &OpenOptions, create: bool) -> Result<Self, Error> {
        let mut at = 0;
        let mut files = Vec::with_capacity(list.len());
        for file in list {
            let path = file.under(root);
            let fail = |what| {
                let path = path.clone();
                move |source| Error { what, path, source }
            };
            if let Some(parent) = path.parent().filter(|_| create) {
                fs::create_dir_all(parent).map_err(fail("creating the directory of"))?;
            }
            let opened = options.open(&path).map_err(fail("opening"))?;
            if create {
                opened.set_len(file.len).map_err(fail("sizing"))?;
            }
            files.push(Span { bytes: at..at + file.len, at: 0, path, file: opened });
            at += file.len;
        }
        Ok(Self { files })
    }

    /// One part: its own ranges end to end in `root`, what it holds for others beside it in `root.others`.
    fn part(root: &Path, part: &Part) -> Result<Self, Error> {
        let mut files = Vec::new();
        for (path, ranges) in part_files(root, part) {
            let fail = |what, path: &Path| {
                let path = path.to_owned();
                move |source| Error { what, path, source }
            };
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).map_err(fail("creating the directory of", &path))?;
            }
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(false).open(&path);
            let file = file.map_err(fail("opening", &path))?;
            file.set_len(sum(ranges)).map_err(fail("sizing", &path))?;
            files.extend(spans_of(&path, &file, ranges)?);
        }
        files.sort_by_key(|span| span.bytes.start);
        Ok(Self { files })
    }

    /// A part's own bytes, which lie end to end in the file at `path`, for reading.
    fn open_part(path: &Path, part: &Part) -> Result<Self, Error> {
        let file = File::open(path).map_err(|source| Error { what: "opening", path: path.to_owned(), source })?;
        Ok(Self { files: spans_of(path, &file, &part.own)? })
    }

    /// The files that `bytes` touches, with what part of each.
    fn spans(&self, bytes: Range<u64>) -> impl Iterator<Item = (&PathBuf, &File, u64, Range<usize>)> {
        let first = self.files.partition_point(|span| span.bytes.end <= bytes.start);
        let touched = self.files[first..].iter().take_while(move |span| span.bytes.start < bytes.end);
        let from = bytes.start;
        touched.filter(|span| !span.bytes.is_empty()).map(move |span| {
            let (start, end) = (span.bytes.start.max(from), span.bytes.end.min(bytes.end));
            let part = (start - from) as usize..(end - from) as usize;
            (&span.path, &span.file, span.at + start - span.bytes.start, part)
        })
    }

    pub fn read(&self, bytes: Range<u64>) -> Result<Vec<u8>, Error> {
        let mut out = vec![0; (bytes.end - bytes.start) as usize];
        self.read_into(bytes.start, &mut out)?;
        Ok(out)
    }

    /// Fills `out` with the bytes from `at` on.
    pub fn read_into(&self, at: u64, out: &mut [u8]) -> Result<(), Error> {
        for (path, file, offset, part) in self.spans(at..at + out.len() as u64) {
            let done = file.read_exact_at(&mut out[part], offset);
            done.map_err(|source| Error { what: "reading", path: path.clone(), source })?;
        }
        Ok(())
    }

    /// Hands the kernel some of `bytes` for `socket`, straight from the page cache; answers how many it took.
    pub fn send(&self, socket: impl AsFd, bytes: Range<u64>) -> io::Result<u64> {
        let Some((_, file, mut offset, part)) = self.spans(bytes).next() else { return Ok(0) };
        Ok(rustix::fs::sendfile(socket, file, Some(&mut offset), part.len())? as u64)
    }

    pub fn write(&self, at: u64, data: &[u8]) -> Result<(), Error> {
        for (path, file, offset, part) in self.spans(at..at + data.len() as u64) {
            let done = file.write_all_at(&data[part], offset);
            done.map_err(|source| Error { what: "writing", path: path.clone(), source })?;
        }
        Ok(())
    }

    pub fn sync(&self) -> Result<(), Error> {
        let sync = |span: &Span| {
            span.file.sync_data().map_err(|source| Error { what: "flushing", path: span.path.clone(), source })
        };
        self.files.iter().try_for_each(sync)
    }
}

/// A dataset being filled.
#[derive(Debug)]
pub struct Store {
    pub files: Files,
    /// Groups that this node is to hold: all, or those of its part.
    pub want: Bits,
    staging: PathBuf,
    target: PathBuf,
    data: PathBuf,
    head: [u8; 20],
    _lock: File,
}

impl Store {
    /// Opens or creates the staging directory; answers what is there already. It is ours alone until the store is dropped.
    pub fn open(dir: &Path, meta: &Metainfo) -> Result<(Self, Bits), Error> {
        let all = Bits::full(meta.layout.groups());
        let lengths = |root: &Path| meta.files.iter().map(|file| (file.under(root), file.len)).collect();
        Self::stage(dir, &meta.name, meta, all, lengths, |root| Files::create(root, &meta.files))
    }

    /// The same for one part: its own bytes become the file `NAME.LABEL`; ranges held for others only lie in the staging
    /// directory. All ranges begin and end where groups do, or at the end of the dataset.
    pub fn open_part(dir: &Path, meta: &Metainfo, label: &str, part: &Part) -> Result<(Self, Bits), Error> {
        let mut want = Bits::new(meta.layout.groups());
        part.demand().into_iter().for_each(|bytes| want.set_range(meta.layout.to_groups(bytes)));
        let name = format!("{}.{label}", meta.name);
        let lengths = |root: &Path| part_files(root, part).map(|(path, ranges)| (path, sum(ranges))).to_vec();
        Self::stage(dir, &name, meta, want, lengths, |root| Files::part(root, part))
    }

    /// Whether what bears the final name are these very bytes: all of them, or those of a part with its label. Reads and hashes them; `hashes` gives
    /// the group hashes of a chunk.
    pub fn is_whole(
        dir: &Path,
        meta: &Metainfo,
        part: Option<(&str, &Part)>,
        hashes: impl Fn(u32) -> Option<Vec<GroupHash>>,
    ) -> Result<bool, Error> {
        let (path, own, lengths) = match part {
            Some((label, part)) => {
                let path = dir.join(format!("{}.{label}", meta.name));
                (path.clone(), part.own.clone(), vec![(path, sum(&part.own))])
            }
            None => {
                let path = dir.join(&meta.name);
                let lengths = meta.files.iter().map(|file| (file.under(&path), file.len)).collect();
                (path, std::iter::once(0..meta.layout.total()).collect(), lengths)
            }
        };
        if !lengths.iter().all(is_there) {
            return Ok(false);
        }
        let files = match part {
            Some((_, part)) => Files::open_part(&path, part)?,
            None => Files::open(&path, &meta.files)?,
        };
        let mut known = (u32::MAX, None);
        for group in own.into_iter().flat_map(|bytes| meta.layout.to_groups(bytes)) {
            let chunk = meta.layout.chunk_of(group);
            if known.0 != chunk {
                known = (chunk, hashes(chunk));
            }
            let data = files.read(meta.layout.group_bytes(group))?;
            if !known.1.as_ref().is_some_and(|hashes| meta.check_group(group, &data, hashes)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn stage(
        dir: &Path,
        name: &str,
        meta: &Metainfo,
        want: Bits,
        lengths: impl FnOnce(&Path) -> Vec<(PathBuf, u64)>,
        files: impl FnOnce(&Path) -> Result<Files, Error>,
    ) -> Result<(Self, Bits), Error> {
        let target = dir.join(name);
        let staging = dir.join(format!(".{name}.starling"));
        let free = || match target.exists() {
            true => Err(Error {
                what: "will not replace",
                path: target.clone(),
                source: io::ErrorKind::AlreadyExists.into(),
            }),
            false => Ok(()),
        };
        free()?;
        let lock = locked(&staging)?;
        // Whoever held the lock may have ended with it.
        free().inspect_err(|_| drop(fs::remove_dir_all(&staging)))?;
        let root = staging.join("data").join(name);
        // Another part of the same dataset, or the same in other groups, is another thing: other groups are wanted.
        let head = Sha1::digest([&meta.info_hash[..], &want.to_wire()].concat()).into();
        let saved = match fs::read(staging.join("have")) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(Error { what: "reading the state in", path: staging, source });
            }
            saved => saved.unwrap_or_default(),
        };
        let (found, bits) = saved.split_at(saved.len().min(20));
        // What it tells of are files that are there, whole: one that was taken away meanwhile comes back full of zeros.
        let is_ours = found == head && lengths(&root).iter().all(is_there);
        let have = Bits::from_wire(meta.layout.groups(), bits).filter(|_| is_ours);
        if have.is_none() {
            // Nothing, another version of the dataset, or a torn file: nothing of it can be trusted.
            wipe(&staging)?;
        }
        let files = files(&root)?;
        let have = have.unwrap_or_else(|| Bits::new(meta.layout.groups()));
        Ok((Self { files, want, staging, target, data: root, head, _lock: lock }, have))
    }

    /// Flushes the data, then says on disk what is there.
    pub fn save(&self, files: &Files, have: &Bits) -> Result<(), Error> {
        files.sync()?;
        let fail = |source| Error { what: "saving the state in", path: self.staging.clone(), source };
        let next = self.staging.join("have.next");
        let content = [&self.head[..], &have.to_wire()].concat();
        fs::write(&next, content).and_then(|()| fs::rename(&next, self.staging.join("have"))).map_err(fail)
    }

    /// Gives the whole dataset its final name; open files stay readable.
    pub fn finish(&self, files: &Files) -> Result<PathBuf, Error> {
        files.sync()?;
        let fail = |source| Error { what: "giving the final name to", path: self.target.clone(), source };
        fs::rename(&self.data, &self.target).map_err(fail)?;
        // Only our own bookkeeping is left there; failing to remove it harms nothing.
        let _ = fs::remove_dir_all(&self.staging);
        Ok(self.target.clone())
    }
}

/// The file of a part's own bytes and that of what it holds for others, each with its ranges.
fn part_files<'a>(root: &Path, part: &'a Part) -> [(PathBuf, &'a [Range<u64>]); 2] {
    [(root.to_owned(), &part.own), (root.with_extension("others"), &part.seed_only)]
}

fn sum(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|r| r.end - r.start).sum()
}

fn spans_of(path: &Path, file: &File, ranges: &[Range<u64>]) -> Result<Vec<Span>, Error> {
    let mut next = 0;
    let span = |range: &Range<u64>| {
        let at = next;
        next += range.end - range.start;
        let again = file.try_clone().map_err(|source| Error { what: "opening", path: path.to_owned(), source })?;
        Ok(Span { bytes: range.clone(), at, path: path.to_owned(), file: again })
    };
    ranges.iter().map(span).collect()
}

fn is_there((path, len): &(PathBuf, u64)) -> bool {
    fs::metadata(path).is_ok_and(|file| file.len() == *len)
}

/// Makes `staging` and takes its lock.
fn locked(staging: &Path) -> Result<File, Error> {
    let fail = |what| move |source| Error { what, path: staging.to_owned(), source };
    fs::create_dir_all(staging).map_err(fail("creating"))?;
    let file = File::create(staging.join("lock")).map_err(fail("creating the lock in"))?;
    lock(&file, staging)?;
    Ok(file)
}

/// Takes the lock of a directory: who holds it is alone in there until the file is closed.
pub(super) fn lock(file: &File, dir: &Path) -> Result<(), Error> {
    let fail = |what| move |source| Error { what, path: dir.to_owned(), source };
    file.try_lock().map_err(|e| match e {
        TryLockError::WouldBlock => fail("another process is using")(io::ErrorKind::ResourceBusy.into()),
        TryLockError::Error(source) => fail("locking")(source),
    })
}

/// Clears all but the lock: first what tells of the data.
fn wipe(staging: &Path) -> Result<(), Error> {
    let clear = |path: PathBuf, remove: fn(&Path) -> io::Result<()>| match remove(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error { what: "clearing", path, source }),
        _ => Ok(()),
    };
    clear(staging.join("have"), |path| fs::remove_file(path))?;
    clear(staging.join("data"), |path| fs::remove_dir_all(path))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::overlay::layout::{CHUNK_MIN, GROUP_MAX, GROUP_MIN, Layout};
    use crate::overlay::metainfo::{File as Entry, Maker, NAME_MAX, check_names};

    fn meta(data: &[u8], files: Vec<Entry>) -> Metainfo {
        let mut maker = Maker::new(Layout::for_total(data.len() as u64).unwrap());
        maker.update(data);
        maker.finish("set", files, "t").unwrap().0
    }

    #[test]
    fn bytes_cross_file_borders_and_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let data: Vec<u8> = (0..200_000u32).map(|i| (i % 253) as u8).collect();
        let entry = |name: &str, len| Entry { path: vec!["d".into(), name.into()], len };
        let meta = meta(&data, vec![entry("a", 70_000), entry("empty", 0), entry("b", 130_000)]);
        let (store, mut have) = Store::open(dir.path(), &meta).unwrap();
        store.files.write(65_536, &data[65_536..131_072]).unwrap();
        have.set(1);
        store.save(&store.files, &have).unwrap();
        drop(store);
        let (store, again) = Store::open(dir.path(), &meta).unwrap();
        assert_eq!(again, have);
        assert_eq!(store.files.read(65_536..131_072).unwrap(), data[65_536..131_072]);
        assert!(!dir.path().join("set").exists());
        store.files.write(0, &data).unwrap();
        let (mut to, from) = UnixStream::pair().unwrap();
        let part = 69_000u64..71_000;
        let first = store.files.send(&from, part.clone()).unwrap();
        assert_eq!(first + store.files.send(&from, part.start + first..part.end).unwrap(), 2000);
        let mut sent = [0; 2000];
        to.read_exact(&mut sent).unwrap();
        assert_eq!(sent, data[69_000..71_000]);
        store.finish(&store.files).unwrap();
        assert_eq!(fs::read(dir.path().join("set/d/b")).unwrap(), data[70_000..]);
        assert_eq!(Store::open(dir.path(), &meta).unwrap_err().code(), "already-there");
    }

    #[test]
    fn state_of_another_dataset_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let whole = |len| vec![Entry { path: vec![], len }];
        let (store, mut have) = Store::open(dir.path(), &meta(&[1; 70_000], whole(70_000))).unwrap();
        have.set(0);
        store.save(&store.files, &have).unwrap();
        drop(store);
        let (_, have) = Store::open(dir.path(), &meta(&[2; 70_000], whole(70_000))).unwrap();
        assert!(have.is_empty());
    }

    #[test]
    fn state_of_the_same_dataset_in_other_groups_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let cut = |group| {
            let mut maker = Maker::new(Layout::new(131_072, group, GROUP_MAX, CHUNK_MIN).unwrap());
            maker.update(&[1; 131_072]);
            maker.finish("set", vec![Entry { path: vec![], len: 131_072 }], "t").unwrap().0
        };
        let (long, short) = (cut(GROUP_MAX), cut(GROUP_MIN));
        assert_eq!(long.info_hash, short.info_hash);
        let (store, mut have) = Store::open(dir.path(), &long).unwrap();
        have.set(1);
        store.save(&store.files, &have).unwrap();
        drop(store);
        assert!(Store::open(dir.path(), &short).unwrap().1.is_empty());
    }

    #[test]
    fn what_was_held_is_believed_only_while_its_data_is_there_whole() {
        let files = [("a", 70_000), ("b", 130_000)].map(|(name, len)| Entry { path: vec![name.into()], len });
        let meta = meta(&[1; 200_000], files.to_vec());
        let held = |damage: fn(&Path)| {
            let dir = tempfile::tempdir().unwrap();
            let (store, mut have) = Store::open(dir.path(), &meta).unwrap();
            have.set(1);
            store.save(&store.files, &have).unwrap();
            drop(store);
            damage(&dir.path().join(".set.starling/data/set"));
            // Nor the next time, when the files have been made anew.
            [(); 2].map(|()| Store::open(dir.path(), &meta).unwrap().1.count())
        };
        assert_eq!(held(|_| ()), [1, 1]);
        assert_eq!(held(|data| fs::remove_dir_all(data).unwrap()), [0, 0]);
        assert_eq!(held(|data| fs::remove_file(data.join("b")).unwrap()), [0, 0]);
        assert_eq!(held(|data| fs::write(data.join("a"), [1; 69_999]).unwrap()), [0, 0]);
    }

    #[test]
    fn one_fills_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let whole = vec![Entry { path: vec![], len: 9 }];
        let (old, new) = (meta(&[1; 9], whole.clone()), meta(&[2; 9], whole));
        let (store, _) = Store::open(dir.path(), &old).unwrap();
        assert_eq!(Store::open(dir.path(), &new).unwrap_err().code(), "in-use");
        store.files.write(0, &[1; 9]).unwrap();
        store.finish(&store.files).unwrap();
        assert_eq!(Store::open(dir.path(), &new).unwrap_err().code(), "already-there");
        assert_eq!(fs::read(dir.path().join("set")).unwrap(), [1; 9]);
    }

    #[test]
    fn a_name_that_is_served_can_be_staged_also_for_a_part_and_a_longer_one_is_not_served() {
        let dir = tempfile::tempdir().unwrap();
        let mut meta = meta(&[1; 9], vec![Entry { path: vec![], len: 9 }]);
        meta.name = "x".repeat(NAME_MAX);
        check_names(&meta.name, &meta.files).unwrap();
        Store::open(dir.path(), &meta).unwrap();
        Store::open_part(dir.path(), &meta, "99999-of-99999", &Part::default()).unwrap();
        meta.name.push('x');
        assert_eq!(check_names(&meta.name, &meta.files).unwrap_err().code(), "metainfo-long-name");
    }

    #[test]
    fn a_vanished_directory_is_said_so() {
        let dir = tempfile::tempdir().unwrap();
        let (store, have) = Store::open(dir.path(), &meta(&[1; 9], vec![Entry { path: vec![], len: 9 }])).unwrap();
        fs::remove_dir_all(dir.path()).unwrap();
        assert_eq!(store.save(&store.files, &have).unwrap_err().code(), "directory-vanished");
    }
}
