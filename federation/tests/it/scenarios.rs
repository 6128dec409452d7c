//! One thing goes wrong at a time.

use federation::event::End;

use crate::world::World;

const HOUR: u64 = 3_600_000;

#[test]
fn three_domains_share_one_job_and_it_ends() {
    let mut world = World::new(1, 3);
    world.submit("a", "film", 12);
    assert!(world.run_until(HOUR, World::is_quiet));
    assert_eq!(world.end_of("a", "film"), Some(End::Done));
    let shares: Vec<_> = world.nodes.values().map(|n| n.ran.len()).collect();
    assert_eq!(shares, [4, 4, 4]);
}
