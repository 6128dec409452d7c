//! Against real parts.

mod prosody;
mod s3;
