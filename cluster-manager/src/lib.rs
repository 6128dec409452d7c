//! One domain's coordinator.

pub mod swarm;
pub mod torrent_controller;
