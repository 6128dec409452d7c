//! One machine's agent: it offers the machine to its cluster manager and runs parts of jobs on virtual machines.
//!
//! [`host`] is the host manager: the XMPP side, the bookkeeping of tasks, and the guests it keeps alive. [`vm`] makes and
//! ends the machines those guests live on. [`guest`] is the agent inside such a machine: it fetches, encodes, checks and
//! uploads, and speaks only HTTP.

pub mod guest;
pub mod host;
pub mod log;
pub mod vm;
