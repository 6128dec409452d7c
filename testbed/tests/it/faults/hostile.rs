//! Domains that were let into the federation and then behave badly, against a real home and an honest partner.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cluster_manager::view::JobDoc;
use federation::agreement::Agreements;
use federation::id::{DomainId, JobId, Millis};
use federation::message::{
    Accept, Ack, Award, Bid, Body, Envelope, Output, PartDone, PartProgress, PartRef, Progress, Refuse, Revoke, Usage,
};
use federation::timers::Timers;
use federation::xmpp::{Agent, AgentEvent, Element, FullJid, IqFailure, Jid, Responder};
use sha2::{Digest, Sha256};
use storage::film::part::{PartSpec, Work};
use storage::hex::hex;
use tokio::sync::mpsc;

use crate::stage::{Order, Stage, ad, federation_room};

const ANSWER: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);

fn now() -> Millis {
    Millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64)
}

/// A member of the Federation room that says what a test wants it to say.
struct Puppet {
    name: DomainId,
    agent: Agent,
    events: mpsc::Receiver<AgentEvent>,
    said: u64,
    /// Requests that never get an answer; dropping them would be one.
    unanswered: Vec<Responder>,
}

/// A lease that the home has committed.
struct Won {
    home: FullJid,
    job: JobId,
    award: Award,
}

impl Puppet {
    /// Logs in as the cluster manager of an unmanned domain, offers what nobody else has, and waits until the home sees it.
    async fn enter(stage: &Stage, name: &str) -> Self {
        let (agent, events) = stage.manager(name);
        agent.join(&federation_room(), name, Some(ad(name).into())).await.unwrap();
        let seen = async || stage.domains().await.iter().any(|d| d.name == name && d.slots == 100).then_some(());
        stage.wait(&format!("{name} in the room"), seen).await;
        Self { name: name.into(), agent, events, said: 0, unanswered: Vec::new() }
    }

    async fn asked(&mut self) -> (FullJid, Envelope, Responder) {
        loop {
            let event = self.events.recv().await.expect("a living agent");
            let AgentEvent::Request { from, payload, reply, .. } = event else { continue };
            if let (Ok(from), Ok(envelope)) = (from.try_into_full(), Envelope::try_from(payload)) {
                return (from, envelope, reply);
            }
        }
    }

    fn envelope(&mut self, job: &JobId, body: Body) -> Envelope {
        self.said += 1;
        let home = DomainId::from("a.test");
        Envelope {
            id: format!("{}-{}", self.name, self.said).as_str().into(),
            job: job.clone(),
            home: home.clone(),
            epoch: 1,
            seq: self.said,
            sent_at: now(),
            expires_at: now().plus(60_000),
            path: vec![home, self.name.clone()],
            body,
        }
    }

    fn answer(&mut self, to: &Envelope, reply: Responder, body: Body) {
        let envelope = self.envelope(&to.job, body);
        reply.result(Some(envelope.into()));
    }

    async fn say(&mut self, to: &FullJid, job: &JobId, body: Body) -> Body {
        let envelope = self.envelope(job, body);
        let answer = self.agent.iq_set(to.clone().into(), Element::from(envelope), ANSWER).await.unwrap();
        Envelope::try_from(answer.unwrap()).unwrap().body
    }

    /// The best bid ever seen, for at most so many parts, until the home has committed a lease.
    async fn win(&mut self, parts_max: u32) -> Won {
        let mut awards: Vec<Award> = Vec::new();
        loop {
            let (home, request, reply) = self.asked().await;
            let body = match &request.body {
                Body::Cfp(cfp) => Body::Bid(Bid {
                    bid: format!("bid-{}", self.said).as_str().into(),
                    parts_max: parts_max.min(cfp.parts),
                    slots: 100,
                    price: 0.0,
                    start_p50_ms: 0,
                    finish_p50_ms: 1,
                    finish_p90_ms: 1,
                    hold_until: now().plus(cfp.hold_ms),
                }),
                Body::Award(award) => {
                    awards.push(award.clone());
                    Body::Accept(Accept { lease: award.lease.clone(), contract: contract(award) })
                }
                Body::Commit(commit) => {
                    let award = awards.into_iter().find(|award| award.lease == commit.lease).unwrap();
                    self.answer(&request, reply, Body::Ack(Ack {}));
                    return Won { home, job: request.job, award };
                }
                _ => Body::Ack(Ack {}),
            };
            self.answer(&request, reply, body);
        }
    }

    /// Polite and useless from here on.
    async fn idle(mut self) {
        loop {
            let (_, request, reply) = self.asked().await;
            let body = match request.body {
                Body::Cfp(_) => Body::Refuse(Refuse { reason: "busy".into(), retry_after_ms: None }),
                _ => Body::Ack(Ack {}),
            };
            self.answer(&request, reply, body);
        }
    }

    async fn never_answer(mut self) {
        loop {
            let (_, _, reply) = self.asked().await;
            self.unanswered.push(reply);
        }
    }
}

/// The hash of what was agreed, as `docs/protocol.md` has it.
fn contract(award: &Award) -> String {
    let mut hash = Sha256::new();
    for field in [&award.bid.0, &award.lease.0, &award.secret] {
        hash.update((field.len() as u64).to_be_bytes());
        hash.update(field.as_bytes());
    }
    hash.update(award.ttl_ms.to_be_bytes());
    hash.update(award.renew_ms.to_be_bytes());
    hash.update(award.price_cap.to_bits().to_be_bytes());
    for part in &award.parts {
        hash.update(part.part.to_be_bytes());
        hash.update(part.attempt.to_be_bytes());
    }
    hex(&hash.finalize())
}

#[tokio::test]
async fn hostile_domains_do_not_keep_a_job_from_ending_right_and_are_marked() {
    let names = ["a.test", "b.test", "silent.test", "vanisher.test", "liar.test", "thief.test", "flooder.test"];
    let stage = Stage::start(|options| {
        options.domains = names.map(str::to_owned).to_vec();
        options.unmanned = names[2..].iter().map(|name| (*name).to_owned()).collect();
        options.hosts = 1;
        options.timers =
            Timers { lease_ttl_ms: 4_000, detach_grace_ms: 2_000, bid_window_ms: 1_000, ..Timers::default() };
        let strict = Agreements { requests_burst: 200, requests_per_second: 50, ..Agreements::default() };
        options.agreements.insert("a.test".into(), strict);
    })
    .await;
    let silent = tokio::spawn(Puppet::enter(&stage, "silent.test").await.never_answer());
    whoever_takes_parts_and_vanishes_loses_them(&stage).await;
    whoever_never_answers_is_not_waited_for(&stage).await;
    whoever_sends_another_object_than_it_says_is_found_out(&stage).await;
    whoever_speaks_for_anothers_lease_is_not_heard(&stage).await;
    whoever_floods_is_cut_off(&stage).await;
    silent.abort();
    stage.end().await;
}

/// The film is right, and this domain has no share in it.
async fn ended_without(stage: &Stage, id: &str, culprit: &str) -> JobDoc {
    let job = stage.end_of(id).await;
    stage.is_right(&job).await;
    let involved: BTreeSet<_> = job.parts.iter().flat_map(|part| [part.domain.clone(), part.by.clone()]).collect();
    assert!(!involved.contains(&Some(culprit.to_owned())), "{:?}", job.parts);
    assert!(job.usage.iter().all(|used| used.domain != culprit), "{:?}", job.usage);
    job
}

async fn whoever_takes_parts_and_vanishes_loses_them(stage: &Stage) {
    let mut puppet = Puppet::enter(stage, "vanisher.test").await;
    let id = stage.submit(&Order::new("film.mp4", "vanished")).await;
    let won = puppet.win(u32::MAX).await;
    assert_eq!(won.award.parts.len(), 4, "it has got everything");
    puppet.agent.close().await;
    let job = ended_without(stage, &id, "vanisher.test").await;
    assert!(job.parts.iter().filter(|part| part.kind == "video").all(|part| part.attempt == 2), "{:?}", job.parts);
    stage.marked("vanisher.test", "suspect").await;
}

/// It has been in the room since the first job, and three calls have gone by.
async fn whoever_never_answers_is_not_waited_for(stage: &Stage) {
    stage.marked("silent.test", "suspect").await;
    let job = stage.done(&Order::new("film.mp4", "unanswered")).await;
    stage.is_right(&job).await;
    assert!(job.offers.iter().all(|offer| offer.domain != "silent.test"), "{:?}", job.offers);
}

async fn whoever_sends_another_object_than_it_says_is_found_out(stage: &Stage) {
    let mut puppet = Puppet::enter(stage, "liar.test").await;
    let id = stage.submit(&Order::new("film.mp4", "lied")).await;
    let Won { home, job, award } = puppet.win(u32::MAX).await;
    let http = storage::fetch::http().no_proxy().build().unwrap();
    for part in &award.parts {
        // Home writes it after the word to start.
        let order: PartSpec = loop {
            let answer = http.get(&part.url).send().await.unwrap();
            if answer.status() != reqwest::StatusCode::NOT_FOUND {
                break answer.json().await.unwrap();
            }
            tokio::time::sleep(LOOK).await;
        };
        let Work::Video(work) = order.work else { panic!("{order:?}") };
        let garbage = vec![0; 1000];
        let (film, sound) = (&work.renditions[0], work.audio.as_ref().unwrap());
        let (right, wrong) = (hex(&Sha256::digest(&garbage)), hex(&Sha256::digest(b"something else")));
        let output = |key: &str, sha256: &str| Output {
            key: key.to_owned(),
            size: 1000,
            sha256: sha256.to_owned(),
            fragments: None,
        };
        // A hash of something else for the first, and for the sound of the second; for the others the right hash of what is no film.
        let outputs = match part.part {
            0 => vec![output(&sound.key, &right), output(&film.key, &wrong)],
            1 => vec![output(&sound.key, &wrong), output(&film.key, &right)],
            _ => vec![output(&sound.key, &right), output(&film.key, &right)],
        };
        for url in [&sound.put, &film.put] {
            let put = || http.put(url).header("if-none-match", "*").body(garbage.clone());
            put().send().await.unwrap().error_for_status().unwrap();
            assert_eq!(put().send().await.unwrap().status(), 412, "an object is written once");
        }
        let (lease, secret) = (award.lease.clone(), award.secret.clone());
        let (n, attempt, usage) = (part.part, part.attempt, Usage::default());
        let done = PartDone { lease, secret, part: n, attempt, by: None, outputs, usage };
        assert_eq!(puppet.say(&home, &job, Body::PartDone(done)).await, Body::Ack(Ack {}));
    }
    let idle = tokio::spawn(puppet.idle());
    stage.marked("liar.test", "dishonest").await;
    let job = ended_without(stage, &id, "liar.test").await;
    idle.abort();
    let left = stage.list("lied/").await;
    let media = left.iter().filter(|(key, _)| key.ends_with(".mp4")).count();
    assert_eq!(media, job.parts.len(), "nothing is left of the attempts that lost: {left:?}");
}

async fn whoever_speaks_for_anothers_lease_is_not_heard(stage: &Stage) {
    let mut puppet = Puppet::enter(stage, "thief.test").await;
    let id = stage.submit(&Order::slow("stolen")).await;
    let Won { home, job, award } = puppet.win(1).await;
    let parts = vec![PartRef { part: award.parts[0].part, attempt: award.parts[0].attempt }];
    let (lease, secret) = (award.lease.clone(), award.secret.clone());
    let revoke = Revoke { lease, secret: secret.clone(), reason: "second thoughts".into(), parts };
    assert_eq!(puppet.say(&home, &job, Body::Revoke(revoke)).await, Body::Ack(Ack {}));
    stage.job_when(&id, |job| job.parts.iter().any(|part| part.state == "running")).await;
    // Names of leases can be guessed; the neighbours of its own are those of the others.
    let (stem, number) = award.lease.0.rsplit_once('-').unwrap();
    let own: u64 = number.parse().unwrap();
    for lease in (own.saturating_sub(8)..own + 12).filter(|n| *n != own).map(|n| format!("{stem}-{n}")) {
        let parts = (0..5).map(|part| PartProgress {
            part,
            attempt: 1,
            state: "running".into(),
            bytes: 1 << 40,
            percent: 99.0,
            by: None,
            outputs: Vec::new(),
        });
        let progress = Progress { lease: lease.as_str().into(), secret: secret.clone(), parts: parts.collect() };
        let answer = puppet.say(&home, &job, Body::Progress(progress)).await;
        assert!(matches!(answer, Body::Stale(_)), "{answer:?}");
        let (secret, usage) = (secret.clone(), Usage::default());
        let lease = lease.as_str().into();
        let done = PartDone { lease, secret, part: 1, attempt: 1, by: None, outputs: Vec::new(), usage };
        let answer = puppet.say(&home, &job, Body::PartDone(done)).await;
        assert!(matches!(answer, Body::Stale(_)), "{answer:?}");
    }
    let idle = tokio::spawn(puppet.idle());
    stage.marked("thief.test", "dishonest").await;
    assert!(stage.job(&id).await.parts.iter().all(|part| part.bytes < 1 << 30), "nothing of what it said is shown");
    ended_without(stage, &id, "thief.test").await;
    idle.abort();
}

async fn whoever_floods_is_cut_off(stage: &Stage) {
    let mut puppet = Puppet::enter(stage, "flooder.test").await;
    let id = stage.submit(&Order::slow("flooded")).await;
    let (home, call, reply) = puppet.asked().await;
    puppet.answer(&call, reply, Body::Refuse(Refuse { reason: "busy".into(), retry_after_ms: None }));
    let mut flood = tokio::task::JoinSet::new();
    for _ in 0..1_000 {
        let progress = Progress { lease: "no-such-lease".into(), secret: "none".into(), parts: Vec::new() };
        let envelope = puppet.envelope(&call.job, Body::Progress(progress));
        let (agent, to) = (puppet.agent.clone(), home.clone());
        // Nobody waits for the answers.
        flood.spawn(async move { agent.iq_set(to.into(), envelope.into(), ANSWER).await.is_ok() });
    }
    let progress = Progress { lease: "no-such-lease".into(), secret: "none".into(), parts: Vec::new() };
    let again: (Jid, Element) = (home.into(), puppet.envelope(&call.job, Body::Progress(progress)).into());
    let (agent, idle) = (puppet.agent.clone(), tokio::spawn(puppet.idle()));
    stage.marked("flooder.test", "flooding").await;
    let unread = agent.iq_set(again.0, again.1, ANSWER).await;
    assert!(matches!(unread, Err(IqFailure::Remote(_))), "nothing more of it is read: {unread:?}");
    ended_without(stage, &id, "flooder.test").await;
    flood.abort_all();
    idle.abort();
}
