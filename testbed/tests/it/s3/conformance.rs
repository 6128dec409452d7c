//! One suite, every store.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use aws_sdk_s3::{
    presigning::PresigningConfig,
    primitives::ByteStream,
    types::{CompletedMultipartUpload, CompletedPart},
};
use bytes::Bytes;
use reqwest::{Method, StatusCode};
use storage::{
    error::Reason,
    range::ByteRange,
    s3::{ObjectPath, PutOptions, S3Config, Secret, Store, StoreFeatures},
};

use super::place::{HOUR, Place, noise, path, plain};

macro_rules! on_every_store {
    ($($claim:ident)*) => {
        mod embedded {
            $(#[tokio::test] async fn $claim() { super::$claim(super::Place::embedded().await).await })*
        }
        mod versitygw {
            $(#[tokio::test] async fn $claim() { if let Some(place) = super::Place::versitygw().await { super::$claim(place).await } })*
        }
    };
}

on_every_store! {
    reads_with_a_wrong_etag_are_refused_and_with_the_right_one_served
    a_read_of_a_known_etag_is_not_modified
    of_sixteen_writers_of_a_new_key_one_wins
    a_conditional_write_does_not_overwrite
    a_multipart_upload_has_its_own_etag_and_does_not_overwrite
    a_presigned_range_is_served_and_an_altered_signature_is_not
    a_presigned_put_with_a_precondition_does_not_overwrite
    a_presigned_url_ends
    a_wrong_secret_is_forbidden
    content_type_and_metadata_come_back
    a_copy_has_the_bytes_and_the_etag
    a_listing_is_complete_over_its_pages_and_in_order
    a_delimiter_rolls_keys_up
    ranges_past_the_end_are_range_outside
    an_empty_object_is_an_object
    the_first_bytes_come_with_what_the_object_is
    strange_keys_are_kept_apart
    what_is_missing_has_its_code
    a_deleted_object_is_gone_and_deleting_again_is_no_error
    a_large_object_comes_back_by_ranges
    checksums_by_default_are_taken
    the_probe_finds_both_preconditions_and_leaves_nothing
}

async fn reads_with_a_wrong_etag_are_refused_and_with_the_right_one_served(place: Place) {
    let etag = place.put("a", "0123456789").await;
    let url = place.url("a").await;
    for (if_match, status) in
        [(etag.as_str(), StatusCode::PARTIAL_CONTENT), ("\"0bad\"", StatusCode::PRECONDITION_FAILED)]
    {
        let answer =
            plain(Method::GET, &url).header("range", "bytes=2-4").header("if-match", if_match).send().await.unwrap();
        assert_eq!(answer.status(), status);
        if status.is_success() {
            assert_eq!(answer.headers()["content-range"], "bytes 2-4/10");
            assert_eq!(answer.headers()["etag"], etag);
            assert_eq!(answer.bytes().await.unwrap(), "234");
        }
    }
    let range = ByteRange::new(2, 5).unwrap();
    assert_eq!(place.store.get_range(&path("a"), range, Some(&etag)).await.unwrap(), "234");
    let error = place.store.get_range(&path("a"), range, Some("\"0bad\"")).await.unwrap_err();
    assert_eq!((error.code(), error.retryable()), ("changed", false));
    let error = place.store.sdk().head_object().bucket("films").key("a").if_match("\"0bad\"").send().await.unwrap_err();
    assert_eq!(error.raw_response().unwrap().status().as_u16(), 412);
}

async fn a_read_of_a_known_etag_is_not_modified(place: Place) {
    let etag = place.put("a", "0123456789").await;
    let answer = plain(Method::GET, &place.url("a").await).header("if-none-match", etag).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::NOT_MODIFIED);
}

async fn of_sixteen_writers_of_a_new_key_one_wins(place: Place) {
    let writers =
        (0..16).map(|i| {
            let options = PutOptions { only_if_absent: true, ..Default::default() };
            let (store, place) = (&place.store, path("race"));
            async move {
                store.put(&place, Bytes::from(format!("writer {i}")), options).await.map(|_| format!("writer {i}"))
            }
        });
    let (won, lost): (Vec<_>, Vec<_>) = futures::future::join_all(writers).await.into_iter().partition(Result::is_ok);
    assert!(lost.iter().all(|lost| lost.as_ref().unwrap_err().reason == Reason::Exists), "{lost:?}");
    assert_eq!(won.len(), 1);
    assert_eq!(place.store.get(&path("race"), 100).await.unwrap(), won[0].as_deref().unwrap());
}

async fn a_conditional_write_does_not_overwrite(place: Place) {
    place.put("a", "old").await;
    let options = PutOptions { only_if_absent: true, ..Default::default() };
    let error = place.store.put(&path("a"), Bytes::from("new"), options).await.unwrap_err();
    assert_eq!((error.code(), error.retryable()), ("exists", false));
    assert_eq!(place.store.get(&path("a"), 10).await.unwrap(), "old");
}

async fn a_multipart_upload_has_its_own_etag_and_does_not_overwrite(place: Place) {
    let (sdk, bytes) = (place.store.sdk(), noise((5 << 20) + 100));
    for (tried, absent) in [("first", true), ("second", false)] {
        let id =
            sdk.create_multipart_upload().bucket("films").key("big").content_type("video/mp4").send().await.unwrap();
        let id = id.upload_id().unwrap();
        let mut parts = CompletedMultipartUpload::builder();
        for (number, part) in [(1, bytes.slice(..5 << 20)), (2, bytes.slice(5 << 20..))] {
            let request = sdk.upload_part().bucket("films").key("big").upload_id(id).part_number(number);
            let sent = request.body(ByteStream::from(part)).send().await.unwrap();
            parts = parts.parts(CompletedPart::builder().part_number(number).set_e_tag(sent.e_tag).build());
        }
        let request = sdk.complete_multipart_upload().bucket("films").key("big").upload_id(id).if_none_match("*");
        let done = request.multipart_upload(parts.build()).send().await;
        match done {
            Ok(done) => assert!(absent && done.e_tag().unwrap().ends_with("-2\""), "{tried}: {:?}", done.e_tag()),
            Err(error) => {
                assert!(!absent && error.raw_response().unwrap().status().as_u16() == 412, "{tried}: {error:?}")
            }
        }
    }
    let head = place.store.head(&path("big")).await.unwrap();
    assert_eq!((head.size, head.content_type.as_deref()), (bytes.len() as u64, Some("video/mp4")));
    assert_eq!(place.store.get(&path("big"), 10 << 20).await.unwrap(), bytes);
}

async fn a_presigned_range_is_served_and_an_altered_signature_is_not(place: Place) {
    place.put("a", "0123456789").await;
    let url = place.url("a").await;
    let answer = plain(Method::GET, &url).header("range", "bytes=0-0").send().await.unwrap();
    assert_eq!((answer.status(), answer.bytes().await.unwrap().as_ref()), (StatusCode::PARTIAL_CONTENT, b"0".as_ref()));
    place.put("b", "other").await;
    let (head, signature) = url.split_once("X-Amz-Signature=").unwrap();
    let first = if signature.starts_with('0') { "1" } else { "0" };
    let altered = [format!("{head}X-Amz-Signature={first}{}", &signature[1..]), url.replace("/films/a?", "/films/b?")];
    for url in altered.iter().chain([&url.split('?').next().unwrap().to_owned()]) {
        assert_eq!(plain(Method::GET, url).send().await.unwrap().status(), StatusCode::FORBIDDEN);
        assert_eq!(place.fetcher.get(url, 100).await.unwrap_err().code(), "forbidden");
    }
    assert_eq!(plain(Method::PUT, &url).body("mine").send().await.unwrap().status(), StatusCode::FORBIDDEN);
}

async fn a_presigned_put_with_a_precondition_does_not_overwrite(place: Place) {
    let url = place.store.presign_put(&path("out/1"), HOUR, Some("video/mp4")).await.unwrap();
    place.fetcher.put_bytes(&url, Bytes::from("part"), "video/mp4").await.unwrap();
    let head = place.store.head(&path("out/1")).await.unwrap();
    assert_eq!((head.size, head.content_type.as_deref()), (4, Some("video/mp4")));
    let again = || plain(Method::PUT, &url).header("content-type", "video/mp4").body("again");
    assert_eq!(again().header("if-none-match", "*").send().await.unwrap().status(), StatusCode::PRECONDITION_FAILED);
    // The precondition is signed: who leaves it out, or sends another, has no right to write.
    assert_eq!(again().send().await.unwrap().status(), StatusCode::FORBIDDEN);
    assert_eq!(again().header("if-none-match", "x").send().await.unwrap().status(), StatusCode::FORBIDDEN);
    place.fetcher.put_bytes(&url, Bytes::from("again"), "video/mp4").await.unwrap();
    assert_eq!(place.store.get(&path("out/1"), 10).await.unwrap(), "part");
    let wrong_type = place.fetcher.put_bytes(&url, Bytes::from("part"), "text/html").await.unwrap_err();
    assert_eq!(wrong_type.code(), "forbidden");
}

async fn a_presigned_url_ends(place: Place) {
    place.put("a", "0123456789").await;
    for (age_s, status) in [(10, StatusCode::OK), (120, StatusCode::FORBIDDEN)] {
        let signed = SystemTime::now() - Duration::from_secs(age_s);
        let times = PresigningConfig::builder().start_time(signed).expires_in(Duration::from_secs(60)).build().unwrap();
        let url = place.store.sdk().get_object().bucket("films").key("a").presigned(times).await.unwrap();
        assert_eq!(plain(Method::GET, url.uri()).send().await.unwrap().status(), status);
    }
}

async fn a_wrong_secret_is_forbidden(place: Place) {
    place.put("a", "0123456789").await;
    let wrong = S3Config { secret_key: Some(Secret::new("guessed")), ..place.config.clone() };
    let store = Store::connect(&wrong).await.unwrap();
    assert_eq!(store.get(&path("a"), 10).await.unwrap_err().code(), "forbidden");
    assert_eq!(store.head(&path("a")).await.unwrap_err().code(), "forbidden");
    let error = store.put(&path("a"), Bytes::new(), PutOptions::default()).await.unwrap_err();
    assert_eq!((error.code(), error.to_string().contains("guessed")), ("forbidden", false));
}

async fn content_type_and_metadata_come_back(place: Place) {
    let metadata = BTreeMap::from([("job".to_owned(), "j-1".to_owned()), ("part".to_owned(), "7".to_owned())]);
    let options =
        PutOptions { content_type: Some("video/iso.segment".into()), metadata: metadata.clone(), ..Default::default() };
    let etag = place.store.put(&path("a"), Bytes::from("x"), options).await.unwrap();
    let head = place.store.head(&path("a")).await.unwrap();
    assert_eq!((head.etag, head.content_type.as_deref(), head.metadata), (etag, Some("video/iso.segment"), metadata));
}

async fn a_copy_has_the_bytes_and_the_etag(place: Place) {
    let etag = place.put("from/a", "0123456789").await;
    place.store.sdk().copy_object().bucket("films").key("to/b").copy_source("films/from/a").send().await.unwrap();
    assert_eq!(place.store.head(&path("to/b")).await.unwrap().etag, etag);
    place.put("from/a", "replaced").await;
    assert_eq!(place.store.get(&path("to/b"), 10).await.unwrap(), "0123456789");
}

async fn a_listing_is_complete_over_its_pages_and_in_order(place: Place) {
    let names = ["l/a", "l/a b", "l/b/1", "l/b/2", "l/c", "l/é"];
    for name in names.iter().chain(&["k", "m"]) {
        place.put(name, name.to_string()).await;
    }
    let mut keys = Vec::new();
    let mut token = None;
    loop {
        let page =
            place.store.sdk().list_objects_v2().bucket("films").prefix("l/").max_keys(2).set_continuation_token(token);
        let page = page.send().await.unwrap();
        assert!(page.contents().len() <= 2);
        keys.extend(page.contents().iter().map(|object| object.key().unwrap().to_owned()));
        token = page.next_continuation_token().map(str::to_owned);
        if token.is_none() {
            break;
        }
    }
    assert_eq!(keys, names);
    let listed = place.store.list(&path("l/"), 100).await.unwrap();
    assert_eq!(listed.iter().map(|line| line.key.as_str()).collect::<Vec<_>>(), names);
    assert!(listed.iter().all(|line| line.size == line.key.len() as u64 && line.etag.len() > 2));
    assert_eq!(place.store.list(&path("l/"), 3).await.unwrap().len(), 3);
    assert!(place.store.list(&path("none/"), 3).await.unwrap().is_empty());
}

async fn a_delimiter_rolls_keys_up(place: Place) {
    for name in ["d/a", "d/b/1", "d/b/2", "d/c/1", "d/e"] {
        place.put(name, "x").await;
    }
    let (mut lines, mut token) = (Vec::new(), None);
    loop {
        let page = place.store.sdk().list_objects_v2().bucket("films").prefix("d/").delimiter("/").max_keys(1);
        let page = page.set_continuation_token(token).send().await.unwrap();
        lines.extend(page.contents().iter().map(|object| object.key().unwrap().to_owned()));
        lines.extend(page.common_prefixes().iter().map(|prefix| prefix.prefix().unwrap().to_owned()));
        token = page.next_continuation_token().map(str::to_owned);
        if token.is_none() {
            break;
        }
    }
    assert_eq!(lines, ["d/a", "d/b/", "d/c/", "d/e"]);
}

async fn ranges_past_the_end_are_range_outside(place: Place) {
    place.put("a", "0123456789").await;
    for (start, end) in [(10, 11), (8, 20), (1 << 40, 1 << 41)] {
        let error = place.store.get_range(&path("a"), ByteRange::new(start, end).unwrap(), None).await.unwrap_err();
        assert_eq!(error.code(), "range-outside", "{start}..{end}");
    }
    let tail = plain(Method::GET, &place.url("a").await).header("range", "bytes=-3").send().await.unwrap();
    assert_eq!(tail.bytes().await.unwrap(), "789");
}

async fn an_empty_object_is_an_object(place: Place) {
    place.put("empty", "").await;
    assert_eq!(place.store.head(&path("empty")).await.unwrap().size, 0);
    assert_eq!(place.store.get(&path("empty"), 0).await.unwrap(), "");
    assert_eq!(place.fetcher.get(&place.url("empty").await, 0).await.unwrap(), "");
    let error = place.store.get_range(&path("empty"), ByteRange::new(0, 1).unwrap(), None).await.unwrap_err();
    assert_eq!(error.code(), "range-outside");
}

async fn the_first_bytes_come_with_what_the_object_is(place: Place) {
    for (text, first) in [("0123456789", "0123"), ("01", "01"), ("", "")] {
        place.put("a", text).await;
        let (meta, bytes) = place.store.get_first(&path("a"), 4).await.unwrap();
        assert_eq!(bytes, first);
        assert_eq!(meta, place.store.head(&path("a")).await.unwrap());
    }
    assert_eq!(place.store.get_first(&path("none"), 4).await.unwrap_err().code(), "not-found");
}

async fn strange_keys_are_kept_apart(place: Place) {
    let keys = ["s/a b", "s/a+b", "s/a%20b", "s/ä ö 電影", "s/q?x=1&y=2#z", "s/'quote\"<tag>", "s/~!*()@:,;=$[]"];
    for key in keys {
        place.put(key, key.to_owned()).await;
    }
    for key in keys {
        assert_eq!(place.store.get(&path(key), 100).await.unwrap(), key);
        assert_eq!(place.fetcher.get(&place.url(key).await, 100).await.unwrap(), key, "presigned {key}");
    }
    let mut sorted = keys;
    sorted.sort();
    assert_eq!(
        place.store.list(&path("s/"), 100).await.unwrap().into_iter().map(|line| line.key).collect::<Vec<_>>(),
        sorted
    );
}

async fn what_is_missing_has_its_code(place: Place) {
    assert_eq!(place.store.head(&path("none")).await.unwrap_err().code(), "not-found");
    assert_eq!(place.store.get(&path("none"), 1).await.unwrap_err().code(), "not-found");
    assert_eq!(place.fetcher.get(&place.url("none").await, 1).await.unwrap_err().code(), "not-found");
    let nowhere = ObjectPath::new("nowhere", "a").unwrap();
    assert_eq!(place.store.get(&nowhere, 1).await.unwrap_err().code(), "bucket-missing");
    assert_eq!(place.store.list(&nowhere, 1).await.unwrap_err().code(), "bucket-missing");
    assert_eq!(
        place.store.put(&nowhere, Bytes::new(), PutOptions::default()).await.unwrap_err().code(),
        "bucket-missing"
    );
    place.put("a", "0123456789").await;
    assert_eq!(place.store.get(&path("a"), 9).await.unwrap_err().code(), "too-large");
    assert_eq!(place.fetcher.get(&place.url("a").await, 9).await.unwrap_err().code(), "too-large");
}

async fn a_deleted_object_is_gone_and_deleting_again_is_no_error(place: Place) {
    place.put("a/b", "x").await;
    place.store.delete(&path("a/b")).await.unwrap();
    place.store.delete(&path("a/b")).await.unwrap();
    assert_eq!(place.store.head(&path("a/b")).await.unwrap_err().code(), "not-found");
}

async fn a_large_object_comes_back_by_ranges(place: Place) {
    let bytes = noise(3 << 20);
    let etag = place.put("film", bytes.clone()).await;
    let dir = tempfile::tempdir().unwrap();
    let mut file = tokio::fs::File::create(dir.path().join("film")).await.unwrap();
    let whole = ByteRange::new(0, bytes.len() as u64).unwrap();
    let stats =
        place.fetcher.ranges_to_file(&place.url("film").await, &etag, &[whole], &mut file, &mut |_| ()).await.unwrap();
    assert_eq!((stats.bytes, stats.fetched, stats.gets, stats.retries), (3 << 20, 3 << 20, 12, 0));
    assert_eq!(std::fs::read(dir.path().join("film")).unwrap(), bytes);
}

async fn checksums_by_default_are_taken(place: Place) {
    let store = Store::connect(&S3Config { checksums_when_required: false, ..place.config.clone() }).await.unwrap();
    let bytes = noise(100_000);
    store.put(&path("sum"), bytes.clone(), PutOptions::default()).await.unwrap();
    assert_eq!(store.get(&path("sum"), 1 << 20).await.unwrap(), bytes);
    let request = store
        .sdk()
        .put_object()
        .bucket("films")
        .key("bad")
        .checksum_sha256("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    let error = request.body(ByteStream::from_static(b"not these")).send().await.unwrap_err();
    assert_eq!(error.raw_response().unwrap().status().as_u16(), 400);
    assert_eq!(place.store.head(&path("bad")).await.unwrap_err().code(), "not-found");
}

async fn the_probe_finds_both_preconditions_and_leaves_nothing(place: Place) {
    let found = place.store.probe_features("films", "out/").await.unwrap();
    assert_eq!(found, StoreFeatures { get_if_match: true, put_if_none_match: true });
    assert!(found.missing().is_empty());
    assert!(place.store.list(&path(""), 10).await.unwrap().is_empty());
}
