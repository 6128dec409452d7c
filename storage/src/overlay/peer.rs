//! A member of a swarm: BEP-3 over TCP, ours and ordinary clients alike, with verified groups passed on at once.
//!
//! One lock guards the small state (who has what, who was asked what); connections are a reader and a writer task each.
//! Bytes are hashed in memory when they arrive, written right then while the processor has them at hand, and never read back to be
//! checked; while the disk is slow, a thread waits for it instead. Every queue is
//! bounded: requests per connection, groups waiting for the disk, bytes in a socket. Who to talk to comes from the controller
//! ([`Peer::know`]); the origin is the same peer with a [`LeaseBook`], which alone decides what it sends to whom.

mod bucket;
mod conn;
mod incoming;
mod part;
mod relay;
mod state;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;

use self::bucket::Bucket;
use self::incoming::Pool;
pub use self::relay::WrongBytes;
use self::state::State;
pub use self::state::groups_ahead;
use super::bits::Bits;
use super::metainfo::{GroupHash, Metainfo};
use super::policy::{Millis, NodeId};
use super::store::{Error, Files, Store};
use super::wire::Handshake;

/// In a data centre a peer that does not answer in this time is dead.
const DIAL: Duration = Duration::from_millis(500);
/// Kernel bytes per connection: what is written there can no longer be reordered or cancelled.
const SEND_BUFFER: u32 = 128 << 10;
/// Verified groups that wait for the disk (4 MiB).
const DISK_QUEUE: usize = 64;
/// After the thread has written, what comes gathers so long: many groups then cost one wake-up and one HAVE for each neighbour.
const DISK_PAUSE: Duration = Duration::from_millis(4);
/// Longer than the page cache takes for a group, also where many programs share a processor: the system waits for the disk itself.
const DISK_SLOW: Duration = Duration::from_millis(100);
/// So long a slow disk is left to the thread.
const DISK_SLOW_MS: Millis = 1000;
/// HAVEs are gathered for this long.
const TICK: Duration = Duration::from_millis(40);
/// The state on disk is at most this old.
const SAVE: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub struct Config {
    pub listen: SocketAddr,
    /// Bytes per second each way; `None` = as fast as it goes.
    pub rate: Option<u64>,
    /// Groups being written to peers at the same time.
    pub upload_slots: usize,
    pub connections_max: usize,
    pub node: NodeId,
}

impl Config {
    /// As nodes of a swarm are: without a cap, and with few uploads at a time, since each ends the later the more there are.
    pub fn new(listen: SocketAddr, node: NodeId) -> Self {
        Self { listen, rate: None, upload_slots: 4, connections_max: 64, node }
    }
}

/// What the origin asks before it sends anything: the controller's policy behind a lock.
pub trait LeaseBook: Send + Sync {
    /// The node can take leases from here on, or no more.
    fn connected(&self, node: NodeId, connected: bool);
    fn next(&self) -> Option<(NodeId, u32)>;
    fn sent(&self, node: NodeId, piece: u32);
    fn done(&self, node: NodeId, piece: u32);
    /// An ordinary client of this address has announced itself for that torrent; answers its node.
    fn guest(&self, theirs: &Handshake, ip: IpAddr) -> Option<NodeId>;
}

/// Where a peer's bytes lie.
pub enum Place {
    /// A whole dataset to give.
    Whole(Files),
    /// One being filled, with what is there.
    Filling(Store, Bits),
}

/// What can be seen of a peer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    pub groups: u32,
    pub groups_held: u32,
    pub bytes_wanted: u64,
    pub bytes_held: u64,
    /// Payload taken from peers, from the origin; given to others; thrown away (twice or bad).
    pub from_peers: u64,
    pub from_origin: u64,
    pub given: u64,
    pub wasted: u64,
    pub connections: usize,
    /// Peers that sent bytes which were not what they claimed.
    pub blamed: Vec<SocketAddr>,
    pub starving: bool,
    /// The final path, when whole.
    pub done: Option<PathBuf>,
    /// Why the node gave up.
    pub failed: Option<String>,
}

/// A running peer; dropping it ends every task.
pub struct Peer {
    shared: Arc<Shared>,
    pub address: SocketAddr,
    stop: watch::Sender<bool>,
    writer: Option<std::thread::JoinHandle<()>>,
}

struct Shared {
    meta: Arc<Metainfo>,
    config: Config,
    files: Arc<Files>,
    pool: Arc<Pool>,
    state: Mutex<State>,
    slots: Semaphore,
    up: Bucket,
    down: Bucket,
    disk: mpsc::Sender<Verified>,
    disk_slow_until: AtomicU64,
    book: Option<Arc<dyn LeaseBook>>,
    start: Instant,
    progress: watch::Sender<Progress>,
    stopped: watch::Receiver<bool>,
}

/// A group that passed its hash, on its way to the disk.
struct Verified {
    group: u32,
    data: Bytes,
}

impl Peer {
    /// Binds, and from then on serves and (if filling) fetches. `hashes` are the group hashes of chunks known so far.
    pub async fn start(
        meta: Arc<Metainfo>,
        hashes: Vec<Option<Vec<GroupHash>>>,
        place: Place,
        mut config: Config,
        book: Option<Arc<dyn LeaseBook>>,
    ) -> std::io::Result<Self> {
        let socket = if config.listen.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.set_send_buffer_size(SEND_BUFFER)?;
        socket.bind(config.listen)?;
        let listener = socket.listen(1024)?;
        let address = listener.local_addr()?;
        config.listen = address;
        let groups = meta.layout.groups();
        let (disk, verified) = mpsc::channel(DISK_QUEUE);
        let (stop, stopped) = watch::channel(false);
        let (progress, _) = watch::channel(Progress::default());
        let (store, want, have, files) = match place {
            Place::Whole(files) => (None, Bits::full(groups), Bits::full(groups), Arc::new(files)),
            Place::Filling(mut store, have) => {
                // The store keeps only names from here on; the open files are shared with the readers.
                let files = Arc::new(std::mem::replace(&mut store.files, Files::none()));
                let want = std::mem::replace(&mut store.want, Bits::new(0));
                (Some(store), want, have, files)
            }
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(State::new(&meta, hashes, want, have, config.node)),
            slots: Semaphore::new(config.upload_slots.max(1)),
            up: Bucket::new(config.rate),
            down: Bucket::new(config.rate),
            meta,
            files,
            pool: Arc::default(),
            disk,
            disk_slow_until: AtomicU64::new(0),
            book,
            start: Instant::now(),
            progress,
            stopped,
            config,
        });
        let writer = store.map(|store| {
            let shared = shared.clone();
            std::thread::spawn(move || write_to_disk(&shared, store, verified))
        });
        tokio::spawn(until_stopped(shared.clone(), accept(shared.clone(), listener)));
        tokio::spawn(until_stopped(shared.clone(), tick(shared.clone())));
        Ok(Self { shared, address, stop, writer })
    }

    /// The controller's word: connect to these; ordinary clients of these addresses may connect here.
    pub fn know(&self, peers: &[SocketAddr], origin: Option<SocketAddr>, guests: impl IntoIterator<Item = IpAddr>) {
        let dial: Vec<_> = {
            let (now, mut state) = (self.shared.now(), self.shared.state());
            state.guests = BTreeSet::from_iter(guests);
            state.named(now, peers);
            let room = self.shared.config.connections_max.saturating_sub(state.conns.len());
            let wanted = origin.into_iter().chain(peers.iter().copied()).filter(|a| *a != self.address);
            wanted.filter(|a| state.may_dial(now, *a)).take(room).collect()
        };
        for address in dial {
            let shared = self.shared.clone();
            tokio::spawn(until_stopped(shared.clone(), async move { dial_one(shared, address).await }));
        }
    }

    pub fn progress(&self) -> Progress {
        self.shared.state().progress()
    }

    /// Changes when the peer has something new to tell.
    pub fn watch(&self) -> watch::Receiver<Progress> {
        self.shared.progress.subscribe()
    }

    /// Pieces held whole, for announces.
    pub fn pieces(&self) -> Bits {
        self.shared.state().pieces(&self.shared.meta.layout)
    }

    /// The book may have something new to send.
    pub fn dispatch(&self) {
        self.shared.dispatch();
    }

    /// Ends all connections and leaves the state on disk up to date.
    pub async fn stop(mut self) {
        let _ = self.stop.send(true);
        if let Some(writer) = self.writer.take() {
            let _ = tokio::task::spawn_blocking(move || writer.join()).await;
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn now(&self) -> Millis {
        self.start.elapsed().as_millis() as Millis
    }

    fn origin(&self) -> bool {
        self.book.is_some()
    }

    fn write(&self, Verified { group, data }: &Verified) -> Result<(), Error> {
        self.files.write(self.meta.layout.group_bytes(*group).start, data)
    }

    /// Writes a group, or leaves it to the thread: while the disk is slow, to try again and report what went wrong, and to finish what is
    /// whole now. A full queue means that the disk is slower than the net: the caller then waits, and TCP slows its sender. Fails when
    /// the thread has ended.
    async fn keep(&self, verified: Verified) -> Result<(), mpsc::error::SendError<Verified>> {
        let thread_waits = self.disk.capacity() == DISK_QUEUE && !self.disk.is_closed();
        if thread_waits && self.now() >= self.disk_slow_until.load(Relaxed) {
            let began = Instant::now();
            let written = self.write(&verified);
            if began.elapsed() > DISK_SLOW {
                self.disk_slow_until.store(self.now() + DISK_SLOW_MS, Relaxed);
            }
            if written.is_ok() {
                let mut state = self.state();
                state.store(std::iter::once((verified.group, verified.data.len())));
                if !state.is_stored() {
                    return Ok(());
                }
            }
        }
        self.disk.send(verified).await
    }

    /// Moves leases from the book to the connections, until either has no more.
    fn dispatch(&self) {
        let Some(book) = &self.book else { return };
        while let Some((node, piece)) = book.next() {
            let reached = self.state().lease(&self.meta, node, piece);
            match reached {
                state::Leased::Pushed => {}
                state::Leased::Shown => book.sent(node, piece),
                state::Leased::Gone => book.connected(node, false),
            }
        }
    }
}

/// Runs a task of the peer until it ends or the peer does.
async fn until_stopped(shared: Arc<Shared>, task: impl Future<Output = ()>) {
    let mut stopped = shared.stopped.clone();
    tokio::select! {
        () = task => {}
        _ = stopped.wait_for(|stop| *stop) => {}
    }
}

async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, address)) if shared.state().conns.len() < shared.config.connections_max => {
                tokio::spawn(until_stopped(shared.clone(), conn::run(shared.clone(), stream, address, false)));
            }
            Ok(_) => {}
            // Out of descriptors, most likely: give those in use time to end.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn dial_one(shared: Arc<Shared>, address: SocketAddr) {
    match dial(address, shared.config.listen.ip()).await {
        Some(stream) => conn::run(shared.clone(), stream, address, true).await,
        None => shared.state().dial_failed(shared.now(), address),
    }
}

async fn dial(address: SocketAddr, from: IpAddr) -> Option<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.ok()?;
    socket.set_send_buffer_size(SEND_BUFFER).ok()?;
    // Others know this node by the address it listens on.
    if !from.is_unspecified() && from.is_ipv4() == address.is_ipv4() {
        socket.bind((from, 0).into()).ok()?;
    }
    tokio::time::timeout(DIAL, socket.connect(address)).await.ok()?.ok()
}

/// Everything that time does: gathered HAVEs, late requests, leases, progress.
async fn tick(shared: Arc<Shared>) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut ticks = 0u32;
    loop {
        interval.tick().await;
        ticks = ticks.wrapping_add(1);
        let now = shared.now();
        let mut state = shared.state();
        state.flush_haves(ticks);
        if ticks.is_multiple_of(3) {
            state.expire(now, &shared.meta.layout);
            state.fill_all(now, &shared.meta);
            let progress = state.progress();
            drop(state);
            shared.progress.send_replace(progress);
            shared.dispatch();
        }
    }
}

/// Writes what the peer leaves to it, saves which groups are there, and finishes the dataset. Ends when the peer stops or the disk fails.
fn write_to_disk(shared: &Shared, store: Store, mut verified: mpsc::Receiver<Verified>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let Ok(runtime) = runtime else { return shared.state().fail("cannot start the disk writer".into()) };
    let mut stopped = shared.stopped.clone();
    let (mut saved, mut saved_at) = (shared.state().stored.count(), Instant::now());
    let mut finished = false;
    let mut batch = Vec::with_capacity(DISK_QUEUE);
    let outcome = loop {
        if !finished && shared.state().is_stored() {
            match store.finish(&shared.files) {
                Ok(path) => shared.state().done = Some(path),
                Err(error) => break Err(error),
            }
            finished = true;
            let progress = shared.state().progress();
            shared.progress.send_replace(progress);
        }
        if !finished && saved_at.elapsed() >= SAVE {
            let have = shared.state().stored.clone();
            if have.count() != saved
                && let Err(error) = store.save(&shared.files, &have)
            {
                break Err(error);
            }
            (saved, saved_at) = (have.count(), Instant::now());
        }
        let goes_on = runtime.block_on(async {
            tokio::select! {
                _ = verified.recv_many(&mut batch, DISK_QUEUE) => true,
                _ = stopped.wait_for(|stop| *stop) => false,
                () = tokio::time::sleep(SAVE) => true,
            }
        });
        if !goes_on {
            break Ok(());
        }
        if batch.is_empty() || finished {
            batch.clear();
            continue;
        }
        if let Err(error) = batch.iter().try_for_each(|verified| shared.write(verified)) {
            break Err(error);
        }
        shared.state().store(batch.drain(..).map(|v| (v.group, v.data.len())));
        std::thread::sleep(DISK_PAUSE);
    };
    let have = shared.state().stored.clone();
    let last = if !finished && have.count() != saved { store.save(&shared.files, &have) } else { Ok(()) };
    if let Err(error) = outcome.and(last) {
        report(shared, &error);
    }
}

fn report(shared: &Shared, error: &Error) {
    let text = format!("{}: {error}: {} ({})", error.code(), error.source, error.hint());
    let mut state = shared.state();
    state.fail(text);
    let progress = state.progress();
    drop(state);
    shared.progress.send_replace(progress);
}
