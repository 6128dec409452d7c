//! The host manager: joins the Cluster room of its domain, offers slots to the active cluster manager, and runs what that
//! one orders on guests it keeps alive.
//!
//! [`board`] decides, [`manager`] carries out, [`pool`] keeps the guests alive, [`client`] speaks to them.

pub mod board;
pub mod client;
pub mod config;
pub mod manager;
pub mod pool;
