//! The responder's side of `tokio_xmpp::xmlstream` as the server, on a pipe: no socket, no TLS, no clock.

use futures::{SinkExt, StreamExt};
use tokio::io::{BufStream, DuplexStream};
use tokio_xmpp::Stanza;
use tokio_xmpp::stanzastream::{Event, StreamEvent};
use tokio_xmpp::xmlstream::{XmlStream, XmppStreamElement, accept_stream, initiate_stream};
use xmpp_parsers::bind::{BindFeature, BindQuery};
use xmpp_parsers::iq::Iq;
use xmpp_parsers::minidom::Element;
use xmpp_parsers::sm;
use xmpp_parsers::stream_features::StreamFeatures;

use tokio::sync::watch;

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

/// One connection: binds, enables stream management and then, if there is a `cut`, waits for it and hangs up. To a resumption it
/// answers as a Prosody that was killed and started again: `<failed/>` without `h`.
async fn serve(io: DuplexStream, mut cut: Option<oneshot::Receiver<()>>) {
    let pending = accept_stream(BufStream::new(io), ns::JABBER_CLIENT, Timeouts::tight()).await.unwrap();
    let header = StreamHeader { from: Some("a.test".into()), to: None, id: Some("1".into()) };
    let pending = pending.send_header(header).await.unwrap();
    let features = StreamFeatures {
        bind: Some(BindFeature { required: false }),
        stream_management: Some(sm::StreamManagement { optional: false }),
        ..Default::default()
    };
    let mut stream: XmlStream<_, XmppStreamElement> = pending.send_features(&features).await.unwrap();
    while let Some(Ok(element)) = stream.next().await {
        match element {
            XmppStreamElement::Stanza(Stanza::Iq(Iq::Set { id, payload, .. })) => {
                BindQuery::try_from(payload).unwrap();
                let bound: Element =
                    "<bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><jid>u@a.test/r</jid></bind>".parse().unwrap();
                let answer: Stanza = Iq::Result { from: None, to: None, id, payload: Some(bound) }.into();
                stream.send(&answer).await.unwrap();
            }
            XmppStreamElement::SM(sm::Nonza::Enable(_)) => {
                let id = Some(sm::StreamId("token".into()));
                let enabled = sm::Enabled { id, location: None, max: None, resume: true };
                stream.send(&XmppStreamElement::SM(sm::Nonza::Enabled(enabled))).await.unwrap();
                if let Some(cut) = cut.take() {
                    let _ = cut.await;
                    return;
                }
            }
            XmppStreamElement::SM(sm::Nonza::Resume(_)) => {
                let failed: Element = "<failed xmlns='urn:xmpp:sm:3'>\
                    <item-not-found xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></failed>"
                    .parse()
                    .unwrap();
                if stream.send(&failed).await.is_err() {
                    return;
                }
            }
            _ => {}
        }
    }
}

/// The stream of a client, what loses its first connection, and how many connections it has asked for. Without a guard it is
/// the library's alone.
fn stream(guard: Option<LoopGuard>) -> (StanzaStream, oneshot::Sender<()>, watch::Receiver<u32>) {
    let (cut_tx, cut_rx) = oneshot::channel();
    let (counter, connections) = watch::channel(0);
    let mut first = Some(cut_rx);
    let connect = move |_: Option<String>, slot: oneshot::Sender<Connection>| {
        counter.send_modify(|n| *n += 1);
        let (guard, cut) = (guard.clone(), first.take());
        tokio::spawn(async move {
            let (client, server) = tokio::io::duplex(65536);
            tokio::spawn(serve(server, cut));
            let io = BufStream::new(client);
            let pending = initiate_stream(io, ns::JABBER_CLIENT, StreamHeader::default(), Timeouts::tight()).await;
            let (mut features, stream) = pending.unwrap().recv_features().await.unwrap();
            if let Some(guard) = guard {
                if !guard.may_resume() {
                    features.stream_management = None;
                }
                guard.handed_over();
            }
            let identity = Jid::new("u@a.test/r").unwrap();
            let _ = slot.send(Connection { stream: stream.box_stream(), features, identity });
        });
    };
    (StanzaStream::new(Box::new(connect), 16), cut_tx, connections)
}

async fn begins_afresh(stream: &mut StanzaStream) {
    loop {
        match stream.next().await.expect("the stream goes on") {
            Event::Stream(StreamEvent::Reset { .. }) => return,
            Event::Stream(StreamEvent::Resumed) => panic!("there was nothing to resume"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_resumption_that_can_only_fail_ends_in_a_fresh_session_on_the_third_connection() {
    let guard = LoopGuard::default();
    let (mut stream, cut, connections) = stream(Some(guard.clone()));
    begins_afresh(&mut stream).await;
    guard.settled();
    cut.send(()).unwrap();
    tokio::time::timeout(PATIENCE, begins_afresh(&mut stream)).await.expect("it never came back");
    assert_eq!(*connections.borrow(), 3);
}

/// When this fails the library has got better, and the guard can go.
#[tokio::test]
async fn without_the_guard_the_library_tries_the_same_for_ever() {
    let (mut stream, cut, mut connections) = stream(None);
    begins_afresh(&mut stream).await;
    cut.send(()).unwrap();
    tokio::select! {
        () = begins_afresh(&mut stream) => panic!("it came back"),
        many = tokio::time::timeout(PATIENCE, connections.wait_for(|n| *n > 20)) => drop(many.unwrap().unwrap()),
    }
}
