//! Settings of the S3 driver.

use std::{fmt, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::retry::RetryPolicy;

/// Where the store is and how to speak to it. Without `access_key` the AWS default chain is asked (environment, profile, instance).
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct S3Config {
    /// `http://host:port` or `https://…`; AWS itself when absent.
    pub endpoint: Option<String>,
    /// The region that signatures name.
    pub region: String,
    pub access_key: Option<String>,
    /// From the environment or a file of its own; never printed.
    #[serde(skip_serializing)]
    pub secret_key: Option<Secret>,
    /// A file whose first line is the secret, instead of `secret_key`.
    pub secret_key_file: Option<PathBuf>,
    /// Bucket in the path and not in the host name. Most stores other than AWS need it.
    pub path_style: bool,
    /// Send and ask for checksums only where S3 demands them: some stores refuse the SDK's newer habit of sending one always.
    pub checksums_when_required: bool,
    pub connect_timeout_ms: u64,
    /// Longest silence of a server that has a request.
    pub read_timeout_ms: u64,
    pub retry: RetryPolicy,
}

impl Default for S3Config {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: "us-east-1".into(),
            access_key: None,
            secret_key: None,
            secret_key_file: None,
            path_style: true,
            checksums_when_required: true,
            connect_timeout_ms: 5_000,
            read_timeout_ms: 30_000,
            retry: RetryPolicy::default(),
        }
    }
}

/// A word that must not be seen.
#[derive(Clone, Deserialize, PartialEq, Eq)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    pub fn new(word: impl Into<String>) -> Self {
        Self(word.into())
    }

    /// The word itself, for signing only.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_secret_is_neither_shown_nor_saved() {
        let config = S3Config {
            access_key: Some("AK".into()),
            secret_key: Some(Secret::new("hush-hush")),
            ..Default::default()
        };
        assert!(!format!("{config:?}").contains("hush"));
        assert!(!serde_json::to_string(&config).unwrap().contains("hush"));
    }

    #[test]
    fn unknown_settings_are_refused() {
        assert!(serde_json::from_str::<S3Config>(r#"{"endpont": "http://x"}"#).is_err());
        assert!(serde_json::from_str::<S3Config>(r#"{"secret_key": "x", "path_style": false}"#).is_ok());
    }
}
