//! Machines for guests: one driver trait, idempotent by name, with a driver for each kind of provider.
//!
//! A driver owns the machines of one host manager under the names that one gives. It reports what the provider says; whether
//! to make another machine is decided by `host::pool`.

pub mod process;

use std::fmt;
use std::net::SocketAddr;

use futures::future::BoxFuture;

/// Name of a machine: 1-63 of `a-z 0-9 -`, as in a host name label, so that every provider takes it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmName(String);

impl VmName {
    pub fn new(name: impl Into<String>) -> Result<Self, VmError> {
        let name = name.into();
        let legal = name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        if legal && (1..=63).contains(&name.len()) { Ok(Self(name)) } else { Err(VmError::BadName(name)) }
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a machine is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmSpec {
    /// Parts its guest encodes at the same time.
    pub slots: u32,
}

/// A machine whose guest answers.
#[derive(Clone, PartialEq, Eq)]
pub struct Vm {
    pub name: VmName,
    /// Where its guest serves HTTP.
    pub address: SocketAddr,
    /// Bearer token of its guest. Never logged.
    pub token: String,
}

impl fmt::Debug for Vm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vm").field("name", &self.name).field("address", &self.address).finish_non_exhaustive()
    }
}

/// What the provider says about a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmStatus {
    Booting,
    Ready,
    /// It ended by itself; `delete` clears it away. The text tells how.
    Gone(String),
}

/// A provider that could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    #[error("{0:?} is no machine name: 1 to 63 of a-z, 0-9 and -")]
    BadName(String),
    #[error("no machine is called {0}")]
    Unknown(VmName),
    #[error("{0} exists already, with another specification")]
    Conflict(VmName),
    #[error("{name} could not be started: {why}")]
    Start { name: VmName, why: String },
    #[error("machine files: {0}")]
    Io(#[from] std::io::Error),
}

/// A provider of machines.
pub trait Driver: Send + Sync {
    /// Returns when the guest is ready. A ready machine with this name and the same specification is returned as it is.
    fn create<'a>(&'a self, name: &'a VmName, spec: &'a VmSpec) -> BoxFuture<'a, Result<Vm, VmError>>;
    fn status(&self, name: &VmName) -> Result<VmStatus, VmError>;
    fn address(&self, name: &VmName) -> Result<SocketAddr, VmError>;
    /// The last `tail` bytes of what it wrote, also after its end, until it is deleted.
    fn console(&self, name: &VmName, tail: u64) -> Result<String, VmError>;
    /// Returns when it is gone with all its files, also when there was none.
    fn delete<'a>(&'a self, name: &'a VmName) -> BoxFuture<'a, Result<(), VmError>>;
    fn list(&self) -> Vec<VmName>;
    /// Returns when the machine has ended, or at once if there is none.
    fn ended<'a>(&'a self, name: &'a VmName) -> BoxFuture<'a, ()>;
}
