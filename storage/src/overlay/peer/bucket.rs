//! A rate cap in bytes per second, shared by all connections of a peer.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

/// What may pass at once after a pause: enough for one group at any rate.
const BURST_S: f64 = 0.03;

#[derive(Debug)]
pub struct Bucket {
    rate: Option<f64>,
    /// When all that was let through will have passed at the given rate.
    until: Mutex<Instant>,
}

impl Bucket {
    /// `None` lets everything through.
    pub fn new(bytes_per_s: Option<u64>) -> Self {
        Self { rate: bytes_per_s.map(|rate| rate.max(1) as f64), until: Mutex::new(Instant::now()) }
    }

    /// Waits until `bytes` may pass.
    pub async fn take(&self, bytes: usize) {
        let Some(rate) = self.rate else { return };
        let now = Instant::now();
        let wait = {
            let mut until = self.until.lock().unwrap_or_else(|e| e.into_inner());
            let start = (*until).max(now);
            *until = start + Duration::from_secs_f64(bytes as f64 / rate);
            start.saturating_duration_since(now + Duration::from_secs_f64(BURST_S))
        };
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_megabyte_at_a_megabyte_per_second_takes_a_second() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (capped, free) = runtime.block_on(async {
            let bucket = Bucket::new(Some(10_000_000));
            let start = Instant::now();
            for _ in 0..16 {
                bucket.take(65_536).await;
            }
            let capped = start.elapsed();
            Bucket::new(None).take(usize::MAX).await;
            (capped, start.elapsed() - capped)
        });
        assert!(capped >= Duration::from_millis(60) && free < Duration::from_millis(50), "{capped:?} {free:?}");
    }
}
