//! Machines that are mere processes: a guest for each, on loopback. The default where no hypervisor is at hand, and on one
//! machine the fastest.
//!
//! A guest is bound to this process by the pipe that is its standard input: however the host manager ends, the pipe is
//! closed and the guest ends, and its encoders with it. So there is never anything to adopt at start, only files to remove.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use super::{Driver, Vm, VmError, VmName, VmSpec, VmStatus};

/// A guest is ready in some 20 ms; a machine under full load may need far longer.
const READY_TIMEOUT: Duration = Duration::from_secs(20);
/// What a guest gets to end its encoders and remove its files.
const END_TIMEOUT: Duration = Duration::from_secs(3);

/// The driver; dropping it ends all its machines.
pub struct ProcessDriver {
    dir: PathBuf,
    command: Vec<String>,
    machines: Mutex<BTreeMap<VmName, Machine>>,
}

struct Machine {
    vm: Option<Vm>,
    spec: VmSpec,
    dir: PathBuf,
    status: watch::Receiver<VmStatus>,
    /// Dropping it ends the process.
    _stop: oneshot::Sender<()>,
}

impl ProcessDriver {
    /// Machines keep their files under `dir`, which is emptied now. `command` starts a guest; its arguments are appended.
    pub fn open(dir: &Path, command: Vec<String>) -> std::io::Result<Self> {
        match std::fs::remove_dir_all(dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => std::fs::create_dir_all(dir)?,
        }
        Ok(Self { dir: dir.to_owned(), command, machines: Mutex::default() })
    }

    async fn start(&self, name: &VmName, spec: &VmSpec) -> Result<Vm, VmError> {
        // A new directory each time: a guest that is still ending must not remove the files of its successor.
        let dir = self.dir.join(format!("{name}-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir_all(&dir)?;
        let token = uuid::Uuid::new_v4().simple().to_string();
        let token_file = dir.join("token");
        let mut options = std::fs::OpenOptions::new();
        std::io::Write::write_all(
            &mut options.write(true).create_new(true).mode(0o600).open(&token_file)?,
            token.as_bytes(),
        )?;
        let console = std::fs::File::create(dir.join("console.log"))?;
        let (program, arguments) = self.command.split_first().ok_or_else(|| failed(name, "no guest command"))?;
        let mut command = Command::new(program);
        command.args(arguments).args(["--listen", "127.0.0.1:0", "--exit-with-stdin"]);
        command.arg("--token-file").arg(&token_file).arg("--dir").arg(dir.join("work"));
        command.args(["--slots", &spec.slots.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(console).process_group(0).kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| failed(name, format!("{program}: {error}")))?;
        let mut lines = BufReader::with_capacity(256, child.stdout.take().expect("piped above")).lines();
        let (stop, stopped) = oneshot::channel();
        let (sender, status) = watch::channel(VmStatus::Booting);
        let machine = Machine { vm: None, spec: spec.clone(), dir, status, _stop: stop };
        self.machines().insert(name.clone(), machine);
        let (ready, is_ready) = oneshot::channel();
        tokio::spawn(supervise(child, stopped, is_ready, sender));
        let line = match timeout(READY_TIMEOUT, lines.next_line()).await {
            Ok(Ok(Some(line))) => line,
            Ok(_) => return Err(failed(name, self.console(name, 1024)?)),
            Err(_) => return Err(failed(name, "not ready in time")),
        };
        let address =
            ready_address(&line).ok_or_else(|| failed(name, format!("said {line:?} instead of its address")))?;
        let vm = Vm { name: name.clone(), address, token };
        if let Some(machine) = self.machines().get_mut(name) {
            machine.vm = Some(vm.clone());
        }
        let _ = ready.send(());
        Ok(vm)
    }

    fn machines(&self) -> std::sync::MutexGuard<'_, BTreeMap<VmName, Machine>> {
        self.machines.lock().expect("no panic while locked")
    }

    fn look<T>(&self, name: &VmName, see: impl FnOnce(&Machine) -> T) -> Result<T, VmError> {
        self.machines().get(name).map(see).ok_or_else(|| VmError::Unknown(name.clone()))
    }
}

impl Driver for ProcessDriver {
    fn create<'a>(&'a self, name: &'a VmName, spec: &'a VmSpec) -> BoxFuture<'a, Result<Vm, VmError>> {
        async move {
            let existing = self.look(name, |m| (m.vm.clone(), m.spec == *spec, m.status.borrow().clone())).ok();
            match existing {
                Some((_, false, VmStatus::Booting | VmStatus::Ready)) => return Err(VmError::Conflict(name.clone())),
                Some((Some(vm), true, VmStatus::Booting | VmStatus::Ready)) => return Ok(vm),
                Some(_) => self.delete(name).await?,
                None => (),
            }
            let started = self.start(name, spec).await;
            if started.is_err() {
                self.delete(name).await?;
            }
            started
        }
        .boxed()
    }

    fn status(&self, name: &VmName) -> Result<VmStatus, VmError> {
        self.look(name, |machine| machine.status.borrow().clone())
    }

    fn address(&self, name: &VmName) -> Result<SocketAddr, VmError> {
        self.look(name, |machine| machine.vm.as_ref().map(|vm| vm.address))?
            .ok_or_else(|| failed(name, "still booting"))
    }

    fn console(&self, name: &VmName, tail: u64) -> Result<String, VmError> {
        let mut file = std::fs::File::open(self.look(name, |machine| machine.dir.join("console.log"))?)?;
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(tail)))?;
        let mut bytes = Vec::new();
        file.take(tail).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn delete<'a>(&'a self, name: &'a VmName) -> BoxFuture<'a, Result<(), VmError>> {
        async move {
            let Some(Machine { dir, mut status, _stop, .. }) = self.machines().remove(name) else { return Ok(()) };
            drop(_stop);
            let _ = status.wait_for(|status| matches!(status, VmStatus::Gone(_))).await;
            Ok(std::fs::remove_dir_all(dir)?)
        }
        .boxed()
    }

    fn list(&self) -> Vec<VmName> {
        self.machines().keys().cloned().collect()
    }

    fn ended<'a>(&'a self, name: &'a VmName) -> BoxFuture<'a, ()> {
        async move {
            let Ok(mut status) = self.look(name, |machine| machine.status.clone()) else { return };
            let _ = status.wait_for(|status| matches!(status, VmStatus::Gone(_))).await;
        }
        .boxed()
    }
}

/// Owns the process until it has ended.
async fn supervise(
    mut child: Child,
    mut stopped: oneshot::Receiver<()>,
    ready: oneshot::Receiver<()>,
    status: watch::Sender<VmStatus>,
) {
    let stdin = child.stdin.take();
    let is_ready = async {
        match ready.await {
            Ok(()) => status.send_replace(VmStatus::Ready),
            Err(_) => std::future::pending().await,
        };
        std::future::pending::<()>().await;
    };
    let ended = tokio::select! {
        ended = child.wait() => Some(ended),
        _ = &mut stopped => None,
        () = is_ready => unreachable!("it never ends"),
    };
    let ended = match ended {
        Some(ended) => ended,
        None => end(&mut child, stdin).await,
    };
    status.send_replace(VmStatus::Gone(ended.map_or_else(|error| error.to_string(), |status| status.to_string())));
}

/// Asks the guest to end by closing its standard input; then kills it and its encoders.
async fn end(
    child: &mut Child,
    stdin: Option<tokio::process::ChildStdin>,
) -> std::io::Result<std::process::ExitStatus> {
    drop(stdin);
    if let Ok(ended) = timeout(END_TIMEOUT, child.wait()).await {
        return ended;
    }
    // Not waited for yet, so the number is still this group's.
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    }
    child.wait().await
}

fn ready_address(line: &str) -> Option<SocketAddr> {
    serde_json::from_str::<serde_json::Value>(line).ok()?.get("address")?.as_str()?.parse().ok()
}

fn failed(name: &VmName, why: impl Into<String>) -> VmError {
    VmError::Start { name: name.clone(), why: why.into() }
}
