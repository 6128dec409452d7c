//! Against real parts.

mod player;
mod film;
mod prosody;
mod s3;
