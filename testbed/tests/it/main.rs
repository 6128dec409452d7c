//! Against real parts.

mod player;
mod prosody;
mod s3;
