//! `world.json`: how any outside client comes in.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// File name below the state directory.
pub const FILE: &str = "world.json";

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorldDocument {
    /// The first domain's.
    pub s3: S3Access,
    /// The home domain of the demo first.
    pub domains: Vec<DomainAccess>,
    pub processes: Vec<ProcessNote>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct S3Access {
    pub endpoint: String,
    pub region: String,
    pub access_key: String,
    pub secret_key: String,
    pub bucket: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DomainAccess {
    pub name: String,
    pub xmpp_host: String,
    /// STARTTLS.
    pub xmpp_port: u16,
    /// PEM; the certificate is for `name`, whatever the host.
    pub ca_file: PathBuf,
    pub shell_room: String,
    /// Console and REST API of the domain's cluster manager; empty where there is none.
    pub console_url: String,
    /// Bucket and keys of its own, for its clients' jobs; none: a job must bring keys.
    pub s3: Option<S3Access>,
    pub client: ClientAccess,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClientAccess {
    pub jid: String,
    pub password: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProcessNote {
    pub role: String,
    /// None: it serves all domains.
    pub domain: Option<String>,
    pub pid: u32,
    pub log: PathBuf,
}

impl WorldDocument {
    /// Writes it whole or not at all, readable by its owner only: it holds passwords.
    pub fn write(&self, state: &Path) -> Result<()> {
        let (path, new) = (state.join(FILE), state.join("world.json.new"));
        write_secret(&new, &serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(&new, &path).with_context(|| format!("put {} in place", path.display()))
    }

    pub fn read(state: &Path) -> Result<Self> {
        let path = state.join(FILE);
        let text = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("understand {}", path.display()))
    }
}

/// A file that only its owner may read, from its first byte on.
pub(super) fn write_secret(path: &Path, bytes: &[u8]) -> Result<()> {
    // An older file would keep its own, wider mode.
    let _ = std::fs::remove_file(path);
    let open = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let write = open.and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    write.with_context(|| format!("write {}", path.display()))
}
