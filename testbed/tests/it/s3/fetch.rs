//! Fetching from a store that misbehaves.

use storage::{
    fetch::{FetchError, FetchStats},
    range::ByteRange,
    s3::{PutOptions, S3Config, Store},
};
use testbed::s3::Faults;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::place::{HOUR, Place, noise, path};

const HALF_A_MIB: u64 = 512 << 10;

fn range(start: u64, end: u64) -> ByteRange {
    ByteRange::new(start, end).unwrap()
}

/// Fetches behind four bytes that are there already, and says what the file then holds.
async fn fetch(
    place: &Place,
    url: &str,
    etag: &str,
    ranges: &[ByteRange],
    progress: &mut (dyn FnMut(u64) + Send),
) -> (Result<FetchStats, FetchError>, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let name = dir.path().join("film");
    let mut file =
        tokio::fs::OpenOptions::new().create(true).truncate(true).write(true).read(true).open(&name).await.unwrap();
    file.write_all(b"head").await.unwrap();
    let fetched = place.fetcher.ranges_to_file(url, etag, ranges, &mut file, progress).await;
    file.write_all(b"tail").await.unwrap();
    file.flush().await.unwrap();
    (fetched, std::fs::read(name).unwrap())
}

async fn fetched_whole_under(faults: Faults) -> FetchStats {
    let (place, server) = Place::faulty(faults).await;
    let bytes = noise(4 << 20);
    let etag = place.put("film", bytes.clone()).await;
    let ranges = [range(3 << 20, 4 << 20), range(0, 100), range(150, 200), range(1 << 20, (1 << 20) + HALF_A_MIB)];
    let wanted: Vec<u8> = ranges.iter().flat_map(|r| bytes.slice(r.start() as usize..r.end() as usize)).collect();
    let mut heard = Vec::new();
    let (stats, file) = fetch(&place, &place.url("film").await, &etag, &ranges, &mut |bytes| heard.push(bytes)).await;
    let stats = stats.unwrap();
    assert!(file == [b"head", wanted.as_slice(), b"tail"].concat());
    assert!(heard.is_sorted() && heard.last() == Some(&(wanted.len() as u64)), "{heard:?}");
    assert_eq!((stats.bytes, stats.gets), (wanted.len() as u64, 7));
    // The 50 bytes between the second and third range came along.
    assert!(stats.fetched >= stats.bytes + 50);
    server.stop().await;
    stats
}

#[tokio::test]
async fn without_faults_nothing_is_fetched_twice() {
    let stats = fetched_whole_under(Faults::default()).await;
    assert_eq!((stats.retries, stats.fetched), (0, stats.bytes + 50));
}

#[tokio::test]
async fn a_third_of_requests_refused_gives_the_same_bytes() {
    assert!(fetched_whole_under(Faults { refuse_share: 0.34, fault_seed: 3, ..Default::default() }).await.retries > 0);
}

#[tokio::test]
async fn cut_bodies_give_the_same_bytes_and_are_counted() {
    let stats =
        fetched_whole_under(Faults { cut_share: 0.4, refuse_share: 0.1, fault_seed: 5, ..Default::default() }).await;
    assert!(stats.retries > 0 && stats.fetched > stats.bytes + 50, "{stats:?}");
}

#[tokio::test]
async fn the_signed_driver_succeeds_while_a_third_is_refused_and_bodies_are_cut() {
    let (place, server) =
        Place::faulty(Faults { refuse_share: 0.34, cut_share: 0.2, fault_seed: 11, ..Default::default() }).await;
    let bytes = noise(200_000);
    for i in 0..20 {
        let path = path(&format!("o/{i}"));
        let options = PutOptions { only_if_absent: i % 2 == 0, ..Default::default() };
        let etag = place.store.put(&path, bytes.clone(), options).await.unwrap();
        assert_eq!(place.store.head(&path).await.unwrap().etag, etag);
        assert_eq!(place.store.get(&path, 1 << 20).await.unwrap(), bytes);
        assert_eq!(place.store.get_range(&path, range(5, 50_000), Some(&etag)).await.unwrap(), bytes.slice(5..50_000));
    }
    assert_eq!(place.store.list(&path("o/"), 100).await.unwrap().len(), 20);
    assert!(place.store.retries() > 20 && server.counters().statuses[&503] > 20);
}

#[tokio::test]
async fn uploads_by_url_succeed_while_a_third_is_refused() {
    let (place, _server) = Place::faulty(Faults { refuse_share: 0.34, fault_seed: 13, ..Default::default() }).await;
    let bytes = noise(1 << 20);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("part"), &bytes).unwrap();
    for i in 0..8 {
        let path = path(&format!("out/{i}"));
        let url = place.store.presign_put(&path, HOUR, Some("video/mp4")).await.unwrap();
        place.fetcher.put(&url, &dir.path().join("part"), "video/mp4").await.unwrap();
        assert_eq!(place.store.get(&path, 2 << 20).await.unwrap(), bytes);
    }
}

#[tokio::test]
async fn a_store_that_always_refuses_is_given_up_with_its_code() {
    let (place, server) = Place::faulty(Faults { refuse_share: 1.0, retry_after_s: 1, ..Default::default() }).await;
    let error = place.store.head(&path("a")).await.unwrap_err();
    assert_eq!((error.code(), error.retryable()), ("throttled", true));
    assert_eq!(error.retry_after, Some(std::time::Duration::from_secs(1)));
    let (error, file) = fetch(&place, &place.url("a").await, "\"e\"", &[range(0, 1)], &mut |_| ()).await;
    assert_eq!((error.unwrap_err().code(), file.as_slice()), ("throttled", b"headtail".as_ref()));
    assert_eq!(server.counters().statuses[&503], 24);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_replaced_midway_is_changed_and_nothing_of_it_stays() {
    let place = Place::embedded().await;
    let etag = place.put("film", noise(8 << 20)).await;
    let (url, store) = (place.url("film").await, place.store.clone());
    let mut replaced = false;
    // The fetch stands still while it reports its first bytes, and the object becomes another.
    let mut replace = |_| {
        if !std::mem::replace(&mut replaced, true) {
            let path = path("film");
            let put = store.put(&path, noise(9 << 20), PutOptions::default());
            tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(put)).unwrap();
        }
    };
    let (error, file) = fetch(&place, &url, &etag, &[range(0, 8 << 20)], &mut replace).await;
    let error = error.unwrap_err();
    assert_eq!((error.code(), error.retryable(), file.as_slice()), ("changed", false, b"headtail".as_ref()));
}

#[tokio::test]
async fn missing_and_forbidden_objects_have_their_codes_and_urls_are_not_shown() {
    let place = Place::embedded().await;
    let etag = place.put("film", "0123456789").await;
    let url = place.url("film").await;
    let cases = [
        (place.url("none").await, range(0, 5), "not-found"),
        (url.replace("X-Amz-Expires=3600", "X-Amz-Expires=3601"), range(0, 5), "forbidden"),
        (url.clone(), range(10, 20), "range-outside"),
        (url.clone(), range(5, 20), "range-outside"),
        ("http://127.0.0.1:9/films/film?X-Amz-Signature=0".into(), range(0, 5), "unreachable"),
        ("no url?X-Amz-Signature=0".into(), range(0, 5), "bad-input"),
    ];
    for (url, range, code) in cases {
        let (error, _) = fetch(&place, &url, &etag, &[range], &mut |_| ()).await;
        let error = error.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(!format!("{error} {error:?}").contains("Signature"));
        assert!(!error.hint().is_empty());
    }
}

/// A server that gives the same answer to every request: what no honest store says.
async fn liar(answer: &'static str) -> (String, impl Future<Output = ()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/films/film", listener.local_addr().unwrap());
    let served = async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut heard = Vec::new();
            while !heard.ends_with(b"\r\n\r\n") && socket.read_buf(&mut heard).await.is_ok_and(|read| read > 0) {}
            let _ = socket.write_all(answer.as_bytes()).await;
        }
    };
    (url, served)
}

#[tokio::test]
async fn answers_that_are_not_the_range_asked_for_are_errors_and_not_kept() {
    let place = Place::embedded().await;
    let cases = [
        ("HTTP/1.1 200 OK\r\nETag: \"e\"\r\nContent-Length: 5\r\n\r\n01234", "wrong-answer"),
        (
            "HTTP/1.1 206 Partial\r\nETag: \"e\"\r\nContent-Length: 5\r\nContent-Range: bytes 1-5/10\r\n\r\n12345",
            "wrong-answer",
        ),
        (
            "HTTP/1.1 206 Partial\r\nETag: \"e\"\r\nContent-Length: 4\r\nContent-Range: bytes 0-4/10\r\n\r\n0123",
            "wrong-answer",
        ),
        ("HTTP/1.1 206 Partial\r\nETag: \"e\"\r\nContent-Length: 5\r\n\r\n01234", "wrong-answer"),
        (
            "HTTP/1.1 206 Partial\r\nETag: \"f\"\r\nContent-Length: 5\r\nContent-Range: bytes 0-4/10\r\n\r\n01234",
            "changed",
        ),
        (
            "HTTP/1.1 206 Partial\r\nETag: \"e\"\r\nContent-Length: 5\r\nContent-Range: bytes 0-4/10\r\n\r\n012",
            "short-body",
        ),
        (
            "HTTP/1.1 206 Partial\r\nETag: \"e\"\r\nConnection: close\r\nContent-Range: bytes 0-4/10\r\n\r\n012",
            "short-body",
        ),
        (
            "HTTP/1.1 206 Partial\r\nETag: \"e\"\r\nConnection: close\r\nContent-Range: bytes 0-4/10\r\n\r\n0123456",
            "wrong-answer",
        ),
        ("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n", "wrong-answer"),
        ("HTTP/1.1 500 Oops\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", "unavailable"),
        ("nonsense\r\n\r\n", "unreachable"),
    ];
    for (answer, code) in cases {
        let (url, served) = liar(answer).await;
        let (ranges, mut silent) = ([range(0, 5)], |_| ());
        let (fetched, file) = tokio::select! {
            fetched = fetch(&place, &url, "\"e\"", &ranges, &mut silent) => fetched,
            () = served => unreachable!(),
        };
        assert_eq!(fetched.unwrap_err().code(), code, "{answer}");
        assert_eq!(file, b"headtail", "{answer}");
    }
}

#[tokio::test]
async fn a_conditional_put_whose_answer_was_lost_knows_its_own_object_again() {
    let (place, server) = Place::faulty(Faults::default()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let store = Store::connect(&S3Config { endpoint: Some(endpoint), ..place.config.clone() }).await.unwrap();
    // Between both: hangs up on the first answer, then passes everything on.
    let between = async {
        let mut lose = true;
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = TcpStream::connect(server.endpoint().replace("http://", "")).await.unwrap();
            if std::mem::take(&mut lose) {
                let (mut asked, (mut answered, mut pass)) = (near.split().0, far.split());
                tokio::select! {
                    _ = tokio::io::copy(&mut asked, &mut pass) => {}
                    _ = answered.read_u8() => {}
                }
            } else {
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            }
        }
    };
    let (once, options) = (path("once"), PutOptions { only_if_absent: true, ..Default::default() });
    let put = tokio::select! {
        put = store.put(&once, noise(100_000), options) => put,
        () = between => unreachable!(),
    };
    assert_eq!(put.unwrap(), place.store.head(&once).await.unwrap().etag);
    assert!(store.retries() >= 1 && server.counters().statuses[&412] == 1);
}
