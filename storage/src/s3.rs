//! The signed driver for S3 and whatever speaks it: for home, which holds the key. Everybody else gets presigned URLs and `fetch`.
//!
//! On the AWS SDK, which signs and knows the protocol's corners. Its retries are off: see `retry`. Whole objects pass through memory
//! here, so every read has a bound; films pass through `fetch`.

pub mod config;
mod failure;
mod presign;
mod probe;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use aws_sdk_s3::{
    Client,
    config::{
        BehaviorVersion, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
        SharedCredentialsProvider, SharedHttpClient, retry::RetryConfig, timeout::TimeoutConfig,
    },
    primitives::ByteStream,
};
use aws_smithy_http_client::tls;
use bytes::{Bytes, BytesMut};

use self::failure::failure;
pub(crate) use self::failure::seconds;
use self::presign::{Keys, Presigner};
pub use self::{
    config::{S3Config, Secret},
    probe::StoreFeatures,
};
use crate::{error::Reason, range::ByteRange, retry::RetryPolicy};
pub use crate::{error::StoreError, object::ObjectPath};

/// Metadata key by which a writer knows its own object again when the answer to its PUT was lost.
const PUT_TOKEN: &str = "put-token";

/// What a store tells of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectMeta {
    pub size: u64,
    /// As the store wrote it, with its quotes.
    pub etag: String,
    pub content_type: Option<String>,
    pub metadata: BTreeMap<String, String>,
}

/// One line of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub key: String,
    pub size: u64,
    pub etag: String,
}

#[derive(Clone, Debug, Default)]
pub struct PutOptions {
    pub content_type: Option<String>,
    /// `If-None-Match: *`: fail with `exists` rather than overwrite.
    pub only_if_absent: bool,
    pub metadata: BTreeMap<String, String>,
}

/// A connection to one store; cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    client: Client,
    presigner: Presigner,
    retry: RetryPolicy,
    retries: Arc<AtomicU64>,
}

impl Store {
    /// Reads credentials and builds the client; sends nothing unless the AWS chain has to ask for credentials.
    pub async fn connect(config: &S3Config) -> Result<Self, StoreError> {
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
            .build_https();
        let (credentials, fixed) = credentials(config, &http).await?;
        let keys = fixed.map(|credentials| Keys { credentials, region: config.region.clone() });
        let mut sdk = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(http.clone())
            .region(Region::new(config.region.clone()))
            .credentials_provider(credentials)
            .force_path_style(config.path_style)
            .retry_config(RetryConfig::disabled())
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(Duration::from_millis(config.connect_timeout_ms))
                    .read_timeout(Duration::from_millis(config.read_timeout_ms))
                    .build(),
            );
        sdk.set_endpoint_url(config.endpoint.clone());
        let bare = sdk
            .clone()
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .build();
        let bare = Client::from_conf(bare);
        let client = if config.checksums_when_required { bare.clone() } else { Client::from_conf(sdk.build()) };
        Ok(Self { client, presigner: Presigner::new(bare, keys), retry: config.retry, retries: Arc::default() })
    }

    /// The SDK's own client with these settings, for verbs that the product does not use. It repeats nothing.
    pub fn sdk(&self) -> &Client {
        &self.client
    }

    /// Repeated requests since `connect`, of all clones.
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    pub async fn head(&self, path: &ObjectPath) -> Result<ObjectMeta, StoreError> {
        self.repeat(|| async move {
            let sent = self.client.head_object().bucket(path.bucket()).key(path.key()).send().await;
            let head = sent.map_err(|error| failure(&error, "head", path, false))?;
            Ok(ObjectMeta {
                size: length(head.content_length(), "head", path)?,
                etag: head.e_tag().unwrap_or_default().to_owned(),
                content_type: head.content_type().map(str::to_owned),
                metadata: head.metadata().into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect(),
            })
        })
        .await
    }

    /// The whole object, which must not be larger than `bytes_max`.
    pub async fn get(&self, path: &ObjectPath, bytes_max: u64) -> Result<Bytes, StoreError> {
        self.repeat(|| async move {
            let sent = self.client.get_object().bucket(path.bucket()).key(path.key()).send().await;
            let got = sent.map_err(|error| failure(&error, "get", path, false))?;
            let size = length(got.content_length(), "get", path)?;
            if size > bytes_max {
                return Err(StoreError::new(
                    Reason::TooLarge,
                    "get",
                    path,
                    format!("{size} bytes, taken are {bytes_max}"),
                ));
            }
            collect(got.body, size, path).await
        })
        .await
    }

    /// One range, held in memory whole. `if_match` is an ETag: the error is `changed` when the object is another by now, also on
    /// stores that ignore the precondition.
    pub async fn get_range(
        &self,
        path: &ObjectPath,
        range: ByteRange,
        if_match: Option<&str>,
    ) -> Result<Bytes, StoreError> {
        self.repeat(|| async move {
            let request = self.client.get_object().bucket(path.bucket()).key(path.key()).range(range.http_header());
            let sent = request.set_if_match(if_match.map(str::to_owned)).send().await;
            let got = sent.map_err(|error| failure(&error, "get", path, false))?;
            if if_match.is_some_and(|etag| got.e_tag() != Some(etag)) {
                return Err(StoreError::new(Reason::Changed, "get", path, "another ETag"));
            }
            let expected = format!("bytes {}-{}/", range.start(), range.end() - 1);
            if !got.content_range().is_some_and(|said| said.starts_with(&expected)) {
                let said = got.content_range().unwrap_or("no Content-Range");
                let reason = if said.starts_with(&format!("bytes {}-", range.start())) {
                    Reason::RangeOutside
                } else {
                    Reason::WrongAnswer
                };
                return Err(StoreError::new(reason, "get", path, format!("asked for {expected}, got {said}")));
            }
            collect(got.body, range.len(), path).await
        })
        .await
    }

    /// What the object is, with its first bytes, at most so many: in one request, unless it is empty.
    pub async fn get_first(&self, path: &ObjectPath, bytes_max: u64) -> Result<(ObjectMeta, Bytes), StoreError> {
        let asked = format!("bytes=0-{}", bytes_max.saturating_sub(1));
        let asked = &asked;
        let first = self.repeat(|| async move {
            let request = self.client.get_object().bucket(path.bucket()).key(path.key()).range(asked);
            let got = request.send().await.map_err(|error| failure(&error, "get", path, false))?;
            let said = got.content_range().unwrap_or("no Content-Range");
            let size = said.rsplit_once('/').and_then(|(_, size)| size.parse::<u64>().ok()).unwrap_or(0);
            let len = size.min(bytes_max);
            if said != format!("bytes 0-{}/{size}", len.saturating_sub(1)) {
                return Err(StoreError::new(
                    Reason::WrongAnswer,
                    "get",
                    path,
                    format!("asked for {asked}, got {said}"),
                ));
            }
            let meta = ObjectMeta {
                size,
                etag: got.e_tag().unwrap_or_default().to_owned(),
                content_type: got.content_type().map(str::to_owned),
                metadata: got.metadata().into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect(),
            };
            Ok((meta, collect(got.body, len, path).await?))
        });
        match first.await {
            Err(error) if error.reason == Reason::RangeOutside => Ok((self.head(path).await?, Bytes::new())),
            first => first,
        }
    }

    /// Writes the object, which must be sent and answered within the read timeout (files go through `presign_put` and `Fetcher::put`),
    /// and returns its ETag. With `only_if_absent` exactly one of several writers gets no `exists`, also when
    /// answers are lost and the request repeated.
    pub async fn put(&self, path: &ObjectPath, body: Bytes, options: PutOptions) -> Result<String, StoreError> {
        let token = options.only_if_absent.then(|| format!("{:032x}", fastrand::u128(..)));
        let (options, token, body) = (&options, &token, &body);
        let sent = self
            .repeat(|| async move {
                let mut request = self.client.put_object().bucket(path.bucket()).key(path.key());
                for (key, value) in &options.metadata {
                    request = request.metadata(key, value);
                }
                if let Some(token) = token {
                    request = request.if_none_match("*").metadata(PUT_TOKEN, token);
                }
                let request =
                    request.set_content_type(options.content_type.clone()).body(ByteStream::from(body.clone()));
                let done = request.send().await.map_err(|error| failure(&error, "put", path, true))?;
                Ok(done.e_tag().unwrap_or_default().to_owned())
            })
            .await;
        match sent {
            Err(error) if error.reason == Reason::Exists && token.is_some() => {
                let there = self.head(path).await?;
                if there.metadata.get(PUT_TOKEN) == token.as_ref() { Ok(there.etag) } else { Err(error) }
            }
            other => other,
        }
    }

    /// Deletes the object; one that is not there is no error.
    pub async fn delete(&self, path: &ObjectPath) -> Result<(), StoreError> {
        self.repeat(|| async move {
            let sent = self.client.delete_object().bucket(path.bucket()).key(path.key()).send().await;
            sent.map(drop).map_err(|error| failure(&error, "delete", path, true))
        })
        .await
    }

    /// Every object whose key begins with the key of `prefix`, in order of keys, over all pages, but never more than `count_max`.
    pub async fn list(&self, prefix: &ObjectPath, count_max: usize) -> Result<Vec<Listed>, StoreError> {
        let mut found = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let (after, room) = (&token, count_max.saturating_sub(found.len()).clamp(1, 1000) as i32);
            let page = self
                .repeat(|| async move {
                    let request = self.client.list_objects_v2().bucket(prefix.bucket()).prefix(prefix.key());
                    let request = request.max_keys(room);
                    let sent = request.set_continuation_token(after.clone()).send().await;
                    sent.map_err(|error| failure(&error, "list", prefix, false))
                })
                .await?;
            found.extend(page.contents().iter().map(|object| Listed {
                key: object.key().unwrap_or_default().to_owned(),
                size: object.size().and_then(|size| size.try_into().ok()).unwrap_or(0),
                etag: object.e_tag().unwrap_or_default().to_owned(),
            }));
            found.truncate(count_max);
            let next = page.next_continuation_token().map(str::to_owned);
            if found.len() == count_max || next.is_none() || next == token {
                return Ok(found);
            }
            token = next;
        }
    }

    /// A URL by which anyone can read this object, any range of it, for `ttl` (at most seven days). It is a key: never log it.
    pub async fn presign_get(&self, path: &ObjectPath, ttl: Duration) -> Result<String, StoreError> {
        self.presigner.get(path, ttl).await
    }

    /// A URL by which anyone can write this object once within `ttl`, and nobody can overwrite it: `If-None-Match: *` is signed,
    /// so the writer must send it, and the store refuses (412) when the object exists. With a content type, the writer must
    /// send the same. A store that ignores the precondition lets its last writer win until `ttl` is over.
    pub async fn presign_put(
        &self,
        path: &ObjectPath,
        ttl: Duration,
        content_type: Option<&str>,
    ) -> Result<String, StoreError> {
        self.presigner.put(path, ttl, content_type).await
    }

    async fn repeat<T, F>(&self, operation: impl FnMut() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        self.retry.run(&self.retries, operation).await
    }
}

/// And, where the configuration says them, the keys themselves.
async fn credentials(
    config: &S3Config,
    http: &SharedHttpClient,
) -> Result<(SharedCredentialsProvider, Option<Credentials>), StoreError> {
    let bad = |why: &dyn ToString| StoreError::new(Reason::BadInput, "configure", "s3", why.to_string());
    let Some(access_key) = &config.access_key else {
        let found = aws_config::defaults(BehaviorVersion::latest()).http_client(http.clone()).load().await;
        let provider = found.credentials_provider();
        return provider.map(|p| (p, None)).ok_or_else(|| bad(&"no access_key, and none in the AWS environment"));
    };
    let secret = match (&config.secret_key, &config.secret_key_file) {
        (Some(secret), _) => secret.expose().to_owned(),
        (None, Some(file)) => {
            let text =
                tokio::fs::read_to_string(file).await.map_err(|error| bad(&format!("{}: {error}", file.display())))?;
            text.lines().next().unwrap_or_default().trim().to_owned()
        }
        (None, None) => return Err(bad(&"access_key without secret_key or secret_key_file")),
    };
    let keys = Credentials::new(access_key, secret, None, None, "starling");
    Ok((SharedCredentialsProvider::new(keys.clone()), Some(keys)))
}

fn length(said: Option<i64>, doing: &'static str, path: &ObjectPath) -> Result<u64, StoreError> {
    said.and_then(|size| u64::try_from(size).ok())
        .ok_or_else(|| StoreError::new(Reason::WrongAnswer, doing, path, "no length"))
}

/// Reads a body that must have exactly `size` bytes.
async fn collect(mut body: ByteStream, size: u64, path: &ObjectPath) -> Result<Bytes, StoreError> {
    let short = |detail: String| StoreError::new(Reason::ShortBody, "get", path, detail);
    let mut read = BytesMut::new();
    while let Some(chunk) = body.next().await {
        read.extend_from_slice(&chunk.map_err(|error| short(error.to_string()))?);
        if read.len() as u64 > size {
            return Err(StoreError::new(Reason::WrongAnswer, "get", path, "more bytes than announced"));
        }
    }
    if read.len() as u64 == size { Ok(read.freeze()) } else { Err(short(format!("{} of {size} bytes", read.len()))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::Fetcher;

    /// Never run: it compiles only while callers can spawn what they await here.
    #[expect(dead_code, reason = "a claim to the compiler")]
    async fn every_operation_can_be_spawned(store: Store, fetcher: Fetcher, path: ObjectPath, range: ByteRange) {
        tokio::spawn(async move {
            let _ = store.head(&path).await;
            let _ = store.get(&path, 1).await;
            let _ = store.get_range(&path, range, None).await;
            let _ = store.put(&path, Bytes::new(), PutOptions::default()).await;
            let _ = store.delete(&path).await;
            let _ = store.list(&path, 1).await;
            let _ = store.presign_get(&path, Duration::ZERO).await;
            let _ = store.presign_put(&path, Duration::ZERO, None).await;
            let _ = store.probe_features("films", "").await;
            let _ = fetcher.get("", 1).await;
            let _ = fetcher.put("", "".as_ref(), "").await;
            let _ = fetcher.put_bytes("", Bytes::new(), "").await;
            if let Ok(mut file) = tokio::fs::File::create("").await {
                let _ = fetcher.ranges_to_file("", "", &[range], &mut file, &mut |_| ()).await;
            }
        });
    }
}
