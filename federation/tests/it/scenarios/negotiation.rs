//! Calls, bids, awards and leases, and what is lost of them on the way.

use federation::agreement::Policy;
use federation::domain::{Input, Output};
use federation::event::Event;
use federation::id::MessageId;
use federation::message::{Award, Body, Commit, PartAward};

use super::{HOUR, answer_to, call, ends_well, envelope, journaled, world};
use crate::world::{Habit, World, calls, d, done, j, task_input, verb};

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
fn a_call_sums_its_parts_up_and_the_bid_says_when_they_would_be_done() {
    let mut world = world();
    world.submit("a", "film", 12);
    let calls = world.said.iter().filter_map(|(_, from, said)| match said {
        Output::Send { envelope, .. } if *from == d("a") => match &envelope.body {
            Body::Cfp(cfp) => Some((cfp.parts, cfp.bytes, cfp.work_ms)),
            _ => None,
        },
        _ => None,
    });
    assert_eq!(calls.collect::<Vec<_>>(), [(12, 12_000_000, 24_000); 2]);
    // One wave of a second, at the pace that nobody has measured yet.
    let mut world = self::world();
    let at = world.now;
    world.input(&d("a"), Input::Request(d("b"), envelope("b", 1, "x", call(at, 2))));
    let Body::Bid(bid) = answer_to(&world, "b") else { panic!("no bid") };
    assert_eq!((bid.parts_max, bid.finish_p50_ms, bid.finish_p90_ms), (2, 1_000, 1_500));
}

#[test]
fn bids_are_there_before_the_parts_are_known_and_no_second_call_is_needed() {
    let mut world = world();
    world.expect("a", "film");
    world.run_for(500);
    let held = |world: &World, who: &str| world.nodes[&d(who)].domain.held();
    assert!(held(&world, "b") > 0 && world.sent.iter().all(|s| s.2 == "cfp"));
    let known = world.now;
    world.submit("a", "film", 12);
    ends_well(&mut world);
    assert_eq!(world.nodes.values().map(|n| n.ran.len()).collect::<Vec<_>>(), [4, 4, 4]);
    assert_eq!(world.sent.iter().filter(|s| s.2 == "cfp").count(), 2);
    let t = world.nodes[&d("a")].domain.job(&j("film")).unwrap().timeline;
    assert!(t.first_call < t.last_bid && t.last_bid < Some(known) && t.first_commit.unwrap().since(known) < 100);
}

#[test]
fn parts_that_come_after_the_holds_are_called_out_at_once() {
    let mut world = world();
    world.expect("a", "film");
    world.run_for(10_000);
    assert!(world.nodes.values().all(|n| n.domain.held() == 0), "holds for what is not known yet are short");
    let known = world.now;
    world.submit("a", "film", 12);
    ends_well(&mut world);
    assert_eq!(world.sent.iter().filter(|s| s.2 == "cfp").count(), 4);
    let t = world.nodes[&d("a")].domain.job(&j("film")).unwrap().timeline;
    assert!(t.last_commit.unwrap().since(known) < 200, "{t:?}");
}

#[test]
fn a_job_that_was_expected_and_cannot_be_done_gives_all_holds_back() {
    let mut world = world();
    world.expect("a", "film");
    world.run_for(100);
    world.input(&d("a"), Input::FailJob { job: j("film"), code: "source-missing".into(), message: "no".into() });
    world.run_for(100);
    assert!(world.nodes.values().all(|n| n.domain.held() == 0));
    world.submit("a", "film", 12);
    world.run_for(10_000);
    assert!(world.nodes.values().all(|n| n.ran.is_empty()), "what has failed is not begun");
}

#[test]
fn a_bid_goes_by_the_hosts_own_clock_though_its_words_come_late_and_all_at_once() {
    let mut world = world();
    world.node("a").habit = Habit::Idle;
    world.submit("a", "film", 12);
    world.run_for(1_000);
    let task = world.said.iter().find_map(|(_, who, said)| match said {
        Output::Run { lease, part, attempt, .. } if *who == d("a") => Some((lease.clone(), *part, *attempt)),
        _ => None,
    });
    let key = task.unwrap();
    world.input(&d("a"), task_input(&key, done(&key, 9_000))); // for two seconds of work
    let at = world.now;
    world.input(&d("a"), Input::Request(d("b"), envelope("b", 1, "x", call(at, 1))));
    let Body::Bid(bid) = answer_to(&world, "b") else { panic!("no bid") };
    // Two slots have three parts before this one; each second of work takes them four and a half.
    assert_eq!(bid.finish_p50_ms, 2 * 4_500);
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
    let request = Input::Request(d("b"), envelope("b", 1, "once", call(at, 3)));
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
    world.input(&d("a"), Input::Request(d("b"), envelope("b", 1, "x", call(at, 7))));
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
fn what_a_domain_cannot_start_soon_it_sells_one_level_deeper() {
    let mut world = World::new(3, 3);
    // Only b knows c.
    for name in ["a", "b", "c"] {
        let agreements = &mut world.node(name).config.agreements;
        agreements.waves_soon = 1;
        if name == "a" {
            agreements.partner.insert(d("c"), Policy { may_receive: false, ..Policy::default() });
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
    let mut looped = envelope("b", 1, "loop", call(at, 3));
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
    world.input(&d("a"), Input::Request(d("b"), envelope("b", 7, "new", call(at, 3))));
    world.input(&d("a"), Input::Request(d("b"), envelope("b", 6, "old", call(at, 3))));
    assert!(matches!(answer_to(&world, "b"), Body::Stale(_)));
    assert_eq!(world.nodes[&d("a")].domain.held(), 3);
}

fn agree(world: &mut World, who: &str, with: &str, policy: Policy) {
    world.node(who).config.agreements.partner.insert(d(with), policy);
    world.crash(&d(who));
    world.restart(&d(who));
}

#[test]
fn who_is_not_admitted_gets_no_bid_and_who_may_not_receive_no_call() {
    let mut world = world();
    agree(&mut world, "a", "b", Policy { admitted: false, may_receive: false, ..Policy::default() });
    let at = world.now;
    world.input(&d("a"), Input::Request(d("b"), envelope("b", 1, "x", call(at, 3))));
    assert!(matches!(answer_to(&world, "b"), Body::Refuse(r) if r.reason == "policy"));
    world.submit("a", "film", 12);
    ends_well(&mut world);
    assert!(world.node("b").ran.is_empty());
}

/// The parts of the bid that `a` gives to a call of `from` for four parts; or why there is none.
fn bid_for_four(world: &mut World, from: &str, id: &str) -> Result<u32, String> {
    let call = envelope(from, 1, id, call(world.now, 4));
    world.input(&d("a"), Input::Request(d(from), call));
    match answer_to(world, from) {
        Body::Bid(bid) => Ok(bid.parts_max),
        Body::Refuse(refuse) => Err(refuse.reason),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_partner_is_bid_no_more_than_its_parts_max_over_all_its_calls() {
    let mut world = world();
    agree(&mut world, "a", "b", Policy { parts_max: Some(5), ..Policy::default() });
    assert_eq!(bid_for_four(&mut world, "b", "1"), Ok(4));
    assert_eq!(bid_for_four(&mut world, "b", "2"), Ok(1));
    assert_eq!(bid_for_four(&mut world, "b", "3"), Err("busy".into()));
    assert_eq!(bid_for_four(&mut world, "c", "4"), Ok(4));
    world.run_for(30_001);
    assert_eq!(bid_for_four(&mut world, "b", "5"), Ok(4));
}

#[test]
fn a_partner_with_a_parts_max_gets_the_next_parts_when_these_are_done() {
    let mut world = world();
    agree(&mut world, "b", "a", Policy { parts_max: Some(2), ..Policy::default() });
    agree(&mut world, "c", "a", Policy { parts_max: Some(0), ..Policy::default() });
    world.set_slots("a", 1);
    world.submit("a", "film", 24);
    ends_well(&mut world); // the observer counts what b holds after each batch
    assert!(world.node("b").ran.len() > 2 && world.node("c").ran.is_empty());
}

#[test]
fn a_kind_that_is_not_agreed_is_refused() {
    let mut world = world();
    agree(&mut world, "a", "b", Policy { kinds: Some(vec!["load".into()]), ..Policy::default() });
    assert_eq!(bid_for_four(&mut world, "b", "1"), Err("policy".into()));
    agree(&mut world, "a", "b", Policy { kinds: Some(vec!["load".into(), "transcode".into()]), ..Policy::default() });
    assert_eq!(bid_for_four(&mut world, "b", "2"), Ok(4));
}

#[test]
fn a_bid_above_the_price_max_of_its_domain_wins_nothing() {
    let mut world = world();
    agree(&mut world, "a", "b", Policy { price_max: Some(0.99), ..Policy::default() });
    agree(&mut world, "a", "c", Policy { price_max: Some(1.0), ..Policy::default() });
    world.submit("a", "film", 12);
    ends_well(&mut world);
    assert!(world.node("b").ran.is_empty() && !world.node("c").ran.is_empty());
    let view = world.nodes[&d("a")].domain.job(&j("film")).unwrap();
    let refused: Vec<_> =
        view.offers.iter().filter_map(|o| Some((o.domain.0.as_str(), o.refused.as_deref()?))).collect();
    assert_eq!(refused, [("b", "price")]);
}

/// A domain was bound by what it had written down for those that it does not list: it did not work for itself any more.
#[test]
fn the_default_for_others_does_not_bind_a_domain_itself() {
    let mut world = world();
    let (kinds, price_max) = (Some(Vec::new()), Some(0.5));
    world.node("a").config.agreements.default_policy =
        Policy { admitted: false, parts_max: Some(0), kinds, price: Some(9.0), may_receive: false, price_max };
    world.crash(&d("a"));
    world.restart(&d("a"));
    world.submit("a", "film", 12);
    ends_well(&mut world);
    assert_eq!(world.node("a").ran.len(), 12);
    assert_eq!(world.nodes[&d("a")].domain.job(&j("film")).unwrap().spend, 12.0);
}

#[test]
fn a_request_that_is_an_answer_is_not_understood() {
    let mut world = world();
    let body = Body::Ack(federation::message::Ack {});
    world.input(&d("a"), Input::Request(d("b"), envelope("b", 1, "x", body)));
    assert!(matches!(answer_to(&world, "b"), Body::NotUnderstood(_)));
}

#[test]
fn attempts_and_prices_at_their_limits_are_survived() {
    // Of three parts one is sold; its first buyer does not answer the award, and the second gets it.
    let mut world = World::new(1, 4);
    world.node("a").config.agreements.waves_soon = 1;
    world.crash(&d("a"));
    world.restart(&d("a"));
    world.filter = Box::new(|_, to, body, _| *to != d("b") && (verb(body) != "award" || *to != d("c")));
    let Body::Cfp(mut cfp) = call(world.now, 3) else { return };
    cfp.depth_left = 1;
    world.input(&d("a"), Input::Request(d("b"), envelope("b", 1, "cfp", Body::Cfp(cfp))));
    let Body::Bid(bid) = answer_to(&world, "b") else { panic!("no bid") };
    let part = |part| PartAward { part, attempt: u32::MAX, bytes: u64::MAX, work_ms: u64::MAX, url: "x".into() };
    let (lease, secret, parts) = (|| "b-1-1".into(), || "s".to_owned(), (0..3).map(part).collect());
    let (ttl_ms, renew_ms, price_cap) = (u64::MAX, u64::MAX, f64::MAX);
    let (bid, lease_, secret_, urls, common) = (bid.bid, lease(), secret(), None, Some(u64::MAX));
    let award = Award { bid, lease: lease_, secret: secret_, ttl_ms, renew_ms, price_cap, urls, common, parts };
    world.input(&d("a"), Input::Request(d("b"), envelope("b", 1, "award", Body::Award(award))));
    let Body::Accept(accept) = answer_to(&world, "b") else { panic!("not accepted") };
    let commit = Body::Commit(Commit { lease: lease(), secret: secret(), contract: accept.contract });
    world.input(&d("a"), Input::Request(d("b"), envelope("b", 1, "commit", commit)));
    world.run_for(60_000);
    assert_eq!(world.node("d").ran.len(), 1);

    let mut world = self::world();
    for name in ["b", "c"] {
        world.node(name).config.agreements.price = f64::MAX;
        world.crash(&d(name));
        world.restart(&d(name));
    }
    world.set_slots("a", 0);
    world.submit("a", "film", 12);
    assert!(world.run_until(HOUR, |w| w.seen.commits > 0));
    assert!(world.nodes[&d("a")].domain.job(&j("film")).unwrap().spend.is_finite());
    ends_well(&mut world);
    let view = world.nodes[&d("a")].domain.job(&j("film")).unwrap();
    assert!(view.spend.is_finite() && view.usage.iter().all(|u| u.price.is_finite()));
}
