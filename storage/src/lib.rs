//! Bytes: where they are and how they move.
//!
//! `range`, `ledger`, `object` and `film` are pure; `s3` (signed, for home) and `fetch` (presigned, for who holds no key) are the
//! drivers behind feature `s3`. Nothing here knows what a job is.

pub mod error;
#[cfg(feature = "s3")]
pub mod fetch;
pub mod film;
pub mod hex;
pub mod ledger;
pub mod object;
pub mod overlay;
pub mod range;
#[cfg(feature = "s3")]
pub mod retry;
#[cfg(feature = "s3")]
pub mod s3;
