//! The world in a box: real XMPP servers, S3 and every agent on loopback, and the checks made from outside.

pub mod bench;
pub mod browser;
pub mod ca;
pub mod demo;
pub mod film;
pub mod process;
pub mod prosody;
pub mod s3;
pub mod simulate;
pub mod world;
