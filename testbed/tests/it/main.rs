//! Against real parts.

mod bench;
mod cli;
mod console;
mod crashes;
mod demo;
mod faults;
mod film;
mod host;
mod jobs;
mod origin;
mod person;
mod player;
mod profanity;
mod prosody;
mod published;
mod s3;
mod shares;
mod shelf;
mod stage;
mod strangers;
mod terminal;
mod told;
mod world;
