//! The world in a box.

pub mod ca;
pub mod prosody;
