//! Integration tests of the cluster manager, one module per topic.

mod config;
mod journal;
mod kills;
mod swarm;
