//! The configuration of a host manager: parsed whole before anything is opened.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use federation::xmpp::{BareJid, XmppConfig};
use serde::{Deserialize, Deserializer, de};

/// What `--print-config` prints: every key with its default and meaning.
pub const DOCUMENTED: &str = include_str!("../../../examples/config/host-manager.toml");

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How the cluster manager calls this host; unique in the domain.
    pub name: String,
    /// Guests keep their files here, and the host its epoch.
    pub state_dir: PathBuf,
    /// Parts encoded at the same time.
    #[serde(default = "cores")]
    pub slots: u32,
    /// Parts taken beyond the slots: they are loaded while others are encoded.
    #[serde(default = "backlog")]
    pub backlog: u32,
    /// Machines the slots are spread over.
    #[serde(default = "guests")]
    pub guests: u32,
    pub xmpp: XmppConfig,
    pub rooms: Rooms,
    #[serde(default)]
    pub guest: GuestCommand,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rooms {
    #[serde(deserialize_with = "room")]
    pub cluster: BareJid,
    /// Nickname that the active cluster manager holds.
    #[serde(default = "manager_nick")]
    pub manager_nick: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GuestCommand {
    /// Program and first arguments of a guest; empty: `guest` beside this program.
    pub command: Vec<String>,
    /// Where peers of a swarm, guests of other hosts among them, reach the guests.
    pub swarm_listen: IpAddr,
}

impl Default for GuestCommand {
    fn default() -> Self {
        Self { command: Vec::new(), swarm_listen: Ipv4Addr::LOCALHOST.into() }
    }
}

fn room<'de, D: Deserializer<'de>>(from: D) -> Result<BareJid, D::Error> {
    let text = String::deserialize(from)?;
    BareJid::new(&text).map_err(|_| de::Error::custom(format!("`{text}` is no room: expected room@service")))
}

fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX))
}

fn backlog() -> u32 {
    16
}

fn guests() -> u32 {
    1
}

fn manager_nick() -> String {
    "active".to_owned()
}

impl Config {
    pub fn load(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("read the configuration {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("understand the configuration {}", path.display()))
    }

    pub fn parse(text: &str) -> Result<Self> {
        let config: Self = toml::from_str(text)?;
        ensure!(!config.name.is_empty(), "`name` is empty");
        ensure!((1..=1024).contains(&config.slots), "`slots` is to be 1 to 1024");
        ensure!((1..=config.slots).contains(&config.guests), "`guests` is to be 1 to `slots`");
        Ok(config)
    }

    /// The command that starts a guest.
    pub fn guest_command(&self) -> Result<Vec<String>> {
        if !self.guest.command.is_empty() {
            return Ok(self.guest.command.clone());
        }
        let beside = std::env::current_exe().context("find this program")?.with_file_name("guest");
        let program = beside.to_str().context("the path of this program is not UTF-8")?.to_owned();
        Ok(vec![program, "--swarm-listen".to_owned(), self.guest.swarm_listen.to_string()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_configuration_is_one_and_shows_the_defaults() {
        let documented = Config::parse(DOCUMENTED).unwrap();
        let required: String = DOCUMENTED
            .lines()
            .filter(|line| {
                ["[", "name", "state_dir", "jid", "password_file", "address", "cluster"]
                    .iter()
                    .any(|k| line.starts_with(k))
            })
            .map(|line| format!("{line}\n"))
            .collect();
        let sparse = Config::parse(&required).unwrap();
        // Slots default to the cores of the machine, so the text can only show an example.
        let shown = |c: &Config| {
            (c.backlog, c.guests, c.rooms.manager_nick.clone(), c.guest.command.clone(), c.guest.swarm_listen)
        };
        assert_eq!(shown(&documented), shown(&sparse));
        assert_eq!(documented.xmpp.transport, sparse.xmpp.transport);
        assert_eq!(documented.xmpp.connect_timeout_ms, sparse.xmpp.connect_timeout_ms);
    }

    #[test]
    fn an_unknown_key_is_refused() {
        let error = Config::parse(&format!("slot = 3\n{DOCUMENTED}")).unwrap_err().to_string();
        assert!(error.contains("unknown field `slot`"), "{error}");
    }
}
