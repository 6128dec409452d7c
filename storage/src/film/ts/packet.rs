//! Transport packets, program tables and PES heads (ISO/IEC 13818-1), over bytes that may end anywhere.

pub const PACKET: usize = 188;

/// The start of a picture or of a few sound packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// Byte of the packet in the file.
    pub at: u64,
    pub pid: u16,
    pub pts: i64,
    pub dts: i64,
    pub key: bool,
}

/// One elementary stream of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    pub pid: u16,
    pub kind: u8,
    /// First descriptor tag that names a codec of private data.
    pub private: u8,
}

/// A packet's fields.
struct Packet<'a> {
    pid: u16,
    unit_start: bool,
    random_access: bool,
    payload: &'a [u8],
}

fn packet(bytes: &[u8]) -> Option<Packet<'_>> {
    let &[0x47, high, low, control, ..] = bytes else { return None };
    let (mut skip, mut random_access) = (4, false);
    if control & 0x20 != 0 {
        let length = usize::from(*bytes.get(4)?);
        random_access = length > 0 && bytes.get(5)? & 0x40 != 0;
        skip += 1 + length;
    }
    let payload = if control & 0x10 != 0 { bytes.get(skip..)? } else { &[] };
    let pid = u16::from(high & 0x1f) << 8 | u16::from(low);
    Some(Packet { pid, unit_start: high & 0x40 != 0, random_access, payload })
}

/// Starts of PES packets with a time on the given streams; `at` is where `bytes` stand in the file, on a packet boundary.
pub fn starts(bytes: &[u8], at: u64, pids: &[u16]) -> Vec<Start> {
    let packets = bytes.chunks_exact(PACKET).enumerate();
    let start = |(i, chunk)| {
        let packet: Packet = packet(chunk)?;
        if !packet.unit_start || !pids.contains(&packet.pid) {
            return None;
        }
        let (pts, dts) = times(packet.payload)?;
        let at = at + (i * PACKET) as u64;
        Some(Start { at, pid: packet.pid, pts, dts, key: packet.random_access })
    };
    packets.filter_map(start).collect()
}

/// The bytes that follow the PES head of the first unit of a stream, as far as its packet has them.
pub fn first_payload(bytes: &[u8], pid: u16) -> Option<&[u8]> {
    let mut packets = bytes.chunks_exact(PACKET).filter_map(packet);
    let unit = packets.find(|packet| packet.pid == pid && packet.unit_start)?;
    let length = usize::from(*unit.payload.get(8)?);
    unit.payload.get(9 + length..)
}

fn times(pes: &[u8]) -> Option<(i64, i64)> {
    if pes.get(..3)? != [0, 0, 1] {
        return None;
    }
    let flags = pes.get(7)? >> 6;
    let pts = time(pes.get(9..14)?)?;
    match flags {
        2 => Some((pts, pts)),
        3 => Some((pts, time(pes.get(14..19)?)?)),
        _ => None,
    }
}

fn time(bytes: &[u8]) -> Option<i64> {
    let &[a, b, c, d, e] = bytes else { return None };
    let field = |byte: u8, shift: u32, up: u32| i64::from(byte >> shift) << up;
    Some(field(a & 0xe, 1, 30) | field(b, 0, 22) | field(c, 1, 15) | field(d, 0, 7) | field(e, 1, 0))
}

/// The streams of the first program, if its tables are whole in these bytes.
pub fn program(bytes: &[u8]) -> Option<Vec<Stream>> {
    let pat = section(bytes, 0, 0)?;
    let entry = pat.get(8..)?.chunks_exact(4).find(|entry| entry[..2] != [0, 0])?;
    let pmt = section(bytes, u16::from(entry[2] & 0x1f) << 8 | u16::from(entry[3]), 2)?;
    let info = length(pmt.get(10..12)?);
    let mut rest = pmt.get(12 + info..pmt.len().checked_sub(4)?)?;
    let mut streams = Vec::new();
    while let [kind, high, low, info_high, info_low, tail @ ..] = rest {
        let (descriptors, tail) = tail.split_at_checked(length(&[*info_high, *info_low]))?;
        let pid = u16::from(high & 0x1f) << 8 | u16::from(*low);
        streams.push(Stream { pid, kind: *kind, private: private(descriptors) });
        rest = tail;
    }
    Some(streams)
}

fn private(mut descriptors: &[u8]) -> u8 {
    while let [tag, length, rest @ ..] = descriptors {
        if matches!(tag, 0x6a | 0x7a) {
            return *tag;
        }
        descriptors = rest.get(usize::from(*length)..).unwrap_or_default();
    }
    0
}

/// A table section, put together from its packets.
fn section(bytes: &[u8], pid: u16, table: u8) -> Option<Vec<u8>> {
    let mut section: Vec<u8> = Vec::new();
    for packet in bytes.chunks_exact(PACKET).filter_map(packet).filter(|packet| packet.pid == pid) {
        if packet.unit_start {
            let pointer = usize::from(*packet.payload.first()?);
            section = packet.payload.get(1 + pointer..)?.to_vec();
        } else if !section.is_empty() {
            section.extend_from_slice(packet.payload);
        }
        let whole = section.get(1..3).map(|field| 3 + length(field));
        if section.first() == Some(&table) && whole.is_some_and(|whole| section.len() >= whole) {
            section.truncate(whole?);
            return Some(section);
        }
    }
    None
}

fn length(field: &[u8]) -> usize {
    match field {
        [high, low, ..] => usize::from(high & 0xf) << 8 | usize::from(*low),
        _ => 0,
    }
}
