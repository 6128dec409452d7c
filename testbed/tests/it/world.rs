//! The world as a person starts it: the program, its children, and what is left of them.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testbed::world::WorldDocument;

/// `testbed up`, killed if the test fails before it has ended.
struct Up(Child);

impl Up {
    fn start(state: &Path) -> Self {
        let testbed = env!("CARGO_BIN_EXE_testbed");
        let log = std::fs::File::create(state.join("testbed.log")).unwrap();
        let mut up = Command::new(testbed);
        up.args(["up", "--hosts", "1", "--state"]).arg(state).stdin(Stdio::null());
        Self(up.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap())
    }

    fn whole(&mut self, state: &Path) -> WorldDocument {
        wait_for("the world to be whole", || {
            let log = || std::fs::read_to_string(state.join("testbed.log")).unwrap_or_default();
            assert!(self.0.try_wait().unwrap().is_none(), "testbed ended: {}", log());
            WorldDocument::read(state).ok()
        })
    }

    fn signal(&self, signal: Signal) {
        kill(pid(self.0.id()), signal).unwrap();
    }

    fn ended(&mut self) -> Option<i32> {
        wait_for("testbed to end", || self.0.try_wait().unwrap()).code()
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn pid(id: u32) -> Pid {
    Pid::from_raw(i32::try_from(id).unwrap())
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let patience = Instant::now() + Duration::from_secs(90);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < patience, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Processes whose command line names the state directory: the children, and guests, which work below it.
fn alive(state: &Path) -> Vec<String> {
    let state = state.canonicalize().unwrap().display().to_string();
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let commands = processes.filter_map(|p| std::fs::read(p.path().join("cmdline")).ok());
    let commands = commands.map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " "));
    commands.filter(|line| line.contains(&state) && !line.contains(" up ")).collect()
}

#[test]
fn a_world_tells_how_to_come_in_and_leaves_no_process_after_sigint() {
    let state = tempfile::tempdir().unwrap();
    let mut up = Up::start(state.path());
    let world = up.whole(state.path());

    let names: Vec<_> = world.domains.iter().map(|domain| domain.name.as_str()).collect();
    assert_eq!(names, ["a.test", "b.test", "c.test"]);
    for domain in &world.domains {
        std::net::TcpStream::connect((domain.xmpp_host.as_str(), domain.xmpp_port)).unwrap();
        assert!(std::fs::read_to_string(&domain.ca_file).unwrap().contains("BEGIN CERTIFICATE"));
        assert_eq!(domain.shell_room, format!("shell@conference.{}", domain.name));
        assert!(domain.console_url.starts_with("http://127.0.0.1:"));
    }
    let count = |role: &str| world.processes.iter().filter(|process| process.role == role).count();
    assert_eq!(["s3", "prosody", "cluster-manager", "host-manager"].map(count), [1, 3, 3, 3]);
    assert!(world.processes.iter().all(|process| kill(pid(process.pid), None).is_ok() && process.log.is_file()));
    let prosody = world.processes.iter().find(|process| process.role == "prosody").unwrap();
    assert!(std::fs::read_to_string(&prosody.log).unwrap().contains("Hello and welcome to Prosody"));
    names_are_those_that_outside_programs_read(state.path());
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(state.path().join("world.json")).unwrap());
    assert_eq!(mode & 0o777, 0o600, "it holds passwords");

    let put = ["film", "put", "Cargo.toml", "--key", "in.mp4", "--state"];
    let put = Command::new(env!("CARGO_BIN_EXE_testbed")).args(put).arg(state.path()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&put.stdout), "s3://films/in.mp4\n", "{put:?}");
    let put = ["film", "put", "Cargo.toml", "--domain", "b.test", "--state"];
    let put = Command::new(env!("CARGO_BIN_EXE_testbed")).args(put).arg(state.path()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&put.stdout), "s3://films-b.test/Cargo.toml\n", "{put:?}");

    let second =
        Command::new(env!("CARGO_BIN_EXE_testbed")).args(["up", "--state"]).arg(state.path()).output().unwrap();
    let refusal = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && refusal.contains(&up.0.id().to_string()), "{refusal}");

    up.signal(Signal::SIGINT);
    assert_eq!(up.ended(), Some(0));
    assert_eq!(alive(state.path()), Vec::<String>::new());
    assert!(WorldDocument::read(state.path()).is_err());
}

fn names_are_those_that_outside_programs_read(state: &Path) {
    let world: serde_json::Value = serde_json::from_slice(&std::fs::read(state.join("world.json")).unwrap()).unwrap();
    let names = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(names(&world), "domains processes s3");
    assert_eq!(names(&world["s3"]), "access_key bucket endpoint region secret_key");
    let domain = &world["domains"][0];
    assert_eq!(names(domain), "ca_file client console_url name s3 shell_room xmpp_host xmpp_port");
    assert_eq!(names(&domain["client"]), "jid password");
    assert_eq!(names(&world["processes"][0]), "domain log pid role");
}

#[test]
fn a_child_that_is_killed_ends_all_and_is_named() {
    let state = tempfile::tempdir().unwrap();
    let mut up = Up::start(state.path());
    let world = up.whole(state.path());
    let victim = world.processes.iter().find(|p| p.role == "cluster-manager" && p.domain.as_deref() == Some("b.test"));
    kill(pid(victim.unwrap().pid), Signal::SIGKILL).unwrap();
    assert_eq!(up.ended(), Some(1));
    assert_eq!(alive(state.path()), Vec::<String>::new());
    let log = std::fs::read_to_string(state.path().join("testbed.log")).unwrap();
    assert!(log.contains("b.test cm"), "{log}");
}

#[test]
fn a_testbed_that_is_killed_takes_its_world_along() {
    let state = tempfile::tempdir().unwrap();
    let mut up = Up::start(state.path());
    up.whole(state.path());
    up.signal(Signal::SIGKILL);
    up.ended();
    wait_for("every process to go", || alive(state.path()).is_empty().then_some(()));
}
