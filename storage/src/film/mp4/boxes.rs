//! ISO/IEC 14496-12 boxes in memory: a checked cursor over foreign bytes, and a writer.

use crate::film::error::{FilmError, damaged};

/// Deeper nesting than any index has.
const DEPTH_MAX: usize = 12;

/// Big-endian reader that ends instead of panicking.
#[derive(Clone, Copy, Debug)]
pub struct Cursor<'a>(pub &'a [u8]);

impl<'a> Cursor<'a> {
    pub fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_be_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_be_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_be_bytes)
    }

    /// 64 bits in version 1 boxes, 32 before.
    pub fn sized(&mut self, wide: bool) -> Option<u64> {
        if wide { self.u64() } else { self.u32().map(u64::from) }
    }

    /// Version and flags of a full box.
    pub fn version_flags(&mut self) -> Option<(u8, u32)> {
        let word = self.u32()?;
        Some(((word >> 24) as u8, word & 0xff_ffff))
    }
}

/// Size and kind at the front of a box.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: [u8; 4],
    /// 8 or 16.
    pub header: u64,
    /// With header; `None`: to the end of the file.
    pub size: Option<u64>,
}

/// Bytes that hold any header.
pub const HEADER_MAX: u64 = 16;

/// Reads a header from at least 8 bytes (16 if it is a wide one).
pub fn header(bytes: &[u8]) -> Option<Header> {
    let mut cursor = Cursor(bytes);
    let size = cursor.u32()?;
    let kind = cursor.take(4)?.try_into().ok()?;
    match size {
        0 => Some(Header { kind, header: 8, size: None }),
        1 => Some(Header { kind, header: 16, size: Some(cursor.u64().filter(|&size| size >= 16)?) }),
        2..8 => None,
        _ => Some(Header { kind, header: 8, size: Some(size.into()) }),
    }
}

/// A whole box in memory.
#[derive(Clone, Copy, Debug)]
pub struct Box<'a> {
    pub kind: [u8; 4],
    pub body: &'a [u8],
    /// Header and body.
    pub whole: &'a [u8],
    depth: usize,
}

impl<'a> Box<'a> {
    pub fn top(whole: &'a [u8]) -> Result<Self, FilmError> {
        Boxes { rest: whole, depth: 0 }.next().unwrap_or_else(|| Err(damaged("an empty box")))
    }

    pub fn cursor(&self) -> Cursor<'a> {
        Cursor(self.body)
    }

    pub fn boxes(&self) -> Boxes<'a> {
        Boxes { rest: self.body, depth: self.depth + 1 }
    }

    pub fn child(&self, kind: &[u8; 4]) -> Result<Option<Box<'a>>, FilmError> {
        for child in self.boxes() {
            let child = child?;
            if &child.kind == kind {
                return Ok(Some(child));
            }
        }
        Ok(None)
    }

    pub fn need(&self, kind: &[u8; 4]) -> Result<Box<'a>, FilmError> {
        let missing = || damaged(format!("{} without {}", name(&self.kind), name(kind)));
        self.child(kind)?.ok_or_else(missing)
    }

    /// A field that should have been there.
    pub fn short(&self) -> FilmError {
        damaged(format!("{} is too short", name(&self.kind)))
    }
}

/// The boxes inside a box.
#[derive(Clone, Debug)]
pub struct Boxes<'a> {
    rest: &'a [u8],
    depth: usize,
}

impl<'a> Boxes<'a> {
    pub fn of(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, depth: 0 }
    }
}

impl<'a> Iterator for Boxes<'a> {
    type Item = Result<Box<'a>, FilmError>;

    fn next(&mut self) -> Option<Self::Item> {
        // QuickTime ends some lists with four zero bytes.
        if self.rest.len() < 8 {
            return None;
        }
        let rest = std::mem::take(&mut self.rest);
        if self.depth > DEPTH_MAX {
            return Some(Err(FilmError::Limit { what: "depth of boxes", limit: DEPTH_MAX as u64 }));
        }
        let Some(header) = header(rest) else { return Some(Err(damaged("a box has an impossible size"))) };
        let size = header.size.unwrap_or(rest.len() as u64);
        let split = usize::try_from(size).ok().and_then(|size| rest.split_at_checked(size));
        let Some((whole, rest)) = split else {
            return Some(Err(damaged(format!("{} is longer than what holds it", name(&header.kind)))));
        };
        self.rest = rest;
        let body = whole.get(header.header as usize..).unwrap_or_default();
        Some(Ok(Box { kind: header.kind, body, whole, depth: self.depth }))
    }
}

pub fn name(kind: &[u8; 4]) -> String {
    kind.escape_ascii().to_string()
}

/// Writes boxes; sizes are filled in when the body is done.
#[derive(Debug, Default)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    pub fn boxed(&mut self, kind: &[u8; 4], body: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.u32(0);
        self.0.extend_from_slice(kind);
        body(self);
        // The caller's sample limit keeps every box far below 4 GiB.
        let size = (self.0.len() - start) as u32;
        self.0[start..start + 4].copy_from_slice(&size.to_be_bytes());
    }

    pub fn full(&mut self, kind: &[u8; 4], version: u8, flags: u32, body: impl FnOnce(&mut Self)) {
        self.boxed(kind, |w| {
            w.u32(u32::from(version) << 24 | flags);
            body(w);
        });
    }

    pub fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    pub fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// A table: its count, then its rows.
    pub fn rows<T>(&mut self, rows: &[T], mut row: impl FnMut(&mut Self, &T)) {
        self.u32(rows.len() as u32);
        for item in rows {
            row(self, item);
        }
    }
}
