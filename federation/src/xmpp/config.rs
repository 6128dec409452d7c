//! Where and as whom an agent logs in.

use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;
use xmpp_parsers::jid::BareJid;

/// The `[xmpp]` section of an agent's configuration.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct XmppConfig {
    /// Bare JID of the account, `cm1@a.test`. Each agent has its own: one nickname of a room is held by one account.
    pub jid: String,
    #[serde(default)]
    pub password: Option<String>,
    /// File whose first line is the password; used when `password` is absent.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// `host:port` to connect to. TLS always checks the domain of `jid`, whatever host this is.
    pub address: String,
    #[serde(default)]
    pub transport: Transport,
    #[serde(default = "default_ws_path")]
    pub ws_path: String,
    /// PEM file with the only CAs to trust; absent: those of the system.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    #[serde(default = "default_connect_timeout_ms")]
    pub connect_timeout_ms: u64,
    /// XEP-0198: a cut link is resumed without loss, but a dead process looks alive for the server's hibernation time.
    #[serde(default = "default_stream_management")]
    pub stream_management: bool,
    /// Further service-discovery features that the owner of the agent answers for.
    #[serde(skip)]
    pub features: Vec<&'static str>,
}

fn default_ws_path() -> String {
    "/xmpp-websocket".into()
}

fn default_connect_timeout_ms() -> u64 {
    5_000
}

fn default_stream_management() -> bool {
    true
}

impl XmppConfig {
    /// The defaults for an account that is known by its password.
    pub fn new(jid: impl Into<String>, password: impl Into<String>, address: impl Into<String>) -> Self {
        Self {
            jid: jid.into(),
            password: Some(password.into()),
            password_file: None,
            address: address.into(),
            transport: Transport::default(),
            ws_path: default_ws_path(),
            ca_file: None,
            connect_timeout_ms: default_connect_timeout_ms(),
            stream_management: default_stream_management(),
            features: Vec::new(),
        }
    }

    pub(super) fn bare_jid(&self) -> Result<BareJid, ConfigError> {
        let bad = || ConfigError::Jid { jid: self.jid.clone() };
        let jid = BareJid::new(&self.jid).map_err(|_| bad())?;
        if jid.node().is_none() { Err(bad()) } else { Ok(jid) }
    }

    pub(super) fn read_password(&self) -> Result<String, ConfigError> {
        if let Some(password) = &self.password {
            return Ok(password.clone());
        }
        let path = self.password_file.clone().ok_or(ConfigError::NoPassword)?;
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(text.lines().next().unwrap_or_default().to_owned()),
            Err(source) => Err(ConfigError::PasswordFile { path, source }),
        }
    }
}

impl fmt::Debug for XmppConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("XmppConfig")
            .field("jid", &self.jid)
            .field("address", &self.address)
            .field("transport", &self.transport)
            .field("ca_file", &self.ca_file)
            .finish_non_exhaustive()
    }
}

/// How the XML stream is carried. All but `ws` are encrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// RFC 6120: plain TCP, then TLS before anything is said.
    #[default]
    #[serde(rename = "starttls")]
    StartTls,
    /// XEP-0368, ALPN `xmpp-client`.
    DirectTls,
    /// RFC 7395 without TLS: only on loopback or behind a proxy that ends TLS.
    Ws,
    /// RFC 7395 with TLS.
    Wss,
}

/// The configuration cannot be used; nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("`{jid}` is not an account: expected user@domain")]
    Jid { jid: String },
    #[error("no password: set `password` or `password_file`")]
    NoPassword,
    #[error("cannot read the password file {path}")]
    PasswordFile { path: PathBuf, source: std::io::Error },
    #[error("cannot read CA certificates from {path}: {reason}")]
    CaFile { path: PathBuf, reason: String },
    #[error("the system has no usable CA certificate: set `ca_file`")]
    NoSystemRoots,
    #[error("TLS set-up failed")]
    Tls(#[from] rustls::Error),
}

impl ConfigError {
    pub fn code(&self) -> &'static str {
        match self {
            Self::Jid { .. } => "xmpp-jid",
            Self::NoPassword => "xmpp-no-password",
            Self::PasswordFile { .. } => "xmpp-password-file",
            Self::CaFile { .. } => "xmpp-ca-file",
            Self::NoSystemRoots => "xmpp-no-system-roots",
            Self::Tls(_) => "xmpp-tls",
        }
    }
}
