//! EBML elements (RFC 8794), and the blocks of Matroska clusters, over bytes that may end anywhere.

use crate::film::error::{FilmError, damaged};

pub const CLUSTER: u32 = 0x1f43_b675;
const TIMESTAMP: u32 = 0xe7;
const BLOCK_GROUP: u32 = 0xa0;
const BLOCK: u32 = 0xa1;
const SIMPLE_BLOCK: u32 = 0xa3;

/// The front of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Front {
    pub id: u32,
    /// Bytes of id and size.
    pub header: u64,
    /// Bytes of the body; `None`: unknown, until an element of a higher level.
    pub body: Option<u64>,
}

/// Bytes that hold any front.
pub const FRONT_MAX: u64 = 12;

pub fn front(bytes: &[u8]) -> Option<Front> {
    let id_length = bytes.first()?.leading_zeros() as usize + 1;
    if id_length > 4 {
        return None;
    }
    let id = bytes.get(..id_length)?.iter().fold(0, |id, &byte| id << 8 | u32::from(byte));
    let (body, size_length) = number(bytes.get(id_length..)?)?;
    Some(Front { id, header: (id_length + size_length) as u64, body })
}

/// A variable-length number and its bytes; all ones mean unknown.
pub fn number(bytes: &[u8]) -> Option<(Option<u64>, usize)> {
    let first = *bytes.first()?;
    let length = first.leading_zeros() as usize + 1;
    if length > 8 {
        return None;
    }
    let all = bytes.get(..length)?.iter().fold(0u64, |value, &byte| value << 8 | u64::from(byte));
    let mask = (1u64 << (7 * length)) - 1;
    let value = all & mask;
    Some(((value != mask).then_some(value), length))
}

/// The children in a whole body.
pub struct Elements<'a>(pub &'a [u8]);

impl<'a> Iterator for Elements<'a> {
    type Item = Result<(u32, &'a [u8]), FilmError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let bytes = std::mem::take(&mut self.0);
        let read = || {
            let front = front(bytes)?;
            let (_, rest) = bytes.split_at_checked(front.header as usize)?;
            let (body, rest) = rest.split_at_checked(usize::try_from(front.body?).ok()?)?;
            Some((front.id, body, rest))
        };
        let Some((id, body, rest)) = read() else { return Some(Err(damaged("a Matroska element is too long"))) };
        self.0 = rest;
        Some(Ok((id, body)))
    }
}

pub fn child(body: &[u8], wanted: u32) -> Result<Option<&[u8]>, FilmError> {
    for element in Elements(body) {
        let (id, body) = element?;
        if id == wanted {
            return Ok(Some(body));
        }
    }
    Ok(None)
}

pub fn unsigned(body: &[u8]) -> u64 {
    body.iter().take(8).fold(0, |value, &byte| value << 8 | u64::from(byte))
}

pub fn float(body: &[u8]) -> f64 {
    match body.len() {
        4 => body.try_into().map_or(0.0, |bytes| f64::from(f32::from_be_bytes(bytes))),
        8 => body.try_into().map_or(0.0, f64::from_be_bytes),
        _ => 0.0,
    }
}

/// A coded picture or sound packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    pub track: u64,
    /// Ticks of the segment.
    pub time: i64,
    /// Bytes from the start of the reader to the end of the block.
    pub end: u64,
}

/// Walks clusters from the start of one; stops where the bytes end or make no sense.
pub struct Blocks<'a> {
    bytes: &'a [u8],
    at: usize,
    cluster: i64,
}

impl<'a> Blocks<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, cluster: 0 }
    }
}

impl Iterator for Blocks<'_> {
    type Item = Block;

    fn next(&mut self) -> Option<Block> {
        loop {
            let rest = self.bytes.get(self.at..)?;
            let front = front(rest)?;
            let header = front.header as usize;
            if matches!(front.id, CLUSTER | BLOCK_GROUP) {
                self.at += header;
                continue;
            }
            let length = usize::try_from(front.body?).ok()?;
            let body = rest.get(header..)?.get(..length)?;
            self.at += header + length;
            match front.id {
                TIMESTAMP => self.cluster = i64::try_from(unsigned(body)).ok()?,
                BLOCK | SIMPLE_BLOCK => {
                    let (track, skip) = number(body)?;
                    let relative = i16::from_be_bytes(body.get(skip..skip + 2)?.try_into().ok()?);
                    let time = self.cluster.checked_add(relative.into())?;
                    return Some(Block { track: track?, time, end: self.at as u64 });
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_know_their_length_and_the_unknown() {
        assert_eq!(number(&[0x81]), Some((Some(1), 1)));
        assert_eq!(number(&[0x40, 0x7f, 9]), Some((Some(127), 2)));
        assert_eq!(number(&[0x01, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), Some((None, 8)));
        assert_eq!(number(&[0x00]), None);
        assert_eq!(number(&[0x40]), None);
    }

    #[test]
    fn blocks_are_read_up_to_where_the_bytes_end() {
        let cluster =
            [0x1f, 0x43, 0xb6, 0x75, 0xff, 0xe7, 0x81, 100, 0xa3, 0x85, 0x81, 0, 5, 0x80, 1, 0xa3, 0x85, 0x81];
        let found: Vec<Block> = Blocks::new(&cluster).collect();
        assert_eq!(found, [Block { track: 1, time: 105, end: 15 }]);
    }
}
