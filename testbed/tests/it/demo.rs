//! The main job from end to end, as `make demo` runs it, with a short film.

use std::process::Command;

#[test]
fn a_film_goes_through_three_domains_and_comes_out_whole() {
    let state = tempfile::tempdir().unwrap();
    let mut demo = Command::new(env!("CARGO_BIN_EXE_testbed"));
    let output =
        demo.args(["demo", "--seconds", "8", "--heights", "180", "--state"]).arg(state.path()).output().unwrap();
    let (said, complaint) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{complaint}");
    for name in ["HLS", "DASH", "SMIL"] {
        assert!(said.contains(&format!("  {name:<5} right")), "{said}");
    }
    assert!(state.path().join("timeline.svg").is_file());
}
