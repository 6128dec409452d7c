//! Loads whose origin is a real S3 server over the wire: how often each byte leaves it, and what its failures do.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use cluster_manager::load::{LoadArgs, load};
use cluster_manager::plan::{PlanArgs, Strategy, plan};
use cluster_manager::swarm::source::{Hashed, Source, StoreArgs};
use cluster_manager::swarm::{self, Rate, ServeArgs, Served, Share};
use storage::overlay::client::{Controller, Member, Stopped};
use storage::overlay::lease::{LeaseAsk, Outcome};
use storage::overlay::peer::{Config, Peer, Place as Where, Progress};
use storage::overlay::store::Store;
use testbed::s3::{Faults, S3Server};

use super::s3::place::{Place, noise};

const LIMIT: Duration = Duration::from_secs(120);

/// A store, and a directory of what is loaded from it.
struct Stock {
    place: Place,
    server: S3Server,
    dir: tempfile::TempDir,
}

impl Stock {
    async fn new(faults: Faults) -> Self {
        let (place, server) = Place::faulty(faults).await;
        Self { place, server, dir: tempfile::tempdir().unwrap() }
    }

    /// With one object, `set`.
    async fn of(data: impl Into<Bytes>) -> Self {
        Self::faulty(data, Faults::default()).await
    }

    async fn faulty(data: impl Into<Bytes>, faults: Faults) -> Self {
        let stock = Self::new(faults).await;
        stock.place.put("set", data).await;
        stock
    }

    fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn args(&self, key: &str, from_store: bool) -> ServeArgs {
        let file = self.dir().join("s3.toml");
        std::fs::write(&file, "access_key = \"starling\"\nsecret_key = \"hush-hush\"\n").unwrap();
        ServeArgs {
            store: StoreArgs { endpoint: Some(self.server.endpoint()), region: None, s3_config: Some(file) },
            cache: Some(self.dir().join("cache")),
            from_store,
            expect: 3,
            ..ServeArgs::on_loopback(Source::Store(format!("s3://films/{key}")))
        }
    }

    /// Bytes of objects below `prefix` that left the store.
    fn out_of(&self, prefix: &str) -> u64 {
        let (counters, prefix) = (self.server.counters(), format!("/films/{prefix}"));
        counters.get_bytes_of.iter().filter(|(key, _)| key.starts_with(&prefix)).map(|(_, bytes)| bytes).sum()
    }
}

async fn serve(args: &ServeArgs) -> Served {
    swarm::open(args, &Default::default()).await.unwrap()
}

struct Node {
    peer: Arc<Peer>,
    dir: PathBuf,
    following: tokio::task::JoinHandle<Stopped>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.following.abort();
    }
}

impl Node {
    async fn join(served: &Served, dir: &Path, id: u64, rate: Option<u64>, share: Option<(Share, f64)>) -> Self {
        let listen = "127.0.0.1:0".parse().unwrap();
        let controller = Controller::new(&served.url, "127.0.0.1".parse().unwrap()).unwrap();
        let meta = Arc::new(controller.metainfo().await.unwrap());
        let dir = dir.join(format!("node-{id}"));
        let mut member = Member { node: id, ..Member::default() };
        let (store, have) = match share {
            None => Store::open(&dir, &meta).unwrap(),
            Some((share, overlap)) => {
                let part = swarm::part_of(&meta.layout, share, overlap).unwrap();
                member.demand = part.pieces(&meta.layout);
                Store::open_part(&dir, &meta, &format!("{}-of-{}", share.number, share.of), &part).unwrap()
            }
        };
        let config = Config { rate, ..Config::new(listen, id) };
        let peer = Peer::start(meta.clone(), vec![], Where::Filling(store, have), config, None).await.unwrap();
        let peer = Arc::new(peer);
        let followed = peer.clone();
        let following = tokio::spawn(async move { controller.follow(&followed, &meta, &member).await });
        Self { peer, dir, following }
    }

    async fn until(&self, what: &str, fits: impl Fn(&Progress) -> bool) -> Progress {
        let mut watch = self.peer.watch();
        let reached = tokio::time::timeout(LIMIT, watch.wait_for(|p| fits(p))).await;
        reached.unwrap_or_else(|_| panic!("never {what}: {:?}", self.peer.progress())).unwrap().clone()
    }

    async fn whole(&self) -> Progress {
        self.until("whole", |p| p.done.is_some()).await
    }
}

/// Three nodes that want all.
async fn three(served: &Served, dir: &Path) -> Vec<Node> {
    futures::future::join_all((1..=3).map(|id| Node::join(served, dir, id, None, None))).await
}

/// Every node has got all, and has it under the name `set`.
async fn all_have(nodes: &[Node], data: &[u8]) {
    for node in nodes {
        node.whole().await;
        assert!(std::fs::read(node.dir.join("set")).unwrap() == data, "bytes differ");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_leaves_the_store_once_whatever_is_loaded_and_however_often_it_is_served() {
    let data = noise(9_000_001);
    let stock = Stock::of(data.clone()).await;
    let args = stock.args("set", false);
    for round in 0..2 {
        let served = serve(&args).await;
        all_have(&three(&served, &stock.dir().join(round.to_string())).await, &data).await;
        assert_eq!((served.given(), stock.out_of("set")), (data.len() as u64, data.len() as u64));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relays_read_a_prefix_under_leases_and_each_byte_leaves_it_once_a_load() {
    let stock = Stock::new(Faults::default()).await;
    let objects = [("a b.bin", 3_000_000), ("empty", 0), ("sub/ü+.bin", 1_234_567), ("sub/z", 5)];
    for (key, len) in objects {
        stock.place.put(&format!("in/{key}"), noise(len)).await;
    }
    stock.place.put("in/sub/", Bytes::new()).await;
    stock.place.put("inner/other", noise(10)).await;
    let total: u64 = objects.iter().map(|(_, len)| *len as u64).sum();
    let args = stock.args("in", true);
    drop(serve(&args).await);
    assert_eq!(stock.out_of("in/"), total);
    let served = serve(&args).await;
    let nodes = three(&served, stock.dir()).await;
    for node in &nodes {
        node.whole().await;
        for (key, len) in objects {
            assert!(std::fs::read(node.dir.join("in").join(key)).unwrap() == noise(len), "{key}");
        }
    }
    assert!(!nodes[0].dir.join("in/other").exists());
    let status = served.controller.status();
    assert_eq!((stock.out_of("in/") - total, status.from_store), (total, total), "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pass_broken_off_reads_only_what_it_lacks() {
    let data = noise(100 << 20);
    let stock = Stock::faulty(data.clone(), Faults { latency_ms: 150, ..Faults::default() }).await;
    let args = stock.args("set", false);
    let hashed = Arc::<Hashed>::default();
    {
        let mut opening = std::pin::pin!(swarm::open(&args, &hashed));
        let half = async {
            while hashed.done.load(Relaxed) < 40 << 20 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            _ = &mut opening => panic!("whole before it was broken off"),
            () = half => {}
        }
    }
    let again = Arc::<Hashed>::default();
    let served = swarm::open(&args, &again).await.unwrap();
    let (first, second) = (hashed.done.load(Relaxed), again.from_store.load(Relaxed));
    assert!(first + second <= (100 << 20) + (4 << 20), "{first} and {second}");
    assert!(stock.out_of("set") <= (100 << 20) + (48 << 20), "more than what was on its way");
    all_have(&[Node::join(&served, stock.dir(), 1, None, None).await], &data).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_refuses_and_breaks_off_is_asked_less_and_the_load_ends_whole() {
    let data = noise(5_000_000);
    let faults = Faults { refuse_share: 0.2, cut_share: 0.1, fault_seed: 3, ..Faults::default() };
    let stock = Stock::faulty(data.clone(), faults).await;
    let served = serve(&stock.args("set", true)).await;
    all_have(&three(&served, stock.dir()).await, &data).await;
    let status = served.controller.status();
    assert!(status.refusals > 0 && status.failure.is_none(), "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_replaced_under_the_load_ends_every_node_with_its_code_and_no_file() {
    let stock = Stock::of(noise(8_000_000)).await;
    let served = serve(&stock.args("set", true)).await;
    let slow = |id| Node::join(&served, stock.dir(), id, Some(1_000_000), None);
    let mut nodes = [slow(1).await, slow(2).await];
    nodes[0].until("some held", |p| p.groups_held > 4).await;
    stock.place.put("set", noise(7_999_999)).await;
    for node in &mut nodes {
        let Stopped(why) = tokio::time::timeout(LIMIT, &mut node.following).await.unwrap().unwrap();
        assert!(why.starts_with("origin-changed: "), "{why}");
        assert!(!node.dir.join("set").exists());
    }
    // A node that lies is not believed: the controller looks itself.
    assert!(served.controller.status().failure.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_are_loaded_apart_and_together_are_the_object() {
    let data = noise(6_000_123);
    let stock = Stock::of(data.clone()).await;
    let served = serve(&stock.args("set", false)).await;
    let mut nodes = Vec::new();
    for number in 1..=3 {
        let share = Share { number, of: 3 };
        nodes.push(Node::join(&served, stock.dir(), number as u64, None, Some((share, 0.3))).await);
    }
    let mut joined = Vec::new();
    for (i, node) in nodes.iter().enumerate() {
        let progress = node.whole().await;
        assert_eq!(progress.done, Some(node.dir.join(format!("set.{}-of-3", i + 1))));
        joined.extend(std::fs::read(progress.done.unwrap()).unwrap());
    }
    assert!(joined == data, "the parts are not the object");
    assert_eq!((stock.out_of("set"), served.given()), (data.len() as u64, data.len() as u64));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_refuses_everything_ends_the_load_with_its_code_after_the_patience() {
    let stock = Stock::of(noise(2_000_000)).await;
    let mut args = stock.args("set", true);
    args.origin_patience = Duration::from_millis(300);
    let served = serve(&args).await;
    stock.server.stop().await;
    let mut node = Node::join(&served, stock.dir.path(), 1, None, None).await;
    let Stopped(why) = tokio::time::timeout(LIMIT, &mut node.following).await.unwrap().unwrap();
    assert!(why.starts_with("origin-unavailable: "), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_of_what_a_node_held_already_says_nothing_of_how_fast_the_store_is() {
    let stock = Stock::of(noise(2_000_000)).await;
    let served = serve(&stock.args("set", true)).await;
    let controller = Controller::new(&served.url, "127.0.0.1".parse().unwrap()).unwrap();
    let slots = served.controller.status().origin_slots;
    for (first_byte_ms, bytes) in [(0, 0)].into_iter().chain([(400, 8192); 20]) {
        let ask = LeaseAsk {
            info_hash: storage::hex::hex(&served.meta.info_hash),
            token: served.meta.token.clone(),
            node: 1,
            last: Some((vec![], Outcome::Held { first_byte_ms, bytes })),
            more: false,
            wait_ms: 0,
        };
        controller.lease(&ask).await.unwrap();
    }
    assert_eq!(served.controller.status().origin_slots, slots);
}

fn load_args(serve: &ServeArgs, dir: PathBuf) -> LoadArgs {
    LoadArgs {
        source: serve.source.clone(),
        store: serve.store.clone(),
        to: 3,
        dir,
        parts: false,
        overlap: 0.0,
        rate: Rate(Some(20_000_000)),
        origin_rate: Rate(Some(20_000_000)),
        from_store: serve.from_store,
        cache: serve.cache.clone(),
        patience: LIMIT,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_fills_every_node_tells_its_copies_and_its_ratio_and_goes_on_with_the_nodes_that_lack() {
    let data = noise(4_000_321);
    let stock = Stock::of(data.clone()).await;
    for from_store in [false, true] {
        let args = load_args(&stock.args("set", from_store), stock.dir().join(format!("nodes-{from_store}")));
        let before = stock.out_of("set");
        let report = load(&args, true).await.unwrap();
        for node in 0..3 {
            assert!(std::fs::read(args.dir.join(format!("{node}/set"))).unwrap() == data, "bytes differ");
        }
        // The second time only the relays read: the hashes are known.
        assert_eq!((report.taken_in, report.origin_copies), (3 * data.len() as u64, 1.0), "{report:?}");
        assert_eq!(stock.out_of("set") - before, data.len() as u64);
        assert!(report.ratio.unwrap() >= 1.0 && report.binding_cut == Some("origin"), "{report:?}");
        std::fs::remove_file(args.dir.join("1/set")).unwrap();
        let again = load(&args, true).await.unwrap();
        assert_eq!(again.taken_in, data.len() as u64, "{again:?}");
        // What bears the name and is something else is neither counted nor replaced.
        let other = vec![7; data.len()];
        std::fs::write(args.dir.join("1/set"), &other).unwrap();
        let failure = load(&args, true).await.unwrap_err();
        assert!(failure.exit == 4 && failure.text.starts_with("already-there: "), "{failure:?}");
        assert_eq!(std::fs::read(args.dir.join("1/set")).unwrap(), other);
    }
    let failure = load(&load_args(&stock.args("none", false), stock.dir().join("none")), true).await.unwrap_err();
    assert!(failure.exit == 3 && failure.text.starts_with("not-found: "), "{failure:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_of_lines_reads_only_around_its_cuts_and_names_the_cut_that_binds() {
    let text: String = (0..200_000).map(|i| format!("{} {}\n", i * 7 % 90, i)).collect();
    let stock = Stock::of(text.clone()).await;
    let serve = stock.args("set", false);
    let asked = |strategy, overlap| PlanArgs {
        source: serve.source.clone(),
        store: serve.store.clone(),
        strategy,
        to: 4,
        overlap,
        rate: Rate(Some(1_000_000)),
        origin_rate: Rate(Some(100_000_000)),
    };
    let lines = plan(asked(Strategy::Lines, 0.3)).await.unwrap();
    assert!(stock.out_of("set") <= 3 * 8192);
    for (start, _) in lines.parts.iter().skip(1).map(|part| part.own[0]) {
        assert_eq!(text.as_bytes()[start as usize - 1], b'\n');
    }
    assert_eq!((lines.distinct, lines.multiplicity_max, lines.binding_cut), (text.len() as u64, 2, Some("node")));
    assert!((1.29..1.31).contains(&lines.multiplicity_mean), "{}", lines.multiplicity_mean);
    let vertices = plan(asked(Strategy::VertexModulus, 0.0)).await.unwrap();
    assert_eq!((vertices.total, vertices.parts.len()), (text.len() as u64, 4));
    let refused = plan(asked(Strategy::Keyframes, 0.0)).await.unwrap_err();
    assert_eq!(refused.exit, 2, "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_of_key_frames_cuts_a_film_where_its_key_frames_lie() {
    let dir = tempfile::tempdir().unwrap();
    let film = dir.path().join("film.mp4");
    let order =
        "-v error -f lavfi -i testsrc2=s=320x180:r=25:d=8 -c:v libx264 -preset ultrafast -g 25 -pix_fmt yuv420p";
    let made = std::process::Command::new("ffmpeg").args(order.split(' ')).arg(&film).status().unwrap();
    assert!(made.success());
    let packets = "-v error -select_streams v -show_entries packet=pos,flags -of csv=p=0";
    let listed = std::process::Command::new("ffprobe").args(packets.split(' ')).arg(&film).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let key_frames: Vec<u64> =
        listed.lines().filter_map(|line| line.split_once(",K")).map(|(at, _)| at.parse().unwrap()).collect();
    assert_eq!(key_frames.len(), 8);
    let mut args = Stock::of(noise(1)).await.args("set", false);
    args.source = film.to_str().unwrap().parse().unwrap();
    let asked = PlanArgs {
        source: args.source,
        store: args.store,
        strategy: Strategy::Keyframes,
        to: 4,
        overlap: 0.0,
        rate: Rate(None),
        origin_rate: Rate(None),
    };
    let planned = plan(asked).await.unwrap();
    let cuts: Vec<_> = planned.parts.iter().skip(1).map(|part| part.own[0].0).collect();
    assert!(cuts.len() == 3 && cuts.iter().all(|cut| key_frames.contains(cut)), "{cuts:?} of {key_frames:?}");
}
