//! One connection: handshake, then reading and writing side by side until either ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::state::{Kind, Upload};
use super::{Shared, Verified};
use crate::overlay::metainfo::Metainfo;
use crate::overlay::picker::SourceId;
use crate::overlay::policy::NodeId;
use crate::overlay::wire::{self, HANDSHAKE_LEN, Handshake, Hello, Message, Ours};

/// Handshake and hello must be here by then.
const GREETING: Duration = Duration::from_secs(3);
/// A connection over which nothing came for so long is dead; the other side's keep-alives come twice as often.
const SILENCE: Duration = Duration::from_secs(100);
const KEEP_ALIVE: Duration = Duration::from_secs(45);
/// How a peer of ours is told from an ordinary client before anything else is said.
const PEER_ID_PREFIX: &[u8; 8] = b"-ST0100-";
const READ_BUFFER: usize = 128 << 10;
/// While more than this of a group is on its way, what comes gathers in the kernel: for most of the time that the rest will
/// take, at most so long; a pause too short for the timer is not made.
const GATHER_ABOVE: usize = 6 << 10;
const GATHER_MAX: Duration = Duration::from_millis(40);
const GATHER_MIN: Duration = Duration::from_millis(3);

/// Carries a connection from its first byte to its last.
pub async fn run(shared: Arc<Shared>, stream: TcpStream, address: SocketAddr, outgoing: bool) {
    let _ = stream.set_nodelay(true);
    let (mut read, mut write) = stream.into_split();
    let mut buffer = BytesMut::with_capacity(READ_BUFFER);
    let greeting = greet(&shared, &mut read, &mut write, &mut buffer, address);
    let Ok(Some((node, kind, listen))) = tokio::time::timeout(GREETING, greeting).await else { return };
    let registered = shared.state().register(&shared.meta, node, kind, listen, outgoing, shared.origin());
    let Some((id, wake)) = registered else { return };
    tracing::debug!(%address, ?kind, "peer connected");
    if let Some(book) = &shared.book {
        book.connected(node, true);
        shared.dispatch();
    }
    tokio::select! {
        () = reader(&shared, id, node, read, buffer) => {}
        () = writer(&shared, id, node, &wake, write) => {}
    }
    let dropped = shared.state().drop_conn(id);
    if let (Some(book), Some(_)) = (&shared.book, dropped) {
        book.connected(node, false);
        shared.dispatch();
    }
}

/// Who is there: node, kind, and where it listens. `None` = not welcome.
async fn greet(
    shared: &Shared,
    read: &mut OwnedReadHalf,
    write: &mut OwnedWriteHalf,
    buffer: &mut BytesMut,
    address: SocketAddr,
) -> Option<(NodeId, Kind, SocketAddr)> {
    let mut peer_id = [0; 20];
    peer_id[..8].copy_from_slice(PEER_ID_PREFIX);
    peer_id[8..16].copy_from_slice(&shared.config.node.to_be_bytes());
    let ours = Handshake { info_hash: shared.meta.info_hash, peer_id, extended: true };
    write.write_all(&ours.encode()).await.ok()?;
    let mut raw = [0; HANDSHAKE_LEN];
    read.read_exact(&mut raw).await.ok()?;
    let theirs = Handshake::decode(&raw).ok()?;
    if theirs.info_hash != shared.meta.info_hash {
        return None;
    }
    if !theirs.peer_id.starts_with(PEER_ID_PREFIX) {
        let node = match &shared.book {
            Some(book) => book.guest(&theirs.peer_id, address.ip())?,
            None => {
                let digest = blake3::hash(&theirs.peer_id);
                let invited = shared.state().guests.contains(&address.ip());
                digest.as_bytes().first_chunk().filter(|_| invited).map(|b| u64::from_be_bytes(*b))?
            }
        };
        return Some((node, Kind::Ordinary, address));
    }
    let hello = Hello {
        ours: true,
        token: shared.meta.token.clone(),
        node: shared.config.node,
        port: shared.config.listen.port(),
        origin: shared.origin(),
    };
    let mut out = BytesMut::new();
    wire::encode(&Message::Hello(hello), &mut out);
    write.write_all(&out).await.ok()?;
    let hello = loop {
        match wire::decode(buffer).ok()? {
            Some(Message::Hello(hello)) => break hello,
            Some(Message::KeepAlive) => {}
            Some(_) => return None,
            None if read.read_buf(buffer).await.ok()? == 0 => return None,
            None => {}
        }
    };
    let genuine = hello.ours && same_token(&hello.token, &shared.meta);
    let kind = if hello.origin { Kind::Origin } else { Kind::Ours };
    genuine.then(|| (hello.node, kind, SocketAddr::new(address.ip(), hello.port)))
}

/// Compares digests, so that the time taken says nothing of the token.
fn same_token(theirs: &str, meta: &Metainfo) -> bool {
    blake3::hash(theirs.as_bytes()) == blake3::hash(meta.token.as_bytes())
}

async fn reader(shared: &Shared, id: SourceId, node: NodeId, mut read: OwnedReadHalf, mut buffer: BytesMut) {
    let mut last = Instant::now();
    loop {
        loop {
            match wire::decode(&mut buffer) {
                Ok(Some(message)) => {
                    if let Err(why) = take(shared, id, node, message).await {
                        tracing::debug!(node, why, "peer dropped");
                        return;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(node, %error, "peer dropped");
                    return;
                }
            }
        }
        buffer.reserve(READ_BUFFER);
        let begun = !buffer.is_empty();
        match tokio::time::timeout(SILENCE, read.read_buf(&mut buffer)).await {
            Ok(Ok(n)) if n > 0 => {
                // On a slow link every packet would wake us.
                let pause = pause(n, last.elapsed(), wire::lacking(&buffer)).filter(|_| begun);
                last = Instant::now();
                if let Some(pause) = pause {
                    tokio::time::sleep(pause).await;
                }
            }
            _ => return,
        }
    }
}

/// How long to let `lacking` bytes gather, when the last `n` took `elapsed`.
fn pause(n: usize, elapsed: Duration, lacking: usize) -> Option<Duration> {
    let rest = elapsed.mul_f64(lacking as f64 / n as f64 * 0.75).min(GATHER_MAX);
    (lacking > GATHER_ABOVE && rest >= GATHER_MIN).then_some(rest)
}

async fn take(shared: &Shared, id: SourceId, node: NodeId, message: Message) -> Result<(), &'static str> {
    let layout = &shared.meta.layout;
    match message {
        Message::Ours(Ours::Data { group, data }) => {
            shared.down.take(data.len()).await;
            group_arrived(shared, id, group, data).await
        }
        Message::Piece { piece, begin, data } => {
            shared.down.take(data.len()).await;
            let whole = shared.state().block(id, piece, begin, &data, layout);
            match whole {
                Some((group, data)) => group_arrived(shared, id, group, data).await,
                None => Ok(()),
            }
        }
        message => {
            let acknowledged =
                shared.state().heard(shared.now(), id, message, &shared.meta).map_err(|breach| breach.0)?;
            if let Some(book) = shared.book.as_ref().filter(|_| !acknowledged.is_empty()) {
                acknowledged.into_iter().for_each(|piece| book.done(node, piece));
                shared.dispatch();
            }
            Ok(())
        }
    }
}

/// Hashes a group in memory and passes it on; its sender answers for it.
async fn group_arrived(shared: &Shared, id: SourceId, group: u32, data: Bytes) -> Result<(), &'static str> {
    let hashes = shared.state().hashes_for(group, data.len(), &shared.meta.layout);
    let Some(hashes) = hashes else { return Ok(()) };
    if !shared.meta.check_group(group, &data, &hashes) {
        shared.state().blame(id, data.len());
        return Err("bytes that are not what they claim");
    }
    let fresh = shared.state().arrived(shared.now(), id, group, data.len(), &shared.meta);
    if fresh {
        // A full queue means that the disk is slower than the net: this connection then waits, and TCP slows its sender.
        shared.disk.send(Verified { group, data }).await.map_err(|_| "the disk writer has ended")?;
    }
    Ok(())
}

async fn writer(shared: &Shared, id: SourceId, node: NodeId, wake: &Notify, mut write: OwnedWriteHalf) {
    let mut out = BytesMut::new();
    loop {
        let next = shared.state().output(id, &shared.meta.layout, &mut out);
        let Some(upload) = next else { return };
        let done = match upload {
            Some(upload) => give(shared, node, upload, &mut out, &mut write).await,
            None if !out.is_empty() => write.write_all(&out).await,
            None => match tokio::time::timeout(KEEP_ALIVE, wake.notified()).await {
                Ok(()) => continue,
                Err(_) => {
                    wire::encode(&Message::KeepAlive, &mut out);
                    continue;
                }
            },
        };
        out.clear();
        if done.is_err() {
            return;
        }
    }
}

/// Uploads one group or block once a slot is free. What is to be said meanwhile does not wait for the slot.
async fn give(
    shared: &Shared,
    node: NodeId,
    upload: Upload,
    out: &mut BytesMut,
    write: &mut OwnedWriteHalf,
) -> std::io::Result<()> {
    let gone = |_| std::io::Error::from(std::io::ErrorKind::BrokenPipe);
    let permit = match shared.slots.try_acquire() {
        Ok(permit) => permit,
        Err(_) => {
            write.write_all(out).await?;
            out.clear();
            shared.slots.acquire().await.map_err(gone)?
        }
    };
    let layout = &shared.meta.layout;
    let (bytes, ends) = match upload {
        Upload::Group { group, ends } => {
            let bytes = layout.group_bytes(group);
            out.extend_from_slice(&wire::data_header(group, (bytes.end - bytes.start) as usize));
            (bytes, ends)
        }
        Upload::Block(block) => {
            let start = layout.piece_bytes(block.piece).start + u64::from(block.begin);
            out.extend_from_slice(&wire::piece_header(block.piece, block.begin, block.len as usize));
            (start..start + u64::from(block.len), None)
        }
    };
    // Read here and not on a blocking thread: what is given was written moments ago and lies in the page cache, and two
    // thread switches per group cost more than the copy.
    let len = (bytes.end - bytes.start) as usize;
    let head = out.len();
    out.resize(head + len, 0);
    shared.files.read_into(bytes.start, &mut out[head..]).map_err(|e| {
        tracing::warn!(error = %e, "cannot read what was to be given");
        std::io::Error::other(e)
    })?;
    shared.up.take(len).await;
    write.write_all(out).await?;
    drop(permit);
    shared.state().given(len);
    if let (Some(book), Some(piece)) = (&shared.book, ends) {
        book.sent(node, piece);
        shared.dispatch();
    }
    Ok(())
}
