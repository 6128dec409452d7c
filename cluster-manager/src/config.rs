//! The cluster manager's configuration: parsed whole before anything is opened.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use federation::timers::Timers;
use federation::xmpp::XmppConfig;
use serde::{Deserialize, Serialize};
use storage::s3::S3Config;

/// What `--print-config` prints: every key with its default and meaning.
pub const DOCUMENTED: &str = include_str!("../../examples/config/cluster-manager.toml");

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Host name of the domain's XMPP server.
    pub domain: String,
    /// Where the journal lives.
    pub state_dir: PathBuf,
    /// REST, console and player page.
    #[serde(default = "loopback")]
    pub http_listen: SocketAddr,
    /// How others reach the page above, when it is not by `http_listen` (behind a proxy).
    pub public_url: Option<String>,
    pub xmpp: XmppConfig,
    pub rooms: Rooms,
    /// The home's own keys; a domain without them lends capacity but takes no jobs.
    pub s3: Option<S3Config>,
    #[serde(default)]
    pub agreements: AgreementsFile,
    #[serde(default)]
    pub job: JobDefaults,
    #[serde(default)]
    pub overlay: Overlay,
    /// Waiting times of the negotiation.
    #[serde(default)]
    pub timers: Timers,
    /// Where this domain is, for partners that care.
    pub region: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rooms {
    pub cluster: String,
    pub shell: String,
    pub federation: String,
    /// Accounts to admit to the Federation room; only where that room is ours.
    #[serde(default)]
    pub federation_members: Vec<String>,
    /// Accounts of this domain that may speak as host managers; a final `*` stands for any ending.
    #[serde(default = "host_accounts")]
    pub host_accounts: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgreementsFile {
    /// TOML of `federation::agreement`; absent: every member of the Federation room is a partner.
    pub path: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JobDefaults {
    /// Wished length of a part of a film, seconds.
    pub chunk_seconds: f64,
    /// How long presigned URLs in an order are good for, seconds.
    pub url_ttl_seconds: u64,
}

impl Default for JobDefaults {
    fn default() -> Self {
        Self { chunk_seconds: 10.0, url_ttl_seconds: 6 * 3600 }
    }
}

/// How the domain's share of a job is loaded into its guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Overlay {
    pub mode: OverlayMode,
    /// Where the guests reach the torrent controller and the origin of a share.
    pub listen: IpAddr,
    /// Requests at one time that the object store admits from this domain, where it limits them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin_streams: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OverlayMode {
    /// Where it pays: common bytes, or a store that is limited.
    Auto,
    Always,
    Never,
}

impl Default for Overlay {
    fn default() -> Self {
        Self { mode: OverlayMode::Auto, listen: Ipv4Addr::LOCALHOST.into(), origin_streams: None }
    }
}

fn host_accounts() -> Vec<String> {
    vec!["hm*".to_owned()]
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

impl Config {
    pub fn load(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("read the configuration {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("understand the configuration {}", path.display()))
    }
}
