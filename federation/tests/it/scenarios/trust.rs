//! What is held against a domain, and what is not believed of it.

use federation::domain::Input;
use federation::event::{End, Event, Mark};
use federation::message::{Body, PartDone, Revoke, Usage};

use super::{HOUR, answer_to, call, ends_well, envelope, journaled, mark_of, world};
use crate::world::{Habit, World, bad_source, d, j, output, verb};

#[test]
fn a_domain_that_does_not_answer_three_calls_is_suspect() {
    let mut world = world();
    world.filter = Box::new(|_, to, body, answer| answer || verb(body) != "cfp" || *to != d("c"));
    for i in 0..3 {
        world.submit("a", &format!("film{i}"), 1);
        world.run_for(10_000);
    }
    assert_eq!(mark_of(&world, "a", "c"), Some(Mark::Suspect));
    world.run_for(120_000);
    assert_eq!(mark_of(&world, "a", "c"), None, "a mark cools down");
}

#[test]
fn a_domain_that_answers_three_calls_with_errors_is_suspect() {
    let mut world = world();
    world.node("c").habit = Habit::Unavailable;
    for i in 0..3 {
        assert_eq!(mark_of(&world, "a", "c"), None);
        world.submit("a", &format!("film{i}"), 1);
        world.run_for(10_000);
    }
    assert_eq!(mark_of(&world, "a", "c"), Some(Mark::Suspect));
}

#[test]
fn a_domain_that_bids_and_declines_three_awards_is_suspect() {
    let mut world = World::new(1, 2);
    world.node("b").habit = Habit::Fickle;
    world.set_slots("a", 0);
    world.submit("a", "film", 2);
    world.run_for(20_000);
    assert_eq!(journaled(&world, "a", |e| matches!(e, Event::Awarded { .. })), 3);
    assert_eq!(mark_of(&world, "a", "b"), Some(Mark::Suspect));
    world.set_slots("a", 2);
    ends_well(&mut world);
}

#[test]
fn a_wrong_hash_marks_the_domain_and_the_part_is_done_elsewhere() {
    let mut world = world();
    world.node("b").habit = Habit::WrongHash;
    world.submit("a", "film", 12);
    ends_well(&mut world);
    let dishonest = |e: &Event| matches!(e, Event::Marked { domain, mark: Mark::Dishonest, .. } if *domain == d("b"));
    assert_eq!(journaled(&world, "a", dishonest), 1);
    let view = world.nodes[&d("a")].domain.job(&j("film")).unwrap();
    assert!(view.usage.iter().all(|u| u.domain != d("b")));
}

#[test]
fn a_domain_that_fails_everything_is_a_black_hole_and_gets_nothing_more() {
    let mut world = world();
    world.node("b").habit = Habit::BlackHole;
    world.submit("a", "film", 12);
    ends_well(&mut world);
    let hole = |e: &Event| matches!(e, Event::Marked { domain, mark: Mark::BlackHole, .. } if *domain == d("b"));
    assert_eq!(journaled(&world, "a", hole), 1);
    assert_eq!(world.node("b").ran.len(), 4);
}

#[test]
fn speaking_for_anothers_lease_is_stale_and_marks_the_speaker() {
    let mut world = world();
    world.submit("a", "film", 12);
    assert!(world.run_until(HOUR, |w| w.seen.commits == 3));
    let taken = world.nodes[&d("b")].domain.taken().next().unwrap();
    let secret = world.nodes[&d("b")].domain.book().taken[&taken.lease].terms.secret.0.clone();
    let (part, attempt) = (taken.parts[0].n, taken.parts[0].attempt);
    let outputs = vec![output(&(taken.lease.clone(), part, attempt), "right")];
    let body = PartDone { lease: taken.lease, secret, part, attempt, by: None, outputs, usage: Usage::default() };
    let before = world.nodes[&d("a")].domain.book().clone();
    world.input(&d("a"), Input::Request(d("c"), envelope("c", 1, "forged", Body::PartDone(body))));
    assert_eq!(answer_to(&world, "c"), Body::Stale(federation::message::Stale { reason: "not your lease".into() }));
    assert_eq!(mark_of(&world, "a", "c"), Some(Mark::Dishonest));
    assert_eq!(world.nodes[&d("a")].domain.book().jobs, before.jobs, "and nothing has changed");
    ends_well(&mut world);
}

#[test]
fn a_wrong_secret_is_stale() {
    let mut world = world();
    world.submit("a", "film", 3);
    assert!(world.run_until(HOUR, |w| w.seen.commits == 3));
    let taken = world.nodes[&d("b")].domain.taken().next().unwrap();
    let (part, attempt) = (taken.parts[0].n, taken.parts[0].attempt);
    let (lease, secret, outputs) = (taken.lease, "guessed".into(), Vec::new());
    let body = PartDone { lease, secret, part, attempt, by: None, outputs, usage: Usage::default() };
    world.input(&d("a"), Input::Request(d("b"), envelope("b", 1, "guess", Body::PartDone(body))));
    assert!(matches!(answer_to(&world, "b"), Body::Stale(_)));
    ends_well(&mut world);
}

#[test]
fn a_flood_is_not_worked_on_and_marks_its_sender() {
    let mut world = world();
    let at = world.now;
    for i in 0..3_000 {
        world.input(&d("a"), Input::Request(d("b"), envelope("b", 1, &format!("f{i}"), call(at, 0))));
    }
    assert_eq!(mark_of(&world, "a", "b"), Some(Mark::Flooding));
    assert_eq!(journaled(&world, "a", |e| matches!(e, Event::Marked { .. })), 1);
    world.submit("a", "film", 12);
    ends_well(&mut world);
    assert!(world.node("b").ran.is_empty());
}

#[test]
fn a_flood_does_not_shorten_the_mark_of_a_liar_nor_a_lie_come_off_cheaper_in_a_flood() {
    for lie_first in [true, false] {
        let mut world = world();
        let at = world.now;
        let flood = |world: &mut World| {
            for i in 0..3_000 {
                world.input(&d("a"), Input::Request(d("b"), envelope("b", 1, &format!("f{i}"), call(at, 0))));
            }
        };
        world.submit("a", "film", 12);
        assert!(world.run_until(HOUR, |w| w.seen.commits == 3));
        let lease = world.nodes[&d("b")].domain.taken().next().unwrap().lease;
        let lie = |world: &mut World| {
            let (lease, secret, reason) = (lease.clone(), "guessed".into(), "none".into());
            let body = Body::Revoke(Revoke { lease, secret, reason, parts: vec![] });
            world.input(&d("a"), Input::Request(d("b"), envelope("b", 1, "lie", body)));
        };
        if lie_first {
            lie(&mut world);
            world.run_for(1);
        }
        flood(&mut world);
        if !lie_first {
            world.run_for(100); // enough for a few words more
            lie(&mut world);
        }
        world.run_for(590_000);
        assert_eq!(mark_of(&world, "a", "b"), Some(Mark::Flooding));
        world.run_for(20_000);
        assert_eq!(
            (mark_of(&world, "a", "b"), journaled(&world, "a", |e| matches!(e, Event::Marked { .. }))),
            (None, 2)
        );
    }
}

/// Says of the first part that `who` holds that its source is bad.
fn accuse(world: &mut World, who: &str) {
    let taken = world.nodes[&d(who)].domain.taken().next().unwrap();
    let (lease, part, attempt) = (taken.lease, taken.parts[0].n, taken.parts[0].attempt);
    world.input(&d(who), Input::Task { lease, part, attempt, status: bad_source() });
}

#[test]
fn what_two_domains_find_wrong_with_the_source_ends_the_job_and_marks_nobody() {
    let mut world = world();
    for name in ["b", "c"] {
        world.node(name).habit = Habit::Accuser;
    }
    world.set_slots("a", 0);
    world.submit("a", "film", 6);
    assert!(world.run_until(HOUR, World::is_quiet), "{}", world.unfinished());
    assert!(matches!(world.end_of("a", "film"), Some(End::Failed { code, .. }) if code == "source-changed"));
    assert_eq!((mark_of(&world, "a", "b"), mark_of(&world, "a", "c")), (None, None));
}

#[test]
fn what_the_own_cluster_finds_wrong_with_the_source_ends_the_job_at_once() {
    let mut world = world();
    world.task_ms = (100_000, 110_000);
    world.submit("a", "film", 6);
    assert!(world.run_until(HOUR, |w| w.seen.commits == 3));
    accuse(&mut world, "a");
    assert!(matches!(world.end_of("a", "film"), Some(End::Failed { code, .. }) if code == "source-changed"));
}

#[test]
fn who_alone_blames_the_source_is_not_believed_and_in_the_end_marked() {
    let mut world = world();
    world.node("b").habit = Habit::Accuser;
    world.submit("a", "film", 12);
    ends_well(&mut world);
    let hole = |e: &Event| matches!(e, Event::Marked { domain, mark: Mark::BlackHole, .. } if *domain == d("b"));
    assert_eq!(journaled(&world, "a", hole), 1);
    let view = world.nodes[&d("a")].domain.job(&j("film")).unwrap();
    assert!(view.usage.iter().all(|u| u.domain != d("b")));
}

#[test]
fn where_nobody_else_can_be_asked_three_accusations_end_the_job() {
    let mut world = World::new(1, 2);
    world.node("b").habit = Habit::Accuser;
    world.set_slots("a", 0);
    world.submit("a", "film", 1);
    assert!(world.run_until(HOUR, World::is_quiet), "{}", world.unfinished());
    let Some(End::Failed { code, message }) = world.end_of("a", "film") else { panic!("not failed") };
    assert!(code == "source-changed" && message.contains("3 tries"), "{code}: {message}");
}

/// Bids for nothing and gives back all that it wins.
fn fickle(world: &mut World, name: &str) {
    let agreements = &mut world.node(name).config.agreements;
    (agreements.price, agreements.tasks_per_slot) = (0.0, 0);
    world.crash(&d(name));
    world.restart(&d(name));
}

fn give_back(world: &mut World, name: &str) {
    assert!(world.run_until(HOUR, |w| w.nodes[&d(name)].domain.taken().next().is_some()), "it has won");
    world.set_slots(name, 0);
    assert!(world.run_until(HOUR, |w| w.nodes[&d(name)].domain.taken().next().is_none()));
    world.set_slots(name, 12);
}

#[test]
fn what_a_domain_gives_back_goes_to_others_and_once_is_held_against_nobody() {
    let mut world = world();
    fickle(&mut world, "b");
    world.set_slots("b", 12);
    world.submit("a", "film", 12);
    give_back(&mut world, "b");
    ends_well(&mut world);
    let won = |e: &Event| matches!(e, Event::Awarded { domain, .. } if *domain == d("b"));
    assert_eq!((journaled(&world, "a", won), mark_of(&world, "a", "b")), (1, None));
    assert!(journaled(&world, "a", |e| matches!(e, Event::Returned { .. })) > 3, "in many words");
}

#[test]
fn who_wins_and_gives_back_three_times_in_a_row_is_suspect() {
    let mut world = World::new(1, 2);
    fickle(&mut world, "b");
    world.set_slots("a", 0);
    world.set_slots("b", 12);
    world.submit("a", "film", 2);
    for _ in 0..3 {
        assert_eq!(mark_of(&world, "a", "b"), None);
        give_back(&mut world, "b");
    }
    assert_eq!(mark_of(&world, "a", "b"), Some(Mark::Suspect));
    world.run_for(50_000);
    assert!(world.nodes[&d("b")].domain.taken().next().is_none(), "it gets nothing for a while");
    world.set_slots("a", 2);
    ends_well(&mut world);
}
