//! The agent: a handle for many, and behind it one task that owns the stream.

mod room;
mod task;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_xmpp::Stanza;
use tracing::Instrument;
use xmpp_parsers::iq::Iq;
use xmpp_parsers::jid::{BareJid, FullJid, Jid};
use xmpp_parsers::message::{Lang, Message, MessageType};
use xmpp_parsers::minidom::{Element, Node};
use xmpp_parsers::presence::Presence;
use xmpp_parsers::stanza_error::{DefinedCondition, ErrorType, StanzaError};

use super::config::{ConfigError, XmppConfig};
use super::connector::Connector;
use super::muc;
use super::session::{self, Session};

/// A larger stanza is refused here: the server would kill the stream for it and tell nobody. Its limit is above this.
pub const STANZA_BYTES_MAX: usize = 200_000;
/// Stanzas waiting for the link; whoever wants to send more waits. Enough for the fan-out of one call to a federation.
const SEND_QUEUE: usize = 256;
/// Broadcasts waiting for their room, apart from the rest, so that a flood cannot delay an IQ.
const BROADCAST_QUEUE: usize = 64;
/// Only a hand-over: the task takes a command at once, and the stanzas in it hold a place of one of the queues above.
const COMMAND_QUEUE: usize = 64;
/// Events the owner has not read yet; beyond it nothing more is read from the server.
const EVENT_QUEUE: usize = 256;
/// For answers to room administration.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(10);

/// A handle to one logged-in account. Cheap to clone; when the last one is dropped the session ends.
#[derive(Clone)]
pub struct Agent {
    commands: mpsc::Sender<Command>,
    sends: Arc<Semaphore>,
    broadcasts: Arc<Semaphore>,
}

/// What the owner of an agent gets to see, in order.
#[derive(Debug)]
pub enum AgentEvent {
    /// `fresh`: a new session, nothing of the old one is left (rooms are being joined again). Else the old one goes on, without loss.
    Online {
        jid: FullJid,
        fresh: bool,
    },
    Offline,
    /// The server refuses the account. Tried again, slowly.
    AuthFailed(String),
    ConnectFailed {
        error: String,
        retry_in: Duration,
    },
    RoomJoined {
        room: BareJid,
        nick: String,
    },
    /// Not in the room, or no longer. Joined again as soon as possible. `why` is an error condition of RFC 6120 (`conflict`:
    /// somebody else has the nickname; `registration-required`: members only), `removed-CODES`, `self-ping` or `stream-reset`.
    /// Said once per reason, not per attempt.
    RoomLost {
        room: BareJid,
        why: String,
    },
    Occupant {
        room: BareJid,
        nick: String,
        /// Seen only where the room shows it to us.
        real: Option<FullJid>,
        role: String,
        affiliation: String,
        available: bool,
        payloads: Vec<Element>,
        own: bool,
    },
    /// Presence sent to us by somebody outside of any room.
    DirectedPresence {
        from: Jid,
        available: bool,
        payloads: Vec<Element>,
    },
    Message {
        from: Jid,
        /// The room it came through, also for a private message of an occupant.
        room: Option<BareJid>,
        kind: MessageKind,
        body: Option<String>,
        payloads: Vec<Element>,
        /// Was said earlier: history, or repeated after a resumption.
        delayed: bool,
    },
    Request {
        from: Jid,
        set: bool,
        payload: Element,
        reply: Responder,
    },
    /// The session was closed; nothing follows.
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    Chat,
    Groupchat,
    Normal,
    Error,
}

/// The answer to one IQ request. Dropped unused, it answers `service-unavailable`.
#[derive(Debug)]
pub struct Responder(oneshot::Sender<Answer>);

type Answer = Result<Option<Element>, Box<StanzaError>>;
type Reply = oneshot::Sender<Result<Option<Element>, IqFailure>>;

impl Responder {
    pub fn result(self, payload: Option<Element>) {
        // Nobody to answer any more: the session is over, and the requester was told so.
        let _ = self.0.send(Ok(payload));
    }

    /// `text` is for people.
    pub fn error(self, condition: DefinedCondition, text: &str) {
        let _ = self.0.send(Err(Box::new(stanza_error(condition, text))));
    }

    /// An error with an element of our own in it.
    pub fn fail(self, error: StanzaError) {
        let _ = self.0.send(Err(Box::new(error)));
    }
}

/// An error stanza with the type that RFC 6120 §8.3.3 gives to the condition.
pub(super) fn stanza_error(condition: DefinedCondition, text: &str) -> StanzaError {
    use DefinedCondition as C;
    let type_ = match condition {
        C::BadRequest | C::JidMalformed | C::NotAcceptable | C::PolicyViolation => ErrorType::Modify,
        C::Forbidden | C::NotAuthorized | C::RegistrationRequired | C::SubscriptionRequired => ErrorType::Auth,
        C::RecipientUnavailable | C::RemoteServerTimeout | C::ResourceConstraint | C::UnexpectedRequest => {
            ErrorType::Wait
        }
        _ => ErrorType::Cancel,
    };
    StanzaError::new(type_, condition, "en", text)
}

/// Why an IQ has no answer. `Timeout` and `Reset` leave open whether it was carried out: repeat it with the same message id.
#[derive(Debug, thiserror::Error)]
pub enum IqFailure {
    #[error("no answer in time")]
    Timeout,
    #[error("the session was lost before the answer came")]
    Reset,
    #[error("refused: {:?}", .0.defined_condition)]
    Remote(Box<StanzaError>),
    #[error("the agent is closed")]
    Closed,
    #[error("stanza of {bytes} bytes: at most {STANZA_BYTES_MAX} are sent")]
    TooLarge { bytes: usize },
}

/// Why something was not sent.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    #[error("the agent is closed")]
    Closed,
    #[error("stanza of {bytes} bytes: at most {STANZA_BYTES_MAX} are sent")]
    TooLarge { bytes: usize },
    #[error("`{nick}` cannot be a nickname")]
    Nick { nick: String },
}

impl From<SendError> for IqFailure {
    fn from(error: SendError) -> Self {
        match error {
            SendError::TooLarge { bytes } => Self::TooLarge { bytes },
            SendError::Closed | SendError::Nick { .. } => Self::Closed,
        }
    }
}

/// What the handles ask of the task.
enum Command {
    Send(Queued),
    Iq { to: Jid, id: String, queued: Queued, reply: Reply },
    Broadcast { room: BareJid, queued: Queued },
    Join { room: BareJid, occupant: FullJid, payload: Option<Element> },
    Update { room: BareJid, payload: Element },
    Leave { room: BareJid },
    Close(oneshot::Sender<()>),
}

/// A stanza on its way to the library, and its place in a queue.
struct Queued {
    stanza: Box<Stanza>,
    /// Means nothing in another session than the one it was made in.
    session_only: bool,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Agent {
    /// Starts logging in, and never stops trying until closed. The resource is new at each start: an incarnation is known by
    /// its full JID. Read the events without a break: do not wait for an IQ's answer in the loop that reads them.
    ///
    /// # Errors
    /// The configuration is unusable. A wrong password or an unreachable server is an event instead.
    pub fn start(config: &XmppConfig) -> Result<(Self, mpsc::Receiver<AgentEvent>), ConfigError> {
        let bare = config.bare_jid()?;
        let resource = uuid::Uuid::new_v4().simple().to_string();
        let jid = bare.with_resource_str(&resource).map_err(|_| ConfigError::Jid { jid: config.jid.clone() })?;
        let session = Session {
            connector: Connector::new(config)?,
            jid: jid.clone(),
            password: config.read_password()?,
            stream_management: config.stream_management,
        };
        let (commands, commands_rx) = mpsc::channel(COMMAND_QUEUE);
        let (events, events_rx) = mpsc::channel(EVENT_QUEUE);
        let task = task::Task::new(session::open(session, SEND_QUEUE), jid, config.features.clone(), events);
        tokio::spawn(task.run(commands_rx).instrument(tracing::info_span!("xmpp", jid = %bare)));
        let sends = Arc::new(Semaphore::new(SEND_QUEUE));
        Ok((Self { commands, sends, broadcasts: Arc::new(Semaphore::new(BROADCAST_QUEUE)) }, events_rx))
    }

    /// Sends a request and waits for its answer, `timeout` at most.
    pub async fn iq_set(&self, to: Jid, payload: Element, timeout: Duration) -> Result<Option<Element>, IqFailure> {
        let id = new_id();
        let iq = Iq::Set { from: None, to: Some(to.clone()), id: id.clone(), payload };
        self.iq(to, id, iq, timeout).await
    }

    /// As [`iq_set`](Self::iq_set), for a question.
    pub async fn iq_get(&self, to: Jid, payload: Element, timeout: Duration) -> Result<Option<Element>, IqFailure> {
        let id = new_id();
        let iq = Iq::Get { from: None, to: Some(to.clone()), id: id.clone(), payload };
        self.iq(to, id, iq, timeout).await
    }

    async fn iq(&self, to: Jid, id: String, iq: Iq, timeout: Duration) -> Result<Option<Element>, IqFailure> {
        let answer = async {
            let (reply, answer) = oneshot::channel();
            let queued = self.queue(&self.sends, iq.into()).await?;
            self.command(Command::Iq { to, id, queued, reply }).await?;
            answer.await.unwrap_or(Err(IqFailure::Closed))
        };
        tokio::time::timeout(timeout, answer).await.unwrap_or(Err(IqFailure::Timeout))
    }

    /// Joins, and joins again after every loss until [`leave`](Self::leave). `payload` goes into the room presence.
    pub async fn join(&self, room: &BareJid, nick: &str, payload: Option<Element>) -> Result<(), SendError> {
        let occupant = room.with_resource_str(nick).map_err(|_| SendError::Nick { nick: nick.into() })?;
        check_size(&muc::join(occupant.clone(), payload.clone()).into())?;
        self.command(Command::Join { room: room.clone(), occupant, payload }).await
    }

    pub async fn leave(&self, room: &BareJid) -> Result<(), SendError> {
        self.command(Command::Leave { room: room.clone() }).await
    }

    /// A new payload in the room presence, kept for later joins.
    pub async fn update_presence(&self, room: &BareJid, payload: Element) -> Result<(), SendError> {
        check_size(&muc::with_payload(Presence::available(), Some(payload.clone())).into())?;
        self.command(Command::Update { room: room.clone(), payload }).await
    }

    /// Presence to one agent outside of any room. The server takes it back (unavailable) when this session ends.
    pub async fn directed_presence(
        &self,
        to: FullJid,
        payload: Option<Element>,
        available: bool,
    ) -> Result<(), SendError> {
        let presence = if available { Presence::available() } else { Presence::unavailable() };
        self.send(muc::with_payload(presence.with_to(to), payload).into()).await
    }

    /// A body-less broadcast. Waits while 64 of them are queued.
    pub async fn groupchat(&self, room: &BareJid, payload: Element) -> Result<(), SendError> {
        self.broadcast(room, message(&new_id(), MessageType::Groupchat, room.clone().into(), None, Some(payload))).await
    }

    /// Says something to the people in a room.
    pub async fn say(&self, room: &BareJid, text: &str) -> Result<(), SendError> {
        self.broadcast(room, message(&new_id(), MessageType::Groupchat, room.clone().into(), Some(text), None)).await
    }

    /// A chat message to an account, a full JID or an occupant. The same `id` says that it is the same message, said again.
    pub async fn message(
        &self,
        id: &str,
        to: Jid,
        text: Option<&str>,
        payload: Option<Element>,
    ) -> Result<(), SendError> {
        self.send(message(id, MessageType::Chat, to, text, payload).into()).await
    }

    /// Sets fields of a room's form, such as `("muc#roomconfig_membersonly", "1")`. For owners.
    pub async fn room_config(&self, room: &BareJid, fields: &[(&str, &str)]) -> Result<(), IqFailure> {
        self.iq_set(room.clone().into(), muc::config_form(fields), ADMIN_TIMEOUT).await.map(drop)
    }

    /// `affiliation`: `owner`, `admin`, `member`, `outcast` or `none`. For owners and admins.
    pub async fn set_affiliation(&self, room: &BareJid, jid: &BareJid, affiliation: &str) -> Result<(), IqFailure> {
        self.iq_set(room.clone().into(), muc::set_affiliation(jid, affiliation), ADMIN_TIMEOUT).await.map(drop)
    }

    /// The accounts with this affiliation in the room.
    pub async fn affiliations(&self, room: &BareJid, affiliation: &str) -> Result<Vec<BareJid>, IqFailure> {
        let answer = self.iq_get(room.clone().into(), muc::get_affiliations(affiliation), ADMIN_TIMEOUT).await?;
        Ok(muc::affiliated(answer))
    }

    /// Sends what is queued, says good-bye and ends the session, also for all other handles. A few seconds at most.
    pub async fn close(self) {
        let (done, ended) = oneshot::channel();
        if self.command(Command::Close(done)).await.is_ok() {
            let _ = ended.await;
        }
    }

    async fn send(&self, stanza: Stanza) -> Result<(), SendError> {
        let queued = self.queue(&self.sends, stanza).await?;
        self.command(Command::Send(queued)).await
    }

    async fn broadcast(&self, room: &BareJid, message: Message) -> Result<(), SendError> {
        let queued = self.queue(&self.broadcasts, message.into()).await?;
        self.command(Command::Broadcast { room: room.clone(), queued }).await
    }

    async fn queue(&self, places: &Arc<Semaphore>, stanza: Stanza) -> Result<Queued, SendError> {
        check_size(&stanza)?;
        let permit = tokio::select! {
            permit = places.clone().acquire_owned() => permit.map_err(|_| SendError::Closed)?,
            () = self.commands.closed() => return Err(SendError::Closed),
        };
        Ok(Queued { stanza: Box::new(stanza), session_only: false, _permit: Some(permit) })
    }

    async fn command(&self, command: Command) -> Result<(), SendError> {
        self.commands.send(command).await.map_err(|_| SendError::Closed)
    }
}

fn message(id: &str, kind: MessageType, to: Jid, text: Option<&str>, payload: Option<Element>) -> Message {
    let mut message = Message::new_with_type(kind, Some(to));
    // Some clients show a message only once when it has an id.
    message.id = Some(xmpp_parsers::message::Id(id.to_owned()));
    message.payloads.extend(payload);
    match text {
        Some(text) => message.with_body(Lang::default(), text.to_owned()),
        None => message,
    }
}

fn check_size(stanza: &Stanza) -> Result<(), SendError> {
    // So nearly always, and cheaper to know than by writing it once more. The other half is more than names and addresses take.
    if let Stanza::Iq(Iq::Set { payload, .. } | Iq::Result { payload: Some(payload), .. }) = stanza
        && bytes_at_most(payload) < STANZA_BYTES_MAX / 2
    {
        return Ok(());
    }
    // What cannot be written at all is as good as too large.
    let bytes = xso::to_vec(stanza).map_or(usize::MAX, |xml| xml.len());
    if bytes > STANZA_BYTES_MAX { Err(SendError::TooLarge { bytes }) } else { Ok(()) }
}

/// How long an element is as XML if all of it must be escaped (`&#x22;`).
fn bytes_at_most(element: &Element) -> usize {
    let attributes = element.attrs().iter().map(|((ns, name), value)| ns.len() + name.len() + 6 * value.len() + 32);
    let contents = element.nodes().map(|node| match node {
        Node::Element(child) => bytes_at_most(child),
        Node::Text(text) => 6 * text.len(),
    });
    2 * element.name().len() + element.ns().len() + 32 + attributes.chain(contents).sum::<usize>()
}

fn new_id() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

#[cfg(test)]
mod tests {
    use xmpp_parsers::minidom::rxml::{Namespace, xml_ncname};

    use super::*;

    #[test]
    fn no_element_is_longer_than_it_is_said_to_be_at_most() {
        let quotes = "\"'<&>\t\n".repeat(50);
        for text in ["", "a", &quotes] {
            let mut element = Element::bare("outer", "urn:x");
            for ns in ["urn:x", "urn:another", "urn:x", ""] {
                let mut child = Element::builder("inner", ns).attr(xml_ncname!("a").into(), text).append(text).build();
                child.attrs_mut().insert(Namespace::from("urn:of-the-attribute"), xml_ncname!("b").into(), text.into());
                element.append_child(child);
            }
            let written = xso::to_vec(&element).expect("written").len();
            assert!(bytes_at_most(&element) >= written, "{} {written}", bytes_at_most(&element));
        }
    }
}
