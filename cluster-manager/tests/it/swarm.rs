//! A swarm on loopback addresses: ours, ordinary clients, and hostile ones.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use cluster_manager::swarm::source::Source;
use cluster_manager::swarm::{self, Rate, ServeArgs, Served};
use cluster_manager::view::NodeDoc;
use storage::overlay::announce::PeerReport;
use storage::overlay::client::{Controller, Member, Stopped};
use storage::overlay::lease::LeaseAsk;
use storage::overlay::metainfo::Metainfo;
use storage::overlay::peer::{Config, Peer, Place, Progress};
use storage::overlay::policy::Mode;
use storage::overlay::store::Store;
use storage::overlay::wire::{self, Handshake, Hello, Message, Ours};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const LIMIT: Duration = Duration::from_secs(90);

/// A child that ends with the test, whatever its outcome.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn bytes(len: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(len)
    .collect()
}

async fn serve(dir: &Path, data: &[u8], rate: Option<u64>) -> Served {
    std::fs::write(dir.join("set.bin"), data).unwrap();
    let args = ServeArgs { rate: Rate(rate), token: Some("secret".into()), ..args(dir) };
    swarm::open(&args, &Default::default()).await.unwrap()
}

fn args(dir: &Path) -> ServeArgs {
    ServeArgs { cache: Some(dir.join("cache")), ..ServeArgs::on_loopback(Source::Local(dir.join("set.bin"))) }
}

/// One of our nodes, announcing for as long as it lives.
struct Node {
    peer: Arc<Peer>,
    meta: Arc<Metainfo>,
    dir: PathBuf,
    following: tokio::task::JoinHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.following.abort();
    }
}

impl Node {
    async fn join(served: &Served, dir: &Path, ip: &str, id: u64) -> Self {
        let ip: IpAddr = ip.parse().unwrap();
        let controller = Controller::new(&served.url, ip).unwrap();
        let meta = Arc::new(controller.metainfo().await.unwrap());
        let dir = dir.join(id.to_string());
        std::fs::create_dir_all(&dir).unwrap();
        let (store, have) = Store::open(&dir, &meta).unwrap();
        let listen = SocketAddr::new(ip, 0);
        let config = Config::new(listen, id);
        let peer = Peer::start(meta.clone(), vec![], Place::Filling(store, have), config, None).await.unwrap();
        let peer = Arc::new(peer);
        let (follower, followed) = (peer.clone(), meta.clone());
        let member = Member { node: id, ..Member::default() };
        let following = tokio::spawn(async move { drop(controller.follow(&follower, &followed, &member).await) });
        Self { peer, meta, dir, following }
    }

    async fn until(&self, what: &str, fits: impl Fn(&Progress) -> bool) -> Progress {
        let mut watch = self.peer.watch();
        let reached = tokio::time::timeout(LIMIT, watch.wait_for(|p| fits(p))).await;
        reached.unwrap_or_else(|_| panic!("never {what}: {:?}", self.peer.progress())).unwrap().clone()
    }

    async fn whole(&self, data: &[u8]) -> Progress {
        let progress = self.until("whole", |p| p.done.is_some()).await;
        assert!(std::fs::read(self.dir.join("set.bin")).unwrap() == data, "bytes differ");
        progress
    }

    /// Stops it as a killed process would be missed, except that the state on disk is flushed.
    async fn stop(self) {
        self.following.abort();
        while Arc::strong_count(&self.peer) > 1 {
            tokio::task::yield_now().await;
        }
        let peer = self.peer.clone();
        drop(self);
        Arc::into_inner(peer).unwrap().stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_byte_leaves_the_origin_once_and_all_nodes_end_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let data = bytes(6_000_000);
    let served = serve(dir.path(), &data, None).await;
    let mut nodes = Vec::new();
    for i in 1..=6 {
        nodes.push(Node::join(&served, dir.path(), &format!("127.0.1.{i}"), i).await);
    }
    let mut from_origin = 0;
    for node in &nodes {
        let progress = node.whole(&data).await;
        assert_eq!(progress.from_origin + progress.from_peers, 6_000_000, "{progress:?}");
        from_origin += progress.from_origin;
    }
    assert_eq!((from_origin, served.given()), (6_000_000, 6_000_000));
    // Each says so with its next announce.
    let told = || served.controller.nodes();
    let sum = |of: fn(&NodeDoc) -> u64| told().iter().map(of).sum::<u64>();
    let all = async {
        while sum(|node| node.bytes) < 36_000_000 || told().iter().any(|node| node.state != "whole") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(LIMIT, all).await.is_ok(), "{:?}", told());
    assert_eq!((told().len(), sum(|node| node.from_origin)), (6, 6_000_000));
    assert!(told().iter().all(|node| node.sources > 0 && node.address.is_some()), "{:?}", told());
}

#[test]
fn what_of_a_directory_is_not_served_is_said_once() {
    let dir = tempfile::tempdir().unwrap();
    let set = dir.path().join("set");
    std::fs::create_dir_all(set.join("b/empty")).unwrap();
    std::fs::write(set.join("a"), bytes(100_000)).unwrap();
    std::os::unix::fs::symlink("a", set.join("b/link")).unwrap();
    let mut starling = Command::new(env!("CARGO_BIN_EXE_starling"));
    starling.args(["load", "set", "--to", "1", "--dir", "nodes", "--cache", "cache"]).current_dir(&dir);
    let output = starling.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        said.matches("left out are 2 links, empty directories and the like, first b/empty\n").count(),
        1,
        "{said}"
    );
    assert!(output.status.success() && dir.path().join("nodes/0/set/a").exists(), "{said}");
}

#[test]
fn a_load_tells_a_person_of_each_node_what_it_holds_and_from_where() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("set.bin"), bytes(1_000_000)).unwrap();
    let load = || {
        let mut starling = Command::new(env!("CARGO_BIN_EXE_starling"));
        starling.args(["load", "set.bin", "--to", "2", "--dir", "nodes", "--cache", "cache"]).current_dir(&dir);
        String::from_utf8(starling.output().unwrap().stdout).unwrap()
    };
    let rows = |said: String| -> Vec<Vec<String>> {
        said.lines().skip(1).take(2).map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
    };
    let mut from_origin = 0;
    for (number, row) in rows(load()).iter().enumerate() {
        assert_eq!((&row[0], &row[1], &row[3]), (&number.to_string(), &"whole".into(), &"1000000".into()), "{row:?}");
        let count = |column: usize| row[column].parse::<u64>().unwrap();
        assert_eq!(count(4) + count(5), 1_000_000, "{row:?}");
        from_origin += count(5);
    }
    assert_eq!(from_origin, 1_000_000);
    for row in rows(load()) {
        assert_eq!(row[1..].join(" "), "there before 0.0 1000000 0 0 0");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_changes_while_it_is_loaded_ends_the_load_with_that_reason() {
    let dir = tempfile::tempdir().unwrap();
    // So slow that most of it is still to come.
    let served = serve(dir.path(), &bytes(6_000_000), Some(200_000)).await;
    let node = Node::join(&served, dir.path(), "127.0.1.1", 1).await;
    node.until("begun", |p| p.groups_held > 0).await;
    std::fs::write(dir.path().join("set.bin"), bytes(6_000_001)).unwrap();
    let controller = Controller::new(&served.url, [127, 0, 1, 1].into()).unwrap();
    let member = Member { node: 1, ..Member::default() };
    let told = tokio::time::timeout(LIMIT, controller.follow(&node.peer, &node.meta, &member)).await;
    let Stopped(why) = told.expect("it is told");
    assert!(why.starts_with("origin-changed: "), "{why}");
    assert!(!node.dir.join("set.bin").exists(), "no final name");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_controller_was_started_anew_with_another_token_ends_with_that_reason() {
    let dir = tempfile::tempdir().unwrap();
    let served = serve(dir.path(), &bytes(300_000), None).await;
    let controller = Controller::new(&served.url, [127, 0, 1, 1].into()).unwrap();
    let mut old = controller.metainfo().await.unwrap();
    old.token = "another".into();
    let old = Arc::new(old);
    let (store, have) = Store::open(&dir.path().join("1"), &old).unwrap();
    let config = Config::new("127.0.1.1:0".parse().unwrap(), 1);
    let peer = Peer::start(old.clone(), vec![], Place::Filling(store, have), config, None).await.unwrap();
    let member = Member { node: 1, ..Member::default() };
    let told = tokio::time::timeout(LIMIT, controller.follow(&peer, &old, &member)).await;
    let Stopped(why) = told.expect("it is told");
    assert!(why.starts_with("swarm-replaced: "), "{why}");
}

/// Runs a script that may say `$GET DIR OPTION...` in a mount namespace that ends with it; what it prints and its exit code.
async fn get_with_mounts(served: &Served, dir: &Path, script: &str) -> (String, Option<i32>) {
    let get =
        format!("{} swarm get {} --listen 127.0.0.1:0 --seed-for 0s --dir", env!("CARGO_BIN_EXE_starling"), served.url);
    let mut shell = tokio::process::Command::new("unshare");
    shell.args(["--mount", "sh", "-c", script]).current_dir(dir).env("GET", get).kill_on_drop(true);
    let output = tokio::time::timeout(LIMIT, shell.output()).await.expect("it ends").unwrap();
    (String::from_utf8(output.stderr).unwrap(), output.status.code())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_ends_a_node_with_its_code_and_the_next_run_goes_on_to_the_right_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let served = serve(dir.path(), &bytes(6_000_000), None).await;
    let full = "mkdir d && mount -t tmpfs -o size=3m none d && $GET d --rate none";
    let (said, code) = get_with_mounts(&served, dir.path(), full).await;
    assert!(code == Some(4) && said.contains("disk-full: ") && said.contains("free space"), "{code:?} {said}");
    let marked = |served: &Served| Vec::from_iter(served.controller.status().failed.into_values().map(|node| node.why));
    assert!(matches!(&marked(&served)[..], [why] if why.starts_with("disk-full: ")), "{:?}", marked(&served));
    // The disk of the data is full, that of the state is not; a final name would have to cross from one to the other.
    let again = "s=d/.set.bin.starling; $GET d --rate 500kB & \
                 until [ -e $s/have ]; do sleep 0.1; done; kill -9 $!; wait $!; \
                 mkdir t && mount -t tmpfs -o size=4m none t && cp --sparse=always $s/data/set.bin t && \
                 mount --bind t $s/data && ! $GET d --rate none && \
                 mount -o remount,size=64m t && ! $GET d --rate none && cmp t/set.bin set.bin";
    let (said, code) = get_with_mounts(&served, dir.path(), again).await;
    assert!(code == Some(0) && said.contains("disk-full: ") && said.contains("final name"), "{code:?} {said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_is_closed_or_vanishes_ends_a_node_with_its_code() {
    let dir = tempfile::tempdir().unwrap();
    let served = serve(dir.path(), &bytes(6_000_000), None).await;
    let closed = "mkdir d && mount -t tmpfs -o ro none d && $GET d --rate none";
    let (said, code) = get_with_mounts(&served, dir.path(), closed).await;
    assert!(code == Some(4) && said.contains("permission-denied: ") && said.contains("make the directory"), "{said}");
    // So slow that most of it is still to come.
    let vanishes = "mkdir v && $GET v --rate 1MB & \
                    until [ -e v/.set.bin.starling/data/set.bin ]; do sleep 0.05; done && rm -r v && wait $!";
    let (said, code) = get_with_mounts(&served, dir.path(), vanishes).await;
    assert!(code == Some(4) && said.contains("directory-vanished: "), "{code:?} {said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_node_fetches_only_what_it_lacks() {
    let dir = tempfile::tempdir().unwrap();
    let data = bytes(4_000_000);
    let served = serve(dir.path(), &data, Some(2_000_000)).await;
    let node = Node::join(&served, dir.path(), "127.0.2.1", 1).await;
    let before = node.until("a third held", |p| p.groups_held > p.groups / 3).await;
    node.stop().await;
    assert!(!dir.path().join("1/set.bin").exists(), "a final name before the end");
    let again = Node::join(&served, dir.path(), "127.0.2.1", 1).await;
    let after = again.whole(&data).await;
    let fetched = after.from_origin + after.from_peers;
    assert!(fetched + before.bytes_held <= 4_000_000 + 65_536, "{before:?} {after:?}");
}

/// Accepts as a full peer with the right token, and answers each request, a byte a second.
async fn dribble(meta: Arc<Metainfo>, listener: TcpListener, node: u64) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let slow = async {
            greet(&meta, &mut stream, &meta.token, node).await?;
            let mut out = bytes::BytesMut::new();
            wire::encode(&Message::Ours(Ours::Have((0..meta.layout.groups()).collect())), &mut out);
            stream.write_all(&out).await?;
            out.clear();
            wire::encode(&Message::Ours(Ours::Data { group: 0, data: vec![7; 65_536].into() }), &mut out);
            for byte in out.chunks(1) {
                stream.write_all(byte).await?;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            std::io::Result::Ok(())
        };
        let _ = slow.await;
    }
}

/// Accepts as a full peer with the right token, and answers requests as `answer` says.
async fn hostile(meta: Arc<Metainfo>, listener: TcpListener, node: u64, answer: impl Fn(u32) -> Option<Vec<u8>>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let _ = lie(&meta, stream, node, &answer).await;
    }
}

async fn greet(meta: &Metainfo, stream: &mut TcpStream, token: &str, node: u64) -> std::io::Result<()> {
    let mut peer_id = *b"-ST0100-xxxxxxxxxxxx";
    peer_id[8..16].copy_from_slice(&node.to_be_bytes());
    stream.write_all(&Handshake { info_hash: meta.info_hash, peer_id, extended: true }.encode()).await?;
    let mut raw = [0; wire::HANDSHAKE_LEN];
    stream.read_exact(&mut raw).await?;
    let mut out = bytes::BytesMut::new();
    let hello = Hello { ours: true, token: token.into(), node, port: stream.local_addr()?.port(), origin: false };
    wire::encode(&Message::Hello(hello), &mut out);
    stream.write_all(&out).await
}

async fn lie(
    meta: &Metainfo,
    mut stream: TcpStream,
    node: u64,
    answer: &impl Fn(u32) -> Option<Vec<u8>>,
) -> std::io::Result<()> {
    greet(meta, &mut stream, &meta.token, node).await?;
    let mut out = bytes::BytesMut::new();
    wire::encode(&Message::Ours(Ours::Have((0..meta.layout.groups()).collect())), &mut out);
    stream.write_all(&out).await?;
    let mut buffer = bytes::BytesMut::new();
    loop {
        while let Ok(Some(message)) = wire::decode(&mut buffer) {
            if let Message::Ours(Ours::Request { group }) = message
                && let Some(data) = answer(group)
            {
                out.clear();
                wire::encode(&Message::Ours(Ours::Data { group, data: data.into() }), &mut out);
                stream.write_all(&out).await?;
            }
        }
        if stream.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_bytes_are_blamed_on_their_sender_and_silence_harms_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let data = bytes(3_000_000);
    // Slow enough that the liars are asked.
    let served = serve(dir.path(), &data, Some(1_500_000)).await;
    let node = Node::join(&served, dir.path(), "127.0.3.1", 1).await;
    node.until("some held", |p| p.groups_held > 2).await;
    let wrong = TcpListener::bind("127.0.3.66:0").await.unwrap();
    let silent = TcpListener::bind("127.0.3.67:0").await.unwrap();
    let slow = TcpListener::bind("127.0.3.68:0").await.unwrap();
    let liars = [&wrong, &silent, &slow].map(|liar| liar.local_addr().unwrap());
    let first = tokio::spawn(hostile(node.meta.clone(), wrong, 66, |_| Some(vec![7; 65_536])));
    let second = tokio::spawn(hostile(node.meta.clone(), silent, 67, |_| None));
    let third = tokio::spawn(dribble(node.meta.clone(), slow, 68));
    node.peer.know(&liars, None, []);
    node.until("blamed", |p| p.blamed == [liars[0]]).await;
    node.whole(&data).await;
    [first, second, third].iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_ask_and_do_not_read_keep_nobody_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let data = bytes(6_000_000);
    let served = serve(dir.path(), &data, None).await;
    let giver = Node::join(&served, dir.path(), "127.0.19.1", 1).await;
    giver.whole(&data).await;
    let mut deaf = Vec::new();
    for node in 10..20 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(giver.peer.address).await.unwrap();
        greet(&giver.meta, &mut stream, &giver.meta.token, node).await.unwrap();
        let mut out = bytes::BytesMut::new();
        (0..giver.meta.layout.groups())
            .for_each(|group| wire::encode(&Message::Ours(Ours::Request { group }), &mut out));
        stream.write_all(&out).await.unwrap();
        deaf.push(stream);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    // From its neighbour alone: nothing is leased any more.
    let node = Node::join(&served, dir.path(), "127.0.19.2", 2).await;
    tokio::time::timeout(Duration::from_secs(30), node.whole(&data)).await.expect("slots are not held for ever");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_floods_and_oversized_messages_are_cut_off_while_the_load_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let data = bytes(3_000_000);
    let served = serve(dir.path(), &data, Some(3_000_000)).await;
    let node = Node::join(&served, dir.path(), "127.0.4.1", 1).await;
    node.until("some held", |p| p.groups_held > 2).await;
    let meta = node.meta.clone();
    let ends = async |stream: &mut TcpStream| {
        let mut sink = vec![0; 1 << 16];
        tokio::time::timeout(LIMIT, async { while !matches!(stream.read(&mut sink).await, Ok(0) | Err(_)) {} })
            .await
            .unwrap();
    };
    let dial = || TcpStream::connect(node.peer.address);
    // Another swarm's hash; another swarm's token; an ordinary client that nobody announced.
    let mut stream = dial().await.unwrap();
    stream.write_all(&Handshake { info_hash: [9; 20], peer_id: [1; 20], extended: false }.encode()).await.unwrap();
    ends(&mut stream).await;
    let mut stream = dial().await.unwrap();
    greet(&meta, &mut stream, "another", 5).await.unwrap();
    ends(&mut stream).await;
    let mut stream = dial().await.unwrap();
    stream
        .write_all(&Handshake { info_hash: meta.info_hash, peer_id: [1; 20], extended: false }.encode())
        .await
        .unwrap();
    ends(&mut stream).await;
    // A member that announces a message of 2 GB, and one that leases as if it were the origin.
    for bad in [&[0x80, 0, 0, 0, 20, 1][..], &[0, 0, 0, 11, 20, 1, 4, 0, 0, 0, 0, 0, 0, 0, 9]] {
        let mut stream = dial().await.unwrap();
        greet(&meta, &mut stream, &meta.token, 7).await.unwrap();
        stream.write_all(bad).await.unwrap();
        ends(&mut stream).await;
    }
    // Ten thousand requests, unread answers.
    let mut stream = dial().await.unwrap();
    greet(&meta, &mut stream, &meta.token, 8).await.unwrap();
    let mut out = bytes::BytesMut::new();
    (0..10_000).for_each(|i| wire::encode(&Message::Ours(Ours::Request { group: i % 40 }), &mut out));
    let _ = stream.write_all(&out).await;
    node.whole(&data).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_token_and_a_forged_report_are_refused_by_the_controller() {
    let dir = tempfile::tempdir().unwrap();
    let served = serve(dir.path(), &bytes(300_000), None).await;
    let controller = Controller::new(&served.url, "127.0.5.1".parse().unwrap()).unwrap();
    let meta = controller.metainfo().await.unwrap();
    let good =
        format!(r#"{{"info_hash":"{}","token":"secret","node":1,"port":9}}"#, storage::hex::hex(&meta.info_hash));
    let parse = |text: &str| serde_json::from_str(text).unwrap();
    assert_eq!(controller.announce(&parse(&good)).await.unwrap().role, "relay");
    for (from, to) in
        [("secret", "other"), (r#""port":9"#, r#""port":0"#), (r#""port":9"#, r#""port":9,"have":"ffffffff""#)]
    {
        let refused = controller.announce(&parse(&good.replace(from, to))).await.unwrap_err();
        assert_eq!(refused.code(), "controller-refused", "{to}");
    }
    // Nobody says goodbye for another, nor that another has failed.
    let stranger = Controller::new(&served.url, "127.0.5.2".parse().unwrap()).unwrap();
    for said in [r#""stopped":true"#, r#""failed":"disk-full: not at all""#] {
        let forged = good.replace(r#""port":9"#, &format!(r#""port":9,{said}"#));
        assert_eq!(stranger.announce(&parse(&forged)).await.unwrap_err().code(), "controller-refused", "{said}");
    }
    assert!(served.controller.status().relays == 1 && served.controller.status().failed.is_empty());
    // Nor what became of another's lease; where the origin is a peer, a node by itself is told that there are none.
    let ask = LeaseAsk {
        info_hash: storage::hex::hex(&meta.info_hash),
        token: meta.token,
        node: 1,
        last: None,
        more: true,
        wait_ms: 0,
    };
    for (asks, code) in [(&stranger, "announce-malformed"), (&controller, "announce-unknown-swarm")] {
        let refused = asks.lease(&ask).await.unwrap_err().to_string();
        assert!(refused.contains(code), "{refused}");
    }
}

/// An ordinary client's announce from an address, and the answer.
async fn announced(url: &str, meta: &Metainfo, from: &str, more: &str) -> Vec<u8> {
    let http = storage::fetch::http().local_address(Some(from.parse().unwrap())).build().unwrap();
    let hash: String = meta.info_hash.iter().map(|byte| format!("%{byte:02x}")).collect();
    let (base, token) = (url.rsplit_once('/').unwrap().0, &meta.token);
    let url = format!("{base}/announce?info_hash={hash}&peer_id=-AR2450-aaaaaaaaaaaa&port=9&token={token}{more}");
    http.get(url).send().await.unwrap().bytes().await.unwrap().into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ordinary_client_is_not_sent_away_from_another_address() {
    let dir = tempfile::tempdir().unwrap();
    let served = serve(dir.path(), &bytes(300_000), None).await;
    let meta = Controller::new(&served.url, "127.0.5.1".parse().unwrap()).unwrap().metainfo().await.unwrap();
    announced(&served.url, &meta, "127.0.5.1", "").await;
    for (from, relays) in [("127.0.5.2", 1), ("127.0.5.1", 0)] {
        announced(&served.url, &meta, from, "&event=stopped").await;
        assert_eq!(served.controller.status().relays, relays, "{from}");
    }
}

fn report(meta: &Metainfo, node: u64) -> PeerReport {
    let (hash, token) = (storage::hex::hex(&meta.info_hash), &meta.token);
    serde_json::from_str(&format!(r#"{{"info_hash":"{hash}","token":"{token}","node":{node},"port":9}}"#)).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_on_all_addresses_is_named_to_all_by_one_that_they_can_reach() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("set.bin"), bytes(300_000)).unwrap();
    let listen = "0.0.0.0:0".parse().unwrap();
    let args = ServeArgs { listen, mode: Mode::Plain, ..args(dir.path()) };
    let served = swarm::open(&args, &Default::default()).await.unwrap();
    assert!(!served.url.contains("0.0.0.0"), "{} leads nowhere from another machine", served.url);
    let port = served.origin.as_ref().unwrap().address.port();
    let rest = served.url.rsplit_once(':').unwrap().1;
    for host in ["127.0.0.1", "localhost"] {
        let url = format!("http://{host}:{rest}");
        let controller = Controller::new(&url, "127.0.5.1".parse().unwrap()).unwrap();
        let meta = controller.metainfo().await.unwrap();
        let answer = announced(&url, &meta, "127.0.5.2", "").await;
        let compact = [&[127, 0, 0, 1][..], &port.to_be_bytes()].concat();
        assert!(answer.windows(6).any(|peer| peer == compact), "{host}: {answer:?}");
        let orders = controller.announce(&report(&meta, 1)).await.unwrap();
        assert_eq!(orders.origin, Some(SocketAddr::from(([127, 0, 0, 1], port))), "{host}");
    }
}

fn quiet(command: &mut Command) -> Ended {
    Ended(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

/// The torrent as ordinary clients take it.
async fn torrent(served: &Served, dir: &Path) -> PathBuf {
    torrent_at(&served.url, dir).await
}

async fn torrent_at(url: &str, dir: &Path) -> PathBuf {
    let torrent = dir.join(format!("{}.torrent", url.rsplit_once('/').unwrap().1));
    let answer = storage::fetch::http().build().unwrap().get(url).send().await.unwrap();
    assert!(answer.status().is_success(), "{url}");
    std::fs::write(&torrent, answer.bytes().await.unwrap()).unwrap();
    torrent
}

fn aria2(torrent: &Path, dir: &Path) -> Ended {
    let mut command = Command::new("aria2c");
    command.args(["--no-conf", "--enable-dht=false", "--enable-dht6=false", "--bt-enable-lpd=false", "--seed-time=60"]);
    command.args(["--interface=127.0.6.2", "--disable-ipv6=true", "--file-allocation=none", "--dir"]);
    quiet(command.args([dir, torrent]))
}

const LIBTORRENT: &str = "import libtorrent as lt, sys, time
s = lt.session({'listen_interfaces': '127.0.6.3:0', 'outgoing_interfaces': '127.0.6.3', 'enable_dht': False, 'enable_lsd': False,
  'enable_upnp': False, 'enable_natpmp': False, 'allow_multiple_connections_per_ip': True, 'min_announce_interval': 2})
h = [s.add_torrent({'ti': lt.torrent_info(torrent), 'save_path': sys.argv[1]}) for torrent in sys.argv[2:]]
time.sleep(120)";

fn libtorrent(torrents: &[&Path], dir: &Path) -> Ended {
    quiet(Command::new("/usr/bin/python3").args(["-c", LIBTORRENT]).arg(dir).args(torrents))
}

/// Waits until another client's file is whole.
async fn others_whole(dir: &Path, data: &[u8], served: &Served) {
    file_whole(&dir.join("set.bin"), data, served).await;
}

async fn file_whole(file: &Path, data: &[u8], served: &Served) {
    let whole = async {
        while !std::fs::read(file).is_ok_and(|found| found == data) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let done = tokio::time::timeout(LIMIT, whole).await;
    assert!(done.is_ok(), "{} never whole: {:?}", file.display(), served.controller.status());
}

/// All leases went to others, and with them the hashes that they do not know of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_ours_that_comes_when_an_ordinary_client_has_had_all_leases_gets_it_from_there() {
    let dir = tempfile::tempdir().unwrap();
    let data = bytes(9_000_000);
    let served = serve(dir.path(), &data, None).await;
    let place = dir.path().join("aria2");
    std::fs::create_dir_all(&place).unwrap();
    let _aria2 = aria2(&torrent(&served, dir.path()).await, &place);
    others_whole(&place, &data, &served).await;
    Node::join(&served, dir.path(), "127.0.6.11", 11).await.whole(&data).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aria2_libtorrent_transmission_and_ours_complete_in_one_swarm() {
    let dir = tempfile::tempdir().unwrap();
    let data = bytes(5_000_000);
    let served = serve(dir.path(), &data, Some(4_000_000)).await;
    let torrent = torrent(&served, dir.path()).await;
    let place = |name: &str| {
        let place = dir.path().join(name);
        std::fs::create_dir_all(&place).unwrap();
        place
    };
    let aria2_dir = place("aria2");
    let _aria2 = aria2(&torrent, &aria2_dir);
    let libtorrent_dir = place("libtorrent");
    let _libtorrent = libtorrent(&[&torrent], &libtorrent_dir);
    let transmission = place("transmission");
    let settings = r#"{"bind-address-ipv4": "127.0.6.4", "dht-enabled": false, "lpd-enabled": false, "pex-enabled": false,
        "port-forwarding-enabled": false, "utp-enabled": false, "peer-port-random-on-start": true, "rpc-enabled": false}"#;
    std::fs::write(transmission.join("settings.json"), settings).unwrap();
    let _transmission =
        quiet(Command::new("transmission-cli").arg("-g").arg(&transmission).arg("-w").arg(&transmission).arg(&torrent));
    let ours = [
        Node::join(&served, dir.path(), "127.0.6.11", 11).await,
        Node::join(&served, dir.path(), "127.0.6.12", 12).await,
    ];
    for node in &ours {
        node.whole(&data).await;
    }
    for other in [&aria2_dir, &libtorrent_dir, &transmission] {
        others_whole(other, &data, &served).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ordinary_clients_take_parts_by_torrents_of_their_own_in_the_one_swarm_from_the_origin_and_from_ours() {
    let dir = tempfile::tempdir().unwrap();
    let data = bytes(5_000_000);
    std::fs::write(dir.path().join("set.bin"), &data).unwrap();
    let args = ServeArgs { parts: Some(4), rate: Rate(Some(4_000_000)), ..args(dir.path()) };
    let served = swarm::open(&args, &Default::default()).await.unwrap();
    let (mut torrents, mut parts) = (Vec::new(), Vec::new());
    for number in 1..=4 {
        torrents.push(torrent_at(&format!("{}.{number}-of-4", served.url), dir.path()).await);
        let share = swarm::Share { number, of: 4 };
        let own = swarm::part_of(&served.meta.layout, share, 0.0).unwrap().own.remove(0);
        parts.push(&data[own.start as usize..own.end as usize]);
    }
    let place = |name: &str| {
        let place = dir.path().join(name);
        std::fs::create_dir_all(&place).unwrap();
        place
    };
    let (aria2_dir, libtorrent_dir, late_dir) = (place("aria2"), place("libtorrent"), place("late"));
    // Nobody else wants these parts yet.
    let first = aria2(&torrents[1], &aria2_dir);
    let _two = libtorrent(&[&torrents[2], &torrents[3]], &libtorrent_dir);
    file_whole(&aria2_dir.join("set.bin.2-of-4"), parts[1], &served).await;
    file_whole(&libtorrent_dir.join("set.bin.3-of-4"), parts[2], &served).await;
    file_whole(&libtorrent_dir.join("set.bin.4-of-4"), parts[3], &served).await;
    // What they have had of the origin ours take from them.
    Node::join(&served, dir.path(), "127.0.6.11", 11).await.whole(&data).await;
    assert!(served.given() < 5_500_000, "the origin gave {} bytes", served.given());
    // And what the origin has given to all, another takes from ours.
    let _ours = Node::join(&served, dir.path(), "127.0.6.12", 12).await;
    drop(first);
    let _late = aria2(&torrents[0], &late_dir);
    file_whole(&late_dir.join("set.bin.1-of-4"), parts[0], &served).await;
}
