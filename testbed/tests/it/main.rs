//! Against real parts.

mod host;
mod prosody;
mod s3;
