//! Against real parts.

mod demo;
mod faults;
mod film;
mod host;
mod jobs;
mod player;
mod prosody;
mod published;
mod s3;
mod shelf;
mod told;
mod world;
