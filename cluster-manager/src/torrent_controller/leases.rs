//! Leases to read from an object store, and what became of them.
//!
//! The controller alone holds the key: a lease carries presigned URLs. Refusals (503, time-outs, slow first bytes) go to the policy
//! as they come. That an object changed or is gone is believed after the controller has looked itself; then the load is over.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use storage::error::{Reason, StoreError};
use storage::overlay::announce::Error;
use storage::overlay::lease::{LeaseAnswer, LeaseAsk, Outcome, Part, Read};
use storage::overlay::metainfo::GroupHash;
use storage::overlay::objects::Objects;
use storage::s3::Store;

use super::{Ends, Origin, TorrentController, WAIT_MAX, refused};

/// A presigned URL outlives the longest read.
const URL_TTL: Duration = Duration::from_secs(3600);
/// Bytes of one read, at most.
const READ_BYTES: u64 = 16 << 20;
/// Reads of one load, at least: few large ones would leave nodes without any.
const READS_MIN: u64 = 256;
/// Reads under way at one node (it asks for the next before the last one is in).
const READS_PER_NODE: u32 = 2;
/// No read is given to another sooner; who dies is missed by its announces.
pub const LEASE_MS_MIN: u64 = 20_000;

/// An object store as the origin of a swarm.
pub struct StoreOrigin {
    pub store: Store,
    pub objects: Objects,
    pub hashes: Vec<Vec<GroupHash>>,
    /// How long the store may refuse everything before the load is given up.
    pub patience: Duration,
}

/// Pieces of one read, and of all reads that a node may have under way.
pub fn pieces_per_read(total: u64, piece: u64) -> u32 {
    (READ_BYTES.min(total / READS_MIN) / piece.max(1)).max(1) as u32
}

pub fn leases_per_node(total: u64, piece: u64) -> u32 {
    pieces_per_read(total, piece) * READS_PER_NODE
}

pub async fn hashes(State(this): State<Arc<TorrentController>>, Path(chunk): Path<u32>) -> Response {
    match &this.origin {
        Origin::Store(origin) => match origin.hashes.get(chunk as usize) {
            Some(hashes) => hashes.concat().into_response(),
            None => (StatusCode::NOT_FOUND, "no such chunk\n").into_response(),
        },
        Origin::Peer(_) => (StatusCode::NOT_FOUND, "the origin is a peer: ask it\n").into_response(),
    }
}

impl TorrentController {
    /// The group hashes of a chunk, where the origin is a store.
    pub fn hashes(&self, chunk: u32) -> Option<Vec<GroupHash>> {
        let Origin::Store(origin) = &self.origin else { return None };
        origin.hashes.get(chunk as usize).cloned()
    }
}

pub async fn lease(
    State(this): State<Arc<TorrentController>>,
    ConnectInfo(Ends { from, .. }): ConnectInfo<Ends>,
    body: Bytes,
) -> Response {
    match answer(&this, from, &body).await {
        Ok(answer) => Json(answer).into_response(),
        Err(error) => refused(&error),
    }
}

async fn answer(this: &TorrentController, from: SocketAddr, body: &[u8]) -> Result<LeaseAnswer, Error> {
    let ask: LeaseAsk = serde_json::from_slice(body).map_err(|_| Error::Field("body"))?;
    this.check(ask.info_hash(), &ask.token)?;
    this.speaks(ask.node, from)?;
    let Origin::Store(origin) = &this.origin else { return Err(Error::Unknown) };
    if let Some((pieces, outcome)) = ask.last {
        let pieces: BTreeSet<_> = pieces.into_iter().filter(|p| *p < this.meta.layout.pieces()).collect();
        ended(this, origin, ask.node, &pieces, outcome).await;
    }
    let deadline = tokio::time::Instant::now() + Duration::from_millis(ask.wait_ms).min(WAIT_MAX);
    loop {
        let mut freed = std::pin::pin!(this.freed.notified());
        freed.as_mut().enable();
        if let Some(why) = this.failure() {
            return Ok(LeaseAnswer { read: None, stop: Some(why) });
        }
        let pieces = if ask.more { take(this, ask.node) } else { Vec::new() };
        if !pieces.is_empty() {
            return Ok(LeaseAnswer { read: Some(read(this, origin, pieces).await), stop: None });
        }
        if !ask.more || tokio::time::timeout_at(deadline, freed).await.is_err() {
            return Ok(LeaseAnswer::default());
        }
    }
}

fn take(this: &TorrentController, node: u64) -> Vec<u32> {
    let layout = &this.meta.layout;
    let count = pieces_per_read(layout.total(), layout.piece_len_max());
    this.with(|inner, now| (0..count).map_while(|_| inner.policy.lease_for(now, node)).collect())
}

async fn read(this: &TorrentController, origin: &StoreOrigin, pieces: Vec<u32>) -> Read {
    let mut parts: Vec<Part> = Vec::new();
    let mut last = None;
    for piece in &pieces {
        for (object, range) in origin.objects.spans(this.meta.layout.piece_bytes(*piece)) {
            match parts.last_mut() {
                Some(part) if last == Some((&object.path, range.start())) => part.end = range.end(),
                _ => {
                    // Signing is arithmetic; if it fails the node's GET will say so.
                    let url = origin.store.presign_get(&object.path, URL_TTL).await.unwrap_or_default();
                    parts.push(Part { url, etag: object.etag.clone(), start: range.start(), end: range.end() });
                }
            }
            last = Some((&object.path, range.end()));
        }
    }
    let name = last.map_or_else(String::new, |(path, _)| path.to_string());
    Read { name, pieces, parts }
}

async fn ended(this: &TorrentController, origin: &StoreOrigin, node: u64, pieces: &BTreeSet<u32>, outcome: Outcome) {
    let (took, failed) = match outcome {
        Outcome::Held { first_byte_ms, bytes } => {
            this.with(|inner, now| {
                pieces.iter().for_each(|piece| inner.policy.lease_done(now, node, *piece));
                // Who held all of it already has not asked the store.
                if bytes > 0 {
                    inner.policy.origin_answered(now, first_byte_ms);
                    inner.failing = None;
                }
            });
            (bytes, None)
        }
        Outcome::Failed { code, retry, text, bytes } => {
            tracing::info!(node, code, retry, text, "a read of the store failed");
            let since = this.with(|inner, now| {
                pieces.iter().for_each(|piece| inner.policy.lease_failed(now, node, *piece));
                inner.refusals += 1;
                *inner.failing.get_or_insert_with(Instant::now)
            });
            let over = (since.elapsed() > origin.patience)
                .then(|| format!("origin-unavailable: the store refuses for {:?}, at last: {text}", since.elapsed()));
            (bytes, if retry { over } else { looked_at(this, origin, pieces).await.or(over) })
        }
    };
    this.with(|inner, _| {
        inner.from_store = inner.from_store.saturating_add(took);
        if inner.failure.is_none() {
            inner.failure = failed;
        }
    });
    this.freed.notify_waiters();
}

/// The controller's own look at the objects that a node could not read; `None` if they are as they were.
async fn looked_at(this: &TorrentController, origin: &StoreOrigin, pieces: &BTreeSet<u32>) -> Option<String> {
    let touched = pieces.iter().flat_map(|piece| origin.objects.spans(this.meta.layout.piece_bytes(*piece)));
    let objects: Vec<_> = touched.map(|(object, _)| object).collect();
    for object in objects {
        let found = match origin.store.head(&object.path).await {
            Ok(meta) if meta.etag == object.etag => continue,
            Ok(_) => StoreError::new(Reason::Changed, "get", &object.path, "replaced under the load"),
            Err(error) if error.retryable() => continue,
            Err(error) => error,
        };
        let hint = match found.reason {
            Reason::Changed => "serve it again; nodes then begin anew with the new version",
            reason => reason.hint(),
        };
        return Some(format!("origin-{}: {found} ({hint})", found.code()));
    }
    None
}
