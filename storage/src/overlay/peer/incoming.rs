//! Frames off a socket: control through a small buffer, the bytes of a group straight into a block of the pool.
//!
//! So a byte of a group is copied once, from the kernel to where it is hashed and written from. Blocks are used again and
//! again, since fresh memory costs a page fault for every 4 KiB.

use std::io::{self, IoSliceMut};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::net::tcp::OwnedReadHalf;
use tokio::time::Instant;

use crate::overlay::layout::GROUP_MAX;
use crate::overlay::wire::{self, DATA_HEAD, Message, Ours};

/// A connection over which nothing came for so long is dead; the other side's keep-alives come twice as often.
const SILENCE: Duration = Duration::from_secs(100);
/// Read ahead of what is known to be control or the head of a group; what of a group lands here is copied once more.
const AHEAD: usize = 4 << 10;
/// While more than this of a frame is on its way, what comes gathers in the kernel: for most of the time that the rest will
/// take, at most so long; a pause too short for the timer is not made.
const GATHER_ABOVE: usize = 6 << 10;
const GATHER_MAX: Duration = Duration::from_millis(40);
const GATHER_MIN: Duration = Duration::from_millis(3);
/// Blocks kept for the next groups (4 MiB).
const SPARE_BLOCKS: usize = 64;

/// Blocks of one group each. How many are in use is bounded by who takes them: one per connection, and the disk queue.
#[derive(Default)]
pub struct Pool(Mutex<Vec<Box<[u8]>>>);

/// A block with the bytes of a group; back in the pool when dropped.
struct Block {
    bytes: Box<[u8]>,
    len: usize,
    pool: Arc<Pool>,
}

impl Pool {
    fn take(self: &Arc<Self>, len: usize) -> Block {
        let spare = self.0.lock().unwrap_or_else(|e| e.into_inner()).pop();
        let bytes = spare.unwrap_or_else(|| vec![0; GROUP_MAX as usize].into());
        Block { len: len.min(bytes.len()), bytes, pool: self.clone() }
    }
}

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let mut spare = self.pool.0.lock().unwrap_or_else(|e| e.into_inner());
        if spare.len() < SPARE_BLOCKS {
            spare.push(std::mem::take(&mut self.bytes));
        }
    }
}

/// The reading half of a connection.
pub struct Incoming {
    read: OwnedReadHalf,
    buffer: BytesMut,
    pool: Arc<Pool>,
    last: Instant,
}

impl Incoming {
    /// `buffer` holds what was read with the greeting.
    pub fn new(read: OwnedReadHalf, buffer: BytesMut, pool: Arc<Pool>) -> Self {
        Self { read, buffer, pool, last: Instant::now() }
    }

    /// The next message. An error is the end of the connection, or of the patience with it.
    pub async fn next(&mut self) -> io::Result<Message> {
        loop {
            if let Some((group, len)) = wire::data_head(&self.buffer) {
                self.buffer.advance(DATA_HEAD);
                let data = self.body(len).await?;
                return Ok(Message::Ours(Ours::Data { group, data }));
            }
            if let Some(message) = wire::decode(&mut self.buffer).map_err(io::Error::other)? {
                return Ok(message);
            }
            let begun = !self.buffer.is_empty();
            let n = self.read(&mut []).await?;
            if begun {
                self.gather(n, wire::lacking(&self.buffer)).await;
            }
        }
    }

    /// The `len` bytes of a group, of which some are in the buffer.
    async fn body(&mut self, len: usize) -> io::Result<Bytes> {
        let mut block = self.pool.take(len);
        let mut filled = len.min(self.buffer.len());
        block.bytes[..filled].copy_from_slice(&self.buffer[..filled]);
        self.buffer.advance(filled);
        while filled < len {
            let n = self.read(&mut block.bytes[filled..len]).await?.min(len - filled);
            filled += n;
            self.gather(n, len - filled).await;
        }
        Ok(Bytes::from_owner(block))
    }

    /// Fills `first`, then some of the buffer; answers how much came.
    async fn read(&mut self, first: &mut [u8]) -> io::Result<usize> {
        let before = self.buffer.len();
        let ahead = AHEAD.max(wire::lacking(&self.buffer));
        self.buffer.resize(before + ahead, 0);
        let result = loop {
            let mut parts = [IoSliceMut::new(first), IoSliceMut::new(&mut self.buffer[before..])];
            match self.read.try_read_vectored(&mut parts) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    match tokio::time::timeout(SILENCE, self.read.readable()).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => break Err(error),
                        Err(_) => break Err(io::ErrorKind::TimedOut.into()),
                    }
                }
                Ok(0) => break Err(io::ErrorKind::UnexpectedEof.into()),
                result => break result,
            }
        };
        let kept = result.as_ref().map_or(0, |n| n.saturating_sub(first.len()));
        self.buffer.truncate(before + kept);
        result
    }

    /// Lets `lacking` bytes gather: on a slow link every packet would wake us.
    async fn gather(&mut self, n: usize, lacking: usize) {
        let pause = pause(n, self.last.elapsed(), lacking);
        self.last = Instant::now();
        if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
        }
    }
}

/// How long to let `lacking` bytes gather, when the last `n` took `elapsed`.
fn pause(n: usize, elapsed: Duration, lacking: usize) -> Option<Duration> {
    let rest = elapsed.mul_f64(lacking as f64 / n.max(1) as f64 * 0.75).min(GATHER_MAX);
    (lacking > GATHER_ABOVE && rest >= GATHER_MIN).then_some(rest)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::overlay::wire::{data_header, encode};

    async fn connected() -> (TcpStream, Incoming, Arc<Pool>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let sender = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let pool = Arc::<Pool>::default();
        let (read, _) = listener.accept().await.unwrap().0.into_split();
        (sender, Incoming::new(read, BytesMut::new(), pool.clone()), pool)
    }

    #[tokio::test]
    async fn groups_and_control_come_out_as_sent_however_they_are_cut_and_blocks_are_used_again() {
        let (mut sender, mut incoming, pool) = connected().await;
        let groups: Vec<Vec<u8>> = [GROUP_MAX as usize, 1, 0, 70, GROUP_MAX as usize - 1]
            .iter()
            .map(|len| (0..*len).map(|i| (i % 251) as u8).collect())
            .collect();
        let mut sent = BytesMut::new();
        for (i, data) in (0..).zip(&groups) {
            sent.extend_from_slice(&data_header(i, data.len()));
            sent.extend_from_slice(data);
            encode(&Message::Ours(Ours::Have(vec![i; 3000])), &mut sent);
        }
        let writing = tokio::spawn(async move {
            for part in sent.chunks(4093) {
                sender.write_all(part).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        for (i, data) in (0..).zip(&groups) {
            let expected = Message::Ours(Ours::Data { group: i, data: data.clone().into() });
            assert!(incoming.next().await.unwrap() == expected, "group {i}");
            assert_eq!(incoming.next().await.unwrap(), Message::Ours(Ours::Have(vec![i; 3000])));
        }
        writing.await.unwrap();
        assert_eq!(pool.0.lock().unwrap().len(), 1);
        assert_eq!(incoming.next().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn a_group_longer_than_groups_are_ends_the_connection() {
        let (mut sender, mut incoming, _) = connected().await;
        sender.write_all(&data_header(0, GROUP_MAX as usize + 1)).await.unwrap();
        sender.write_all(&[0; GROUP_MAX as usize + 1]).await.unwrap();
        assert!(incoming.next().await.unwrap_err().get_ref().is_some());
    }
}
