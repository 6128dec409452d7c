//! The address of an object, `s3://bucket/key`, checked once.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::error::{Reason, StoreError};

/// An object, or with a key that ends in `/` (or is empty) a prefix under which objects lie.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ObjectPath {
    bucket: String,
    key: String,
}

impl ObjectPath {
    /// Bucket names are 3-63 of `a-z 0-9 . -` with a letter or digit at both ends; keys at most 1024 bytes, without control
    /// characters and without `.` or `..` segments, which proxies and clients resolve differently.
    pub fn new(bucket: &str, key: &str) -> Result<Self, StoreError> {
        let bad =
            |why: &str| StoreError::new(Reason::BadInput, "use", format!("s3://{bucket}/{key}").escape_debug(), why);
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let name = bucket.as_bytes();
        let ends = [name.first(), name.last()].iter().all(|b| b.is_some_and(|b| plain(*b)));
        if !(3..=63).contains(&name.len())
            || !ends
            || !name.iter().all(|b| plain(*b) || matches!(b, b'.' | b'-'))
            || bucket.contains("..")
        {
            return Err(bad("not a bucket name"));
        }
        if key.len() > 1024 {
            return Err(bad("the key is longer than 1024 bytes"));
        }
        if key.starts_with('/')
            || key.chars().any(char::is_control)
            || key.split('/').any(|part| matches!(part, "." | ".."))
        {
            return Err(bad("the key has a leading slash, a control character or a dot segment"));
        }
        Ok(Self { bucket: bucket.to_owned(), key: key.to_owned() })
    }

    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    pub fn key(&self) -> &str {
        &self.key
    }

    /// Whether this names a place for objects and not one object.
    pub fn is_prefix(&self) -> bool {
        self.key.is_empty() || self.key.ends_with('/')
    }

    /// The object `name` under this prefix (a `/` is put between when it is missing).
    pub fn join(&self, name: &str) -> Result<Self, StoreError> {
        let slash = if self.is_prefix() { "" } else { "/" };
        Self::new(&self.bucket, &format!("{}{slash}{name}", self.key))
    }
}

impl FromStr for ObjectPath {
    type Err = StoreError;
    fn from_str(text: &str) -> Result<Self, StoreError> {
        let rest = text.strip_prefix("s3://").ok_or_else(|| {
            StoreError::new(Reason::BadInput, "use", text.escape_debug(), "it does not begin with s3://")
        })?;
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        Self::new(bucket, key)
    }
}

impl fmt::Display for ObjectPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.key)
    }
}

impl TryFrom<String> for ObjectPath {
    type Error = StoreError;
    fn try_from(text: String) -> Result<Self, StoreError> {
        text.parse()
    }
}

impl From<ObjectPath> for String {
    fn from(path: ObjectPath) -> Self {
        path.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_prints_as_it_was_parsed() {
        for text in ["s3://films/in.mp4", "s3://films/out/", "s3://films/", "s3://a.b-c/ä ö+%?#/x"] {
            assert_eq!(text.parse::<ObjectPath>().unwrap().to_string(), text);
        }
        assert!("s3://films".parse::<ObjectPath>().unwrap().is_prefix());
    }

    #[test]
    fn nonsense_is_refused_with_a_code() {
        for text in [
            "",
            "films/in.mp4",
            "http://films/x",
            "s3://",
            "s3:///x",
            "s3://F/x",
            "s3://a/x",
            "s3://films//x",
            "s3://films/../x",
            "s3://films/a\nb",
            "s3://-films/x",
            "s3://fi..lms/x",
        ] {
            let error = text.parse::<ObjectPath>().unwrap_err();
            assert_eq!((error.code(), error.retryable()), ("bad-input", false), "{text}");
        }
        assert!(ObjectPath::new("films", &"k".repeat(1025)).is_err());
    }

    #[test]
    fn a_name_is_joined_with_exactly_one_slash() {
        let join = |base: &str| base.parse::<ObjectPath>().unwrap().join("a.m4s").unwrap().to_string();
        assert_eq!(
            [join("s3://films/out"), join("s3://films/out/"), join("s3://films")],
            ["s3://films/out/a.m4s", "s3://films/out/a.m4s", "s3://films/a.m4s"]
        );
    }
}
