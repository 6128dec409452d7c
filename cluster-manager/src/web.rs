//! The pages that the home CM serves to a browser: the console and the player. They are static, hold everything they
//! need (no script from elsewhere) and read the REST API and the stored SMIL.

use axum::{
    Router,
    http::header,
    response::{Html, IntoResponse},
    routing::get,
};

/// `/` the console, `/player?smil=URL` the player; to be merged with the router of the REST API.
pub fn pages() -> Router {
    Router::new()
        .route("/", get(|| page(include_str!("web/console.html"))))
        .route("/player", get(|| page(include_str!("web/player.html"))))
        .route("/player.js", get(|| script(include_str!("web/player.js"))))
        .route("/console.js", get(|| script(include_str!("web/console.js"))))
}

async fn page(text: &'static str) -> impl IntoResponse {
    // Scripts only from here; media and playlists may come from any object store.
    let policy =
        "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; media-src * blob:; connect-src *";
    ([(header::CONTENT_SECURITY_POLICY, policy), (header::CACHE_CONTROL, "no-cache")], Html(text))
}

async fn script(text: &'static str) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/javascript; charset=utf-8"), (header::CACHE_CONTROL, "no-cache")], text)
}
