//! One connection: handshake, then reading and writing side by side until either ends.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustix::net::SendFlags;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;

use super::incoming::Incoming;
use super::part::to_whole;
use super::state::{Kind, Upload};
use super::{Shared, Verified};
use crate::overlay::announce::Query;
use crate::overlay::metainfo::Metainfo;
use crate::overlay::picker::SourceId;
use crate::overlay::policy::NodeId;
use crate::overlay::wire::{self, HANDSHAKE_LEN, Handshake, Hello, Message, Ours};

/// Handshake and hello must be here by then.
const GREETING: Duration = Duration::from_secs(3);
/// Less than half of the other side's patience with silence.
const KEEP_ALIVE: Duration = Duration::from_secs(45);
/// What is uploaded keeps its slot so long; after that it goes on without, for others are not to wait for who does not read.
const SLOT: Duration = Duration::from_secs(2);
/// Who has not taken one group by then is let go.
const UNREAD: Duration = Duration::from_secs(60);
/// How a peer of ours is told from an ordinary client before anything else is said.
const PEER_ID_PREFIX: &[u8; 8] = b"-ST0100-";

/// Carries a connection from its first byte to its last.
pub async fn run(shared: Arc<Shared>, stream: TcpStream, address: SocketAddr, outgoing: bool) {
    let _ = stream.set_nodelay(true);
    let (mut read, mut write) = stream.into_split();
    let mut buffer = BytesMut::new();
    let greeting = greet(&shared, &mut read, &mut write, &mut buffer, (address, outgoing));
    let Ok(Some((node, kind, listen, pieces))) = tokio::time::timeout(GREETING, greeting).await else { return };
    let registered = {
        let mut state = shared.state();
        let registered = state.register(&shared.meta, node, kind, listen, outgoing, shared.origin());
        let conn = registered.as_ref().and_then(|(id, _)| state.conns.get_mut(id));
        conn.into_iter().for_each(|conn| conn.pieces = pieces.clone());
        registered
    };
    let Some((id, wake)) = registered else { return };
    tracing::debug!(%address, ?kind, "peer connected");
    if let Some(book) = &shared.book {
        book.connected(node, true);
        shared.dispatch();
    }
    let incoming = Incoming::new(read, buffer, shared.pool.clone());
    tokio::select! {
        () = reader(&shared, id, node, &pieces, incoming) => {}
        () = writer(&shared, id, node, pieces.start, &wake, write) => {}
    }
    let dropped = shared.state().drop_conn(id);
    if let (Some(book), Some(_)) = (&shared.book, dropped) {
        book.connected(node, false);
        shared.dispatch();
    }
}

/// Who is there: node, kind, where it listens, and the pieces of its torrent. `None` = not welcome. Who was dialled is one of ours, or an
/// ordinary client with the whole's torrent; who dials says first what it is there for.
async fn greet(
    shared: &Shared,
    read: &mut OwnedReadHalf,
    write: &mut OwnedWriteHalf,
    buffer: &mut BytesMut,
    (address, outgoing): (SocketAddr, bool),
) -> Option<(NodeId, Kind, SocketAddr, Range<u32>)> {
    let mut peer_id = [0; 20];
    peer_id[..8].copy_from_slice(PEER_ID_PREFIX);
    peer_id[8..16].copy_from_slice(&shared.config.node.to_be_bytes());
    let ours = |info_hash| Handshake { info_hash, peer_id, extended: true }.encode();
    if outgoing {
        write.write_all(&ours(shared.meta.info_hash)).await.ok()?;
    }
    let mut raw = [0; HANDSHAKE_LEN];
    read.read_exact(&mut raw).await.ok()?;
    let theirs = Handshake::decode(&raw).ok()?;
    let pieces = shared.meta.pieces_of(&theirs.info_hash)?;
    if !outgoing {
        write.write_all(&ours(theirs.info_hash)).await.ok()?;
    } else if theirs.info_hash != shared.meta.info_hash {
        return None;
    }
    if !theirs.peer_id.starts_with(PEER_ID_PREFIX) {
        let node = match &shared.book {
            Some(book) => book.guest(&theirs, address.ip())?,
            None => {
                let invited = shared.state().guests.contains(&address.ip());
                invited.then(|| Query::node_of(&theirs.peer_id, &theirs.info_hash))?
            }
        };
        return Some((node, Kind::Ordinary, address, pieces));
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
    genuine.then(|| (hello.node, kind, SocketAddr::new(address.ip(), hello.port), pieces))
}

/// Compares digests, so that the time taken says nothing of the token.
fn same_token(theirs: &str, meta: &Metainfo) -> bool {
    blake3::hash(theirs.as_bytes()) == blake3::hash(meta.token.as_bytes())
}

async fn reader(shared: &Shared, id: SourceId, node: NodeId, pieces: &Range<u32>, mut incoming: Incoming) {
    loop {
        match incoming.next().await {
            Ok(message) => {
                let taken = match to_whole(pieces, &shared.meta.layout, message) {
                    Some(message) => take(shared, id, node, message).await,
                    None => Err("pieces that its torrent does not have"),
                };
                if let Err(why) = taken {
                    tracing::debug!(node, why, "peer dropped");
                    return;
                }
            }
            Err(error) => {
                tracing::debug!(node, %error, "peer dropped");
                return;
            }
        }
    }
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
        shared.keep(Verified { group, data }).await.map_err(|_| "the disk writer has ended")?;
    }
    Ok(())
}

async fn writer(
    shared: &Shared,
    id: SourceId,
    node: NodeId,
    first_piece: u32,
    wake: &Notify,
    mut write: OwnedWriteHalf,
) {
    let mut out = BytesMut::new();
    loop {
        let next = shared.state().output(id, &shared.meta.layout, &mut out);
        let Some(upload) = next else { return };
        let done = match upload {
            Some(upload) => give(shared, node, first_piece, upload, &mut out, &mut write).await,
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
    first_piece: u32,
    upload: Upload,
    out: &mut BytesMut,
    write: &mut OwnedWriteHalf,
) -> io::Result<()> {
    let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
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
            out.extend_from_slice(&wire::piece_header(block.piece - first_piece, block.begin, block.len as usize));
            (start..start + u64::from(block.len), None)
        }
    };
    let len = (bytes.end - bytes.start) as usize;
    shared.up.take(len).await;
    let mut sending = std::pin::pin!(send_from_disk(write.as_ref(), out, shared, bytes));
    let sent = tokio::time::timeout(SLOT, &mut sending).await;
    drop(permit);
    match sent {
        Ok(sent) => sent?,
        Err(_) => tokio::time::timeout(UNREAD, sending).await??,
    }
    shared.state().given(len);
    if let (Some(book), Some(piece)) = (&shared.book, ends) {
        book.sent(node, piece);
        shared.dispatch();
    }
    Ok(())
}

/// Sends `head`, then bytes of the dataset, which pass from the page cache to the socket without a copy here. Not on a blocking
/// thread: what is given was written moments ago, and two thread switches per group cost more than the sending.
async fn send_from_disk(stream: &TcpStream, mut head: &[u8], shared: &Shared, mut bytes: Range<u64>) -> io::Result<()> {
    while !head.is_empty() {
        // MORE: the bytes that follow go into the same packet.
        let send = || Ok(rustix::net::send(stream, head, SendFlags::MORE | SendFlags::NOSIGNAL)?);
        let sent = stream.async_io(Interest::WRITABLE, send).await?;
        head = &head[sent..];
    }
    while !bytes.is_empty() {
        match stream.async_io(Interest::WRITABLE, || shared.files.send(stream, bytes.clone())).await {
            Ok(0) => {
                tracing::warn!("a file of the dataset was cut short");
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            sent => bytes.start += sent?,
        }
    }
    Ok(())
}
