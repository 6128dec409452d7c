//! One thing goes wrong at a time.

mod jobs;
mod negotiation;
mod outages;
mod trust;

use federation::event::{End, Event, Mark};
use federation::id::{MessageId, Millis};
use federation::message::{Body, Cfp, Envelope};

use crate::world::{World, d, j};

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

fn call(now: Millis, parts: u32) -> Body {
    let (deadline, budget_left) = (None, None);
    let (kind, bid_by) = ("transcode".into(), now.plus(1_500));
    let (bytes, work_ms) = (u64::from(parts), 1_000 * u64::from(parts));
    Body::Cfp(Cfp { kind, deadline, budget_left, bid_by, hold_ms: 30_000, depth_left: 0, parts, bytes, work_ms })
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
