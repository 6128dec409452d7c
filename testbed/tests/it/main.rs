//! Against real parts.

mod film;
mod player;
mod prosody;
mod s3;
