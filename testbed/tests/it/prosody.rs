//! Our agents, and clients that others wrote, on real Prosody servers joined to each other.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use federation::xmpp::{
    Agent, AgentEvent, BareJid, Element, FullJid, IqFailure, Jid, MessageKind, Transport, XmppConfig,
};
use testbed::ca::Ca;
use testbed::prosody::{Ports, Prosody, ProsodyConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::sync::{mpsc, watch};

const PATIENCE: Duration = Duration::from_secs(40);

/// Some domains, each with accounts `cm` (owner of the rooms), `hm` and `client`; the Federation room is on the first.
struct World {
    servers: Vec<Prosody>,
    _dir: tempfile::TempDir,
}

impl World {
    async fn start(domains: &[&str]) -> Self {
        let ca = Ca::new("test CA").unwrap();
        let cas: Vec<&Ca> = domains.iter().map(|_| &ca).collect();
        Self::start_with(domains, &cas).await
    }

    async fn start_with(domains: &[&str], cas: &[&Ca]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::tempdir().unwrap();
        let mut configs = Vec::new();
        for domain in domains {
            // An address for each server of this process, so that tests side by side do not meet.
            let n = (std::process::id() << 6).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
            let [_, b, c, d] = n.to_be_bytes();
            let ip = IpAddr::V4(Ipv4Addr::new(127, b | 1, c, d.clamp(2, 254)));
            let accounts = ["cm", "hm", "client"].map(|user| (user.into(), password(user))).to_vec();
            let place = (ip, Ports::pick(ip).unwrap());
            configs.push(ProsodyConfig::new(domain, dir.path().join(domain), place, accounts));
        }
        let peers: Vec<_> = configs.iter().map(ProsodyConfig::as_peer).collect();
        configs[0].federation_members = Some(Vec::new());
        let mut servers = Vec::new();
        for (mut config, ca) in configs.into_iter().zip(cas) {
            config.peers = peers.clone();
            servers.push(Prosody::start(config, ca).await.unwrap());
        }
        Self { servers, _dir: dir }
    }

    fn config(&self, n: usize, user: &str) -> XmppConfig {
        let server = &self.servers[n];
        let domain = &server.config().domain;
        let mut config = XmppConfig::new(format!("{user}@{domain}"), password(user), server.c2s().to_string());
        config.ca_file = Some(server.ca_file());
        config
    }

    async fn agent(&self, n: usize, user: &str) -> Client {
        Client::online(&self.config(n, user)).await
    }

    fn room(&self, n: usize, name: &str) -> BareJid {
        BareJid::new(&format!("{name}@conference.{}", self.servers[n].config().domain)).unwrap()
    }
}

/// One domain whose cluster manager is in its Shell room.
async fn shell() -> (World, BareJid, Client) {
    let world = World::start(&["a.test"]).await;
    let room = world.room(0, "shell");
    let mut cm = world.agent(0, "cm").await;
    cm.join(&room, "cm", "1").await;
    (world, room, cm)
}

fn password(user: &str) -> String {
    format!("it's \"{user}\" \\ 1")
}

fn payload(text: &str) -> Element {
    Element::builder("thing", "urn:test").append(text).build()
}

/// A server may split a text into several nodes, which `==` would see.
fn is_payload(element: &Element, text: &str) -> bool {
    element.is("thing", "urn:test") && element.text() == text
}

fn has_payload(elements: &[Element], text: &str) -> bool {
    elements.iter().any(|element| is_payload(element, text))
}

/// An agent and what it was told.
struct Client {
    agent: Agent,
    events: mpsc::Receiver<AgentEvent>,
    jid: FullJid,
}

impl Client {
    async fn online(config: &XmppConfig) -> Self {
        let (agent, mut events) = Agent::start(config).unwrap();
        let jid = wait(&mut events, |event| match event {
            AgentEvent::Online { jid, fresh: true } => Some(jid),
            // A busy server may not answer in time; the agent tries again.
            AgentEvent::AuthFailed(error) => panic!("{error}"),
            _ => None,
        })
        .await;
        Self { agent, events, jid }
    }

    async fn wait<T>(&mut self, wanted: impl FnMut(AgentEvent) -> Option<T>) -> T {
        wait(&mut self.events, wanted).await
    }

    async fn join(&mut self, room: &BareJid, nick: &str, text: &str) {
        self.agent.join(room, nick, Some(payload(text))).await.unwrap();
        self.joined(room).await;
    }

    async fn joined(&mut self, room: &BareJid) {
        self.wait(|event| match event {
            AgentEvent::RoomJoined { room: joined, .. } if joined == *room => Some(()),
            AgentEvent::RoomLost { why, .. } if why != "stream-reset" => panic!("{why}"),
            _ => None,
        })
        .await;
    }

    async fn not_joined(&mut self) -> String {
        self.wait(|event| match event {
            AgentEvent::RoomLost { why, .. } => Some(why),
            AgentEvent::RoomJoined { room, .. } => panic!("joined {room}"),
            _ => None,
        })
        .await
    }

    /// Until an occupant with this payload is there; its real JID.
    async fn sees(&mut self, text: &str) -> Option<FullJid> {
        self.wait(|event| match event {
            AgentEvent::Occupant { real, available: true, payloads, .. } if has_payload(&payloads, text) => Some(real),
            _ => None,
        })
        .await
    }

    /// Answers the next request from somebody with the same payload.
    async fn echo(&mut self) {
        self.wait(|event| match event {
            AgentEvent::Request { payload, reply, .. } => {
                reply.result(Some(payload));
                Some(())
            }
            _ => None,
        })
        .await;
    }
}

async fn wait<T>(events: &mut mpsc::Receiver<AgentEvent>, mut wanted: impl FnMut(AgentEvent) -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = wanted(events.recv().await.expect("the agent ended")) {
                return found;
            }
        }
    };
    tokio::time::timeout(PATIENCE, found).await.expect("it never came")
}

#[tokio::test]
async fn every_transport_carries_presence_messages_and_iqs() {
    let (world, room, mut cm) = shell().await;
    let server = &world.servers[0];
    for (transport, address) in [
        (Transport::StartTls, server.c2s()),
        (Transport::DirectTls, server.c2s_tls()),
        (Transport::Ws, server.http()),
        (Transport::Wss, server.https()),
    ] {
        let mut config = world.config(0, "client");
        (config.transport, config.address) = (transport, address.to_string());
        let mut client = Client::online(&config).await;
        client.join(&room, "client", "guest").await;
        assert_eq!(cm.sees("guest").await, Some(client.jid.clone()), "{transport:?}");

        client.agent.groupchat(&room, payload("a<b & \"c\"\n")).await.unwrap();
        let got = cm
            .wait(|event| match event {
                AgentEvent::Message { kind: MessageKind::Groupchat, body: None, payloads, .. } => Some(payloads),
                _ => None,
            })
            .await;
        assert!(has_payload(&got, "a<b & \"c\"\n"), "{transport:?} {got:?}");

        let to = Jid::from(cm.jid.clone());
        let (answer, ()) = tokio::join!(client.agent.iq_set(to, payload("echo"), PATIENCE), cm.echo());
        assert_eq!(answer.unwrap(), Some(payload("echo")), "{transport:?}");
        client.agent.close().await;
        cm.wait(|event| match event {
            AgentEvent::Occupant { nick, available: false, .. } if nick == "client" => Some(()),
            _ => None,
        })
        .await;
    }
}

#[tokio::test]
async fn a_wrong_password_is_said() {
    let world = World::start(&["a.test"]).await;
    let mut config = world.config(0, "cm");
    config.password = Some("wrong".into());
    let (_agent, mut events) = Agent::start(&config).unwrap();
    let why = wait(&mut events, |event| match event {
        AgentEvent::AuthFailed(why) => Some(why),
        other => panic!("{other:?}"),
    })
    .await;
    assert!(why.contains("NotAuthorized"), "{why}");
}

#[tokio::test]
async fn a_server_of_another_ca_is_refused() {
    let world = World::start(&["a.test"]).await;
    let path = world.servers[0].config().dir.join("other-ca.crt");
    Ca::new("other").unwrap().write(&path).unwrap();
    for (transport, address) in [
        (Transport::StartTls, world.servers[0].c2s()),
        (Transport::DirectTls, world.servers[0].c2s_tls()),
        (Transport::Wss, world.servers[0].https()),
    ] {
        let mut config = world.config(0, "cm");
        (config.transport, config.address, config.ca_file) = (transport, address.to_string(), Some(path.clone()));
        let (_agent, mut events) = Agent::start(&config).unwrap();
        let why = wait(&mut events, |event| match event {
            AgentEvent::ConnectFailed { error, .. } => Some(error),
            other => panic!("{other:?}"),
        })
        .await;
        assert!(why.contains("UnknownIssuer") || why.contains("certificate"), "{transport:?} {why}");
    }
}

#[tokio::test]
async fn domains_meet_in_the_members_only_room_and_talk_by_iq() {
    let world = World::start(&["a.test", "b.test"]).await;
    let room = world.room(0, "federation");
    let mut b = world.agent(1, "cm").await;
    b.agent.join(&room, "b.test", Some(payload("b"))).await.unwrap();
    assert_eq!(b.not_joined().await, "registration-required");

    let mut a = world.agent(0, "cm").await;
    a.join(&room, "a.test", "a").await;
    let cm_b = BareJid::new("cm@b.test").unwrap();
    a.agent.set_affiliation(&room, &cm_b, "member").await.unwrap();
    assert_eq!(a.agent.affiliations(&room, "member").await.unwrap(), [cm_b]);
    b.joined(&room).await;
    let real = a.sees("b").await;
    assert_eq!(real, Some(b.jid.clone()), "real JIDs are visible");

    let (answer, ()) = tokio::join!(a.agent.iq_set(b.jid.clone().into(), payload("cfp"), PATIENCE), b.echo());
    assert_eq!(answer.unwrap(), Some(payload("cfp")));

    b.agent.update_presence(&room, payload("b2")).await.unwrap();
    a.sees("b2").await;
    b.agent.leave(&room).await.unwrap();
    a.wait(|event| match event {
        AgentEvent::Occupant { nick, available: false, .. } if nick == "b.test" => Some(()),
        _ => None,
    })
    .await;
}

#[tokio::test]
async fn a_peer_server_with_a_certificate_of_another_ca_is_refused() {
    let (ours, theirs) = (Ca::new("ours").unwrap(), Ca::new("theirs").unwrap());
    let world = World::start_with(&["a.test", "b.test"], &[&ours, &theirs]).await;
    let (a, b) = (world.agent(0, "cm").await, world.agent(1, "cm").await);
    for (from, to) in [(&a, &b), (&b, &a)] {
        let answer = from.agent.iq_set(to.jid.clone().into(), payload("let me in"), PATIENCE).await;
        assert!(matches!(answer, Err(IqFailure::Remote(_))), "{answer:?}");
    }
}

#[tokio::test]
async fn strangers_enter_no_room_and_make_none() {
    let world = World::start(&["a.test", "b.test"]).await;
    let mut stranger = world.agent(1, "client").await;
    for (room, why) in [
        ("shell", "registration-required"),
        ("cluster", "registration-required"),
        ("federation", "registration-required"),
        ("party", "not-allowed"),
    ] {
        stranger.agent.join(&world.room(0, room), "me", None).await.unwrap();
        assert_eq!(stranger.not_joined().await, why, "{room}");
        stranger.agent.leave(&world.room(0, room)).await.unwrap();
    }
}

#[tokio::test]
async fn the_manager_owns_a_room_that_somebody_else_entered_first() {
    let world = World::start(&["a.test"]).await;
    let room = world.room(0, "cluster");
    let mut hm = world.agent(0, "hm").await;
    hm.join(&room, "hm", "host").await;
    let mut cm = world.agent(0, "cm").await;
    cm.agent.join(&room, "active", Some(payload("manager"))).await.unwrap();
    let rank = |nick: &'static str| {
        move |event| match event {
            AgentEvent::Occupant { nick: seen, role, affiliation, .. } if seen == nick => Some((role, affiliation)),
            _ => None,
        }
    };
    assert_eq!(cm.wait(rank("active")).await, ("moderator".into(), "owner".into()));
    hm.sees("manager").await;
    cm.agent.room_config(&room, &[("muc#roomconfig_roomname", "Cluster")]).await.unwrap();
    let refused = hm.agent.room_config(&room, &[("muc#roomconfig_membersonly", "1")]).await;
    assert!(matches!(refused, Err(IqFailure::Remote(_))), "the first comer is no owner: {refused:?}");

    // Host managers are not shown to each other; they announce themselves to the manager alone.
    hm.agent.directed_presence(cm.jid.clone(), Some(payload("4 slots")), true).await.unwrap();
    let from = cm
        .wait(|event| match event {
            AgentEvent::DirectedPresence { from, available: true, payloads } if has_payload(&payloads, "4 slots") => {
                Some(from)
            }
            AgentEvent::Occupant { nick, .. } if nick == "hm" => panic!("broadcast"),
            _ => None,
        })
        .await;
    assert_eq!(from, Jid::from(hm.jid));
}

#[tokio::test]
async fn a_payload_that_changes_while_its_owner_joins_is_seen() {
    let (world, room, mut cm) = shell().await;
    let client = world.agent(0, "client").await;
    client.agent.join(&room, "client", Some(payload("old"))).await.unwrap();
    client.agent.update_presence(&room, payload("new")).await.unwrap();
    cm.sees("new").await;
}

#[tokio::test]
async fn a_nickname_is_a_lock_between_accounts() {
    let world = World::start(&["a.test"]).await;
    let room = world.room(0, "cluster");
    let mut first = world.agent(0, "cm").await;
    first.join(&room, "active", "1").await;
    let mut second = world.agent(0, "hm").await;
    second.agent.join(&room, "active", Some(payload("2"))).await.unwrap();
    assert_eq!(second.not_joined().await, "conflict");
    first.agent.close().await;
    second.joined(&room).await;
}

#[tokio::test]
async fn agents_come_back_after_their_server_was_killed() {
    let (mut world, room, mut cm) = shell().await;
    cm.agent.update_presence(&room, payload("2")).await.unwrap();
    let mut client = world.agent(0, "client").await;
    client.join(&room, "client", "guest").await;

    let unanswered = client.agent.clone();
    let to = Jid::from(cm.jid.clone());
    let lost = tokio::spawn(async move { unanswered.iq_set(to, payload("lost"), PATIENCE).await });
    let request = cm.wait(|event| if let AgentEvent::Request { reply, .. } = event { Some(reply) } else { None }).await;
    world.servers[0].kill9().await.unwrap();
    cm.wait(|event| matches!(event, AgentEvent::Offline).then_some(())).await;
    world.servers[0].restart().await.unwrap();

    assert!(matches!(lost.await.unwrap(), Err(IqFailure::Reset)));
    drop(request);
    cm.joined(&room).await;
    client.joined(&room).await;
    // Whoever of the two came first, both payloads are there again.
    client.agent.update_presence(&room, payload("guest 2")).await.unwrap();
    cm.sees("guest 2").await;
    cm.agent.update_presence(&room, payload("3")).await.unwrap();
    client.sees("3").await;
    let (answer, ()) = tokio::join!(client.agent.iq_set(cm.jid.clone().into(), payload("echo"), PATIENCE), cm.echo());
    assert_eq!(answer.unwrap(), Some(payload("echo")));
}

/// Passes bytes on until it is told to cut all connections it has.
async fn proxy(to: SocketAddr) -> (SocketAddr, watch::Sender<u32>) {
    let listener = TcpListener::bind((to.ip(), 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (cut, cuts) = watch::channel(0);
    tokio::spawn(async move {
        while let Ok((mut inside, _)) = listener.accept().await {
            let mut cuts = cuts.clone();
            cuts.borrow_and_update();
            tokio::spawn(async move {
                let mut outside = TcpStream::connect(to).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut inside, &mut outside) => {}
                    _ = cuts.changed() => {}
                }
            });
        }
    });
    (address, cut)
}

#[tokio::test]
async fn a_cut_link_is_resumed_and_nothing_is_lost() {
    let (world, room, mut cm) = shell().await;
    let (address, cut) = proxy(world.servers[0].c2s()).await;
    let mut config = world.config(0, "client");
    config.address = address.to_string();
    let mut client = Client::online(&config).await;
    client.join(&room, "client", "guest").await;

    cut.send_replace(1);
    client.wait(|event| matches!(event, AgentEvent::Offline).then_some(())).await;
    for n in 0..10 {
        cm.agent.message(&n.to_string(), client.jid.clone().into(), None, Some(payload(&n.to_string()))).await.unwrap();
        client.agent.groupchat(&room, payload(&n.to_string())).await.unwrap();
    }
    let online = client.wait(|event| match event {
        AgentEvent::Online { fresh, .. } => Some(fresh),
        _ => None,
    });
    assert!(!online.await, "resumed");
    for reader in [&mut client, &mut cm] {
        for n in 0..10 {
            let mine = reader.jid.clone();
            let text = reader
                .wait(|event| match event {
                    AgentEvent::Message { from, room, payloads, .. }
                        if room.is_none() || mine.node() == Some(jid_cm().node().unwrap()) =>
                    {
                        let _ = from;
                        payloads.iter().find(|p| p.name() == "thing").map(Element::text)
                    }
                    _ => None,
                })
                .await;
            assert_eq!(text, n.to_string());
        }
    }
}

fn jid_cm() -> BareJid {
    BareJid::new("cm@a.test").unwrap()
}

#[tokio::test]
async fn an_oversized_stanza_is_refused_here_and_the_link_stays() {
    let (_world, room, mut cm) = shell().await;
    let big = payload(&"x".repeat(200_000));
    let answer = cm.agent.iq_set(cm.jid.clone().into(), big.clone(), PATIENCE).await;
    assert!(matches!(answer, Err(IqFailure::TooLarge { bytes }) if bytes > 200_000), "{answer:?}");
    assert!(cm.agent.groupchat(&room, big).await.is_err());
    // Just below the limit it passes, through the server and back.
    let to = Jid::from(cm.jid.clone());
    let agent = cm.agent.clone();
    let almost = payload(&"x".repeat(199_000));
    let (answer, ()) = tokio::join!(agent.iq_set(to, almost.clone(), PATIENCE), cm.echo());
    assert_eq!(answer.unwrap().unwrap().text(), almost.text());
}

#[tokio::test]
async fn unknown_requests_are_answered_with_an_error_and_common_ones_with_a_result() {
    let world = World::start(&["a.test"]).await;
    let mut cm = world.agent(0, "cm").await;
    let client = world.agent(0, "client").await;
    let to = Jid::from(cm.jid.clone());
    for query in [
        Element::builder("ping", "urn:xmpp:ping").build(),
        Element::builder("query", "jabber:iq:version").build(),
        Element::builder("query", "http://jabber.org/protocol/disco#info").build(),
    ] {
        client.agent.iq_get(to.clone(), query, PATIENCE).await.unwrap();
    }
    let ignore = cm.wait(|event| matches!(event, AgentEvent::Request { .. }).then_some(()));
    let (answer, ()) = tokio::join!(client.agent.iq_get(to, payload("?"), PATIENCE), ignore);
    assert!(matches!(answer, Err(IqFailure::Remote(_))), "{answer:?}");
}

fn asset(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("assets/clients").join(name)
}

fn checked(output: Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}\n{text}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    text
}

/// Files for a client of others: the job and the password.
fn files(world: &World) -> (PathBuf, PathBuf) {
    let dir = &world.servers[0].config().dir;
    let (job, secret) = (dir.join("job.xml"), dir.join("secret"));
    std::fs::write(&job, "<thing xmlns='urn:test'>from outside</thing>").unwrap();
    std::fs::write(&secret, password("client")).unwrap();
    (job, secret)
}

async fn heard(cm: &mut Client) -> (Option<String>, Vec<Element>, Jid) {
    cm.wait(|event| match event {
        AgentEvent::Message { from, kind: MessageKind::Groupchat, body, payloads, .. }
            // The room tells us what we say ourselves, too.
            if !from.to_string().ends_with("/cm") && (body.is_some() || has_payload(&payloads, "from outside")) =>
        {
            Some((body, payloads, from))
        }
        _ => None,
    })
    .await
}

#[tokio::test]
async fn slixmpp_posts_a_payload_and_a_text_and_reads_the_answer() {
    let (world, room, mut cm) = shell().await;
    let (job, secret) = files(&world);
    let venv = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/slixmpp/bin/python3");
    for how in ["--payload", "--text"] {
        let child = Command::new(&venv)
            .arg(asset("post_job.py"))
            .args(["--jid", "client@a.test", "--password-file"])
            .arg(&secret)
            .args(["--server", &world.servers[0].c2s().to_string(), "--ca"])
            .arg(world.servers[0].ca_file())
            .args(["--room", room.as_str(), "--job"])
            .arg(&job)
            .args([how, "--wait", "30", "--until", "accepted"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("slixmpp's environment: make setup");
        let (body, payloads, _) = heard(&mut cm).await;
        match how {
            "--payload" => assert!(has_payload(&payloads, "from outside"), "{payloads:?}"),
            _ => assert!(body.unwrap().contains("from outside")),
        }
        cm.agent.say(&room, "accepted: j1").await.unwrap();
        let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap();
        assert!(checked(output).contains("accepted: j1"));
    }
}

#[tokio::test]
async fn go_sendxmpp_posts_a_text() {
    let (world, room, mut cm) = shell().await;
    let (job, _) = files(&world);
    let server = &world.servers[0];
    let mut send = testbed::prosody::go_sendxmpp("client@a.test", &password("client"), server.c2s(), &server.ca_file());
    let output = send.arg("--chatroom").arg("--message").arg(&job).arg(room.as_str()).output();
    let output = tokio::time::timeout(PATIENCE, output).await.unwrap().unwrap();
    checked(output);
    let (body, _, from) = heard(&mut cm).await;
    assert!(body.unwrap().contains("from outside"), "{from}");
}
