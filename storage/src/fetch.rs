//! Reading and writing by presigned URL: for domains and guests, which hold no key.
//!
//! A fetch never trusts an answer: status, `Content-Range`, ETag and length must be those of the request, or the bytes are not kept.
//! Bodies go to their place in the file as they come, so memory does not grow with the number or size of GETs.
//! It does not know S3: any server with ranges and ETags will do.

mod answer;
mod ranges;

use std::{
    path::Path,
    sync::{OnceLock, atomic::AtomicU64},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream::BoxStream};
use reqwest::{Body, Client, header};
use serde::{Deserialize, Serialize};

use self::answer::{checked, is_range, lost, name};
pub use crate::error::StoreError as FetchError;
use crate::{
    error::Reason,
    ledger::{GETS_AT_ONCE, LedgerLimits},
    range::ByteRange,
    retry::RetryPolicy,
};

/// How to fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FetchOptions {
    /// GETs at once for one call of [`Fetcher::ranges_to_file`].
    pub parallel: usize,
    /// A range is cut into even GETs of at most this size.
    pub get_bytes_max: u64,
    /// Ranges at most this far apart share a GET.
    pub gap_bytes_max: u64,
    pub connect_timeout_ms: u64,
    /// Longest silence of a server that has a request.
    pub read_timeout_ms: u64,
    pub retry: RetryPolicy,
}

impl Default for FetchOptions {
    fn default() -> Self {
        let LedgerLimits { get_bytes_max, gap_bytes_max, .. } = LedgerLimits::default();
        Self {
            parallel: GETS_AT_ONCE,
            get_bytes_max,
            gap_bytes_max,
            connect_timeout_ms: 5_000,
            read_timeout_ms: 30_000,
            retry: RetryPolicy::default(),
        }
    }
}

/// What one call of [`Fetcher::ranges_to_file`] cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchStats {
    /// Bytes written: those asked for.
    pub bytes: u64,
    /// Bytes received, with gaps and broken tries.
    pub fetched: u64,
    /// Answers that were used.
    pub gets: u64,
    /// Requests that were repeated, and those of them that the store answered by 429 or 503.
    pub retries: u64,
    pub throttled: u64,
}

/// A client for presigned URLs; clones share its connections.
#[derive(Clone, Debug)]
pub struct Fetcher {
    client: Client,
    /// Without a read timeout: the client's clock would run while a body is still being sent.
    uploads: Client,
    options: FetchOptions,
}

/// The bytes of one range as they come.
pub struct RangeBody {
    name: String,
    body: BoxStream<'static, reqwest::Result<Bytes>>,
    left: u64,
}

impl RangeBody {
    /// The next bytes; `None` after exactly as many as were asked for.
    pub async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        match self.body.next().await.transpose().map_err(|error| lost(error, "get", &self.name))? {
            Some(chunk) if chunk.len() as u64 > self.left => {
                Err(FetchError::new(Reason::WrongAnswer, "get", &self.name, "more bytes than asked for"))
            }
            Some(chunk) => {
                self.left -= chunk.len() as u64;
                Ok(Some(chunk))
            }
            None if self.left > 0 => {
                Err(FetchError::new(Reason::ShortBody, "get", &self.name, format!("{} bytes lack", self.left)))
            }
            None => Ok(None),
        }
    }
}

/// An upload slower than this many bytes a second, over all, has failed.
const UPLOAD_RATE_MIN: u64 = 16 << 10;

/// How each HTTP client of the workspace begins. The library wants a TLS provider even for plain HTTP, and is built without one.
pub fn http() -> reqwest::ClientBuilder {
    // A second installation is refused and harmless: the first was ring, too.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
}

impl Fetcher {
    pub fn new(options: FetchOptions) -> Result<Self, FetchError> {
        let connect_timeout = Duration::from_millis(options.connect_timeout_ms);
        let common = || http().connect_timeout(connect_timeout).redirect(reqwest::redirect::Policy::none());
        let bad =
            |error: reqwest::Error| FetchError::new(Reason::BadInput, "configure", "fetcher", error.without_url());
        let client = common().read_timeout(Duration::from_millis(options.read_timeout_ms)).build().map_err(bad)?;
        Ok(Self { client, uploads: common().build().map_err(bad)?, options })
    }

    /// The process's own, as the defaults have it. Made with its first use: reading the roots of TLS takes tens of milliseconds, and who is
    /// idle needs neither them nor a pool of connections.
    pub fn shared() -> Result<&'static Self, FetchError> {
        static SHARED: OnceLock<Fetcher> = OnceLock::new();
        if SHARED.get().is_none() {
            let _ = SHARED.set(Self::new(FetchOptions::default())?); // somebody else's will do
        }
        Ok(SHARED.get().expect("set above"))
    }

    /// The same client, with so many GETs of one call at a time.
    pub fn with_parallel(&self, parallel: usize) -> Self {
        let mut same = self.clone();
        same.options.parallel = parallel;
        same
    }

    /// A whole object, which must not be larger than `bytes_max`.
    pub async fn get(&self, url: &str, bytes_max: u64) -> Result<Bytes, FetchError> {
        let get = || async move {
            let sent = self.client.get(url).send().await.map_err(|error| lost(error, "get", url))?;
            let answer = checked(sent, "get", url, false)?;
            let (size, mut body) = (answer.content_length(), answer.bytes_stream());
            let mut read = BytesMut::new();
            while let Some(chunk) = body.next().await {
                read.extend_from_slice(&chunk.map_err(|error| lost(error, "get", url))?);
                if read.len() as u64 > bytes_max {
                    return Err(FetchError::new(
                        Reason::TooLarge,
                        "get",
                        name(url),
                        format!("more than {bytes_max} bytes"),
                    ));
                }
            }
            match size {
                Some(size) if size != read.len() as u64 => {
                    Err(FetchError::new(Reason::ShortBody, "get", name(url), format!("{} of {size} bytes", read.len())))
                }
                _ => Ok(read.freeze()),
            }
        };
        self.options.retry.run(&AtomicU64::new(0), get).await
    }

    /// As [`Fetcher::get`], for an object that is perhaps still being written: while it is not there it is asked for again, for `wait` at
    /// most.
    pub async fn get_when_written(&self, url: &str, bytes_max: u64, wait: Duration) -> Result<Bytes, FetchError> {
        let (began, mut pause) = (Instant::now(), Duration::from_millis(20));
        loop {
            match self.get(url, bytes_max).await {
                Err(error) if error.reason == Reason::NotFound && began.elapsed() < wait => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(1));
                }
                read => return read,
            }
        }
    }

    /// One GET of one range, judged before its first byte. Not repeated: the caller knows what an attempt is worth.
    ///
    /// Errors: `changed` when the object is not the one with `etag`; otherwise as in [`Reason`].
    pub async fn open_range(&self, url: &str, etag: &str, span: ByteRange) -> Result<RangeBody, FetchError> {
        let request = self.client.get(url).header(header::RANGE, span.http_header()).header(header::IF_MATCH, etag);
        let answer = checked(request.send().await.map_err(|error| lost(error, "get", url))?, "get", url, false)?;
        is_range(&answer, url, span, etag)?;
        Ok(RangeBody { name: name(url).to_owned(), body: answer.bytes_stream().boxed(), left: span.len() })
    }

    /// Uploads a file by a presigned PUT, once: what is there already is left as it is, and that is no error. It is an earlier
    /// try whose answer was lost, or whoever reads the object back will find that it is not what was said. The content type must
    /// be the one that was signed, if one was.
    pub async fn put(&self, url: &str, path: &Path, content_type: &str) -> Result<(), FetchError> {
        let body = || async move {
            let disk = |error: std::io::Error| FetchError::new(Reason::LocalFile, "read", path.display(), error);
            let file = tokio::fs::File::open(path).await.map_err(disk)?;
            let size = file.metadata().await.map_err(disk)?.len();
            Ok((size, Body::from(file)))
        };
        self.put_body(url, content_type, body).await
    }

    /// Uploads bytes by a presigned PUT.
    pub async fn put_bytes(&self, url: &str, bytes: Bytes, content_type: &str) -> Result<(), FetchError> {
        self.put_body(url, content_type, || std::future::ready(Ok((bytes.len() as u64, Body::from(bytes.clone())))))
            .await
    }

    async fn put_body<F>(&self, url: &str, content_type: &str, body: impl Fn() -> F) -> Result<(), FetchError>
    where
        F: Future<Output = Result<(u64, Body), FetchError>>,
    {
        let body = &body;
        let put = || async move {
            let (size, body) = body().await?;
            let timeout =
                Duration::from_millis(self.options.read_timeout_ms) + Duration::from_secs(size / UPLOAD_RATE_MIN);
            let request = self.uploads.put(url).timeout(timeout);
            let request = request.header(header::CONTENT_TYPE, content_type).header(header::CONTENT_LENGTH, size);
            // Signed with the URL: see `Store::presign_put`.
            let request = request.header(header::IF_NONE_MATCH, "*");
            let sent = request.body(body).send().await.map_err(|error| lost(error, "put", url))?;
            match checked(sent, "put", url, true) {
                Err(error) if error.reason == Reason::Exists => Ok(()),
                answer => answer.map(drop),
            }
        };
        self.options.retry.run(&AtomicU64::new(0), put).await
    }
}
