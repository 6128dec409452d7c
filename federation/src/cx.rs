//! What both sides of a domain share while one input is handled: the time, the book, and where outputs go.

use std::collections::VecDeque;

use sha2::{Digest, Sha256};

use crate::book::Book;
use crate::domain::{DomainConfig, Output};
use crate::event::{Event, Secret};
use crate::id::{DomainId, JobId, LeaseId, Millis};
use crate::message::{Award, Body};

pub(crate) struct Cx<'a> {
    pub now: Millis,
    pub config: &'a DomainConfig,
    pub book: &'a mut Book,
    pub ids: &'a mut Ids,
    pub out: &'a mut Vec<Output>,
    pub mail: &'a mut VecDeque<Mail>,
}

/// A request on its way out, and what its answer will be about.
pub(crate) struct Mail {
    pub to: DomainId,
    pub frame: Frame,
    pub body: Body,
    pub about: About,
}

/// Which job a message is about, in the words of its home.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Frame {
    pub job: JobId,
    pub home: DomainId,
    pub path: Vec<DomainId>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum About {
    Cfp {
        job: JobId,
        round: u64,
    },
    Award(LeaseId),
    Commit(LeaseId),
    Inventory(LeaseId),
    Cancel(LeaseId),
    /// Nothing depends on the answer.
    Nothing,
    Progress(LeaseId),
    Result {
        lease: LeaseId,
        part: u32,
        attempt: u32,
    },
}

impl Cx<'_> {
    pub fn record(&mut self, event: Event) {
        self.book.apply(&event);
        self.out.push(Output::Event(event));
    }

    pub fn ask(&mut self, to: &DomainId, frame: Frame, body: Body, about: About) {
        self.mail.push_back(Mail { to: to.clone(), frame, body, about });
    }

    pub fn me(&self) -> DomainId {
        self.config.me.clone()
    }

    /// The secret of a lease that this domain grants; the same after a restart.
    pub fn secret(&self, lease: &LeaseId) -> Secret {
        let mut hash = Sha256::new();
        hash.update(b"starling lease\0");
        hash.update(self.config.seed);
        hash.update(lease.0.as_bytes());
        Secret(hex(&hash.finalize()))
    }
}

/// Names that are never given twice, also not after a restart: the epoch is in them.
pub(crate) struct Ids {
    stem: String,
    next: u64,
}

impl Ids {
    pub fn new(me: &DomainId, epoch: u64) -> Self {
        Self { stem: format!("{me}-{epoch}"), next: 0 }
    }

    pub fn fresh<T: From<String>>(&mut self) -> T {
        self.next += 1;
        T::from(format!("{}-{}", self.stem, self.next))
    }
}

/// What both sides can show about what was agreed: hex SHA-256 over the terms of an award, addresses apart.
pub(crate) fn contract(award: &Award) -> String {
    let mut hash = Sha256::new();
    for field in [&award.bid.0, &award.lease.0, &award.secret] {
        hash.update((field.len() as u64).to_be_bytes());
        hash.update(field.as_bytes());
    }
    hash.update(award.ttl_ms.to_be_bytes());
    hash.update(award.renew_ms.to_be_bytes());
    hash.update(award.price_cap.to_bits().to_be_bytes());
    for part in &award.parts {
        hash.update(part.part.to_be_bytes());
        hash.update(part.attempt.to_be_bytes());
    }
    hex(&hash.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
