//! Many ranges of one object into one file, several at once: the driver of [`Ledger`].

use std::{
    fs::File as Disk,
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream::FuturesUnordered};
use tokio::{fs::File, io::AsyncSeekExt};

use super::{FetchError, FetchStats, Fetcher, answer::name};
use crate::{
    error::Reason,
    ledger::{Get, Ledger, LedgerLimits},
    range::ByteRange,
};

/// Received bytes are written in runs of about this size: fewer trips to the blocking pool, little memory.
const RUN_BYTES: usize = 512 << 10;

impl Fetcher {
    /// Appends `ranges` to `file` at its cursor, in the order given, and leaves the cursor behind them. `progress` hears the bytes of
    /// output so far; it never falls. On an error the file is cut back to where it began.
    ///
    /// Errors: `changed` when the object is not the one with `etag`; otherwise as in [`Reason`].
    pub async fn ranges_to_file(
        &self,
        url: &str,
        etag: &str,
        ranges: &[ByteRange],
        file: &mut File,
        progress: &mut (dyn FnMut(u64) + Send),
    ) -> Result<FetchStats, FetchError> {
        let disk = |error: std::io::Error| FetchError::new(Reason::LocalFile, "write", name(url), error);
        let base = file.stream_position().await.map_err(disk)?;
        let target = Target {
            url,
            etag,
            base,
            disk: Arc::new(RwLock::new(Some(file.try_clone().await.map_err(disk)?.into_std().await))),
        };
        let fetched = self.drive(&target, ranges, progress).await;
        match &fetched {
            Ok(stats) => file.seek(std::io::SeekFrom::Start(base + stats.bytes)).await.map(drop).map_err(disk)?,
            Err(_) => {
                target.close().await;
                file.set_len(base).await.map_err(disk)?;
                file.seek(std::io::SeekFrom::Start(base)).await.map(drop).map_err(disk)?;
            }
        }
        fetched
    }

    async fn drive(
        &self,
        target: &Target<'_>,
        ranges: &[ByteRange],
        progress: &mut (dyn FnMut(u64) + Send),
    ) -> Result<FetchStats, FetchError> {
        let policy = &self.options.retry;
        let mut ledger = Ledger::new(
            ranges,
            LedgerLimits {
                get_bytes_max: self.options.get_bytes_max,
                gap_bytes_max: self.options.gap_bytes_max,
                attempts_max: policy.attempts_max,
                ..LedgerLimits::default()
            },
        );
        let meter = Mutex::new(Meter { received: 0, kept: 0, shown: 0, progress });
        let mut delays = vec![None; ledger.pieces()];
        let mut flying = FuturesUnordered::new();
        let (mut gets, mut throttled) = (0, 0);
        loop {
            while flying.len() < self.options.parallel.max(1)
                && let Some(get) = ledger.start()
            {
                let delay = delays.get_mut(get.piece).and_then(Option::take);
                let meter = &meter;
                flying.push(async move {
                    if let Some(delay) = delay {
                        tokio::time::sleep(delay).await;
                    }
                    let done = self.one(target, &get, meter).await;
                    (get, done)
                });
            }
            match flying.next().await {
                None => break,
                Some((get, Ok(()))) => gets += u64::from(ledger.finish(get.piece)),
                Some((get, Err(error))) => {
                    if !error.retryable() || !ledger.fail(get.piece) {
                        return Err(error);
                    }
                    throttled += u64::from(error.reason == Reason::Throttled);
                    tracing::debug!(range = ?get.span, attempt = get.attempt, code = error.code(), "range will be fetched again");
                    if let Some(delay) = delays.get_mut(get.piece) {
                        *delay = Some(policy.delay(get.attempt, error.retry_after, fastrand::f64()));
                    }
                }
            }
        }
        let received = meter.lock().unwrap_or_else(PoisonError::into_inner).received;
        Ok(FetchStats { bytes: ledger.bytes(), fetched: received, gets, retries: ledger.retries(), throttled })
    }

    /// One GET: each run of bytes goes to its places in the file when it is here.
    async fn one(&self, target: &Target<'_>, get: &Get, meter: &Mutex<Meter<'_>>) -> Result<(), FetchError> {
        let mut body = self.open_range(target.url, target.etag, get.span).await?;
        let mut mine = Tally { meter, kept: 0, whole: false };
        let (mut run, mut at) = (BytesMut::new(), get.span.start());
        loop {
            let chunk = body.next().await?;
            if let Some(chunk) = &chunk {
                mine.received(chunk.len());
                run.extend_from_slice(chunk);
            }
            if run.len() >= RUN_BYTES || chunk.is_none() {
                let (start, bytes) = (at, run.split().freeze());
                at += bytes.len() as u64;
                mine.keep(target.write(get, start, bytes).await?);
            }
            if chunk.is_none() {
                break;
            }
        }
        mine.whole = true;
        Ok(())
    }
}

struct Target<'a> {
    url: &'a str,
    etag: &'a str,
    /// Where the output begins in the file.
    base: u64,
    /// None once no more may be written: a blocking write outlives the future that waited for it.
    disk: Arc<RwLock<Option<Disk>>>,
}

impl Target<'_> {
    /// Writes what of `bytes`, which begin at `start` of the object, was asked for; returns how many bytes that was.
    async fn write(&self, get: &Get, start: u64, bytes: Bytes) -> Result<u64, FetchError> {
        let end = start + bytes.len() as u64;
        let mut places = Vec::new();
        for slice in &get.slices {
            let (from, to) = (slice.source.start().max(start), slice.source.end().min(end));
            if from < to {
                let part = bytes.slice((from - start) as usize..(to - start) as usize);
                places.push((self.base + slice.offset + (from - slice.source.start()), part));
            }
        }
        let kept = places.iter().map(|(_, part)| part.len() as u64).sum();
        let disk = self.disk.clone();
        let write = move || {
            let disk = disk.read().unwrap_or_else(PoisonError::into_inner);
            let disk = disk.as_ref().ok_or_else(|| std::io::Error::other("the fetch has ended"))?;
            places.iter().try_for_each(|(offset, part)| disk.write_all_at(part, *offset))
        };
        let written =
            tokio::task::spawn_blocking(write).await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        written.map_err(|error| FetchError::new(Reason::LocalFile, "write", name(self.url), error))?;
        Ok(kept)
    }

    /// Returns when the last write has ended; later ones fail.
    async fn close(&self) {
        let disk = self.disk.clone();
        let _ = tokio::task::spawn_blocking(move || *disk.write().unwrap_or_else(PoisonError::into_inner) = None).await;
    }
}

/// Bytes over all GETs of one call.
struct Meter<'a> {
    received: u64,
    kept: u64,
    shown: u64,
    progress: &'a mut (dyn FnMut(u64) + Send),
}

/// The share of one try; what a broken try kept is taken back.
struct Tally<'a, 'b> {
    meter: &'a Mutex<Meter<'b>>,
    kept: u64,
    whole: bool,
}

impl Tally<'_, '_> {
    fn received(&self, bytes: usize) {
        self.meter.lock().unwrap_or_else(PoisonError::into_inner).received += bytes as u64;
    }

    fn keep(&mut self, bytes: u64) {
        self.kept += bytes;
        let mut meter = self.meter.lock().unwrap_or_else(PoisonError::into_inner);
        meter.kept += bytes;
        if meter.kept > meter.shown {
            meter.shown = meter.kept;
            let shown = meter.shown;
            (meter.progress)(shown);
        }
    }
}

impl Drop for Tally<'_, '_> {
    fn drop(&mut self) {
        if !self.whole {
            self.meter.lock().unwrap_or_else(PoisonError::into_inner).kept -= self.kept;
        }
    }
}
