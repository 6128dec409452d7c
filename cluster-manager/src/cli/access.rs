//! How the client comes in: by `--state DIR` of a testbed, a configuration file, or flags; the later go before the earlier. The
//! environment names a directory or a file where no flag says where to go.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use federation::xmpp::XmppConfig;
use serde::Deserialize;

use crate::view::ErrorDoc;

#[derive(Args)]
pub struct AccessArgs {
    /// State directory of `testbed up`; its world.json tells all. STARLING_STATE says the same.
    #[arg(long, global = true, value_name = "DIR")]
    state: Option<PathBuf>,
    /// TOML with `shell` (the room) and a table `[xmpp]`, as in examples/config/starling.toml. STARLING_CONFIG says the same.
    #[arg(long, global = true, value_name = "FILE")]
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
    /// `Err` inside: flags that contradict each other. `env`: the environment.
    pub fn resolve(&self, env: impl Fn(&str) -> Option<OsString>) -> Result<Result<Access, ErrorDoc>> {
        let is_open = self.state.is_none() && self.config.is_none() && self.jid.is_none();
        let env = |name| env(name).filter(|value| is_open && !value.is_empty()).map(PathBuf::from);
        let state = self.state.clone().or_else(|| env("STARLING_STATE"));
        let config = self.config.clone().or_else(|| env("STARLING_CONFIG"));
        if self.state.is_some() && self.config.is_some() {
            return Ok(Err(contradiction("--state and --config both say where to go", "give one of them")));
        }
        if self.domain.is_some() && state.is_none() {
            return Ok(Err(contradiction("--domain is one of a world", "give --state too")));
        }
        if self.jid.is_some() && self.password_file.is_none() {
            return Ok(Err(contradiction("--jid comes without a password", "give --password-file too")));
        }
        let access = match (state, config, &self.jid) {
            (Some(dir), ..) => from_world(&dir.join("world.json"), self.domain.as_deref())?,
            (None, Some(file), _) => {
                let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
                toml::from_str(&text).with_context(|| format!("understand {}", file.display()))?
            }
            (None, None, Some(jid)) => {
                let (_, domain) = jid.split_once('@').context("--jid is an account such as me@a.test")?;
                let xmpp = XmppConfig::new(jid, "", format!("{domain}:5222"));
                Access { shell: format!("shell@conference.{domain}"), xmpp }
            }
            (None, None, None) => {
                bail!("which federation? give --state DIR, --config FILE, or --jid with --password-file and --server")
            }
        };
        Ok(Ok(self.over(access)))
    }

    /// What flags say goes before what is written somewhere.
    fn over(&self, Access { shell, xmpp }: Access) -> Access {
        Access {
            shell: self.shell.clone().unwrap_or(shell),
            xmpp: XmppConfig {
                jid: self.jid.clone().unwrap_or(xmpp.jid),
                password: xmpp.password.filter(|_| self.password_file.is_none()),
                password_file: self.password_file.clone().or(xmpp.password_file),
                address: self.server.clone().unwrap_or(xmpp.address),
                ca_file: self.ca.clone().or(xmpp.ca_file),
                ..xmpp
            },
        }
    }
}

fn contradiction(message: &str, hint: &str) -> ErrorDoc {
    ErrorDoc { code: "usage".into(), message: message.into(), hint: Some(hint.into()), line: None }
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Call {
        #[command(flatten)]
        access: AccessArgs,
    }

    /// A world of the account `world@a.test` and a file of `file@b.test`.
    fn places() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let world = r#"{"domains": [{"name": "a.test", "xmpp_host": "127.0.0.1", "xmpp_port": 1, "ca_file": "a.pem",
            "shell_room": "shell@a.test", "client": {"jid": "world@a.test", "password": "pw"}}]}"#;
        std::fs::write(dir.path().join("world.json"), world).unwrap();
        let file = "shell = 'shell@b.test'\n[xmpp]\njid = 'file@b.test'\npassword = 'pw'\naddress = '127.0.0.1:2'\n";
        std::fs::write(dir.path().join("starling.toml"), file).unwrap();
        dir
    }

    fn resolve(arguments: &[&str], env: &[(&str, &str)]) -> Result<Result<Access, ErrorDoc>> {
        let call = Call::parse_from(["starling"].iter().chain(arguments));
        call.access.resolve(|name| env.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn flags_go_before_the_environment_and_what_they_leave_open_is_read() {
        let dir = places();
        let (state, config) = (dir.path().to_str().unwrap(), dir.path().join("starling.toml"));
        let (config, elsewhere) =
            (config.to_str().unwrap(), [("STARLING_STATE", "/nowhere"), ("STARLING_CONFIG", "/no")]);
        let account = ["--jid", "me@c.test", "--password-file", "pw"];
        let with = |more: &[&'static str]| [&["--state", state][..], more].concat();
        for (arguments, jid, server, shell) in [
            (vec!["--config", config], "file@b.test", "127.0.0.1:2", "shell@b.test"),
            (with(&[]), "world@a.test", "127.0.0.1:1", "shell@a.test"),
            (account.to_vec(), "me@c.test", "c.test:5222", "shell@conference.c.test"),
            (with(&account), "me@c.test", "127.0.0.1:1", "shell@a.test"),
            (with(&["--server", "h:3", "--shell", "s@a.test"]), "world@a.test", "h:3", "s@a.test"),
        ] {
            let Access { shell: room, xmpp } = resolve(&arguments, &elsewhere).unwrap().unwrap();
            assert_eq!((&xmpp.jid[..], &xmpp.address[..], &room[..]), (jid, server, shell), "{arguments:?}");
            assert_eq!(xmpp.password.is_none(), arguments.contains(&"--password-file"), "{arguments:?}");
        }
        let access = resolve(&["--ca", "other.pem"], &[("STARLING_STATE", state)]).unwrap().unwrap();
        assert_eq!((&access.xmpp.jid[..], access.xmpp.ca_file), ("world@a.test", Some("other.pem".into())));
        assert!(resolve(&[], &elsewhere).is_err() && resolve(&[], &[]).is_err());
    }

    #[test]
    fn flags_that_contradict_each_other_are_refused() {
        let dir = places();
        let state = dir.path().to_str().unwrap();
        for arguments in [
            vec!["--state", state, "--config", "file"],
            vec!["--state", state, "--jid", "nobody@z.test"],
            vec!["--config", "file", "--domain", "a.test"],
        ] {
            assert_eq!(resolve(&arguments, &[]).unwrap().unwrap_err().code, "usage", "{arguments:?}");
        }
    }
}
