//! A job's end, and what is left of the job then, over a cluster manager that dies in between.

use std::sync::Arc;
use std::time::Duration;

use cluster_manager::coordinator::Coordinator;
use cluster_manager::journal::Journal;
use cluster_manager::record::JobEvent;
use cluster_manager::rest::Snapshot;
use cluster_manager::view::ErrorDoc;
use federation::id::{JobId, Millis};
use federation::xmpp::{Agent, AgentEvent, XmppConfig};
use serde_json::{Value, json};
use testbed::ca::Ca;
use testbed::prosody::{Ports, Prosody, ProsodyConfig};
use tokio::sync::{mpsc, oneshot, watch};

const PATIENCE: Duration = Duration::from_secs(60);
const PASSWORD: &str = "only here";
const JOB: &str = "<job xmlns='urn:starling:job:1' kind='transcode'><source>s3://films/none.mp4</source>\
                   <target>s3://films/out/</target><rendition height='90' codec='h264' crf='23'/></job>";

#[tokio::test]
async fn an_owner_hears_of_an_end_that_was_written_down_right_before_a_crash() {
    tokio::task::LocalSet::new().run_until(tokio::time::timeout(PATIENCE, hears_of_it())).await.expect("in time");
}

async fn hears_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let ip = "127.0.0.1".parse().unwrap();
    let place = (ip, Ports::pick(ip).unwrap());
    let accounts = ["cm", "client"].map(|user| (user.into(), PASSWORD.into())).to_vec();
    let mut config = ProsodyConfig::new("a.test", dir.path().join("prosody"), place, accounts);
    config.federation_members = Some(Vec::new());
    let server = Prosody::start(config, &Ca::new("test CA").unwrap()).await.unwrap();

    // What a manager leaves that dies between writing down the end and telling it.
    let (state, id) = (dir.path().join("state"), JobId("j-told".into()));
    std::fs::create_dir_all(&state).unwrap();
    let error = ErrorDoc { code: "source-missing".into(), message: "it is not there".into(), hint: None, line: None };
    let owner = "client@a.test".to_owned();
    let left = [
        JobEvent::Accepted { id: id.clone(), at: Millis(1), owner, xml: JOB.into(), sealed: None },
        JobEvent::Ended { id: id.clone(), at: Millis(2), cancelled: false, error: Some(error) },
    ];
    let mut journal = Journal::open(&state.join("journal")).unwrap();
    journal.append(&left.map(|event| json!({ "Job": event }))).unwrap();
    drop(journal);

    let mut account = XmppConfig::new("client@a.test", PASSWORD, server.c2s().to_string());
    account.ca_file = Some(server.ca_file());
    let (client, mut events) = Agent::start(&account).unwrap();
    while !matches!(events.recv().await.unwrap(), AgentEvent::Online { .. }) {}

    let config = json!({
        "domain": "a.test",
        "state_dir": state,
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
            now.ready && now.jobs.is_empty() && now.ended.as_ref().is_some_and(|ended| ended.get("j-told").is_some())
        };
        let document =
            snapshot.wait_for(is_kept).await.unwrap().ended.as_ref().unwrap().get("j-told").unwrap().document;
        assert_eq!((document.state.as_str(), document.error.unwrap().code.as_str()), ("failed", "source-missing"));
        drop(stop);
        running.await.unwrap().unwrap();
    }
    let journal = Journal::open(&state.join("journal")).unwrap();
    let entries: Vec<Value> = journal.replay().collect::<Result<_, _>>().unwrap();
    assert_eq!(entries.iter().filter(|entry| entry["Job"]["told"]["id"] == "j-told").count(), 1, "{entries:?}");
    client.close().await;
}
