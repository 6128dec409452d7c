//! The whole system as its users meet it: jobs from a Shell room, what is said to bad ones and to strangers, and what
//! becomes of a job when parts of the system are killed under it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use federation::cluster::Status;
use federation::xmpp::{Agent, AgentEvent, BareJid, Condition, Element, FullJid, IqFailure, MessageKind, XmppConfig};
use serde_json::Value;
use storage::s3::{ObjectPath, PutOptions, S3Config, Secret, Store};
use testbed::film::{self, Expected, Film};
use testbed::prosody::go_sendxmpp;
use testbed::s3::{S3Server, S3ServerConfig};
use testbed::world::{Board, DomainAccess, World, WorldOptions};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

/// On a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(20);
const SHELL: &str = "urn:starling:shell:1";

/// A world with a film in its store.
struct Stage {
    world: World,
    film: Film,
    _dir: tempfile::TempDir,
}

impl Stage {
    async fn set(domains: &[&str], hosts: u32, slots: u32) -> Self {
        Self::set_with(|options| {
            options.domains = domains.iter().map(ToString::to_string).collect();
            (options.hosts, options.slots) = (hosts, slots);
        })
        .await
    }

    async fn set_with(change: impl FnOnce(&mut WorldOptions)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut options = WorldOptions::new(dir.path().join("world"));
        change(&mut options);
        let world = World::start(&options, &mut Board::new()).await.unwrap();
        Self { world, film: Film { seconds: 8, height: 180, ..Film::default() }, _dir: dir }
    }

    /// Makes the film and puts it where the jobs look for it.
    async fn put_film(&self) {
        let s3 = &self.world.document.s3;
        self.put_film_with(&s3.access_key, &s3.secret_key).await;
    }

    async fn put_film_with(&self, access_key: &str, secret_key: &str) {
        let (spec, path) = (self.film.clone(), self.world.state().join("film.mp4"));
        let file = path.clone();
        tokio::task::spawn_blocking(move || film::make(&spec, &file)).await.unwrap().unwrap();
        let s3 = &self.world.document.s3;
        let config = S3Config {
            endpoint: Some(s3.endpoint.clone()),
            region: s3.region.clone(),
            access_key: Some(access_key.to_owned()),
            secret_key: Some(Secret::new(secret_key.to_owned())),
            ..S3Config::default()
        };
        let store = Store::connect(&config).await.unwrap();
        let object = ObjectPath::new(&s3.bucket, "film.mp4").unwrap();
        store.put(&object, std::fs::read(path).unwrap().into(), PutOptions::default()).await.unwrap();
    }

    fn domain(&self, n: usize) -> &DomainAccess {
        &self.world.document.domains[n]
    }

    fn room(&self) -> BareJid {
        self.domain(0).shell_room.parse().unwrap()
    }

    fn server(&self, n: usize) -> String {
        format!("{}:{}", self.domain(n).xmpp_host, self.domain(n).xmpp_port)
    }

    /// A file below the state directory, for other programs to read.
    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.world.state().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn starling(&self, arguments: &[&str]) -> Command {
        let mut starling = Command::new(testbed::process::workspace_binary("starling").unwrap());
        starling.arg("--state").arg(self.world.state()).arg("--json").args(arguments);
        starling.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        starling
    }

    /// What the command line prints, and whether it was content.
    async fn ask(&self, arguments: &[&str]) -> (bool, Value) {
        answer(self.starling(arguments).spawn().unwrap()).await
    }

    async fn submit(&self, name: &str, preset: &str) -> String {
        let file = self.file(&format!("{name}.xml"), &job(name, preset));
        let (taken, document) = self.ask(&["submit", file.to_str().unwrap()]).await;
        assert!(taken, "{document}");
        document["id"].as_str().unwrap().to_owned()
    }

    async fn get(&self, domain: usize, path: &str) -> Option<Value> {
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build().unwrap();
        http.get(format!("{}{path}", self.domain(domain).console_url)).send().await.ok()?.json().await.ok()
    }

    /// The job's document once it is as wanted; it must not end otherwise before.
    async fn job_when(&self, id: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let look = async {
            loop {
                if let Some(job) = self.get(0, &format!("/api/jobs/{id}")).await {
                    if wanted(&job) {
                        return job;
                    }
                    let ended = ["done", "failed", "cancelled"].iter().any(|state| job["state"] == *state);
                    assert!(!ended, "it ended otherwise: {job:#}");
                    last = job;
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        let found = tokio::time::timeout(PATIENCE, look).await;
        found.unwrap_or_else(|_| panic!("the job does not come to be as wanted: {last:#}"))
    }

    /// Waits for the job's end and decodes what it made.
    async fn ends_right(&self, id: &str) -> Value {
        let job = self.job_when(id, |job| job["state"] == "done").await;
        self.is_right(&job).await;
        job
    }

    async fn is_right(&self, job: &Value) {
        let expected = Expected { frames: self.film.frames(), rate: self.film.rate };
        let report = film::verify_any(job["results"]["hls"].as_str().unwrap(), expected).await.unwrap();
        assert_eq!(report.problems(expected), Vec::<String>::new(), "{job:#}");
    }

    async fn crash_and_restart(&mut self, name: &str) {
        let recipe = self.world.crash(name).await.unwrap();
        self.world.restart(recipe).await.unwrap();
    }

    /// Every cluster manager sees every domain in health and with all its slots.
    async fn is_whole(&self, slots: u64) {
        let domains = self.world.document.domains.len();
        let look = async {
            let mut n = 0;
            while n < domains {
                let seen = self.get(n, "/api/domains").await.unwrap_or_default();
                let fine = |d: &&Value| d["health"] == "ok" && d["slots"] == slots;
                match seen.as_array().is_some_and(|all| all.iter().filter(fine).count() == domains) {
                    true => n += 1,
                    false => tokio::time::sleep(LOOK).await,
                }
            }
        };
        tokio::time::timeout(PATIENCE, look).await.expect("all domains see each other");
    }
}

async fn answer(child: Child) -> (bool, Value) {
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("an end").unwrap();
    let (said, complaint) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let document = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}\n{complaint}"));
    (output.status.success(), document)
}

/// `name` is also where the result goes.
fn job(name: &str, preset: &str) -> String {
    document(&format!(
        "<source>s3://films/film.mp4</source>\n<target>s3://films/{name}/</target>\n\
         <rendition height=\"180\" codec=\"h264\" preset=\"{preset}\"/>\n<options chunk-seconds=\"2\"/>"
    ))
}

fn document(body: &str) -> String {
    format!(
        "<?xml version=\"1.0\"?>\n<!-- a job -->\n<job xmlns=\"urn:starling:job:1\" kind=\"transcode\">\n{body}\n</job>\n"
    )
}

/// Somebody in the first domain's Shell room, with our own library.
struct Person {
    agent: Agent,
    events: mpsc::Receiver<AgentEvent>,
    room: BareJid,
    /// The active cluster manager.
    manager: FullJid,
}

impl Person {
    async fn come_in(stage: &Stage) -> Self {
        let client = &stage.domain(0).client;
        let (agent, mut events) = log_in(stage, 0, &client.jid, &client.password);
        let room = stage.room();
        agent.join(&room, "person", None).await.unwrap();
        let manager = wait(&mut events, |event| match event {
            AgentEvent::Occupant { nick, real, .. } if nick == "active" => real,
            _ => None,
        });
        let manager = manager.await;
        wait(&mut events, |event| matches!(event, AgentEvent::RoomJoined { .. }).then_some(())).await;
        Self { agent, events, room, manager }
    }

    /// What is answered in the room to words.
    async fn say(&mut self, text: &str) -> String {
        self.agent.say(&self.room, text).await.unwrap();
        let from = self.room.with_resource_str("active").unwrap();
        wait(&mut self.events, |event| match event {
            AgentEvent::Message { from: who, kind: MessageKind::Groupchat, body, .. } if who == from.clone() => body,
            _ => None,
        })
        .await
    }

    /// What is answered in the room to a payload.
    async fn show(&mut self, payload: Element) -> Value {
        self.agent.groupchat(&self.room, payload).await.unwrap();
        let from = self.room.with_resource_str("active").unwrap();
        wait(&mut self.events, |event| match event {
            AgentEvent::Message { from: who, kind: MessageKind::Groupchat, payloads, body: None, .. }
                if who == from.clone() =>
            {
                json(&payloads)
            }
            _ => None,
        })
        .await
    }

    /// What is answered to a direct request.
    async fn request(&self, payload: Element) -> Value {
        let answer = self.agent.iq_set(self.manager.clone().into(), payload, PATIENCE).await.unwrap();
        json(&Vec::from_iter(answer)).unwrap()
    }
}

fn json(payloads: &[Element]) -> Option<Value> {
    serde_json::from_str(&payloads.iter().find(|p| p.name() == "json")?.text()).ok()
}

fn log_in(stage: &Stage, domain: usize, jid: &str, password: &str) -> (Agent, mpsc::Receiver<AgentEvent>) {
    let mut config = XmppConfig::new(jid, password, stage.server(domain));
    config.ca_file = Some(stage.domain(domain).ca_file.clone());
    Agent::start(&config).unwrap()
}

async fn wait<T>(events: &mut mpsc::Receiver<AgentEvent>, mut wanted: impl FnMut(AgentEvent) -> Option<T>) -> T {
    let look = async {
        loop {
            if let Some(found) = wanted(events.recv().await.expect("the session goes on")) {
                return found;
            }
        }
    };
    tokio::time::timeout(PATIENCE, look).await.expect("what is waited for")
}

fn query(verb: &str, job: &str) -> Element {
    format!("<query xmlns='{SHELL}' verb='{verb}' job='{job}'/>").parse().unwrap()
}

/// A document as a program submits it.
fn submission(document: &str) -> Element {
    let mut query: Element = format!("<query xmlns='{SHELL}' verb='submit'/>").parse().unwrap();
    query.append_text(document);
    query
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
async fn the_shell_room_answers_people_and_programs_and_refuses_bad_jobs_and_strangers() {
    let stage = Stage::set(&["a.test", "b.test"], 1, 2).await;
    let film = stage.put_film();
    let mut person = Person::come_in(&stage).await;
    film.await;
    bad_jobs_are_refused_with_code_line_and_hint(&stage, &mut person).await;
    credentials_are_refused_in_the_room(&mut person).await;
    strangers_get_nothing(&stage, &person).await;
    let (_, jobs) = stage.ask(&["jobs"]).await;
    assert_eq!(jobs, serde_json::json!([]), "nothing was written down");
    questions_are_answered(&stage, &mut person).await;
    jobs_are_done_for_clients_of_others(&stage).await;
    stage.world.end().await;
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
    let (taken, answer) = stage.ask(&["submit", file.to_str().unwrap()]).await;
    assert!(!taken && answer["error"]["code"] == "too-large", "{answer}");
    let output = tokio::time::timeout(PATIENCE, post(stage, &file, "--text", "nothing").wait_with_output()).await;
    let complaint = String::from_utf8_lossy(&output.unwrap().unwrap().stderr).into_owned();
    assert!(complaint.contains("cut off by the server"), "{complaint}");
    assert!(person.say("jobs").await.contains("no jobs"));
}

async fn credentials_are_refused_in_the_room(person: &mut Person) {
    let document =
        job("never", "veryfast").replace("</source>", "<credentials access-key=\"k\" secret-key=\"s\"/></source>");
    let said = person.say(&document).await;
    assert!(said.starts_with("error credentials-in-room") && said.contains("hint: "), "{said}");
    let answer = person.show(submission(&document)).await;
    assert_eq!(answer["error"]["code"], "credentials-in-room");
}

async fn strangers_get_nothing(stage: &Stage, person: &Person) {
    let client = &stage.domain(1).client;
    let (stranger, mut events) = log_in(stage, 1, &client.jid, &client.password);
    stranger.join(&person.room, "stranger", None).await.unwrap();
    let why = wait(&mut events, |event| match event {
        AgentEvent::RoomLost { why, .. } => Some(why),
        AgentEvent::RoomJoined { .. } => panic!("a stranger is in the room"),
        _ => None,
    });
    assert_eq!(why.await, "registration-required");

    let message = |verb: &str, body: &str| -> Element {
        format!(
            "<message xmlns='{}' verb='{verb}' id='1' job='j' home='b.test' attempt='0' epoch='1' seq='1' sent-at='1' \
             expires-at='9999999999999' path=''>{body}</message>",
            federation::message::NS
        )
        .parse()
        .unwrap()
    };
    let status = Status {
        task: "l-1/0/1".into(),
        state: "done".into(),
        bytes: 0,
        percent: 0.0,
        outputs: Vec::new(),
        usage: None,
        failure: None,
    };
    let before = stage.get(0, "/api/domains").await;
    for payload in [
        query("jobs", ""),
        query("help", ""),
        submission(&job("stolen", "veryfast")),
        message("cfp", ""),
        message("cancel", ""),
        status.into(),
    ] {
        let answer = stranger.iq_set(person.manager.clone().into(), payload.clone(), PATIENCE).await;
        let Err(IqFailure::Remote(error)) = answer else { panic!("{answer:?}") };
        assert_eq!(error.defined_condition, Condition::Forbidden, "{payload:?}");
    }
    // Nor may somebody of the own domain speak for it: only who is in the Federation room.
    let answer = person.agent.iq_set(person.manager.clone().into(), message("cfp", ""), PATIENCE).await;
    assert!(matches!(answer, Err(IqFailure::Remote(error)) if error.defined_condition == Condition::Forbidden));
    assert_eq!(stage.get(0, "/api/domains").await, before);
    stranger.close().await;
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
    command.arg("--password-file").arg(secret).args(["--server", &stage.server(0), "--ca"]);
    command.arg(&stage.domain(0).ca_file).args(["--room", &stage.domain(0).shell_room, "--job"]).arg(file);
    command.args([how, "--nick", &format!("slixmpp{how}"), "--wait", "100", "--until", until]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command.spawn().expect("slixmpp's environment: make setup")
}

async fn jobs_are_done_for_clients_of_others(stage: &Stage) {
    let manager = format!("{}/active", stage.domain(0).shell_room);
    // slixmpp, as a person's text and as an element of its own.
    let text = stage.file("text.xml", &job("text", "veryfast"));
    let payload = stage.file("payload.xml", &job("payload", "veryfast"));
    let by_slixmpp = [(&text, "--text"), (&payload, "--payload")].map(|(file, how)| post(stage, file, how, ": done"));
    // Our own, watching.
    let file = stage.file("cli.xml", &job("cli", "veryfast"));
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
    let (right, document) = answer(by_us).await;
    assert!(right && document["state"] == "done", "{document:#}");
    stage.is_right(&document).await;
    // go-sendxmpp leaves as soon as it has spoken; another session of its owner hears the end.
    let (client, server) = (&stage.domain(0).client, stage.server(0).parse().unwrap());
    let (owner, mut heard) = log_in(stage, 0, &client.jid, &client.password);
    wait(&mut heard, |event| matches!(event, AgentEvent::Online { .. }).then_some(())).await;
    let file = stage.file("go.xml", &job("go", "veryfast"));
    let mut send = go_sendxmpp(&client.jid, &client.password, server, &stage.domain(0).ca_file);
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
    stage.is_right(&document.unwrap()).await;
    owner.close().await;
    let (_, jobs) = stage.ask(&["jobs"]).await;
    assert_eq!(jobs.as_array().unwrap().iter().filter(|j| j["state"] == "done").count(), 4, "{jobs:#}");
}

/// Whether any file below the directory holds these bytes; and whether there was any to look into.
fn holds(dir: &Path, bytes: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => found.extend(holds(&path, bytes)),
            kind if kind.is_file() => {
                let text = std::fs::read(&path).unwrap_or_default();
                found.extend(text.windows(bytes.len()).any(|w| w == bytes.as_bytes()).then_some(path));
            }
            _ => {}
        }
    }
    found
}

#[tokio::test]
async fn a_jobs_own_keys_open_the_store_by_iq_and_stand_in_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let config = S3ServerConfig { root: dir.path().join("s3"), ..S3ServerConfig::default() };
    let (access_key, secret_key) = (config.access_key.clone(), config.secret_key.clone());
    let s3 = S3Server::start(config).await.unwrap();
    let wrong = dir.path().join("wrong");
    std::fs::write(&wrong, "these-are-not-the-keys").unwrap();
    let mut stage = Stage::set_with(|options| {
        options.domains = vec!["a.test".into()];
        (options.hosts, options.slots) = (1, 2);
        options.store.s3_endpoint = Some(s3.endpoint());
        options.store.s3_access_key = Some(access_key.clone());
        options.store.s3_secret_key_file = Some(wrong.clone());
    })
    .await;
    stage.put_film_with(&access_key, secret_key.expose()).await;

    // The domain itself is not let in.
    let id = stage.submit("without", "veryfast").await;
    let failed = stage.job_when(&id, |job| job["state"] == "failed").await;
    assert_eq!(failed["error"]["code"], "source-forbidden", "{failed:#}");

    let mut person = Person::come_in(&stage).await;
    let keys = format!("<credentials access-key=\"{access_key}\" secret-key=\"{}\"/></source>", secret_key.expose());
    let document = job("own", "veryfast").replace("</source>", &keys);
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

    let state = stage.world.state();
    assert_eq!(holds(state, secret_key.expose()), Vec::<PathBuf>::new());
    assert_ne!(
        holds(&state.join("a.test/cm/state/journal"), "s3://films/own/"),
        Vec::<PathBuf>::new(),
        "it is looked for aright"
    );
    stage.world.end().await;
}

/// Kills and restarts a process as soon as the job is as wanted, and sees the job end right.
async fn survives(stage: &mut Stage, victim: &str, moment: &str, reached: impl Fn(&Value) -> bool) {
    let started = std::time::Instant::now();
    let name = format!("{victim} {moment}").replace(' ', "-");
    let id = stage.submit(&name, "veryslow").await;
    let before = stage.job_when(&id, reached).await;
    stage.crash_and_restart(victim).await;
    let job = stage.ends_right(&id).await;
    let verified =
        |job: &Value| job["parts"].as_array().unwrap().iter().filter(|p| p["state"] == "verified").count() as u64;
    let parts = job["parts"].as_array().unwrap().len() as u64;
    assert_eq!(verified(&job), parts);
    assert_eq!(job["usage"].as_array().unwrap().iter().map(|u| u["parts"].as_u64().unwrap()).sum::<u64>(), parts);
    println!(
        "{victim} killed {moment}, {} of {parts} parts verified: done {:.1} s after submission",
        verified(&before),
        started.elapsed().as_secs_f64()
    );
}

fn part(job: &Value, wanted: impl Fn(&Value) -> bool) -> bool {
    job["parts"].as_array().is_some_and(|parts| parts.iter().any(wanted))
}

fn runs_in(domain: &'static str) -> impl Fn(&Value) -> bool {
    move |job| part(job, |p| p["state"] == "running" && p["domain"] == domain)
}

fn is_nearly_done(job: &Value) -> bool {
    let open = job["parts"].as_array().unwrap().iter().filter(|p| p["state"] != "verified").count();
    job["state"] != "preparing" && open <= 1 && !job["parts"].as_array().unwrap().is_empty()
}

#[tokio::test]
async fn a_job_ends_right_whenever_its_cluster_manager_is_killed() {
    let mut stage = Stage::set(&["a.test", "b.test"], 2, 1).await;
    stage.put_film().await;
    survives(&mut stage, "a.test cm", "right after it accepted", |_| true).await;
    survives(&mut stage, "a.test cm", "while parts ran", |job| part(job, |p| p["state"] == "running")).await;
    survives(&mut stage, "a.test cm", "near the end", is_nearly_done).await;
    stage.world.end().await;
}

#[tokio::test]
async fn a_job_ends_right_and_all_meet_again_when_an_xmpp_server_is_killed() {
    let mut stage = Stage::set(&["a.test", "b.test"], 2, 1).await;
    stage.put_film().await;
    // The home of the Federation room, then a domain that is a guest there.
    survives(&mut stage, "a.test prosody", "while parts ran", runs_in("b.test")).await;
    stage.is_whole(2).await;
    survives(&mut stage, "b.test prosody", "while parts ran", runs_in("b.test")).await;
    stage.is_whole(2).await;
    stage.world.end().await;
}

#[tokio::test]
async fn a_client_that_watches_follows_its_cluster_manager_over_a_crash() {
    let mut stage = Stage::set(&["a.test"], 1, 2).await;
    stage.put_film().await;
    let file = stage.file("watched.xml", &job("watched", "veryslow"));
    let watching = stage.starling(&["submit", "--watch", file.to_str().unwrap()]).spawn().unwrap();
    let running = async {
        loop {
            let jobs = stage.get(0, "/api/jobs").await.unwrap_or_default();
            if jobs[0]["state"] == "running" {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(PATIENCE, running).await.expect("a job that runs");
    stage.crash_and_restart("a.test cm").await;
    let (right, document) = answer(watching).await;
    assert!(right && document["state"] == "done", "{document:#}");
    stage.is_right(&document).await;
    stage.world.end().await;
}
