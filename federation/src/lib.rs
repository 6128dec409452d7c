//! Words: what agents say to each other and how they decide.
//!
//! Everything here is pure but the XMPP driver (feature `xmpp`). [`domain::Domain`] is the door: inputs in, outputs and the
//! next deadline out. Below it, [`book`] holds what lasts, [`broker`] decides as home, [`contractor`] as foreign domain.

pub mod agreement;
pub mod book;
mod broker;
pub mod cluster;
mod contractor;
mod cx;
pub mod domain;
pub mod event;
pub mod id;
pub mod job;
pub mod message;
pub mod plan;
mod post;
pub mod timers;
pub mod view;
#[cfg(feature = "xmpp")]
pub mod xmpp;
