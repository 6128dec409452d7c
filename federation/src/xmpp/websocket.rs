//! RFC 7395 below a library that wants a byte stream: an in-memory pipe and two translators. Outgoing bytes are cut into one
//! frame per top-level element, the stream header becomes `<open/>` and its end `<close/>`; incoming frames the other way.

use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{Message, http::header::SEC_WEBSOCKET_PROTOCOL};
use tokio_xmpp::Error;
use tracing::Instrument;

use super::connector::{Io, other};

const FRAMING: &str = "urn:ietf:params:xml:ns:xmpp-framing";
const STREAMS: &str = "http://etherx.jabber.org/streams";
/// What may lie between the library and the socket: one stanza of the largest size, and then the writer waits.
const PIPE_BYTES: usize = 256 * 1024;

/// Opens a WebSocket on `io`; what it gives reads and writes like an XMPP stream over TCP.
pub async fn connect<S: Io>(io: S, url: &str, ns: &'static str) -> Result<DuplexStream, Error> {
    let mut request = url.into_client_request().map_err(other)?;
    request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("xmpp"));
    let (socket, response) = tokio_tungstenite::client_async(request, io).await.map_err(other)?;
    if response.headers().get(SEC_WEBSOCKET_PROTOCOL).map(HeaderValue::as_bytes) != Some(b"xmpp") {
        return Err(other("the server did not accept the `xmpp` WebSocket protocol"));
    }
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    let (bytes_out, bytes_in) = tokio::io::split(theirs);
    let (frames_out, frames_in) = socket.split();
    // Pings come one at a time; a full queue only delays the reader.
    let (pongs_tx, pongs_rx) = mpsc::channel(4);
    tokio::spawn(bytes_to_frames(bytes_out, frames_out, pongs_rx, ns).instrument(tracing::info_span!("ws-out")));
    tokio::spawn(frames_to_bytes(frames_in, bytes_in, pongs_tx, ns).instrument(tracing::info_span!("ws-in")));
    Ok(ours)
}

type Sink<S> = futures::stream::SplitSink<WebSocketStream<S>, Message>;
type Source<S> = futures::stream::SplitStream<WebSocketStream<S>>;

/// Ends when either side does.
async fn bytes_to_frames<S: Io>(
    mut bytes: ReadHalf<DuplexStream>,
    mut frames: Sink<S>,
    mut pongs: mpsc::Receiver<Message>,
    ns: &'static str,
) {
    let mut splitter = Splitter::default();
    let mut buffer = vec![0u8; 16 * 1024];
    loop {
        tokio::select! {
            Some(pong) = pongs.recv() => if frames.send(pong).await.is_err() { return },
            read = bytes.read(&mut buffer) => {
                let n = match read { Ok(0) | Err(_) => break, Ok(n) => n };
                splitter.push(&buffer[..n]);
                while let Some(unit) = splitter.next() {
                    if frames.feed(Message::text(unit.into_frame(ns))).await.is_err() { return }
                }
                if frames.flush().await.is_err() { return }
            }
        }
    }
    let _ = frames.close().await;
}

async fn frames_to_bytes<S: Io>(
    mut frames: Source<S>,
    mut bytes: WriteHalf<DuplexStream>,
    pongs: mpsc::Sender<Message>,
    ns: &'static str,
) {
    while let Some(Ok(message)) = frames.next().await {
        let written = match message {
            Message::Text(text) => bytes.write_all(frame_to_stream(text.as_str(), ns).as_bytes()).await,
            Message::Ping(data) => {
                let _ = pongs.send(Message::Pong(data)).await;
                Ok(())
            }
            Message::Close(_) => break,
            _ => Ok(()),
        };
        if written.is_err() {
            break;
        }
    }
    let _ = bytes.shutdown().await;
}

fn frame_to_stream(frame: &str, ns: &str) -> String {
    let head = frame.trim();
    if let Some(rest) = head.strip_prefix("<open") {
        let attributes = rest.trim_end_matches("</open>").trim_end_matches('>').trim_end_matches('/');
        let attributes = without_attribute(attributes, &format!("xmlns='{FRAMING}'"));
        format!("<?xml version='1.0'?><stream:stream xmlns='{ns}' xmlns:stream='{STREAMS}'{attributes}>")
    } else if head.starts_with("<close") {
        "</stream:stream>".into()
    } else {
        frame.into()
    }
}

fn without_attribute(tag: &str, attribute: &str) -> String {
    tag.replace(attribute, "").replace(&attribute.replace('\'', "\""), "")
}

/// What the library writes, cut where RFC 7395 wants a frame.
#[derive(Debug, PartialEq)]
enum Unit {
    Open(String),
    Close,
    Element(String),
}

impl Unit {
    fn into_frame(self, ns: &str) -> String {
        match self {
            Self::Open(tag) => {
                let tag = without_attribute(&tag, &format!("xmlns='{ns}'"));
                let tag = tag.replacen("<stream:stream", &format!("<open xmlns='{FRAMING}'"), 1);
                tag.trim_end_matches('>').to_owned() + "/>"
            }
            Self::Close => format!("<close xmlns='{FRAMING}'/>"),
            Self::Element(element) => with_namespace(element, ns),
        }
    }
}

/// A frame stands alone: what it inherited from the stream header must be written on it.
fn with_namespace(mut element: String, ns: &str) -> String {
    let end = element.find('>').unwrap_or(element.len());
    let tag = &element[..end];
    let name_end = tag.find(|c: char| c.is_whitespace() || c == '/').unwrap_or(end);
    if tag.starts_with("<stream:") && !tag.contains("xmlns:stream=") {
        element.insert_str(name_end, &format!(" xmlns:stream='{STREAMS}'"));
    } else if !tag.contains(" xmlns=") {
        element.insert_str(name_end, &format!(" xmlns='{ns}'"));
    }
    element
}

/// Splits the output of our own XML writer (no comments, no CDATA, no DTD) at the top level.
#[derive(Default)]
struct Splitter {
    buffer: Vec<u8>,
    position: usize,
    depth: usize,
    start: usize,
    tag_start: usize,
    in_tag: bool,
    quote: u8,
}

impl Splitter {
    fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    fn next(&mut self) -> Option<Unit> {
        while let Some(&byte) = self.buffer.get(self.position) {
            self.position += 1;
            if !self.in_tag {
                if byte == b'<' {
                    self.in_tag = true;
                    self.tag_start = self.position - 1;
                    if self.depth == 0 {
                        self.start = self.tag_start;
                    }
                }
            } else if self.quote != 0 {
                if byte == self.quote {
                    self.quote = 0;
                }
            } else if byte == b'\'' || byte == b'"' {
                self.quote = byte;
            } else if byte == b'>' {
                self.in_tag = false;
                if let Some(unit) = self.end_of_tag() {
                    return Some(unit);
                }
            }
        }
        None
    }

    fn end_of_tag(&mut self) -> Option<Unit> {
        let tag = &self.buffer[self.tag_start..self.position];
        let (closing, empty) = (tag.starts_with(b"</"), tag.ends_with(b"/>"));
        if tag.starts_with(b"<?") {
            self.cut();
            return None;
        }
        if self.depth == 0 && tag.starts_with(b"<stream:stream") {
            return Some(Unit::Open(self.cut()));
        }
        if self.depth == 0 && closing {
            self.cut();
            return Some(Unit::Close);
        }
        if closing {
            self.depth -= 1;
        } else if !empty {
            self.depth += 1;
        }
        (self.depth == 0).then(|| Unit::Element(self.cut()))
    }

    fn cut(&mut self) -> String {
        let unit = String::from_utf8_lossy(&self.buffer[self.start..self.position]).into_owned();
        self.buffer.drain(..self.position);
        (self.position, self.start, self.tag_start) = (0, 0, 0);
        unit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NS: &str = "jabber:client";

    #[test]
    fn bytes_in_any_pieces_become_one_frame_per_element() {
        let text = "<?xml version='1.0'?><stream:stream xmlns='jabber:client' xmlns:stream='s' to='a.test' version='1.0'>\
            <iq id='1' type='get'><ping xmlns='urn:xmpp:ping'/></iq> <message to='x' subject=\"a>b\"/></stream:stream>";
        for piece in [1, 2, 7, 1000] {
            let mut splitter = Splitter::default();
            let mut frames = Vec::new();
            for bytes in text.as_bytes().chunks(piece) {
                splitter.push(bytes);
                while let Some(unit) = splitter.next() {
                    frames.push(unit.into_frame(NS));
                }
            }
            assert_eq!(frames.len(), 4, "{frames:?}");
            assert!(frames[0].starts_with("<open xmlns='urn:ietf:params:xml:ns:xmpp-framing'"), "{}", frames[0]);
            assert!(!frames[0].contains(NS) && frames[0].ends_with("version='1.0'/>"), "{}", frames[0]);
            assert_eq!(frames[1], "<iq xmlns='jabber:client' id='1' type='get'><ping xmlns='urn:xmpp:ping'/></iq>");
            assert_eq!(frames[2], "<message xmlns='jabber:client' to='x' subject=\"a>b\"/>");
            assert_eq!(frames[3], "<close xmlns='urn:ietf:params:xml:ns:xmpp-framing'/>");
        }
    }

    #[test]
    fn open_and_close_frames_become_the_stream_header_and_its_end() {
        for open in [
            "<open xmlns='urn:ietf:params:xml:ns:xmpp-framing' id='7' version='1.0'/>",
            "<open xmlns=\"urn:ietf:params:xml:ns:xmpp-framing\" id='7' version='1.0'></open>",
        ] {
            let header = frame_to_stream(open, NS);
            assert!(header.ends_with(" id='7' version='1.0'>") && !header.contains(FRAMING), "{header}");
        }
        assert_eq!(frame_to_stream("<close xmlns='urn:ietf:params:xml:ns:xmpp-framing'/>", NS), "</stream:stream>");
        assert_eq!(frame_to_stream("<presence xmlns='jabber:client'/>", NS), "<presence xmlns='jabber:client'/>");
    }
}
