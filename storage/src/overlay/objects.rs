//! A dataset in an object store: one object, or every object under a prefix laid end to end, each fixed to one version by its ETag.

use std::ops::Range;

use futures::{Stream, StreamExt};

use super::metainfo::{self, File};
use crate::error::{Reason, StoreError};
use crate::ledger::GETS_AT_ONCE;
use crate::range::ByteRange;
use crate::s3::{ObjectPath, Store};

/// Objects of one dataset; a listing of more is refused.
const OBJECTS_MAX: usize = 100_000;
/// Bytes of one GET (AWS's own advice is 8-16 MiB); a pass holds as many of these in memory as it has GETs at once.
pub const GET_BYTES: u64 = 8 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    pub path: ObjectPath,
    pub etag: String,
    /// Where it lies in the dataset.
    pub bytes: Range<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Objects {
    pub name: String,
    pub list: Vec<Object>,
}

impl Objects {
    /// Finds the object at `path`; if there is none, the objects under it.
    pub async fn find(store: &Store, path: &ObjectPath) -> Result<Self, StoreError> {
        if !path.is_prefix() {
            match store.head(path).await {
                Ok(meta) => {
                    let name = path.key().rsplit('/').next().unwrap_or_default().to_owned();
                    let object = Object { path: path.clone(), etag: meta.etag, bytes: 0..meta.size };
                    return Self { name, list: vec![object] }.checked(path);
                }
                Err(error) if error.reason != Reason::NotFound => return Err(error),
                Err(error) => {
                    let under = Self::under(store, &path.join("")?).await?;
                    return if under.list.is_empty() { Err(error) } else { under.checked(path) };
                }
            }
        }
        Self::under(store, path).await?.checked(path)
    }

    async fn under(store: &Store, prefix: &ObjectPath) -> Result<Self, StoreError> {
        let name = prefix.key().trim_end_matches('/').rsplit('/').next().filter(|name| !name.is_empty());
        let listed = store.list(prefix, OBJECTS_MAX + 1).await?;
        if listed.len() > OBJECTS_MAX {
            let detail = format!("more than {OBJECTS_MAX} objects");
            return Err(StoreError::new(Reason::TooLarge, "list", prefix, detail));
        }
        let mut at = 0;
        let mut list = Vec::new();
        // A key that ends in a slash is a console's picture of a directory.
        for object in listed.into_iter().filter(|object| !object.key.ends_with('/')) {
            let path = ObjectPath::new(prefix.bucket(), &object.key)?;
            let end = at + object.size;
            list.push(Object { path, etag: object.etag, bytes: at..end });
            at = end;
        }
        Ok(Self { name: name.unwrap_or(prefix.bucket()).to_owned(), list })
    }

    fn checked(self, path: &ObjectPath) -> Result<Self, StoreError> {
        let bad = |reason, detail: String| Err(StoreError::new(reason, "load", path, detail));
        if self.list.is_empty() {
            return bad(Reason::NotFound, "no object under this prefix".into());
        }
        if self.total() == 0 {
            return bad(Reason::BadInput, "there are no bytes to load".into());
        }
        if self.list.iter().any(|object| object.etag.is_empty()) {
            return bad(Reason::WrongAnswer, "the store names no ETag, so a change could not be seen".into());
        }
        match metainfo::check_names(&self.name, &self.files(path)) {
            Ok(()) => Ok(self),
            Err(error) => bad(Reason::BadInput, format!("these keys cannot be files of one directory: {error}")),
        }
    }

    pub fn total(&self) -> u64 {
        self.list.last().map_or(0, |object| object.bytes.end)
    }

    /// The objects as files: of the single object at `asked` one without a path, else by their keys below the prefix.
    pub fn files(&self, asked: &ObjectPath) -> Vec<File> {
        let single = matches!(self.list.as_slice(), [only] if only.path == *asked);
        let prefix = asked.key().trim_end_matches('/');
        let below = |object: &Object| {
            let key = object.path.key().strip_prefix(prefix).unwrap_or(object.path.key());
            key.strip_prefix('/').unwrap_or(key).split('/').map(str::to_owned).collect()
        };
        let file = |object: &Object| File {
            path: if single { Vec::new() } else { below(object) },
            len: object.bytes.end - object.bytes.start,
        };
        self.list.iter().map(file).collect()
    }

    /// Which version of which bytes this is.
    pub fn identity(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for object in &self.list {
            hasher.update(format!("{}\n{}\n{}\n", object.path, object.etag, object.bytes.end).as_bytes());
        }
        *hasher.finalize().as_bytes()
    }

    /// The objects that `bytes` of the dataset touch, each with the range of it.
    pub fn spans(&self, bytes: Range<u64>) -> impl Iterator<Item = (&Object, ByteRange)> {
        let first = self.list.partition_point(|object| object.bytes.end <= bytes.start);
        let touched = self.list[first..].iter().take_while(move |object| object.bytes.start < bytes.end);
        touched.filter_map(move |object| {
            let base = object.bytes.start;
            let range = ByteRange::new(bytes.start.max(base) - base, bytes.end.min(object.bytes.end) - base);
            Some((object, range.ok()?))
        })
    }

    /// All bytes from `at` on, in order, a few GETs ahead. `changed` when an object is not the version that was found.
    pub fn read<'a>(&'a self, store: &'a Store, at: u64) -> impl Stream<Item = Result<bytes::Bytes, StoreError>> + 'a {
        let starts = (at..self.total()).step_by(GET_BYTES as usize);
        let spans = starts.flat_map(move |start| self.spans(start..(start + GET_BYTES).min(self.total())));
        let get = move |(object, range): (&'a Object, ByteRange)| async move {
            store.get_range(&object.path, range, Some(&object.etag)).await
        };
        futures::stream::iter(spans).map(get).buffered(GETS_AT_ONCE)
    }
}
