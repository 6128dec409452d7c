//! Judging answers: nothing a server says is taken on trust, and no URL leaves with its query.

use reqwest::{Response, StatusCode, header};

use super::FetchError;
use crate::{error::Reason, range::ByteRange, s3::seconds};

/// The URL as it may be shown.
pub(super) fn name(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or_default()
}

/// No answer, or one that broke off.
pub(super) fn lost(error: reqwest::Error, doing: &'static str, url: &str) -> FetchError {
    let reason = match &error {
        error if error.is_builder() => Reason::BadInput,
        error if error.is_body() || error.is_decode() => Reason::ShortBody,
        _ => Reason::Unreachable,
    };
    let error = error.without_url();
    let mut detail = error.to_string();
    let mut next = std::error::Error::source(&error);
    while let Some(source) = next {
        detail = format!("{detail}: {source}");
        next = source.source();
    }
    FetchError::new(reason, doing, name(url), detail)
}

/// Turns every status but success into its error.
pub(super) fn checked(answer: Response, doing: &'static str, url: &str, write: bool) -> Result<Response, FetchError> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let mut error = FetchError::new(Reason::from_status(status.as_u16(), write), doing, name(url), status);
    error.retry_after =
        answer.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()).and_then(seconds);
    Err(error)
}

/// Accepts an answer to a ranged GET only if it is that range of that object.
pub(super) fn is_range(answer: &Response, url: &str, span: ByteRange, etag: &str) -> Result<(), FetchError> {
    let wrong = |reason, detail: String| Err(FetchError::new(reason, "get", name(url), detail));
    let text = |key| answer.headers().get(key).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if answer.status() != StatusCode::PARTIAL_CONTENT {
        return wrong(Reason::WrongAnswer, format!("{} to a range", answer.status()));
    }
    if text(header::ETAG) != etag {
        return wrong(Reason::Changed, "another ETag".into());
    }
    let (first, last) = (span.start(), span.end() - 1);
    match content_range(text(header::CONTENT_RANGE)) {
        Some((from, to, _)) if (from, to) == (first, last) => {}
        Some((from, to, Some(size))) if from == first && to < last && to + 1 == size => {
            return wrong(Reason::RangeOutside, format!("asked for {first}-{last} of an object of {size} bytes"));
        }
        _ => {
            return wrong(
                Reason::WrongAnswer,
                format!("asked for {first}-{last}, got {:?}", text(header::CONTENT_RANGE)),
            );
        }
    }
    match answer.content_length() {
        Some(length) if length != span.len() => {
            wrong(Reason::WrongAnswer, format!("{length} bytes for {first}-{last}"))
        }
        _ => Ok(()),
    }
}

/// First and last byte and, unless `*`, the size of the whole (RFC 9110 §14.4).
fn content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (from, to) = range.split_once('-')?;
    let size = if size == "*" { None } else { Some(size.parse().ok()?) };
    let (from, to) = (from.parse().ok()?, to.parse().ok()?);
    // The end is later counted up by one.
    (from <= to && to < u64::MAX).then_some((from, to, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read_and_nonsense_is_not() {
        assert_eq!(content_range("bytes 0-9/10"), Some((0, 9, Some(10))));
        assert_eq!(content_range("bytes 5-5/*"), Some((5, 5, None)));
        for text in [
            "",
            "bytes */10",
            "bytes 9-5/10",
            "bytes 0-18446744073709551615/*",
            "items 0-1/2",
            "bytes -1-2/3",
            "bytes 0-9",
        ] {
            assert_eq!(content_range(text), None, "{text}");
        }
    }

    #[test]
    fn a_signed_url_is_shown_without_its_signature() {
        assert_eq!(name("http://h/b/k?X-Amz-Signature=abc"), "http://h/b/k");
    }
}
