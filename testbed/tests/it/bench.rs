//! `testbed bench overlay`, small: in network namespaces, as root.

use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::stage::{LOOK, PATIENCE};

fn bench(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_testbed"));
    command.args(["bench", "overlay", "--runs", "1"]).args(arguments).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn ip(arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } =
        Command::new("ip").args(arguments).output().expect("ip; `make setup` installs it");
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

/// Network namespaces of that benchmark.
fn namespaces(bench: &Child) -> Vec<String> {
    let tag = format!("ovb{}x", bench.id());
    ip(&["netns", "list"]).split_whitespace().filter(|word| word.starts_with(&tag)).map(str::to_owned).collect()
}

#[test]
fn ours_and_another_client_are_measured_one_after_the_other_by_the_kernels_counters() {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("runs.json");
    let sizes = ["--hosts", "3", "--size", "2M", "--rate", "20mbit", "--peers", "starling,aria2"];
    let Output { status, stdout, stderr } =
        bench(&sizes).arg("--json").arg(&json).output().expect("the benchmark runs");
    let said = String::from_utf8_lossy(&stdout);
    assert!(status.success(), "{said}{}", String::from_utf8_lossy(&stderr));
    assert!(said.contains("median Starling") && said.contains("median Aria2"), "{said}");
    let runs: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    for (run, client) in runs.as_array().unwrap().iter().zip(["starling", "aria2"]) {
        assert_eq!((run["client"].as_str(), run["bytes"].as_u64()), (Some(client), Some(2_000_000)));
        assert_eq!((run["incomplete"].as_u64(), run["corrupt"].as_u64()), (Some(0), Some(0)), "{run}");
        assert_eq!(run["finished"].as_array().unwrap().len(), 3);
        // The wire cannot carry it faster, nor less than all of it.
        assert!(run["ratio_last"].as_f64().unwrap() > 1.0, "{run}");
        assert!((0.9..4.0).contains(&run["seed_copies"].as_f64().unwrap()), "{run}");
        assert!(run["total_copies"].as_f64().unwrap() > 2.9, "{run}");
        // Ours leaves the seed once, and each host takes it in once: the rest is headers and talk.
        let is_lean = run["seed_copies"].as_f64() < Some(1.2) && run["total_copies"].as_f64() < Some(3.2);
        assert!(is_lean || client != "starling", "{run}");
    }
}

#[test]
fn an_interrupted_benchmark_leaves_no_process_and_no_namespace() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut bench =
            bench(&["--hosts", "2", "--size", "8M", "--rate", "1mbit", "--peers", "starling"]).spawn().unwrap();
        let patience = Instant::now() + PATIENCE;
        // One for the bridge, one each for the origin and two hosts, with a client in each of these.
        let inside = loop {
            let of =
                |name: &String| ip(&["netns", "pids", name]).split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            let inside: Vec<_> = namespaces(&bench).iter().map(of).collect();
            if inside.len() == 4 && inside.iter().all(|pids| !pids.is_empty()) {
                break inside.concat();
            }
            assert!(Instant::now() < patience, "never under way: {inside:?}");
            std::thread::sleep(LOOK);
        };
        kill(Pid::from_raw(bench.id() as i32), signal).unwrap();
        assert!(!bench.wait().unwrap().success());
        assert_eq!(namespaces(&bench), Vec::<String>::new());
        let left: Vec<_> = inside.iter().filter(|pid| std::path::Path::new("/proc").join(pid).exists()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}
