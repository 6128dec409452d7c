//! Words: what agents say to each other and how they decide.
//!
//! Everything here is pure but the XMPP driver (feature `xmpp`).

pub mod cluster;
pub mod id;
pub mod message;
#[cfg(feature = "xmpp")]
pub mod xmpp;
