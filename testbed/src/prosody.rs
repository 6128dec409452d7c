//! A real Prosody per domain: its configuration, its accounts and its process.
//!
//! Nothing of the system's own Prosody is used but the program: each instance has its own directory and loopback address. The
//! child is known by its pid and is dead when the handle is dropped.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::ca::Ca;

/// On a loaded machine; 0.1 s is usual.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// A room with hundreds of occupants takes seconds to dissolve.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

#[derive(Clone, Debug)]
pub struct ProsodyConfig {
    /// `a.test`; its rooms are at `conference.a.test`.
    pub domain: String,
    /// Made if missing; holds everything of this server.
    pub dir: PathBuf,
    /// Any address of 127.0.0.0/8.
    pub ip: IpAddr,
    pub ports: Ports,
    /// The other domains. Their ports must be known before the first server starts.
    pub peers: Vec<Peer>,
    /// User names and passwords.
    pub accounts: Vec<(String, String)>,
    /// Bare JIDs of the cluster managers: owners of all rooms here.
    pub admins: Vec<String>,
    /// `Some`: the Federation room is here, and these bare JIDs are its members from the start.
    pub federation_members: Option<Vec<String>>,
}

#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// STARTTLS.
    pub c2s: u16,
    pub c2s_tls: u16,
    pub s2s: u16,
    /// WebSocket, without and with TLS.
    pub http: u16,
    pub https: u16,
}

impl Ports {
    /// Ports that are free now. They are released again, since a server must be told its peers' ports before it starts; an
    /// address of its own for each server makes it unlikely that somebody takes one in between, and then the start fails.
    pub fn pick(ip: IpAddr) -> Result<Self> {
        let listeners: Vec<_> = (0..5).map(|_| TcpListener::bind((ip, 0))).collect::<Result<_, _>>()?;
        let ports: Vec<u16> = listeners.iter().map(|l| l.local_addr().map(|a| a.port())).collect::<Result<_, _>>()?;
        let [c2s, c2s_tls, s2s, http, https] = ports[..] else { bail!("five listeners, {} ports", ports.len()) };
        Ok(Self { c2s, c2s_tls, s2s, http, https })
    }

    fn all(&self) -> [u16; 5] {
        [self.c2s, self.c2s_tls, self.s2s, self.http, self.https]
    }
}

#[derive(Clone, Debug)]
pub struct Peer {
    pub domain: String,
    pub ip: IpAddr,
    pub s2s_port: u16,
}

impl ProsodyConfig {
    /// A domain by itself with these users, of whom `cm` owns the rooms.
    pub fn new(domain: &str, dir: PathBuf, (ip, ports): (IpAddr, Ports), accounts: Vec<(String, String)>) -> Self {
        let (domain, admins) = (domain.to_owned(), vec![format!("cm@{domain}")]);
        Self { domain, dir, ip, ports, peers: Vec::new(), accounts, admins, federation_members: None }
    }

    /// How the others find this one.
    pub fn as_peer(&self) -> Peer {
        Peer { domain: self.domain.clone(), ip: self.ip, s2s_port: self.ports.s2s }
    }

    pub fn ca_file(&self) -> PathBuf {
        self.dir.join("certs/ca.crt")
    }

    pub fn log_path(&self) -> PathBuf {
        self.dir.join("prosody.log")
    }

    /// What `prosody --config` is given.
    pub fn config_path(&self) -> PathBuf {
        self.dir.join("prosody.cfg.lua")
    }

    /// Writes everything under `dir`; for whoever starts the program himself.
    pub fn write(&self, ca: &Ca) -> Result<()> {
        for sub in ["data", "certs", "plugins"] {
            fs::create_dir_all(self.dir.join(sub)).with_context(|| format!("make {}", self.dir.display()))?;
        }
        let certificate = ca.issue(&self.domain)?;
        ca.write(&self.ca_file())?;
        let certs = self.dir.join("certs");
        fs::write(certs.join(format!("{}.crt", self.domain)), certificate.pem)?;
        write_secret(&certs.join(format!("{}.key", self.domain)), &certificate.key_pem)?;
        for (name, text) in [
            ("mod_s2s_peers.lua", include_str!("../assets/prosody/mod_s2s_peers.lua")),
            ("mod_starling_rooms.lua", include_str!("../assets/prosody/mod_starling_rooms.lua")),
        ] {
            fs::write(self.dir.join("plugins").join(name), text)?;
        }
        let accounts = self.dir.join("data").join(encode(&self.domain)).join("accounts");
        fs::create_dir_all(&accounts)?;
        for (user, password) in &self.accounts {
            // Prosody replaces the password by its SCRAM hash at the first log-in.
            let account = format!("return {{\n\t[\"password\"] = {};\n}};\n", lua(password));
            write_secret(&accounts.join(encode(user) + ".dat"), &account)?;
        }
        fs::write(self.config_path(), self.render()?).context("write the configuration")
    }

    fn render(&self) -> Result<String> {
        // Only root may be asked to run as root, and only root must be.
        let root = fs::metadata(&self.dir)?.uid() == 0;
        let dir = self.dir.canonicalize()?;
        let mut text = include_str!("../assets/prosody/prosody.cfg.lua").to_owned();
        for (word, value) in [
            ("@RUN_AS_ROOT@", if root { "run_as_root = true".into() } else { String::new() }),
            ("@DIR@", dir.to_str().context("the directory's name is not UTF-8")?.to_owned()),
            ("@DOMAIN@", self.domain.clone()),
            ("@IP@", self.ip.to_string()),
            ("@C2S@", self.ports.c2s.to_string()),
            ("@C2S_TLS@", self.ports.c2s_tls.to_string()),
            ("@S2S@", self.ports.s2s.to_string()),
            ("@HTTP@", self.ports.http.to_string()),
            ("@HTTPS@", self.ports.https.to_string()),
            ("@PEERS@", self.peers.iter().map(peer_lines).collect()),
            ("@ADMINS@", lua_list(&self.admins)),
            ("@ROOMS@", self.rooms()),
        ] {
            text = text.replace(word, &value);
        }
        Ok(text)
    }

    fn rooms(&self) -> String {
        let domain = lua(&self.domain);
        let mut rooms = format!(
            "\n\t\tshell = {{ domain = {domain} }};\n\t\tcluster = {{ domain = {domain}; moderators_only = true }};\n"
        );
        if let Some(members) = &self.federation_members {
            let members = lua_list(members);
            rooms += &format!("\t\tfederation = {{ members_only = true; members = {{ {members} }} }};\n");
        }
        rooms + "\t"
    }
}

/// A running server; killed when dropped.
pub struct Prosody {
    config: ProsodyConfig,
    child: Child,
}

impl Prosody {
    /// Writes everything under `config.dir` and waits until all ports answer.
    pub async fn start(config: ProsodyConfig, ca: &Ca) -> Result<Self> {
        config.write(ca)?;
        let mut prosody = Self { child: spawn(&config)?, config };
        prosody.ready().await?;
        Ok(prosody)
    }

    pub fn config(&self) -> &ProsodyConfig {
        &self.config
    }

    /// Where clients come in with STARTTLS.
    pub fn c2s(&self) -> SocketAddr {
        self.at(self.config.ports.c2s)
    }

    /// Direct TLS.
    pub fn c2s_tls(&self) -> SocketAddr {
        self.at(self.config.ports.c2s_tls)
    }

    /// WebSocket without TLS, at `/xmpp-websocket`.
    pub fn http(&self) -> SocketAddr {
        self.at(self.config.ports.http)
    }

    /// WebSocket with TLS, at `/xmpp-websocket`.
    pub fn https(&self) -> SocketAddr {
        self.at(self.config.ports.https)
    }

    pub fn s2s(&self) -> SocketAddr {
        self.at(self.config.ports.s2s)
    }

    pub fn ca_file(&self) -> PathBuf {
        self.config.ca_file()
    }

    pub fn log_path(&self) -> PathBuf {
        self.config.log_path()
    }

    /// `None` once it has ended.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// True while the process lives.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Asks it to end; kills it if it does not.
    pub async fn stop(mut self) -> Result<()> {
        if let Some(pid) = self.child.id() {
            kill(Pid::from_raw(pid.try_into()?), Signal::SIGTERM).context("ask Prosody to end")?;
            if tokio::time::timeout(STOP_TIMEOUT, self.child.wait()).await.is_err() {
                self.child.kill().await.context("kill Prosody")?;
            }
        }
        Ok(())
    }

    /// `kill -9`, and waits until it is dead.
    pub async fn kill9(&mut self) -> Result<()> {
        self.child.kill().await.context("kill Prosody")
    }

    /// Starts it again on the same ports with the same data.
    pub async fn restart(&mut self) -> Result<()> {
        if self.is_running() {
            self.kill9().await?;
        }
        self.child = spawn(&self.config)?;
        self.ready().await
    }

    fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.config.ip, port)
    }

    async fn ready(&mut self) -> Result<()> {
        let domain = self.config.domain.clone();
        let output = self.config.dir.join("prosody.out");
        let all = async {
            for port in self.config.ports.all() {
                while TcpStream::connect(self.at(port)).await.is_err() {
                    if let Ok(Some(status)) = self.child.try_wait() {
                        bail!("Prosody of {domain} ended at once ({status}): see {}", output.display());
                    }
                    tokio::time::sleep(POLL).await;
                }
            }
            Ok(())
        };
        tokio::time::timeout(START_TIMEOUT, all).await.with_context(|| {
            format!("Prosody of {} does not open its ports: see {}", self.config.domain, output.display())
        })?
    }
}

fn spawn(config: &ProsodyConfig) -> Result<Child> {
    let output = fs::File::create(config.dir.join("prosody.out"))?;
    Command::new("prosody")
        .arg("-F")
        .arg("--config")
        .arg(config.config_path())
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .kill_on_drop(true)
        .spawn()
        .context("start `prosody`: is the Debian package installed?")
}

fn write_secret(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes()).with_context(|| format!("write {}", path.display()))
}

fn peer_lines(peer: &Peer) -> String {
    let Peer { domain, ip, s2s_port } = peer;
    ["", "conference."]
        .map(|host| format!("[{}] = {{ \"{ip}\", {s2s_port} }}; ", lua(&format!("{host}{domain}"))))
        .concat()
}

/// A Lua string that means exactly `text`.
fn lua(text: &str) -> String {
    let body: String = text
        .bytes()
        .map(|b| {
            if b.is_ascii_alphanumeric() || b"@._- ".contains(&b) {
                char::from(b).to_string()
            } else {
                format!("\\{b:03}")
            }
        })
        .collect();
    format!("\"{body}\"")
}

fn lua_list(texts: &[String]) -> String {
    texts.iter().map(|text| lua(text) + "; ").collect()
}

/// The file name that Prosody's storage gives to `name`.
fn encode(name: &str) -> String {
    name.bytes()
        .map(|b| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02x}") })
        .collect()
}

/// `go-sendxmpp` (Debian package), logged in on this server with its CA trusted. Add `--chatroom ROOM` and a message.
pub fn go_sendxmpp(jid: &str, password: &str, server: SocketAddr, ca_file: &Path) -> Command {
    let mut command = Command::new("go-sendxmpp");
    command
        .args(["--username", jid, "--password", password, "--jserver", &server.to_string()])
        .env("SSL_CERT_FILE", ca_file)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}
