//! One domain's files and processes: its XMPP server, its cluster manager, its host managers, each with a directory of its own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::document::{ClientAccess, DomainAccess, S3Access, write_secret};
use super::{Board, WorldOptions};
use crate::ca::Ca;
use crate::process::{Process, Recipe, workspace_binary};
use crate::prosody::{Peer, Ports, ProsodyConfig};

/// What is known of a domain once its XMPP server runs.
pub(super) struct DomainFiles {
    pub name: String,
    /// Slots of all its host managers.
    pub slots: u32,
    dir: PathBuf,
    xmpp: SocketAddr,
    ca_file: PathBuf,
    s3: Option<S3Access>,
    client_password: String,
}

/// Writes all configuration files and starts the XMPP servers; they are answering when this returns.
pub(super) async fn prepare(
    options: &WorldOptions,
    state: &Path,
    s3: &[Option<S3Access>],
    processes: &mut Vec<Process>,
    board: &mut Board,
) -> Result<Vec<DomainFiles>> {
    let ca = Ca::new("Starling testbed")?;
    let names = &options.domains;
    let places = (0..names.len()).map(place).collect::<Result<Vec<_>>>()?;
    let mut domains = Vec::new();
    for (n, name) in names.iter().enumerate() {
        let dir = state.join(name);
        let hosts = (1..=options.hosts).map(|host| format!("hm{host}"));
        let users: Vec<String> = ["cm".to_owned(), "client".to_owned()].into_iter().chain(hosts).collect();
        let accounts = users.iter().map(|user| (user.clone(), password())).collect::<Vec<_>>();
        let others = || names.iter().enumerate().filter(move |(other, _)| *other != n);
        let members: Vec<String> = others().map(|(_, other)| format!("cm@{other}")).collect();
        let server = ProsodyConfig {
            peers: others()
                .map(|(other, domain)| Peer {
                    domain: domain.clone(),
                    ip: places[other].0,
                    s2s_port: places[other].1.s2s,
                })
                .collect(),
            federation_members: (n == 0).then(|| members.clone()),
            ..ProsodyConfig::new(name, dir.join("prosody"), places[n], accounts.clone())
        };
        server.write(&ca)?;
        let domain = DomainFiles {
            name: name.clone(),
            slots: options.hosts * options.slots,
            xmpp: SocketAddr::new(server.ip, server.ports.c2s),
            ca_file: server.ca_file(),
            s3: s3[n].clone(),
            client_password: accounts[1].1.clone(),
            dir,
        };
        for (user, password) in &accounts {
            domain.write_agent(user, password, |account| match user.as_str() {
                "client" => None,
                "cm" => Some(domain.manager(account, options, (n == 0).then_some(&members))),
                host => Some(domain.host(account, host, options)),
            })?;
        }
        if let Some(agreements) = options.agreements.get(name) {
            let text = toml::to_string(agreements).context("write the agreements")?;
            std::fs::write(domain.agreements(), text).context("write the agreements")?;
        }
        let recipe = Recipe {
            name: format!("{name} prosody"),
            role: "prosody".to_owned(),
            domain: Some(name.clone()),
            program: "prosody".into(),
            arguments: vec!["-F".into(), "--config".into(), server.config_path().into()],
            log: server.log_path(),
        };
        board.starting(&recipe.name, "starting");
        processes.push(Process::start(recipe)?);
        domains.push(domain);
    }
    for (domain, (_, ports)) in domains.iter().zip(places) {
        let server = processes.iter_mut().find(|p| p.recipe.domain.as_deref() == Some(&domain.name));
        let server = server.context("find the XMPP server")?;
        await_ports(server, domain.xmpp.ip(), [ports.c2s, ports.s2s]).await?;
        board.ready(&server.recipe.name, &format!("ready at {}", domain.xmpp));
    }
    Ok(domains)
}

/// An address of its own for the `n`-th domain of this process, so that worlds side by side do not meet.
fn place(n: usize) -> Result<(IpAddr, Ports)> {
    let (pid, n) = (std::process::id(), u8::try_from(n).context("a world of at most 250 domains")?);
    let byte = |part: u32| 1 + u8::try_from(part % 250).unwrap_or(0);
    let ip = IpAddr::V4(Ipv4Addr::new(127, byte(pid / 250), byte(pid), n.saturating_add(2)));
    Ok((ip, Ports::pick(ip)?))
}

fn password() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

async fn await_ports(server: &mut Process, ip: IpAddr, ports: [u16; 2]) -> Result<()> {
    let patience = tokio::time::Instant::now() + Duration::from_secs(30);
    for port in ports {
        while TcpStream::connect((ip, port)).await.is_err() {
            if let Some(death) = server.death()? {
                bail!("{death}");
            }
            if tokio::time::Instant::now() > patience {
                bail!("{} does not listen; see {}", server.recipe.name, server.recipe.log.display());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    Ok(())
}

impl DomainFiles {
    /// `cm`, `hm1`, ...: a directory with the password and, unless it is a person's, the configuration.
    fn write_agent(&self, user: &str, password: &str, config: impl FnOnce(Value) -> Option<Value>) -> Result<()> {
        let dir = self.dir.join(user);
        std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        write_secret(&dir.join("password"), password.as_bytes())?;
        let account = json!({
            "jid": format!("{user}@{}", self.name),
            "password_file": dir.join("password"),
            "address": self.xmpp.to_string(),
            "transport": "starttls",
            "ca_file": self.ca_file,
        });
        let Some(config) = config(account) else { return Ok(()) };
        let text = toml::to_string(&config).with_context(|| format!("write the configuration of {user}"))?;
        write_secret(&dir.join("config.toml"), text.as_bytes())
    }

    /// Configuration of the cluster manager. `members`: of the Federation room, for the domain that has it.
    fn manager(&self, account: Value, options: &WorldOptions, members: Option<&Vec<String>>) -> Value {
        let mut config = json!({
            "domain": self.name,
            "state_dir": self.dir.join("cm/state"),
            "http_listen": "127.0.0.1:0",
            "xmpp": account,
            "rooms": {
                "cluster": self.room("cluster"),
                "shell": self.room("shell"),
                "federation": format!("federation@conference.{}", options.domains[0]),
            },
            "timers": options.timers,
            "overlay": options.overlay,
        });
        if options.agreements.contains_key(&self.name) {
            config["agreements"] = json!({ "path": self.agreements() });
        }
        if let Some(members) = members {
            config["rooms"]["federation_members"] = json!(members);
        }
        if let Some(s3) = &self.s3 {
            config["s3"] = json!({
                "endpoint": s3.endpoint,
                "region": s3.region,
                "access_key": s3.access_key,
                "secret_key": s3.secret_key,
            });
        }
        config
    }

    fn host(&self, account: Value, name: &str, options: &WorldOptions) -> Value {
        let mut config = json!({
            "name": name,
            "state_dir": self.dir.join(name).join("state"),
            "slots": options.slots,
            "xmpp": account,
            "rooms": { "cluster": self.room("cluster") },
        });
        if let (Some(ffmpeg), Ok(guest)) = (&options.ffmpeg, workspace_binary("guest")) {
            config["guest"] = json!({ "command": [guest, "--ffmpeg", ffmpeg] });
        }
        config
    }

    fn agreements(&self) -> PathBuf {
        self.dir.join("cm/agreements.toml")
    }

    fn room(&self, name: &str) -> String {
        format!("{name}@conference.{}", self.name)
    }

    /// What to start once the XMPP servers are there.
    pub fn agents(&self, options: &WorldOptions) -> Result<Vec<Recipe>> {
        let recipe = |program: &str, user: &str| -> Result<Recipe> {
            let dir = self.dir.join(user);
            Ok(Recipe {
                name: format!("{} {user}", self.name),
                role: program.to_owned(),
                domain: Some(self.name.clone()),
                program: workspace_binary(program)?,
                arguments: vec!["--config".into(), dir.join("config.toml").into()],
                log: dir.join("log"),
            })
        };
        let manager = recipe("cluster-manager", "cm");
        let hosts = (1..=options.hosts).map(|n| recipe("host-manager", &format!("hm{n}")));
        std::iter::once(manager).chain(hosts).collect()
    }

    pub fn access(&self, console_url: String) -> DomainAccess {
        DomainAccess {
            name: self.name.clone(),
            xmpp_host: self.xmpp.ip().to_string(),
            xmpp_port: self.xmpp.port(),
            ca_file: self.ca_file.clone(),
            shell_room: self.room("shell"),
            console_url,
            s3: self.s3.clone(),
            client: ClientAccess { jid: format!("client@{}", self.name), password: self.client_password.clone() },
        }
    }
}
