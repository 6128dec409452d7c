//! What only the embedded server must do.

use std::collections::BTreeMap;

use bytes::Bytes;
use reqwest::{Method, StatusCode};
use storage::s3::PutOptions;
use testbed::s3::{Faults, S3Server};

use super::place::{Place, config, noise, path, plain};

#[tokio::test]
async fn a_page_of_another_origin_may_read_and_sees_what_it_needs() {
    let (place, server) = Place::faulty(Faults::default()).await;
    let etag = place.put("public/seg 1.m4s", "0123456789").await;
    let url = format!("{}/films/public/seg%201.m4s", server.endpoint());
    let asks =
        plain(Method::OPTIONS, &url).header("origin", "http://page").header("access-control-request-method", "GET");
    let allowed = asks.header("access-control-request-headers", "range").send().await.unwrap();
    assert!(allowed.status().is_success());
    assert_eq!(allowed.headers()["access-control-allow-origin"], "*");
    assert!(allowed.headers()["access-control-allow-headers"].to_str().unwrap().contains("Range"));
    let got =
        plain(Method::GET, &url).header("origin", "http://page").header("range", "bytes=1-3").send().await.unwrap();
    let exposed = got.headers()["access-control-expose-headers"].to_str().unwrap();
    assert!(["ETag", "Content-Range", "Content-Length"].iter().all(|name| exposed.contains(name)));
    assert_eq!(
        (got.headers()["access-control-allow-origin"].as_bytes(), got.headers()["etag"].to_str().unwrap()),
        (b"*".as_ref(), etag.as_str())
    );
    assert_eq!((got.status(), got.bytes().await.unwrap().as_ref()), (StatusCode::PARTIAL_CONTENT, b"123".as_ref()));
}

#[tokio::test]
async fn what_is_public_can_be_read_by_anyone_and_nothing_else() {
    let (place, server) = Place::faulty(Faults::default()).await;
    for key in ["public/a", "private/a"] {
        place.put(key, "x").await;
    }
    let ask = async |method: Method, path: &str| {
        plain(method, &format!("{}/films{path}", server.endpoint())).send().await.unwrap().status()
    };
    assert_eq!(ask(Method::GET, "/public/a").await, StatusCode::OK);
    assert_eq!(ask(Method::HEAD, "/public/a").await, StatusCode::OK);
    for (method, path) in [
        (Method::GET, "/private/a"),
        (Method::HEAD, "/private/a"),
        (Method::PUT, "/public/a"),
        (Method::DELETE, "/public/a"),
        (Method::GET, "?list-type=2&prefix=public/"),
        (Method::GET, "/public/../private/a"),
        (Method::GET, "/public/%2e%2e/private/a"),
    ] {
        let status = ask(method.clone(), path).await;
        assert!(matches!(status, StatusCode::FORBIDDEN | StatusCode::NOT_FOUND), "{method} {path}: {status}");
    }
}

#[tokio::test]
async fn keys_that_climb_are_refused_and_write_nothing_outside() {
    let (place, _server) = Place::faulty(Faults::default()).await;
    for key in ["../evil", "a/../../evil", "..", "/etc/evil"] {
        let put = place.store.sdk().put_object().bucket("films").key(key).body(Bytes::from("x").into()).send().await;
        let status = put.unwrap_err().raw_response().unwrap().status().as_u16();
        assert!(matches!(status, 400 | 403), "{key}: {status}");
    }
    assert!(place.store.list(&path(""), 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn objects_outlive_the_server_and_the_port_is_free_again() {
    let dir = tempfile::tempdir().unwrap();
    let server = S3Server::start(config(&dir, Faults::default())).await.unwrap();
    let address = server.endpoint().replace("http://", "");
    let place = Place::at(server.endpoint(), Box::new(())).await;
    let options = PutOptions { metadata: BTreeMap::from([("a".to_owned(), "b".to_owned())]), ..Default::default() };
    let etag = place.store.put(&path("ä b"), noise(100_000), options).await.unwrap();
    server.stop().await;
    assert_eq!(place.store.head(&path("ä b")).await.unwrap_err().code(), "unreachable");
    let mut config = config(&dir, Faults::default());
    config.listen = address.parse().unwrap();
    let server = S3Server::start(config).await.unwrap();
    let head = place.store.head(&path("ä b")).await.unwrap();
    assert_eq!((head.etag, head.metadata["a"].as_str()), (etag, "b"));
    assert_eq!(place.store.get(&path("ä b"), 1 << 20).await.unwrap(), noise(100_000));
    server.stop().await;
}

#[tokio::test]
async fn a_reader_keeps_the_object_that_it_began_with() {
    let place = Place::embedded().await;
    let old = noise(16 << 20);
    let etag = place.put("film", old.clone()).await;
    let answer = plain(Method::GET, &place.url("film").await).send().await.unwrap();
    place.put("film", "new").await;
    place.store.delete(&path("film")).await.unwrap();
    assert_eq!(answer.headers()["etag"], etag);
    assert!(answer.bytes().await.unwrap() == old);
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_no_object() {
    let place = Place::embedded().await;
    let url = place.store.presign_put(&path("half"), super::place::HOUR, None).await.unwrap();
    let chunks = [Ok(noise(1000)), Err(std::io::Error::other("gone"))];
    let body = reqwest::Body::wrap_stream(futures::stream::iter(chunks));
    plain(Method::PUT, &url)
        .header("content-length", 5000)
        .header("if-none-match", "*")
        .body(body)
        .send()
        .await
        .unwrap_err();
    assert_eq!(place.store.head(&path("half")).await.unwrap_err().code(), "not-found");
}

#[tokio::test]
async fn requests_and_bytes_are_counted() {
    let (place, server) = Place::faulty(Faults::default()).await;
    place.put("a", noise(1000)).await;
    place.store.get(&path("a"), 1000).await.unwrap();
    place.store.get_range(&path("a"), storage::range::ByteRange::new(0, 10).unwrap(), None).await.unwrap();
    place.store.head(&path("a")).await.unwrap();
    let counters = server.counters();
    assert_eq!(
        (counters.requests["PUT"], counters.requests["GET"], counters.requests["HEAD"], counters.get_bytes_out),
        (1, 2, 1, 1010)
    );
}
