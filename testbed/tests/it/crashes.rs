//! What becomes of a job when a part of the system is killed under it, as by a power cut: nothing worse than a delay.

use cluster_manager::view::{JobDoc, PartDoc};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::stage::{Order, Stage, answer};

/// Kills and restarts a process as soon as the job is as wanted, and sees the job end right.
async fn survives(stage: &mut Stage, victim: &str, moment: &str, reached: impl Fn(&JobDoc) -> bool) -> JobDoc {
    let started = std::time::Instant::now();
    let id = stage.submit(&Order::slow(&format!("{victim} {moment}").replace(' ', "-"))).await;
    let before = stage.job_when(&id, reached).await;
    stage.crash_and_restart(victim).await;
    let job = stage.ends_right(&id).await;
    counts_each_part_once(&job);
    println!(
        "{victim} killed {moment}, {} of {} parts verified: done {:.1} s after submission",
        before.parts.iter().filter(|part| part.state == "verified").count(),
        job.parts.len(),
        started.elapsed().as_secs_f64()
    );
    job
}

fn counts_each_part_once(job: &JobDoc) {
    assert!(job.parts.len() == 5 && job.parts.iter().all(|part| part.state == "verified"), "{:?}", job.parts);
    assert_eq!(job.usage.iter().map(|used| used.parts as usize).sum::<usize>(), job.parts.len(), "{:?}", job.usage);
}

fn is_at_work(part: &PartDoc) -> bool {
    part.state == "running"
}

fn runs(job: &JobDoc) -> bool {
    job.parts.iter().any(is_at_work)
}

fn runs_in(domain: &'static str) -> impl Fn(&JobDoc) -> bool {
    move |job| job.parts.iter().any(|part| is_at_work(part) && part.domain.as_deref() == Some(domain))
}

fn is_nearly_done(job: &JobDoc) -> bool {
    !job.parts.is_empty() && job.parts.iter().filter(|part| part.state != "verified").count() <= 1
}

#[tokio::test]
async fn a_job_ends_right_whenever_its_cluster_manager_is_killed() {
    let mut stage = Stage::of(2, 2, 1).await;
    survives(&mut stage, "a.test cm", "right after it accepted", |_| true).await;
    survives(&mut stage, "a.test cm", "while parts ran", runs).await;
    survives(&mut stage, "a.test cm", "near the end", is_nearly_done).await;
    stage.end().await;
}

#[tokio::test]
async fn a_job_ends_right_when_a_cluster_manager_that_works_for_it_is_killed() {
    let mut stage = Stage::of(2, 2, 1).await;
    survives(&mut stage, "b.test cm", "while it worked for another", runs_in("b.test")).await;
    stage.is_whole(2).await;
    survives(&mut stage, "b.test cm", "right after the award", |job| {
        job.parts.iter().any(|part| part.domain.as_deref() == Some("b.test"))
    })
    .await;
    stage.is_whole(2).await;
    stage.end().await;
}

#[tokio::test]
async fn a_job_ends_right_when_a_host_manager_is_killed_at_home_and_abroad() {
    let mut stage = Stage::of(2, 1, 2).await;
    for (victim, domain) in [("a.test hm1", "a.test"), ("b.test hm1", "b.test")] {
        // It was the only host of its domain, so the domain's parts were its.
        let job = survives(&mut stage, victim, "while parts ran", runs_in(domain)).await;
        assert!(job.parts.iter().any(|part| part.attempt > 1), "its parts were lost with it: {:?}", job.parts);
        stage.is_whole(2).await;
    }
    stage.end().await;
}

#[tokio::test]
async fn a_killed_guest_is_made_anew_and_its_part_done_again() {
    let stage = Stage::of(1, 1, 1).await;
    let id = stage.submit(&Order::slow("guest")).await;
    stage.job_when(&id, |job| job.parts.iter().any(is_at_work)).await;
    let guest = stage.process("guest", "a.test/hm1/state/vms").await;
    kill(Pid::from_raw(guest), Signal::SIGKILL).unwrap();
    counts_each_part_once(&stage.ends_right(&id).await);
    assert_ne!(stage.process("guest", "a.test/hm1/state/vms").await, guest);
    stage.end().await;
}

#[tokio::test]
async fn a_job_ends_right_and_all_meet_again_when_an_xmpp_server_is_killed() {
    let mut stage = Stage::of(2, 2, 1).await;
    // The home of the Federation room, then a domain that is a guest there.
    survives(&mut stage, "a.test prosody", "while parts ran", runs_in("b.test")).await;
    stage.is_whole(2).await;
    survives(&mut stage, "b.test prosody", "while parts ran", runs_in("b.test")).await;
    stage.is_whole(2).await;
    stage.end().await;
}

#[tokio::test]
async fn a_client_that_watches_follows_its_cluster_manager_over_a_crash() {
    let mut stage = Stage::of(1, 1, 2).await;
    let file = stage.file("watched.xml", &Order::slow("watched").xml());
    let watching = stage.starling(&["submit", "--watch", file.to_str().unwrap()]).spawn().unwrap();
    let client = stage.client();
    let running = async || {
        let (_, jobs) = stage.ask(&["jobs"]).await;
        let job = client.job(jobs[0]["id"].as_str()?).await.ok()?;
        (job.state == "running").then_some(())
    };
    stage.wait("a job that runs", running).await;
    stage.crash_and_restart("a.test cm").await;
    let (code, document) = answer(watching).await;
    assert_eq!(code, 0, "{document:#}");
    stage.is_right(&serde_json::from_value(document).unwrap()).await;
    stage.end().await;
}
