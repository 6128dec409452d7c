//! What can go wrong between us and an object store: one type for the signed driver and for the keyless fetcher.
//!
//! The reason is what others decide on (`code`, `retryable`, `hint`); the rest is for the log. URLs are shown without their query,
//! because a presigned query is a key.

use std::time::Duration;

/// Why a store refused or failed. The words of [`Reason::code`] are part of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// 404: the bucket is there, the object is not.
    NotFound,
    BucketMissing,
    /// 401 or 403: wrong key, expired or altered URL, or no right.
    Forbidden,
    /// 412 on a read: the object is not the one that was planned with.
    Changed,
    /// 412 on a write that must not overwrite.
    Exists,
    /// 409: another conditional write to the same key is under way.
    Conflict,
    /// 416: the range starts behind the end.
    RangeOutside,
    /// The object is larger than the caller takes.
    TooLarge,
    /// 429 or 503.
    Throttled,
    /// Another 5xx.
    Unavailable,
    /// No connection, a reset one, or silence.
    Unreachable,
    /// The body ended before its announced length.
    ShortBody,
    /// An answer that HTTP or S3 does not allow here, such as 200 to a range.
    WrongAnswer,
    /// Any other 4xx.
    Refused,
    /// Not `s3://bucket/key`, or settings that cannot work.
    BadInput,
    /// Our own disk.
    LocalFile,
}

impl Reason {
    /// Stable kebab-case word.
    pub fn code(self) -> &'static str {
        match self {
            Self::NotFound => "not-found",
            Self::BucketMissing => "bucket-missing",
            Self::Forbidden => "forbidden",
            Self::Changed => "changed",
            Self::Exists => "exists",
            Self::Conflict => "conflict",
            Self::RangeOutside => "range-outside",
            Self::TooLarge => "too-large",
            Self::Throttled => "throttled",
            Self::Unavailable => "unavailable",
            Self::Unreachable => "unreachable",
            Self::ShortBody => "short-body",
            Self::WrongAnswer => "wrong-answer",
            Self::Refused => "refused",
            Self::BadInput => "bad-input",
            Self::LocalFile => "local-file",
        }
    }

    /// Whether the same request may succeed later.
    pub fn retryable(self) -> bool {
        matches!(self, Self::Conflict | Self::Throttled | Self::Unavailable | Self::Unreachable | Self::ShortBody)
    }

    /// What a person can do about it.
    pub fn hint(self) -> &'static str {
        match self {
            Self::NotFound => "check bucket and key; keys are case-sensitive",
            Self::BucketMissing => "create the bucket, or correct its name or the endpoint",
            Self::Forbidden => {
                "check the access key, the secret and the bucket policy; a presigned URL may have expired"
            }
            Self::Changed => "the object was replaced while in use; submit the job again",
            Self::Exists => "choose another target, or delete what is there",
            Self::RangeOutside => "the object is shorter than expected; is it complete?",
            Self::TooLarge => "this kind of object is limited in size",
            Self::Conflict | Self::Throttled | Self::Unavailable => "the store is busy or ill; try again later",
            Self::Unreachable | Self::ShortBody => "check the endpoint and the network",
            Self::WrongAnswer => "the endpoint does not behave like S3; is it one?",
            Self::Refused => "the store does not accept this request; see its message",
            Self::BadInput => "write it as s3://bucket/key",
            Self::LocalFile => "check free space and rights of the working directory",
        }
    }

    /// The reason behind a refused read (`write` false) or write by HTTP status alone.
    pub fn from_status(status: u16, write: bool) -> Self {
        match status {
            401 | 403 => Self::Forbidden,
            404 => Self::NotFound,
            409 => Self::Conflict,
            412 if write => Self::Exists,
            412 => Self::Changed,
            416 => Self::RangeOutside,
            408 => Self::Unreachable,
            429 | 503 => Self::Throttled,
            500.. => Self::Unavailable,
            400..=499 => Self::Refused,
            _ => Self::WrongAnswer,
        }
    }
}

/// One failed operation on one object.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot {doing} {object}: {}{}{detail}", .reason.code(), if .detail.is_empty() { "" } else { ": " })]
pub struct StoreError {
    pub reason: Reason,
    /// Verb: `get`, `put`, ….
    pub doing: &'static str,
    /// `s3://bucket/key`, or a URL without its query.
    pub object: String,
    /// The store's or system's own words, without secrets; may be empty.
    pub detail: String,
    /// What the store asked for in `Retry-After`.
    pub retry_after: Option<Duration>,
}

impl StoreError {
    pub fn new(reason: Reason, doing: &'static str, object: impl ToString, detail: impl ToString) -> Self {
        Self { reason, doing, object: object.to_string(), detail: detail.to_string(), retry_after: None }
    }

    pub fn code(&self) -> &'static str {
        self.reason.code()
    }

    pub fn retryable(&self) -> bool {
        self.reason.retryable()
    }

    pub fn hint(&self) -> &'static str {
        self.reason.hint()
    }
}
