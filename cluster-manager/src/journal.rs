//! The journal: what this cluster manager has promised and learnt, in order, in sled.
//!
//! State is never stored, only events; a restart folds them again, and drops what tells of jobs that are over. An entry counts as written when [`Journal::append`]
//! returns: then it is with the operating system, in a plain file, and a killed process loses nothing. sled keeps what is new in its own memory
//! until it has waited for the disk, which takes longer than a whole negotiation; so it is given what is in that file about once a second,
//! by a thread. What a power cut costs: docs/decisions/0007-journal-and-power-cuts.md. Secrets never come here
//! in clear (see `vault`).

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use federation::id::Millis;
use serde::{Serialize, de::DeserializeOwned};

use crate::archive::{Archive, Ended};

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("open the journal {path}")]
    Open { path: String, source: sled::Error },
    #[error("write to the journal")]
    Write(#[source] sled::Error),
    #[error("read the journal")]
    Read(#[source] sled::Error),
    #[error("{doing} the journal's tail")]
    Tail { doing: &'static str, source: std::io::Error },
    #[error("journal entry {index} is not understood; it was written by another version")]
    Entry { index: u64, source: serde_json::Error },
}

pub struct Journal {
    db: sled::Db,
    events: sled::Tree,
    ended: sled::Tree,
    next: u64,
    /// What sled does not have yet, or in memory only, a line for each entry.
    tail: File,
    tail_path: PathBuf,
    tail_bytes: usize,
}

/// What sled has still to be given, and a wait for the disk, which can take long.
pub struct Settling {
    events: sled::Tree,
    tail_path: PathBuf,
}

/// All entries before this one are on the disk.
pub struct Settled(u64);

impl Settling {
    /// Blocks.
    pub fn wait(self) -> Result<Settled, JournalError> {
        let next = self.hand_over()?;
        self.events.flush().map_err(JournalError::Write)?;
        Ok(Settled(next))
    }

    /// Gives sled what only the tail has; the number of the entry after that. A last line without an end was never acted upon, or is being
    /// written. Does no harm when it is done twice at the same time.
    fn hand_over(&self) -> Result<u64, JournalError> {
        let bytes = std::fs::read(&self.tail_path).map_err(|source| JournalError::Tail { doing: "read", source })?;
        let last = self.events.last().map_err(JournalError::Read)?;
        let mut next = last.map_or(0, |(key, _)| index_of(&key) + 1);
        let mut batch = sled::Batch::default();
        for line in bytes.split_inclusive(|b| *b == b'\n').filter_map(|line| line.strip_suffix(b"\n")) {
            let Some((index, entry)) = line.split_at_checked(INDEX_DIGITS) else { break };
            let index = str::from_utf8(index).ok().and_then(|digits| u64::from_str_radix(digits, 16).ok());
            if index == Some(next) {
                batch.insert(&next.to_be_bytes(), entry);
                next += 1;
            }
        }
        self.events.apply_batch(batch).map_err(JournalError::Write)?;
        Ok(next)
    }
}

/// The tail's file, beside sled's own.
const TAIL: &str = "tail";
/// The tail is settled then at the latest: it is read whole at start.
const TAIL_BYTES_MAX: usize = 4 << 20;

impl Journal {
    /// Opens or creates the journal in `dir`, and takes up what a killed process has left in the tail. Fails when another
    /// process has it open.
    pub fn open(dir: &Path) -> Result<Self, JournalError> {
        let fail = |source| JournalError::Open { path: dir.display().to_string(), source };
        let db = unlocked(dir).map_err(fail)?;
        let events = db.open_tree("events").map_err(fail)?;
        let ended = db.open_tree("ended").map_err(fail)?;
        let tail_path = dir.join(TAIL);
        let fail = |source| JournalError::Tail { doing: "open", source };
        let tail = File::options().append(true).create(true).open(&tail_path).map_err(fail)?;
        let tail_bytes = tail.metadata().map_err(fail)?.len() as usize;
        let Settled(next) = Settling { events: events.clone(), tail_path: tail_path.clone() }.wait()?;
        let mut journal = Self { db, events, ended, next, tail, tail_path, tail_bytes };
        journal.settled(Settled(next))?;
        Ok(journal)
    }

    /// Waits until sled has everything on the disk, and empties the tail.
    pub fn settle(&mut self) -> Result<(), JournalError> {
        match self.settling() {
            Some(settling) => self.settled(settling.wait()?),
            None => Ok(()),
        }
    }

    /// What the disk may not have yet, to be waited for elsewhere; then [`Journal::settled`] wants to know. To be called now and then.
    pub fn settling(&self) -> Option<Settling> {
        let settling = || Settling { events: self.events.clone(), tail_path: self.tail_path.clone() };
        (self.tail_bytes > 0).then(settling)
    }

    /// Empties the tail, unless it has grown meanwhile: what sled has is not taken from it a second time.
    pub fn settled(&mut self, Settled(next): Settled) -> Result<(), JournalError> {
        if next == self.next {
            self.tail.set_len(0).map_err(|source| JournalError::Tail { doing: "empty", source })?;
            self.tail_bytes = 0;
        }
        Ok(())
    }

    /// A number that grows with each start, also with that of an empty journal in the place of one that is lost: this incarnation's epoch.
    pub fn next_epoch(&self, now: Millis) -> Result<u64, JournalError> {
        let bytes = self
            .db
            .update_and_fetch("epoch", |old| {
                let epoch = old.and_then(|b| b.try_into().ok()).map_or(0, u64::from_be_bytes);
                Some(epoch.saturating_add(1).max(now.0 / 1000).to_be_bytes().to_vec())
            })
            .map_err(JournalError::Write)?;
        self.db.flush().map_err(JournalError::Write)?;
        Ok(bytes.and_then(|b| b.as_ref().try_into().ok()).map_or(1, u64::from_be_bytes))
    }

    /// 32 random bytes, the same for the life of the journal; secrets are derived from them.
    pub fn seed(&self) -> Result<[u8; 32], JournalError> {
        if let Some(seed) = self.db.get("seed").map_err(JournalError::Read)?.and_then(|b| b.as_ref().try_into().ok()) {
            return Ok(seed);
        }
        let mut seed = [0; 32];
        for half in seed.chunks_mut(16) {
            half.copy_from_slice(uuid::Uuid::new_v4().as_bytes());
        }
        self.db.insert("seed", &seed).map_err(JournalError::Write)?;
        self.db.flush().map_err(JournalError::Write)?;
        Ok(seed)
    }

    /// Appends all entries, or none.
    pub fn append<E: Serialize>(&mut self, entries: &[E]) -> Result<(), JournalError> {
        if entries.is_empty() {
            return Ok(());
        }
        let mut lines = Vec::new();
        for (index, entry) in (self.next..).zip(entries) {
            lines.extend_from_slice(format!("{index:0INDEX_DIGITS$x}").as_bytes());
            // JSON has no line ends of its own.
            serde_json::to_writer(&mut lines, entry).map_err(|source| JournalError::Entry { index, source })?;
            lines.push(b'\n');
        }
        self.tail.write_all(&lines).map_err(|source| JournalError::Tail { doing: "write", source })?;
        self.tail_bytes += lines.len();
        self.next += entries.len() as u64;
        if self.tail_bytes > TAIL_BYTES_MAX { self.settle() } else { Ok(()) }
    }

    /// Takes out the entries that are not needed and appends others, all in one step: who is killed meanwhile leaves the old journal or the
    /// new one. The last entry stays, so that no index is given twice.
    pub fn shorten<E>(&mut self, is_needed: impl Fn(&E) -> bool, then: &[E]) -> Result<(), JournalError>
    where
        E: Serialize + DeserializeOwned,
    {
        self.settle()?;
        let mut batch = sled::Batch::default();
        for item in self.events.iter() {
            let (key, value) = item.map_err(JournalError::Read)?;
            let index = index_of(&key);
            let entry = serde_json::from_slice(&value).map_err(|source| JournalError::Entry { index, source })?;
            if index + 1 < self.next && !is_needed(&entry) {
                batch.remove(key);
            }
        }
        for (index, entry) in (self.next..).zip(then) {
            let bytes = serde_json::to_vec(entry).map_err(|source| JournalError::Entry { index, source })?;
            batch.insert(&index.to_be_bytes(), bytes);
        }
        self.events.apply_batch(batch).map_err(JournalError::Write)?;
        self.next += then.len() as u64;
        // What comes next goes to the tail, and would not follow what sled has in its files.
        self.db.flush().map(drop).map_err(JournalError::Write)
    }

    /// Keeps the last state of a job, on the disk when this returns.
    pub fn keep(&mut self, ended: &Ended) -> Result<(), JournalError> {
        let index = self.next;
        let bytes = serde_json::to_vec(ended).map_err(|source| JournalError::Entry { index, source })?;
        self.ended.insert(&ended.document.id, bytes).map_err(JournalError::Write)?;
        self.db.flush().map(drop).map_err(JournalError::Write)
    }

    /// Jobs that have ended, whose results are served at `base_url`.
    pub fn archive(&self, base_url: &str) -> Archive {
        Archive { ended: self.ended.clone(), base_url: base_url.to_owned() }
    }

    /// Every entry that is settled, oldest first.
    pub fn replay<E: DeserializeOwned>(&self) -> impl Iterator<Item = Result<E, JournalError>> {
        self.events.iter().map(|item| {
            let (key, value) = item.map_err(JournalError::Read)?;
            serde_json::from_slice(&value).map_err(|source| JournalError::Entry { index: index_of(&key), source })
        })
    }

    pub fn len(&self) -> u64 {
        self.next
    }

    pub fn is_empty(&self) -> bool {
        self.next == 0
    }
}

/// sled's own threads let go of the lock shortly after the last user did, and so does a process that was just killed.
const LOCK_TRIES: u32 = 100;
const LOCK_WAIT: Duration = Duration::from_millis(20);

fn unlocked(dir: &Path) -> sled::Result<sled::Db> {
    // Small cache: the journal is read once, at start.
    let config = sled::Config::new().path(dir).cache_capacity(4 << 20).flush_every_ms(None);
    for _ in 1..LOCK_TRIES {
        match config.open() {
            Err(sled::Error::Io(error)) if error.kind() == ErrorKind::Other => std::thread::sleep(LOCK_WAIT),
            opened => return opened,
        }
    }
    config.open()
}

/// Of an index in the tail.
const INDEX_DIGITS: usize = 16;

fn index_of(key: &[u8]) -> u64 {
    key.try_into().map_or(0, u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_in_order_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        journal.append(&[1, 2]).unwrap();
        journal.append::<u32>(&[]).unwrap();
        journal.append(&(3..300).collect::<Vec<_>>()).unwrap();
        drop(journal);
        let journal = Journal::open(dir.path()).unwrap();
        let entries: Result<Vec<u32>, _> = journal.replay().collect();
        assert_eq!(entries.unwrap(), (1..300).collect::<Vec<_>>());
        assert_eq!(journal.len(), 299);
    }

    /// What a process that was killed now would leave: what is in the files, and nothing of sled's memory.
    fn killed(dir: &Path, torn: &str) -> tempfile::TempDir {
        let left = tempfile::tempdir().unwrap();
        drop(Journal::open(left.path()).unwrap());
        let tail = std::fs::read_to_string(dir.join(TAIL)).unwrap();
        std::fs::write(left.path().join(TAIL), tail + torn).unwrap();
        left
    }

    #[test]
    fn a_killed_process_loses_nothing_that_was_appended() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        journal.append(&["one", "two"]).unwrap();
        journal.append(&["three\nlines"]).unwrap();
        let left = killed(dir.path(), "0000000000000003\"half an en");
        for _ in 0..2 {
            let mut journal = Journal::open(left.path()).unwrap();
            let entries: Result<Vec<String>, _> = journal.replay().collect();
            assert_eq!(entries.unwrap()[..3], ["one", "two", "three\nlines"]);
            journal.append(&["next"]).unwrap();
        }
        assert_eq!(Journal::open(left.path()).unwrap().len(), 5);
    }

    #[test]
    fn what_is_settled_is_read_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        journal.append(&[1]).unwrap();
        let first = journal.settling().unwrap().wait().unwrap();
        journal.append(&[2]).unwrap();
        // The disk does not have the second one yet.
        journal.settled(first).unwrap();
        let both = std::fs::read(dir.path().join(TAIL)).unwrap();
        assert_eq!(both.iter().filter(|byte| **byte == b'\n').count(), 2);
        journal.settle().unwrap();
        assert_eq!(std::fs::read(dir.path().join(TAIL)).unwrap(), b"");
        assert!(journal.settling().is_none());
        drop(journal);
        // Killed between settling and emptying.
        std::fs::write(dir.path().join(TAIL), both).unwrap();
        let entries: Result<Vec<u32>, _> = Journal::open(dir.path()).unwrap().replay().collect();
        assert_eq!(entries.unwrap(), [1, 2]);
    }

    #[test]
    fn two_waits_at_the_same_time_lose_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        journal.append(&[1]).unwrap();
        let early = journal.settling().unwrap();
        journal.append(&[2]).unwrap();
        let late = journal.settling().unwrap();
        journal.settled(late.wait().unwrap()).unwrap();
        // The tail is empty now.
        journal.settled(early.wait().unwrap()).unwrap();
        journal.append(&[3]).unwrap();
        drop(journal);
        let entries: Result<Vec<u32>, _> = Journal::open(dir.path()).unwrap().replay().collect();
        assert_eq!(entries.unwrap(), [1, 2, 3]);
    }

    #[test]
    fn the_last_state_of_a_job_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        let job = |id: &str| crate::view::JobDoc { id: id.into(), state: "done".into(), ..Default::default() };
        let xml = "<job xmlns='urn:starling:job:1' kind='transcode'><source>s3://films/in</source><target>s3://films/out/</target>\
                   <rendition height='90' codec='h264' crf='23'/></job>";
        for id in ["j-1", "j-2"] {
            let ended = Ended { document: job(id), xml: xml.into(), sealed: Some("secret".into()) };
            journal.keep(&ended).unwrap();
        }
        drop(journal);
        let archive = Journal::open(dir.path()).unwrap().archive("http://here");
        assert_eq!(archive.documents().collect::<Vec<_>>(), [job("j-1"), job("j-2")]);
        let ended = archive.get("j-2").unwrap();
        assert_eq!((ended.film().unwrap().target.key(), ended.sealed.as_deref()), ("out/", Some("secret")));
        assert!(archive.get("j-3").is_none());
    }

    /// Resident memory of this process, kB.
    fn resident_kb() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn an_open_journal_takes_little_memory() {
        let dir = tempfile::tempdir().unwrap();
        let before = resident_kb();
        let journal = Journal::open(dir.path()).unwrap();
        let grown = resident_kb().saturating_sub(before);
        assert!(grown < 15_000, "{grown} kB for {} entries", journal.len()); // 21 MB for sled's histograms alone
    }

    #[test]
    fn the_epoch_grows_with_each_start() {
        let dir = tempfile::tempdir().unwrap();
        let start = |dir: &Path, now_s: u64| Journal::open(dir).unwrap().next_epoch(Millis(now_s * 1000)).unwrap();
        let epochs = [7, 9, 9, 1].map(|now_s| start(dir.path(), now_s));
        assert_eq!(epochs, [7, 9, 10, 11], "whatever the clock does");
        let reinstalled = tempfile::tempdir().unwrap();
        assert!(start(reinstalled.path(), 20) > epochs[3]);
    }

    #[test]
    fn an_entry_of_another_shape_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        journal.append(&["text"]).unwrap();
        journal.settle().unwrap();
        let read: Result<Vec<u32>, _> = journal.replay().collect();
        assert!(matches!(read, Err(JournalError::Entry { index: 0, .. })));
    }
}
