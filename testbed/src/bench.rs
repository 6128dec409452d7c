//! Benchmarks: what we claim, measured on this machine.

pub mod overlay;
