//! What a guest tells about a task. States are cumulative: the newest one says everything, so one may be lost.

use serde::{Deserialize, Serialize};
use storage::film::part::OutputObject;

/// Where a task stands. The order is the order of a life; `done` and `failed` are final.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    #[default]
    Waiting,
    Loading,
    /// The input is here and its sound packets, if any, are in the store.
    Loaded,
    Running,
    Publishing,
    Done,
    Failed,
}

impl Phase {
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Failed)
    }

    /// The word of the cluster protocol.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Loading => "loading",
            Self::Loaded => "loaded",
            Self::Running => "running",
            Self::Publishing => "publishing",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}

/// Where the time and the bytes went; fields as in `federation::message::Usage`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Usage {
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub throttled: u64,
    pub download_ms: u64,
    pub load_ms: u64,
    pub process_ms: u64,
    pub publish_ms: u64,
    pub cpu_ms: u64,
}

/// Why a task failed; fields as in `federation::cluster::Failure`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    pub class: String,
    pub retryable: bool,
    pub code: String,
    /// At most 4 KiB.
    pub log: String,
}

/// Body of `PUT /tasks/{id}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// Presigned GET of the `PartSpec`. Never logged.
    pub url: String,
    /// Swarm of the domain's share, which has the part's bytes; without it, or when it fails, they come from the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swarm: Option<String>,
}

impl<S: Into<String>> From<S> for Order {
    fn from(url: S) -> Self {
        Self { url: url.into(), swarm: None }
    }
}

/// Answer of `GET /tasks/{id}` and each line of its `/events`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskState {
    pub task: String,
    pub state: Phase,
    /// Bytes fetched so far.
    pub bytes: u64,
    /// Bytes to fetch; 0 until the order was read.
    pub bytes_total: u64,
    /// 0-100 of the processing.
    pub percent: f32,
    /// Objects already in the store.
    pub outputs: Vec<OutputObject>,
    pub usage: Usage,
    pub failure: Option<Failure>,
}
