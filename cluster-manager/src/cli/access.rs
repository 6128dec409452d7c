//! How the client comes in: `--state DIR` of a testbed, a configuration file, or flags; the later fills what the earlier
//! leaves open.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use federation::xmpp::XmppConfig;
use serde::Deserialize;

#[derive(Args)]
pub struct AccessArgs {
    /// State directory of `testbed up`; its world.json tells all.
    #[arg(long, global = true, env = "STARLING_STATE", value_name = "DIR")]
    state: Option<PathBuf>,
    /// TOML with `shell` (the room) and a table `[xmpp]`, as in examples/config/starling.toml.
    #[arg(long, global = true, env = "STARLING_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Which domain of the world to use; the first unless given.
    #[arg(long, global = true)]
    domain: Option<String>,
    /// Account, such as me@a.test.
    #[arg(long, global = true)]
    jid: Option<String>,
    /// A file whose first line is the account's password.
    #[arg(long, global = true, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Host and port of the XMPP server.
    #[arg(long, global = true, value_name = "HOST:PORT")]
    server: Option<String>,
    /// Certificate authority to trust, PEM; the system's unless given.
    #[arg(long, global = true, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The domain's Shell room; shell@conference.DOMAIN unless given.
    #[arg(long, global = true, value_name = "ROOM")]
    shell: Option<String>,
}

/// Everything needed to come in.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Access {
    pub shell: String,
    pub xmpp: XmppConfig,
}

#[derive(Deserialize)]
struct World {
    domains: Vec<WorldDomain>,
}

#[derive(Deserialize)]
struct WorldDomain {
    name: String,
    xmpp_host: String,
    xmpp_port: u16,
    ca_file: PathBuf,
    shell_room: String,
    client: WorldClient,
}

#[derive(Deserialize)]
struct WorldClient {
    jid: String,
    password: String,
}

impl AccessArgs {
    pub fn resolve(&self) -> Result<Access> {
        match (&self.state, &self.config, &self.jid) {
            (Some(dir), ..) => from_world(&dir.join("world.json"), self.domain.as_deref()),
            (None, Some(file), _) => {
                let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
                toml::from_str(&text).with_context(|| format!("understand {}", file.display()))
            }
            (None, None, Some(jid)) => self.by_flags(jid),
            (None, None, None) => {
                bail!("which federation? give --state DIR, --config FILE, or --jid with --password-file and --server")
            }
        }
    }

    fn by_flags(&self, jid: &str) -> Result<Access> {
        let (_, domain) = jid.split_once('@').context("--jid is an account such as me@a.test")?;
        let server = self.server.clone().unwrap_or_else(|| format!("{domain}:5222"));
        let password_file = self.password_file.clone().context("give --password-file too")?;
        let shell = self.shell.clone().unwrap_or_else(|| format!("shell@conference.{domain}"));
        Ok(Access {
            shell,
            xmpp: XmppConfig {
                password: None,
                password_file: Some(password_file),
                ca_file: self.ca.clone(),
                ..XmppConfig::new(jid, "", server)
            },
        })
    }
}

fn from_world(file: &Path, domain: Option<&str>) -> Result<Access> {
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("read {} (is the world up? `testbed up --state DIR`)", file.display()))?;
    let world: World = serde_json::from_str(&text).with_context(|| format!("understand {}", file.display()))?;
    let found = world.domains.into_iter().find(|d| domain.is_none_or(|name| d.name == name));
    let domain = found.context("this world has no such domain")?;
    Ok(Access {
        shell: domain.shell_room,
        xmpp: XmppConfig {
            ca_file: Some(domain.ca_file),
            ..XmppConfig::new(
                domain.client.jid,
                domain.client.password,
                format!("{}:{}", domain.xmpp_host, domain.xmpp_port),
            )
        },
    })
}
