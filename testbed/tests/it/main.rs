//! Against real parts.

mod film;
mod prosody;
