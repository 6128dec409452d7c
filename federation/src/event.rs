//! What a domain writes down: the one truth that survives a restart.
//!
//! A domain's lasting state ([`crate::book::Book`]) is the fold of its events, in order, and of nothing else. Whatever can be
//! learned again by asking (progress, ads, who answered what) is not here.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::book::Record;
use crate::cluster::Failure;
use crate::id::{BidId, DomainId, JobId, LeaseId, Millis};
use crate::message::{Bid, Output, PartAward, PartCall, PartRef, Usage};

/// A capability, or an address that is one. Never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Something that has happened in this domain, as home of a job or as contractor of another's parts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// A job was taken on: from a client, or (with a `parent`) parts of a lease that are sold on.
    Submitted {
        at: Millis,
        job: JobId,
        terms: Terms,
        parts: Vec<PartCall>,
    },
    PartsAdded {
        at: Millis,
        job: JobId,
        parts: Vec<PartCall>,
    },
    /// A call for bids went to these domains.
    Called {
        at: Millis,
        job: JobId,
        domains: Vec<DomainId>,
    },
    Offered {
        at: Millis,
        job: JobId,
        domain: DomainId,
        offer: Offer,
    },
    /// The parts are promised; no work has started.
    Awarded {
        at: Millis,
        job: JobId,
        lease: LeaseId,
        domain: DomainId,
        bid: BidId,
        ttl_ms: u64,
        renew_ms: u64,
        /// As in the bid.
        #[serde(default)]
        finish_p90_ms: u64,
        price: f64,
        parts: Vec<PartRef>,
    },
    /// Not accepted: the parts are open again.
    Withdrawn {
        at: Millis,
        lease: LeaseId,
        reason: String,
    },
    /// Accepted, and from now on the domain may be working.
    Committed {
        at: Millis,
        lease: LeaseId,
    },
    /// The domain has said that it knows of the commitment.
    Confirmed {
        at: Millis,
        lease: LeaseId,
    },
    /// The first byte of the job was fetched.
    Fetching {
        at: Millis,
        job: JobId,
    },
    Loaded {
        at: Millis,
        job: JobId,
        part: u32,
        attempt: u32,
        outputs: Vec<Output>,
    },
    Uploaded {
        at: Millis,
        lease: LeaseId,
        part: u32,
        attempt: u32,
        by: DomainId,
        outputs: Vec<Output>,
        usage: Usage,
    },
    Verified {
        at: Millis,
        job: JobId,
        part: u32,
        attempt: u32,
    },
    /// The result of an attempt that had been given up came after all and is right.
    Adopted {
        at: Millis,
        lease: LeaseId,
        part: u32,
        attempt: u32,
        by: DomainId,
        outputs: Vec<Output>,
        usage: Usage,
    },
    /// A try that counts.
    Failed {
        at: Millis,
        lease: LeaseId,
        part: u32,
        attempt: u32,
        failure: Failure,
    },
    /// Given back unfinished; not a try that counts.
    Returned {
        at: Millis,
        lease: LeaseId,
        parts: Vec<PartRef>,
        reason: String,
    },
    /// Silent for longer than the lease and its grace.
    Lost {
        at: Millis,
        lease: LeaseId,
    },
    /// Taken back from a domain that answers, and does not get on.
    Late {
        at: Millis,
        lease: LeaseId,
        parts: Vec<PartRef>,
    },
    /// Nothing of this lease is left to do or to say.
    Ended {
        at: Millis,
        lease: LeaseId,
    },
    Closed {
        at: Millis,
        job: JobId,
        end: End,
    },
    /// Of a job that has ended nothing is left to do or to say, and the driver has kept what is still shown of it.
    Forgotten {
        at: Millis,
        job: JobId,
    },
    Marked {
        at: Millis,
        domain: DomainId,
        mark: Mark,
        until: Millis,
    },
    /// All that had been learnt of a domain until then, in a journal that no longer has the events it was learnt from.
    Standing {
        domain: DomainId,
        record: Record,
    },

    /// As contractor: committed by the holder of the job; work starts.
    Taken {
        at: Millis,
        lease: LeaseId,
        terms: TakenTerms,
        parts: Vec<PartAward>,
    },
    Started {
        at: Millis,
        lease: LeaseId,
        part: u32,
        attempt: u32,
    },
    /// A result to be repeated until it is acknowledged.
    Kept {
        at: Millis,
        lease: LeaseId,
        part: u32,
        attempt: u32,
        result: Kept,
    },
    /// Acknowledged or refused as stale: forget it.
    Settled {
        at: Millis,
        lease: LeaseId,
        part: u32,
        attempt: u32,
    },
    /// No longer to be done here.
    Dropped {
        at: Millis,
        lease: LeaseId,
        parts: Vec<PartRef>,
        reason: String,
    },
    /// Nobody bought these; they are done here.
    Unsold {
        at: Millis,
        lease: LeaseId,
        parts: Vec<u32>,
    },
    LeaseClosed {
        at: Millis,
        lease: LeaseId,
        reason: String,
    },
}

/// The frame of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Terms {
    /// Where the job was submitted, and its name there.
    pub home: DomainId,
    pub name: JobId,
    /// The lease whose parts are sold on by this job.
    pub parent: Option<LeaseId>,
    pub kind: String,
    pub deadline: Option<Millis>,
    pub budget: Option<f64>,
    /// Domains the work has passed through, home first, this one last.
    pub path: Vec<DomainId>,
    pub depth_left: u32,
    /// The addresses and attempts of parts that are sold on; empty for a job that is at home here.
    pub orders: Vec<Order>,
}

/// Where the order of a part lies that another domain gave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Order {
    pub part: u32,
    pub attempt: u32,
    pub url: Secret,
}

/// The frame of a lease taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TakenTerms {
    /// Who awarded it, and whose job it is.
    pub from: DomainId,
    pub home: DomainId,
    pub job: JobId,
    pub kind: String,
    pub secret: Secret,
    pub contract: String,
    pub ttl_ms: u64,
    pub price: f64,
    pub path: Vec<DomainId>,
    pub depth_left: u32,
    /// As in [`Award`](crate::message::Award).
    #[serde(default)]
    pub common: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Offer {
    Bid(Bid),
    Refused(String),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum End {
    Done,
    Failed { code: String, message: String },
    Cancelled { reason: String },
}

/// A result that waits for its acknowledgement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kept {
    Done {
        by: Option<DomainId>,
        outputs: Vec<Output>,
        usage: Usage,
    },
    Failed(Failure),
    /// This domain cannot do it any more.
    Revoked(String),
}

/// Why a domain gets no awards for a while; the graver, the later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mark {
    /// It vanished with work in hand, or does not answer.
    Suspect,
    /// It fails whatever it is given.
    BlackHole,
    /// It sent a result that is not what it said, or spoke for another's lease.
    Dishonest,
    /// It sends more than can be right.
    Flooding,
}

impl Mark {
    pub fn name(self) -> &'static str {
        match self {
            Self::Suspect => "suspect",
            Self::BlackHole => "black-hole",
            Self::Dishonest => "dishonest",
            Self::Flooding => "flooding",
        }
    }
}
