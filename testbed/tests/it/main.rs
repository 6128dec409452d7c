//! Against real parts.

mod demo;
mod film;
mod host;
mod jobs;
mod player;
mod prosody;
mod published;
mod s3;
mod shelf;
mod world;
