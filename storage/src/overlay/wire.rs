//! The peer protocol, without I/O: BEP-3 frames, the BEP-10 handshake, and our extension inside it.
//!
//! Between our own peers everything after the handshakes travels in extension messages that speak of groups;
//! ordinary clients get plain BEP-3. Every length is checked before a byte is kept.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::bencode::Value;
use super::layout::GROUP_MAX;
use super::metainfo::{GroupHash, InfoHash};

/// Largest frame accepted: a group with its header, or the bitfield of the largest dataset BEP-3 can name here.
pub const FRAME_MAX: usize = 4 << 20;
/// BEP-3 clients ask for 16 KiB; more than this in one request is refused.
pub const BLOCK_MAX: u32 = 128 << 10;
pub const HANDSHAKE_LEN: usize = 68;
/// Our id for the extension, also the one we ask others to use.
const EXT_ID: u8 = 1;
const EXT_NAME: &str = "starling";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handshake {
    pub info_hash: InfoHash,
    pub peer_id: [u8; 20],
    /// The sender speaks BEP-10.
    pub extended: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    KeepAlive,
    Choke,
    Unchoke,
    Interested,
    NotInterested,
    Have(u32),
    Bitfield(Bytes),
    Request(Block),
    Piece {
        piece: u32,
        begin: u32,
        data: Bytes,
    },
    Cancel(Block),
    /// BEP-10 handshake.
    Hello(Hello),
    Ours(Ours),
    /// Known to some BEP and of no use here (port, suggest, foreign extensions).
    Ignored,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Block {
    pub piece: u32,
    pub begin: u32,
    pub len: u32,
}

/// What our peers tell each other first.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Hello {
    /// The sender speaks our extension.
    pub ours: bool,
    pub token: String,
    pub node: u64,
    /// Where the sender listens.
    pub port: u16,
    /// The sender is the origin: it gives by lease only.
    pub origin: bool,
}

/// Our extension's messages; group and chunk indices are global in the dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ours {
    /// Groups that the sender now holds, verified.
    Have(Vec<u32>),
    /// Bits of groups held, from group `first` on, in BEP-3 order.
    Bits {
        first: u32,
        bits: Bytes,
    },
    HashesWanted {
        chunk: u32,
    },
    Hashes {
        chunk: u32,
        hashes: Vec<GroupHash>,
    },
    /// These groups come unasked, as a lease of the origin.
    Lease {
        first: u32,
        count: u32,
    },
    Request {
        group: u32,
    },
    Data {
        group: u32,
        data: Bytes,
    },
    Cancel {
        group: u32,
    },
    /// The request is not served now; ask another.
    Reject {
        group: u32,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("not a BitTorrent handshake")]
    Handshake,
    #[error("frame of {0} bytes is too large")]
    TooLarge(usize),
    #[error("malformed message of type {0}")]
    Malformed(u8),
}

impl Handshake {
    pub fn encode(&self) -> [u8; HANDSHAKE_LEN] {
        let mut out = [0; HANDSHAKE_LEN];
        out[0] = 19;
        out[1..20].copy_from_slice(b"BitTorrent protocol");
        out[25] = if self.extended { 0x10 } else { 0 };
        out[28..48].copy_from_slice(&self.info_hash);
        out[48..].copy_from_slice(&self.peer_id);
        out
    }

    pub fn decode(input: &[u8; HANDSHAKE_LEN]) -> Result<Self, Error> {
        if input[0] != 19 || &input[1..20] != b"BitTorrent protocol" {
            return Err(Error::Handshake);
        }
        let field = |from: usize| std::array::from_fn(|i| input[from + i]);
        Ok(Self { info_hash: field(28), peer_id: field(48), extended: input[25] & 0x10 != 0 })
    }
}

/// Takes the next whole frame off `buffer`, or says that more bytes are needed (`None`).
pub fn decode(buffer: &mut BytesMut) -> Result<Option<Message>, Error> {
    let Some(head) = buffer.first_chunk::<4>() else { return Ok(None) };
    let len = u32::from_be_bytes(*head) as usize;
    if len > FRAME_MAX {
        return Err(Error::TooLarge(len));
    }
    if buffer.len() < 4 + len {
        buffer.reserve(4 + len - buffer.len());
        return Ok(None);
    }
    buffer.advance(4);
    parse(buffer.split_to(len).freeze()).map(Some)
}

/// Bytes that the frame begun in `buffer` still lacks; 0 if it is whole or its length is not known.
pub fn lacking(buffer: &[u8]) -> usize {
    buffer.first_chunk::<4>().map_or(0, |head| (4 + u32::from_be_bytes(*head) as usize).saturating_sub(buffer.len()))
}

fn parse(mut frame: Bytes) -> Result<Message, Error> {
    if frame.is_empty() {
        return Ok(Message::KeepAlive);
    }
    let kind = frame.get_u8();
    let bad = Error::Malformed(kind);
    let exact = |len: usize| if frame.len() == len { Ok(()) } else { Err(bad.clone()) };
    Ok(match kind {
        0..=3 => {
            exact(0)?;
            [Message::Choke, Message::Unchoke, Message::Interested, Message::NotInterested][kind as usize].clone()
        }
        4 => {
            exact(4)?;
            Message::Have(frame.get_u32())
        }
        5 => Message::Bitfield(frame),
        6 | 8 => {
            exact(12)?;
            let block = Block { piece: frame.get_u32(), begin: frame.get_u32(), len: frame.get_u32() };
            if kind == 6 { Message::Request(block) } else { Message::Cancel(block) }
        }
        7 => {
            let (piece, begin) = frame.try_get_u32().and_then(|p| Ok((p, frame.try_get_u32()?))).map_err(|_| bad)?;
            Message::Piece { piece, begin, data: frame }
        }
        20 => match frame.try_get_u8().map_err(|_| bad.clone())? {
            0 => Message::Hello(Hello::decode(&frame)),
            EXT_ID => Message::Ours(parse_ours(frame).ok_or(bad)?),
            _ => Message::Ignored,
        },
        _ => Message::Ignored,
    })
}

fn parse_ours(mut frame: Bytes) -> Option<Ours> {
    let kind = frame.try_get_u8().ok()?;
    if kind == 0 {
        let (words, rest) = frame.as_chunks::<4>();
        return rest.is_empty().then(|| Ours::Have(words.iter().map(|w| u32::from_be_bytes(*w)).collect()));
    }
    let index = frame.try_get_u32().ok()?;
    let done = frame.is_empty();
    match kind {
        1 => Some(Ours::Bits { first: index, bits: frame }),
        2 if done => Some(Ours::HashesWanted { chunk: index }),
        3 => {
            let (hashes, rest) = frame.as_chunks::<32>();
            rest.is_empty().then(|| Ours::Hashes { chunk: index, hashes: hashes.to_vec() })
        }
        4 if frame.len() == 4 => Some(Ours::Lease { first: index, count: frame.get_u32() }),
        5 if done => Some(Ours::Request { group: index }),
        6 if frame.len() as u64 <= GROUP_MAX => Some(Ours::Data { group: index, data: frame }),
        7 if done => Some(Ours::Cancel { group: index }),
        8 if done => Some(Ours::Reject { group: index }),
        _ => None,
    }
}

/// Length of [`data_header`].
pub const DATA_HEAD: usize = 11;

/// Group and length of the data message that begins in `buffer`, if its header is there; its body can then be read to where it
/// shall lie. One of a forbidden length is left to [`decode`], which refuses it.
pub fn data_head(buffer: &[u8]) -> Option<(u32, usize)> {
    let (head, _) = buffer.split_first_chunk::<DATA_HEAD>()?;
    let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let len = (word(0) as usize).checked_sub(DATA_HEAD - 4)?;
    (head[4..7] == [20, EXT_ID, 6] && len as u64 <= GROUP_MAX).then_some((word(7), len))
}

/// Header of a data message, so that the body can be written from where it lies.
pub fn data_header(group: u32, len: usize) -> [u8; DATA_HEAD] {
    let mut head = [0; DATA_HEAD];
    head[..4].copy_from_slice(&(len as u32 + 7).to_be_bytes());
    head[4..7].copy_from_slice(&[20, EXT_ID, 6]);
    head[7..].copy_from_slice(&group.to_be_bytes());
    head
}

/// Header of a BEP-3 piece message.
pub fn piece_header(piece: u32, begin: u32, len: usize) -> [u8; 13] {
    let mut head = [0; 13];
    head[..4].copy_from_slice(&(len as u32 + 9).to_be_bytes());
    head[4] = 7;
    head[5..9].copy_from_slice(&piece.to_be_bytes());
    head[9..].copy_from_slice(&begin.to_be_bytes());
    head
}

/// Appends the message as one frame.
pub fn encode(message: &Message, out: &mut BytesMut) {
    let start = out.len();
    out.put_u32(0);
    match message {
        Message::KeepAlive | Message::Ignored => {}
        Message::Choke => out.put_u8(0),
        Message::Unchoke => out.put_u8(1),
        Message::Interested => out.put_u8(2),
        Message::NotInterested => out.put_u8(3),
        Message::Have(piece) => put(out, 4, &[*piece]),
        Message::Bitfield(bits) => {
            out.put_u8(5);
            out.put_slice(bits);
        }
        Message::Request(b) => put(out, 6, &[b.piece, b.begin, b.len]),
        Message::Cancel(b) => put(out, 8, &[b.piece, b.begin, b.len]),
        Message::Piece { piece, begin, data } => {
            put(out, 7, &[*piece, *begin]);
            out.put_slice(data);
        }
        Message::Hello(hello) => {
            out.put_slice(&[20, 0]);
            out.put_slice(&hello.encode());
        }
        Message::Ours(ours) => {
            out.put_slice(&[20, EXT_ID]);
            put_ours(ours, out);
        }
    }
    let len = (out.len() - start - 4) as u32;
    out[start..start + 4].copy_from_slice(&len.to_be_bytes());
}

fn put(out: &mut BytesMut, kind: u8, words: &[u32]) {
    out.put_u8(kind);
    words.iter().for_each(|word| out.put_u32(*word));
}

fn put_ours(ours: &Ours, out: &mut BytesMut) {
    match ours {
        Ours::Have(groups) => put(out, 0, groups),
        Ours::Bits { first, bits } => {
            put(out, 1, &[*first]);
            out.put_slice(bits);
        }
        Ours::HashesWanted { chunk } => put(out, 2, &[*chunk]),
        Ours::Hashes { chunk, hashes } => {
            put(out, 3, &[*chunk]);
            hashes.iter().for_each(|hash| out.put_slice(hash));
        }
        Ours::Lease { first, count } => put(out, 4, &[*first, *count]),
        Ours::Request { group } => put(out, 5, &[*group]),
        Ours::Data { group, data } => {
            put(out, 6, &[*group]);
            out.put_slice(data);
        }
        Ours::Cancel { group } => put(out, 7, &[*group]),
        Ours::Reject { group } => put(out, 8, &[*group]),
    }
}

impl Hello {
    fn encode(&self) -> Vec<u8> {
        let names = Value::dict([(EXT_NAME, Value::Int(i64::from(EXT_ID)))]);
        let ours = Value::dict([
            ("node", Value::bytes(self.node.to_be_bytes().to_vec())),
            ("origin", Value::Int(i64::from(self.origin))),
            ("token", Value::text(&self.token)),
        ]);
        let port = Value::Int(i64::from(self.port));
        Value::dict([("m", names), ("p", port), ("starling", ours), ("v", Value::text("starling"))]).encode()
    }

    /// An ordinary client's hello, or a broken one, is a hello that does not speak our extension.
    fn decode(payload: &[u8]) -> Self {
        let Ok(dict) = super::bencode::decode(payload) else { return Self::default() };
        let id = dict.get("m").and_then(|m| m.get(EXT_NAME)).and_then(Value::as_int);
        let Some(ours) = dict.get("starling").filter(|_| id == Some(i64::from(EXT_ID))) else { return Self::default() };
        let node = ours.get("node").and_then(Value::as_bytes).and_then(|b| b.try_into().ok()).map(u64::from_be_bytes);
        let Some(node) = node else { return Self::default() };
        let token = ours.get("token").and_then(Value::as_str).unwrap_or_default().to_owned();
        let port = dict.get("p").and_then(Value::as_int).and_then(|p| u16::try_from(p).ok()).unwrap_or(0);
        Self { ours: true, token, node, port, origin: ours.get("origin").and_then(Value::as_int) == Some(1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip(message: Message) {
        let mut buffer = BytesMut::new();
        encode(&message, &mut buffer);
        encode(&Message::Choke, &mut buffer);
        assert_eq!(decode(&mut buffer).unwrap(), Some(message));
        assert_eq!(decode(&mut buffer).unwrap(), Some(Message::Choke));
        assert!(buffer.is_empty());
    }

    #[test]
    fn every_message_reads_back_as_written() {
        let block = Block { piece: 1, begin: 2, len: 3 };
        let bytes = Bytes::from_static(b"abc");
        [
            Message::KeepAlive,
            Message::Interested,
            Message::Have(7),
            Message::Bitfield(bytes.clone()),
            Message::Request(block),
            Message::Cancel(block),
            Message::Piece { piece: 1, begin: 0, data: bytes.clone() },
            Message::Hello(Hello { ours: true, token: "t".into(), node: 5, port: 9, origin: true }),
            Message::Ours(Ours::Have(vec![1, 2])),
            Message::Ours(Ours::Bits { first: 8, bits: bytes.clone() }),
            Message::Ours(Ours::HashesWanted { chunk: 3 }),
            Message::Ours(Ours::Hashes { chunk: 3, hashes: vec![[9; 32]; 2] }),
            Message::Ours(Ours::Lease { first: 1, count: 4 }),
            Message::Ours(Ours::Request { group: 3 }),
            Message::Ours(Ours::Data { group: 3, data: bytes }),
            Message::Ours(Ours::Cancel { group: 3 }),
            Message::Ours(Ours::Reject { group: 3 }),
        ]
        .into_iter()
        .for_each(round_trip);
    }

    #[test]
    fn headers_equal_the_encoded_messages() {
        let data = Bytes::from_static(b"xyz");
        let mut out = BytesMut::new();
        encode(&Message::Ours(Ours::Data { group: 9, data: data.clone() }), &mut out);
        assert_eq!(out[..DATA_HEAD], data_header(9, 3));
        assert_eq!((data_head(&out), data_head(&out[..DATA_HEAD - 1])), (Some((9, 3)), None));
        assert_eq!(data_head(&data_header(9, GROUP_MAX as usize + 1)), None);
        out.clear();
        encode(&Message::Piece { piece: 4, begin: 5, data }, &mut out);
        assert_eq!(out[..13], piece_header(4, 5, 3));
    }

    #[test]
    fn a_two_gigabyte_message_is_refused_from_its_header() {
        let mut buffer = BytesMut::from(&[0x80, 0, 0, 0][..]);
        assert_eq!(decode(&mut buffer), Err(Error::TooLarge(2 << 30)));
    }

    proptest! {
        #[test]
        fn no_bytes_panic_the_decoder(input in proptest::collection::vec(any::<u8>(), 0..64), kind in 0u8..22) {
            let mut framed = BytesMut::new();
            framed.put_u32(input.len() as u32 + 1);
            framed.put_u8(kind);
            framed.put_slice(&input);
            let _ = decode(&mut framed);
            let _ = decode(&mut BytesMut::from(&input[..]));
        }
    }
}
