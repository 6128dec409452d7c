//! The journal: what this cluster manager has promised and learnt, in order, in sled.
//!
//! State is never stored, only events; a restart folds them again. An entry counts as written when [`Journal::append`]
//! returns: then it is with the operating system, and a killed process loses nothing. Secrets never come here in clear
//! (see `vault`).

use std::path::Path;

use serde::{Serialize, de::DeserializeOwned};

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("open the journal {path}")]
    Open { path: String, source: sled::Error },
    #[error("write to the journal")]
    Write(#[source] sled::Error),
    #[error("read the journal")]
    Read(#[source] sled::Error),
    #[error("journal entry {index} is not understood; it was written by another version")]
    Entry { index: u64, source: serde_json::Error },
}

pub struct Journal {
    db: sled::Db,
    events: sled::Tree,
    next: u64,
}

impl Journal {
    /// Opens or creates the journal in `dir`. Fails when another process has it open.
    pub fn open(dir: &Path) -> Result<Self, JournalError> {
        let fail = |source| JournalError::Open { path: dir.display().to_string(), source };
        // Small cache: the journal is read once, at start.
        let db = sled::Config::new().path(dir).cache_capacity(4 << 20).flush_every_ms(None).open().map_err(fail)?;
        let events = db.open_tree("events").map_err(fail)?;
        let next = match events.last().map_err(fail)? {
            Some((key, _)) => index_of(&key) + 1,
            None => 0,
        };
        Ok(Self { db, events, next })
    }

    /// A number that grows with each start: this incarnation's epoch.
    pub fn next_epoch(&self) -> Result<u64, JournalError> {
        let bytes = self
            .db
            .update_and_fetch("epoch", |old| {
                let epoch = old.and_then(|b| b.try_into().ok()).map_or(0, u64::from_be_bytes);
                Some((epoch + 1).to_be_bytes().to_vec())
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
        let mut batch = sled::Batch::default();
        for (offset, entry) in entries.iter().enumerate() {
            let bytes = serde_json::to_vec(entry).map_err(|source| JournalError::Entry { index: self.next, source })?;
            batch.insert(&(self.next + offset as u64).to_be_bytes(), bytes);
        }
        self.events.apply_batch(batch).map_err(JournalError::Write)?;
        self.db.flush().map_err(JournalError::Write)?;
        self.next += entries.len() as u64;
        Ok(())
    }

    /// Every entry, oldest first.
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

    #[test]
    fn the_epoch_grows_with_each_start() {
        let dir = tempfile::tempdir().unwrap();
        let first = Journal::open(dir.path()).unwrap().next_epoch().unwrap();
        let second = Journal::open(dir.path()).unwrap().next_epoch().unwrap();
        assert!(second > first);
    }

    #[test]
    fn an_entry_of_another_shape_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        journal.append(&["text"]).unwrap();
        let read: Result<Vec<u32>, _> = journal.replay().collect();
        assert!(matches!(read, Err(JournalError::Entry { index: 0, .. })));
    }
}
