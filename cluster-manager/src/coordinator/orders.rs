//! Orders of the jobs at home: where they are, and who writes them when.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use federation::book::PartState;
use federation::id::{DomainId, JobId};
use federation::message::{self, Award, Envelope, PartRef};
use futures::stream::{self, StreamExt};
use storage::error::StoreError;
use storage::film::part::Source;
use storage::overlay::share::Wanted;
use storage::range::ByteRange;
use storage::s3::Store;
use tokio::sync::OnceCell;
use tokio::time::Instant;
use tracing::warn;

use super::{Coordinator, Done};
use crate::film::{FilmJob, Prepared};
use crate::hosts::TaskId;

/// Orders of one lease that are written to the store at the same time.
const ORDERS_AT_ONCE: usize = 16;
/// Addresses of a job signed before they are needed, at most; and so many of them before it is known how many parts there are: they
/// tell nothing of a part but its number.
const ADDRESSES_MAX: u32 = 1_000;
pub(super) const ADDRESSES_AHEAD: u32 = 48;
/// An address signed in advance is used that long; it must not expire before one that is signed when it is needed.
const ADDRESS_FRESH: Duration = Duration::from_secs(60);

/// Writes orders while the coordinator goes on.
pub(super) struct OrderWriter {
    pub(super) film: FilmJob,
    pub(super) prepared: Arc<Prepared>,
    pieces: BTreeMap<u32, message::Output>,
    pub(super) store: Store,
    ttl: Duration,
    early: Option<Arc<Addresses>>,
}

/// Where the orders of the first attempts will be, signed by whoever comes first: before they are needed, or then.
pub(super) struct Addresses {
    since: Instant,
    ttl: Duration,
    urls: Vec<OnceCell<String>>,
}

impl Addresses {
    fn unsigned(ttl: Duration) -> Self {
        Self { since: Instant::now(), ttl, urls: (0..ADDRESSES_MAX).map(|_| OnceCell::new()).collect() }
    }

    /// `None`: not one of these, or signed too long ago.
    async fn get(&self, film: &FilmJob, store: &Store, part: u32) -> Option<Result<String, StoreError>> {
        let url = self.urls.get(part as usize).filter(|_| self.since.elapsed() < ADDRESS_FRESH)?;
        Some(url.get_or_try_init(|| film.order_url(store, part, 1, self.ttl)).await.cloned())
    }

    pub(super) async fn sign(&self, film: &FilmJob, store: &Store, parts: Range<u32>) {
        for part in parts {
            // One that cannot be signed is tried again, and heard of, when it is needed.
            let _ = self.get(film, store, part).await;
            // Whoever waits for the core has something to answer.
            std::thread::yield_now();
        }
    }
}

impl OrderWriter {
    /// Where the order will be, or is.
    async fn address(&self, part: u32, attempt: u32) -> Result<String, StoreError> {
        if let Some(early) = self.early.as_ref().filter(|_| attempt == 1)
            && let Some(url) = early.get(&self.film, &self.store, part).await
        {
            return url;
        }
        self.film.order_url(&self.store, part, attempt, self.ttl).await
    }

    async fn write(&self, part: u32, attempt: u32) -> Result<(), StoreError> {
        self.film.order(&self.store, &self.prepared, &self.pieces, part, attempt, self.ttl).await
    }

    /// The source, and what a part of the film wants of it.
    pub(super) async fn source(&self) -> Result<Source, StoreError> {
        self.film.readable(&self.store, &self.prepared, self.ttl).await
    }

    pub(super) fn ranges(&self, part: u32) -> Option<Vec<ByteRange>> {
        Some(self.prepared.plan.parts.get(part as usize)?.input.ranges.clone())
    }

    /// Some at a time, the first first: that is where work begins.
    pub(super) async fn write_all(&self, parts: &[PartRef]) {
        let write = |part: PartRef| async move { (part, self.write(part.part, part.attempt).await) };
        let mut written = stream::iter(parts.iter().copied()).map(write).buffered(ORDERS_AT_ONCE);
        while let Some((PartRef { part, attempt }, result)) = written.next().await {
            if let Err(error) = result {
                warn!(part, attempt, %error, "an order could not be written; whoever waits for it gives up");
            }
        }
    }
}

/// Fills in where the orders are that nobody has given yet, and how much their parts have in common.
pub(super) async fn address_orders(award: &mut Award, writer: Option<&OrderWriter>) -> Result<(), String> {
    for part in award.parts.iter_mut().filter(|part| part.url.is_empty()) {
        let writer = writer.ok_or("there is no job to write it for")?;
        part.url =
            writer.address(part.part, part.attempt).await.map_err(|error| format!("part {}: {error}", part.part))?;
    }
    if let Some(writer) = writer {
        let wishes: Vec<_> = award.parts.iter().filter_map(|part| writer.ranges(part.part)).collect();
        award.common = Some(Wanted::of(&wishes).common);
    }
    award.pack();
    Ok(())
}

impl Coordinator {
    /// The addresses of a job's orders that were signed before they were needed; none at first.
    pub(super) fn addresses(&mut self, id: &JobId) -> Arc<Addresses> {
        let ttl = self.url_ttl();
        self.addresses.entry(id.clone()).or_insert_with(|| Arc::new(Addresses::unsigned(ttl))).clone()
    }

    /// Of parts that others are at: this may have been killed before they were written.
    pub(super) fn rewrite_orders(&self, id: &JobId) {
        let book = self.domain.book();
        let Some(job) = book.jobs.get(id) else { return };
        let foreign = |lease| book.leases.get(lease).is_some_and(|lease| lease.domain != self.me);
        let parts = job.parts.iter().filter(|(_, p)| matches!(&p.state, PartState::Committed(lease) if foreign(lease)));
        let parts: Vec<_> = parts.map(|(n, p)| PartRef { part: *n, attempt: p.attempt }).collect();
        if let Some(writer) = self.writer(&self.me, id).filter(|_| !parts.is_empty()) {
            self.spawn("orders", async move { writer.write_all(&parts).await });
        }
    }

    pub(super) fn writer(&self, home: &DomainId, id: &JobId) -> Option<OrderWriter> {
        let record = self.records.get(id).filter(|_| *home == self.me)?;
        let (_, prepared) = record.prepared.as_ref()?;
        let (film, prepared, pieces) = (record.film.clone(), prepared.clone(), record.sound_objects());
        let (store, ttl, early) = (self.store_of(id)?.clone(), self.url_ttl(), self.addresses.get(id).cloned());
        Some(OrderWriter { film, prepared, pieces, store, ttl, early })
    }

    pub(super) fn order_writer(&self, envelope: &Envelope) -> Option<OrderWriter> {
        self.writer(&envelope.home, &envelope.job)
    }

    pub(super) fn order_for_myself(&self, home: &DomainId, job: &JobId, task: TaskId) {
        let Some(writer) = self.writer(home, job) else { return };
        let done = self.done.0.clone();
        self.spawn("order", async move {
            let written = writer.write(task.part, task.attempt).await;
            let url = match written {
                Ok(()) => writer.address(task.part, task.attempt).await,
                Err(error) => Err(error),
            };
            let url = url.map_err(|error| error.to_string());
            let _ = done.send(Done::Ordered { task, url }).await; // fails only when we are leaving
        });
    }
}
