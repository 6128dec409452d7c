//! Layers around the S3 service, each a service of the same kind: counting, CORS, faults.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{StreamExt, future::BoxFuture};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::{body::Incoming, service::Service};
use s3s::{Body, HttpError, dto::StreamingBlob};
use serde::{Deserialize, Serialize};

type Answer = BoxFuture<'static, Result<Response<Body>, HttpError>>;

/// A service that speaks HTTP as `s3s` does.
pub trait Http: Service<Request<Incoming>, Response = Response<Body>, Error = HttpError, Future = Answer> {}
impl<S: Service<Request<Incoming>, Response = Response<Body>, Error = HttpError, Future = Answer>> Http for S {}

/// What the server was asked for and sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Requests by method.
    pub requests: BTreeMap<String, u64>,
    /// Answers by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Body bytes of GETs, as far as they were taken.
    pub get_bytes_out: u64,
    /// The same for each object that there is, by `/bucket/key`.
    pub get_bytes_of: BTreeMap<String, u64>,
}

/// Counts requests and bytes, and logs one line for each request.
#[derive(Clone)]
pub struct Counting<S> {
    pub inner: S,
    pub counters: Arc<Mutex<Counters>>,
}

impl<S: Http> Service<Request<Incoming>> for Counting<S> {
    type Response = Response<Body>;
    type Error = HttpError;
    type Future = Answer;

    fn call(&self, request: Request<Incoming>) -> Answer {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let (answer, counters) = (self.inner.call(request), self.counters.clone());
        Box::pin(async move {
            let answer = answer.await?;
            let (status, found) = (answer.status().as_u16(), answer.status().is_success());
            tracing::debug!(%method, path, status, "served");
            {
                let mut counters = counters.lock().unwrap_or_else(PoisonError::into_inner);
                *counters.requests.entry(method.to_string()).or_default() += 1;
                *counters.statuses.entry(status).or_default() += 1;
            }
            if method != Method::GET {
                return Ok(answer);
            }
            Ok(answer.map(|body| {
                rewrap(body.inspect(move |chunk| {
                    let bytes = chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
                    let mut counters = counters.lock().unwrap_or_else(PoisonError::into_inner);
                    counters.get_bytes_out += bytes;
                    if found {
                        *counters.get_bytes_of.entry(path.clone()).or_default() += bytes;
                    }
                }))
            }))
        })
    }
}

/// Lets pages of any origin read: the player page is served by a cluster manager and plays objects from here.
#[derive(Clone)]
pub struct Cors<S> {
    pub inner: S,
}

impl<S: Http> Service<Request<Incoming>> for Cors<S> {
    type Response = Response<Body>;
    type Error = HttpError;
    type Future = Answer;

    fn call(&self, request: Request<Incoming>) -> Answer {
        let method = request.method().clone();
        let answer = (method != Method::OPTIONS).then(|| self.inner.call(request));
        Box::pin(async move {
            let mut response = match answer {
                Some(answer) => answer.await?,
                None => {
                    let mut response = Response::new(Body::empty());
                    *response.status_mut() = StatusCode::NO_CONTENT;
                    let headers = response.headers_mut();
                    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, HEAD"));
                    headers.insert(
                        header::ACCESS_CONTROL_ALLOW_HEADERS,
                        HeaderValue::from_static("Range, If-Match, If-None-Match"),
                    );
                    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("3600"));
                    response
                }
            };
            if matches!(method, Method::GET | Method::HEAD | Method::OPTIONS) {
                let headers = response.headers_mut();
                headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
                let exposed = HeaderValue::from_static("ETag, Content-Range, Content-Length, Accept-Ranges");
                headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
            }
            Ok(response)
        })
    }
}

/// How the server misbehaves. The same seed and order of requests give the same faults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Share of requests answered by 503 SlowDown, 0 to 1.
    #[arg(long, default_value_t = 0.0)]
    pub refuse_share: f64,
    /// `Retry-After` of these answers, in seconds; 0 sends none.
    #[arg(long, default_value_t = 0)]
    pub retry_after_s: u32,
    /// Share of bodies cut at their middle, 0 to 1.
    #[arg(long, default_value_t = 0.0)]
    pub cut_share: f64,
    /// Delay before every answer.
    #[arg(long, default_value_t = 0)]
    pub latency_ms: u64,
    /// As much more before an object is written.
    #[arg(long, default_value_t = 0)]
    pub put_latency_ms: u64,
    #[arg(long, default_value_t = 0)]
    pub fault_seed: u64,
}

impl Faults {
    /// The flags of `testbed s3` that make these faults.
    pub fn flags(&self) -> [String; 6] {
        [
            format!("--refuse-share={}", self.refuse_share),
            format!("--retry-after-s={}", self.retry_after_s),
            format!("--cut-share={}", self.cut_share),
            format!("--latency-ms={}", self.latency_ms),
            format!("--put-latency-ms={}", self.put_latency_ms),
            format!("--fault-seed={}", self.fault_seed),
        ]
    }
}

/// Breaks some requests on purpose.
#[derive(Clone)]
pub struct Faulty<S> {
    inner: S,
    faults: Faults,
    dice: Arc<Mutex<fastrand::Rng>>,
}

impl<S> Faulty<S> {
    pub fn new(inner: S, faults: Faults) -> Self {
        Self { inner, faults, dice: Arc::new(Mutex::new(fastrand::Rng::with_seed(faults.fault_seed))) }
    }
}

impl<S: Http> Service<Request<Incoming>> for Faulty<S> {
    type Response = Response<Body>;
    type Error = HttpError;
    type Future = Answer;

    fn call(&self, request: Request<Incoming>) -> Answer {
        let faults = self.faults;
        let (refuse, cut) = {
            let mut dice = self.dice.lock().unwrap_or_else(PoisonError::into_inner);
            (dice.f64() < faults.refuse_share, dice.f64() < faults.cut_share)
        };
        let more_ms = if request.method() == Method::PUT { faults.put_latency_ms } else { 0 };
        let latency = Duration::from_millis(faults.latency_ms + more_ms);
        let answer = (!refuse).then(|| self.inner.call(request));
        Box::pin(async move {
            if !latency.is_zero() {
                tokio::time::sleep(latency).await;
            }
            match answer {
                None => Ok(slow_down(faults.retry_after_s)),
                Some(answer) if cut => answer.await.map(cut_body),
                Some(answer) => answer.await,
            }
        })
    }
}

fn slow_down(retry_after_s: u32) -> Response<Body> {
    let text = "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>";
    let mut response = Response::new(Body::from(text.to_owned()));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    if retry_after_s > 0 {
        response.headers_mut().insert(header::RETRY_AFTER, retry_after_s.into());
    }
    response
}

/// Keeps the announced length and breaks the connection at its middle.
fn cut_body(response: Response<Body>) -> Response<Body> {
    let length =
        response.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let Some(length) = length.filter(|length| *length > 1) else { return response };
    response.map(|body| {
        rewrap(futures::stream::try_unfold((body, length / 2), async |(mut body, left)| {
            if left == 0 {
                // A pause before the break lets what came before it out to the client.
                tokio::task::yield_now().await;
                return Err("cut on purpose".into());
            }
            let Some(mut chunk) = body.next().await.transpose()? else { return Ok(None) };
            chunk.truncate(left);
            let left = left - chunk.len();
            Ok(Some((chunk, (body, left))))
        }))
    })
}

fn rewrap(stream: impl futures::Stream<Item = Result<bytes::Bytes, s3s::StdError>> + Send + Sync + 'static) -> Body {
    Body::from(StreamingBlob::wrap(stream.map(|chunk| chunk.map_err(std::io::Error::other))))
}
