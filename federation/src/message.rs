//! The messages of the federation (`urn:starling:federation:1`), as they stand in an IQ.
//!
//! A request is an [`Envelope`] in an IQ-set between two full JIDs; its answer is an [`Envelope`] in the IQ-result. The
//! protocol is a FIPA Contract Net with a hold behind each bid and a three-step award; `docs/protocol.md` tells what happens
//! when each message is lost.

#![allow(clippy::useless_conversion)] // in what the derive writes for `log`

mod award;
mod number;

use serde::{Deserialize, Serialize};
use xmpp_parsers::minidom::Element;
use xmpp_parsers::minidom::rxml::{Namespace, xml_ncname};
use xso::error::Error;
use xso::{AsXml, FromXml, FromXmlText};

use self::award::PartLines;
pub(crate) use self::number::AtLeastZero;
use crate::id::{BidId, DomainId, JobId, LeaseId, MessageId, Millis};

pub const NS: &str = "urn:starling:federation:1";

/// What every message bears: attributes beside those of its verb, on one element named after the verb. Times are in ms since the
/// Unix epoch by the sender's clock.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope {
    pub id: MessageId,
    pub job: JobId,
    /// The home domain of the job (the root of any chain of re-forwarding).
    pub home: DomainId,
    /// The sender's incarnation; a lower one than already seen is refused.
    pub epoch: u64,
    pub seq: u64,
    pub sent_at: Millis,
    pub expires_at: Millis,
    /// Domains the work has passed through, home first, the sender last; `via`, with spaces between them.
    pub path: Vec<DomainId>,
    pub body: Body,
}

impl From<Envelope> for Element {
    fn from(envelope: Envelope) -> Self {
        let Envelope { id, job, home, epoch, seq, sent_at, expires_at, path, body } = envelope;
        let via = path.into_iter().map(|domain| domain.0).collect::<Vec<_>>().join(" ");
        let mut element = Self::from(body);
        let all = [
            (xml_ncname!("id"), id.0),
            (xml_ncname!("job"), job.0),
            (xml_ncname!("home"), home.0),
            (xml_ncname!("epoch"), epoch.to_string()),
            (xml_ncname!("seq"), seq.to_string()),
            (xml_ncname!("sent-at"), sent_at.0.to_string()),
            (xml_ncname!("expires-at"), expires_at.0.to_string()),
            (xml_ncname!("via"), via),
        ];
        for (name, value) in all {
            element.attrs_mut().insert(Namespace::NONE, name.into(), value);
        }
        element
    }
}

impl TryFrom<Element> for Envelope {
    type Error = Error;

    fn try_from(mut element: Element) -> Result<Self, Error> {
        fn take<T: FromXmlText>(element: &mut Element, name: &str) -> Result<T, Error> {
            let text = element.attrs_mut().remove(&Namespace::NONE, name);
            T::from_xml_text(text.ok_or(Error::Other("an attribute of every message is missing"))?)
        }
        let via: String = take(&mut element, "via")?;
        Ok(Self {
            id: take(&mut element, "id")?,
            job: take(&mut element, "job")?,
            home: take(&mut element, "home")?,
            epoch: take(&mut element, "epoch")?,
            seq: take(&mut element, "seq")?,
            sent_at: take(&mut element, "sent-at")?,
            expires_at: take(&mut element, "expires-at")?,
            path: via.split_whitespace().map(|name| DomainId::from_xml_text(name.into())).collect::<Result<_, _>>()?,
            body: element.try_into()?,
        })
    }
}

/// Any verb.
#[derive(FromXml, AsXml, Clone, Debug, PartialEq)]
#[xml()]
pub enum Body {
    #[xml(transparent)]
    Cfp(Cfp),
    #[xml(transparent)]
    Bid(Bid),
    #[xml(transparent)]
    Refuse(Refuse),
    #[xml(transparent)]
    Award(Award),
    #[xml(transparent)]
    Accept(Accept),
    #[xml(transparent)]
    Decline(Decline),
    #[xml(transparent)]
    Commit(Commit),
    #[xml(transparent)]
    RejectBid(RejectBid),
    #[xml(transparent)]
    Renew(Renew),
    #[xml(transparent)]
    Inventory(Inventory),
    #[xml(transparent)]
    Progress(Progress),
    #[xml(transparent)]
    PartDone(PartDone),
    #[xml(transparent)]
    PartFailed(PartFailed),
    #[xml(transparent)]
    Cancel(Cancel),
    #[xml(transparent)]
    Revoke(Revoke),
    #[xml(transparent)]
    Release(Release),
    #[xml(transparent)]
    Resync(Resync),
    #[xml(transparent)]
    Ack(Ack),
    #[xml(transparent)]
    Stale(Stale),
    #[xml(transparent)]
    NotUnderstood(NotUnderstood),
}

/// Home → foreign: call for bids. Answered by [`Bid`] or [`Refuse`].
#[derive(FromXml, AsXml, Clone, Debug, PartialEq)]
#[xml(namespace = NS, name = "cfp")]
pub struct Cfp {
    /// Job kind: `transcode`, ...
    #[xml(attribute)]
    pub kind: String,
    #[xml(attribute(default))]
    pub deadline: Option<Millis>,
    /// Money left, in the federation's unit; absent: no limit.
    #[xml(attribute(default, name = "budget-left", codec = AtLeastZero))]
    pub budget_left: Option<f64>,
    #[xml(attribute(name = "bid-by"))]
    pub bid_by: Millis,
    /// How long the bid's hold should last, ms.
    #[xml(attribute(name = "hold-ms"))]
    pub hold_ms: u64,
    /// How many further levels of re-forwarding are allowed.
    #[xml(attribute(name = "depth-left"))]
    pub depth_left: u32,
    /// How many parts are called out, and the bytes to fetch and the work (in ms of one reference core) of all of them. Not each by
    /// itself: the call goes to everybody, and what it holds costs every server on the way once for each of them. Of a job whose index is
    /// still being read: the most that could be, no bytes, and what that would be to do.
    #[xml(attribute)]
    pub parts: u32,
    #[xml(attribute)]
    pub bytes: u64,
    #[xml(attribute(name = "work-ms"))]
    pub work_ms: u64,
}

/// One part that bids are called for: how much there is to fetch and to do.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct PartCall {
    pub part: u32,
    /// Bytes to fetch.
    pub bytes: u64,
    /// Estimated work, in ms of one reference core.
    pub work_ms: u64,
}

/// Foreign → home, an answer to [`Cfp`]: capacity is held until `hold_until` and then frees itself.
#[derive(FromXml, AsXml, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[xml(namespace = NS, name = "bid")]
pub struct Bid {
    #[xml(attribute)]
    pub bid: BidId,
    /// Most parts it takes; what is awarded never exceeds it.
    #[xml(attribute(name = "parts-max"))]
    pub parts_max: u32,
    /// Parts it works on at the same time.
    #[xml(attribute)]
    pub slots: u32,
    /// Price of one part.
    #[xml(attribute(codec = AtLeastZero))]
    pub price: f64,
    /// Estimated ms from commit until a slot is free for the first part: the median.
    #[xml(attribute(default, name = "start-p50-ms"))]
    #[serde(default)]
    pub start_p50_ms: u64,
    /// Estimated ms from commit until `parts_max` parts are done: the median and the 90th percentile.
    #[xml(attribute(name = "finish-p50-ms"))]
    pub finish_p50_ms: u64,
    #[xml(attribute(name = "finish-p90-ms"))]
    pub finish_p90_ms: u64,
    #[xml(attribute(name = "hold-until"))]
    pub hold_until: Millis,
}

/// Foreign → home, an answer to [`Cfp`].
#[derive(FromXml, AsXml, Clone, Debug, PartialEq)]
#[xml(namespace = NS, name = "refuse")]
pub struct Refuse {
    /// `busy`, `policy`, `price`, `requirements`, `deadline`, `depth`, `loop` or `draining`.
    #[xml(attribute)]
    pub reason: String,
    #[xml(attribute(default, name = "retry-after-ms"))]
    pub retry_after_ms: Option<u64>,
}

/// Home → foreign, before `hold_until`. Answered by [`Accept`] or [`Decline`].
#[derive(FromXml, AsXml, Clone, Debug, PartialEq)]
#[xml(namespace = NS, name = "award", deserialize_callback = Award::unpack)]
pub struct Award {
    #[xml(attribute)]
    pub bid: BidId,
    #[xml(attribute)]
    pub lease: LeaseId,
    /// Capability: who cannot say it does not hold the lease. Never logged.
    #[xml(attribute)]
    pub secret: String,
    #[xml(attribute(name = "ttl-ms"))]
    pub ttl_ms: u64,
    #[xml(attribute(name = "renew-ms"))]
    pub renew_ms: u64,
    /// Most that these parts may cost together.
    #[xml(attribute(name = "price-cap", codec = AtLeastZero))]
    pub price_cap: f64,
    /// While on its way: how all addresses begin, and after `?` how all their queries begin. Set by [`Award::pack`].
    #[xml(attribute(default))]
    pub urls: Option<String>,
    /// Bytes of the source that these parts want beyond the first time: of each byte wanted by n of them, n - 1. A hint for the way they
    /// are loaded, not a term. The broker leaves it empty; the driver of the home fills it in when it sends.
    #[xml(attribute(default))]
    pub common: Option<u64>,
    /// As text, a part a line: number, attempt, bytes, work in ms and address. An element for each is more work for every server on the
    /// way than all the rest of the stanza.
    #[xml(text(codec = PartLines))]
    pub parts: Vec<PartAward>,
}

/// One part as it is awarded.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct PartAward {
    pub part: u32,
    /// Counts awards of this part; a result of an older attempt is stale.
    pub attempt: u32,
    pub bytes: u64,
    pub work_ms: u64,
    /// Presigned GET of the part's order (`storage::film::part::PartSpec`). The broker leaves it empty; the
    /// driver fills it in when it sends.
    pub url: String,
}

/// Foreign → home, an answer to [`Award`].
#[derive(FromXml, AsXml, Clone, Debug, PartialEq)]
#[xml(namespace = NS, name = "accept")]
pub struct Accept {
    #[xml(attribute)]
    pub lease: LeaseId,
    /// Lower-case hex SHA-256 over what was agreed: both sides can show it.
    #[xml(attribute)]
    pub contract: String,
}

/// Foreign → home, an answer to [`Award`].
#[derive(FromXml, AsXml, Clone, Debug, PartialEq)]
#[xml(namespace = NS, name = "decline")]
pub struct Decline {
    #[xml(attribute)]
    pub reason: String,
}

/// Home → foreign: only now does work start. Answered by [`Ack`].
#[derive(FromXml, AsXml, Clone, Debug, PartialEq)]
#[xml(namespace = NS, name = "commit")]
pub struct Commit {
    #[xml(attribute)]
    pub lease: LeaseId,
    #[xml(attribute)]
    pub secret: String,
    #[xml(attribute)]
    pub contract: String,
}

/// Home → foreign: the hold is free at once. Answered by [`Ack`].
#[derive(FromXml, AsXml, Clone, Debug, PartialEq)]
#[xml(namespace = NS, name = "reject-bid")]
pub struct RejectBid {
    #[xml(attribute)]
    pub bid: BidId,
}

/// A part and the attempt that is meant.
#[derive(FromXml, AsXml, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[xml(namespace = NS, name = "part")]
pub struct PartRef {
    #[xml(attribute(name = "n"))]
    pub part: u32,
    #[xml(attribute)]
    pub attempt: u32,
}

/// Home → foreign: the lease runs `ttl_ms` longer. Answered by [`Inventory`].
#[derive(FromXml, AsXml, Clone, Debug, PartialEq)]
#[xml(namespace = NS, name = "renew")]
pub struct Renew {
    #[xml(attribute)]
    pub lease: LeaseId,
    #[xml(attribute)]
    pub secret: String,
    /// Parts home believes to be there.
    #[xml(child(n = ..))]
    pub parts: Vec<PartRef>,
}

/// Foreign → home, an answer to [`Renew`] and [`Resync`]: what is really there.
#[derive(FromXml, AsXml, Clone, Debug, PartialEq)]
#[xml(namespace = NS, name = "inventory")]
pub struct Inventory {
    #[xml(attribute)]
    pub lease: LeaseId,
    /// False: the domain does not know this lease (any more); home re-awards at once.
    #[xml(attribute)]
    pub known: bool,
    #[xml(child(n = ..))]
    pub parts: Vec<PartProgress>,
}

/// Foreign → home, throttled. Cumulative, never a delta. Answered by [`Ack`] or [`Stale`].
#[derive(FromXml, AsXml, Clone, Debug, PartialEq)]
#[xml(namespace = NS, name = "progress")]
pub struct Progress {
    #[xml(attribute)]
    pub lease: LeaseId,
    #[xml(attribute)]
    pub secret: String,
    #[xml(child(n = ..))]
    pub parts: Vec<PartProgress>,
}

#[derive(FromXml, AsXml, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[xml(namespace = NS, name = "part")]
pub struct PartProgress {
    #[xml(attribute(name = "n"))]
    pub part: u32,
    #[xml(attribute)]
    pub attempt: u32,
    /// `waiting`, `loading`, `loaded`, `running`, `publishing`, `done` or `failed`.
    #[xml(attribute)]
    pub state: String,
    /// Bytes fetched so far.
    #[xml(attribute)]
    pub bytes: u64,
    /// 0-100 of the processing.
    #[xml(attribute(codec = AtLeastZero))]
    pub percent: f32,
    /// Which domain really does it, when it was sold on.
    #[xml(attribute(default))]
    pub by: Option<DomainId>,
    /// Objects already there (raw sound packets once `loaded`).
    #[xml(child(n = ..))]
    pub outputs: Vec<Output>,
}

/// An object a part has put into the store.
#[derive(FromXml, AsXml, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[xml(namespace = NS, name = "output")]
pub struct Output {
    #[xml(attribute)]
    pub key: String,
    #[xml(attribute)]
    pub size: u64,
    #[xml(attribute)]
    pub sha256: String,
    /// JSON of `storage::film::part::FragmentSummary`, for fMP4 objects.
    #[xml(extract(default, name = "fragments", fields(text(type_ = String))))]
    pub fragments: Option<String>,
}

/// Where the time and the bytes of a part went.
#[derive(FromXml, AsXml, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[xml(namespace = NS, name = "usage")]
pub struct Usage {
    /// Bytes fetched from the store, and put there.
    #[xml(attribute(name = "bytes-in"))]
    pub bytes_in: u64,
    #[xml(attribute(name = "bytes-out"))]
    pub bytes_out: u64,
    /// Requests for the source that the store answered by 429 or 503, and that were made again.
    #[xml(attribute(default))]
    #[serde(default)]
    pub throttled: u64,
    /// Wall ms: fetching; making the input decodable; encoding; uploading and checking.
    #[xml(attribute(name = "download-ms"))]
    pub download_ms: u64,
    #[xml(attribute(name = "load-ms"))]
    pub load_ms: u64,
    #[xml(attribute(name = "process-ms"))]
    pub process_ms: u64,
    #[xml(attribute(name = "publish-ms"))]
    pub publish_ms: u64,
    /// CPU ms of the encoder.
    #[xml(attribute(name = "cpu-ms"))]
    pub cpu_ms: u64,
    /// How the bytes came and why, for people: `direct: …` or `overlay: …`. Said by the domain, with the final report.
    #[xml(attribute(default))]
    pub loaded: Option<String>,
}

impl Usage {
    /// From the first byte fetched to the last one checked.
    pub fn wall_ms(&self) -> u64 {
        [self.load_ms, self.process_ms, self.publish_ms].into_iter().fold(self.download_ms, u64::saturating_add)
    }
}

/// Foreign → home: kept and repeated until answered by [`Ack`] or [`Stale`].
#[derive(FromXml, AsXml, Clone, Debug, PartialEq)]
#[xml(namespace = NS, name = "part-done")]
pub struct PartDone {
    #[xml(attribute)]
    pub lease: LeaseId,
    #[xml(attribute)]
    pub secret: String,
    #[xml(attribute(name = "n"))]
    pub part: u32,
    #[xml(attribute)]
    pub attempt: u32,
    /// Which domain really did it, when it was sold on.
    #[xml(attribute(default))]
    pub by: Option<DomainId>,
    #[xml(child(n = ..))]
    pub outputs: Vec<Output>,
    #[xml(child)]
    pub usage: Usage,
}

/// Foreign → home: kept and repeated until answered by [`Ack`] or [`Stale`].
#[derive(FromXml, AsXml, Clone, Debug, PartialEq)]
#[xml(namespace = NS, name = "part-failed")]
pub struct PartFailed {
    #[xml(attribute)]
    pub lease: LeaseId,
    #[xml(attribute)]
    pub secret: String,
    #[xml(attribute(name = "n"))]
    pub part: u32,
    #[xml(attribute)]
    pub attempt: u32,
    /// `input`, `code`, `resource`, `preempted`, `data` or `internal`.
    #[xml(attribute)]
    pub class: String,
    #[xml(attribute)]
    pub retryable: bool,
    /// Stable code for people and programs, such as `source-changed` or `encoder-failed`.
    #[xml(attribute)]
    pub code: String,
    /// Tail of the log (stderr of the encoder), at most 4 KiB.
    #[xml(extract(name = "log", fields(text(type_ = String))))]
    pub log: String,
}

/// Home → foreign: stop these parts (none named: all of the lease). Answered by [`Ack`].
#[derive(FromXml, AsXml, Clone, Debug, PartialEq)]
#[xml(namespace = NS, name = "cancel")]
pub struct Cancel {
    #[xml(attribute)]
    pub lease: LeaseId,
    #[xml(attribute)]
    pub secret: String,
    #[xml(attribute)]
    pub reason: String,
    #[xml(child(n = ..))]
    pub parts: Vec<PartRef>,
}

/// Foreign → home: the provider needs its capacity back. Answered by [`Ack`].
#[derive(FromXml, AsXml, Clone, Debug, PartialEq)]
#[xml(namespace = NS, name = "revoke")]
pub struct Revoke {
    #[xml(attribute)]
    pub lease: LeaseId,
    #[xml(attribute)]
    pub secret: String,
    #[xml(attribute)]
    pub reason: String,
    #[xml(child(n = ..))]
    pub parts: Vec<PartRef>,
}

/// Either way: the lease is over. Answered by [`Ack`].
#[derive(FromXml, AsXml, Clone, Debug, PartialEq)]
#[xml(namespace = NS, name = "release")]
pub struct Release {
    #[xml(attribute)]
    pub lease: LeaseId,
    #[xml(attribute)]
    pub secret: String,
}

/// Home → foreign after any restart or reconnect, before any expiry is judged. Answered by [`Inventory`].
#[derive(FromXml, AsXml, Clone, Debug, PartialEq)]
#[xml(namespace = NS, name = "resync")]
pub struct Resync {
    #[xml(attribute)]
    pub lease: LeaseId,
    #[xml(attribute)]
    pub secret: String,
}

/// Received, and acted upon or already known.
#[derive(FromXml, AsXml, Clone, Debug, PartialEq)]
#[xml(namespace = NS, name = "ack")]
pub struct Ack {}

/// The lease, attempt or epoch meant is not the current one; or the secret is wrong. Drop it and stop repeating.
#[derive(FromXml, AsXml, Clone, Debug, PartialEq)]
#[xml(namespace = NS, name = "stale")]
pub struct Stale {
    #[xml(attribute)]
    pub reason: String,
}

/// The verb is not known here, or not from you.
#[derive(FromXml, AsXml, Clone, Debug, PartialEq)]
#[xml(namespace = NS, name = "not-understood")]
pub struct NotUnderstood {
    #[xml(attribute)]
    pub reason: String,
}

/// Presence payload in the Federation room: soft state, a hint, never binding.
#[derive(FromXml, AsXml, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[xml(namespace = NS, name = "ad")]
pub struct Ad {
    #[xml(attribute)]
    pub domain: DomainId,
    #[xml(attribute)]
    pub epoch: u64,
    #[xml(attribute)]
    pub seq: u64,
    /// `ok`, `draining` or `sick`.
    #[xml(attribute)]
    pub health: String,
    #[xml(attribute(name = "slots"))]
    pub slots: u32,
    #[xml(attribute(name = "slots-free"))]
    pub slots_free: u32,
    /// Price of one part.
    #[xml(attribute(codec = AtLeastZero))]
    pub price: f64,
    #[xml(attribute(default))]
    pub region: Option<String>,
    /// Space-separated job kinds.
    #[xml(attribute)]
    pub kinds: String,
    /// Of Starling, as in Cargo.toml.
    #[xml(attribute)]
    pub version: String,
}
