//! A store in memory: GET with `Range` and `If-Match`, PUT, no keys.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::Semaphore;

type Objects = Arc<Mutex<BTreeMap<String, Bytes>>>;

#[derive(Clone)]
struct Shelf {
    objects: Objects,
    /// A permit for each request for what is not there.
    missed: Arc<Semaphore>,
}

pub struct Store {
    address: std::net::SocketAddr,
    shelf: Shelf,
    server: tokio::task::JoinHandle<()>,
}

impl Store {
    pub async fn start() -> Self {
        let shelf = Shelf { objects: Objects::default(), missed: Arc::new(Semaphore::new(0)) };
        let router = Router::new().route("/{*key}", get(read).put(write)).with_state(shelf.clone());
        let router = router.layer(axum::extract::DefaultBodyLimit::disable());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, shelf, server }
    }

    pub fn url(&self, key: &str) -> String {
        format!("http://{}/{key}", self.address)
    }

    pub fn put(&self, key: &str, bytes: impl Into<Bytes>) {
        self.shelf.objects.lock().unwrap().insert(key.to_owned(), bytes.into());
    }

    /// Waits until something was asked for that is not there.
    pub async fn missed(&self) {
        self.shelf.missed.acquire().await.unwrap().forget();
    }

    pub fn get(&self, key: &str) -> Option<Bytes> {
        self.shelf.objects.lock().unwrap().get(key).cloned()
    }

    pub fn keys(&self) -> Vec<String> {
        self.shelf.objects.lock().unwrap().keys().cloned().collect()
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

async fn read(State(shelf): State<Shelf>, Path(key): Path<String>, headers: HeaderMap) -> Response {
    let Some(bytes) = shelf.objects.lock().unwrap().get(&key).cloned() else {
        shelf.missed.add_permits(1);
        return StatusCode::NOT_FOUND.into_response();
    };
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

async fn write(State(shelf): State<Shelf>, Path(key): Path<String>, body: Bytes) {
    shelf.objects.lock().unwrap().insert(key, body);
}
