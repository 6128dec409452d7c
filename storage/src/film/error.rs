//! Why a film cannot be taken. Each error has a code that stays and, where the owner of the film can help it, a hint.

/// What is wrong with the source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilmError {
    #[error("the object has zero bytes")]
    ZeroBytes,
    #[error("the object does not begin like any film known here")]
    NotAFilm,
    #[error("the film ends early: {0}")]
    Truncated(String),
    #[error("the index of the film makes no sense: {0}")]
    Damaged(String),
    #[error("the film has no video track")]
    NoVideo,
    #[error("container not supported: {0}")]
    UnsupportedContainer(String),
    #[error("sound codec {0} not supported")]
    UnsupportedAudio(String),
    #[error("edit list not supported: {0}")]
    EditList(String),
    #[error("presentation times are irregular: {0}")]
    Irregular(String),
    #[error("limit exceeded: {what} is more than {limit}")]
    Limit { what: &'static str, limit: u64 },
}

impl FilmError {
    /// Stable, kebab-case.
    pub fn code(&self) -> &'static str {
        match self {
            Self::ZeroBytes => "zero-bytes",
            Self::NotAFilm => "not-a-film",
            Self::Truncated(_) => "truncated-film",
            Self::Damaged(_) => "damaged-index",
            Self::NoVideo => "no-video",
            Self::UnsupportedContainer(_) => "unsupported-container",
            Self::UnsupportedAudio(_) => "unsupported-audio",
            Self::EditList(_) => "unsupported-edit-list",
            Self::Irregular(_) => "irregular-times",
            Self::Limit { .. } => "film-limit",
        }
    }

    /// What the owner of the film can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::ZeroBytes | Self::Truncated(_) => "upload the film again and compare the sizes",
            Self::NotAFilm => "the source must be an MP4, MKV, WebM or MPEG-TS film",
            Self::Damaged(_) | Self::Irregular(_) => "write it anew: ffmpeg -i IN -map 0 -c copy OUT.mp4",
            Self::NoVideo => "give a film with a picture; sound alone is not transcoded here",
            Self::UnsupportedContainer(_) => "copy it to MP4 first: ffmpeg -i IN -c copy OUT.mp4",
            Self::UnsupportedAudio(_) => "encode the sound to AAC first: ffmpeg -i IN -c:v copy -c:a aac OUT.mp4",
            Self::EditList(_) => "flatten the edits first: ffmpeg -i IN OUT.mp4",
            Self::Limit { .. } => "split the film, or ask for longer parts",
        }
    }
}

pub(crate) fn damaged(what: impl Into<String>) -> FilmError {
    FilmError::Damaged(what.into())
}
