//! Who is obeyed: in the Shell room this domain's clients, in binding requests the occupants of the Federation room whom it
//! vouches for. All others get an error, and nothing of what they say is written down.

use federation::cluster::Status;
use federation::id::Millis;
use federation::message::{Ad, Body, Cancel, Cfp, Envelope, PartDone, Progress, Usage};
use federation::xmpp::{Agent, AgentEvent, Condition, Element, IqFailure};
use tokio::sync::mpsc;

use super::person::{Person, log_in, query, submission, wait};
use super::stage::{Order, PATIENCE, Stage, ad, federation_room, holds};

/// In everything that is refused here, and in nothing else.
const MARK: &str = "j-of-a-stranger";

/// Requests that a member of the Federation room would be answered.
fn all_bindings(from: &str) -> Vec<Element> {
    let (lease, secret, parts) = (MARK.into(), MARK.to_owned(), Vec::new());
    let cfp = Cfp {
        kind: "transcode".into(),
        deadline: None,
        budget_left: None,
        bid_by: Millis(u64::MAX),
        hold_ms: 60_000,
        depth_left: 1,
        parts: 1,
        bytes: 1,
        work_ms: 1,
    };
    let (outputs, usage) = (Vec::new(), Usage::default());
    let done = PartDone { lease, secret: secret.clone(), part: 0, attempt: 1, by: None, outputs, usage };
    let progress = Progress { lease: MARK.into(), secret: secret.clone(), parts: Vec::new() };
    let cancel = Cancel { lease: MARK.into(), secret, reason: "because".into(), parts };
    let bodies = [Body::Cfp(cfp), Body::PartDone(done), Body::Progress(progress), Body::Cancel(cancel)];
    let envelope = |(n, body): (usize, Body)| Envelope {
        id: format!("{MARK}-{n}").as_str().into(),
        job: MARK.into(),
        home: from.into(),
        epoch: 1,
        seq: n as u64 + 1,
        sent_at: Millis(1),
        expires_at: Millis(u64::MAX),
        path: vec![from.into()],
        body,
    };
    bodies.into_iter().enumerate().map(envelope).map(Element::from).collect()
}

/// Each is answered with the error `forbidden`.
async fn is_refused(agent: &Agent, person: &Person, requests: Vec<Element>) {
    for payload in requests {
        let answer = agent.iq_set(person.manager.clone().into(), payload.clone(), PATIENCE).await;
        let Err(IqFailure::Remote(error)) = answer else { panic!("{payload:?}: {answer:?}") };
        assert_eq!(error.defined_condition, Condition::Forbidden, "{payload:?}");
        assert!(!error.texts.is_empty(), "it says why");
    }
}

async fn joined(events: &mut mpsc::Receiver<AgentEvent>) {
    wait(events, |event| match event {
        AgentEvent::RoomJoined { .. } => Some(()),
        AgentEvent::RoomLost { why, .. } => panic!("{why}"),
        _ => None,
    })
    .await;
}

async fn online(events: &mut mpsc::Receiver<AgentEvent>) {
    wait(events, |event| matches!(event, AgentEvent::Online { .. }).then_some(())).await;
}

#[tokio::test]
async fn requests_of_outsiders_are_refused_and_not_written_down() {
    let stage = Stage::start(|options| {
        options.domains.truncate(2);
        options.unmanned = vec!["b.test".into()];
        options.hosts = 1;
    })
    .await;
    let mut person = Person::come_in(&stage).await;
    let before = stage.domains().await;
    a_stranger_gets_nothing(&stage, &person).await;
    // Nor may somebody of the own domain speak for it.
    is_refused(&person.agent, &person, all_bindings("a.test")).await;
    an_admitted_account_outside_the_room_is_not_heard(&stage, &person).await;
    an_occupant_without_affiliation_is_not_heard(&stage, &person).await;
    a_stranger_in_the_shell_room_is_not_obeyed(&stage, &mut person).await;
    assert_eq!(stage.domains().await, before);
    assert_eq!(stage.ask(&["jobs"]).await.1, serde_json::json!([]));

    let journal = stage.state().join("a.test/cm/state/journal");
    stage.done(&Order::new("film.mp4", "honest")).await;
    assert_ne!(holds(&journal, "s3://films/honest/"), Vec::<std::path::PathBuf>::new(), "it is looked for aright");
    assert_eq!(holds(&journal, MARK), Vec::<std::path::PathBuf>::new());
    stage.end().await;
}

async fn a_stranger_gets_nothing(stage: &Stage, person: &Person) {
    let client = &stage.domain(1).client;
    let (stranger, mut events) = log_in(stage, 1, &client.jid, &client.password);
    stranger.join(&person.room, "stranger", None).await.unwrap();
    let why = wait(&mut events, |event| match event {
        AgentEvent::RoomLost { why, .. } => Some(why),
        AgentEvent::RoomJoined { .. } => panic!("a stranger is in the room"),
        _ => None,
    });
    assert_eq!(why.await, "registration-required");
    let status = Status {
        task: format!("{MARK}/0/1"),
        state: "done".into(),
        bytes: 0,
        percent: 0.0,
        outputs: Vec::new(),
        usage: None,
        failure: None,
    };
    let questions = vec![
        query("jobs", ""),
        query("help", ""),
        query("cancel", MARK),
        submission(&Order::new(MARK, MARK).xml()),
        status.into(),
    ];
    is_refused(&stranger, person, questions).await;
    is_refused(&stranger, person, all_bindings("b.test")).await;
    stranger.close().await;
}

/// Its domain is a member of the federation, but nobody speaks for that now.
async fn an_admitted_account_outside_the_room_is_not_heard(stage: &Stage, person: &Person) {
    let (manager, mut events) = stage.manager("b.test");
    online(&mut events).await;
    is_refused(&manager, person, all_bindings("b.test")).await;
    manager.close().await;
}

/// As if the room's owner had forgotten to close it.
async fn an_occupant_without_affiliation_is_not_heard(stage: &Stage, person: &Person) {
    let room = federation_room();
    let (owner, mut events) = stage.manager("a.test");
    online(&mut events).await;
    owner.room_config(&room, &[("muc#roomconfig_membersonly", "0")]).await.unwrap();
    let client = &stage.domain(1).client;
    let (occupant, mut events) = log_in(stage, 1, &client.jid, &client.password);
    let ad = Ad { version: MARK.into(), ..ad("b.test") };
    occupant.join(&room, "b.test", Some(ad.into())).await.unwrap();
    joined(&mut events).await;
    is_refused(&occupant, person, all_bindings("b.test")).await;
    occupant.close().await;
    owner.room_config(&room, &[("muc#roomconfig_membersonly", "1")]).await.unwrap();
    owner.close().await;
}

/// Its membership of the Shell room was taken away while it was there: what it says is followed by nothing, neither words nor a job.
async fn a_stranger_in_the_shell_room_is_not_obeyed(stage: &Stage, person: &mut Person) {
    let (owner, mut events) = stage.manager("a.test");
    online(&mut events).await;
    let client = &stage.domain(1).client;
    let account = client.jid.parse().unwrap();
    owner.set_affiliation(&person.room, &account, "member").await.unwrap();
    let (stranger, mut events) = log_in(stage, 1, &client.jid, &client.password);
    stranger.join(&person.room, "stranger", None).await.unwrap();
    joined(&mut events).await;
    owner.set_affiliation(&person.room, &account, "none").await.unwrap();
    for words in [&Order::new(MARK, MARK).xml(), "jobs", &format!("cancel {MARK}")] {
        stranger.say(&person.room, words).await.unwrap();
    }
    stranger.groupchat(&person.room, query("jobs", "")).await.unwrap();
    stranger.groupchat(&person.room, submission(&Order::new(MARK, MARK).xml())).await.unwrap();
    // The room keeps the order: once the last of it is there, all of it has been passed over.
    wait(&mut person.events, |event| match event {
        AgentEvent::Message { from, payloads, body: None, .. }
            if from.resource().is_some_and(|nick| nick.as_str() == "stranger") =>
        {
            payloads.iter().any(|p| p.attr("verb") == Some("submit")).then_some(())
        }
        _ => None,
    })
    .await;
    let answer = person.say("help").await;
    assert!(answer.contains("status ID"), "{answer}");
    let active = person.room.with_resource_str("active").unwrap();
    let first = wait(&mut events, |event| match event {
        AgentEvent::Message { from, body, .. } if from == active.clone() => Some(body),
        _ => None,
    });
    assert_eq!(first.await, Some(answer), "the first that is answered is somebody else");
    stranger.close().await;
    owner.close().await;
}
