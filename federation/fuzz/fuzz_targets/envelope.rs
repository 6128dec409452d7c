//! Any bytes as a stanza of another domain: an ad, or an envelope, which is sent as a request and given as the answer to each request
//! that a job of two domains takes.
#![no_main]

use std::collections::VecDeque;

use federation::agreement::Agreements;
use federation::cluster::Status;
use federation::domain::{Domain, DomainConfig, Input, Output};
use federation::id::{DomainId, Millis};
use federation::message::{Ad, Body, Envelope, PartCall, Usage};
use federation::timers::Timers;
use libfuzzer_sys::fuzz_target;
use xmpp_parsers::minidom::Element;

/// More than the job takes.
const STEPS_MAX: usize = 100;
/// When its tasks are done: leases are renewed before.
const DONE_AT: Millis = Millis(30_000);

fuzz_target!(|bytes: &[u8]| {
    let Ok(element) = xso::from_bytes::<Element>(bytes) else { return };
    if let Ok(ad) = Ad::try_from(element.clone()) {
        work(Some(ad), |_| false, None);
    }
    let Ok(envelope) = Envelope::try_from(element) else { return };
    let outputs = domain("a").handle(Millis(2), Input::Request("b".into(), envelope.clone()));
    assert!(!outputs.is_empty());
    let asked: [fn(&Body) -> bool; 6] = [
        |body| matches!(body, Body::Cfp(_)),
        |body| matches!(body, Body::Award(_)),
        |body| matches!(body, Body::Commit(_)),
        |body| matches!(body, Body::Renew(_)),
        |body| matches!(body, Body::Progress(_)),
        |body| matches!(body, Body::PartDone(_)),
    ];
    for asked in asked {
        work(None, asked, Some(&envelope));
    }
});

fn domain(me: &str) -> Domain {
    let (agreements, timers) = (Agreements::default(), Timers::default());
    let mut domain = Domain::new(DomainConfig { me: me.into(), epoch: 1, seed: [0; 32], agreements, timers });
    domain.handle(Millis(1), Input::Capacity { slots: 2, free: 2 });
    domain
}

/// `a` has a job, and `b` helps. Once one of them is `asked` such a request, `strange` is what the other says, as a request of its
/// own and as the answer.
fn work(ad: Option<Ad>, asked: fn(&Body) -> bool, mut strange: Option<&Envelope>) {
    let (mut a, mut b, mut now) = (domain("a"), domain("b"), Millis(2));
    let [home, other] = ["a", "b"].map(DomainId::from);
    let usual = || Ad {
        domain: other.clone(),
        epoch: 1,
        seq: 1,
        health: "ok".into(),
        slots: 2,
        slots_free: 2,
        price: 1.0,
        region: None,
        kinds: "transcode".into(),
        version: "0".into(),
    };
    a.handle(now, Input::Ad(ad.unwrap_or_else(usual)));
    let parts = (0..4).map(|part| PartCall { part, bytes: 100, work_ms: 100_000 }).collect();
    let submit = Input::Submit { job: "film".into(), kind: "transcode".into(), parts, deadline: None, budget: None };
    let (mut inputs, mut running) = (VecDeque::from([(home.clone(), submit)]), Vec::new());
    for _ in 0..STEPS_MAX {
        now = now.plus(1);
        let (who, input) = inputs.pop_front().unwrap_or_else(|| {
            let (task, due) = (if now > DONE_AT { running.pop() } else { None }, [a.deadline(), b.deadline()]);
            task.unwrap_or_else(|| {
                now = now.max(due.into_iter().flatten().min().unwrap_or(now));
                (if due[1].is_some_and(|due| due <= now) { other.clone() } else { home.clone() }, Input::Tick)
            })
        });
        let (me, peer) = if who == home { (&mut a, &other) } else { (&mut b, &home) };
        for output in me.handle(now, input) {
            match output {
                Output::Send { envelope, .. } if asked(&envelope.body) && strange.is_some() => {
                    let strange = strange.take().cloned().into_iter();
                    inputs.extend(strange.clone().map(|s| (who.clone(), Input::Request(peer.clone(), s))));
                    let answer = |s| Input::Answer { id: envelope.id.clone(), from: peer.clone(), result: Ok(s) };
                    inputs.extend(strange.map(|s| (who.clone(), answer(s))));
                }
                Output::Send { to, envelope, .. } => inputs.push_back((to, Input::Request(who.clone(), envelope))),
                Output::Reply { to, re, envelope } => {
                    inputs.push_back((to, Input::Answer { id: re, from: who.clone(), result: Ok(envelope) }));
                }
                Output::Run { lease, part, attempt, .. } => {
                    let task = |state: &str, usage| {
                        let (task, state, lease, outputs) = (String::new(), state.into(), lease.clone(), Vec::new());
                        let status = Status { task, state, bytes: 1, percent: 1.0, outputs, usage, failure: None };
                        (who.clone(), Input::Task { lease, part, attempt, status })
                    };
                    inputs.push_back(task("running", None));
                    running.push(task("done", Some(Usage::default())));
                }
                Output::Check { job, part, attempt, .. } => {
                    inputs.push_back((who.clone(), Input::Checked { job, part, attempt, result: Ok(()) }));
                }
                Output::AllParts { job } => inputs.push_back((who.clone(), Input::Finish { job })),
                _ => {}
            }
        }
    }
    assert!(strange.is_none(), "nobody is asked such a request");
}
