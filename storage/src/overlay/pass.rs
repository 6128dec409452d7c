//! Hashing a dataset once, and never again: what is found is kept chunk by chunk, so that a pass broken off goes on.
//!
//! A directory of the pass's own holds `hashes`: 32 bytes that say which dataset this is (its names, lengths and versions), then
//! one record per chunk, each with eight bytes of its own digest. Another dataset, or another version of it, begins anew.
//! It knows nothing of where the bytes come from; 0.05 % of their size is what it keeps, in memory and on disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, Write};
use std::path::{Path, PathBuf};

use super::layout::Layout;
use super::metainfo::{self, GroupHash, Maker, Metainfo};
use super::store::{self, Error};

const CHECK: usize = 8;

/// What a pass found: the metainfo and, per chunk, its group hashes.
pub type Found = (Metainfo, Vec<Vec<GroupHash>>);

/// A pass under way.
pub struct Pass {
    maker: Maker,
    layout: Layout,
    dir: PathBuf,
    log: Option<File>,
    saved: u32,
    /// Chunks that an earlier pass had found.
    pub adopted: u32,
}

impl Pass {
    /// A pass that keeps nothing: for what is hashed faster than it is looked up.
    pub fn unkept(layout: Layout) -> Self {
        Self { maker: Maker::new(layout), layout, dir: PathBuf::new(), log: None, saved: 0, adopted: 0 }
    }

    /// Goes on with what `dir` holds of the dataset `identity`; anything else in there is cleared. The directory is ours alone
    /// until the pass is dropped.
    pub fn open(dir: &Path, identity: [u8; 32], layout: Layout) -> Result<Self, Error> {
        let fail = |what| move |source| Error { what, path: dir.to_owned(), source };
        fs::create_dir_all(dir).map_err(fail("creating"))?;
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        let path = dir.join("hashes");
        let mut log = options.open(&path).map_err(fail("opening the hashes in"))?;
        store::lock(&log, dir)?;
        let mut maker = Maker::new(layout);
        let good = read_back(&log, identity, &mut maker, layout).map_err(fail("reading the hashes in"))?;
        if good == 0 {
            clear(dir)?;
            log.set_len(0)
                .and_then(|()| log.rewind())
                .and_then(|()| log.write_all(&identity))
                .map_err(fail("writing in"))?;
        } else {
            log.set_len(good).and_then(|()| log.seek(io::SeekFrom::End(0))).map_err(fail("writing in"))?;
        }
        let adopted = layout.to_groups(0..maker.whole()).end;
        let adopted = if adopted == 0 { 0 } else { layout.chunk_of(adopted - 1) + 1 };
        Ok(Self { maker, layout, dir: dir.to_owned(), log: Some(log), saved: adopted, adopted })
    }

    /// The first byte still to be hashed.
    pub fn at(&self) -> u64 {
        self.maker.whole()
    }

    /// The dataset's bytes, in order, from [`Pass::at`] on.
    pub fn update(&mut self, data: &[u8]) {
        self.maker.update(data);
    }

    /// Keeps what was found of chunks that are whole. The caller has flushed their bytes, if he keeps them.
    pub fn save(&mut self) -> Result<(), Error> {
        let Some(log) = &mut self.log else { return Ok(()) };
        while let Some(mut record) = self.maker.record(self.saved) {
            let digest = blake3::hash(&record);
            record.extend_from_slice(&digest.as_bytes()[..CHECK]);
            let path = self.dir.join("hashes");
            log.write_all(&record).map_err(|source| Error { what: "writing", path, source })?;
            self.saved += 1;
        }
        Ok(())
    }

    /// As [`Maker::finish`].
    pub fn finish(mut self, name: &str, files: Vec<metainfo::File>, token: &str) -> Result<Option<Found>, Error> {
        self.maker.flush();
        self.save()?;
        let maker = std::mem::replace(&mut self.maker, Maker::new(self.layout));
        self.log = None;
        Ok(maker.finish(name, files, token))
    }
}

impl Drop for Pass {
    /// What was found before a pass was broken off is found again.
    fn drop(&mut self) {
        let _ = self.save();
    }
}

/// Feeds the maker every sound record; answers how many bytes of the file are good (0 = none, not even the head).
fn read_back(log: &File, identity: [u8; 32], maker: &mut Maker, layout: Layout) -> io::Result<u64> {
    let mut reader = BufReader::new(log);
    let mut head = [0; 32];
    if fill(&mut reader, &mut head)? < head.len() || head != identity {
        return Ok(0);
    }
    let mut good = head.len() as u64;
    for chunk in 0..layout.chunks() {
        let mut record = vec![0; maker.record_len(chunk) + CHECK];
        let whole = fill(&mut reader, &mut record)? == record.len();
        let (found, check) = record.split_at(record.len() - CHECK);
        if !whole || blake3::hash(found).as_bytes()[..CHECK] != *check || !maker.adopt(found) {
            break;
        }
        good += record.len() as u64;
    }
    Ok(good)
}

fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match reader.read(&mut buffer[done..])? {
            0 => break,
            n => done += n,
        }
    }
    Ok(done)
}

/// Removes everything of another dataset but the file that is locked.
fn clear(dir: &Path) -> Result<(), Error> {
    let fail = |source| Error { what: "clearing", path: dir.to_owned(), source };
    for entry in fs::read_dir(dir).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if path.is_dir() {
            fs::remove_dir_all(&path).map_err(fail)?;
        } else if !path.ends_with("hashes") {
            fs::remove_file(&path).map_err(fail)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay::layout::{CHUNK_MIN, GROUP_MAX};

    fn data() -> (Vec<u8>, Layout) {
        let data: Vec<u8> = (0..3 * CHUNK_MIN as usize + 70_000).map(|i| (i * 31 % 251) as u8).collect();
        let layout = Layout::new(data.len() as u64, GROUP_MAX, 256 << 10, CHUNK_MIN).unwrap();
        (data, layout)
    }

    fn finish(pass: Pass, len: u64) -> Found {
        pass.finish("set", vec![metainfo::File { path: vec![], len }], "t").unwrap().unwrap()
    }

    #[test]
    fn a_pass_broken_off_goes_on_and_finds_the_same() {
        let (data, layout) = data();
        let mut once = Pass::unkept(layout);
        once.update(&data);
        let once = finish(once, data.len() as u64);
        let dir = tempfile::tempdir().unwrap();
        let mut pass = Pass::open(dir.path(), [1; 32], layout).unwrap();
        pass.update(&data[..2 * CHUNK_MIN as usize + 12_345]);
        pass.save().unwrap();
        drop(pass);
        let mut pass = Pass::open(dir.path(), [1; 32], layout).unwrap();
        assert_eq!((pass.at(), pass.adopted), (2 * CHUNK_MIN, 2));
        pass.update(&data[2 * CHUNK_MIN as usize..]);
        assert!(finish(pass, data.len() as u64) == once);
        let pass = Pass::open(dir.path(), [1; 32], layout).unwrap();
        assert_eq!(pass.at(), data.len() as u64);
        assert!(finish(pass, data.len() as u64) == once);
    }

    #[test]
    fn torn_records_and_those_of_another_dataset_are_not_believed() {
        let (data, layout) = data();
        let dir = tempfile::tempdir().unwrap();
        let mut pass = Pass::open(dir.path(), [1; 32], layout).unwrap();
        pass.update(&data[..2 * CHUNK_MIN as usize]);
        pass.save().unwrap();
        assert_eq!(Pass::open(dir.path(), [1; 32], layout).err().unwrap().source.kind(), io::ErrorKind::ResourceBusy);
        drop(pass);
        let path = dir.path().join("hashes");
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 9;
        bytes[last] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(Pass::open(dir.path(), [1; 32], layout).unwrap().at(), CHUNK_MIN);
        fs::create_dir(dir.path().join("data")).unwrap();
        assert_eq!(Pass::open(dir.path(), [2; 32], layout).unwrap().at(), 0);
        assert!(!dir.path().join("data").exists());
    }
}
