//! Against real parts.

mod prosody;
