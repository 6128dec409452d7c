//! A job's end, and what is left of the job then, over a cluster manager that dies in between.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cluster_manager::coordinator::Coordinator;
use cluster_manager::film::{FilmJob, Prepared};
use cluster_manager::journal::Journal;
use cluster_manager::record::JobEvent;
use cluster_manager::rest::Snapshot;
use cluster_manager::view::ErrorDoc;
use federation::id::{JobId, Millis};
use federation::job::Job;
use federation::xmpp::{Agent, AgentEvent, XmppConfig};
use serde_json::{Value, json};
use storage::film::part::{PartSpec, Work};
use storage::s3::{ObjectPath, PutOptions, Store};
use testbed::ca::Ca;
use testbed::prosody::{Ports, Prosody, ProsodyConfig};
use testbed::s3::{S3Server, S3ServerConfig};
use tokio::sync::{mpsc, oneshot, watch};

use super::stage::film_bytes;

const PATIENCE: Duration = Duration::from_secs(60);
const PASSWORD: &str = "only here";

fn job(target: &str) -> String {
    format!(
        "<job xmlns='urn:starling:job:1' kind='transcode'><source>s3://films/none.mp4</source>\
         <target>s3://films/{target}/</target><rendition height='90' codec='h264' crf='23'/></job>"
    )
}

#[tokio::test]
async fn an_end_that_was_written_down_right_before_a_crash_is_told_and_its_target_given_back() {
    tokio::task::LocalSet::new().run_until(tokio::time::timeout(PATIENCE, ends_well())).await.expect("in time");
}

async fn ends_well() {
    let dir = tempfile::tempdir().unwrap();
    let ip = "127.0.0.1".parse().unwrap();
    let place = (ip, Ports::pick(ip).unwrap());
    let accounts = ["cm", "client"].map(|user| (user.into(), PASSWORD.into())).to_vec();
    let mut config = ProsodyConfig::new("a.test", dir.path().join("prosody"), place, accounts);
    config.federation_members = Some(Vec::new());
    let server = Prosody::start(config, &Ca::new("test CA").unwrap()).await.unwrap();

    // What a manager leaves that dies between writing down the end and telling it, and the claims of the targets.
    let state = dir.path().join("state");
    std::fs::create_dir_all(&state).unwrap();
    let owner = "client@a.test".to_owned();
    let accepted = |id: &str, target: &str| {
        let (id, at, owner) = (JobId(id.into()), Millis(1), owner.clone());
        JobEvent::Accepted { id, at, owner, xml: job(target), sealed: None }
    };
    let error = ErrorDoc { code: "source-missing".into(), message: "it is not there".into(), hint: None, line: None };
    let ended = |id: &str, error: Option<ErrorDoc>| {
        let (id, at) = (JobId(id.into()), Millis(2));
        JobEvent::Ended { id, at, cancelled: error.is_none(), error }
    };
    let left =
        [accepted("j-told", "out"), ended("j-told", Some(error)), accepted("j-late", "taken"), ended("j-late", None)];
    let mut journal = Journal::open(&state.join("journal")).unwrap();
    journal.append(&left.map(|event| json!({ "Job": event }))).unwrap();
    drop(journal);
    let s3 =
        S3Server::start(S3ServerConfig { root: dir.path().join("s3"), ..S3ServerConfig::default() }).await.unwrap();
    let store = Store::connect(&s3.client()).await.unwrap();
    let claim = |target: &str| ObjectPath::new("films", &format!("{target}/starling.json")).unwrap();
    for (target, holder) in [("out", "j-told"), ("taken", "j-next")] {
        let body = json!({ "job": holder }).to_string().into();
        store.put(&claim(target), body, PutOptions::default()).await.unwrap();
    }

    let mut account = XmppConfig::new("client@a.test", PASSWORD, server.c2s().to_string());
    account.ca_file = Some(server.ca_file());
    let (client, mut events) = Agent::start(&account).unwrap();
    while !matches!(events.recv().await.unwrap(), AgentEvent::Online { .. }) {}

    let config = json!({
        "domain": "a.test",
        "state_dir": state,
        "s3": {
            "endpoint": s3.endpoint(),
            "access_key": s3.client().access_key,
            "secret_key": s3.client().secret_key.unwrap().expose(),
        },
        "xmpp": { "jid": "cm@a.test", "password": PASSWORD, "address": server.c2s().to_string(), "ca_file": server.ca_file() },
        "rooms": {
            "cluster": "cluster@conference.a.test",
            "shell": "shell@conference.a.test",
            "federation": "federation@conference.a.test",
        },
    });
    for is_first in [true, false] {
        let (_asks, asks) = mpsc::channel(1);
        let (shown, mut snapshot) = watch::channel(Arc::new(Snapshot::default()));
        let config = serde_json::from_value(config.clone()).unwrap();
        let manager = Coordinator::start(config, String::new(), asks, shown).await.unwrap();
        let (stop, told) = oneshot::channel::<()>();
        let running = tokio::task::spawn_local(manager.run(async move { drop(told.await) }));
        if is_first {
            let body = loop {
                if let AgentEvent::Message { body: Some(body), .. } = events.recv().await.unwrap() {
                    break body;
                }
            };
            assert!(body.contains("j-told") && body.contains("source-missing"), "{body}");
        }
        // Then it leaves memory, and is still shown; also after the next start.
        let is_kept = |now: &Arc<Snapshot>| {
            let ended = |id| now.ended.as_ref().is_some_and(|ended| ended.get(id).is_some());
            now.ready && now.jobs.is_empty() && ended("j-told") && ended("j-late")
        };
        let document =
            snapshot.wait_for(is_kept).await.unwrap().ended.as_ref().unwrap().get("j-told").unwrap().document;
        assert_eq!((document.state.as_str(), document.error.unwrap().code.as_str()), ("failed", "source-missing"));
        assert_eq!(store.head(&claim("out")).await.unwrap_err().code(), "not-found", "given back");
        store.head(&claim("taken")).await.expect("another job's claim is left alone");
        drop(stop);
        running.await.unwrap().unwrap();
    }
    let journal = Journal::open(&state.join("journal")).unwrap();
    let entries: Vec<Value> = journal.replay().collect::<Result<_, _>>().unwrap();
    for (event, id) in [("told", "j-told"), ("released", "j-told"), ("released", "j-late")] {
        assert_eq!(entries.iter().filter(|entry| entry["Job"][event]["id"] == id).count(), 1, "{entries:?}");
    }
    client.close().await;
}

#[tokio::test]
async fn orders_after_a_restart_are_those_that_would_have_been_written_before_and_of_the_same_film() {
    let dir = tempfile::tempdir().unwrap();
    let s3 =
        S3Server::start(S3ServerConfig { root: dir.path().join("s3"), ..S3ServerConfig::default() }).await.unwrap();
    let store = Store::connect(&s3.client()).await.unwrap();
    let place = |key: &str| ObjectPath::new("films", key).unwrap();
    store.put(&place("none.mp4"), film_bytes().into(), PutOptions::default()).await.unwrap();
    let film = FilmJob::new("j-1", Job::parse(&job("out")).unwrap()).unwrap();
    let before = film.prepare(&store, 2.0).await.unwrap();
    let journaled = serde_json::to_string(&before).unwrap();
    let after = || serde_json::from_str::<Prepared>(&journaled).unwrap();
    let write =
        async |prepared: &Prepared, part| film.order(&store, prepared, &BTreeMap::new(), part, 1, PATIENCE).await;
    let read = async |part| {
        let order = store.get(&place(&format!("out/.starling/j-1/order-{part:05}-1.json")), 1 << 20).await.unwrap();
        let spec: PartSpec = serde_json::from_slice(&order).unwrap();
        let Work::Video(work) = spec.work else { panic!("{spec:?}") };
        (work.input, work.clip)
    };
    assert!(before.plan.parts.len() > 1);
    let restarted = after();
    for part in 0..before.plan.parts.len() as u32 {
        write(&before, part).await.unwrap();
        let order = read(part).await;
        assert!(!order.0.head.is_empty());
        write(&restarted, part).await.unwrap();
        assert_eq!(read(part).await, order);
    }
    let mut other = film_bytes();
    *other.last_mut().unwrap() ^= 1;
    store.put(&place("none.mp4"), other.into(), PutOptions::default()).await.unwrap();
    assert_eq!(write(&after(), 0).await.unwrap_err().code(), "changed");
}
