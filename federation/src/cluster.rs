//! What a cluster manager and its host managers say to each other (`urn:starling:cluster:1`), inside one domain.
//!
//! A host manager announces itself by [`Host`] in presence directed to the active cluster manager; the cluster manager sends
//! [`Run`] and [`Stop`] as IQs to the host manager's full JID; the host manager sends [`Status`] as IQs to the full JID of
//! whoever is active *now*, and repeats a final one until it is answered.

use serde::{Deserialize, Serialize};
use xso::{AsXml, FromXml};

use crate::message::{AtLeastZero, Output, Usage};

pub const NS: &str = "urn:starling:cluster:1";

/// Presence payload of a host manager.
#[derive(FromXml, AsXml, Clone, Debug, PartialEq)]
#[xml(namespace = NS, name = "host")]
pub struct Host {
    #[xml(attribute)]
    pub name: String,
    /// Incarnation: grows with each start.
    #[xml(attribute)]
    pub epoch: u64,
    #[xml(attribute)]
    pub seq: u64,
    /// Parts it can run at the same time.
    #[xml(attribute)]
    pub slots: u32,
    #[xml(attribute(name = "slots-free"))]
    pub slots_free: u32,
}

/// Presence payload of the active cluster manager in the Cluster room.
#[derive(FromXml, AsXml, Clone, Debug, PartialEq)]
#[xml(namespace = NS, name = "manager")]
pub struct Manager {
    #[xml(attribute)]
    pub epoch: u64,
}

/// Cluster manager → host manager, IQ-set: do these. Answered by [`Taken`].
#[derive(FromXml, AsXml, Clone, Debug, PartialEq)]
#[xml(namespace = NS, name = "run")]
pub struct Run {
    #[xml(child(n = ..))]
    pub tasks: Vec<Task>,
}

/// One task of a [`Run`].
#[derive(FromXml, AsXml, Clone, Debug, PartialEq)]
#[xml(namespace = NS, name = "task")]
pub struct Task {
    /// The same task is never run twice: a repeat is taken and ignored.
    #[xml(attribute)]
    pub id: String,
    /// Presigned GET of the part's order (`storage::film::part::PartSpec`).
    #[xml(attribute)]
    pub url: String,
    /// Swarm that brings the part's bytes (`http://HOST:PORT/NAME`); absent: they come from the store.
    #[xml(attribute(default))]
    pub swarm: Option<String>,
}

/// A host manager's answer to [`Run`]: so many of the tasks were taken, or known before, from the first on. No slot is free for the others.
#[derive(FromXml, AsXml, Clone, Debug, PartialEq)]
#[xml(namespace = NS, name = "taken")]
pub struct Taken {
    #[xml(attribute)]
    pub tasks: usize,
}

/// Cluster manager → host manager, IQ-set: stop and forget. Answered by an empty result, also when unknown.
#[derive(FromXml, AsXml, Clone, Debug, PartialEq)]
#[xml(namespace = NS, name = "stop")]
pub struct Stop {
    #[xml(attribute)]
    pub task: String,
}

/// Host manager → cluster manager, IQ-set. Cumulative. Answered by an empty result.
#[derive(FromXml, AsXml, Clone, Debug, PartialEq)]
#[xml(namespace = NS, name = "status")]
pub struct Status {
    #[xml(attribute)]
    pub task: String,
    /// `waiting`, `loading`, `loaded`, `running`, `publishing`, `done`, `failed` or `unknown`.
    #[xml(attribute)]
    pub state: String,
    /// Bytes fetched so far.
    #[xml(attribute)]
    pub bytes: u64,
    /// 0-100 of the processing.
    #[xml(attribute(codec = AtLeastZero))]
    pub percent: f32,
    /// Objects already in the store.
    #[xml(child(n = ..))]
    pub outputs: Vec<Output>,
    #[xml(child(default))]
    pub usage: Option<Usage>,
    /// Present when `failed`.
    #[xml(child(default))]
    pub failure: Option<Failure>,
}

/// Why a task failed.
#[derive(FromXml, AsXml, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[xml(namespace = NS, name = "failure")]
pub struct Failure {
    /// `input`, `code`, `resource`, `preempted`, `data` or `internal`.
    #[xml(attribute)]
    pub class: String,
    #[xml(attribute)]
    pub retryable: bool,
    /// Stable code for people and programs.
    #[xml(attribute)]
    pub code: String,
    /// Tail of the log, at most 4 KiB.
    #[xml(text)]
    pub log: String,
}

impl Failure {
    /// Whether it says that the same would happen everywhere.
    pub fn blames_source(&self) -> bool {
        !self.retryable || matches!(self.class.as_str(), "input" | "data")
    }
}
