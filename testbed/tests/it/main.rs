mod s3;
//! Against real parts.

mod prosody;
//! Against real parts.

mod prosody;
mod s3;
