//! From the SDK's errors to ours.

use std::{error::Error, time::Duration};

use aws_sdk_s3::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
};

use crate::{
    error::{Reason, StoreError},
    object::ObjectPath,
};

pub(super) fn failure<E>(
    error: &SdkError<E, HttpResponse>,
    doing: &'static str,
    path: &ObjectPath,
    write: bool,
) -> StoreError
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let reason = match error {
        SdkError::TimeoutError(_) | SdkError::DispatchFailure(_) => Reason::Unreachable,
        SdkError::ConstructionFailure(_) => Reason::BadInput,
        _ => match (error.code(), error.raw_response()) {
            (Some("NoSuchBucket"), _) => Reason::BucketMissing,
            (Some("RequestTimeout"), _) => Reason::Unreachable,
            (_, Some(response)) => match Reason::from_status(response.status().as_u16(), write) {
                // A good status whose body the SDK could not read: it broke off.
                Reason::WrongAnswer if response.status().is_success() => Reason::ShortBody,
                reason => reason,
            },
            _ => Reason::WrongAnswer,
        },
    };
    let detail = match (error.code(), error.message()) {
        (Some(code), message) => format!("{code} {}", message.unwrap_or_default()).trim().to_owned(),
        _ if matches!(error, SdkError::ServiceError(_)) => String::new(),
        _ => chain(error),
    };
    let mut ours = StoreError::new(reason, doing, path, detail);
    ours.retry_after =
        error.raw_response().and_then(|response| response.headers().get("retry-after")).and_then(seconds);
    ours
}

pub(crate) fn seconds(text: &str) -> Option<Duration> {
    text.trim().parse().ok().map(Duration::from_secs)
}

/// An error and its sources in one line; transport errors name hosts, never URLs.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}
