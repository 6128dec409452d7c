//! One thing goes wrong at a time.

use federation::domain::Input;
use federation::event::{End, Event, Mark};
use federation::id::{MessageId, Millis};
use federation::message::{Body, Cfp, Envelope, PartDone, Usage};

use crate::world::{Habit, World, bad_source, calls, d, j, output, verb};

const HOUR: u64 = 3_600_000;

fn world() -> World {
    World::new(1, 3)
}

fn ends_well(world: &mut World) {
    assert!(world.run_until(HOUR, World::is_quiet), "{}", world.unfinished());
    assert_eq!(world.end_of("a", "film"), Some(End::Done));
}

fn journaled(world: &World, who: &str, which: impl Fn(&Event) -> bool) -> usize {
    world.nodes[&d(who)].journal.iter().filter(|e| which(e)).count()
}

fn mark_of(world: &World, who: &str, of: &str) -> Option<Mark> {
    world.nodes[&d(who)].domain.domains().find(|v| v.domain == d(of))?.mark
}

/// Loses the first `n` messages of that verb.
fn lose_first(world: &mut World, what: &'static str, n: u32) {
    let mut left = n;
    world.filter = Box::new(move |_, _, body, answer| {
        let hit = !answer && verb(body) == what && left > 0;
        left -= u32::from(hit);
        !hit
    });
}

#[test]
fn three_domains_share_one_job_and_it_ends() {
    let mut world = world();
    world.submit("a", "film", 12);
    ends_well(&mut world);
    let shares: Vec<_> = world.nodes.values().map(|n| n.ran.len()).collect();
    assert_eq!(shares, [4, 4, 4]);
    let view = world.nodes[&d("a")].domain.job(&j("film")).unwrap();
    assert_eq!((view.state, view.spend, view.usage.len()), ("done", 12.0, 3));
    let t = &view.timeline;
    assert!(t.first_call <= t.last_bid && t.last_bid <= t.first_commit && t.last_commit <= t.first_fetch);
    assert!(t.first_fetch <= t.first_upload && t.last_upload <= t.last_verified && t.last_verified <= t.ended);
}

#[test]
fn a_domain_that_never_answers_a_bid_delays_one_window_and_no_more() {
    let mut world = world();
    world.filter = Box::new(|_, to, body, answer| answer || verb(body) != "cfp" || *to != d("c"));
    world.submit("a", "film", 12);
    ends_well(&mut world);
    let view = world.nodes[&d("a")].domain.job(&j("film")).unwrap();
    let wait = view.timeline.first_commit.unwrap().since(view.timeline.submitted);
    assert!((1_400..2_000).contains(&wait), "{wait}");
    assert!(world.nodes[&d("c")].ran.is_empty());
}

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
fn the_timeline_of_the_negotiation_is_that_of_the_first_round() {
    let mut world = world();
    world.publish = false;
    world.submit("a", "film", 6);
    world.run_for(20_000);
    let times = |world: &World| world.nodes[&d("a")].domain.job(&j("film")).unwrap().timeline;
    let first = times(&world);
    assert!(first.first_commit <= first.last_commit && first.last_commit.is_some());
    world.input(&d("a"), Input::AddParts { job: j("film"), parts: calls(7).split_off(6) });
    world.run_for(20_000);
    let later = times(&world);
    assert!(later.last_verified > first.last_verified, "the added part was done");
    assert_eq!((later.last_bid, later.last_commit), (first.last_bid, first.last_commit));
}

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
fn fresh_objects_in_the_store_keep_a_silent_lease_alive() {
    let mut world = world();
    world.task_ms = (2_000_000, 2_000_001);
    world.submit("a", "film", 6);
    assert!(world.run_until(HOUR, |w| w.seen.commits == 3));
    world.cut("a", "b");
    let lease = world.nodes[&d("b")].domain.taken().next().unwrap().lease;
    for _ in 0..4 {
        world.run_for(300_000);
        world.input(&d("a"), Input::Evidence { lease: lease.clone() });
    }
    assert_eq!(world.seen.lost, 0);
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
        world.input(&d("a"), Input::Request(d("b"), envelope("b", 1, &format!("f{i}"), call(at, vec![]))));
    }
    assert_eq!(mark_of(&world, "a", "b"), Some(Mark::Flooding));
    assert_eq!(journaled(&world, "a", |e| matches!(e, Event::Marked { .. })), 1);
    world.submit("a", "film", 12);
    ends_well(&mut world);
    assert!(world.node("b").ran.is_empty());
}

#[test]
fn a_lost_award_is_said_again_and_nobody_else_is_needed() {
    let mut world = world();
    lose_first(&mut world, "award", 1);
    world.submit("a", "film", 12);
    ends_well(&mut world);
    assert_eq!(journaled(&world, "a", |e| matches!(e, Event::Withdrawn { .. })), 0);
}

#[test]
fn an_award_that_is_not_accepted_in_time_goes_to_the_others_at_once() {
    let mut world = world();
    world.filter = Box::new(|_, to, body, answer| answer || verb(body) != "award" || *to != d("c"));
    world.submit("a", "film", 12);
    ends_well(&mut world);
    assert!(world.node("c").ran.is_empty());
    let view = world.nodes[&d("a")].domain.job(&j("film")).unwrap();
    let wait = view.timeline.last_commit.unwrap().since(view.timeline.submitted);
    assert!(wait < 12_000, "{wait}");
}

#[test]
fn a_lost_commit_is_said_again_and_work_starts_only_then() {
    let mut world = world();
    lose_first(&mut world, "commit", 2);
    world.submit("a", "film", 12);
    world.run_for(1_000);
    assert!(world.node("b").ran.is_empty() || world.node("c").ran.is_empty());
    ends_well(&mut world);
    assert_eq!(journaled(&world, "a", |e| matches!(e, Event::Returned { .. })), 0);
}

#[test]
fn a_lost_part_done_is_repeated_until_it_is_acknowledged() {
    let mut world = world();
    lose_first(&mut world, "part-done", 6);
    world.submit("a", "film", 12);
    ends_well(&mut world);
    let said = world.sent.iter().filter(|s| s.2 == "part-done").count();
    assert_eq!(said, 8 + 6);
    assert_eq!(world.nodes.values().map(|n| n.ran.len()).sum::<usize>(), 12);
}

#[test]
fn every_lease_is_renewed_and_a_silent_task_goes_on() {
    let mut world = world();
    world.task_ms = (900_000, 900_001);
    world.filter = Box::new(|_, _, body, _| verb(body) != "progress");
    world.submit("a", "film", 6);
    ends_well(&mut world);
    assert!(world.sent.iter().filter(|s| s.2 == "renew").count() > 80);
    assert_eq!(world.nodes.values().map(|n| n.ran.len()).sum::<usize>(), 6);
}

#[test]
fn a_repeated_request_gets_the_stored_answer_and_holds_nothing_twice() {
    let mut world = world();
    let at = world.now;
    let request = Input::Request(d("b"), envelope("b", 1, "once", call(at, calls(3))));
    world.input(&d("a"), request.clone());
    let (first, held) = (answer_to(&world, "b"), world.nodes[&d("a")].domain.held());
    world.input(&d("a"), request);
    assert_eq!((answer_to(&world, "b"), world.nodes[&d("a")].domain.held()), (first, held));
    assert_eq!(held, 3);
}

#[test]
fn a_hold_frees_itself_with_no_message() {
    let mut world = world();
    let at = world.now;
    world.input(&d("a"), Input::Request(d("b"), envelope("b", 1, "x", call(at, calls(7)))));
    assert_eq!(world.nodes[&d("a")].domain.held(), 7);
    world.cut("a", "b");
    world.run_for(30_001);
    assert_eq!(world.nodes[&d("a")].domain.held(), 0);
}

#[test]
fn an_accepted_award_that_is_never_committed_frees_itself() {
    let mut world = world();
    world.filter = Box::new(|_, to, body, _| verb(body) != "commit" && (verb(body) != "reject-bid" || *to != d("b")));
    world.submit("a", "film", 12);
    world.run_for(5_000);
    assert!(world.nodes[&d("b")].domain.held() > 0);
    world.crash(&d("a"));
    world.run_for(60_000);
    assert_eq!(world.nodes[&d("b")].domain.held(), 0);
    assert!(world.node("b").ran.is_empty());
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

#[test]
fn what_a_domain_cannot_start_soon_it_sells_one_level_deeper() {
    let mut world = World::new(3, 3);
    // Only b knows c.
    for name in ["a", "b", "c"] {
        let agreements = &mut world.node(name).config.agreements;
        agreements.waves_soon = 1;
        if name == "a" {
            agreements
                .partner
                .insert(d("c"), federation::agreement::Policy { may_receive: false, ..Default::default() });
        }
        world.crash(&d(name));
        world.restart(&d(name));
    }
    world.submit("a", "film", 12);
    ends_well(&mut world);
    let view = world.nodes[&d("a")].domain.job(&j("film")).unwrap();
    let by_c = view.parts.iter().filter(|p| p.by == Some(d("c"))).count();
    assert!(by_c > 0 && view.parts.iter().all(|p| p.domain != Some(d("c"))));
    assert_eq!(world.node("c").ran.len(), by_c);
    assert!(view.usage.iter().any(|u| u.domain == d("c") && u.parts as usize == by_c));
}

/// Hosts take parts ahead of their slots; a part that was taken so was offered to others too, its result was not heard while
/// the sale lasted, and the job never ended.
#[test]
fn what_is_sold_is_not_started_too() {
    let mut world = world();
    for name in ["a", "b", "c"] {
        let agreements = &mut world.node(name).config.agreements;
        (agreements.waves_soon, agreements.tasks_per_slot) = (1, 3);
        world.crash(&d(name));
        world.restart(&d(name));
    }
    world.submit("a", "film", 12);
    ends_well(&mut world);
    assert!(world.seen.sold > 0);
    assert_eq!(world.nodes.values().map(|n| n.ran.len()).sum::<usize>(), 12, "nothing was run twice");
}

#[test]
fn a_loop_and_too_much_depth_are_refused() {
    let mut world = world();
    let at = world.now;
    let mut looped = envelope("b", 1, "loop", call(at, calls(3)));
    (looped.home, looped.path) = (d("c"), vec![d("c"), d("a"), d("b")]);
    world.input(&d("a"), Input::Request(d("b"), looped.clone()));
    assert!(matches!(answer_to(&world, "b"), Body::Refuse(r) if r.reason == "loop"));
    looped.id = MessageId::from("deep");
    looped.path = vec![d("c"), d("x"), d("y"), d("b")];
    world.input(&d("a"), Input::Request(d("b"), looped.clone()));
    assert!(matches!(answer_to(&world, "b"), Body::Refuse(r) if r.reason == "depth"));
    looped.id = MessageId::from("liar");
    looped.path = vec![d("c"), d("x")];
    world.input(&d("a"), Input::Request(d("b"), looped));
    assert!(matches!(answer_to(&world, "b"), Body::Refuse(r) if r.reason == "policy"));
    assert_eq!(world.nodes[&d("a")].domain.held(), 0);
}

#[test]
fn an_older_incarnation_is_not_obeyed() {
    let mut world = world();
    let at = world.now;
    world.input(&d("a"), Input::Request(d("b"), envelope("b", 7, "new", call(at, calls(3)))));
    world.input(&d("a"), Input::Request(d("b"), envelope("b", 6, "old", call(at, calls(3)))));
    assert!(matches!(answer_to(&world, "b"), Body::Stale(_)));
    assert_eq!(world.nodes[&d("a")].domain.held(), 3);
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

#[test]
fn who_is_not_admitted_gets_no_bid_and_who_may_not_receive_no_call() {
    let mut world = world();
    let closed = federation::agreement::Policy { admitted: false, may_receive: false, ..Default::default() };
    world.node("a").config.agreements.partner.insert(d("b"), closed);
    world.crash(&d("a"));
    world.restart(&d("a"));
    let at = world.now;
    world.input(&d("a"), Input::Request(d("b"), envelope("b", 1, "x", call(at, calls(3)))));
    assert!(matches!(answer_to(&world, "b"), Body::Refuse(r) if r.reason == "policy"));
    world.submit("a", "film", 12);
    ends_well(&mut world);
    assert!(world.node("b").ran.is_empty());
}

#[test]
fn a_request_that_is_an_answer_is_not_understood() {
    let mut world = world();
    let body = Body::Ack(federation::message::Ack {});
    world.input(&d("a"), Input::Request(d("b"), envelope("b", 1, "x", body)));
    assert!(matches!(answer_to(&world, "b"), Body::NotUnderstood(_)));
}

fn call(now: Millis, parts: Vec<federation::message::PartCall>) -> Body {
    let (deadline, budget_left) = (None, None);
    let (kind, bid_by) = ("transcode".into(), now.plus(1_500));
    Body::Cfp(Cfp { kind, deadline, budget_left, bid_by, hold_ms: 30_000, depth_left: 0, parts })
}

fn envelope(from: &str, epoch: u64, id: &str, body: Body) -> Envelope {
    let (id, job, home) = (MessageId::from(id), j("theirs"), d(from));
    let (sent_at, expires_at) = (Millis(0), Millis(0));
    Envelope { id, job, home, epoch, seq: 1, sent_at, expires_at, path: vec![d(from)], body }
}

/// The last answer that `a` gave to `to`.
fn answer_to(world: &World, to: &str) -> Body {
    use federation::domain::Output;
    let answers = world.said.iter().rev().filter(|s| s.1 == d("a"));
    let found = answers.filter_map(|(_, _, o)| match o {
        Output::Reply { to: t, envelope, .. } if *t == d(to) => Some(envelope.body.clone()),
        _ => None,
    });
    found.into_iter().next().expect("an answer")
}
