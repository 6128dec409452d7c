//! One world per state directory: a lock that the kernel lets go of when its holder dies.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};

use super::document::{FILE, WorldDocument};

/// Held while a world lives in the directory.
#[derive(Debug)]
pub struct Claim(#[expect(dead_code, reason = "held, not read")] Flock<File>);

impl Claim {
    /// Takes the directory, made if it is not there. What an earlier world left of itself (journals, objects, keys) stays;
    /// its `world.json` goes, for it names processes that are no more.
    ///
    /// # Errors
    /// A live world has it, or processes of a dead one are still there; the text names them.
    pub fn take(state: &Path) -> Result<Self> {
        std::fs::create_dir_all(state).with_context(|| format!("create {}", state.display()))?;
        let path = state.join("testbed.pid");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.with_context(|| format!("open {}", path.display()))?;
        let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((mut file, _)) => {
                let mut pid = String::new();
                file.read_to_string(&mut pid).context("read who has the state directory")?;
                bail!("a world lives in {} already: testbed with pid {}", state.display(), pid.trim());
            }
        };
        refuse_survivors(state)?;
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Self(file))
    }
}

/// Children die with their testbed; should one have escaped, it must not meet its successor.
fn refuse_survivors(state: &Path) -> Result<()> {
    let Ok(old) = WorldDocument::read(state) else { return Ok(()) };
    let marker = state.canonicalize().unwrap_or_else(|_| state.to_owned()).display().to_string();
    for process in old.processes {
        let command = std::fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
        if String::from_utf8_lossy(&command).contains(&marker) {
            bail!("{} of an earlier world in {} still runs: pid {}", process.role, state.display(), process.pid);
        }
    }
    std::fs::remove_file(state.join(FILE)).context("remove the world.json of an earlier world")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_claimed_once_and_free_again_after() {
        let dir = tempfile::tempdir().unwrap();
        let claim = Claim::take(dir.path()).unwrap();
        let refusal = Claim::take(dir.path()).unwrap_err().to_string();
        assert!(refusal.contains(&format!("pid {}", std::process::id())), "{refusal}");
        drop(claim);
        Claim::take(dir.path()).unwrap();
    }
}
