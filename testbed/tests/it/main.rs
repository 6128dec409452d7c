mod s3;
//! Against real parts.

mod prosody;
