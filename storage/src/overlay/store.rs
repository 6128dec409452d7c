//! The dataset on a node's disk: a hidden staging directory until whole, then its final name.
//!
//! `DIR/.NAME.starling/data/NAME` takes the verified groups, `DIR/.NAME.starling/have` says which ones are there, so that a
//! restart reads no good byte again. The have file is written after the data was flushed; it never claims too much.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha1::{Digest, Sha1};

use super::bits::Bits;
use super::metainfo::Metainfo;
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
            "in-use" => "end the other process, or give this one another --cache",
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
            let path = file.path.iter().fold(root.to_owned(), |path, part| path.join(part));
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
        for (path, ranges) in [(root.to_owned(), &part.own), (root.with_extension("others"), &part.seed_only)] {
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
            file.set_len(ranges.iter().map(|r| r.end - r.start).sum()).map_err(fail("sizing", &path))?;
            let mut at = 0;
            for range in ranges {
                let again = file.try_clone().map_err(fail("opening", &path))?;
                files.push(Span { bytes: range.clone(), at, path: path.clone(), file: again });
                at += range.end - range.start;
            }
        }
        files.sort_by_key(|span| span.bytes.start);
        Ok(Self { files })
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
}

impl Store {
    /// Opens or creates the staging directory; answers what is there already.
    pub fn open(dir: &Path, meta: &Metainfo) -> Result<(Self, Bits), Error> {
        Self::stage(dir, &meta.name, meta, Bits::full(meta.layout.groups()), |root| Files::create(root, &meta.files))
    }

    /// The same for one part: its own bytes become the file `NAME.LABEL`; ranges held for others only lie in the staging
    /// directory. All ranges begin and end where groups do, or at the end of the dataset.
    pub fn open_part(dir: &Path, meta: &Metainfo, label: &str, part: &Part) -> Result<(Self, Bits), Error> {
        let mut want = Bits::new(meta.layout.groups());
        part.demand().into_iter().for_each(|bytes| want.set_range(meta.layout.to_groups(bytes)));
        let name = format!("{}.{label}", meta.name);
        Self::stage(dir, &name, meta, want, |root| Files::part(root, part))
    }

    fn stage(
        dir: &Path,
        name: &str,
        meta: &Metainfo,
        want: Bits,
        files: impl FnOnce(&Path) -> Result<Files, Error>,
    ) -> Result<(Self, Bits), Error> {
        let target = dir.join(name);
        if target.exists() {
            let source = io::ErrorKind::AlreadyExists.into();
            return Err(Error { what: "will not replace", path: target, source });
        }
        let staging = dir.join(format!(".{name}.starling"));
        let data = staging.join("data");
        // Another part of the same dataset, or the same in other groups, is another thing: other groups are wanted.
        let head = Sha1::digest([&meta.info_hash[..], &want.to_wire()].concat()).into();
        let mut have = Bits::new(meta.layout.groups());
        match fs::read(staging.join("have")) {
            Ok(saved) => {
                let (found, bits) = saved.split_at(saved.len().min(20));
                match Bits::from_wire(meta.layout.groups(), bits).filter(|_| found == head) {
                    Some(bits) => have = bits,
                    // Another version of the dataset, or a torn file: nothing of it can be trusted.
                    None => wipe(&staging)?,
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => wipe(&staging)?,
            Err(source) => return Err(Error { what: "reading the state in", path: staging, source }),
        }
        let root = data.join(name);
        let files = files(&root)?;
        Ok((Self { files, want, staging, target, data: root, head }, have))
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

fn wipe(staging: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(staging) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error { what: "clearing", path: staging.to_owned(), source })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::overlay::layout::{CHUNK_MIN, GROUP_MAX, GROUP_MIN, Layout};
    use crate::overlay::metainfo::{File as Entry, Maker};

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
        assert!(Store::open(dir.path(), &short).unwrap().1.is_empty());
    }

    #[test]
    fn a_vanished_directory_is_said_so() {
        let dir = tempfile::tempdir().unwrap();
        let (store, have) = Store::open(dir.path(), &meta(&[1; 9], vec![Entry { path: vec![], len: 9 }])).unwrap();
        fs::remove_dir_all(dir.path()).unwrap();
        assert_eq!(store.save(&store.files, &have).unwrap_err().code(), "directory-vanished");
    }
}
