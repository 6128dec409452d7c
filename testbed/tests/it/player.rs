//! The player page in a real Chromium: every frame shown, nothing halts, and a film grows while it is watched.

use std::time::Duration;

use testbed::{
    browser::{Browser, Playback, play},
    film::{Film, Rate},
};

use super::shelf::{Served, Shelf, serve};

const THIRTY: Rate = Rate { num: 30, den: 1 };
const PATIENCE: Duration = Duration::from_secs(60);

async fn pages() -> Served {
    serve(cluster_manager::web::pages()).await
}

fn player_url(pages: &Served, shelf: &Served) -> String {
    format!("{}player?smil={}movie.smil", pages.base, shelf.base)
}

fn assert_whole(seen: &Playback, shelf: &Shelf) {
    let seconds = shelf.expected.rate.seconds(shelf.expected.frames);
    assert_eq!(seen.frames, shelf.expected.frames, "{seen:?}");
    let [(start, end)] = seen.buffered[..] else { panic!("more than one run of data: {seen:?}") };
    // Sound ends with a whole AAC frame.
    assert!(start == 0.0 && (end - seconds).abs() < 0.05 && (seen.duration - seconds).abs() < 0.05, "{seen:?}");
    assert!(seen.ended && seen.sound_bytes > 0, "{seen:?}");
}

#[tokio::test]
async fn chromium_shows_every_frame_of_the_smil_without_a_halt() {
    let shelf = Shelf::fill(12, THIRTY, &[180]);
    let (store, pages) = (shelf.serve().await, pages().await);
    shelf.publish(&shelf.film, &store.base);
    let seen = play(&player_url(&pages, &store)).await.unwrap();
    assert_whole(&seen, &shelf);
    assert_eq!((seen.stalls, seen.state.as_str()), (0, "ended"), "{seen:?}");
}

/// Parts end within a frame's time here, and key frames are leaned on from before them.
#[tokio::test]
async fn a_film_of_29_97_frames_a_second_with_open_groups_is_shown_whole() {
    let rate = Rate { num: 30_000, den: 1001 };
    let shelf = Shelf::fill_with(&Film { seconds: 12, rate, height: 360, open_gop: true, ..Film::default() }, &[180]);
    let (store, pages) = (shelf.serve().await, pages().await);
    shelf.publish(&shelf.film, &store.base);
    assert_whole(&play(&player_url(&pages, &store)).await.unwrap(), &shelf);
}

#[tokio::test]
async fn playing_starts_with_the_first_parts_and_goes_on_as_the_rest_and_the_sound_land() {
    let shelf = Shelf::fill(12, THIRTY, &[180]);
    let (store, pages) = (shelf.serve().await, pages().await);
    shelf.publish(&shelf.after(2, true), &store.base);
    let browser = Browser::start().await.unwrap();
    browser.open(&player_url(&pages, &store)).await.unwrap();
    let early = browser.watch(|seen| seen.state == "waiting", PATIENCE).await.unwrap();
    assert!(early.time > 5.0 && early.frames > 0 && !early.ended, "{early:?}");
    shelf.publish(&shelf.film, &store.base);
    let seen = browser.watch(|seen| seen.ended, PATIENCE).await.unwrap();
    assert_whole(&seen, &shelf);
    assert_eq!(seen.stalls, 1, "it halted once, for the parts that were not there: {seen:?}");
}

#[tokio::test]
async fn a_silent_beginning_gets_its_sound_when_that_lands() {
    let shelf = Shelf::fill(12, THIRTY, &[180]);
    let (store, pages) = (shelf.serve().await, pages().await);
    shelf.publish(&shelf.after(2, false), &store.base);
    let browser = Browser::start().await.unwrap();
    browser.open(&player_url(&pages, &store)).await.unwrap();
    let silent = browser.watch(|seen| seen.time > 1.0, PATIENCE).await.unwrap();
    assert_eq!(silent.sound_bytes, 0);
    shelf.publish(&shelf.film, &store.base);
    let seen = browser.watch(|seen| seen.ended, PATIENCE).await.unwrap();
    assert!(seen.sound_bytes > 0, "{seen:?}");
}

#[tokio::test]
async fn seeking_far_ahead_and_back_still_ends_in_one_run_of_data() {
    let shelf = Shelf::fill(12, THIRTY, &[180]);
    let (store, pages) = (shelf.serve().await, pages().await);
    shelf.publish(&shelf.film, &store.base);
    let browser = Browser::start().await.unwrap();
    browser.open(&player_url(&pages, &store)).await.unwrap();
    browser.watch(|seen| seen.time > 0.2, PATIENCE).await.unwrap();
    browser.run("document.querySelector('video').currentTime = 10.5").await.unwrap();
    browser.watch(|seen| seen.time > 10.6, PATIENCE).await.unwrap();
    browser.run("document.querySelector('video').currentTime = 8").await.unwrap();
    let seen = browser.watch(|seen| seen.ended, PATIENCE).await.unwrap();
    assert_eq!(seen.buffered.len(), 1, "{seen:?}");
}

#[tokio::test]
async fn a_smil_that_is_not_there_is_told_in_words() {
    let pages = pages().await;
    let browser = Browser::start().await.unwrap();
    browser.open(&format!("{0}player?smil={0}nothing.smil", pages.base)).await.unwrap();
    let error = browser.watch(|_| false, PATIENCE).await.unwrap_err().to_string();
    assert!(error.contains("no such object (404)"), "{error}");
}
