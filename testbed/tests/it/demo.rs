//! The main job from end to end, as `make demo` runs it, with a short film.

use std::net::TcpStream;
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

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
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
    let world = WorldDocument::read(&state).unwrap();
    let home = &world.domains[0];
    let player = screen.lines().find_map(|line| line.strip_prefix("  Player    ")).unwrap().trim();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    http.get(player).send().await.unwrap().error_for_status().unwrap();

    terminal.keys(&["C-c"]);
    let screen = terminal.shows("exit code ").await;
    assert!(screen.contains("exit code 0") && screen.contains("Ending."), "{screen}");
    assert_eq!(processes(&format!("{place}/")), []);
    assert!(TcpStream::connect((home.xmpp_host.as_str(), home.xmpp_port)).is_err());
    assert!(http.get(&home.console_url).send().await.is_err() && http.get(&world.s3.endpoint).send().await.is_err());
}
