//! One directory for each task, gone when the task is, and bounded bytes in all of them together.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

const PREFIX: &str = "task-";
/// Granularity of the disk budget; a semaphore holds too few permits to count bytes.
const UNIT_BYTES: u64 = 64 * 1024;

/// The directory that holds all task directories of one guest; nobody else may use it.
#[derive(Debug)]
pub struct WorkRoot {
    path: PathBuf,
    budget: Arc<Semaphore>,
    units: u32,
}

impl WorkRoot {
    /// Creates `path` and removes what a killed guest left in it. At most `bytes_max` of input are then kept at a time.
    pub fn open(path: &Path, bytes_max: u64) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(PREFIX) {
                std::fs::remove_dir_all(entry.path())?;
            }
        }
        let units = units(bytes_max);
        Ok(Self { path: path.to_owned(), budget: Arc::new(Semaphore::new(units as usize)), units })
    }

    /// Waits until `bytes` more fit. An input larger than the whole budget is let in alone.
    pub async fn reserve(&self, bytes: u64) -> OwnedSemaphorePermit {
        let wanted = units(bytes).min(self.units);
        self.budget.clone().acquire_many_owned(wanted).await.expect("the budget is never closed")
    }

    /// A fresh directory; it is removed with all its files when the value is dropped.
    pub fn task_dir(&self) -> io::Result<TempDir> {
        tempfile::Builder::new().prefix(PREFIX).tempdir_in(&self.path)
    }
}

fn units(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX / 8).clamp(1, u32::MAX / 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_of_a_killed_guest_are_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("task-old/deep")).unwrap();
        std::fs::write(dir.path().join("token"), "x").unwrap();
        WorkRoot::open(dir.path(), 1).unwrap();
        assert!(!dir.path().join("task-old").exists());
        assert!(dir.path().join("token").exists());
    }

    #[tokio::test]
    async fn an_input_waits_until_the_disk_has_room_and_an_oversize_one_goes_alone() {
        let dir = tempfile::tempdir().unwrap();
        let root = WorkRoot::open(dir.path(), 2 * UNIT_BYTES).unwrap();
        let first = root.reserve(1).await;
        let oversize = root.reserve(10 * UNIT_BYTES);
        tokio::pin!(oversize);
        assert!(futures::poll!(&mut oversize).is_pending());
        drop(first);
        drop(oversize.await);
    }
}
