//! Against real parts.

mod demo;
mod faults;
mod film;
mod host;
mod jobs;
mod origin;
mod player;
mod prosody;
mod published;
mod s3;
mod shelf;
mod world;
