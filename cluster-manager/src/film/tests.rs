use std::sync::atomic::{AtomicUsize, Ordering};

use axum::http::{StatusCode, Uri};
use axum::routing::any;
use storage::film::part::{Clip, PartInput, Ratio};
use storage::film::plan::{AudioInfo, AudioSpan, Container, FilmInfo, PlannedPart};
use storage::retry::RetryPolicy;
use storage::s3::{S3Config, Secret};

use super::*;

pub(crate) const XML: &str = "<job xmlns='urn:starling:job:1' kind='transcode'><source>s3://films/in</source>\
                              <target>s3://films/out/</target><rendition height='90' codec='h264'/></job>";

pub(crate) fn film() -> FilmJob {
    FilmJob::new("j-1", Job::parse(XML).unwrap()).unwrap()
}

/// Parts of four seconds, with sound.
pub(crate) fn prepared(parts: u32) -> Prepared {
    let rate = Ratio { num: 25, den: 1 };
    let part = |n: u32| PlannedPart {
        input: PartInput { format: "matroska".into(), head: String::new(), ranges: Vec::new() },
        clip: Clip {
            lo: 0,
            hi: 4_000,
            time_base: Ratio { num: 1, den: 1_000 },
            first_frame: u64::from(n) * 100,
            frames: 100,
            rate,
            constant: true,
            origin: 0,
        },
        audio: Some(AudioSpan { lo: None, hi: None, format: "adts".into() }),
        start_seconds: f64::from(n) * 4.0,
        duration_seconds: 4.0,
    };
    let audio = AudioInfo { codec: "aac".into(), format: "adts".into(), sample_rate: 48_000, channels: 2 };
    let film = FilmInfo {
        container: Container::Matroska,
        width: 160,
        height: 90,
        duration: f64::from(parts) * 4.0,
        rate,
        constant: true,
        frames: u64::from(parts) * 100,
        audio: Some(audio),
    };
    Prepared {
        etag: "\"1\"".into(),
        size: 1_000,
        plan: Plan { film, parts: (0..parts).map(part).collect(), audio_offset_seconds: 0.0, audio_end_seconds: None },
        options: PlanOptions::default(),
        heads: OnceCell::new(),
        claimed: OnceCell::new(),
    }
}

pub(crate) fn output(key: &str, bytes: &[u8]) -> Output {
    Output { key: key.into(), size: bytes.len() as u64, sha256: hex(&Sha256::digest(bytes)), fragments: None }
}

#[test]
fn pieces_of_any_size_that_a_domain_may_say_are_called_out() {
    let huge = Output { size: u64::MAX, ..output("k", b"") };
    let pieces = BTreeMap::from([(0, huge.clone()), (1, huge)]);
    assert_eq!(film().audio_call(&prepared(2), &pieces).unwrap().bytes, u64::MAX);
}

/// A store on loopback that holds these objects, and refuses its first `ill` requests.
pub(crate) async fn store(objects: &[(&str, &[u8])], ill: usize) -> Store {
    let held: BTreeMap<_, _> = objects.iter().map(|(key, bytes)| (format!("/films/{key}"), bytes.to_vec())).collect();
    let (held, served) = (Arc::new(held), Arc::new(AtomicUsize::new(0)));
    let answer = move |uri: Uri| {
        let (held, is_ill) = (held.clone(), served.fetch_add(1, Ordering::Relaxed) < ill);
        async move {
            match is_ill {
                true => Err(StatusCode::SERVICE_UNAVAILABLE),
                false => held.get(uri.path()).cloned().ok_or(StatusCode::NOT_FOUND),
            }
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async { axum::serve(listener, axum::Router::new().fallback(any(answer))).await });
    let (access_key, secret_key) = (Some("key".into()), Some(Secret::new("secret")));
    let retry = RetryPolicy { attempts_max: 1, ..RetryPolicy::default() };
    let config = S3Config { endpoint: Some(endpoint), access_key, secret_key, retry, ..S3Config::default() };
    Store::connect(&config).await.unwrap()
}

#[tokio::test]
async fn only_the_sound_that_was_ordered_and_is_as_reported_is_used() {
    let (film, key) = (film(), "out/.starling/j-1/sound-00001-2");
    let store = store(&[("other/secret", b"a"), (key, b"b")], 0).await;
    let said = [output("other/secret", b"a"), output(key, b"b")];
    let used = |part, attempt, said: &[Output]| {
        let (film, store, said) = (film.clone(), store.clone(), said.to_vec());
        async move { film.check_sound(&store, part, attempt, &said).await.map_err(|e| e.to_string()) }
    };
    assert_eq!(used(1, 2, &said).await, Ok(said[1].clone()));
    assert!(used(1, 2, &said[..1]).await.is_err());
    assert!(used(0, 2, &said).await.is_err() && used(1, 1, &said).await.is_err());
    assert!(used(1, 2, &[output(key, b"c")]).await.is_err_and(|what| what.contains("another hash")));
    assert!(used(1, 2, &[output(key, b"bb")]).await.is_err_and(|what| what.contains("1 bytes")));
}

#[tokio::test]
async fn a_part_whose_sound_is_not_what_was_reported_is_refused() {
    let key = "out/.starling/j-1/sound-00000-1";
    let store = store(&[(key, b"sound")], 0).await;
    let mut refused = Vec::new();
    for said in [vec![], vec![output(key, b"noise")], vec![output(key, b"sound")]] {
        refused.push(film().check(&store, &prepared(1), 0, 1, &said).await.unwrap_err().to_string());
    }
    assert!(refused[..2].iter().all(|what| what.starts_with(key)), "{refused:?}");
    assert_eq!(refused[2], "out/90p-h264-crf23/v00000-1.mp4 was not reported");
}

#[tokio::test]
async fn sound_that_ends_before_the_films_sound_does_is_refused() {
    let (key, sound) = ("out/audio/a-1.mp4", include_bytes!("../../../storage/fuzz/corpus/fragment/sound.mp4"));
    let (store, said) = (store(&[(key, sound)], 0).await, [output(key, sound)]);
    let mut prepared = prepared(1);
    for (end, is_right) in [(None, true), (Some(1.1), true), (Some(2.1), true), (Some(4.4), false)] {
        prepared.plan.audio_end_seconds = end;
        let checked = film().check(&store, &prepared, 1, 1, &said).await;
        assert_eq!(checked.is_ok(), is_right, "{end:?}: {checked:?}");
    }
}

#[tokio::test]
async fn a_store_that_is_ill_says_nothing_of_a_domain() {
    let (film, key) = (film(), "out/.starling/j-1/sound-00000-1");
    let (ill, said) = (store(&[(key, b"sound")], 2).await, [output(key, b"sound")]);
    let unread = film.check(&ill, &prepared(1), 0, 1, &said).await;
    assert!(matches!(unread, Err(CheckError::Unread(failure)) if failure.retryable && failure.code == "throttled"));
    assert!(film.claim(&ill, &prepared(1)).await.is_err_and(|failure| failure.retryable));
    assert_eq!(film.check_sound(&ill, 0, 1, &said).await.unwrap(), said[0]);
    let empty = store(&[], 0).await;
    assert!(matches!(film.check_sound(&empty, 0, 1, &said).await, Err(CheckError::Wrong(_))));
}

#[test]
fn a_wished_number_of_parts_outdoes_their_wished_length() {
    let xml = XML.replace("</job>", "<options parts='7' chunk-seconds='60'/></job>");
    let wished = FilmJob::new("j-1", Job::parse(&xml).unwrap()).unwrap().plan_options(10.0);
    assert_eq!((wished.parts_min, wished.parts_max), (7, 7));
    assert_eq!(film().plan_options(10.0), PlanOptions::default());
}
