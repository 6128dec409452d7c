//! The process driver: what every driver must do, and that nothing outlives whom it serves.

use host_manager::vm::{Driver, VmError, VmName, VmSpec, VmStatus};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::film;
use crate::support::store::Store;
use crate::support::{Guest, processes_with, until};

fn name() -> VmName {
    VmName::new("g").unwrap()
}

/// The guest's process, by the directory that is on its command line.
fn guest_pid(dir: &std::path::Path) -> Option<i32> {
    let mark = dir.to_str().unwrap();
    let process = |pid: i32| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let pids = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    pids.into_iter().find(|pid| {
        let line = String::from_utf8_lossy(&process(*pid)).into_owned();
        line.contains(mark) && line.contains("--exit-with-stdin")
    })
}

#[tokio::test]
async fn create_is_idempotent_by_name_and_delete_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let guest = Guest::start(dir.path(), "ffmpeg").await;
    let again = guest.driver.create(&name(), &VmSpec { slots: 1 }).await.unwrap();
    assert_eq!(again, guest.vm);
    assert_eq!(guest.driver.address(&name()).unwrap(), guest.vm.address);
    let other = guest.driver.create(&name(), &VmSpec { slots: 2 }).await.unwrap_err();
    assert!(matches!(other, VmError::Conflict(_)));
    assert_eq!(guest.driver.list(), [name()]);
    guest.driver.delete(&name()).await.unwrap();
    guest.driver.delete(&name()).await.unwrap();
    assert_eq!(guest.driver.list(), []);
    assert!(guest_pid(dir.path()).is_none());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_killed_guest_takes_its_encoder_along_and_is_made_anew() {
    let (dir, store, film) = (tempfile::tempdir().unwrap(), Store::start().await, film::film());
    let guest = Guest::start(dir.path(), "ffmpeg").await;
    let url = film::orders(&store, &film, &film::plan(&film, 1), "placebo").remove(0);
    guest.put("t", &url).await;
    guest.states_until("t", |state| state.percent > 0.0).await;
    kill(Pid::from_raw(guest_pid(dir.path()).unwrap()), Signal::SIGKILL).unwrap();
    guest.driver.ended(&name()).await;
    assert_eq!(guest.driver.status(&name()).unwrap(), VmStatus::Gone("signal: 9 (SIGKILL)".into()));
    until("the encoder is gone", || processes_with(dir.path().to_str().unwrap()).is_empty()).await;
    assert!(guest.driver.console(&name(), 4096).unwrap().contains("order read"));
    let anew = guest.driver.create(&name(), &VmSpec { slots: 1 }).await.unwrap();
    assert_ne!(anew.token, guest.vm.token);
}

#[tokio::test]
async fn a_guest_whose_driver_is_gone_ends_with_its_encoder() {
    let (dir, store, film) = (tempfile::tempdir().unwrap(), Store::start().await, film::film());
    let guest = Guest::start(dir.path(), "ffmpeg").await;
    let url = film::orders(&store, &film, &film::plan(&film, 1), "placebo").remove(0);
    guest.put("t", &url).await;
    guest.states_until("t", |state| state.percent > 0.0).await;
    drop(guest);
    until("the guest is gone", || guest_pid(dir.path()).is_none()).await;
    until("the encoder is gone", || processes_with(dir.path().to_str().unwrap()).is_empty()).await;
}

#[tokio::test]
async fn a_command_that_is_no_guest_is_an_error_with_its_words() {
    let dir = tempfile::tempdir().unwrap();
    let command = ["sh", "-c", "echo no luck >&2; exit 3"].map(str::to_owned).to_vec();
    let driver = host_manager::vm::process::ProcessDriver::open(dir.path(), command).unwrap();
    let error = driver.create(&name(), &VmSpec { slots: 1 }).await.unwrap_err();
    assert!(error.to_string().contains("no luck"), "{error}");
    assert_eq!(driver.list(), []);
}
