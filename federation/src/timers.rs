//! Every waiting time of the negotiation, in ms. `notes/federation.md` F5 tells where the start values come from.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Timers {
    /// A round of bids closes after this, or as soon as everybody has answered.
    pub bid_window_ms: u64,
    /// How long a bid's hold lasts; it frees itself with no message.
    pub hold_ms: u64,
    /// An award that is not accepted by then goes to others.
    pub accept_ms: u64,
    /// How long one request waits for its answer.
    pub answer_ms: u64,
    /// A lease lasts this long beyond the last word of the other side.
    pub lease_ttl_ms: u64,
    /// A silent domain keeps its parts this much longer than its lease. More than ten minutes, so that a cut of ten minutes
    /// re-runs nothing.
    pub detach_grace_ms: u64,
    /// A domain that answers and does not get on with a part, for this long and for four times what it had bid (`finish-p90-ms`), has it
    /// taken back. Long enough for a store that is away for minutes.
    pub late_ms: u64,
    /// Open parts are called out again after this; doubled each time nobody bids, up to eight times.
    pub recall_ms: u64,
    /// At most one progress message a lease in this time.
    pub progress_ms: u64,
    /// First repeat of a result that was not acknowledged; doubled up to `repeat_max_ms`.
    pub repeat_ms: u64,
    pub repeat_max_ms: u64,
    /// Results are kept this long for a home that does not come back.
    pub keep_ms: u64,
    /// After a restart, how long to wait for hosts to tell of running tasks before they are started again.
    pub adopt_ms: u64,
    /// How long a marked domain gets nothing; dishonest ones ten times as long.
    pub cool_down_ms: u64,
    /// An ad is forgotten after this.
    pub ad_stale_ms: u64,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            bid_window_ms: 1_500,
            hold_ms: 30_000,
            accept_ms: 3_000,
            answer_ms: 1_500,
            lease_ttl_ms: 60_000,
            detach_grace_ms: 600_000,
            late_ms: 600_000,
            recall_ms: 1_000,
            progress_ms: 1_000,
            repeat_ms: 1_000,
            repeat_max_ms: 15_000,
            keep_ms: 86_400_000,
            adopt_ms: 3_000,
            cool_down_ms: 60_000,
            ad_stale_ms: 90_000,
        }
    }
}

impl Timers {
    /// Home renews a lease this often.
    pub fn renew_ms(&self) -> u64 {
        (self.lease_ttl_ms / 3).max(1)
    }
}
