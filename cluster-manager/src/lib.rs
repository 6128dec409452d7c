//! One domain's coordinator, and the client that talks to it.
//!
//! `coordinator` drives the pure `federation::domain::Domain`; `film` is what it knows of transcoding; `results`, `timeline`
//! and `web` make what a person sees.

pub mod archive;
pub mod cli;
pub mod config;
pub mod coordinator;
pub mod film;
pub mod fit;
pub mod hosts;
pub mod journal;
pub mod load;
pub mod paste;
pub mod plan;
pub mod record;
pub mod rest;
pub mod results;
pub mod shell;
pub mod swarm;
pub mod timeline;
pub mod torrent_controller;
pub mod vault;
pub mod view;
pub mod web;
