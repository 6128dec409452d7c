//! The envelope side of a domain: ids and epochs out, repeats and floods in.

use std::collections::{BTreeMap, VecDeque};

use crate::cx::{About, Frame, Mail};
use crate::domain::DomainConfig;
use crate::id::{DomainId, MessageId, Millis};
use crate::message::{Body, Envelope};

/// Answers kept for each peer. A repeat comes within seconds; at the flood limit this is still several seconds' worth.
const ANSWERS_MAX: usize = 4_096;
const ANSWERS_MS: u64 = 120_000;

#[derive(Default)]
pub(crate) struct Post {
    seq: u64,
    flights: BTreeMap<MessageId, Flight>,
    peers: BTreeMap<DomainId, Peer>,
}

struct Flight {
    to: DomainId,
    about: About,
    frame: Frame,
    until: Millis,
}

#[derive(Default)]
struct Peer {
    epoch: u64,
    answers: BTreeMap<MessageId, Envelope>,
    order: VecDeque<(Millis, MessageId)>,
    /// Requests it may still send now, in thousandths, and since when that is so.
    tokens: u64,
    filled: Option<Millis>,
}

/// What to do with a request.
pub(crate) enum Inbound {
    /// Not seen before.
    Fresh,
    /// Send this again.
    Repeat(Box<Envelope>),
    /// From an incarnation that is over.
    Old,
    /// Too many.
    Flood,
}

impl Post {
    pub fn envelope(
        &mut self,
        config: &DomainConfig,
        now: Millis,
        id: MessageId,
        frame: &Frame,
        body: Body,
    ) -> Envelope {
        self.seq += 1;
        Envelope {
            id,
            job: frame.job.clone(),
            home: frame.home.clone(),
            epoch: config.epoch,
            seq: self.seq,
            sent_at: now,
            expires_at: now.plus(config.timers.answer_ms),
            path: frame.path.clone(),
            body,
        }
    }

    pub fn fly(&mut self, now: Millis, config: &DomainConfig, id: MessageId, mail: Mail) -> Envelope {
        // A little longer than the driver waits, which answers for a peer that does not.
        let until = now.plus(config.timers.answer_ms.saturating_mul(2));
        let Mail { to, frame, body, about } = mail;
        let envelope = self.envelope(config, now, id.clone(), &frame, body);
        self.flights.insert(id, Flight { to, about, frame, until });
        envelope
    }

    /// What the answer to message `id` is about, if `from` was asked and has not answered yet.
    pub fn landed(&mut self, id: &MessageId, from: &DomainId) -> Option<(About, Frame)> {
        if self.flights.get(id)?.to != *from {
            return None;
        }
        self.flights.remove(id).map(|f| (f.about, f.frame))
    }

    /// Requests that nobody has answered for, not even the driver.
    pub fn overdue(&mut self, now: Millis) -> Vec<(DomainId, About)> {
        let late: Vec<_> = self.flights.iter().filter(|(_, f)| f.until <= now).map(|(id, _)| id.clone()).collect();
        late.iter().filter_map(|id| self.flights.remove(id)).map(|f| (f.to, f.about)).collect()
    }

    pub fn deadline(&self) -> Option<Millis> {
        self.flights.values().map(|f| f.until).min()
    }

    pub fn inbound(&mut self, config: &DomainConfig, now: Millis, from: &DomainId, envelope: &Envelope) -> Inbound {
        let peer = self.peers.entry(from.clone()).or_default();
        if !peer.spend(config, now) {
            return Inbound::Flood;
        }
        if envelope.epoch < peer.epoch {
            return Inbound::Old;
        }
        peer.epoch = envelope.epoch;
        match peer.answers.get(&envelope.id) {
            Some(answer) => Inbound::Repeat(Box::new(answer.clone())),
            None => Inbound::Fresh,
        }
    }

    pub fn store(&mut self, now: Millis, to: &DomainId, re: &MessageId, answer: &Envelope) {
        let peer = self.peers.entry(to.clone()).or_default();
        while let Some((at, id)) = peer.order.front()
            && (peer.order.len() >= ANSWERS_MAX || at.plus(ANSWERS_MS) <= now)
        {
            peer.answers.remove(id);
            peer.order.pop_front();
        }
        peer.answers.insert(re.clone(), answer.clone());
        peer.order.push_back((now, re.clone()));
    }
}

impl Peer {
    /// A token bucket.
    fn spend(&mut self, config: &DomainConfig, now: Millis) -> bool {
        let agreements = &config.agreements;
        let full = u64::from(agreements.requests_burst) * 1000;
        match self.filled.replace(now) {
            None => self.tokens = full,
            Some(then) => {
                let gained = now.since(then).saturating_mul(u64::from(agreements.requests_per_second));
                self.tokens = self.tokens.saturating_add(gained).min(full);
            }
        }
        let enough = self.tokens >= 1000;
        self.tokens = self.tokens.saturating_sub(1000);
        enough
    }
}
