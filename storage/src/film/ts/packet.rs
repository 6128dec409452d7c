//! Transport packets, program tables and PES heads (ISO/IEC 13818-1), over bytes that may end anywhere.

pub const PACKET: usize = 188;
/// Bytes of program tables that are put before each part.
const TABLES_MAX: usize = 64 * PACKET;
/// Bytes of parameter sets, which go into one PES packet.
const PARAMETERS_MAX: usize = 1 << 15;

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

/// What must come before a part: the program's tables, and what decodes its pictures. A picture of the film's beginning would be decoded
/// before those of the part, and where pictures count on from afar (open groups), be shown among them or in the place of one.
pub struct Setup {
    pid: u16,
    /// Whole packets.
    tables: Vec<u8>,
    parameters: Vec<u8>,
}

impl Setup {
    /// From the first bytes of a film.
    pub fn read(bytes: &[u8], video: Stream) -> Option<Self> {
        let pmt = map_pid(bytes)?;
        let count = bytes.len() / PACKET;
        let told = |packets: &usize| program(&bytes[..packets * PACKET]).is_some();
        let enough = (0..=count).collect::<Vec<_>>().partition_point(|packets| !told(packets));
        let chunks = bytes.chunks_exact(PACKET).take(enough);
        let tables = chunks.filter(|chunk| packet(chunk).is_some_and(|p| p.pid == 0 || p.pid == pmt)).flatten();
        let tables: Vec<u8> = tables.copied().take(TABLES_MAX + 1).collect();
        let parameters = parameters(video.kind, &elementary(bytes, video.pid))?;
        let is_short = tables.len() <= TABLES_MAX && parameters.len() <= PARAMETERS_MAX;
        is_short.then_some(Self { pid: video.pid, tables, parameters })
    }

    /// As if it were the beginning of `next`, the part's first picture.
    pub fn before(&self, next: &Start) -> Vec<u8> {
        let mut unit = vec![0, 0, 1, 0xe0];
        unit.extend((13 + self.parameters.len() as u16).to_be_bytes());
        unit.extend([0x80, 0xc0, 10]);
        unit.extend(timestamp(3, next.pts));
        unit.extend(timestamp(1, next.dts));
        unit.extend(&self.parameters);
        let (mut head, mut unit_start) = (self.tables.clone(), 0x40);
        for payload in unit.chunks(PACKET - 4) {
            let [high, low] = self.pid.to_be_bytes();
            let stuffing = PACKET - 4 - payload.len();
            head.extend([0x47, high | unit_start, low, if stuffing == 0 { 0x10 } else { 0x30 }]);
            // An adaptation field: its length, no flags, and what fills it.
            let field = [stuffing.saturating_sub(1) as u8, 0].into_iter().chain(std::iter::repeat(0xff));
            head.extend(field.take(stuffing));
            head.extend(payload);
            unit_start = 0;
        }
        head
    }
}

/// A stream's own bytes, without packets and PES heads.
fn elementary(bytes: &[u8], pid: u16) -> Vec<u8> {
    let payload = |packet: Packet<'_>| match packet.unit_start {
        true => packet.payload.get(9 + usize::from(*packet.payload.get(8)?)..).map(<[u8]>::to_vec),
        false => Some(packet.payload.to_vec()),
    };
    let packets = bytes.chunks_exact(PACKET).filter_map(packet).filter(|packet| packet.pid == pid);
    packets.filter_map(payload).flatten().collect()
}

/// The first parameter sets (ITU-T H.264 7.4.1, H.265 7.4.2), or sequence headers (H.262 6.2.2, MPEG-4 Visual), up to the picture after them.
fn parameters(kind: u8, stream: &[u8]) -> Option<Vec<u8>> {
    let begins: Vec<usize> = stream.windows(3).enumerate().filter(|(_, w)| w == &[0, 0, 1]).map(|(i, _)| i).collect();
    let is_set = |code: u8| match kind {
        0x1b => matches!(code & 0x1f, 7 | 8 | 13 | 15),
        0x24 => matches!(code >> 1 & 0x3f, 32..=34),
        0x10 => matches!(code, 0..=0x2f | 0xb0 | 0xb2 | 0xb5),
        _ => matches!(code, 0xb2 | 0xb3 | 0xb5),
    };
    let is_picture = |code: u8| match kind {
        0x1b => matches!(code & 0x1f, 1..=5),
        0x24 => code >> 1 & 0x3f < 32,
        0x10 => code == 0xb6,
        _ => code == 0,
    };
    // The last of these bytes may have been cut short.
    let units = begins.windows(2).filter_map(|pair| stream.get(pair[0]..pair[1]).filter(|unit| unit.len() > 3));
    let sets = units.skip_while(|unit| !is_set(unit[3])).take_while(|unit| !is_picture(unit[3]));
    let sets = sets.filter(|unit| is_set(unit[3])).flatten().copied().collect::<Vec<u8>>();
    Some(sets).filter(|sets| !sets.is_empty())
}

/// ISO/IEC 13818-1, 2.4.3.6; `mark` is the four bits before it.
fn timestamp(mark: u8, time: i64) -> [u8; 5] {
    let bits = |shift: u32| (time >> shift) as u8;
    [mark << 4 | bits(29) & 0xe | 1, bits(22), bits(14) | 1, bits(7), bits(0) << 1 | 1]
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

/// Where the first program's table is.
fn map_pid(bytes: &[u8]) -> Option<u16> {
    let pat = section(bytes, 0, 0)?;
    let entry = pat.get(8..)?.chunks_exact(4).find(|entry| entry[..2] != [0, 0])?;
    Some(u16::from(entry[2] & 0x1f) << 8 | u16::from(entry[3]))
}

/// The streams of the first program, if its tables are whole in these bytes.
pub fn program(bytes: &[u8]) -> Option<Vec<Stream>> {
    let pmt = section(bytes, map_pid(bytes)?, 2)?;
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
