//! What happens when the world is not as it should be: sources, targets, stores, encoders and partners that fail or lie.
//!
//! Each test has one real world and makes several claims in it, one after the other; a world at a time, for they are heavy.

mod hostile;

use std::path::Path;

use cluster_manager::view::JobDoc;
use federation::agreement::{Agreements, Policy};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testbed::s3::Faults;
use testbed::world::StoreOptions;

use super::stage::{Order, Stage, film_bytes, holds};

/// An encoder that fails as long as there is a file `broken` beside it.
fn fragile_encoder(dir: &Path) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let path = dir.join("encoder");
    let script = format!(
        "#!/bin/sh\nif [ -e {} ]; then echo 'the encoder is out of ink' >&2; exit 1; fi\nexec ffmpeg \"$@\"\n",
        dir.join("broken").display()
    );
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[tokio::test]
async fn bad_sources_taken_targets_and_failing_encoders_end_in_their_own_words() {
    let tools = tempfile::tempdir().unwrap();
    let stage = Stage::start(|options| {
        options.domains = ["a.test", "b.test"].map(str::to_owned).to_vec();
        options.hosts = 1;
        options.store = StoreOptions { forbid: vec!["films/forbidden/".into()], ..StoreOptions::default() };
        // Nothing is loaded ahead, so that a source can be replaced before all of it is loaded.
        let patient = Agreements { tasks_per_slot: 1, ..Agreements::default() };
        options.agreements.insert("a.test".into(), patient.clone());
        options.agreements.insert("b.test".into(), Agreements { price: 1.5, ..patient });
        options.ffmpeg = Some(fragile_encoder(tools.path()));
    })
    .await;
    the_account_says_what_each_domain_did_and_cost(&stage).await;
    a_target_with_another_jobs_result_is_refused_and_left_alone(&stage).await;
    a_bad_source_fails_the_job_with_its_reason(&stage).await;
    a_source_replaced_at_work_fails_the_job(&stage).await;
    a_killed_encoder_costs_a_try_and_nothing_else(&stage).await;
    an_encoder_that_always_fails_ends_the_job_with_its_last_words(&stage, tools.path()).await;
    stage.end().await;
}

async fn the_account_says_what_each_domain_did_and_cost(stage: &Stage) {
    let job = stage.done(&Order::new("film.mp4", "first")).await;
    stage.is_right(&job).await;
    assert!(!job.usage.is_empty());
    for used in &job.usage {
        let price = if used.domain == "b.test" { 1.5 } else { 1.0 };
        assert_eq!(used.cost, price * f64::from(used.parts), "{used:?}");
        assert!(used.bytes_in > 0 && used.bytes_out > 0 && used.seconds > 0.0, "{used:?}");
    }
    assert_eq!(job.usage.iter().map(|used| used.parts as usize).sum::<usize>(), job.parts.len());
}

async fn a_target_with_another_jobs_result_is_refused_and_left_alone(stage: &Stage) {
    let before = stage.list("first/").await;
    assert!(before.len() > 4, "{before:?}");
    let job = stage.ended(&Order::new("film.mp4", "first")).await;
    refused(&job, "target-occupied");
    assert_eq!(stage.list("first/").await, before);
}

async fn a_bad_source_fails_the_job_with_its_reason(stage: &Stage) {
    stage.put("empty.mp4", Vec::new()).await;
    stage.put("text.mp4", b"To whom it may concern: this is no film.\n".repeat(100)).await;
    let film = film_bytes();
    stage.put("cut.mp4", film[..film.len() / 2].to_vec()).await;
    for (source, code) in [
        ("missing.mp4", "source-missing"),
        ("forbidden/film.mp4", "source-forbidden"),
        ("empty.mp4", "zero-bytes"),
        ("text.mp4", "not-a-film"),
        ("cut.mp4", "truncated-film"),
    ] {
        let job = stage.ended(&Order::new(source, "bad")).await;
        refused(&job, code);
        assert!(job.error.unwrap().message.contains(source), "it says which source");
        assert_eq!(stage.list("bad/").await, [], "nothing is left of {code}");
    }
}

async fn a_source_replaced_at_work_fails_the_job(stage: &Stage) {
    stage.put("changing.mp4", film_bytes()).await;
    let id = stage.submit(&Order { preset: "veryslow", ..Order::new("changing.mp4", "changing") }).await;
    stage.job_when(&id, |job| job.parts.iter().any(|part| part.bytes > 0)).await;
    let mut other = film_bytes();
    *other.last_mut().unwrap() ^= 1;
    stage.put("changing.mp4", other).await;
    refused(&stage.end_of(&id).await, "source-changed");
}

async fn a_killed_encoder_costs_a_try_and_nothing_else(stage: &Stage) {
    let id = stage.submit(&Order::slow("killed")).await;
    let pid = stage.process("ffmpeg", "").await;
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let job = stage.end_of(&id).await;
    stage.is_right(&job).await;
    assert_eq!(job.parts.iter().filter(|part| part.attempt == 2).count(), 1, "{:?}", job.parts);
}

async fn an_encoder_that_always_fails_ends_the_job_with_its_last_words(stage: &Stage, tools: &Path) {
    std::fs::write(tools.join("broken"), "").unwrap();
    let job = stage.ended(&Order::new("film.mp4", "broken")).await;
    refused(&job, "encoder-failed");
    let message = job.error.unwrap().message;
    assert!(message.contains("after 3 tries") && message.contains("the encoder is out of ink"), "{message}");
    std::fs::remove_file(tools.join("broken")).unwrap();
    let empty = async || stage.list("broken/").await.is_empty().then_some(());
    stage.wait("the target to be as it was before", empty).await;
}

/// The job failed, and its error document is whole.
fn refused(job: &JobDoc, code: &str) {
    let error = job.error.as_ref().unwrap_or_else(|| panic!("{job:?}"));
    assert_eq!((job.state.as_str(), error.code.as_str()), ("failed", code), "{error:?}");
    assert!(!error.message.is_empty() && error.hint.as_ref().is_some_and(|hint| !hint.is_empty()), "{error:?}");
}

#[tokio::test]
async fn a_store_that_refuses_a_third_of_all_requests_changes_nothing_in_the_result() {
    let stage = Stage::start(|options| {
        options.domains = ["a.test", "b.test"].map(str::to_owned).to_vec();
        options.hosts = 1;
        let faults = Faults { refuse_share: 0.33, fault_seed: 7, ..Faults::default() };
        options.store = StoreOptions { faults, ..StoreOptions::default() };
    })
    .await;
    let refusals = stage.count_refusals(60).await;
    assert!((6..40).contains(&refusals), "{refusals} of 60 requests were refused");
    stage.done(&Order::new("film.mp4", "busy")).await;
    stage.is_right_when_copied("busy").await;
    stage.end().await;
}

#[tokio::test]
async fn a_job_cancelled_while_a_slow_store_is_read_or_written_leaves_its_target_free() {
    let stage = Stage::start(|options| {
        options.domains.truncate(1);
        options.hosts = 1;
        let faults = Faults { latency_ms: 700, put_latency_ms: 1500, ..Faults::default() };
        options.store = StoreOptions { faults, ..StoreOptions::default() };
    })
    .await;
    let objects = stage.state().join("s3/objects");
    let cancel = async |id: &str| {
        let (code, cancelled) = stage.ask(&["cancel", id]).await;
        assert_eq!((code, &cancelled["state"]), (0, &"cancelled".into()), "{cancelled:#}");
    };
    cancel(&stage.submit(&Order::new("film.mp4", "early")).await).await;

    let id = stage.submit(&Order::new("film.mp4", "later")).await;
    stage.job_when(&id, |job| job.parts.iter().any(|part| part.state == "committed")).await;
    let orders = || holds(&objects, "later/.starling/");
    assert!(orders().is_empty(), "cancelled too late to see it");
    cancel(&id).await;
    stage.wait("orders that come after the end", async || (!orders().is_empty()).then_some(())).await;
    stage.wait("the target to be free", async || stage.list("later/").await.is_empty().then_some(())).await;
    assert_eq!(stage.list("early/").await, [], "nothing was claimed");
    stage.end().await;
}

#[tokio::test]
async fn a_domain_that_wins_too_much_sells_to_one_that_its_home_does_not_ask() {
    let mut stage = Stage::start(|options| {
        options.hosts = 1;
        let closed = Policy { may_receive: false, ..Policy::default() };
        let partner = [("c.test".into(), closed)].into_iter().collect();
        options.agreements.insert("a.test".into(), Agreements { partner, ..Agreements::default() });
        options.agreements.insert("b.test".into(), Agreements { waves_soon: 1, ..Agreements::default() });
    })
    .await;
    stage.world.crash("a.test hm1").await.unwrap();
    let gone = async || stage.domains().await.iter().any(|d| d.name == "a.test" && d.slots == 0).then_some(());
    stage.wait("a.test without hosts", gone).await;
    let job = stage.done(&Order::new("film.mp4", "sold")).await;
    stage.is_right(&job).await;
    assert!(job.offers.iter().all(|offer| offer.domain != "c.test"), "{:?}", job.offers);
    let by = |name: &str| job.parts.iter().filter(|part| part.by.as_deref() == Some(name)).count();
    assert!(job.parts.iter().all(|part| part.domain.as_deref() == Some("b.test")), "{:?}", job.parts);
    assert!(by("b.test") > 0 && by("c.test") > 0 && by("a.test") == 0, "{:?}", job.parts);
    let used = job.usage.iter().find(|used| used.domain == "c.test").unwrap();
    assert!(used.parts as usize == by("c.test") && used.bytes_in > 0 && used.seconds > 0.0, "{used:?}");
    stage.end().await;
}
