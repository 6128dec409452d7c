//! When to try again: exponential delay with jitter, the store's `Retry-After`, and an end.
//!
//! Both drivers retry here and nowhere else (the SDK's own retry is off): one policy also covers bodies that break off, which the
//! SDK hands over before it can see them fail.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::error::StoreError;

/// How patient a driver is with one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetryPolicy {
    /// Tries in all. Twelve lets a store that refuses a third of all requests fail one in half a million.
    pub attempts_max: u32,
    /// Longest delay before the second try; it doubles with each further one.
    pub first_delay_ms: u64,
    /// No delay is longer, whatever the store asks for.
    pub longest_delay_ms: u64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { attempts_max: 12, first_delay_ms: 100, longest_delay_ms: 5_000 }
    }
}

impl RetryPolicy {
    /// The delay after the failure of try number `attempt` (from 1); `jitter` is in 0..1 and spreads it over its upper half.
    pub fn delay(&self, attempt: u32, asked: Option<Duration>, jitter: f64) -> Duration {
        let full =
            self.first_delay_ms.saturating_mul(1 << attempt.saturating_sub(1).min(20)).min(self.longest_delay_ms);
        let own = Duration::from_millis(full).mul_f64(0.5 + jitter / 2.0);
        own.max(asked.unwrap_or_default()).min(Duration::from_millis(self.longest_delay_ms))
    }

    /// Repeats `operation` while its error is retryable and tries are left; every repeat is counted in `retries`.
    pub async fn run<T, F, O>(&self, retries: &AtomicU64, mut operation: O) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
        O: FnMut() -> F,
    {
        let mut attempt = 1;
        loop {
            match operation().await {
                Err(error) if error.retryable() && attempt < self.attempts_max => {
                    tracing::debug!(attempt, code = error.code(), object = error.object, "request will be repeated");
                    tokio::time::sleep(self.delay(attempt, error.retry_after, fastrand::f64())).await;
                    retries.fetch_add(1, Ordering::Relaxed);
                    attempt += 1;
                }
                other => return other,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest_and_obey_the_store_within_it() {
        let policy = RetryPolicy::default();
        let ms = |attempt, asked: Option<u64>, jitter| {
            policy.delay(attempt, asked.map(Duration::from_millis), jitter).as_millis()
        };
        assert_eq!([ms(1, None, 1.0), ms(2, None, 1.0), ms(3, None, 0.0), ms(40, None, 1.0)], [100, 200, 200, 5_000]);
        assert_eq!([ms(1, Some(1_000), 0.0), ms(1, Some(3_600_000), 0.0)], [1_000, 5_000]);
    }
}
