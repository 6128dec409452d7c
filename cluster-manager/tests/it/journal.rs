//! A journal that is made shorter, over a process that is killed at it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use cluster_manager::journal::Journal;

/// Set for the process that is to be killed: where its journal is.
const DIR: &str = "STARLING_TEST_JOURNAL";
const ENTRIES: u32 = 5_000;

fn entries(dir: &Path) -> Vec<String> {
    Journal::open(dir).unwrap().replay().collect::<Result<_, _>>().unwrap()
}

fn entry(n: u32) -> String {
    format!("{n} {}", "of many ".repeat(20))
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(file.file_name());
        match file.file_type().unwrap().is_dir() {
            true => copy(&file.path(), &target),
            false => drop(std::fs::copy(file.path(), target).unwrap()),
        }
    }
}

/// Every tenth entry is left, and one more comes.
fn shorten(dir: &Path) {
    let mut journal = Journal::open(dir).unwrap();
    println!("\nready");
    let is_needed = |entry: &String| entry.split_once(' ').unwrap().0.parse::<u32>().unwrap() % 10 == 0;
    journal.shorten(is_needed, &["instead".to_owned()]).unwrap();
    println!("\ndone");
    journal.append(&["after".to_owned()]).unwrap();
    // Until it is killed.
    drop(std::io::stdin().lines().next());
}

#[test]
fn a_journal_is_the_old_one_or_the_shorter_one_whenever_the_process_is_killed() {
    if let Some(dir) = std::env::var_os(DIR) {
        return shorten(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let old: Vec<_> = (0..ENTRIES).map(entry).collect();
    let whole = dir.path().join("whole");
    Journal::open(&whole).unwrap().append(&old).unwrap();
    let mut shorter: Vec<_> = (0..ENTRIES).step_by(10).map(entry).collect();
    // The last stays, so that no number is given twice.
    shorter.extend([entry(ENTRIES - 1), "instead".to_owned()]);
    let appended: Vec<_> = shorter.iter().cloned().chain(["after".to_owned()]).collect();
    let (mut before, mut after) = (0, 0);
    for round in 0..12 {
        let dir = dir.path().join(round.to_string());
        copy(&whole, &dir);
        let mut child = Command::new(std::env::current_exe().unwrap());
        let name = "journal::a_journal_is_the_old_one_or_the_shorter_one_whenever_the_process_is_killed";
        child.args(["--exact", name, "--nocapture"]).env(DIR, &dir).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = child.spawn().unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        // The last rounds wait for the end.
        let wanted = if round < 9 { "ready" } else { "done" };
        assert!(said.any(|line| line == wanted), "it has ended before");
        std::thread::sleep(Duration::from_millis(3) * round);
        child.kill().unwrap();
        child.wait().unwrap();
        let left = entries(&dir);
        assert!(left == old || left == shorter || left == appended, "{} entries", left.len());
        before += u32::from(left == old);
        after += u32::from(left != old);
        assert!(round < 9 || left != old, "what was done is undone");
    }
    assert!(before > 0 && after > 0, "never killed in between: {before} before, {after} after");
}
