//! A terminal as a person has before him, with tmux behind it: what stands on it, and keys to press.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::stage::{LOOK, PATIENCE};

/// A terminal with the program in it; both end when it is dropped.
pub struct Terminal(PathBuf);

impl Terminal {
    /// A server and a socket of its own; `command` is for a shell.
    pub fn open(dir: &Path, columns: u32, command: &str) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        let terminal = Self(dir.join("tmux"));
        let size = ["new-session", "-d", "-x", &columns.to_string(), "-y", "50"];
        let done = terminal.tmux().args(["-f", "/dev/null"]).args(size).arg(command).status();
        assert!(done.expect("tmux; `make setup` installs it").success());
        terminal
    }

    fn tmux(&self) -> Command {
        let mut tmux = Command::new("tmux");
        tmux.arg("-S").arg(&self.0).env_remove("TMUX");
        tmux
    }

    /// With what has gone over its upper edge.
    pub fn screen(&self) -> String {
        let output = self.tmux().args(["capture-pane", "-p", "-S", "-"]).output().unwrap();
        assert!(output.status.success(), "the program has ended: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn line(&self, text: &str) {
        self.keys(&["-l", text]);
        self.keys(&["Enter"]);
    }

    /// Keys by tmux's names.
    pub fn keys(&self, keys: &[&str]) {
        assert!(self.tmux().arg("send-keys").args(keys).status().unwrap().success());
    }

    /// As one would with the mouse.
    pub fn paste(&self, text: &str) {
        for arguments in [&["set-buffer", text][..], &["paste-buffer"], &["send-keys", "Enter"]] {
            assert!(self.tmux().args(arguments).status().unwrap().success());
        }
    }

    /// Waits for a text, and gives the screen with it.
    pub async fn shows(&self, text: &str) -> String {
        let patience = tokio::time::Instant::now() + PATIENCE;
        loop {
            let screen = self.screen();
            if screen.contains(text) {
                return screen;
            }
            assert!(tokio::time::Instant::now() < patience, "waited in vain for {text:?}:\n{screen}");
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.tmux().arg("kill-server").status();
    }
}
