//! The relay-to-swarm overlay: fill N machines as fast as the network allows.
//!
//! Pure: [`bencode`], [`metainfo`], [`wire`], [`announce`], [`lease`] (foreign bytes to values and back), [`policy`] and [`graph`]
//! (what the torrent controller decides), [`bound`] and [`partition`] (who wants what, and the least time that can take),
//! [`picker`] (what a peer asks for next). With sockets and disks (feature `overlay`): [`store`], [`peer`], [`pass`]
//! (hashing that can be broken off), and with an object store [`objects`].
//! The same policy object runs in the controller and in the simulator.

pub mod announce;
pub mod bencode;
pub mod bits;
pub mod bound;
pub mod graph;
pub mod layout;
pub mod lease;
pub mod metainfo;
pub mod partition;
pub mod picker;
pub mod policy;
pub mod rng;
pub mod share;
pub mod wire;

#[cfg(feature = "overlay")]
pub mod client;
#[cfg(feature = "overlay")]
pub mod objects;
#[cfg(feature = "overlay")]
pub mod pass;
#[cfg(feature = "overlay")]
pub mod peer;
#[cfg(feature = "overlay")]
mod relay;
#[cfg(feature = "overlay")]
pub mod store;
