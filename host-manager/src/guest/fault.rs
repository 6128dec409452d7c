//! Everything that can end a task, with the class, the code and the verdict "try again?" that the broker acts on.

use std::io;

use storage::error::Reason;
use storage::fetch::FetchError;

use super::task::Failure;

/// Most bytes of a log that travel with a failure.
pub const LOG_BYTES_MAX: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("the order could not be fetched: {0}")]
    OrderUnreachable(String),
    #[error("the order makes no sense: {0}")]
    BadOrder(String),
    #[error("the source was replaced while the job ran (its ETag changed)")]
    SourceChanged,
    #[error("the source does not exist")]
    SourceMissing,
    #[error("the store refuses to give the source: {0}")]
    SourceForbidden(String),
    #[error("the store does not answer: {0}")]
    StoreUnreachable(String),
    #[error("the store refuses the result: {0}")]
    PublishRefused(String),
    #[error("{0} could not be started: {1}")]
    EncoderMissing(String, #[source] io::Error),
    #[error("the encoder ended with {status}")]
    EncoderFailed { status: String, stderr: String },
    #[error("the result is wrong: {0}")]
    WrongFrames(String),
    #[error("a piece of sound is not the one that was announced: {0}")]
    SoundMismatch(String),
    #[error("the disk is full")]
    DiskFull,
    #[error("working files: {0}")]
    Io(#[source] io::Error),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull,
            _ => Self::Io(error),
        }
    }
}

impl Fault {
    /// Trouble while the order itself was fetched.
    pub fn of_order(error: FetchError) -> Self {
        match error.reason {
            Reason::TooLarge => Self::BadOrder(error.to_string()),
            _ => Self::OrderUnreachable(error.to_string()),
        }
    }

    /// Trouble while what the order names was fetched.
    pub fn of_source(error: FetchError) -> Self {
        match error.reason {
            Reason::Changed => Self::SourceChanged,
            Reason::NotFound | Reason::BucketMissing => Self::SourceMissing,
            Reason::Forbidden => Self::SourceForbidden(error.to_string()),
            Reason::RangeOutside | Reason::BadInput | Reason::TooLarge => Self::BadOrder(error.to_string()),
            Reason::LocalFile => Self::of_disk(&error),
            _ => Self::StoreUnreachable(error.to_string()),
        }
    }

    /// Trouble while a result was uploaded.
    pub fn of_publishing(error: FetchError) -> Self {
        match error.reason {
            Reason::LocalFile => Self::of_disk(&error),
            _ if error.retryable() => Self::StoreUnreachable(error.to_string()),
            _ => Self::PublishRefused(error.to_string()),
        }
    }

    fn of_disk(error: &FetchError) -> Self {
        // The words of ENOSPC (strerror(3)): the store's error carries only text.
        let full = error.detail.contains("No space left on device");
        if full { Self::DiskFull } else { Self::Io(io::Error::other(error.to_string())) }
    }

    /// Stable, for people and programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::OrderUnreachable(_) => "order-unreachable",
            Self::BadOrder(_) => "bad-order",
            Self::SourceChanged => "source-changed",
            Self::SourceMissing => "source-missing",
            Self::SourceForbidden(_) => "source-forbidden",
            Self::StoreUnreachable(_) => "store-unreachable",
            Self::PublishRefused(_) => "publish-refused",
            Self::EncoderMissing(..) => "encoder-missing",
            Self::EncoderFailed { .. } => "encoder-failed",
            Self::WrongFrames(_) => "wrong-frames",
            Self::SoundMismatch(_) => "sound-mismatch",
            Self::DiskFull => "disk-full",
            Self::Io(_) => "io",
        }
    }

    /// Classes of `federation::cluster::Failure`.
    pub fn class(&self) -> &'static str {
        match self {
            Self::BadOrder(_) | Self::SourceChanged | Self::SourceMissing | Self::SourceForbidden(_) => "input",
            Self::OrderUnreachable(_) | Self::StoreUnreachable(_) | Self::PublishRefused(_) => "resource",
            Self::EncoderMissing(..) | Self::DiskFull => "resource",
            Self::EncoderFailed { .. } => "code",
            Self::WrongFrames(_) | Self::SoundMismatch(_) => "data",
            Self::Io(_) => "internal",
        }
    }

    /// Whether another try, perhaps elsewhere or with fresh URLs, may go better. Bad frames are a property of the film
    /// and the order: they would come out the same everywhere. A refused URL may only have expired.
    pub fn retryable(&self) -> bool {
        !matches!(self, Self::BadOrder(_) | Self::SourceChanged | Self::SourceMissing | Self::WrongFrames(_))
    }

    pub fn to_failure(&self) -> Failure {
        let mut log = self.to_string();
        if let Self::EncoderFailed { stderr, .. } = self {
            log = format!("{log}\n{stderr}");
        }
        Failure {
            class: self.class().to_owned(),
            retryable: self.retryable(),
            code: self.code().to_owned(),
            log: clean_tail(&log, LOG_BYTES_MAX),
        }
    }
}

/// The end of `text`, at most `max` bytes, without the control characters that XML 1.0 forbids (§2.2).
pub fn clean_tail(text: &str, max: usize) -> String {
    let clean: String = text
        .chars()
        .filter(|c| !c.is_control() || matches!(c, '\n' | '\t'))
        .filter(|c| !matches!(c, '\u{fffe}' | '\u{ffff}'))
        .collect();
    let mut start = clean.len().saturating_sub(max);
    while !clean.is_char_boundary(start) {
        start += 1;
    }
    clean[start..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_is_kept_and_is_legal_in_xml() {
        let log = format!("{}\u{1b}[31mé last\u{0}", "é".repeat(LOG_BYTES_MAX));
        let tail = clean_tail(&log, LOG_BYTES_MAX);
        assert!(tail.len() <= LOG_BYTES_MAX);
        assert!(tail.ends_with("[31mé last"), "{tail}");
    }

    #[test]
    fn a_full_disk_is_told_apart_from_other_trouble() {
        assert_eq!(Fault::from(io::Error::from(io::ErrorKind::StorageFull)).code(), "disk-full");
        assert_eq!(Fault::from(io::Error::from(io::ErrorKind::NotFound)).code(), "io");
    }
}
