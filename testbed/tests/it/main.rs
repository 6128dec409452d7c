//! Against real parts.

mod film;
mod host;
mod player;
mod prosody;
mod s3;
mod player;
mod published;
mod shelf;
