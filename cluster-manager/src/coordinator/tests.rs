//! A coordinator that starts on what another has left in its journal; no server answers it.

use federation::event::{End, Terms};
use federation::message::{PartCall, Usage};

use super::*;
use crate::film::tests::{XML, prepared, store};
use crate::record;
use crate::view::JobDoc;

const CONFIG: &str = r#"
domain = "a.test"
xmpp = { jid = "cm@a.test", password = "secret", address = "127.0.0.1:9" }
rooms = { cluster = "cluster@rooms.a.test", shell = "shell@rooms.a.test", federation = "federation@rooms.a.test" }
"#;

fn id() -> JobId {
    "j-1".into()
}

/// A job of two parts at work.
fn accepted() -> Vec<Entry> {
    let (at, owner, xml) = (Millis(1), "me@a.test".to_owned(), XML.to_owned());
    let (home, name, kind, path) = ("a.test".into(), id(), "transcode".to_owned(), vec!["a.test".into()]);
    let terms =
        Terms { home, name, parent: None, kind, deadline: None, budget: None, path, depth_left: 0, orders: Vec::new() };
    let parts = (0..2).map(|part| PartCall { part, bytes: 1, work_ms: 1 }).collect();
    vec![
        Entry::Job(JobEvent::Accepted { id: id(), at, owner, xml, sealed: None }),
        Entry::Job(JobEvent::Prepared { id: id(), at, prepared: Box::new(prepared(2)) }),
        Entry::Domain(Event::Submitted { at, job: id(), terms, parts }),
    ]
}

/// Killed after these entries, and started again.
async fn started(entries: &[Entry]) -> (Coordinator, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(&dir.path().join("journal")).unwrap();
    journal.append(entries).unwrap();
    drop(journal);
    let config: Config = toml::from_str(&format!("state_dir = {:?}\n{CONFIG}", dir.path())).unwrap();
    let ((_, asks), (shown, _)) = (mpsc::channel(1), watch::channel(Arc::default()));
    let mut coordinator = Coordinator::start(config, "http://here".into(), asks, shown).await.unwrap();
    coordinator.step(Input::Restarted).unwrap();
    coordinator.resume_jobs().await.unwrap();
    (coordinator, dir)
}

#[tokio::test]
async fn a_job_whose_record_or_negotiation_alone_has_ended_ends_at_the_next_start() {
    let failed = || End::Failed { code: "too-dear".into(), message: "nobody".into() };
    let ends = [
        (End::Done, "done"),
        (failed(), "failed"),
        (End::Cancelled { reason: "cancelled by its owner".into() }, "cancelled"),
    ];
    for (end, state) in ends {
        let negotiation = Entry::Domain(Event::Closed { at: Millis(2), job: id(), end: end.clone() });
        for half in [negotiation, Entry::Job(record::ended(&id(), Millis(2), &end))] {
            let entries: Vec<_> = accepted().into_iter().chain([half]).collect();
            let (coordinator, _dir) = started(&entries).await;
            let JobDoc { state: shown, error, .. } = coordinator.document(&id()).unwrap();
            assert_eq!((shown.as_str(), error.map(|e| e.code)), (state, (end == failed()).then(|| "too-dear".into())));
            assert_eq!(coordinator.domain.book().jobs[&id()].end, Some(end.clone()));
        }
    }
}

#[tokio::test]
async fn an_ill_store_ends_no_job_and_is_asked_again() {
    let verified = Verified { objects: Vec::new(), sound: None };
    let (at, domain, by) = (Millis(2), DomainId::from("b.test"), DomainId::from("b.test"));
    let usage = Usage::default();
    let half = Entry::Job(JobEvent::Verified { id: id(), at, part: 0, domain, by, usage, verified });
    let (mut coordinator, _dir) = started(&accepted().into_iter().chain([half]).collect::<Vec<_>>()).await;
    coordinator.store = Some(store(&[], usize::MAX).await);
    let ill = |code: &str| FilmFailure { retryable: true, ..FilmFailure::at_work(code, "ill") };
    coordinator.published(id(), true, Err(ill("throttled"))).unwrap();
    assert!(coordinator.publishing.contains_key(&id()));
    coordinator.part_checked(id(), 1, 1, Vec::new(), Err(CheckError::Unread(ill("throttled")))).unwrap();
    coordinator.on_done(Done::Claimed { job: id(), result: Err(ill("throttled")) }).unwrap();
    assert_eq!(coordinator.records[&id()].ended, None);
    let (mut checked, mut published, mut claimed) = (false, false, false);
    while !(checked && published && claimed) {
        match coordinator.done.1.recv().await.unwrap() {
            Done::Checked { part: 1, .. } => checked = true,
            Done::Published { .. } => published = true,
            Done::Claimed { .. } => claimed = true,
            _ => {}
        }
    }
    let refused = FilmFailure::at_work("target-forbidden", "no");
    coordinator.part_checked(id(), 1, 1, Vec::new(), Err(CheckError::Unread(refused))).unwrap();
    assert_eq!(coordinator.document(&id()).unwrap().error.unwrap().code, "target-forbidden");
    assert!(coordinator.domain.book().marks.is_empty());
}
