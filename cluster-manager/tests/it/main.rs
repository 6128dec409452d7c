//! Integration tests of the cluster manager, one module per topic.

mod config;
mod kills;
mod swarm;
