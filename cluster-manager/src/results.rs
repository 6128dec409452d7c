//! From finished parts to documents that play: SMIL 3.0 (what the paper promises), HLS, DASH and XSPF.
//!
//! All of them point at, or into, the same chunk objects; nothing is merged or stored twice. The functions are pure
//! and are called again whenever a part lands: what is published is always the contiguous run of parts from the
//! beginning of the film which every rendition has, so no document ever has a hole, and playing can start after the
//! first part. A film whose chunks do not fit together is refused rather than published.

use storage::film::{fragment::Fragment, part::FragmentSummary};

mod dash;
mod hls;
mod links;
mod playable;
mod smil;
mod xspf;

pub use links::Links;
pub(crate) use links::xml;
pub use playable::{Playable, Timed, Track};

/// A finished or partly finished film.
#[derive(Clone, Debug, PartialEq)]
pub struct Film {
    /// For people; any text.
    pub title: String,
    /// Seconds of the whole film, as planned.
    pub duration_seconds: f64,
    /// Seconds of the longest part, as planned: HLS must promise it before that part exists.
    pub longest_part_seconds: f64,
    /// At least one; all with the same number of parts.
    pub renditions: Vec<RenditionTrack>,
    pub sound: Sound,
}

/// One encoding of the picture.
#[derive(Clone, Debug, PartialEq)]
pub struct RenditionTrack {
    /// Unique, and the stem of its HLS playlist: `480p`.
    pub name: String,
    /// In film order, one entry a part whether it exists or not.
    pub parts: Vec<Option<Chunk>>,
}

/// One part of one rendition: a self-initialising fMP4 object.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunk {
    /// Relative to the target prefix, not escaped: `480p/v0007-1.mp4`.
    pub key: String,
    /// Bytes of the object.
    pub size: u64,
    pub summary: FragmentSummary,
}

/// What is known of the sound. It is encoded once, in one object, after its packets have come from all parts.
#[derive(Clone, Debug, PartialEq)]
pub enum Sound {
    /// The source has none, or the job wants none.
    Silent,
    /// It will come; until then the film is published without it.
    Pending,
    Ready(SoundTrack),
}

#[derive(Clone, Debug, PartialEq)]
pub struct SoundTrack {
    /// Relative to the target prefix, not escaped.
    pub key: String,
    /// Bytes of the object.
    pub size: u64,
    pub summary: FragmentSummary,
    /// In film order, at least one.
    pub fragments: Vec<Fragment>,
}

/// An object to be stored beside the chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Relative to the target prefix.
    pub key: String,
    pub content_type: &'static str,
    pub body: String,
}

/// Keys of the documents that people open.
pub const SMIL_KEY: &str = "movie.smil";
pub const HLS_KEY: &str = "master.m3u8";
pub const DASH_KEY: &str = "manifest.mpd";
pub const XSPF_KEY: &str = "movie.xspf";

/// Everything to publish for the film as it stands, in the order in which to store it (what is pointed at comes first).
/// Empty while the first part is missing.
pub fn documents(film: &Film, links: &Links<'_>) -> Result<Vec<Document>, Error> {
    let playable = Playable::new(film)?;
    if playable.parts() == 0 {
        return Ok(Vec::new());
    }
    let mut documents = hls::playlists(&playable, links);
    documents.push(Document {
        key: DASH_KEY.into(),
        content_type: "application/dash+xml",
        body: dash::manifest(&playable, links),
    });
    documents.push(Document {
        key: XSPF_KEY.into(),
        content_type: "application/xspf+xml",
        body: xspf::playlist(&playable, links),
    });
    documents.push(Document {
        key: SMIL_KEY.into(),
        content_type: "application/smil+xml",
        body: smil::document(&playable, links),
    });
    Ok(documents)
}

/// Why a film cannot be published. All of these mean that parts were accepted which should not have been.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("a film needs at least one rendition")]
    NoRendition,
    #[error("two playlists would be called {name:?}")]
    NameTwice { name: String },
    #[error("rendition {name} has {found} parts where the film has {expected}")]
    PartCount { name: String, expected: usize, found: usize },
    #[error("{key} has another init segment than {first_key}; its encoder differs")]
    InitDiffers { first_key: String, key: String },
    #[error("{key} has no samples, no duration or no timescale")]
    Hollow { key: String },
    #[error("{key} starts at {found} but the chunk before it ends at {expected}, in units of 1/{timescale} s")]
    TimeGap { key: String, expected: u64, found: u64, timescale: u32 },
}

impl Error {
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoRendition => "no-rendition",
            Self::NameTwice { .. } => "name-twice",
            Self::PartCount { .. } => "part-count",
            Self::InitDiffers { .. } => "init-differs",
            Self::Hollow { .. } => "hollow-chunk",
            Self::TimeGap { .. } => "time-gap",
        }
    }
}

#[cfg(test)]
mod tests;
