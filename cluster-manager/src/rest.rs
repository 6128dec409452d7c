//! The REST API, and the way to a job's results for players.
//!
//! Answers come from the last published [`Snapshot`], so that a slow reader never holds the coordinator. Results are
//! reached through here so that private buckets play too: small documents are passed on, media objects are redirected
//! to a presigned URL, and no media byte goes through the cluster manager.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};

use crate::archive::Archive;
use crate::coordinator::Ask;
use crate::view::{DomainDoc, ErrorDoc, JobDoc, LoadDoc};

/// What is shown to readers; replaced whole soon after each change.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub ready: bool,
    pub jobs: BTreeMap<String, JobDoc>,
    pub domains: Vec<DomainDoc>,
    pub loads: Vec<LoadDoc>,
    /// Jobs that are over.
    pub ended: Option<Archive>,
}

impl Snapshot {
    pub fn job(&self, id: &str) -> Option<JobDoc> {
        self.jobs.get(id).cloned().or_else(|| Some(self.ended.as_ref()?.get(id)?.document))
    }

    pub fn all_jobs(&self) -> Vec<JobDoc> {
        let ended = self.ended.iter().flat_map(|archive| archive.documents());
        // One that was archived since is in both.
        let mut all: BTreeMap<_, _> = ended.map(|job| (job.id.clone(), job)).collect();
        all.extend(self.jobs.clone());
        all.into_values().collect()
    }
}

#[derive(Clone)]
pub struct Rest {
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
    pub ask: mpsc::Sender<Ask>,
}

pub fn router(rest: Rest) -> Router {
    Router::new()
        .route("/healthz", get(health))
        .route("/api/jobs", get(jobs))
        .route("/api/jobs/{id}", get(job))
        .route("/api/jobs/{id}/timeline.svg", get(timeline))
        .route("/api/domains", get(domains))
        .route("/api/loads", get(loads))
        .route("/jobs/{id}/{*path}", get(result))
        .with_state(rest)
        .merge(crate::web::pages())
}

async fn health(State(rest): State<Rest>) -> Response {
    let ready = rest.snapshot.borrow().ready;
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": ready }))).into_response()
}

async fn jobs(State(rest): State<Rest>) -> Json<Vec<JobDoc>> {
    let snapshot = rest.snapshot.borrow().clone();
    Json(snapshot.all_jobs())
}

async fn domains(State(rest): State<Rest>) -> Json<Vec<DomainDoc>> {
    Json(rest.snapshot.borrow().domains.clone())
}

async fn loads(State(rest): State<Rest>) -> Json<Vec<LoadDoc>> {
    Json(rest.snapshot.borrow().loads.clone())
}

async fn job(State(rest): State<Rest>, Path(id): Path<String>) -> Response {
    let snapshot = rest.snapshot.borrow().clone();
    match snapshot.job(&id) {
        Some(job) => Json(job).into_response(),
        None => no_such_job(&id),
    }
}

async fn timeline(State(rest): State<Rest>, Path(id): Path<String>) -> Response {
    let snapshot = rest.snapshot.borrow().clone();
    match snapshot.job(&id) {
        Some(job) => {
            ([(header::CONTENT_TYPE, "image/svg+xml")], crate::timeline::svg(&job.id, &job.timeline)).into_response()
        }
        None => no_such_job(&id),
    }
}

/// Where a result object is.
pub enum Located {
    /// A document, to be passed on, with its media type.
    Document(Vec<u8>, &'static str),
    /// A presigned GET.
    Elsewhere(String),
    Nowhere,
}

async fn result(State(rest): State<Rest>, Path((id, path)): Path<(String, String)>) -> Response {
    let (reply, located) = oneshot::channel();
    if rest.ask.send(Ask::Locate { job: id, path, reply }).await.is_err() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    match located.await {
        Ok(Located::Document(bytes, media_type)) => {
            (headers, [(header::CONTENT_TYPE, media_type)], bytes).into_response()
        }
        Ok(Located::Elsewhere(url)) => {
            (StatusCode::TEMPORARY_REDIRECT, headers, [(header::LOCATION, url)]).into_response()
        }
        Ok(Located::Nowhere) | Err(_) => (StatusCode::NOT_FOUND, headers).into_response(),
    }
}

fn no_such_job(id: &str) -> Response {
    let error = ErrorDoc {
        code: "no-such-job".into(),
        message: format!("there is no job {id} here"),
        hint: Some("`starling jobs` lists them".into()),
        line: None,
    };
    (StatusCode::NOT_FOUND, Json(error)).into_response()
}
