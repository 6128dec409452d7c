//! What this store honours, found out by asking it, because stores differ and documents lie.

use bytes::Bytes;

use super::{PutOptions, Store, failure::failure};
use crate::{
    error::{Reason, StoreError},
    object::ObjectPath,
    range::ByteRange,
};

/// What the product relies on and not every store has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct StoreFeatures {
    /// A GET with a wrong `If-Match` is refused. Without it a replaced source is still noticed, by the ETag of each answer.
    pub get_if_match: bool,
    /// A PUT with `If-None-Match: *` does not overwrite. Without it two attempts of one part can overwrite each other.
    pub put_if_none_match: bool,
}

impl StoreFeatures {
    /// One sentence for each thing that is missing, for the log at start.
    pub fn missing(&self) -> Vec<&'static str> {
        let get = (!self.get_if_match)
            .then_some("the store ignores If-Match on GET; replaced objects are noticed by their ETag only");
        let put = (!self.put_if_none_match)
            .then_some("the store ignores If-None-Match on PUT; nothing keeps writers from overwriting");
        get.into_iter().chain(put).collect()
    }
}

impl Store {
    /// Writes, reads and deletes one small object under `prefix`; its name is new each time.
    pub async fn probe_features(&self, bucket: &str, prefix: &str) -> Result<StoreFeatures, StoreError> {
        let path = ObjectPath::new(bucket, &format!("{prefix}.starling-probe-{:016x}", fastrand::u64(..)))?;
        self.put(&path, Bytes::from_static(b"probe"), PutOptions::default()).await?;
        let found = self.features_by(&path).await;
        self.delete(&path).await?;
        found
    }

    async fn features_by(&self, path: &ObjectPath) -> Result<StoreFeatures, StoreError> {
        let wrong = "\"00000000000000000000000000000000\"";
        let first = ByteRange::new(0, 1).map_err(|error| StoreError::new(Reason::BadInput, "probe", path, error))?;
        let read = self
            .repeat(|| async move {
                let request = self.client.get_object().bucket(path.bucket()).key(path.key()).range(first.http_header());
                request.if_match(wrong).send().await.map(drop).map_err(|error| failure(&error, "probe", path, false))
            })
            .await;
        let options = PutOptions { only_if_absent: true, ..Default::default() };
        let write = self.put(path, Bytes::from_static(b"again"), options).await.map(drop);
        Ok(StoreFeatures {
            get_if_match: honoured(read, Reason::Changed)?,
            put_if_none_match: honoured(write, Reason::Exists)?,
        })
    }
}

/// Refused as wanted, or served, or answered as a header that is not known; anything else says nothing about the feature.
fn honoured(answer: Result<(), StoreError>, wanted: Reason) -> Result<bool, StoreError> {
    match answer {
        Err(error) if error.reason == wanted => Ok(true),
        Ok(()) => Ok(false),
        Err(error) if matches!(error.reason, Reason::Refused | Reason::Unavailable) => Ok(false),
        Err(error) => Err(error),
    }
}
