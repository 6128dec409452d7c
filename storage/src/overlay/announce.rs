//! What nodes and the torrent controller say to each other over HTTP.
//!
//! Two ways in: the query string of an ordinary BitTorrent client (BEP-3, compact answers by BEP-23), and a JSON report of
//! our peers with what the policy wants to know. Both come from the network and are believed only after checks.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::bencode::Value;
use super::bits::Bits;
use super::metainfo::InfoHash;
use super::policy::{Demand, Report};
use crate::hex::unhex;

/// A report's demand of more ranges than this is refused.
const RANGES_MAX: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    pub info_hash: InfoHash,
    pub peer_id: [u8; 20],
    pub port: u16,
    /// Bytes still lacking, by the client's own word.
    pub left: u64,
    pub stopped: bool,
    pub token: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("announce lacks `{0}` or has it in another form")]
    Field(&'static str),
    #[error("the token is not this swarm's")]
    Token,
    #[error("no such swarm here")]
    Unknown,
}

impl Error {
    pub fn code(&self) -> &'static str {
        match self {
            Error::Field(_) => "announce-malformed",
            Error::Token => "announce-foreign-token",
            Error::Unknown => "announce-unknown-swarm",
        }
    }

    /// How an ordinary client is told.
    pub fn bencoded(&self) -> Vec<u8> {
        Value::dict([("failure reason", Value::bytes(self.to_string().into_bytes()))]).encode()
    }
}

impl Query {
    /// Reads the part of the URL after `?`.
    pub fn parse(query: &str) -> Result<Self, Error> {
        let mut fields = std::collections::BTreeMap::new();
        for pair in query.split('&') {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            fields.insert(key, value);
        }
        let bytes20 = |key: &'static str| {
            let raw = fields.get(key).and_then(|v| percent(v)).ok_or(Error::Field(key))?;
            <[u8; 20]>::try_from(raw).map_err(|_| Error::Field(key))
        };
        let number =
            |key: &'static str| fields.get(key).map(|v| v.parse::<u64>().map_err(|_| Error::Field(key))).transpose();
        let port =
            number("port")?.and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0).ok_or(Error::Field("port"))?;
        let token = fields.get("token").and_then(|v| percent(v)).unwrap_or_default();
        Ok(Self {
            info_hash: bytes20("info_hash")?,
            peer_id: bytes20("peer_id")?,
            port,
            left: number("left")?.unwrap_or(u64::MAX),
            stopped: fields.get("event") == Some(&"stopped"),
            token: String::from_utf8(token).map_err(|_| Error::Field("token"))?,
        })
    }

    /// The node's identity for the policy, from the client's own.
    pub fn node(&self) -> u64 {
        Self::node_of(&self.peer_id, &self.info_hash)
    }

    /// One client may take several parts, each by a torrent of its own.
    pub fn node_of(peer_id: &[u8; 20], info_hash: &InfoHash) -> u64 {
        let digest = blake3::hash(&[*peer_id, *info_hash].concat());
        digest.as_bytes().first_chunk().map_or(0, |b| u64::from_be_bytes(*b))
    }
}

fn percent(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut out = Vec::new();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                unhex(std::str::from_utf8(&digits).ok()?)?.first().copied()?
            }
            b'+' => b' ',
            _ => byte,
        });
    }
    Some(out)
}

/// The tracker's answer: IPv4 peers in 6 bytes each, IPv6 in 18 (BEP-7).
pub fn compact(interval_s: u64, peers: &[SocketAddr]) -> Vec<u8> {
    let (mut four, mut six) = (Vec::new(), Vec::new());
    for peer in peers {
        match peer.ip() {
            IpAddr::V4(ip) => {
                four.extend_from_slice(&ip.octets());
                four.extend_from_slice(&peer.port().to_be_bytes());
            }
            IpAddr::V6(ip) => {
                six.extend_from_slice(&ip.octets());
                six.extend_from_slice(&peer.port().to_be_bytes());
            }
        }
    }
    let interval = Value::Int(interval_s as i64);
    let lists = [("peers", Value::bytes(four)), ("peers6", Value::bytes(six))];
    Value::dict([("interval", interval.clone()), ("min interval", interval)].into_iter().chain(lists)).encode()
}

/// What one of our peers reports; `POST /swarm/announce`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerReport {
    pub info_hash: String,
    pub token: String,
    pub node: u64,
    pub port: u16,
    #[serde(default)]
    pub rack: u32,
    /// Piece ranges wanted, `[start, end, seed_only]`; empty means all. Told with every report (state is soft).
    #[serde(default)]
    pub demand: Vec<(u32, u32, bool)>,
    /// Pieces held: BEP-3 bitfield in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub have: Option<String>,
    #[serde(default)]
    pub complete: bool,
    #[serde(default)]
    pub starving: bool,
    #[serde(default)]
    pub stopped: bool,
    /// Why this node cannot become whole (a full disk, say), as `code: text`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// The answer may wait this long for something to change, in milliseconds.
    #[serde(default)]
    pub wait_ms: u64,
    /// Bytes that came from peers and from the origin, for display only (nothing is decided by them).
    #[serde(default)]
    pub received: (u64, u64),
}

/// What it is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerOrders {
    pub role: String,
    pub interval_ms: u64,
    pub peers: Vec<SocketAddr>,
    /// Ordinary clients that may connect, by address.
    #[serde(default)]
    pub guests: Vec<IpAddr>,
    #[serde(default)]
    pub origin: Option<SocketAddr>,
    /// The origin is an object store: ask `/swarm/lease` for what to read there.
    #[serde(default)]
    pub store: bool,
    /// The load is over for this node.
    #[serde(default)]
    pub stop: bool,
    /// Why it is over, if it failed: `code: text`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

impl PeerReport {
    pub fn parse(body: &[u8]) -> Result<Self, Error> {
        let report: Self = serde_json::from_slice(body).map_err(|_| Error::Field("body"))?;
        if report.port == 0 {
            return Err(Error::Field("port"));
        }
        if report.demand.len() > RANGES_MAX {
            return Err(Error::Field("demand"));
        }
        Ok(report)
    }

    pub fn info_hash(&self) -> Option<InfoHash> {
        unhex(&self.info_hash)?.try_into().ok()
    }

    /// For the policy, of a dataset of `pieces`. A bitfield of another length is a lie and refused.
    pub fn report(&self, pieces: u32) -> Result<Report, Error> {
        let have = match &self.have {
            Some(text) => Some(Bits::from_hex(pieces, text).ok_or(Error::Field("have"))?),
            None => None,
        };
        let demand =
            self.demand.iter().map(|(start, end, seed_only)| Demand { range: *start..*end, seed_only: *seed_only });
        // "Complete" without the pieces is not believed: only the bitfield counts where there is one.
        Ok(Report { rack: self.rack, demand: demand.collect(), have, complete: self.complete, starving: self.starving })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str =
        "info_hash=%12%34567890123456789012&peer_id=-AR2450-aaaaaaaaaaaa&port=6881&left=5&event=started&token=a%20b";

    #[test]
    fn an_ordinary_announce_is_read() {
        let query = Query::parse(GOOD).unwrap();
        assert_eq!((query.port, query.left, query.stopped, query.token.as_str()), (6881, 5, false, "a b"));
        assert_eq!(query.info_hash[..3], [0x12, 0x34, b'5']);
    }

    #[test]
    fn false_ports_short_hashes_and_forged_counters_are_refused() {
        for (from, to) in [
            ("port=6881", "port=0"),
            ("port=6881", "port=65536"),
            ("port=6881", ""),
            ("port=6881", "port=-1"),
            ("left=5", "left=-5"),
            ("left=5", "left=99999999999999999999"),
            ("%12", ""),
            ("%12", "%1"),
            ("-AR2450-", ""),
        ] {
            assert!(Query::parse(&GOOD.replace(from, to)).is_err(), "{to}");
        }
        for body in [
            "{}",
            "[]",
            "",
            r#"{"info_hash":"","token":"","node":1,"port":0}"#,
            r#"{"info_hash":"","token":"","node":-1,"port":1}"#,
        ] {
            assert_eq!(PeerReport::parse(body.as_bytes()).unwrap_err().code(), "announce-malformed");
        }
    }

    #[test]
    fn a_bitfield_of_another_length_is_a_lie() {
        let body = br#"{"info_hash":"","token":"","node":1,"port":9,"have":"ffff"}"#;
        let report = PeerReport::parse(body).unwrap();
        assert!(report.report(16).unwrap().have.unwrap().is_full());
        assert_eq!(report.report(15).unwrap_err(), Error::Field("have"));
    }

    #[test]
    fn compact_answers_carry_six_bytes_a_peer() {
        let answer = compact(2, &["10.0.0.1:258".parse().unwrap()]);
        let answer = super::super::bencode::decode(&answer).unwrap();
        assert_eq!(answer.get("peers").unwrap().as_bytes().unwrap(), [10, 0, 0, 1, 1, 2]);
    }

    proptest! {
        #[test]
        fn no_query_panics(text in "[a-z_=&%0-9é+]{0,60}") {
            let _ = Query::parse(&text);
            let _ = PeerReport::parse(text.as_bytes());
        }
    }
}
