//! Child processes that cannot outlive the testbed.
//!
//! Each one leads a process group of its own, so that what it starts in turn goes with it, and asks the kernel (through
//! `setpriv --pdeathsig`) to be killed when the thread that started it is gone, whatever the reason: also after SIGKILL.
//! So a [`Process`] is to be started from a thread that lives as long as it should.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

/// How long a process may take to end in peace.
const PEACE: Duration = Duration::from_secs(8);
/// How often a log is looked at while its process starts.
const LOOK: Duration = Duration::from_millis(20);

/// What to run, and under which name people see it.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// What people call it, unique in a world: `a.test cm`, `a.test hm1`, `s3`.
    pub name: String,
    /// `cluster-manager`, `host-manager`, `prosody` or `s3`.
    pub role: String,
    /// None: it serves all domains.
    pub domain: Option<String>,
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    /// Both of its output streams go here; made anew.
    pub log: PathBuf,
}

/// A running child. Dropping it kills its whole group at once; [`Process::end`] asks first.
#[derive(Debug)]
pub struct Process {
    pub recipe: Recipe,
    /// Also the number of its process group.
    pub pid: u32,
    child: Child,
}

impl Process {
    /// # Errors
    /// The program or `setpriv` is missing, or the log cannot be written.
    pub fn start(recipe: Recipe) -> Result<Self> {
        let log = create_log(&recipe.log)?;
        let copy = log.try_clone().context("open the log twice")?;
        let child = Command::from(tied(&recipe.program))
            .args(&recipe.arguments)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(copy)
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {}", recipe.name))?;
        let pid = child.id().context("learn the process id of a new child")?;
        Ok(Self { recipe, pid, child })
    }

    /// Waits for the line of its log that `find` understands: what a server prints when it listens.
    ///
    /// # Errors
    /// It ended, or said no such thing for half a minute; the text holds the end of its log.
    pub async fn announcement<T>(&mut self, find: impl Fn(&str) -> Option<T>) -> Result<T> {
        let patience = tokio::time::Instant::now() + Duration::from_secs(30);
        loop {
            let log = tokio::fs::read(&self.recipe.log).await.context("read a log")?;
            let log = String::from_utf8_lossy(&log);
            if let Some(found) = log.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).find_map(&find) {
                return Ok(found);
            }
            if let Some(death) = self.death()? {
                bail!("{death}");
            }
            if tokio::time::Instant::now() > patience {
                bail!("{} says nothing; its log ends with:\n{}", self.recipe.name, tail(&self.recipe.log));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Its obituary, if it has ended.
    pub fn death(&mut self) -> Result<Option<String>> {
        let status = self.child.try_wait().with_context(|| format!("look after {}", self.recipe.name))?;
        Ok(status.map(|status| self.obituary(status)))
    }

    /// Waits until it ends by itself, and gives its obituary. May be dropped and called again.
    pub async fn ended(&mut self) -> String {
        match self.child.wait().await {
            Ok(status) => self.obituary(status),
            Err(error) => format!("{} cannot be looked after: {error}", self.recipe.name),
        }
    }

    /// Tells why it ended, with the end of its log.
    fn obituary(&self, status: ExitStatus) -> String {
        format!(
            "{} (pid {}) ended: {status}; its log ends with:\n{}",
            self.recipe.name,
            self.pid,
            tail(&self.recipe.log)
        )
    }

    /// Asks its group to end, waits, and kills what is left of it.
    pub async fn end(mut self) {
        self.signal(Signal::SIGTERM);
        let _ = tokio::time::timeout(PEACE, self.child.wait()).await;
        self.signal(Signal::SIGKILL);
        let _ = self.child.wait().await;
    }

    /// Ends it as a crash does, group and all, and waits until it is gone.
    pub async fn crash(mut self) -> Recipe {
        self.signal(Signal::SIGKILL);
        let _ = self.child.wait().await;
        self.recipe.clone()
    }

    /// A signal to the whole group; one that is gone does not matter.
    pub fn signal(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.pid) {
            let _ = killpg(Pid::from_raw(pid), signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}

/// A command whose process is killed when the thread that starts it ends.
pub fn tied(program: impl AsRef<OsStr>) -> std::process::Command {
    let mut command = std::process::Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

fn create_log(path: &Path) -> Result<File> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    }
    // Empty at first; appended to, since Prosody writes to it by itself.
    let opened = File::create(path).and_then(|_| File::options().append(true).open(path));
    opened.with_context(|| format!("create the log {}", path.display()))
}

/// The last lines of a log, for a message.
pub fn tail(path: &Path) -> String {
    let text = std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

/// A binary of this workspace: they stand beside each other, and tests run from a directory below.
///
/// # Errors
/// It was not built.
pub fn workspace_binary(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("find this program")?;
    let dirs = own.ancestors().skip(1).take(2);
    let found = dirs.map(|dir| dir.join(name)).find(|path| path.is_file());
    found.with_context(|| {
        format!("find the program `{name}` beside {}: run `cargo build --workspace` first", own.display())
    })
}
