//! Bytes: where they are and how they move.
//!
//! `range` and `film` are pure; `s3` (feature `s3`) is the driver. Nothing here knows what a job is.

pub mod film;
pub mod overlay;
pub mod range;
