//! Against real parts.

mod demo;
mod film;
mod prosody;
mod s3;
mod world;
