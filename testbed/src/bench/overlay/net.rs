//! Network namespaces joined by a bridge, with a cap on every link and counters in the kernel.

use std::fs;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Host 0 is the origin. Everything is gone when this is dropped.
pub struct Net {
    tag: String,
    hosts: u32,
    /// Sleeps in the bridge's namespace, so that /proc shows its devices without a fork.
    window: Option<Child>,
}

/// Bytes that came from and went to each host so far, host 0 first.
#[derive(Clone, Debug)]
pub struct Counters {
    pub from: Vec<u64>,
    pub to: Vec<u64>,
}

impl Net {
    pub const TRACKER: &'static str = "10.77.255.254";

    pub fn address(host: u32) -> String {
        format!("10.77.{}.{}", (host + 1) / 250, (host + 1) % 250)
    }

    pub fn name(&self, host: impl std::fmt::Display) -> String {
        format!("{}{host}", self.tag)
    }

    /// `rates`: bytes per second each way of the origin and of each host; `None` = no cap.
    pub fn up(rates: &[Option<u64>], congestion: &str) -> Result<Self> {
        let hosts = rates.len() as u32 - 1;
        let mut net = Self { tag: format!("ovb{}x", std::process::id()), hosts, window: None };
        let root = net.name("root");
        ip(&["netns", "add", &root])?;
        ip(&["-n", &root, "link", "add", "name", "br0", "type", "bridge"])?;
        ip(&["-n", &root, "addr", "add", &format!("{}/16", Self::TRACKER), "dev", "br0"])?;
        ip(&["-n", &root, "link", "set", "br0", "up"])?;
        // A host with a packet filter would look at every frame on the bridge; without one there is no such switch.
        let plain = ["iptables", "ip6tables", "arptables"].map(|table| format!("net.bridge.bridge-nf-call-{table}=0"));
        let tables = plain.each_ref().map(String::as_str);
        let _ = command("ip", &[&["netns", "exec", &root, "sysctl", "-qw"], &tables[..]].concat());
        for (host, rate) in (0..=hosts).zip(rates) {
            let (name, port) = (net.name(host), format!("p{host}"));
            ip(&["netns", "add", &name])?;
            ip(&["-n", &root, "link", "add", &port, "type", "veth", "peer", "name", "e0", "netns", &name])?;
            ip(&["-n", &root, "link", "set", &port, "master", "br0", "up"])?;
            ip(&["-n", &name, "addr", "add", &format!("{}/16", Self::address(host)), "dev", "e0"])?;
            ip(&["-n", &name, "link", "set", "e0", "up"])?;
            ip(&["-n", &name, "link", "set", "lo", "up"])?;
            let set = format!("net.ipv4.tcp_congestion_control={congestion}");
            command("ip", &["netns", "exec", &name, "sysctl", "-qw", &set])?;
            if let Some(rate) = rate {
                let rate = format!("{}bit", rate * 8);
                let cap = ["root", "tbf", "rate", &rate, "burst", "16kb", "latency", "100ms"];
                for (namespace, device) in [(&name, "e0"), (&root, port.as_str())] {
                    command("tc", &[&["-n", namespace, "qdisc", "add", "dev", device], &cap[..]].concat())?;
                }
            }
        }
        let mut window = Command::new("ip");
        window.args(["netns", "exec", &root, "sleep", "infinity"]).stdin(Stdio::null());
        net.window = Some(window.spawn().context("starting sleep")?);
        Ok(net)
    }

    pub fn inside(&self, host: u32, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(host), program]);
        command
    }

    pub fn counters(&self) -> Result<Counters> {
        let pid = self.window.as_ref().context("no window")?.id();
        let table = fs::read_to_string(format!("/proc/{pid}/net/dev")).context("reading the counters")?;
        let port = |host: u32| {
            let head = format!("p{host}:");
            let line = table.lines().find_map(|line| line.trim_start().strip_prefix(&head))?;
            let field = |n: usize| line.split_whitespace().nth(n)?.parse::<u64>().ok();
            Some((field(0)?, field(8)?))
        };
        let all: Option<Vec<_>> = (0..=self.hosts).map(port).collect();
        let (from, to) = all.context("a host has no counter")?.into_iter().unzip();
        Ok(Counters { from, to })
    }

    /// Packets that the caps threw away: at the hosts' own ends, at the bridge's.
    pub fn drops(&self) -> (u64, u64) {
        let of = |namespace: String| {
            let out = Command::new("tc").args(["-n", &namespace, "-s", "qdisc"]).output();
            let text = out.map(|out| String::from_utf8_lossy(&out.stdout).into_owned()).unwrap_or_default();
            let counts = text.split("dropped ").skip(1);
            counts.filter_map(|rest| rest.split(',').next()?.parse::<u64>().ok()).sum::<u64>()
        };
        ((0..=self.hosts).map(|host| of(self.name(host))).sum(), of(self.name("root")))
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        if let Some(window) = &mut self.window {
            let _ = window.kill();
            let _ = window.wait();
        }
        for name in (0..=self.hosts).map(|h| self.name(h)).chain([self.name("root")]) {
            let _ = Command::new("ip").args(["netns", "del", &name]).stderr(Stdio::null()).status();
        }
    }
}

fn ip(args: &[&str]) -> Result<()> {
    command("ip", args)
}

fn command(program: &str, args: &[&str]) -> Result<()> {
    let out = Command::new(program).args(args).output().with_context(|| format!("running {program}"))?;
    ensure!(out.status.success(), "{program} {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr).trim());
    Ok(())
}
