//! Random federations under random faults. `STARLING_SEED=n` runs one seed again, `STARLING_RUNS=n` that many.

use federation::agreement::Policy;
use federation::event::End;
use federation::id::DomainId;

use crate::world::{Faults, Habit, World, d};

const HOUR: u64 = 3_600_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn whatever_goes_wrong_the_invariants_hold_and_every_job_ends() {
    let seeds: Vec<u64> = match number("STARLING_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("STARLING_RUNS").unwrap_or(60)).collect(),
    };
    let mut sum = [0; 10];
    for seed in &seeds {
        let told = Told(*seed);
        let seen = run(*seed);
        std::mem::forget(told);
        for (a, b) in sum.iter_mut().zip(seen) {
            *a += b;
        }
    }
    let [inputs, events, commits, lost, adopted, failed, sold, crashes, replays, done] = sum;
    eprintln!(
        "{} runs: {inputs} inputs, {events} events, {commits} commits, {lost} leases lost, {adopted} late results adopted, {failed} parts failed, \
         {sold} sales, {crashes} crashes, {replays} replays, {done} jobs done",
        seeds.len()
    );
    // The world must be as bad as it claims to be.
    assert!(seeds.len() < 20 || (crashes > 20 && failed > 20 && sold > 0 && lost > 0 && done > 20));
    assert!(seeds.len() < 400 || adopted > 0);
}

/// Names the seed of a run that panics.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        eprintln!("to run this again: STARLING_SEED={}", self.0);
    }
}

fn run(seed: u64) -> [u64; 10] {
    let mut world = World::new(seed, 2 + (seed % 5) as usize);
    let names: Vec<DomainId> = world.nodes.keys().cloned().collect();
    let (loss, repeat) = (world.rng.below(30), world.rng.below(30));
    let delay_ms = [20, 200, 2_000][world.rng.below(3) as usize];
    let (crash, task_failure) = (world.rng.below(3), world.rng.below(8));
    world.faults = Faults { loss, repeat, delay_ms, crash, task_failure };
    let agreements_small = world.rng.chance(40);
    let lease = [(20_000, 20_000), (5_000, 2_000)][world.rng.below(2) as usize];
    let tasks_per_slot = 1 + world.rng.below(3) as u32;
    for name in &names {
        if agreements_small {
            let agreements = &mut world.node(&name.0).config.agreements;
            (agreements.waves_soon, agreements.waves_max) = (1, 4);
        }
        world.node(&name.0).config.agreements.tasks_per_slot = tasks_per_slot;
        // By the seed and not by the generator, so that seeds go on meaning what they meant.
        if seed % 4 == 3 {
            let agreements = &mut world.node(&name.0).config.agreements;
            agreements.price = 1.0 + f64::from(name.0.as_bytes()[0] - b'a');
            let (parts_max, price_max) = (Some(1 + (seed / 4 % 4) as u32), Some(2.0));
            agreements.default_policy = Policy { parts_max, price_max, ..Policy::default() };
        }
        // Short enough that leases are lost within a run.
        let timers = &mut world.node(&name.0).config.timers;
        (timers.lease_ttl_ms, timers.detach_grace_ms) = lease;
        world.crash(name);
        world.restart(name);
        if *name != d("a") && world.rng.chance(15) {
            let habit = [Habit::WrongHash, Habit::Idle, Habit::BlackHole, Habit::Accuser][world.rng.below(4) as usize];
            // By the seed, as below.
            world.node(&name.0).habit = if seed.is_multiple_of(7) { Habit::Fickle } else { habit };
        }
    }
    for (i, name) in names.iter().enumerate().take(1 + (seed % 2) as usize) {
        let parts = 1 + world.rng.below(30) as u32;
        match seed % 3 {
            0 => world.submit(&name.0, &format!("job{i}"), parts),
            of => world.expect_and_submit(&name.0, &format!("job{i}"), parts, [200, 10_000][of as usize - 1]),
        }
    }
    for _ in 0..world.rng.below(20) {
        let ms = world.rng.below(20_000);
        world.run_for(ms);
        let name = names[world.rng.below(names.len() as u64) as usize].clone();
        match world.rng.below(6) {
            0 | 1 => world.set_slots(&name.0, world.rng.0 as u32 % 4),
            2 => world.cut("a", &name.0),
            3 => world.cut.clear(),
            4 if world.nodes[&name].alive => world.kill(&name),
            _ => {}
        }
    }
    // From here on nothing goes wrong any more.
    world.faults = Faults { delay_ms: 50, ..Faults::default() };
    world.cut.clear();
    for name in &names {
        world.node(&name.0).habit = Habit::Honest;
        world.set_slots(&name.0, 2);
    }
    let quiet = world.run_until(4 * HOUR, World::is_quiet);
    assert!(quiet, "not everything has ended: {}", world.unfinished());
    for name in &names {
        world.check_replay(name);
    }
    let jobs = world.nodes.values().flat_map(|n| n.domain.book().jobs.values());
    let done = jobs.filter(|j| j.terms.parent.is_none() && j.end == Some(End::Done)).count() as u64;
    let s = &world.seen;
    [s.inputs, s.events, s.commits, s.lost, s.adopted, s.failed, s.sold, s.crashes, s.replays, done]
}
