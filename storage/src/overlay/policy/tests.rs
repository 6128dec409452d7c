use std::collections::{BTreeMap, BTreeSet};

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
    let mut policy = policy(20, 100);
    let roles = policy.snapshot().roles;
    assert_eq!((roles[Role::Relay as usize], roles[Role::Capped as usize]), (2, 18));
    let relay = (0..20).find(|id| policy.role(*id) == Role::Relay).unwrap();
    assert!(policy.announce(1, 19, Report::default()).neighbours.is_empty());
    policy.connected(relay, true);
    for _ in 0..2 {
        let (id, piece) = policy.next_lease(2).unwrap();
        assert_eq!(id, relay);
        policy.lease_done(3, id, piece);
    }
    let children: Vec<_> = (0..20).filter(|id| policy.role(*id) == Role::Leecher).collect();
    assert!(!children.is_empty());
    for child in children {
        let orders = policy.announce(4, child, Report::default());
        assert!(orders.neighbours.contains(&relay) && orders.origin);
    }
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
fn a_node_whose_leases_take_long_bears_one_at_a_time() {
    let mut policy = policy(4, 400);
    drain_shortly(&mut policy);
    let piece = policy.lease_for(500, 3).unwrap();
    policy.lease_done(1500, 3, piece);
    assert!(policy.lease_for(1501, 3).is_some());
    assert_eq!(policy.lease_for(1502, 3), None);
    assert!(policy.lease_for(1503, 0).is_some());
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
