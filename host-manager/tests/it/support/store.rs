//! A store in memory: GET with `Range` and `If-Match`, PUT, no keys.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

type Objects = Arc<Mutex<BTreeMap<String, Bytes>>>;

pub struct Store {
    address: std::net::SocketAddr,
    objects: Objects,
    server: tokio::task::JoinHandle<()>,
}

impl Store {
    pub async fn start() -> Self {
        let objects = Objects::default();
        let router = Router::new().route("/{*key}", get(read).put(write)).with_state(objects.clone());
        let router = router.layer(axum::extract::DefaultBodyLimit::disable());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, objects, server }
    }

    pub fn url(&self, key: &str) -> String {
        format!("http://{}/{key}", self.address)
    }

    pub fn put(&self, key: &str, bytes: impl Into<Bytes>) {
        self.objects.lock().unwrap().insert(key.to_owned(), bytes.into());
    }

    pub fn get(&self, key: &str) -> Option<Bytes> {
        self.objects.lock().unwrap().get(key).cloned()
    }

    pub fn keys(&self) -> Vec<String> {
        self.objects.lock().unwrap().keys().cloned().collect()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.server.abort();
    }
}

pub fn etag(bytes: &[u8]) -> String {
    format!("\"{}\"", super::film::sha256(bytes))
}

async fn read(State(objects): State<Objects>, Path(key): Path<String>, headers: HeaderMap) -> Response {
    let Some(bytes) = objects.lock().unwrap().get(&key).cloned() else { return StatusCode::NOT_FOUND.into_response() };
    let tag = etag(&bytes);
    if headers.get(header::IF_MATCH).is_some_and(|wanted| wanted != tag.as_str()) {
        return StatusCode::PRECONDITION_FAILED.into_response();
    }
    let Some(range) = headers.get(header::RANGE) else { return ([(header::ETAG, tag)], bytes).into_response() };
    let (first, last) = range.to_str().unwrap().strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
    let content_range = format!("bytes {first}-{last}/{}", bytes.len());
    let headers = [(header::ETAG, tag), (header::CONTENT_RANGE, content_range)];
    (StatusCode::PARTIAL_CONTENT, headers, bytes.slice(first..=last)).into_response()
}

async fn write(State(objects): State<Objects>, Path(key): Path<String>, body: Bytes) {
    objects.lock().unwrap().insert(key, body);
}
