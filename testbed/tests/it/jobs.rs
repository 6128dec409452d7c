//! The Shell room as its users meet it: jobs from clients that others wrote and from ours, what is said to bad jobs, and keys
//! that nobody must see.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use cluster_manager::view::{JobDoc, PartDoc};
use federation::xmpp::{AgentEvent, Element, IqFailure, MessageKind};
use serde_json::Value;
use storage::s3::{ObjectPath, PutOptions};
use testbed::prosody::go_sendxmpp;
use testbed::s3::{S3Server, S3ServerConfig};
use tokio::process::{Child, Command};

use super::person::{Person, json, log_in, query, server, submission, understood, wait};
use super::s3::place::Place;
use super::stage::{Order, PATIENCE, Stage, answer, film_bytes, holds, object, processes};

fn job(target: &str) -> String {
    Order::new("film.mp4", target).xml()
}

fn document(body: &str) -> String {
    format!(
        "<?xml version=\"1.0\"?>\n<!-- a job -->\n<job xmlns=\"urn:starling:job:1\" kind=\"transcode\">\n{body}\n</job>\n"
    )
}

/// Bad documents, with the code and the line that must be named.
fn bad_jobs() -> Vec<(&'static str, u64, String)> {
    let (source, target) = ("<source>s3://films/in.mp4</source>", "<target>s3://films/out/</target>");
    let rendition = "<rendition height=\"180\" codec=\"h264\"/>";
    let with = |rest: &str| document(&format!("{source}\n{target}\n{rest}"));
    vec![
        ("malformed", 8, with("<rendition height=\"180\" codec=\"h264\">\n")),
        ("unknown-element", 7, with(&format!("{rendition}\n<colour/>"))),
        ("wrong-namespace", 3, with(rendition).replace("job:1", "job:7")),
        ("doctype", 3, with(rendition).replacen("<job", "<!DOCTYPE job [<!ENTITY x \"y\">]>\n<job", 1)),
        ("too-large", 1, with(&format!("{rendition}<!-- {} -->", "x".repeat(100_000)))),
        ("missing-source", 3, document(&format!("{target}\n{rendition}"))),
        ("unknown-codec", 6, with("<rendition height=\"180\" codec=\"vp7\"/>")),
        ("bad-number", 6, with("<rendition height=\"-180\" codec=\"h264\"/>")),
        ("too-many-parts", 7, with(&format!("{rendition}\n<options parts=\"10000\"/>"))),
    ]
}

#[tokio::test]
async fn the_shell_room_answers_people_and_programs_and_refuses_bad_jobs() {
    let stage = Stage::of(2, 1, 2).await;
    let mut person = Person::come_in(&stage).await;
    bad_jobs_are_refused_with_code_line_and_hint(&stage, &mut person).await;
    credentials_are_refused_in_the_room(&mut person).await;
    let (_, jobs) = stage.ask(&["jobs"]).await;
    assert_eq!(jobs, serde_json::json!([]), "nothing was written down");
    questions_are_answered(&stage, &mut person).await;
    jobs_are_done_for_clients_of_others(&stage).await;
    stage.end().await;
}

async fn bad_jobs_are_refused_with_code_line_and_hint(stage: &Stage, person: &mut Person) {
    for (code, line, document) in bad_jobs() {
        let said = person.say(&document).await;
        assert!(said.starts_with(&format!("error {code} (line {line}): ")) && said.contains("\nhint: "), "{said}");
        let error = &person.request(submission(&document)).await["error"];
        assert_eq!((&error["code"], &error["line"]), (&code.into(), &line.into()), "{error}");
        assert!(!error["hint"].as_str().unwrap().is_empty());
        // As an element the document has passed a parser and the server, so lines are those of what came out.
        let Ok(payload) = document.split_once("-->").unwrap().1.parse::<Element>() else { continue };
        let error = &person.show(payload).await["error"];
        assert!(error["code"] == code && error["line"].is_u64() && error["hint"].is_string(), "{error}");
    }
    // Far beyond any size: our client does not even send it, and the server cuts off whoever does.
    let huge = document(&format!("<!-- {} -->", "x".repeat(10_000_000)));
    let sent = person.agent.iq_set(person.manager.clone().into(), submission(&huge), PATIENCE).await;
    assert!(matches!(sent, Err(IqFailure::TooLarge { .. })), "{sent:?}");
    let file = stage.file("huge.xml", &huge);
    let (code, answer) = stage.ask(&["submit", file.to_str().unwrap()]).await;
    assert!(code == 2 && answer["error"]["code"] == "too-large", "{answer}");
    let output = tokio::time::timeout(PATIENCE, post(stage, &file, "--text", "nothing").wait_with_output()).await;
    let complaint = String::from_utf8_lossy(&output.unwrap().unwrap().stderr).into_owned();
    assert!(complaint.contains("cut off by the server"), "{complaint}");
    assert!(person.say("jobs").await.contains("no jobs"));
}

async fn credentials_are_refused_in_the_room(person: &mut Person) {
    let document = job("never").replace("</source>", "<credentials access-key=\"k\" secret-key=\"s\"/></source>");
    let said = person.say(&document).await;
    assert!(said.starts_with("error credentials-in-room") && said.contains("hint: "), "{said}");
    let answer = person.show(submission(&document)).await;
    assert_eq!(answer["error"]["code"], "credentials-in-room");
}

async fn questions_are_answered(stage: &Stage, person: &mut Person) {
    let help = person.say("help").await;
    assert!(help.contains("status ID") && help.contains("<job"), "{help}");
    assert_eq!(person.show(query("help", "")).await, Value::String(help));
    let domains = person.say("domains").await;
    assert!(domains.contains("a.test (home)  ok") && domains.contains("b.test  ok"), "{domains}");
    for answer in [person.show(query("domains", "")).await, stage.ask(&["domains"]).await.1] {
        let names: Vec<_> =
            answer.as_array().unwrap().iter().map(|d| (d["name"].as_str(), d["health"].as_str())).collect();
        assert_eq!(names, [(Some("a.test"), Some("ok")), (Some("b.test"), Some("ok"))]);
    }
    for verb in ["status", "cancel"] {
        assert!(person.say(&format!("{verb} j-0")).await.starts_with("error no-such-job"));
        assert_eq!(person.show(query(verb, "j-0")).await["error"]["code"], "no-such-job");
    }
}

/// slixmpp posts a file to the room and hears what is said to it.
fn post(stage: &Stage, file: &Path, how: &str, until: &str) -> Child {
    let secret = stage.file("secret", &stage.domain(0).client.password);
    let assets = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(assets.join("../target/slixmpp/bin/python3"));
    command.arg(assets.join("assets/clients/post_job.py")).args(["--jid", &stage.domain(0).client.jid]);
    command.arg("--password-file").arg(secret).args(["--server", &server(stage, 0), "--ca"]);
    command.arg(&stage.domain(0).ca_file).args(["--room", &stage.domain(0).shell_room, "--job"]).arg(file);
    command.args([how, "--nick", &format!("slixmpp{how}"), "--wait", "100", "--until", until]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command.spawn().expect("slixmpp's environment: make setup")
}

async fn jobs_are_done_for_clients_of_others(stage: &Stage) {
    let manager = format!("{}/active", stage.domain(0).shell_room);
    // slixmpp, as a person's text and as an element of its own.
    let text = stage.file("text.xml", &job("text"));
    let payload = stage.file("payload.xml", &job("payload"));
    let by_slixmpp = [(&text, "--text"), (&payload, "--payload")].map(|(file, how)| post(stage, file, how, ": done"));
    // Our own, watching.
    let file = stage.file("cli.xml", &job("cli"));
    let by_us = stage.starling(&["submit", "--watch", file.to_str().unwrap()]).spawn().unwrap();
    for child in by_slixmpp {
        let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
        assert!(said.contains(&format!("{manager}\t")), "answered in the room: {said}");
        let (who, end) = said
            .lines()
            .find_map(|l| l.split_once('\t').filter(|(_, t)| t.ends_with(": done, 5 of 5 parts done")))
            .expect(&said);
        assert!(!who.starts_with(&stage.domain(0).shell_room), "in private: {end}");
        assert!(["SMIL http", "HLS http", "DASH http"].iter().all(|word| said.contains(word)), "{said}");
    }
    let (code, document) = answer(by_us).await;
    assert_eq!(code, 0, "{document:#}");
    stage.is_right(&understood(document)).await;
    // go-sendxmpp leaves as soon as it has spoken; another session of its owner hears the end.
    let (client, address) = (&stage.domain(0).client, server(stage, 0).parse().unwrap());
    let (owner, mut heard) = log_in(stage, 0, &client.jid, &client.password);
    wait(&mut heard, |event| matches!(event, AgentEvent::Online { .. }).then_some(())).await;
    let file = stage.file("go.xml", &job("go"));
    let mut send = go_sendxmpp(&client.jid, &client.password, address, &stage.domain(0).ca_file);
    let sent = send.args(["--alias", "go", "--chatroom", "--message"]).arg(&file).arg(&stage.domain(0).shell_room);
    let sent = tokio::time::timeout(PATIENCE, sent.output()).await.unwrap().unwrap();
    assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
    let (_, jobs) = stage.ask(&["jobs"]).await;
    let go =
        jobs.as_array().unwrap().iter().find(|j| j["target"] == "s3://films/go/").expect("go-sendxmpp's job").clone();
    let id = go["id"].as_str().unwrap();
    let (body, document) = wait(&mut heard, |event| match event {
        AgentEvent::Message { room: None, kind: MessageKind::Chat, body: Some(body), payloads, .. }
            if body.starts_with(id) =>
        {
            Some((body, json(&payloads)))
        }
        _ => None,
    })
    .await;
    assert!(body.contains(": done") && body.contains("HLS http"), "{body}");
    stage.is_right(&understood(document.unwrap())).await;
    owner.close().await;
    let (_, jobs) = stage.ask(&["jobs"]).await;
    assert_eq!(jobs.as_array().unwrap().iter().filter(|j| j["state"] == "done").count(), 4, "{jobs:#}");
}

#[tokio::test]
async fn a_whole_job_is_right_on_versitygw() {
    let Some(place) = Place::versitygw().await else { return };
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, place.config.secret_key.as_ref().unwrap().expose()).unwrap();
    let stage = Stage::start(|options| {
        options.domains.truncate(2);
        options.store.s3_endpoint.clone_from(&place.config.endpoint);
        options.store.s3_access_key.clone_from(&place.config.access_key);
        options.store.s3_secret_key_file = Some(secret.clone());
    })
    .await;
    stage.is_right(&stage.ended(&Order::new("film.mp4", "out")).await).await;
    stage.end().await;
}

#[tokio::test]
async fn a_jobs_own_keys_open_the_store_by_iq_and_stand_in_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let config = S3ServerConfig { root: dir.path().join("s3"), ..S3ServerConfig::default() };
    let (access_key, secret_key) = (config.access_key.clone(), config.secret_key.clone());
    let s3 = S3Server::start(config).await.unwrap();
    let wrong = dir.path().join("wrong");
    std::fs::write(&wrong, "these-are-not-the-keys").unwrap();
    let mut stage = Stage::start_with_keys(Some(s3.client()), |options| {
        options.domains.truncate(1);
        (options.hosts, options.slots) = (1, 2);
        options.store.s3_endpoint = Some(s3.endpoint());
        options.store.s3_access_key = Some(access_key.clone());
        options.store.s3_secret_key_file = Some(wrong.clone());
    })
    .await;

    // The domain itself is not let in.
    let failed = stage.ended(&Order::new("film.mp4", "without")).await;
    assert_eq!(failed.error.as_ref().unwrap().code, "source-forbidden", "{failed:?}");

    let mut person = Person::come_in(&stage).await;
    let keys = format!("<credentials access-key=\"{access_key}\" secret-key=\"{}\"/></source>", secret_key.expose());
    let document = job("own").replace("</source>", &keys);
    let taken = person.request(submission(&document)).await;
    let id = taken["id"].as_str().unwrap_or_else(|| panic!("{taken}")).to_owned();
    let told = wait(&mut person.events, |event| match event {
        AgentEvent::Message { room: None, body: Some(body), .. } if body.starts_with(&id) => Some(body),
        _ => None,
    });
    assert!(told.await.contains(": done"));
    stage.ends_right(&id).await;
    stage.crash_and_restart("a.test cm").await;
    stage.ends_right(&id).await; // the result is still to be had

    let state = stage.state();
    assert_eq!(holds(state, secret_key.expose()), Vec::<PathBuf>::new());
    assert_ne!(
        holds(&state.join("a.test/cm/state/journal"), "s3://films/own/"),
        Vec::<PathBuf>::new(),
        "it is looked for aright"
    );
    stage.end().await;
}

/// The client of any domain but the first was told `no-store`.
#[tokio::test]
async fn every_domain_is_home_to_its_own_clients_jobs_and_alone_has_the_key_to_their_place() {
    let stage = Stage::of(3, 1, 1).await;
    let theirs = stage.domain(2).s3.clone().unwrap();
    for n in 1..3 {
        let s3 = stage.domain(n).s3.clone().unwrap();
        let (film, store) = (ObjectPath::new(&s3.bucket, "film.mp4").unwrap(), s3.store().await.unwrap());
        store.put(&film, film_bytes().into(), PutOptions::default()).await.unwrap();
        let mut person = Person::come_in_at(&stage, n).await;
        let said = person.say(&job("out").replace("s3://films/", &format!("s3://{}/", s3.bucket))).await;
        let (id, rest) = said.split_once(' ').unwrap();
        assert!(rest.starts_with("is taken"), "{said}");
        let done = stage.world.client_of(n).unwrap().ended(id).await.unwrap();
        stage.is_right(&done).await;
        assert!(done.usage.len() > 1, "others worked at it: {:?}", done.usage);
        person.agent.close().await;
    }
    let bucket = stage.domain(1).s3.clone().unwrap().bucket;
    let own = stage.domain(1).s3.clone().unwrap().store().await.unwrap();
    let copy = own.sdk().copy_object().bucket(bucket).key("film.mp4").copy_source("films/film.mp4");
    assert!(copy.send().await.is_err());
    let film = ObjectPath::new(&theirs.bucket, "film.mp4").unwrap();
    for (store, place) in [(&own, &film), (&own, &object("film.mp4")), (&stage.store, &film)] {
        assert_eq!(store.get(place, 1).await.unwrap_err().code(), "forbidden");
        assert_eq!(store.put(place, "x".into(), PutOptions::default()).await.unwrap_err().code(), "forbidden");
        assert_eq!(store.list(place, 1).await.unwrap_err().code(), "forbidden");
    }
    for other in ["a.test", "b.test"] {
        assert_eq!(holds(&stage.state().join(other), &theirs.secret_key), Vec::<PathBuf>::new());
    }
    assert_ne!(
        holds(&stage.state().join("c.test"), &theirs.secret_key),
        Vec::<PathBuf>::new(),
        "it is looked for aright"
    );
    stage.end().await;
}

#[tokio::test]
async fn a_running_job_is_told_of_in_the_room_and_cancelled_by_its_owner_alone() {
    let stage = Stage::of(2, 1, 2).await;
    let mut person = Person::come_in(&stage).await;
    let said = person.say(&Order::slow("cancelled").xml()).await;
    let (id, rest) = said.split_once(' ').unwrap();
    assert!(id.starts_with("j-") && rest.starts_with("is taken"), "{said}");
    let works = |part: &PartDoc, domain: &str| part.state == "running" && part.domain.as_deref() == Some(domain);
    let at_work = |job: &JobDoc| ["a.test", "b.test"].iter().all(|d| job.parts.iter().any(|part| works(part, d)));
    stage.job_when(id, at_work).await;

    a_running_job_is_told_of(&mut person, id).await;
    nobody_else_cancels_it(&stage, id).await;
    // In the room, and to its owner in private with the document.
    person.agent.say(&person.room, &format!("cancel {id}")).await.unwrap();
    let (mut in_room, mut in_private) = (None, None);
    wait(&mut person.events, |event| {
        if let AgentEvent::Message { room, kind, body: Some(body), payloads, .. } = event
            && body.starts_with(&format!("{id}: cancelled"))
        {
            match (room, kind) {
                (Some(_), MessageKind::Groupchat) => in_room = Some(body),
                (None, MessageKind::Chat) => in_private = json(&payloads),
                other => panic!("{other:?}"),
            }
        }
        (in_room.is_some() && in_private.is_some()).then_some(())
    })
    .await;
    assert_eq!(understood(in_private.unwrap()).state, "cancelled");
    assert_eq!(understood(person.show(query("cancel", id)).await).state, "cancelled", "a second time changes nothing");
    assert!(person.say(&format!("status {id}")).await.starts_with(&format!("{id}: cancelled")));

    // Nothing of it goes on, here or abroad, and its target is free.
    let mark = stage.state().display().to_string();
    let idle = async || {
        let encodes = processes(&mark).iter().any(|(_, line)| line[0].ends_with("ffmpeg"));
        let free = stage.domains().await.iter().all(|domain| domain.slots_free == 2);
        (!encodes && free && stage.list("cancelled/").await.is_empty()).then_some(())
    };
    stage.wait("all domains to be idle", idle).await;
    let again = stage.submit(&Order::new("film.mp4", "cancelled")).await;
    http_knows_what_an_iq_has_told(&stage, &person, &again).await;
    stage.ends_right(&again).await;
    assert_eq!(stage.job(id).await.state, "cancelled");
    stage.end().await;
}

async fn a_running_job_is_told_of(person: &mut Person, id: &str) {
    let said = person.say(&format!("status {id}")).await;
    assert!(said.starts_with(&format!("{id}: running, ")) && said.contains(" of 5 parts done"), "{said}");
    let shown = understood(person.show(query("status", id)).await);
    assert_eq!((shown.id.as_str(), shown.state.as_str(), shown.parts.len()), (id, "running", 5));
    let said = person.say("jobs").await;
    assert_eq!(said, format!("{id}  running  s3://films/film.mp4 → s3://films/cancelled/"));
    let listed: Vec<JobDoc> = serde_json::from_value(person.show(query("jobs", "")).await).unwrap();
    assert_eq!(listed.iter().map(|job| (job.id.as_str(), job.state.as_str())).collect::<Vec<_>>(), [(id, "running")]);
    let said = person.say("domains").await;
    assert!(["a.test (home)  ok  ", "b.test  ok  "].iter().all(|line| said.contains(line)), "{said}");
    assert!(person.say("help").await.contains("cancel ID"));
}

async fn http_knows_what_an_iq_has_told(stage: &Stage, person: &Person, id: &str) {
    let percent = |job: &JobDoc| job.parts.iter().map(|part| part.percent).sum::<f32>();
    let known = |job: &JobDoc| (job.ended_at, job.parts.iter().filter(|p| p.state == "verified").count(), percent(job));
    let mut told = (None, 0, 0.0);
    while told.0.is_none() {
        told = known(&understood(person.request(query("status", id)).await));
        let shown = known(&stage.job(id).await);
        assert!(shown >= told, "{shown:?} after {told:?}");
    }
}

async fn nobody_else_cancels_it(stage: &Stage, id: &str) {
    let password = std::fs::read_to_string(stage.state().join("a.test/hm1/password")).unwrap();
    let mut other = Person::with_account(stage, 0, "other", "hm1@a.test", &password).await;
    let said = other.say(&format!("cancel {id}")).await;
    assert!(said.starts_with(&format!("error not-yours: {id} belongs to client@a.test")), "{said}");
    assert_eq!(other.show(query("cancel", id)).await["error"]["code"], "not-yours");
    assert_eq!(other.request(query("cancel", id)).await["error"]["code"], "not-yours");
    assert_eq!(stage.job(id).await.state, "running");
    other.agent.close().await;
}
