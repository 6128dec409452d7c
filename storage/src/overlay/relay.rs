//! A relay's reading: leases of the controller, ranged GETs of the object store, verified groups into the peer at once.
//!
//! Nothing is decided here. Each worker does one read after the other and tells the controller what became of it; a refusal of the
//! store is reported at once (it decides how many read at the same time) and then waited out.

use std::time::Duration;

use bytes::BytesMut;
use tokio::time::Instant;

use super::client::{Controller, Stopped};
use super::lease::{LeaseAsk, Outcome, Read};
use super::metainfo::Metainfo;
use super::peer::Peer;
use super::policy::NodeId;
use crate::error::{Reason, StoreError};
use crate::fetch::Fetcher;
use crate::range::ByteRange;
use crate::retry::RetryPolicy;

/// How long the controller may hold an answer back until there is something to lease.
const WAIT: Duration = Duration::from_millis(1000);

/// Reads what the controller leases, two reads at a time, until it says that the load is over.
pub(super) async fn run(controller: &Controller, peer: &Peer, meta: &Metainfo, node: NodeId) -> Stopped {
    let fetcher = match Fetcher::shared() {
        Ok(fetcher) => fetcher,
        Err(error) => return Stopped(format!("{}: {error}", error.code())),
    };
    let relay = Relay { controller, peer, meta, node, fetcher };
    // Two, so that the store is asked for the next range before the last one is in.
    tokio::select! {
        stopped = relay.work() => stopped,
        stopped = relay.work() => stopped,
    }
}

struct Relay<'a> {
    controller: &'a Controller,
    peer: &'a Peer,
    meta: &'a Metainfo,
    node: NodeId,
    fetcher: &'static Fetcher,
}

impl Relay<'_> {
    async fn work(&self) -> Stopped {
        let mut last = None;
        let mut failed = 0;
        loop {
            let progress = self.peer.progress();
            let over = progress.groups_held == progress.groups || progress.failed.is_some();
            if over && last.is_none() {
                std::future::pending::<()>().await;
            }
            // After a failure the controller hears of it at once, and is asked for more only after a while.
            let refused = failed > 0 && last.is_some();
            match self.controller.lease(&self.ask(last.clone(), !over && !refused)).await {
                Ok(answer) => {
                    last = None;
                    if let Some(why) = answer.stop {
                        return Stopped(why);
                    }
                    if let Some(read) = answer.read {
                        last = Some(self.read(read, &mut failed).await);
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "controller not reached for a lease");
                    tokio::time::sleep(WAIT).await;
                }
            }
            if refused {
                tokio::time::sleep(RetryPolicy::default().delay(failed, None, jitter(self.node, failed))).await;
            }
        }
    }

    fn ask(&self, last: Option<(Vec<u32>, Outcome)>, more: bool) -> LeaseAsk {
        LeaseAsk {
            info_hash: crate::hex::hex(&self.meta.info_hash),
            token: self.meta.token.clone(),
            node: self.node,
            last,
            more,
            wait_ms: if more { WAIT.as_millis() as u64 } else { 0 },
        }
    }

    async fn read(&self, read: Read, failed: &mut u32) -> (Vec<u32>, Outcome) {
        let layout = &self.meta.layout;
        let pieces: Vec<u32> = read.pieces.iter().copied().filter(|p| *p < layout.pieces()).collect();
        let groups: Vec<u32> = pieces.iter().flat_map(|p| layout.piece_groups(*p)).collect();
        let mut got = Got::default();
        let outcome = if self.peer.reading(&groups) { self.fill(&read, &groups, &mut got).await } else { Ok(()) };
        let outcome = match outcome {
            Ok(()) => {
                *failed = 0;
                Outcome::Held { first_byte_ms: got.first_byte.as_millis() as u64, bytes: got.bytes }
            }
            Err(error) => {
                *failed += 1;
                self.peer.read_ended(&groups);
                let (code, retry) = (error.code().to_owned(), error.retryable());
                tracing::info!(code, retry, "a read of the store failed");
                Outcome::Failed { code, retry, text: error.to_string(), bytes: got.bytes }
            }
        };
        (pieces, outcome)
    }

    async fn fill(&self, read: &Read, groups: &[u32], got: &mut Got) -> Result<(), StoreError> {
        let layout = &self.meta.layout;
        for chunk in self.peer.chunks_unknown(groups) {
            let hashes = self.controller.hashes(chunk, layout.chunk_groups(chunk).len()).await;
            let wrong =
                |detail: String| StoreError::new(Reason::Unavailable, "get", "hashes of the controller", detail);
            let hashes = hashes.map_err(|e| wrong(e.to_string()))?;
            if !self.peer.learn_hashes(chunk, hashes) {
                return Err(wrong(format!("chunk {chunk} has another root")));
            }
        }
        let mut coming = groups.iter().copied();
        let mut group = coming.next();
        let mut buffer = BytesMut::new();
        for part in &read.parts {
            let span = ByteRange::new(part.start, part.end);
            let span = span.map_err(|e| StoreError::new(Reason::BadInput, "get", "a lease", e))?;
            let asked = Instant::now();
            let mut body = self.fetcher.open_range(&part.url, &part.etag, span).await?;
            got.first_byte = got.first_byte.max(asked.elapsed());
            while let Some(bytes) = body.next().await? {
                got.bytes += bytes.len() as u64;
                buffer.extend_from_slice(&bytes);
                while let Some(g) = group {
                    let bytes = layout.group_bytes(g);
                    let len = (bytes.end - bytes.start) as usize;
                    if buffer.len() < len {
                        break;
                    }
                    let offered = self.peer.offer(g, buffer.split_to(len).freeze()).await;
                    offered.map_err(|e| StoreError::new(Reason::Changed, "get", &read.name, e))?;
                    group = coming.next();
                }
            }
        }
        match group {
            None => Ok(()),
            Some(_) => Err(StoreError::new(Reason::ShortBody, "get", &read.name, "the lease names too few bytes")),
        }
    }
}

#[derive(Default)]
struct Got {
    first_byte: Duration,
    bytes: u64,
}

/// In 0..1, another for each node and try: nodes refused together do not come again together.
fn jitter(node: NodeId, tries: u32) -> f64 {
    let digest = blake3::hash(&[node.to_be_bytes().as_slice(), &tries.to_be_bytes()].concat());
    f64::from(digest.as_bytes()[0]) / 256.0
}
