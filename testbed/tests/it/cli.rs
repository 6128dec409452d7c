//! The `starling` program as scripts use it: its documents, its exit codes, and the ways to tell it where to go.

use std::process::{Command, Stdio};

use serde_json::Value;
use testbed::process::workspace_binary;

use super::stage::{Order, Stage};
use super::terminal::Terminal;

/// Run to its end: exit code and both outputs.
fn starling(arguments: &[&str], environment: &[(&str, &str)]) -> (i32, String, String) {
    let mut command = Command::new(workspace_binary("starling").unwrap());
    command.args(arguments).stdin(Stdio::null()).env_remove("STARLING_STATE").env_remove("STARLING_CONFIG");
    let output = command.envs(environment.iter().copied()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn each_command_explains_itself_with_an_example_and_the_exit_codes_are_told() {
    for command in ["submit", "watch", "status", "jobs", "domains", "cancel"] {
        let (code, help, _) = starling(&[command, "--help"], &[]);
        assert!(code == 0 && help.contains(&format!("Example: starling --state DIR {command}")), "{help}");
    }
    let (_, help, _) = starling(&["--help"], &[]);
    assert!(help.contains("starling --state target/demo submit"), "where `make demo` writes: {help}");
    assert!(
        ["0 done", "1 the job failed", "2 refused", "3 not reachable"].iter().all(|code| help.contains(code)),
        "{help}"
    );
}

#[test]
fn a_wrong_call_is_2_and_a_world_that_is_not_there_is_3() {
    for (code, arguments) in [
        (2, &["fly"][..]),
        (2, &["status"]),
        (3, &["jobs"]),
        (3, &["--state", "/no/such/dir", "jobs"]),
        (3, &["--config", "/no/such/file", "jobs"]),
        (2, &["submit", "/no/such/job"]),
        (2, &["--state", "/no/such/dir", "--jid", "me@a.test", "jobs"]),
    ] {
        let (said, out, complaint) = starling(arguments, &[]);
        assert_eq!(said, code, "{arguments:?}: {out}{complaint}");
        assert!(out.is_empty() && !complaint.is_empty(), "{arguments:?}");
    }
}

#[tokio::test]
async fn documents_have_their_fields_and_exit_codes_their_meaning_whichever_way_one_comes_in() {
    let stage = Stage::of(1, 1, 2).await;
    a_job_is_shown_by_id_state_parts_results_and_timeline(&stage).await;
    a_job_that_fails_is_1_and_a_refusal_is_2(&stage).await;
    the_world_is_found_by_directory_file_flags_and_environment(&stage).await;
    stage.end().await;
}

async fn a_job_is_shown_by_id_state_parts_results_and_timeline(stage: &Stage) {
    let file = stage.file("right.xml", &Order::new("film.mp4", "right").xml());
    let (code, submitted) = stage.ask(&["submit", file.to_str().unwrap()]).await;
    let id = submitted["id"].as_str().unwrap();
    assert_eq!(code, 0, "{submitted:#}");
    let (code, watched) = stage.ask(&["watch", id]).await;
    assert_eq!((code, &watched["state"]), (0, &"done".into()), "{watched:#}");
    let (code, shown) = stage.ask(&["status", id]).await;
    assert_eq!((code, &shown), (0, &watched));
    assert_eq!(shown["parts"].as_array().map(Vec::len), Some(5));
    for part in shown["parts"].as_array().unwrap() {
        assert!(part["n"].is_u64() && part["state"] == "verified" && part["domain"] == "a.test", "{part}");
    }
    for (name, ending) in [("smil", "/movie.smil"), ("hls", "/master.m3u8"), ("dash", "/manifest.mpd")] {
        let url = shown["results"][name].as_str().unwrap();
        assert!(url.starts_with("http://") && url.ends_with(ending), "{url}");
    }
    let phases = shown["timeline"].as_array().unwrap().iter().map(|span| span["phase"].as_str().unwrap());
    let phases: std::collections::BTreeSet<_> = phases.collect();
    let all = ["download", "forward-requests", "load", "process", "publish", "retrieve-domain-information"];
    assert_eq!(phases.into_iter().collect::<Vec<_>>(), all);
    let (code, jobs) = stage.ask(&["jobs"]).await;
    assert_eq!((code, jobs), (0, Value::Array(vec![shown.clone()])));
    let (code, domains) = stage.ask(&["domains"]).await;
    assert_eq!((code, &domains[0]["name"], &domains[0]["slots"]), (0, &"a.test".into(), &2.into()));
    // For people.
    let state = stage.state().to_str().unwrap().to_owned();
    let (code, words, _) = starling(&["--state", &state, "status", id], &[]);
    assert!(code == 0 && words.starts_with(&format!("{id}: done, 5 of 5 parts done\n")), "{words}");
}

async fn a_job_that_fails_is_1_and_a_refusal_is_2(stage: &Stage) {
    let file = stage.file("missing.xml", &Order::new("missing.mp4", "missing").xml());
    let (code, failed) = stage.ask(&["submit", "--watch", file.to_str().unwrap()]).await;
    assert_eq!((code, &failed["state"], &failed["error"]["code"]), (1, &"failed".into(), &"source-missing".into()));
    let id = stage.submit(&Order::slow("cancelled")).await;
    let (code, cancelled) = stage.ask(&["cancel", &id]).await;
    assert_eq!((code, &cancelled["state"]), (0, &"cancelled".into()), "{cancelled:#}");
    let (code, watched) = stage.ask(&["watch", &id]).await;
    assert_eq!((code, &watched["state"]), (1, &"cancelled".into()), "{watched:#}");
    for verb in ["status", "watch", "cancel"] {
        let (code, refused) = stage.ask(&[verb, "j-0"]).await;
        assert_eq!((code, &refused["error"]["code"]), (2, &"no-such-job".into()), "{verb}: {refused}");
    }
    let bad = stage.file("bad.xml", "<job xmlns=\"urn:starling:job:1\" kind=\"transcode\">\n</job>");
    let (code, refused) = stage.ask(&["submit", bad.to_str().unwrap()]).await;
    assert_eq!((code, &refused["error"]["code"], &refused["error"]["line"]), (2, &"missing-source".into(), &1.into()));
}

async fn the_world_is_found_by_directory_file_flags_and_environment(stage: &Stage) {
    let access = stage.domain(0);
    let server = format!("{}:{}", access.xmpp_host, access.xmpp_port);
    let (password, ca) = (stage.file("password", &access.client.password), access.ca_file.to_str().unwrap());
    let password = password.to_str().unwrap();
    let config = format!(
        "shell = {:?}\n[xmpp]\njid = {:?}\npassword_file = {password:?}\naddress = {server:?}\nca_file = {ca:?}\n",
        access.shell_room, access.client.jid
    );
    let config = stage.file("starling.toml", &config);
    let (config, state) = (config.to_str().unwrap().to_owned(), stage.state().to_str().unwrap().to_owned());
    let flags = ["--jid", &access.client.jid, "--password-file", password, "--server", &server, "--ca", ca];
    let ways = [
        (vec!["--state", &state], vec![]),
        (vec!["--config", &config], vec![]),
        (flags.to_vec(), vec![]),
        (vec![], vec![("STARLING_STATE", state.as_str())]),
        (vec![], vec![("STARLING_CONFIG", config.as_str())]),
    ];
    for (arguments, environment) in ways {
        let all: Vec<&str> = arguments.iter().copied().chain(["domains", "--json"]).collect();
        let (code, said, complaint) = starling(&all, &environment);
        let domains: Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("{all:?}: {said}{complaint}"));
        assert_eq!((code, &domains[0]["name"]), (0, &"a.test".into()), "{all:?}");
    }
    let (code, _, complaint) = starling(&["--state", &state, "--domain", "z.test", "domains"], &[]);
    assert!(code == 3 && complaint.contains("no such domain"), "{complaint}");
}

/// What is said in between moves no line of the bars.
#[tokio::test]
async fn on_a_terminal_a_watched_job_shows_each_part_once_though_its_manager_was_away() {
    let mut stage = Stage::of(1, 1, 2).await;
    let file = stage.file("job.xml", &Order::slow("watched").xml());
    let (starling, state, file) = (workspace_binary("starling").unwrap(), stage.state().display(), file.display());
    let watch = format!("{} --state {state} submit {file} --watch; echo exit code $?; read line", starling.display());
    let terminal = Terminal::open(&stage.state().join("terminal"), 100, &watch);
    terminal.shows("% running a.test").await;
    let recipe = stage.world.crash("a.test cm").await.unwrap();
    terminal.shows("asking again").await;
    stage.world.restart(recipe).await.unwrap();
    let screen = terminal.shows("exit code ").await;
    assert!(screen.contains("exit code 0"), "{screen}");
    let count = |text: &str| screen.lines().filter(|line| line.contains(text)).count();
    let lines =
        ["  0 ", "  1 ", "  2 ", "  3 ", "snd "].map(|part| count(&format!("{part}█")) + count(&format!("{part}░")));
    assert_eq!(lines, [1; 5], "{screen}");
    drop(terminal);
    stage.end().await;
}
