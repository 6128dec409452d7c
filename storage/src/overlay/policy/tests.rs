use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::*;

fn policy(nodes: u64, pieces: u32) -> Policy {
    let mut policy = Policy::new(Config { expected: nodes as u32, ..Config::default() }, pieces, 1);
    for id in 0..nodes {
        policy.announce(0, id, Report::default());
    }
    policy
}

/// Serves leases at once to whoever may have them, until none is left.
fn drain(policy: &mut Policy, nodes: u64, now: Millis) -> Vec<(NodeId, u32)> {
    let mut all = Vec::new();
    loop {
        for id in 0..nodes {
            let orders = policy.announce(now, id, Report::default());
            policy.connected(id, orders.origin);
        }
        let Some((id, piece)) = policy.next_lease(now) else { return all };
        policy.lease_done(now, id, piece);
        all.push((id, piece));
    }
}

#[test]
fn relays_are_the_cube_of_the_decimal_logarithm() {
    assert_eq!([1, 10, 20, 100, 1000, 10_000].map(relays), [1, 1, 2, 8, 27, 64]);
}

#[test]
fn answers_are_blank_until_the_relay_holds_blocks() {
    let mut policy = policy(100, 500);
    let roles = policy.snapshot().roles;
    assert_eq!((roles[Role::Relay as usize], roles[Role::Capped as usize]), (8, 92));
    let relay = (0..100).find(|id| policy.role(*id) == Role::Relay).unwrap();
    assert!(policy.announce(1, 99, Report::default()).neighbours.is_empty());
    policy.connected(relay, true);
    for _ in 0..2 {
        let (id, piece) = policy.next_lease(2).unwrap();
        assert_eq!(id, relay);
        policy.lease_done(3, id, piece);
    }
    let children: Vec<_> = (0..100).filter(|id| policy.role(*id) == Role::Leecher).collect();
    assert!(!children.is_empty());
    for child in children {
        let orders = policy.announce(4, child, Report::default());
        assert!(orders.neighbours.contains(&relay) && orders.origin);
    }
}

#[test]
fn few_nodes_are_all_linked_as_soon_as_a_relay_holds_blocks() {
    let mut policy = policy(9, 100);
    policy.connected(0, true);
    for _ in 0..2 {
        assert!(policy.announce(1, 8, Report::default()).neighbours.is_empty());
        let (id, piece) = policy.next_lease(2).unwrap();
        policy.lease_done(3, id, piece);
    }
    let orders = policy.announce(4, 8, Report::default());
    assert_eq!((orders.role, orders.neighbours.len(), orders.origin), (Role::Peer, 8, true));
}

/// Announces and ticks five times a second; whom leases of half a second reach is for `takes` to say. When the first was done.
fn first_done(policy: &mut Policy, nodes: u64, takes: impl Fn(NodeId) -> bool) -> Option<Millis> {
    let mut out = VecDeque::new();
    (0..120_000).step_by(200).find(|now| {
        (0..nodes).for_each(|id| drop(policy.announce(*now, id, Report::default())));
        policy.tick(*now);
        while let Some((id, piece)) = policy.next_lease(*now) {
            out.extend(takes(id).then_some((now + 500, id, piece)));
        }
        let done = out.front().is_some_and(|(at, ..)| at <= now).then(|| out.pop_front()).flatten();
        done.map(|(_, id, piece)| policy.lease_done(*now, id, piece)).is_some()
    })
}

#[test]
fn a_relay_that_takes_nothing_is_replaced_by_one_of_those_that_wait_for_it() {
    for nodes in [2, 9, 100] {
        // It never connects; it connects and hangs; what it reads from the store fails.
        let mut unreachable = policy(nodes, 500);
        (1..nodes).for_each(|id| unreachable.connected(id, true));
        let silent = (0..nodes).filter(|id| unreachable.role(*id) == Role::Relay).collect::<Vec<_>>();
        silent.iter().for_each(|id| unreachable.connected(*id, false));
        let mut hung = unreachable.clone();
        silent.iter().for_each(|id| hung.connected(*id, true));
        let mut refused = unreachable.clone();
        let after = first_done(&mut unreachable, nodes, |_| true);
        assert!(after.is_some_and(|ms| (3000..5000).contains(&ms)), "{nodes}: {after:?}");
        let after = first_done(&mut hung, nodes, |id| !silent.contains(&id));
        assert!(after.is_some_and(|ms| ms < 35_000), "{nodes}: {after:?}");
        let mut piece = refused.lease_for(0, silent[0]).unwrap();
        for now in [100, 3200] {
            refused.lease_failed(now, silent[0], piece);
            piece = refused.lease_for(now, silent[0]).unwrap();
            refused.tick(now);
        }
        let roles = refused.snapshot().roles;
        assert_eq!((refused.role(silent[0]), roles[0]), (Role::Leecher, nodes as u32 - 2 * silent.len() as u32));
        assert_eq!(roles[Role::Relay as usize] as usize, silent.len());
    }
}

#[test]
fn a_relay_with_a_lease_under_way_or_no_one_to_replace_it_stays() {
    let mut policy = policy(20, 500);
    let relay = (0..20).filter(|id| policy.role(*id) == Role::Relay).collect::<Vec<_>>();
    relay.iter().for_each(|id| policy.connected(*id, true));
    while policy.next_lease(0).is_some() {}
    let roles = policy.snapshot().roles;
    for now in (0..30_000).step_by(200) {
        (0..20).for_each(|id| drop(policy.announce(now, id, Report::default())));
        policy.tick(now);
        assert_eq!(policy.snapshot().roles, roles, "after {now} ms");
    }
    let mut alone = under(Mode::Ours, 1, 10);
    (0..60_000).step_by(200).for_each(|now| {
        alone.announce(now, 0, Report::default());
        alone.tick(now);
    });
    assert_eq!(alone.role(0), Role::Relay);
}

#[test]
fn each_piece_leaves_the_origin_once_before_any_twice() {
    let mut policy = policy(20, 500);
    let given = drain(&mut policy, 20, 5);
    let distinct: BTreeSet<_> = given.iter().map(|(_, piece)| *piece).collect();
    assert_eq!((given.len(), distinct.len()), (500, 500));
    let mut per_node = BTreeMap::<_, u32>::new();
    given.iter().for_each(|(id, _)| *per_node.entry(*id).or_default() += 1);
    assert!(per_node.len() == 20 && per_node.values().all(|n| (15..=40).contains(n)), "{per_node:?}");
}

#[test]
fn what_only_a_lost_node_held_is_leased_again() {
    let mut policy = policy(4, 40);
    let given = drain(&mut policy, 4, 0);
    let lost = given[5].0;
    let only_there: BTreeSet<_> = given.iter().filter(|(id, _)| *id == lost).map(|(_, p)| *p).collect();
    let spread = *only_there.first().unwrap();
    let mut have = Bits::new(40);
    have.set(spread);
    let other = (0..4).find(|id| *id != lost).unwrap();
    policy.announce(1, other, Report { have: Some(have), ..Report::default() });
    policy.leave(lost);
    let again: BTreeSet<_> = std::iter::from_fn(|| {
        let (id, piece) = policy.next_lease(2)?;
        policy.lease_done(2, id, piece);
        Some(piece)
    })
    .collect();
    assert_eq!(again, only_there.into_iter().filter(|p| *p != spread).collect());
}

#[test]
fn a_late_lease_goes_to_another_and_a_silent_node_is_forgotten() {
    let mut policy = policy(2, 1);
    let all: Vec<_> = (0..2).filter(|id| policy.announce(0, *id, Report::default()).origin).collect();
    all.iter().for_each(|id| policy.connected(*id, true));
    let (first, piece) = policy.next_lease(0).unwrap();
    assert!(policy.next_lease(1).is_none());
    let other = 1 - first;
    policy.announce(7000, other, Report::default());
    policy.tick(7000);
    policy.connected(other, true);
    assert_eq!(policy.next_lease(7001), Some((other, piece)));
    assert_eq!(policy.snapshot().roles.iter().sum::<u32>(), 1);
}

#[test]
fn who_speaks_again_after_a_silence_is_leased_to_over_the_connection_that_it_still_has() {
    let mut policy = policy(2, 10);
    policy.connected(0, true);
    let lease = policy.next_lease(0);
    policy.tick(7000);
    assert_eq!((policy.snapshot().roles.iter().sum::<u32>(), policy.next_lease(7000)), (0, None));
    policy.announce(9000, 0, Report::default());
    assert_eq!(policy.next_lease(9000), lease);
    // It was broken off meanwhile.
    policy.tick(16_000);
    policy.connected(0, false);
    policy.announce(16_000, 0, Report::default());
    assert_eq!(policy.next_lease(16_000), None);
}

#[test]
fn a_restarted_controller_learns_from_announces_what_need_not_be_sent() {
    let mut policy = Policy::new(Config { expected: 2, ..Config::default() }, 10, 1);
    let mut have = Bits::new(10);
    have.set_range(0..9);
    let orders = policy.announce(0, 1, Report { have: Some(have), ..Report::default() });
    policy.connected(1, orders.origin);
    assert_eq!(policy.next_lease(0), Some((1, 9)));
    assert_eq!(policy.next_lease(0), None);
}

#[test]
fn what_a_node_falsely_says_that_it_holds_leaves_the_origin_when_another_starves_for_it() {
    let mut policy = under(Mode::Ours, 1, 10);
    let all = Report { have: Some(Bits::full(10)), complete: true, ..Report::default() };
    let hungry = || Report { starving: true, ..Report::default() };
    let leased = |policy: &mut Policy, now| Vec::from_iter(std::iter::from_fn(|| Some(policy.next_lease(now)?.1)));
    // What it was leased it has.
    policy.connected(0, true);
    let (_, given) = policy.next_lease(0).unwrap();
    policy.lease_done(1, 0, given);
    policy.announce(1, 0, all.clone());
    for (now, left) in [(1, 0), (2000, 0), (3001, 9)] {
        let orders = policy.announce(now, 1, hungry());
        policy.connected(1, orders.origin);
        assert_eq!(policy.snapshot().free, left, "after {now} ms");
    }
    policy.announce(3002, 0, all.clone());
    assert_eq!(leased(&mut policy, 3002).first(), Some(&6), "begins elsewhere");
    assert_eq!(policy.snapshot().free, 9 - 2, "two slots");

    // As long as something comes all are believed; then one after the other.
    let mut policy = under(Mode::Ours, 1, 10);
    (0..2).for_each(|id| drop(policy.announce(0, id, all.clone())));
    let mut have = Bits::new(10);
    for now in (0..10_000).step_by(1000) {
        have.set((now / 2000) as u32);
        policy.announce(now, 2, Report { have: Some(have.clone()), ..hungry() });
        assert_eq!(policy.snapshot().free, 0);
    }
    for (now, left) in [(20_000, 0), (23_000, 0), (24_000, 0), (27_000, 5)] {
        policy.announce(now, 3, hungry());
        assert_eq!(policy.snapshot().free, left, "after {now} ms");
    }
}

#[test]
fn an_origin_that_complains_is_asked_for_half_as_much() {
    let mut policy = policy(1000, 5000);
    let before = policy.snapshot().slots;
    (0..1000).for_each(|id| policy.connected(id, true));
    let (id, piece) = policy.next_lease(0).unwrap();
    policy.lease_failed(1, id, piece);
    assert_eq!((before, policy.snapshot().slots), (27, 13));
}

#[test]
fn the_same_trace_gives_the_same_decisions() {
    let run = || {
        let mut policy = policy(50, 200);
        (drain(&mut policy, 50, 3), policy.lambda2().to_bits())
    };
    assert_eq!(run(), run());
}

#[test]
fn lambda2_falls_from_tree_to_swarm() {
    let mut policy = policy(200, 2000);
    let relay = (0..200).find(|id| policy.role(*id) == Role::Relay).unwrap();
    policy.connected(relay, true);
    for _ in 0..2 {
        let (id, piece) = policy.next_lease(2).unwrap();
        policy.lease_done(3, id, piece);
    }
    let tree = policy.lambda2();
    drain(&mut policy, 200, 5);
    let swarm = policy.lambda2();
    assert!(tree > 0.85 && swarm < 0.66, "{tree} {swarm}");
}

#[test]
fn demand_outside_the_dataset_is_not_believed() {
    let mut policy = Policy::new(Config::default(), 10, 1);
    let demand = vec![Demand { range: 5..u32::MAX, seed_only: false }, Demand { range: 3..4, seed_only: false }];
    let orders = policy.announce(0, 1, Report { demand, ..Report::default() });
    policy.connected(1, orders.origin);
    assert_eq!(policy.next_lease(0), Some((1, 3)));
    assert_eq!(policy.next_lease(0), None);
}

fn under(mode: Mode, nodes: u64, pieces: u32) -> Policy {
    let mut policy = Policy::new(Config { mode, ..Config::default() }, pieces, 1);
    for id in 0..nodes {
        policy.announce(0, id, Report::default());
    }
    policy
}

#[test]
fn the_central_origin_gives_every_piece_to_every_node() {
    let mut policy = under(Mode::Central, 3, 10);
    let given: BTreeSet<_> = drain(&mut policy, 3, 1).into_iter().collect();
    assert_eq!((given.len(), policy.snapshot().leases), (30, 30));
    assert!(policy.announce(2, 1, Report::default()).neighbours.is_empty());
}

#[test]
fn a_tree_has_one_reader_and_grows_together_again_when_a_node_is_lost() {
    let mut policy = under(Mode::Tree, 7, 10);
    let neighbours = |policy: &mut Policy, id| policy.announce(1, id, Report::default()).neighbours;
    assert_eq!(neighbours(&mut policy, 0), [1, 2]);
    assert_eq!(neighbours(&mut policy, 2), [0, 5, 6]);
    assert!(drain(&mut policy, 7, 2).into_iter().all(|(id, _)| id == 0));
    policy.leave(0);
    assert_eq!(neighbours(&mut policy, 1), [2, 3]);
    assert!(policy.announce(3, 1, Report::default()).origin && !policy.announce(3, 2, Report::default()).origin);
}

#[test]
fn in_a_plain_swarm_everybody_knows_everybody_up_to_fifty() {
    let mut policy = under(Mode::Plain, 80, 10);
    let orders = policy.announce(1, 79, Report::default());
    assert_eq!((orders.neighbours.len(), orders.origin), (50, true));
    assert!(!orders.neighbours.contains(&79));
}

#[test]
fn a_slow_node_is_leased_nothing_that_others_can_bring_and_tried_again_later() {
    let mut policy = policy(4, 400);
    drain_shortly(&mut policy);
    let piece = policy.lease_for(500, 3).unwrap();
    policy.lease_done(1500, 3, piece);
    policy.tick(1500);
    assert_eq!(policy.lease_for(1501, 3), None);
    let piece = policy.lease_for(1503, 0).unwrap();
    policy.lease_done(1513, 0, piece);
    // Left alone it bears one at a time.
    let mut alone = policy.clone();
    (0..3).for_each(|id| drop(alone.announce(1600, id, Report { complete: true, ..Report::default() })));
    alone.tick(1600);
    assert!(alone.lease_for(1601, 3).is_some() && alone.lease_for(1602, 3).is_none());
    let tried_again = |policy: &mut Policy| {
        (1500..60_000).step_by(200).find(|now| {
            (0..4).for_each(|id| drop(policy.announce(*now, id, Report::default())));
            policy.tick(*now);
            policy.lease_for(*now, 3).is_some()
        })
    };
    // Not when it would be among the last: the others would wait for what it brings.
    let mut ending = policy.clone();
    for piece in 0..395 {
        ending.free.clear(piece);
    }
    assert_eq!(tried_again(&mut ending), None);
    assert!(tried_again(&mut policy).is_some_and(|after| after > 2_000));
}

#[test]
fn who_sits_on_a_lease_is_slow_before_it_ends() {
    let mut policy = policy(4, 400);
    drain_shortly(&mut policy);
    policy.lease_for(500, 3).unwrap();
    policy.tick(900);
    assert_eq!(policy.lease_for(901, 3), None);
    assert!(policy.lease_for(902, 0).is_some());
}

/// Nodes in the mesh that hold as many of 400 pieces as said.
fn holding(nodes: u64, held: impl Fn(NodeId) -> u32) -> Policy {
    let mut policy = policy(nodes, 400);
    policy.mesh();
    for id in 0..nodes {
        let mut have = Bits::new(400);
        for piece in 0..held(id) {
            have.set(piece);
        }
        policy.announce(1, id, Report { have: Some(have), ..Report::default() });
    }
    policy
}

#[test]
fn who_falls_behind_is_dealt_others_for_neighbours_that_hold_far_less() {
    const fn is_slow(id: NodeId) -> bool {
        id >= 54
    }
    let slow_around = |policy: &Policy, id| policy.graph.neighbours(id).filter(|other| is_slow(*other)).count();
    let dealt = holding(60, |_| 0);
    let behind = (0..54).max_by_key(|id| slow_around(&dealt, *id)).unwrap();
    assert!(slow_around(&dealt, behind) >= 2);
    let held = |id| {
        if is_slow(id) {
            50
        } else if id == behind {
            180
        } else {
            200
        }
    };
    let mut policy = holding(60, held);
    let edges = |policy: &Policy| (0..60).map(|id| policy.graph.neighbours(id).collect::<Vec<_>>()).collect::<Vec<_>>();
    for now in 2..20 {
        policy.tick(now);
    }
    assert_eq!(slow_around(&policy, behind), 0);
    assert_eq!(policy.graph.neighbours(behind).count(), dealt.graph.neighbours(behind).count());

    // Nobody is relieved of neighbours that hold a little less, or of whom nothing is known; nor somebody who is not behind.
    let left_alone: [fn(NodeId) -> u32; 3] = [
        |id| 200 - id as u32,
        |id| if is_slow(id) { 0 } else { 200 - id as u32 },
        |id| if is_slow(id) { 50 } else { 200 },
    ];
    for held in left_alone {
        let mut policy = holding(60, held);
        let before = edges(&policy);
        policy.tick(2);
        assert_eq!(edges(&policy), before);
    }
}

#[test]
fn who_starves_is_dealt_another_neighbour_for_one_of_its_own() {
    let mut policy = holding(60, |_| 0);
    let around = |policy: &Policy, id| policy.graph.neighbours(id).collect::<BTreeSet<_>>();
    let (before, links) = (around(&policy, 7), around(&policy, 8).len());
    policy.announce(2, 7, Report::default());
    assert_eq!(around(&policy, 7), before);
    policy.announce(2, 7, Report { starving: true, ..Report::default() });
    let after = around(&policy, 7);
    assert_eq!((after.len(), after.difference(&before).count()), (before.len(), 1));
    assert_eq!(around(&policy, 8).len(), links);
}

#[test]
fn edges_between_nodes_that_hold_all_go_to_those_that_do_not() {
    let mut policy = holding(60, |_| 0);
    let is_done = |id: NodeId| id.is_multiple_of(2);
    let useless = |policy: &Policy| {
        let done = (0..60).filter(|id| is_done(*id));
        done.flat_map(|id| policy.graph.neighbours(id)).filter(|other| is_done(*other)).count()
    };
    for id in (0..60).filter(|id| is_done(*id)) {
        policy.announce(2, id, Report { complete: true, ..Report::default() });
    }
    let before = useless(&policy);
    (2..20).for_each(|now| policy.tick(now));
    assert!(useless(&policy) * 2 < before, "{before} {}", useless(&policy));
    // Once all hold all, edges are left alone.
    (0..60).for_each(|id| drop(policy.announce(20, id, Report { complete: true, ..Report::default() })));
    let edges = |policy: &Policy| Vec::from_iter((0..60).map(|id| policy.graph.neighbours(id).collect::<Vec<_>>()));
    let before = edges(&policy);
    policy.tick(21);
    assert_eq!(edges(&policy), before);
}

/// Every node connected, in the mesh, with ten short leases or so behind it.
fn drain_shortly(policy: &mut Policy) {
    for now in (0..400).step_by(10) {
        for id in 0..4 {
            let orders = policy.announce(now, id, Report::default());
            policy.connected(id, orders.origin);
        }
        if let Some((id, piece)) = policy.next_lease(now) {
            policy.lease_done(now + 10, id, piece);
        }
    }
}

#[test]
fn leases_that_all_take_long_are_not_taken_back_for_ever() {
    let mut policy = policy(1, 1);
    policy.connected(0, true);
    // Each lease needs a minute, announced every second.
    let (mut since, mut now) = (0, 0);
    policy.next_lease(0).unwrap();
    while now - since < 60_000 {
        now += 1000;
        assert!(now < 600_000, "given and taken back for ten minutes");
        policy.announce(now, 0, Report::default());
        policy.tick(now);
        if policy.next_lease(now).is_some() {
            since = now;
        }
    }
}

#[test]
fn who_wants_the_same_bytes_is_told_of_each_other() {
    let mut policy = Policy::new(Config { expected: 60, ..Config::default() }, 600, 1);
    let part = |i: u32| {
        vec![
            Demand { range: i * 10..i * 10 + 10, seed_only: false },
            Demand { range: (i + 1) % 60 * 10..(i + 1) % 60 * 10 + 3, seed_only: true },
        ]
    };
    let speak = |policy: &mut Policy, i: u32| {
        let orders = policy.announce(1, u64::from(i), Report { demand: part(i), ..Report::default() });
        policy.connected(u64::from(i), orders.origin);
        orders
    };
    (0..60).for_each(|i| drop(speak(&mut policy, i)));
    for _ in 0..600 {
        let Some((id, piece)) = policy.next_lease(2) else { break };
        policy.lease_done(2, id, piece);
        (0..60).for_each(|i| drop(speak(&mut policy, i)));
    }
    for i in 0..60 {
        let orders = speak(&mut policy, i);
        let around = [(i + 1) % 60, (i + 59) % 60].map(u64::from);
        assert!(around.iter().all(|kin| orders.neighbours.contains(kin)), "{i}: {orders:?}");
        assert!(orders.neighbours.len() <= 14, "{orders:?}");
    }
    policy.leave(5);
    assert!(!speak(&mut policy, 4).neighbours.contains(&5));
}

/// Where the slots end at an origin that sends at most `most` leases at full rate, each of which takes `lease_ms` then: all that
/// can be sent are, so that they begin and end together.
fn slots_settle(most: f64, lease_ms: f64) -> u32 {
    let mut slots = Policy::new(Config { expected: 20, ..Config::default() }, 9, 1).slots;
    assert_eq!(slots.now, 2);
    let (mut now, mut sending) = (0, VecDeque::new());
    for _ in 0..100_000 {
        slots.limited = true;
        while slots.is_free() {
            slots.begin(now);
            let takes = lease_ms * (f64::from(slots.now) / most).max(1.0);
            sending.push_back((now, now + takes as Millis));
        }
        let (since, ends) = sending.pop_front().unwrap();
        now = now.max(ends);
        slots.sent(now, since, (now - since) as f64);
    }
    slots.now
}

#[test]
fn slots_double_only_while_that_brings_much_more() {
    for lease_ms in [100.0, 7000.0] {
        let (few, many) = (slots_settle(10.0, lease_ms), slots_settle(100.0, lease_ms));
        assert!((10..=16).contains(&few) && (90..=200).contains(&many), "{lease_ms} ms: {few}, {many}");
    }
}

#[test]
fn a_node_whose_leases_take_long_gets_no_more_while_others_can_take_them() {
    let mut policy = policy(3, 100);
    (0..3).for_each(|id| policy.set_role(id, Role::Peer));
    (0..3).for_each(|id| policy.connected(id, true));
    let (mut now, mut out, mut to_slow) = (0, VecDeque::new(), 0);
    for _ in 0..60 {
        while let Some((id, piece)) = policy.next_lease(now) {
            to_slow += u32::from(id == 1);
            out.push_back((now + if id == 1 { 1000 } else { 100 }, id, piece));
        }
        out.make_contiguous().sort();
        let Some((at, id, piece)) = out.pop_front() else { break };
        now = at.max(now);
        policy.lease_done(now, id, piece);
        (0..3).for_each(|id| drop(policy.announce(now, id, Report::default())));
        policy.tick(now);
    }
    assert!(to_slow <= 6, "{to_slow}");
}

#[test]
fn refusals_of_one_moment_count_once_and_slow_first_bytes_count_too() {
    let mut policy = policy(1000, 5000);
    let relays: Vec<_> = (0..1000).filter(|id| policy.role(*id) == Role::Relay).collect();
    for id in relays.iter().take(5) {
        let piece = policy.lease_for(0, *id).unwrap();
        policy.lease_failed(1, *id, piece);
    }
    assert_eq!(policy.snapshot().slots, 13);
    (0..20).for_each(|i| policy.origin_answered(1000 + i, 10));
    assert_eq!(policy.snapshot().slots, 13);
    (0..20).for_each(|i| policy.origin_answered(2000 + i, 400));
    assert_eq!(policy.snapshot().slots, 6);
}

#[test]
fn who_acknowledges_first_is_given_hardly_more_leases_than_the_others() {
    let mut policy = policy(8, 400);
    let mut had = BTreeMap::<NodeId, u32>::new();
    (0..8).for_each(|id| policy.connected(id, true));
    // Node 0 has each lease at once, the others every tenth round.
    for round in 0..200 {
        let now = 500 + round * 20;
        while let Some(lease) = policy.next_lease(now) {
            policy.lease_sent(now, lease.0, lease.1);
            *had.entry(lease.0).or_default() += 1;
        }
        policy.tick(now);
        for (id, piece) in policy.out.keys().copied().collect::<Vec<_>>() {
            if id == 0 || round % 10 == 9 {
                policy.lease_done(now, id, piece);
            }
        }
    }
    let mut counts: Vec<_> = had.values().copied().collect();
    counts.sort_unstable();
    assert!(counts[4] > 10, "the origin is kept busy: {counts:?}");
    // Who had its first lease later began where the others stood.
    assert!(counts[7] - counts[4] <= 10, "{counts:?}");
}

#[test]
fn so_many_leases_are_on_their_way_in_all_and_more_where_the_origin_sends_more_at_once() {
    let mut policy = policy(100, 10_000);
    policy.mesh();
    let fill = |policy: &mut Policy, now| {
        for id in 0..100 {
            let orders = policy.announce(now, id, Report::default());
            policy.connected(id, orders.origin);
        }
        while let Some((id, piece)) = policy.next_lease(now) {
            policy.lease_sent(now, id, piece);
        }
        policy.out.len()
    };
    assert_eq!(fill(&mut policy, 0), 16);
    let nodes: BTreeSet<_> = policy.out.keys().map(|(id, _)| *id).collect();
    assert_eq!(nodes.len(), 16, "one each");
    let (id, piece) = policy.out.keys().next().copied().unwrap();
    policy.lease_done(1, id, piece);
    assert_eq!(fill(&mut policy, 1), 16);
    policy.slots.now = 40;
    assert_eq!(fill(&mut policy, 2), 80);
}

#[test]
fn each_node_is_leased_pieces_that_lie_together() {
    let mut policy = policy(40, 1280);
    policy.mesh();
    let mut runs = BTreeMap::<NodeId, Vec<u32>>::new();
    drain(&mut policy, 40, 0).into_iter().for_each(|(id, piece)| runs.entry(id).or_default().push(piece));
    let chunks = |pieces: &Vec<u32>| pieces.iter().map(|piece| piece / 64).collect::<BTreeSet<_>>().len();
    let told: usize = runs.values().map(chunks).sum();
    assert_eq!(runs.values().map(Vec::len).sum::<usize>(), 1280);
    assert!(told <= 4 * 40, "{told} chunks' hashes leave the origin for 40 nodes");
}
