//! How a node that may read from the object store itself gets leases, over HTTP: `POST /swarm/lease`.
//!
//! A node asks with what became of its last lease and is told the next read: consecutive pieces, and for each object that they
//! touch a presigned URL, the ETag it must still have, and the range. The key stays with the controller; so do all decisions.

use serde::{Deserialize, Serialize};

use super::metainfo::InfoHash;
use super::policy::NodeId;
use crate::hex::unhex;

/// A node says what it did and asks for more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseAsk {
    pub info_hash: String,
    pub token: String,
    pub node: NodeId,
    /// Pieces of the last lease, and what became of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<(Vec<u32>, Outcome)>,
    /// Whether another lease is wanted.
    pub more: bool,
    /// The answer may wait this long for something to lease, in milliseconds.
    #[serde(default)]
    pub wait_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Outcome {
    /// Verified and held. How long the store took to its first byte, and the bytes that came from it.
    Held { first_byte_ms: u64, bytes: u64 },
    /// Not read: the code of `storage::error`, and whether the same may succeed later.
    Failed { code: String, retry: bool, text: String, bytes: u64 },
}

/// What a node is told: at most one read, or why there will never be one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LeaseAnswer {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read: Option<Read>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<String>,
}

/// Pieces, and where their bytes lie, in the same order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Read {
    /// What is read, for messages.
    pub name: String,
    pub pieces: Vec<u32>,
    pub parts: Vec<Part>,
}

/// One range of one object.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Presigned: a key, never to be shown.
    pub url: String,
    pub etag: String,
    pub start: u64,
    pub end: u64,
}

impl std::fmt::Debug for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = self.url.split('?').next().unwrap_or_default();
        write!(f, "Part({shown} {} {}..{})", self.etag, self.start, self.end)
    }
}

impl LeaseAsk {
    pub fn info_hash(&self) -> Option<InfoHash> {
        unhex(&self.info_hash)?.try_into().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_presigned_url_is_shown_without_its_signature() {
        let part = Part { url: "http://h/b/k?X-Amz-Signature=abc".into(), etag: "\"e\"".into(), start: 0, end: 9 };
        let answer =
            LeaseAnswer { read: Some(Read { name: "k".into(), pieces: vec![0], parts: vec![part] }), stop: None };
        assert!(!format!("{answer:?}").contains("abc"), "{answer:?}");
        assert_eq!(serde_json::from_str::<LeaseAnswer>(&serde_json::to_string(&answer).unwrap()).unwrap(), answer);
    }
}
