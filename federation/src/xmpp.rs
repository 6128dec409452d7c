//! The XMPP driver: one account of one process on one server, made dependable.
//!
//! [`Agent`] is the only way in. Below it stand, each for one defect or gap of `tokio_xmpp::Client`:
//! - `connector`: every transport (STARTTLS, direct TLS, WebSocket) with a private CA and a connect deadline;
//! - `session`: log-in by SCRAM only, visible failures, back-off, and a way out of a resumption that can only fail;
//! - `agent`: one task that owns the un-split stream. A split one loses wake-ups: link up, sends work, nothing is ever received.
//!
//! It carries stanzas and does not understand them: no word of `urn:starling:*` stands in here.

mod agent;
mod config;
mod connector;
mod muc;
pub mod payload;
mod session;
mod websocket;

pub use agent::{Agent, AgentEvent, IqFailure, MessageKind, Responder, STANZA_BYTES_MAX, SendError};
pub use config::{ConfigError, Transport, XmppConfig};
pub use xmpp_parsers::jid::{BareJid, FullJid, Jid};
pub use xmpp_parsers::minidom::Element;
pub use xmpp_parsers::stanza_error::{DefinedCondition as Condition, ErrorType, StanzaError};
