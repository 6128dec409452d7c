//! One room the agent wants to be in.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use xmpp_parsers::jid::FullJid;
use xmpp_parsers::minidom::Element;

use super::Queued;

/// Own broadcasts not yet reflected by the room: bounds how long an IQ waits behind our own flood (30 s without it).
pub const WINDOW: usize = 32;
/// Silence of a room before we ask whether we are still in it (XEP-0410).
const PING_AFTER: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(8);
const PING_MISSES_MAX: u8 = 2;
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(15);
/// A nickname is a lock: who waits for it asks often.
const RETRY_CONFLICT: Duration = Duration::from_secs(1);
/// For the answer to a join.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);

pub struct Room {
    pub occupant: FullJid,
    pub payload: Option<Element>,
    /// The payload has changed since we asked to join.
    pub unsaid: bool,
    pub joined: bool,
    pub unreflected: usize,
    pub broadcasts: VecDeque<Queued>,
    /// The reason last reported for not being in it.
    trouble: Option<String>,
    next_try: Instant,
    backoff: Duration,
    last_heard: Instant,
    ping: Option<(String, Instant)>,
    ping_misses: u8,
}

/// What is due in a room.
pub enum Due {
    Nothing,
    Join,
    Ping,
    Lost,
}

impl Room {
    pub fn new(occupant: FullJid, payload: Option<Element>, now: Instant) -> Self {
        Self {
            occupant,
            payload,
            unsaid: false,
            joined: false,
            unreflected: 0,
            broadcasts: VecDeque::new(),
            trouble: None,
            next_try: now,
            backoff: RETRY_FIRST,
            last_heard: now,
            ping: None,
            ping_misses: 0,
        }
    }

    pub fn due(&mut self, now: Instant) -> Due {
        if !self.joined {
            return if self.next_try <= now { Due::Join } else { Due::Nothing };
        }
        match &self.ping {
            Some((_, at)) if now.duration_since(*at) > PING_TIMEOUT => {
                self.ping = None;
                self.ping_misses += 1;
                if self.ping_misses >= PING_MISSES_MAX { Due::Lost } else { Due::Ping }
            }
            None if now.duration_since(self.last_heard) > PING_AFTER => Due::Ping,
            _ => Due::Nothing,
        }
    }

    pub fn asked_to_join(&mut self, now: Instant) {
        self.next_try = now + JOIN_TIMEOUT;
    }

    pub fn pinged(&mut self, id: String, now: Instant) {
        self.ping = Some((id, now));
    }

    pub fn heard(&mut self, now: Instant) {
        self.last_heard = now;
    }

    /// True if `id` is that of the ping under way, which is then over.
    pub fn take_pong(&mut self, id: &str, now: Instant) -> bool {
        let ours = self.ping.as_ref().is_some_and(|(ping, _)| ping == id);
        if ours {
            (self.ping, self.ping_misses, self.last_heard) = (None, 0, now);
        }
        ours
    }

    /// True if this is news.
    pub fn is_joined(&mut self) -> bool {
        let news = !self.joined;
        (self.joined, self.trouble, self.backoff) = (true, None, RETRY_FIRST);
        news
    }

    /// True if this is news; the same trouble at each attempt is not.
    pub fn is_lost(&mut self, why: &str, now: Instant) -> bool {
        let news = self.joined || self.trouble.as_deref() != Some(why);
        self.trouble = Some(why.to_owned());
        (self.joined, self.unreflected, self.ping, self.ping_misses) = (false, 0, None, 0);
        if why == "conflict" {
            self.next_try = now + RETRY_CONFLICT;
        } else {
            self.next_try = now + self.backoff;
            self.backoff = (self.backoff * 2).min(RETRY_MAX);
        }
        news
    }
}
