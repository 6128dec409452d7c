//! The documents that REST, the Shell room and `starling --json` all show: one set of words for people and programs.

use std::net::SocketAddr;

use federation::job::JobError;

use serde::{Deserialize, Serialize};

use crate::timeline::Span;
use crate::torrent_controller::Status;

/// One job as its owner sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct JobDoc {
    pub id: String,
    /// `submitted`, `preparing`, `bidding`, `running`, `finalising`, `done`, `failed` or `cancelled`.
    pub state: String,
    pub kind: String,
    /// Bare JID of whoever submitted it.
    pub owner: String,
    pub source: String,
    pub target: String,
    /// Ms since the Unix epoch.
    pub submitted_at: u64,
    pub ended_at: Option<u64>,
    pub parts: Vec<PartDoc>,
    pub offers: Vec<OfferDoc>,
    pub results: Option<ResultsDoc>,
    /// Ms since `submitted_at`.
    pub timeline: Vec<Span>,
    pub usage: Vec<UsageDoc>,
    pub error: Option<ErrorDoc>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PartDoc {
    pub n: u32,
    /// `video` or `audio`.
    pub kind: String,
    pub state: String,
    pub domain: Option<String>,
    /// Who really did it, when it was sold on.
    pub by: Option<String>,
    pub attempt: u32,
    pub percent: f32,
    /// Bytes fetched.
    pub bytes: u64,
}

/// What a domain answered to a call for bids.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OfferDoc {
    pub domain: String,
    /// `bid`, or the reason of the refusal.
    pub outcome: String,
    pub parts_max: u32,
    pub price: f64,
    pub awarded: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ResultsDoc {
    pub smil: String,
    pub hls: String,
    pub dash: String,
    /// The page of the home cluster manager that plays it.
    pub player: String,
}

impl ResultsDoc {
    /// As the cluster manager at `base_url` serves them.
    pub fn at(base_url: &str, job: &str) -> Self {
        Self {
            smil: format!("{base_url}/jobs/{job}/movie.smil"),
            hls: format!("{base_url}/jobs/{job}/master.m3u8"),
            dash: format!("{base_url}/jobs/{job}/manifest.mpd"),
            player: format!("{base_url}/player?smil=/jobs/{job}/movie.smil"),
        }
    }
}

/// What one domain did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UsageDoc {
    pub domain: String,
    pub parts: u32,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Encoder CPU seconds.
    pub seconds: f64,
    pub cost: f64,
    /// How the bytes came and why: `direct: …` or `overlay: …`, by the domain's own word.
    pub loaded: Option<String>,
}

/// How a lease's bytes reach the guests of this domain.
#[derive(Clone, Debug, Serialize)]
pub struct LoadDoc {
    pub lease: String,
    pub job: String,
    /// As [`UsageDoc::loaded`].
    pub loaded: String,
    /// The torrent controller's view, and bytes that the origin gave; only with the overlay.
    pub swarm: Option<Status>,
    pub given: u64,
    /// The guests, by their own word.
    pub nodes: Vec<NodeDoc>,
}

/// One node of a load.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NodeDoc {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
    /// `waiting`, `loading`, `whole`, or `there before`.
    pub state: &'static str,
    /// Bytes held, and those of them that it took in from other nodes and from the origin.
    pub bytes: u64,
    pub from_peers: u64,
    pub from_origin: u64,
    /// Nodes and origin that it may ask.
    pub sources: usize,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ErrorDoc {
    /// Stable, kebab-case.
    pub code: String,
    pub message: String,
    pub hint: Option<String>,
    /// Line of the job document, for errors in it.
    pub line: Option<u64>,
}

impl From<JobError> for ErrorDoc {
    fn from(error: JobError) -> Self {
        let (code, hint) = (error.code.to_owned(), error.hint.to_string());
        Self { code, message: error.message.to_string(), hint: Some(hint), line: Some(error.line as u64) }
    }
}

/// A domain as this one sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DomainDoc {
    pub name: String,
    /// `ok`, `draining`, `sick` or `gone`.
    pub health: String,
    pub home: bool,
    pub slots: u32,
    pub slots_free: u32,
    pub price: f64,
    pub version: String,
    /// What is held against it: `suspect`, `black-hole`, `dishonest`, ...
    pub marks: Vec<String>,
}

/// What another domain or a peer says, for people to read: at most `chars_max` characters, none of control.
pub fn plain(said: &str, chars_max: usize) -> String {
    said.chars().filter(|c| !c.is_control()).take(chars_max).collect()
}
