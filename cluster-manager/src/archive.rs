//! Jobs that have ended: what is still shown of them, and what it takes to read their results. On the disk only, so that a
//! cluster manager does not grow with its history. Written by the journal.

use federation::job::Job;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::film::FilmJob;
use crate::view::JobDoc;

/// The last state of a job.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ended {
    pub document: JobDoc,
    /// Without credentials.
    pub xml: String,
    /// The job's own credentials, sealed by the vault.
    pub sealed: Option<String>,
}

impl Ended {
    /// `None`: the document is of another version.
    pub fn film(&self) -> Option<FilmJob> {
        FilmJob::new(&self.document.id, Job::parse(&self.xml).ok()?).ok()
    }
}

/// For reading, from any task. What cannot be read is left out, with a word in the log.
#[derive(Clone, Debug)]
pub struct Archive(pub(crate) sled::Tree);

impl Archive {
    pub fn get(&self, id: &str) -> Option<Ended> {
        let bytes = self.0.get(id).map_err(|error| warn!(id, %error, "an ended job cannot be read")).ok()??;
        read(&bytes)
    }

    /// All of them, one after the other.
    pub fn documents(&self) -> impl Iterator<Item = JobDoc> {
        self.0.iter().filter_map(|item| Some(read(&item.ok()?.1)?.document))
    }
}

fn read(bytes: &[u8]) -> Option<Ended> {
    serde_json::from_slice(bytes).map_err(|error| warn!(%error, "an ended job is not understood; it is left out")).ok()
}
