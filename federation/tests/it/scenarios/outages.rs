//! Domains that are away for a while, or come back from a crash.

use federation::event::{End, Event, Mark};

use super::{HOUR, ends_well, journaled, mark_of, world};
use crate::world::{Habit, World, d, j};

#[test]
fn a_domain_that_accepts_and_vanishes_loses_its_parts_after_lease_and_grace() {
    let mut world = world();
    world.submit("a", "film", 12);
    assert!(world.run_until(HOUR, |w| w.seen.commits == 3));
    world.cut("a", "c");
    world.cut("b", "c");
    let begin = world.now;
    assert!(world.run_until(HOUR, |w| w.end_of("a", "film").is_some()));
    assert_eq!(world.end_of("a", "film"), Some(End::Done));
    assert_eq!(journaled(&world, "a", |e| matches!(e, Event::Lost { .. })), 1);
    assert!(world.now.since(begin) >= 660_000);
    let lost = |e: &Event| matches!(e, Event::Marked { domain, mark: Mark::Suspect, .. } if *domain == d("c"));
    assert_eq!(journaled(&world, "a", lost), 1);
}

#[test]
fn a_cut_of_ten_minutes_runs_no_live_part_again() {
    let mut world = world();
    world.task_ms = (400_000, 500_000);
    world.submit("a", "film", 6);
    assert!(world.run_until(HOUR, |w| w.seen.commits == 3));
    world.cut("a", "b");
    world.cut("a", "c");
    world.run_for(600_000);
    world.cut.clear();
    ends_well(&mut world);
    let ran: Vec<_> = world.nodes.values().map(|n| n.ran.len()).collect();
    assert_eq!(ran, [2, 2, 2]);
}

#[test]
fn when_all_are_silent_at_once_clocks_stop_for_one_lease() {
    let mut world = world();
    world.task_ms = (2_000_000, 2_000_001);
    world.submit("a", "film", 6);
    assert!(world.run_until(HOUR, |w| w.seen.commits == 3));
    world.cut("a", "b");
    world.cut("a", "c");
    let begin = world.now;
    assert!(world.run_until(HOUR, |w| w.seen.lost > 0));
    assert!(world.now.since(begin) >= 719_000, "{}", world.now.since(begin));
}

#[test]
fn a_domain_that_renews_its_lease_and_never_works_loses_its_parts() {
    let mut world = world();
    world.node("b").habit = Habit::Idle;
    world.submit("a", "film", 12);
    assert!(world.run_until(HOUR, |w| w.seen.commits == 3));
    let begin = world.now;
    assert!(world.run_until(HOUR, |w| w.seen.late > 0));
    assert!(world.now.since(begin) >= 600_000 && mark_of(&world, "a", "b") == Some(Mark::Suspect));
    ends_well(&mut world);
    assert_eq!((world.seen.late, world.seen.lost, world.node("b").ran.len()), (1, 0, 4));
    let view = world.nodes[&d("a")].domain.job(&j("film")).unwrap();
    assert!(view.parts.iter().all(|p| p.failures == 0), "it has cost no try: {:?}", view.parts);
}

#[test]
fn who_is_slow_and_gets_on_is_not_late_nor_is_what_waits_for_it() {
    let mut world = world();
    world.task_ms = (700_000, 800_000);
    for name in ["a", "b", "c"] {
        world.node(name).config.agreements.tasks_per_slot = 1;
        world.crash(&d(name));
        world.restart(&d(name));
        world.set_slots(name, 1);
    }
    world.submit("a", "film", 12);
    ends_well(&mut world);
    assert_eq!(world.seen.late, 0);
    assert_eq!(world.nodes.values().map(|n| n.ran.len()).sum::<usize>(), 12);
}

#[test]
fn home_killed_after_any_event_still_ends_the_job() {
    let mut prefix = 0;
    loop {
        let mut world = world();
        world.submit("a", "film", 5);
        let reached = world.run_until(HOUR, |w| w.nodes[&d("a")].journal.len() >= prefix || w.is_quiet());
        assert!(reached);
        if world.nodes[&d("a")].journal.len() < prefix {
            break;
        }
        // What came later in the same batch was never carried out.
        world.node("a").journal.truncate(prefix);
        world.forget_claims();
        world.crash(&d("a"));
        world.run_for(5_000);
        world.restart(&d("a"));
        if prefix == 0 {
            world.submit("a", "film", 5);
        }
        assert!(world.run_until(HOUR, World::is_quiet), "after {prefix} events: {}", world.unfinished());
        assert_eq!(world.end_of("a", "film"), Some(End::Done), "after {prefix} events");
        prefix += 1;
    }
    assert!(prefix > 30, "{prefix}");
}

#[test]
fn a_contractor_that_restarts_adopts_its_tasks_and_repeats_its_results() {
    let mut world = world();
    world.task_ms = (20_000, 30_000);
    world.submit("a", "film", 6);
    assert!(world.run_until(HOUR, |w| w.seen.commits == 3));
    world.run_for(10_000);
    world.crash(&d("b"));
    world.run_for(60_000);
    world.restart(&d("b"));
    ends_well(&mut world);
    let ran: Vec<_> = world.nodes.values().map(|n| n.ran.len()).collect();
    assert_eq!(ran, [2, 2, 2], "nothing was run twice");
}

#[test]
fn a_restarted_home_asks_before_it_judges() {
    let mut world = world();
    world.task_ms = (100_000, 110_000);
    world.submit("a", "film", 6);
    assert!(world.run_until(HOUR, |w| w.seen.commits == 3));
    world.run_for(10_000);
    world.crash(&d("a"));
    world.run_for(500_000); // nobody was lost, but their leases have run out
    let from = world.sent.len();
    world.restart(&d("a"));
    ends_well(&mut world);
    assert_eq!(world.seen.lost, 0);
    let first = world.sent[from..].iter().find(|s| s.0 == d("a") && s.2 != "answer").map(|s| s.2);
    assert_eq!(first, Some("resync"));
    assert_eq!(world.nodes.values().map(|n| n.ran.len()).sum::<usize>(), 6);
}

/// Cut off until it has lost its lease, with its work done; meanwhile others have begun the same parts.
fn late(habit: Habit) -> World {
    let mut world = world();
    world.node("c").habit = habit;
    world.task_ms = (100_000, 110_000);
    world.submit("a", "film", 6);
    assert!(world.run_until(HOUR, |w| w.seen.commits == 3));
    world.cut("a", "c");
    world.cut("b", "c");
    world.task_ms = (3_000_000, 3_000_001);
    assert!(world.run_until(HOUR, |w| w.seen.lost > 0));
    assert!(world.run_until(HOUR, |w| w.seen.commits > 3));
    world.cut.clear();
    world
}

#[test]
fn a_right_result_that_comes_late_is_adopted_and_its_second_try_stopped() {
    let mut world = late(Habit::Honest);
    let begin = world.now;
    ends_well(&mut world);
    assert!(world.now.since(begin) < 60_000, "{}", world.now.since(begin));
    assert_eq!(world.seen.adopted, 2);
    let view = world.nodes[&d("a")].domain.job(&j("film")).unwrap();
    let by_c: Vec<_> = view.parts.iter().filter(|p| p.domain == Some(d("c"))).collect();
    assert!(by_c.len() == 2 && by_c.iter().all(|p| p.attempt == 1), "{:?}", view.parts);
    assert_eq!(world.nodes.values().map(|n| n.ran.len()).sum::<usize>(), 8, "two were begun again, and stopped");
    // Its pieces of sound are those of the attempt that counts.
    let last = |part| {
        let loaded = world.said.iter().rev().filter_map(|(_, _, o)| match o {
            federation::domain::Output::Loaded { part: p, attempt, .. } if *p == part => Some(*attempt),
            _ => None,
        });
        loaded.into_iter().next()
    };
    assert!(by_c.iter().all(|p| last(p.n) == Some(1)));
}

#[test]
fn a_wrong_result_that_comes_late_changes_nothing_but_the_mark_of_its_domain() {
    let mut world = late(Habit::WrongHash);
    world.run_for(60_000);
    assert_eq!((world.end_of("a", "film"), world.seen.adopted), (None, 0));
    assert_eq!(mark_of(&world, "a", "c"), Some(Mark::Dishonest));
    ends_well(&mut world);
    let view = world.nodes[&d("a")].domain.job(&j("film")).unwrap();
    assert!(view.parts.iter().all(|p| p.failures == 0), "it has cost no try: {:?}", view.parts);
}
