//! A session that reconnects, on the public `StanzaStream`, with what `tokio_xmpp::Client` lacks: failures are events,
//! back-off also when a connection is made and lost at once, SCRAM only, and a way out of a resumption that fails for ever.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sasl::common::Credentials;
use tokio::sync::{mpsc, oneshot};
use tokio_xmpp::Error;
use tokio_xmpp::connect::ServerConnector;
use tokio_xmpp::error::AuthError;
use tokio_xmpp::stanzastream::{Connection, StanzaStream};
use tokio_xmpp::xmlstream::{StreamHeader, Timeouts, XmppStream};
use tracing::Instrument;
use xmpp_parsers::jid::{FullJid, Jid};
use xmpp_parsers::ns;
use xmpp_parsers::sasl::DefinedCondition;

use super::connector::Connector;

/// Why there is no connection yet.
#[derive(Debug)]
pub enum Trouble {
    /// The account is refused. Retried slowly: it may be made later.
    Auth(String),
    Connect {
        error: String,
        retry_in: Duration,
    },
}

#[derive(Clone)]
pub struct Session {
    pub connector: Connector,
    pub jid: FullJid,
    pub password: String,
    pub stream_management: bool,
}

/// A dead link is noticed after the sum: 10 s of silence, then 5 s without an answer.
const TIMEOUTS: Timeouts = Timeouts { read_timeout: Duration::from_secs(10), response_timeout: Duration::from_secs(5) };
/// For the whole log-in: the library's negotiation has no deadline of its own.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(20);
const BACKOFF_FIRST: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(8);
const AUTH_RETRY: Duration = Duration::from_secs(30);
/// A connection lost sooner than this counts as a failed one.
const QUICK: Duration = Duration::from_secs(10);

/// The owner of the stream calls [`settled`](Self::settled) when it sees a session begin or resume.
///
/// Connections handed over without that mean that resumption itself fails: a server that crashed answers `<failed/>`
/// without `h`, which the library cannot parse and answers by trying the same again, 18 times a second.
#[derive(Clone, Default)]
pub struct LoopGuard(Arc<AtomicU32>);

impl LoopGuard {
    pub fn settled(&self) {
        self.0.store(0, Ordering::SeqCst);
    }

    pub(super) fn handed_over(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    /// Without stream management in the features the library drops its state and begins afresh.
    pub(super) fn may_resume(&self) -> bool {
        self.0.load(Ordering::SeqCst) == 0
    }
}

/// Starts the session; it lives until the stream is closed. `depth`: stanzas in flight in the library.
pub fn open(session: Session, depth: usize) -> (StanzaStream, mpsc::Receiver<Trouble>, LoopGuard) {
    // One trouble at a time is worth knowing; the connecting task waits for the reader.
    let (trouble_tx, trouble_rx) = mpsc::channel(1);
    let guard = LoopGuard::default();
    let stream_guard = guard.clone();
    let mut last_attempt: Option<Instant> = None;
    let connect = move |_location: Option<String>, slot: oneshot::Sender<Connection>| {
        let quick = last_attempt.is_some_and(|at| at.elapsed() < QUICK);
        last_attempt = Some(Instant::now());
        let span = tracing::info_span!("connect", jid = %session.jid.to_bare());
        let task = connect_until(session.clone(), slot, trouble_tx.clone(), stream_guard.clone(), quick);
        tokio::spawn(task.instrument(span));
    };
    (StanzaStream::new(Box::new(connect), depth), trouble_rx, guard)
}

/// Tries until it has a connection or nobody wants one. The slot must never be dropped before: the library's worker panics.
async fn connect_until(
    session: Session,
    mut slot: oneshot::Sender<Connection>,
    trouble: mpsc::Sender<Trouble>,
    guard: LoopGuard,
    quick: bool,
) {
    let resumable = session.stream_management && guard.may_resume();
    let mut delay = BACKOFF_FIRST;
    if quick {
        delay *= 4;
        tokio::time::sleep(jitter(delay)).await;
    }
    loop {
        let attempt = tokio::time::timeout(LOGIN_TIMEOUT, log_in(&session, resumable));
        let result = tokio::select! {
            result = attempt => result.unwrap_or_else(|_| Err(Error::Io(io::ErrorKind::TimedOut.into()))),
            () = slot.closed() => return,
        };
        let (report, wait) = match result {
            Ok(connection) => {
                guard.handed_over();
                let _ = slot.send(connection);
                return;
            }
            Err(Error::Auth(e)) if is_final(&e) => (Trouble::Auth(e.to_string()), jitter(AUTH_RETRY)),
            Err(e) => {
                let wait = jitter(delay);
                delay = (delay * 2).min(BACKOFF_MAX);
                (Trouble::Connect { error: e.to_string(), retry_in: wait }, wait)
            }
        };
        let _ = trouble.send(report).await;
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = slot.closed() => return,
        }
    }
}

async fn log_in(session: &Session, resumable: bool) -> Result<Connection, Error> {
    let jid = Jid::from(session.jid.clone());
    let (pending, binding) = session.connector.connect(&jid, ns::JABBER_CLIENT, TIMEOUTS).await?;
    let (features, stream): (_, XmppStream<_>) = pending.recv_features().await?;
    let credentials = Credentials::default()
        .with_username(jid.node().map(|node| node.as_str()).unwrap_or_default())
        .with_password(session.password.clone())
        .with_channel_binding(binding);
    let mut mechanisms = features.sasl_mechanisms;
    mechanisms.retain(|name| name.starts_with("SCRAM-"));
    let stream = tokio_xmpp::client_login(stream, mechanisms, credentials).await?;
    let header = StreamHeader { to: Some(Cow::Borrowed(jid.domain().as_str())), from: None, id: None };
    let (mut features, stream) = stream.send_header(header).await?.recv_features().await?;
    if !resumable {
        features.stream_management = None;
    }
    Ok(Connection { stream: stream.box_stream(), features, identity: jid })
}

fn is_final(error: &AuthError) -> bool {
    match error {
        AuthError::Fail(condition) => *condition != DefinedCondition::TemporaryAuthFailure,
        AuthError::NoMechanism | AuthError::Sasl(_) => true,
        _ => false,
    }
}

/// Half to one and a half times `d`, so that agents of a restarted server do not return in step.
fn jitter(d: Duration) -> Duration {
    d.mul_f64(0.5 + f64::from(uuid::Uuid::new_v4().as_fields().2) / f64::from(u16::MAX))
}

#[cfg(test)]
mod tests;
