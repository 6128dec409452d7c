//! MPEG transport streams (ISO/IEC 13818-1).

use super::error::FilmError;
use super::plan::{Plan, PlanOptions};
use super::sparse::{Halt, Sparse};

pub fn sniff(head: &[u8]) -> bool {
    head.len() >= 376 && head.iter().step_by(188).take(3).all(|&byte| byte == 0x47)
}

/// The search for cuts, kept between steps.
#[derive(Debug, Default)]
pub struct Scan {}

impl Scan {
    pub fn read(&mut self, _bytes: &Sparse, _options: &PlanOptions) -> Result<Plan, Halt> {
        Err(FilmError::UnsupportedContainer("MPEG-TS".into()).into())
    }
}
