//! Jobs that have ended: what is still shown of them, and what it takes to read their results. On the disk only, so that a
//! cluster manager does not grow with its history. Written by the journal.

use federation::job::Job;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::film::FilmJob;
use crate::view::{JobDoc, ResultsDoc};

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
pub struct Archive {
    pub(crate) ended: sled::Tree,
    /// Where results are served now; it may have been another place when the job ended.
    pub(crate) base_url: String,
}

impl Archive {
    pub fn get(&self, id: &str) -> Option<Ended> {
        let bytes = self.ended.get(id).map_err(|error| warn!(id, %error, "an ended job cannot be read")).ok()??;
        self.read(&bytes)
    }

    /// All of them, one after the other.
    pub fn documents(&self) -> impl Iterator<Item = JobDoc> {
        self.ended.iter().filter_map(|item| Some(self.read(&item.ok()?.1)?.document))
    }

    fn read(&self, bytes: &[u8]) -> Option<Ended> {
        let read = serde_json::from_slice(bytes);
        let mut ended: Ended =
            read.map_err(|error| warn!(%error, "an ended job is not understood; it is left out")).ok()?;
        let document = &mut ended.document;
        document.results = document.results.take().map(|_| ResultsDoc::at(&self.base_url, &document.id));
        Some(ended)
    }
}
