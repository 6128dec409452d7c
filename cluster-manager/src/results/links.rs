//! How a document names the objects it points at.

use storage::hex::percent_encoded;

/// Relative names suit the stored documents; absolute ones a copy with presigned URLs, for a private bucket.
#[derive(Clone, Copy)]
pub enum Links<'a> {
    /// `base` is the absolute URL of the target prefix, ending in `/`; it is only written where a format needs one.
    Relative { base: &'a str },
    /// Key (relative to the target prefix, not escaped) to absolute URL.
    Absolute(&'a dyn Fn(&str) -> String),
}

impl Links<'_> {
    /// A URL reference (RFC 3986) for an object, not yet escaped for XML; it never holds a quote, space or line end
    /// unless an `Absolute` function puts one there.
    pub(super) fn reference(&self, key: &str) -> String {
        match self {
            Self::Relative { .. } => percent_encoded(key),
            Self::Absolute(locate) => locate(key),
        }
    }

    pub(super) fn absolute(&self, key: &str) -> String {
        match self {
            Self::Relative { base } => format!("{base}{}", percent_encoded(key)),
            Self::Absolute(locate) => locate(key),
        }
    }

    pub(super) fn base(&self) -> Option<&str> {
        match self {
            Self::Relative { base } => Some(base),
            Self::Absolute(_) => None,
        }
    }
}

/// Text or attribute value for XML 1.0; characters which XML cannot hold at all are left out.
pub(crate) fn xml(text: &str) -> String {
    let legal = |c: &char| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{FFFD}' | '\u{10000}'..);
    let text: String = text.chars().filter(legal).collect();
    quick_xml::escape::escape(text).into_owned()
}

/// Seconds with six digits, without useless zeros: `10`, `10.01`.
pub(super) fn seconds(seconds: f64) -> String {
    let text = format!("{seconds:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
