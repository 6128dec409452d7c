//! The main job from end to end, as `make demo` runs it, with a short film.

use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use testbed::world::WorldDocument;

use super::stage::processes;
use super::terminal::Terminal;

fn demo(state: &Path) -> Command {
    let mut demo = Command::new(env!("CARGO_BIN_EXE_testbed"));
    demo.args(["demo", "--seconds", "8", "--heights", "180", "--state"]).arg(state);
    demo
}

/// What went wrong comes first, then all: it is long, and whoever shows a failed test may cut it off.
fn said(output: &Output) -> String {
    let (all, complaint) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let verdict = all.find("Each frame, decoded").map_or("", |at| &all[at..]);
    format!("{complaint}{verdict}\nAll of it:\n{all}")
}

#[test]
fn a_film_goes_through_three_domains_and_comes_out_whole() {
    let state = tempfile::tempdir().unwrap();
    let output = demo(state.path()).output().unwrap();
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    for name in ["HLS", "DASH", "SMIL"] {
        assert!(said.contains(&format!("  {name:<5} right")), "{said}");
    }
    // It ends with where everything is.
    let shown = String::from_utf8_lossy(&output.stdout);
    let (_, end) = shown.split_once("All 240 frames are there").expect(&said);
    let places: Vec<_> = end.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(places, ["Player", "SMIL", "HLS", "DASH", "Timeline", "Console"]);
    let picture = Command::new("xmllint").arg("--noout").arg(state.path().join("timeline.svg")).output().unwrap();
    assert!(picture.status.success() && picture.stderr.is_empty(), "{picture:?}");
}

/// An encoder that shows something else than it was given: nothing that home counts in its boxes is wrong.
#[test]
fn a_film_with_wrong_pictures_is_called_wrong_and_ends_with_1() {
    let (state, tools) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let ffmpeg = tools.path().join("ffmpeg");
    let path = std::env::var_os("PATH").unwrap();
    let real = std::env::split_paths(&path).map(|dir| dir.join("ffmpeg")).find(|file| file.is_file());
    let real = real.expect("ffmpeg; `make setup` installs it");
    // Only parts of a job are encoded with a time scale of their own: neither the source nor the check is touched.
    let script = format!(
        "#!/bin/bash\nif [[ \" $* \" == *' -video_track_timescale '* ]]; then set -- \"${{@/scale=/negate,scale=}}\"; fi\nexec {} \"$@\"\n",
        real.display()
    );
    std::fs::write(&ffmpeg, script).unwrap();
    std::fs::set_permissions(&ffmpeg, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", tools.path().display(), path.display());
    let output = demo(state.path()).env("PATH", path).output().unwrap();
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for name in ["HLS", "DASH", "SMIL"] {
        assert!(said.contains(&format!("  {name:<5} WRONG")), "{said}");
    }
    assert!(said.contains("The film is WRONG"), "{said}");
}

#[tokio::test]
async fn on_a_terminal_the_world_stays_for_the_player_until_ctrl_c_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("world");
    let (testbed, place) = (env!("CARGO_BIN_EXE_testbed"), state.display());
    let demo = format!("{testbed} demo --seconds 8 --heights 180 --state {place}");
    // The shell stays, so that the screen does.
    let terminal = Terminal::open(dir.path(), 100, &format!("trap : INT; {demo}; echo exit code $?; read line"));
    let screen = terminal.shows("Ctrl-C ends it.").await;
    for text in [
        "a.test prosody           ready at ",
        "a.test (home)  ok",
        "offer of b.test: at most ",
        "100% verified",
        "  SMIL  right",
        "What each domain did:",
        "whole job  forward requests ",
        "All 240 frames are there",
        "  Player    http://",
    ] {
        assert!(screen.contains(text), "{text:?} is not to be seen:\n{screen}");
    }
    let is_award = |line: &str| line.trim_start().starts_with("awarded ") && line.contains(" to ");
    assert!(screen.lines().any(is_award), "no award is to be seen:\n{screen}");
    let world = WorldDocument::read(&state).unwrap();
    let home = &world.domains[0];
    let player = screen.lines().find_map(|line| line.strip_prefix("  Player    ")).unwrap().trim();
    let http = storage::fetch::http().no_proxy().build().unwrap();
    http.get(player).send().await.unwrap().error_for_status().unwrap();

    terminal.keys(&["C-c"]);
    let screen = terminal.shows("exit code ").await;
    assert!(screen.contains("exit code 0") && screen.contains("Ending."), "{screen}");
    assert_eq!(processes(&format!("{place}/")), []);
    assert!(TcpStream::connect((home.xmpp_host.as_str(), home.xmpp_port)).is_err());
    assert!(http.get(&home.console_url).send().await.is_err() && http.get(&world.s3.endpoint).send().await.is_err());
}
