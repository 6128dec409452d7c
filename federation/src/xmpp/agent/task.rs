//! The task that owns the stream: it never waits for anything but its select.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio_xmpp::Stanza;
use tokio_xmpp::stanzastream::{Event, StanzaStage, StanzaState, StanzaStream, StanzaToken, StreamEvent};
use xmpp_parsers::disco::{DiscoInfoResult, Identity};
use xmpp_parsers::iq::Iq;
use xmpp_parsers::jid::{BareJid, FullJid, Jid};
use xmpp_parsers::message::{Message, MessageType};
use xmpp_parsers::minidom::Element;
use xmpp_parsers::ns;
use xmpp_parsers::ping::Ping;
use xmpp_parsers::presence::{Presence, Type};
use xmpp_parsers::stanza_error::DefinedCondition;
use xmpp_parsers::version::VersionResult;

use super::room::{Due, Room, WINDOW};
use super::{
    AgentEvent, Answer, Command, IqFailure, MessageKind, Queued, Reply, Responder, SEND_QUEUE, muc, stanza_error,
};
use crate::xmpp::session::{LoopGuard, Trouble};

/// Events made but not yet taken by the channel: one stanza makes at most a handful.
const BACKLOG: usize = 64;
/// Requests of others not answered yet; more get `resource-constraint` and are asked to come again.
const REQUESTS_MAX: usize = 1024;
const TICK: Duration = Duration::from_millis(250);
/// For the last words and the library's own good-bye.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

pub struct Task {
    stream: StanzaStream,
    troubles: mpsc::Receiver<Trouble>,
    guard: LoopGuard,
    jid: FullJid,
    features: Vec<&'static str>,
    events: mpsc::Sender<AgentEvent>,
    backlog: VecDeque<AgentEvent>,
    online: bool,
    outbox: VecDeque<Queued>,
    in_flight: VecDeque<StanzaToken>,
    iqs: BTreeMap<(Jid, String), Reply>,
    requests: FuturesUnordered<BoxFuture<'static, (Jid, String, Answer)>>,
    rooms: BTreeMap<BareJid, Room>,
}

impl Task {
    pub fn new(
        (stream, troubles, guard): (StanzaStream, mpsc::Receiver<Trouble>, LoopGuard),
        jid: FullJid,
        features: Vec<&'static str>,
        events: mpsc::Sender<AgentEvent>,
    ) -> Self {
        Self {
            stream,
            troubles,
            guard,
            jid,
            features,
            events,
            backlog: VecDeque::new(),
            online: false,
            outbox: VecDeque::new(),
            in_flight: VecDeque::new(),
            iqs: BTreeMap::new(),
            requests: FuturesUnordered::new(),
            rooms: BTreeMap::new(),
        }
    }

    pub async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let events = self.events.clone();
        let mut tick = tokio::time::interval(TICK);
        let done = loop {
            self.flush().await;
            let full = self.online && self.in_flight.len() >= SEND_QUEUE;
            let mut oldest = self.in_flight.front().cloned();
            tokio::select! {
                event = self.stream.next(), if self.backlog.len() < BACKLOG => match event {
                    Some(event) => self.on_stream(event),
                    None => break None,
                },
                permit = events.reserve(), if !self.backlog.is_empty() => match (permit, self.backlog.pop_front()) {
                    (Ok(permit), Some(event)) => permit.send(event),
                    _ => self.backlog.clear(), // nobody listens
                },
                Some(trouble) = self.troubles.recv() => self.on_trouble(trouble),
                _ = async { if let Some(token) = &mut oldest { token.wait_for(StanzaStage::Sent).await; } }, if full => {}
                Some((to, id, answer)) = self.requests.next() => self.answer(to, id, answer),
                command = commands.recv() => match command {
                    Some(Command::Close(done)) => break Some(done),
                    Some(command) => self.on_command(command),
                    None => break None,
                },
                _ = tick.tick() => self.on_tick(),
            }
        };
        self.end(done).await;
    }

    async fn end(mut self, done: Option<oneshot::Sender<()>>) {
        let (events, mut backlog) = (self.events.clone(), std::mem::take(&mut self.backlog));
        let goodbye = async move {
            while self.online && !self.outbox.is_empty() {
                self.flush().await;
                if let Some(token) = self.in_flight.front_mut() {
                    token.wait_for(StanzaStage::Sent).await;
                }
            }
            self.stream.close().await;
        };
        if tokio::time::timeout(CLOSE_TIMEOUT, goodbye).await.is_err() {
            tracing::warn!("the server did not let us say good-bye");
        }
        for event in backlog.drain(..).chain([AgentEvent::Ended]) {
            let _ = events.try_send(event);
        }
        if let Some(done) = done {
            let _ = done.send(());
        }
    }

    /// Hands stanzas to the library only while online and only so many, so that this never waits and nothing made for
    /// one session is sent in the next. Broadcasts come last, and only into rooms we are in.
    async fn flush(&mut self) {
        while self.in_flight.front().is_some_and(is_gone) {
            self.in_flight.pop_front();
        }
        while self.online && self.in_flight.len() < SEND_QUEUE {
            let Some(queued) = self.outbox.pop_front() else { break };
            self.in_flight.push_back(self.stream.send(queued.stanza).await);
        }
        for room in self.rooms.values_mut() {
            while self.online && room.joined && room.unreflected < WINDOW && self.in_flight.len() < SEND_QUEUE {
                let Some(queued) = room.broadcasts.pop_front() else { break };
                room.unreflected += 1;
                self.in_flight.push_back(self.stream.send(queued.stanza).await);
            }
        }
    }

    fn emit(&mut self, event: AgentEvent) {
        self.backlog.push_back(event);
    }

    fn push(&mut self, stanza: impl Into<Stanza>, session_only: bool) {
        self.outbox.push_back(Queued { stanza: Box::new(stanza.into()), session_only, _permit: None });
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Send(queued) => self.outbox.push_back(queued),
            Command::Iq { to, id, queued, reply } => {
                self.iqs.insert((to, id), reply);
                self.outbox.push_back(queued);
            }
            Command::Broadcast { room, queued } => match self.rooms.get_mut(&room) {
                Some(room) => room.broadcasts.push_back(queued),
                None => tracing::warn!(%room, "broadcast into a room that was never joined: dropped"),
            },
            Command::Join { room, occupant, payload } => self.join(room, occupant, payload),
            Command::Update { room, payload } => self.update(&room, payload),
            Command::Leave { room } => {
                if let Some(left) = self.rooms.remove(&room) {
                    self.push(Presence::unavailable().with_to(left.occupant), true);
                }
            }
            Command::Close(_) => {} // ends the loop before it comes here
        }
    }

    fn join(&mut self, room: BareJid, occupant: FullJid, payload: Option<Element>) {
        match self.rooms.get(&room) {
            Some(known) if known.occupant == occupant => {
                if let Some(payload) = payload {
                    self.update(&room, payload);
                }
                return;
            }
            Some(known) => {
                let occupant = known.occupant.clone();
                self.push(Presence::unavailable().with_to(occupant), true);
            }
            None => {}
        }
        self.rooms.insert(room.clone(), Room::new(occupant, payload, Instant::now()));
        self.ask_to_join(&room);
    }

    fn ask_to_join(&mut self, room: &BareJid) {
        let Some(state) = self.rooms.get_mut(room) else { return };
        if self.online {
            state.asked_to_join(Instant::now());
            state.unsaid = false;
            let presence = muc::join(state.occupant.clone(), state.payload.clone());
            self.push(presence, true);
        }
    }

    fn update(&mut self, room: &BareJid, payload: Element) {
        let Some(state) = self.rooms.get_mut(room) else { return };
        state.payload = Some(payload);
        state.unsaid = true;
        self.show_payload(room);
    }

    /// At once, or when the room has let us in: to say it before would be to join.
    fn show_payload(&mut self, room: &BareJid) {
        let Some(state) = self.rooms.get_mut(room) else { return };
        if state.joined && std::mem::take(&mut state.unsaid) {
            let presence = Presence::available().with_to(state.occupant.clone());
            let presence = muc::with_payload(presence, state.payload.clone());
            self.push(presence, true);
        }
    }

    fn lost(&mut self, room: &BareJid, why: &str) {
        if self.rooms.get_mut(room).is_some_and(|state| state.is_lost(why, Instant::now())) {
            tracing::info!(%room, why, "not in the room");
            self.emit(AgentEvent::RoomLost { room: room.clone(), why: why.to_owned() });
        }
    }

    fn on_tick(&mut self) {
        self.iqs.retain(|_, reply| !reply.is_closed());
        if !self.online {
            return;
        }
        let now = Instant::now();
        let due: Vec<_> = self.rooms.iter_mut().map(|(room, state)| (room.clone(), state.due(now))).collect();
        for (room, due) in due {
            match due {
                Due::Nothing => {}
                Due::Join => self.ask_to_join(&room),
                Due::Ping => self.ping(&room, now),
                Due::Lost => self.lost(&room, "self-ping"),
            }
        }
    }

    fn ping(&mut self, room: &BareJid, now: Instant) {
        let Some(state) = self.rooms.get_mut(room) else { return };
        let id = super::new_id();
        let ping = Iq::from_get(id.clone(), Ping).with_to(Jid::from(state.occupant.clone()));
        state.pinged(id, now);
        self.push(ping, true);
    }

    fn on_trouble(&mut self, trouble: Trouble) {
        self.emit(match trouble {
            Trouble::Auth(error) => {
                tracing::error!(error, "the account is refused");
                AgentEvent::AuthFailed(error)
            }
            Trouble::Connect { error, retry_in } => {
                tracing::warn!(error, ?retry_in, "no connection");
                AgentEvent::ConnectFailed { error, retry_in }
            }
        });
    }

    fn on_stream(&mut self, event: Event) {
        match event {
            Event::Stream(StreamEvent::Suspended) => {
                self.online = false;
                tracing::info!("offline");
                self.emit(AgentEvent::Offline);
            }
            Event::Stream(StreamEvent::Resumed) => {
                self.guard.settled();
                self.online = true;
                tracing::info!("resumed");
                self.emit(AgentEvent::Online { jid: self.jid.clone(), fresh: false });
            }
            Event::Stream(StreamEvent::Reset { bound_jid, .. }) => self.on_fresh(bound_jid),
            Event::Stanza(Stanza::Iq(iq)) => self.on_iq(iq),
            Event::Stanza(Stanza::Presence(presence)) => self.on_presence(presence),
            Event::Stanza(Stanza::Message(message)) => self.on_message(message),
        }
    }

    fn on_fresh(&mut self, bound: Jid) {
        self.guard.settled();
        self.online = true;
        if let Ok(jid) = bound.try_into_full() {
            self.jid = jid;
        }
        tracing::info!(jid = %self.jid, "online");
        self.in_flight.clear();
        self.outbox.retain(|queued| !queued.session_only);
        // What was handed to the library is of unknown fate; what still lies in the outbox is not.
        let waiting: Vec<_> = self.outbox.iter().filter_map(|queued| iq_key(&queued.stanza)).collect();
        for (_, reply) in self.iqs.extract_if(.., |key, _| !waiting.contains(key)) {
            let _ = reply.send(Err(IqFailure::Reset));
        }
        self.emit(AgentEvent::Online { jid: self.jid.clone(), fresh: true });
        // Available, so that people who write to the account reach us. Before all else.
        self.outbox.push_front(Queued {
            stanza: Box::new(Presence::available().into()),
            session_only: true,
            _permit: None,
        });
        let rooms: Vec<BareJid> = self.rooms.keys().cloned().collect();
        for room in rooms {
            if self.rooms.get(&room).is_some_and(|state| state.joined) {
                self.lost(&room, "stream-reset");
            }
            self.ask_to_join(&room);
        }
    }

    fn on_iq(&mut self, iq: Iq) {
        let account = Jid::from(self.jid.to_bare());
        match iq {
            Iq::Result { from, id, payload, .. } => {
                let from = from.unwrap_or(account);
                if !self.is_pong(&from, &id, true) {
                    self.answered(from, id, Ok(payload));
                }
            }
            Iq::Error { from, id, error, .. } => {
                let from = from.unwrap_or(account);
                // XEP-0410: with these two the ping reached the room, so we are in it.
                use DefinedCondition::{FeatureNotImplemented, ServiceUnavailable};
                let joined = matches!(error.defined_condition, ServiceUnavailable | FeatureNotImplemented);
                if !self.is_pong(&from, &id, joined) {
                    self.answered(from, id, Err(IqFailure::Remote(Box::new(error))));
                }
            }
            Iq::Get { from, id, payload, .. } => self.on_request(from.unwrap_or(account), id, false, payload),
            Iq::Set { from, id, payload, .. } => self.on_request(from.unwrap_or(account), id, true, payload),
        }
    }

    fn answered(&mut self, from: Jid, id: String, result: Result<Option<Element>, IqFailure>) {
        if let Some(reply) = self.iqs.remove(&(from, id)) {
            let _ = reply.send(result);
        }
    }

    fn is_pong(&mut self, from: &Jid, id: &str, joined: bool) -> bool {
        let room = from.to_bare();
        let pong = self.rooms.get_mut(&room).is_some_and(|state| state.take_pong(id, Instant::now()));
        if pong && !joined {
            self.lost(&room, "self-ping");
        }
        pong
    }

    fn on_request(&mut self, from: Jid, id: String, set: bool, payload: Element) {
        if !set && let Some(answer) = self.self_description(&payload) {
            return self.answer(from, id, Ok(answer));
        }
        if self.requests.len() >= REQUESTS_MAX {
            return self.answer(from, id, Err(Box::new(stanza_error(DefinedCondition::ResourceConstraint, "busy"))));
        }
        let (reply, answer) = oneshot::channel();
        let to = from.clone();
        self.requests.push(Box::pin(async move {
            let unhandled = || Err(Box::new(stanza_error(DefinedCondition::ServiceUnavailable, "")));
            (to, id, answer.await.unwrap_or_else(|_| unhandled()))
        }));
        self.emit(AgentEvent::Request { from, set, payload, reply: Responder(reply) });
    }

    /// Answers to what is asked of any client: ping, service discovery without a node, version.
    fn self_description(&self, payload: &Element) -> Option<Option<Element>> {
        if payload.is("ping", ns::PING) {
            Some(None)
        } else if payload.is("query", ns::VERSION) {
            let version = env!("CARGO_PKG_VERSION").to_owned();
            Some(Some(VersionResult { name: "Starling".into(), version, os: None }.into()))
        } else if payload.is("query", ns::DISCO_INFO) && payload.attr("node").is_none() {
            let features = [ns::DISCO_INFO, ns::PING, ns::VERSION];
            let features = features.iter().chain(&self.features).map(|var| (*var).to_owned()).collect();
            let identities = vec![Identity::new("client", "bot", "en", "Starling")];
            let info = DiscoInfoResult { node: None, identities, features, extensions: Vec::new() };
            Some(Some(info.into()))
        } else {
            None
        }
    }

    fn answer(&mut self, to: Jid, id: String, answer: Answer) {
        let iq = match answer {
            Ok(payload) => Iq::Result { from: None, to: Some(to.clone()), id: id.clone(), payload },
            Err(error) => Iq::Error { from: None, to: Some(to.clone()), id: id.clone(), error: *error, payload: None },
        };
        let stanza = iq.into();
        if let Err(error) = super::check_size(&stanza) {
            tracing::error!(%to, %error, "answer not sent");
            let error = stanza_error(DefinedCondition::InternalServerError, "the answer is too large");
            return self.push(Iq::Error { from: None, to: Some(to), id, error, payload: None }, false);
        }
        self.push(stanza, false);
    }

    fn on_presence(&mut self, presence: Presence) {
        let Some(from) = presence.from.clone() else { return };
        let room = from.to_bare();
        let item = muc::Item::read(&presence);
        let available = presence.type_ == Type::None;
        let Some(state) = self.rooms.get_mut(&room) else {
            let known = matches!(presence.type_, Type::None | Type::Unavailable);
            if known && item.is_none() && room != self.jid.to_bare() {
                self.emit(AgentEvent::DirectedPresence { from, available, payloads: presence.payloads });
            }
            return;
        };
        state.heard(Instant::now());
        let ours = from == state.occupant;
        if presence.type_ == Type::Error {
            if ours || from.is_bare() {
                let why = error_condition(&presence.payloads);
                self.lost(&room, &why);
            }
            return;
        }
        let (Some(item), Some(nick)) = (item, from.resource()) else { return };
        let nick = nick.as_str().to_owned();
        let own = ours && item.is_own();
        let joined = own && available && state.is_joined();
        let removed =
            format!("removed-{}", item.codes.iter().filter(|c| *c != "110").cloned().collect::<Vec<_>>().join("-"));
        self.emit(AgentEvent::Occupant {
            room: room.clone(),
            nick: nick.clone(),
            real: item.real,
            role: item.role,
            affiliation: item.affiliation,
            available,
            payloads: presence.payloads,
            own,
        });
        if joined {
            tracing::info!(%room, nick, "in the room");
            self.show_payload(&room);
            self.emit(AgentEvent::RoomJoined { room, nick });
        } else if own && !available {
            self.lost(&room, &removed);
        }
    }

    fn on_message(&mut self, message: Message) {
        let Some(from) = message.from.clone() else { return };
        let bare = from.to_bare();
        let kind = kind(&message.type_);
        let room = self.rooms.get_mut(&bare).map(|state| {
            state.heard(Instant::now());
            let reflected = kind == MessageKind::Groupchat && from == state.occupant;
            if reflected || (kind == MessageKind::Error && from.is_bare()) {
                state.unreflected = state.unreflected.saturating_sub(1);
            }
            bare.clone()
        });
        if room.is_some() && kind == MessageKind::Error && from.is_bare() {
            let why = error_condition(&message.payloads);
            if is_not_inside(&why) {
                self.lost(&bare, &why);
            }
        }
        let body = message.get_best_body(vec!["en"]).map(|(_, body)| body.clone());
        let delayed = message.payloads.iter().any(|e| e.is("delay", ns::DELAY));
        self.emit(AgentEvent::Message { from, room, kind, body, payloads: message.payloads, delayed });
    }
}

fn is_gone(token: &StanzaToken) -> bool {
    let state = token.state();
    state >= StanzaStage::Sent || matches!(state, StanzaState::Dropped)
}

fn iq_key(stanza: &Stanza) -> Option<(Jid, String)> {
    match stanza {
        Stanza::Iq(Iq::Get { to: Some(to), id, .. } | Iq::Set { to: Some(to), id, .. }) => {
            Some((to.clone(), id.clone()))
        }
        _ => None,
    }
}

fn kind(type_: &MessageType) -> MessageKind {
    match type_ {
        MessageType::Chat => MessageKind::Chat,
        MessageType::Groupchat => MessageKind::Groupchat,
        MessageType::Error => MessageKind::Error,
        MessageType::Normal | MessageType::Headline => MessageKind::Normal,
    }
}

/// Conditions with which a room (or the way to it) answers somebody who is not inside.
fn is_not_inside(condition: &str) -> bool {
    matches!(
        condition,
        "not-acceptable" | "item-not-found" | "remote-server-not-found" | "remote-server-timeout" | "gone"
    )
}

fn error_condition(payloads: &[Element]) -> String {
    let error = payloads.iter().find(|e| e.name() == "error");
    let condition = error.and_then(|e| e.children().find(|c| c.ns() == ns::XMPP_STANZAS && c.name() != "text"));
    condition.map_or("undefined-condition", Element::name).to_owned()
}
