//! One connector for every transport, because those of tokio-xmpp take no private CA, have no connect deadline, leave
//! Nagle on (44 ms per IQ) and speak no WebSocket.

use std::borrow::Cow;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use sasl::common::ChannelBinding;
use tokio::io::{AsyncRead, AsyncWrite, BufStream, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_xmpp::Error;
use tokio_xmpp::connect::ServerConnector;
use tokio_xmpp::error::ProtocolError;
use tokio_xmpp::xmlstream::{
    PendingFeaturesRecv, ReadError, StreamHeader, Timeouts, XmppStream, XmppStreamElement, initiate_stream,
};
use xmpp_parsers::jid::Jid;
use xmpp_parsers::starttls;

use super::config::{ConfigError, Transport, XmppConfig};
use super::websocket;

#[derive(Clone, Debug)]
pub struct Connector {
    /// `host:port`, resolved by the operating system at every attempt.
    address: String,
    transport: Transport,
    ws_path: String,
    tls: Arc<ClientConfig>,
    timeout: Duration,
}

impl Connector {
    pub fn new(config: &XmppConfig) -> Result<Self, ConfigError> {
        let alpn = if config.transport == Transport::DirectTls { Some(b"xmpp-client".as_slice()) } else { None };
        Ok(Self {
            address: config.address.clone(),
            transport: config.transport,
            ws_path: config.ws_path.clone(),
            tls: tls_config(config.ca_file.as_deref(), alpn)?,
            timeout: Duration::from_millis(config.connect_timeout_ms),
        })
    }

    async fn open(&self, jid: &Jid, ns: &'static str, timeouts: Timeouts) -> Result<Pending, Error> {
        let tcp = TcpStream::connect(&self.address).await?;
        tcp.set_nodelay(true)?;
        let io: Box<dyn Io> = match self.transport {
            Transport::DirectTls => Box::new(self.encrypt(tcp, jid).await?),
            Transport::StartTls => {
                let raw = start_tls(initiate(AnyIo(Box::new(tcp)), jid, ns, timeouts).await?).await?;
                Box::new(self.encrypt(raw, jid).await?)
            }
            Transport::Ws => {
                let url = format!("ws://{}{}", jid.domain(), self.ws_path);
                Box::new(websocket::connect(tcp, &url, ns).await?)
            }
            Transport::Wss => {
                let url = format!("wss://{}{}", jid.domain(), self.ws_path);
                Box::new(websocket::connect(self.encrypt(tcp, jid).await?, &url, ns).await?)
            }
        };
        initiate(AnyIo(io), jid, ns, timeouts).await
    }

    async fn encrypt<S: Io>(&self, io: S, jid: &Jid) -> Result<tokio_rustls::client::TlsStream<S>, Error> {
        let name = ServerName::try_from(jid.domain().as_str().to_owned()).map_err(other)?;
        Ok(TlsConnector::from(self.tls.clone()).connect(name, io).await?)
    }
}

impl ServerConnector for Connector {
    type Stream = BufStream<AnyIo>;

    async fn connect(
        &self,
        jid: &Jid,
        ns: &'static str,
        timeouts: Timeouts,
    ) -> Result<(Pending, ChannelBinding), Error> {
        let pending = tokio::time::timeout(self.timeout, self.open(jid, ns, timeouts))
            .await
            .map_err(|_| Error::Io(io::ErrorKind::TimedOut.into()))??;
        // With any binding only SCRAM-*-PLUS is considered, and where the server has none the library falls to PLAIN.
        Ok((pending, ChannelBinding::Unsupported))
    }
}

type Pending = PendingFeaturesRecv<BufStream<AnyIo>>;

async fn initiate(io: AnyIo, jid: &Jid, ns: &'static str, timeouts: Timeouts) -> Result<Pending, Error> {
    let header = StreamHeader { to: Some(Cow::Borrowed(jid.domain().as_str())), from: None, id: None };
    Ok(initiate_stream(BufStream::new(io), ns, header, timeouts).await?)
}

/// Asks for TLS and gives back the bare connection, on which the handshake comes next.
async fn start_tls(pending: Pending) -> Result<AnyIo, Error> {
    let (features, mut stream): (_, XmppStream<_>) = pending.recv_features().await?;
    if !features.can_starttls() {
        return Err(Error::Protocol(ProtocolError::NoTls));
    }
    stream.send(&XmppStreamElement::Starttls(starttls::Nonza::Request(starttls::Request))).await?;
    loop {
        match stream.next().await.map(|read| read.and_then(|element| element.into_read_error())) {
            Some(Ok(XmppStreamElement::Starttls(starttls::Nonza::Proceed(_)))) => break,
            Some(Ok(_)) | Some(Err(ReadError::SoftTimeout)) => {}
            Some(Err(e)) => return Err(other(e)),
            None => return Err(Error::Disconnected),
        }
    }
    Ok(stream.into_inner().into_inner())
}

fn tls_config(ca_file: Option<&Path>, alpn: Option<&[u8]>) -> Result<Arc<ClientConfig>, ConfigError> {
    let roots = match ca_file {
        Some(path) => roots_from_file(path)?,
        None => system_roots()?,
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.into_iter().map(<[u8]>::to_vec).collect();
    Ok(Arc::new(config))
}

fn roots_from_file(path: &Path) -> Result<RootCertStore, ConfigError> {
    let bad = |reason: String| ConfigError::CaFile { path: path.to_owned(), reason };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|e| bad(e.to_string()))? {
        roots.add(certificate.map_err(|e| bad(e.to_string()))?).map_err(|e| bad(e.to_string()))?;
    }
    if roots.is_empty() { Err(bad("no certificate in it".into())) } else { Ok(roots) }
}

fn system_roots() -> Result<RootCertStore, ConfigError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() { Err(ConfigError::NoSystemRoots) } else { Ok(roots) }
}

pub fn other(e: impl std::fmt::Display) -> Error {
    Error::Io(io::Error::other(e.to_string()))
}

pub trait Io: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Io for T {}

/// Any byte stream: the connector needs one type for all transports.
pub struct AnyIo(Box<dyn Io>);

impl AsyncRead for AnyIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for AnyIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
