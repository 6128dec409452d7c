//! A file that was made here, on its way into the store.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use storage::fetch::Fetcher;
use storage::film::fragment;
use storage::film::part::{FragmentSummary, OutputObject};
use storage::hex::hex;
use tokio::task::spawn_blocking;

use super::fault::Fault;
use super::runner::Report;

pub(super) struct Output {
    path: PathBuf,
    content_type: &'static str,
    key: String,
    size: u64,
    sha256: String,
    /// What its boxes say, if it has any.
    pub summary: Option<FragmentSummary>,
}

impl Output {
    /// An fMP4 object; its boxes are read.
    pub async fn inspected(path: &Path, key: &str, content_type: &'static str) -> Result<Self, Fault> {
        Self::read(path, key, content_type, true).await
    }

    /// Any file.
    pub async fn raw(path: &Path, key: &str, content_type: &'static str) -> Result<Self, Fault> {
        Self::read(path, key, content_type, false).await
    }

    async fn read(path: &Path, key: &str, content_type: &'static str, boxes: bool) -> Result<Self, Fault> {
        let (path, key) = (path.to_owned(), key.to_owned());
        let reading = spawn_blocking(move || {
            let bytes = std::fs::read(&path)?;
            let inspected = boxes.then(|| fragment::inspect(&bytes)).transpose();
            let summary = inspected.map_err(|error| Fault::WrongFrames(error.to_string()))?.map(|found| found.summary);
            let (size, sha256) = (bytes.len() as u64, hex(&Sha256::digest(&bytes)));
            Ok(Self { path, content_type, key, size, sha256, summary })
        });
        reading.await.map_err(|error| Fault::Io(std::io::Error::other(error)))?
    }

    /// Puts it into the store and reports it.
    pub async fn publish(self, fetcher: &Fetcher, put: &str, report: &Report) -> Result<(), Fault> {
        fetcher.put(put, &self.path, self.content_type).await.map_err(Fault::of_publishing)?;
        let object = OutputObject { key: self.key, size: self.size, sha256: self.sha256, fragments: self.summary };
        report.update(|state| {
            state.usage.bytes_out += object.size;
            state.outputs.push(object);
        });
        Ok(())
    }
}
