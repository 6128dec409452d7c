//! Against real parts.

mod player;
mod film;
mod host;
mod prosody;
mod s3;
mod player;
mod published;
mod shelf;
