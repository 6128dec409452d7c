//! Bencode (BEP-3) read strictly and without copying, from senders that may lie.
//!
//! Strict: keys sorted and distinct, no leading zeros, nothing after the value. Bounded: depth and number of items, so
//! that nesting costs neither stack nor memory. What is decoded encodes to the same bytes again.

use std::borrow::Cow;

/// No message of ours or of the BEPs spoken here nests deeper than this.
const DEPTH_MAX: usize = 16;
/// A torrent of a million files needs about four values per file.
const ITEMS_MAX: usize = 4 << 20;

/// One bencoded value; byte strings borrow from the input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    Int(i64),
    Bytes(Cow<'a, [u8]>),
    List(Vec<Value<'a>>),
    Dict(Vec<(Cow<'a, [u8]>, Value<'a>)>),
}

/// Where and why bencoded bytes were refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bencode refused at byte {at}: {why}")]
pub struct Error {
    pub at: usize,
    pub why: &'static str,
}

/// Reads exactly one value that fills `input`.
pub fn decode(input: &[u8]) -> Result<Value<'_>, Error> {
    let mut reader = Reader { input, at: 0, items: 0 };
    let value = reader.value(0)?;
    if reader.at == input.len() { Ok(value) } else { reader.fail("bytes after the value") }
}

/// The raw bytes of one entry of a top-level dictionary, as hashed for an info-hash.
pub fn raw_entry<'a>(input: &'a [u8], key: &[u8]) -> Result<Option<&'a [u8]>, Error> {
    let mut reader = Reader { input, at: 0, items: 0 };
    if reader.next()? != b'd' {
        return reader.fail("not a dictionary");
    }
    while reader.peek()? != b'e' {
        let name = reader.bytes()?;
        let start = reader.at;
        reader.value(1)?;
        if name == key {
            return Ok(input.get(start..reader.at));
        }
    }
    Ok(None)
}

impl<'a> Value<'a> {
    pub fn bytes(data: impl Into<Cow<'a, [u8]>>) -> Self {
        Value::Bytes(data.into())
    }

    pub fn text(text: &'a str) -> Self {
        Value::Bytes(text.as_bytes().into())
    }

    /// A dictionary from entries in any order.
    pub fn dict(entries: impl IntoIterator<Item = (&'a str, Value<'a>)>) -> Self {
        let mut entries: Vec<_> = entries.into_iter().map(|(k, v)| (Cow::from(k.as_bytes()), v)).collect();
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        Value::Dict(entries)
    }

    pub fn get(&self, key: &str) -> Option<&Value<'a>> {
        let Value::Dict(entries) = self else { return None };
        let found = entries.binary_search_by(|(k, _)| k.as_ref().cmp(key.as_bytes())).ok()?;
        entries.get(found).map(|(_, v)| v)
    }

    pub fn as_bytes(&self) -> Option<&[u8]> {
        if let Value::Bytes(data) = self { Some(data) } else { None }
    }

    pub fn as_str(&self) -> Option<&str> {
        self.as_bytes().and_then(|data| std::str::from_utf8(data).ok())
    }

    pub fn as_int(&self) -> Option<i64> {
        if let Value::Int(n) = self { Some(*n) } else { None }
    }

    pub fn as_list(&self) -> Option<&[Value<'a>]> {
        if let Value::List(items) = self { Some(items) } else { None }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out);
        out
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Value::Int(n) => out.extend_from_slice(format!("i{n}e").as_bytes()),
            Value::Bytes(data) => write_bytes(out, data),
            Value::List(items) => {
                out.push(b'l');
                items.iter().for_each(|item| item.write(out));
                out.push(b'e');
            }
            Value::Dict(entries) => {
                out.push(b'd');
                for (key, value) in entries {
                    write_bytes(out, key);
                    value.write(out);
                }
                out.push(b'e');
            }
        }
    }
}

fn write_bytes(out: &mut Vec<u8>, data: &[u8]) {
    out.extend_from_slice(data.len().to_string().as_bytes());
    out.push(b':');
    out.extend_from_slice(data);
}

struct Reader<'a> {
    input: &'a [u8],
    at: usize,
    items: usize,
}

impl<'a> Reader<'a> {
    fn fail<T>(&self, why: &'static str) -> Result<T, Error> {
        Err(Error { at: self.at, why })
    }

    fn peek(&self) -> Result<u8, Error> {
        self.input.get(self.at).copied().ok_or(Error { at: self.at, why: "ends too soon" })
    }

    fn next(&mut self) -> Result<u8, Error> {
        let byte = self.peek()?;
        self.at += 1;
        Ok(byte)
    }

    fn value(&mut self, depth: usize) -> Result<Value<'a>, Error> {
        self.items += 1;
        if depth > DEPTH_MAX || self.items > ITEMS_MAX {
            return self.fail("nested too deep or too many values");
        }
        match self.peek()? {
            b'i' => {
                self.at += 1;
                self.number(b'e').map(Value::Int)
            }
            b'0'..=b'9' => self.bytes().map(|data| Value::Bytes(data.into())),
            b'l' => {
                self.at += 1;
                let mut items = Vec::new();
                while self.peek()? != b'e' {
                    items.push(self.value(depth + 1)?);
                }
                self.at += 1;
                Ok(Value::List(items))
            }
            b'd' => {
                self.at += 1;
                let mut entries: Vec<(Cow<'a, [u8]>, Value<'a>)> = Vec::new();
                while self.peek()? != b'e' {
                    let key = self.bytes()?;
                    if entries.last().is_some_and(|(last, _)| last.as_ref() >= key) {
                        return self.fail("keys repeat or are not sorted");
                    }
                    entries.push((key.into(), self.value(depth + 1)?));
                }
                self.at += 1;
                Ok(Value::Dict(entries))
            }
            _ => self.fail("not a value"),
        }
    }

    fn bytes(&mut self) -> Result<&'a [u8], Error> {
        let len = usize::try_from(self.number(b':')?).map_err(|_| Error { at: self.at, why: "negative length" })?;
        let end = self.at.checked_add(len).filter(|end| *end <= self.input.len());
        let Some(end) = end else { return self.fail("string longer than the input") };
        let data = &self.input[self.at..end];
        self.at = end;
        Ok(data)
    }

    fn number(&mut self, end: u8) -> Result<i64, Error> {
        let start = self.at;
        while self.peek()? != end {
            self.at += 1;
            if self.at - start > 20 {
                return self.fail("number too long");
            }
        }
        let digits = &self.input[start..self.at];
        let unsigned = digits.strip_prefix(b"-").unwrap_or(digits);
        let canonical =
            unsigned.iter().all(u8::is_ascii_digit) && !unsigned.is_empty() && (unsigned[0] != b'0' || digits == b"0");
        if !canonical {
            return self.fail("not a canonical number");
        }
        let number = std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok());
        let Some(number) = number else { return self.fail("number does not fit 64 bits") };
        self.at += 1;
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_not_canonical_is_refused() {
        for bad in [
            &b"i01e"[..],
            b"i-0e",
            b"ie",
            b"i-e",
            b"i+1e",
            b"i99999999999999999999e",
            b"d1:b0:1:a0:e",
            b"d1:a0:1:a0:e",
            b"di1e0:e",
            b"5:abc",
            b"l",
            b"",
            b"i1ei2e",
            b"-1:a",
            b"99999999999999999999:",
            b"01:a",
            b"x",
        ] {
            assert!(decode(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn deep_nesting_costs_nothing() {
        let nested = vec![b'l'; 64 << 20];
        assert_eq!(decode(&nested).unwrap_err().why, "nested too deep or too many values");
    }

    #[test]
    fn the_raw_info_dictionary_is_found() {
        let torrent = b"d8:announce3:url4:infod4:name1:xee";
        assert_eq!(raw_entry(torrent, b"info").unwrap(), Some(&b"d4:name1:xe"[..]));
        assert_eq!(decode(torrent).unwrap().get("announce").unwrap().as_str(), Some("url"));
    }

    proptest! {
        #[test]
        fn what_decodes_encodes_to_the_same_bytes(input in proptest::collection::vec(proptest::sample::select(b"dlei0123:a-".to_vec()), 0..24)) {
            if let Ok(value) = decode(&input) {
                prop_assert_eq!(value.encode(), input);
            }
        }
    }
}
