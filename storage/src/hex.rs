//! Bytes as text: hashes, bit sets and names, as JSON, XML, HTTP and URLs carry them.

use std::fmt::Write;

/// Lower-case digits, two a byte.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of such a text, in either case; `None` if it is not one.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
    let digits = digits.filter(|d| d.len() % 2 == 0)?;
    Some(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// A path as it stands in a URL (RFC 3986): all but unreserved characters and `/` becomes `%XX`, so that a colon cannot look like a scheme and an
/// ampersand needs no second escape in XML.
pub fn percent_encoded(path: &str) -> String {
    path.bytes().fold(String::with_capacity(path.len()), |mut url, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => url.push(byte.into()),
            _ => drop(write!(url, "%{byte:02X}")),
        }
        url
    })
}
