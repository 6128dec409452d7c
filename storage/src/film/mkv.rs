//! Matroska and WebM (RFC 9559).

use super::error::FilmError;
use super::plan::{Plan, PlanOptions};
use super::sparse::{Halt, Sparse};

pub fn sniff(head: &[u8]) -> bool {
    head.starts_with(&[0x1a, 0x45, 0xdf, 0xa3])
}

pub fn read(_bytes: &Sparse, _options: &PlanOptions) -> Result<Plan, Halt> {
    Err(FilmError::UnsupportedContainer("Matroska".into()).into())
}
