//! The HTTP face of a guest, on loopback or the address of its machine. Every request but `GET /healthz` bears
//! `Authorization: Bearer TOKEN` (RFC 6750).
//!
//! | request | does |
//! |---|---|
//! | `PUT /tasks/{id}` `{"url": ..., "swarm": ...}` | starts the task; a repeat starts nothing. Answers the present state |
//! | `GET /tasks` | ids and states of all tasks |
//! | `GET /tasks/{id}` | present state |
//! | `GET /tasks/{id}/events` | a state a line (NDJSON), from the present one to the final one |
//! | `DELETE /tasks/{id}` | stops it and forgets it; answers when its process and its files are gone, also when unknown |

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures::stream;

use super::runner::{Guest, Refusal};
use super::task::{Order, TaskState};

/// The routes, behind `token`.
pub fn router(guest: Arc<Guest>, token: String) -> Router {
    Router::new()
        .route("/tasks", get(list))
        .route("/tasks/{id}", get(show).put(start).delete(stop))
        .route("/tasks/{id}/events", get(events))
        .route_layer(middleware::from_fn_with_state(Arc::<str>::from(token), authorize))
        .route("/healthz", get(|| async { "ok\n" }))
        .with_state(guest)
}

async fn authorize(State(token): State<Arc<str>>, request: Request, next: Next) -> Response {
    let given = request.headers().get(header::AUTHORIZATION).and_then(|v| v.as_bytes().strip_prefix(b"Bearer "));
    match given {
        Some(given) if same(given, token.as_bytes()) => next.run(request).await,
        _ => refuse(StatusCode::UNAUTHORIZED, "unauthorized", "send the token of this guest as a Bearer token"),
    }
}

/// Compares without telling by its time how much was right.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

async fn list(State(guest): State<Arc<Guest>>) -> Json<Vec<TaskState>> {
    Json(guest.list())
}

async fn start(State(guest): State<Arc<Guest>>, Path(id): Path<String>, body: Bytes) -> Response {
    let order: Order = match serde_json::from_slice(&body) {
        Ok(order) => order,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, "bad-request", &error.to_string()),
    };
    match guest.start(&id, order) {
        Ok(state) => Json(state).into_response(),
        Err(refusal @ Refusal::BadId) => refuse(StatusCode::BAD_REQUEST, "bad-id", &refusal.to_string()),
        Err(refusal @ Refusal::Full) => refuse(StatusCode::SERVICE_UNAVAILABLE, "full", &refusal.to_string()),
    }
}

async fn show(State(guest): State<Arc<Guest>>, Path(id): Path<String>) -> Response {
    match guest.watch(&id) {
        Some(state) => Json(state.borrow().clone()).into_response(),
        None => unknown(),
    }
}

async fn events(State(guest): State<Arc<Guest>>, Path(id): Path<String>) -> Response {
    let Some(mut watch) = guest.watch(&id) else { return unknown() };
    watch.mark_changed();
    let lines = stream::unfold(Some(watch), |watch| async {
        let mut watch = watch?;
        watch.changed().await.ok()?;
        let state = watch.borrow_and_update().clone();
        let mut line = serde_json::to_vec(&state).ok()?;
        line.push(b'\n');
        Some((Ok::<_, Infallible>(line), (!state.state.is_final()).then_some(watch)))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

async fn stop(State(guest): State<Arc<Guest>>, Path(id): Path<String>) -> StatusCode {
    guest.stop(&id).await;
    StatusCode::NO_CONTENT
}

fn unknown() -> Response {
    refuse(StatusCode::NOT_FOUND, "unknown-task", "PUT it first; a guest that was started anew knows no task")
}

fn refuse(status: StatusCode, code: &str, hint: &str) -> Response {
    (status, Json(serde_json::json!({ "code": code, "hint": hint }))).into_response()
}
