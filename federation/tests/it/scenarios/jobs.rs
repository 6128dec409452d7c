//! How jobs end, and what is added to them before.

use federation::domain::Input;
use federation::event::{End, Event};

use super::{HOUR, ends_well, journaled, world};
use crate::world::{World, calls, d, j};

#[test]
fn a_job_is_forgotten_only_when_nobody_has_to_be_told_any_more() {
    let mut world = world();
    world.submit("a", "film", 6);
    let running = |world: &World| journaled(world, "a", |e| matches!(e, Event::Confirmed { .. })) == 3;
    assert!(world.run_until(HOUR, running));
    let forget = |world: &mut World| world.input(&d("a"), Input::Forget { job: j("film") });
    forget(&mut world);
    world.input(&d("a"), Input::CancelJob { job: j("film"), reason: "enough".into() });
    forget(&mut world);
    assert!(world.nodes[&d("a")].domain.job(&j("film")).is_some(), "others have not heard of the end");
    assert!(world.run_until(HOUR, |world| world.nodes[&d("a")].domain.book().is_over(&j("film"))));
    forget(&mut world);
    for _ in 0..2 {
        let book = world.nodes[&d("a")].domain.book();
        assert!(book.jobs.is_empty() && book.leases.is_empty(), "{book:?}");
        world.crash(&d("a"));
        world.restart(&d("a")); // nothing of it comes back
    }
}

#[test]
fn a_job_never_costs_more_than_its_budget() {
    let mut world = world();
    let (job, kind) = (j("film"), "transcode".to_owned());
    let input = Input::Submit { job, kind, parts: calls(12), deadline: None, budget: Some(7.5) };
    world.input(&d("a"), input);
    assert!(world.run_until(HOUR, World::is_quiet), "{}", world.unfinished());
    assert!(matches!(world.end_of("a", "film"), Some(End::Failed { code, .. }) if code == "budget-exhausted"));
    assert_eq!(world.nodes.values().map(|n| n.ran.len()).sum::<usize>(), 7);
}

#[test]
fn a_deadline_that_has_passed_ends_the_job_and_stops_its_tasks() {
    let mut world = world();
    world.task_ms = (50_000, 60_000);
    let (job, kind, at) = (j("film"), "transcode".to_owned(), world.now.plus(20_000));
    let input = Input::Submit { job, kind, parts: calls(6), deadline: Some(at), budget: None };
    world.input(&d("a"), input);
    assert!(world.run_until(HOUR, World::is_quiet), "{}", world.unfinished());
    assert!(matches!(world.end_of("a", "film"), Some(End::Failed { code, .. }) if code == "deadline-passed"));
    assert!(world.now.since(at) < 1_000);
}

#[test]
fn a_part_that_fails_three_times_ends_the_job_with_the_tail_of_its_log() {
    let mut world = world();
    world.faults.task_failure = 100;
    world.submit("a", "film", 1);
    assert!(world.run_until(HOUR, World::is_quiet), "{}", world.unfinished());
    let Some(End::Failed { code, message }) = world.end_of("a", "film") else { panic!("not failed") };
    assert_eq!(code, "encoder-failed");
    assert!(message.contains("3 tries") && message.contains("the tail"), "{message}");
    let ran: Vec<_> = world.nodes.values().map(|n| n.ran.len()).collect();
    assert_eq!(ran, [1, 1, 1], "each time elsewhere");
}

#[test]
fn a_cancelled_job_stops_everywhere() {
    let mut world = world();
    world.task_ms = (100_000, 110_000);
    world.submit("a", "film", 12);
    assert!(world.run_until(HOUR, |w| w.seen.commits == 3));
    world.input(&d("a"), Input::CancelJob { job: j("film"), reason: "by its owner".into() });
    assert!(world.run_until(5_000, World::is_quiet), "{}", world.unfinished());
    assert!(matches!(world.end_of("a", "film"), Some(End::Cancelled { .. })));
}

#[test]
fn a_part_added_later_is_called_out_too() {
    let mut world = world();
    world.publish = false;
    world.submit("a", "film", 3);
    world.run_for(20_000);
    let audio = federation::message::PartCall { part: 3, bytes: 10, work_ms: 100 };
    world.input(&d("a"), Input::AddParts { job: j("film"), parts: vec![audio] });
    world.publish = true;
    ends_well(&mut world);
    assert_eq!(world.nodes[&d("a")].domain.job(&j("film")).unwrap().parts.len(), 4);
}

#[test]
fn more_parts_than_anybody_holds_are_called_again_when_something_frees() {
    let mut world = world();
    world.submit("a", "film", 200);
    ends_well(&mut world);
    assert_eq!(world.nodes.values().map(|n| n.ran.len()).sum::<usize>(), 200);
    let view = world.nodes[&d("a")].domain.job(&j("film")).unwrap();
    // 200 parts of 2 s on 6 slots need 67 s; calling again must not cost much on top.
    let took = view.timeline.ended.unwrap().since(view.timeline.submitted);
    assert!(took < 85_000, "{took}");
}

#[test]
fn a_domain_without_hosts_gives_back_what_waits() {
    let mut world = world();
    world.submit("a", "film", 30);
    assert!(world.run_until(HOUR, |w| w.seen.commits == 3));
    world.set_slots("b", 0);
    ends_well(&mut world);
    assert_eq!(world.node("b").ran.len(), 6, "what its hosts had begun to load, they end");
    assert!(world.sent.iter().any(|s| s.2 == "revoke"));
}
