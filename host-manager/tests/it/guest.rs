//! The guest against real ffmpeg and a store that it reaches by HTTP.

use host_manager::guest::task::{Order, Phase};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::film::{self, RATE, SECONDS};
use crate::support::store::Store;
use crate::support::{Guest, processes_with, task_dirs, until};

/// A preset so slow, and a film so looped over, that a test meets the encoder at work.
const SLOW: &str = "placebo";

#[tokio::test]
async fn parts_and_their_sound_are_made_and_every_frame_is_there_once() {
    let (dir, store, film) = (tempfile::tempdir().unwrap(), Store::start().await, film::film());
    let guest = Guest::start(dir.path(), "ffmpeg").await;
    let plan = film::plan(&film, 3);
    assert_eq!(plan.parts.len(), 3);
    let urls = film::orders(&store, &film, &plan, "ultrafast");
    for (n, url) in urls.iter().enumerate() {
        guest.put(&format!("j:{n}"), url).await;
        guest.put(&format!("j:{n}"), url).await; // a repeat starts nothing
    }
    let mut times = Vec::new();
    for (n, part) in plan.parts.iter().enumerate() {
        let state = guest.end_of(&format!("j:{n}")).await;
        assert_eq!(state.state, Phase::Done, "{:?}", state.failure);
        assert_eq!((state.bytes, state.percent), (part.bytes(), 100.0));
        assert_eq!(state.outputs.len(), 3, "two renditions and the sound");
        for output in &state.outputs {
            let bytes = store.get(&output.key).unwrap();
            assert_eq!((bytes.len() as u64, film::sha256(&bytes)), (output.size, output.sha256.clone()));
        }
        let usage = state.usage;
        assert!(usage.bytes_in >= part.bytes() && usage.bytes_out > 0 && usage.cpu_ms > 0, "{usage:?}");
        assert!(usage.process_ms > 0, "{usage:?}");
        let video = store.get(&format!("out/90/v{n}.mp4")).unwrap();
        assert_eq!(
            film::probe(&video, "stream=codec_name,height,nb_read_frames"),
            [format!("h264,90,{}", part.clip.frames)]
        );
        times.extend(film::probe(&video, "frame=pts_time"));
    }
    let shown: Vec<f64> = times.iter().map(|t| t.trim_end_matches(',').parse().unwrap()).collect();
    assert_eq!(shown.len(), (SECONDS * RATE) as usize);
    for (n, time) in shown.iter().enumerate() {
        assert!((time - n as f64 / f64::from(RATE)).abs() < 1e-5, "frame {n} at {time}");
    }
    guest.put("sound", &film::sound_order(&store, &plan)).await;
    let state = guest.end_of("sound").await;
    assert_eq!(state.state, Phase::Done, "{:?}", state.failure);
    let summary = state.outputs[0].fragments.clone().unwrap();
    assert_eq!(summary.codecs, "mp4a.40.2");
    let seconds = summary.duration as f64 / f64::from(summary.timescale);
    assert!((seconds - f64::from(SECONDS)).abs() < 0.1, "{seconds} s of sound");
    assert!(task_dirs(dir.path()).is_empty(), "files left: {:?}", task_dirs(dir.path()));
}

#[tokio::test]
async fn a_swarm_that_is_not_there_is_no_failure_because_the_store_is() {
    let (dir, store, film) = (tempfile::tempdir().unwrap(), Store::start().await, film::film());
    let guest = Guest::start(dir.path(), "ffmpeg").await;
    let plan = film::plan(&film, 1);
    let url = film::orders(&store, &film, &plan, "ultrafast").remove(0);
    // A port that was free a moment ago, where nobody listens.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    guest.put("t", Order { url, swarm: Some(format!("http://{gone}/share")) }).await;
    let state = guest.end_of("t").await;
    assert_eq!(state.state, Phase::Done, "{:?}", state.failure);
    assert!(task_dirs(dir.path()).is_empty());
}

#[tokio::test]
async fn sound_is_handed_on_before_the_frames_are_encoded_and_progress_is_seen() {
    let (dir, store, film) = (tempfile::tempdir().unwrap(), Store::start().await, film::film());
    let guest = Guest::start(dir.path(), "ffmpeg").await;
    let url = film::orders(&store, &film, &film::plan(&film, 1), SLOW).remove(0);
    guest.put("t", &url).await;
    let states = guest.states_until("t", |state| state.state == Phase::Running && state.percent > 0.0).await;
    let loaded = states.iter().find(|state| state.state >= Phase::Loaded).unwrap();
    assert_eq!(loaded.outputs.len(), 1);
    assert_eq!(loaded.outputs[0].key, "out/sound/0");
    assert!(loaded.outputs[0].fragments.is_none());
    assert!(states.windows(2).all(|pair| pair[0].state <= pair[1].state && pair[0].bytes <= pair[1].bytes));
    assert!(store.get("out/90/v0.mp4").is_none());
}

#[tokio::test]
async fn a_stopped_task_leaves_no_process_and_no_file() {
    let (dir, store, film) = (tempfile::tempdir().unwrap(), Store::start().await, film::film());
    let guest = Guest::start(dir.path(), "ffmpeg").await;
    let mark = dir.path().to_str().unwrap();
    let url = film::orders(&store, &film, &film::plan(&film, 1), SLOW).remove(0);
    guest.put("t", &url).await;
    guest.states_until("t", |state| state.percent > 0.0).await;
    assert_eq!(processes_with(mark).len(), 1);
    guest.delete("t").await;
    until("the encoder is gone", || processes_with(mark).is_empty()).await;
    assert!(task_dirs(dir.path()).is_empty());
    assert_eq!(guest.get("tasks/t", &guest.vm.token).await.status(), 404);
}

#[tokio::test]
async fn a_killed_encoder_fails_the_task_for_another_try() {
    let (dir, store, film) = (tempfile::tempdir().unwrap(), Store::start().await, film::film());
    let guest = Guest::start(dir.path(), "ffmpeg").await;
    let url = film::orders(&store, &film, &film::plan(&film, 1), SLOW).remove(0);
    guest.put("t", &url).await;
    guest.states_until("t", |state| state.percent > 0.0).await;
    for pid in processes_with(dir.path().to_str().unwrap()) {
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }
    let failure = guest.end_of("t").await.failure.unwrap();
    assert_eq!((failure.code.as_str(), failure.class.as_str(), failure.retryable), ("encoder-failed", "code", true));
    assert!(failure.log.contains("signal: 9"), "{}", failure.log);
    assert!(store.get("out/90/v0.mp4").is_none());
    assert!(task_dirs(dir.path()).is_empty());
}

#[tokio::test]
async fn an_encoder_that_gives_up_tells_why() {
    let (dir, store, film) = (tempfile::tempdir().unwrap(), Store::start().await, film::film());
    let guest = Guest::start(dir.path(), "ffmpeg").await;
    let url = film::orders(&store, &film, &film::plan(&film, 1), "no-such-preset").remove(0);
    guest.put("t", &url).await;
    let failure = guest.end_of("t").await.failure.unwrap();
    assert_eq!(failure.code, "encoder-failed");
    assert!(failure.log.contains("no-such-preset"), "{}", failure.log);
}

#[tokio::test]
async fn a_replaced_source_fails_the_task_for_good() {
    let (dir, store, film) = (tempfile::tempdir().unwrap(), Store::start().await, film::film());
    let guest = Guest::start(dir.path(), "ffmpeg").await;
    let url = film::orders(&store, &film, &film::plan(&film, 1), "ultrafast").remove(0);
    let mut other = film.clone();
    *other.last_mut().unwrap() ^= 1;
    store.put("film.mp4", other);
    guest.put("t", &url).await;
    let failure = guest.end_of("t").await.failure.unwrap();
    assert_eq!((failure.code.as_str(), failure.class.as_str(), failure.retryable), ("source-changed", "input", false));
}

#[tokio::test]
async fn wrong_frames_are_never_published() {
    let (dir, store, film) = (tempfile::tempdir().unwrap(), Store::start().await, film::film());
    let guest = Guest::start(dir.path(), "ffmpeg").await;
    let plan = film::plan(&film, 1);
    film::orders(&store, &film, &plan, "ultrafast");
    let url = film::order(&store, &film, &plan, 0, "ultrafast", |work| work.clip.frames += 1);
    guest.put("t", &url).await;
    let failure = guest.end_of("t").await.failure.unwrap();
    assert_eq!((failure.code.as_str(), failure.class.as_str(), failure.retryable), ("wrong-frames", "data", false));
    assert!(!store.keys().iter().any(|key| key.ends_with(".mp4") && key.starts_with("out/")), "{:?}", store.keys());
}

#[tokio::test]
async fn sound_that_is_not_what_was_announced_is_refused() {
    let (dir, store, film) = (tempfile::tempdir().unwrap(), Store::start().await, film::film());
    let guest = Guest::start(dir.path(), "ffmpeg").await;
    let plan = film::plan(&film, 2);
    (0..2).for_each(|n| store.put(&format!("out/sound/{n}"), vec![n; 100]));
    let url = film::sound_order(&store, &plan);
    store.put("out/sound/1", vec![7; 100]);
    guest.put("t", &url).await;
    assert_eq!(guest.end_of("t").await.failure.unwrap().code, "sound-mismatch");
}

#[tokio::test]
async fn bad_orders_and_missing_things_have_their_codes() {
    let (dir, store, film) = (tempfile::tempdir().unwrap(), Store::start().await, film::film());
    let guest = Guest::start(dir.path(), "/no/such/ffmpeg").await;
    store.put("nonsense", "{\"job\": 1}");
    let plan = film::plan(&film, 1);
    let lost = film::order(&store, &film, &plan, 0, "ultrafast", |work| work.source.url = store.url("gone"));
    for (task, url, code) in [
        ("a", store.url("nonsense"), "bad-order"),
        ("b", store.url("none"), "order-unreachable"),
        ("c", lost, "source-missing"),
    ] {
        guest.put(task, &url).await;
        assert_eq!(guest.end_of(task).await.failure.unwrap().code, code);
    }
    let url = film::orders(&store, &film, &plan, "ultrafast").remove(0);
    guest.put("d", &url).await;
    assert_eq!(guest.end_of("d").await.failure.unwrap().code, "encoder-missing");
    assert!(task_dirs(dir.path()).is_empty());
}

#[tokio::test]
async fn an_order_that_is_written_after_the_word_to_start_is_followed() {
    let (dir, store, film) = (tempfile::tempdir().unwrap(), Store::start().await, film::film());
    let guest = Guest::start(dir.path(), "ffmpeg").await;
    guest.put("t", &store.url("late")).await;
    store.missed().await;
    let url = film::orders(&store, &film, &film::plan(&film, 1), "ultrafast").remove(0);
    let order = store.get(url.strip_prefix(&store.url("")).unwrap()).unwrap();
    store.put("late", order);
    assert_eq!(guest.end_of("t").await.state, Phase::Done);
}

#[tokio::test]
async fn nothing_is_told_without_the_token() {
    let dir = tempfile::tempdir().unwrap();
    let guest = Guest::start(dir.path(), "ffmpeg").await;
    assert_eq!(guest.get("tasks", "wrong").await.status(), 401);
    assert_eq!(guest.get("tasks", &guest.vm.token).await.status(), 200);
    assert_eq!(guest.get("healthz", "").await.status(), 200);
}
