//! What a peer takes in that did not come from a peer: bytes of the object store, under a lease of the controller.
//!
//! They pass the same hash, the same limit and the same way to the disk as all others, and are passed on group by group.

use bytes::Bytes;

use super::state::STORE;
use super::{Peer, Verified};
use crate::overlay::metainfo::GroupHash;

/// Bytes from the store that are not what the metainfo proves: the object is another, or broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("group {0} from the store is not what its hash says")]
pub struct WrongBytes(pub u32);

impl Peer {
    /// Chunks of `groups` whose hashes are not known yet.
    pub fn chunks_unknown(&self, groups: &[u32]) -> Vec<u32> {
        self.shared.state().chunks_unknown(groups, &self.shared.meta.layout)
    }

    /// The group hashes of a chunk, if they are known.
    pub fn hashes(&self, chunk: u32) -> Option<Vec<GroupHash>> {
        self.shared.state().hashes(chunk)
    }

    /// Hashes of a chunk from the controller; false if they do not give its root.
    pub fn learn_hashes(&self, chunk: u32, hashes: Vec<GroupHash>) -> bool {
        self.shared.state().learn(chunk, hashes, &self.shared.meta)
    }

    /// These groups come from the store: no peer is asked for them meanwhile. False if all of them are held.
    pub fn reading(&self, groups: &[u32]) -> bool {
        self.shared.state().reading(self.shared.now(), groups)
    }

    /// The read ended: what of `groups` did not come may be asked of anybody again.
    pub fn read_ended(&self, groups: &[u32]) {
        self.shared.state().read_ended(groups);
    }

    /// Takes in one group of the store.
    pub async fn offer(&self, group: u32, data: Bytes) -> Result<(), WrongBytes> {
        let shared = &self.shared;
        shared.down.take(data.len()).await;
        let hashes = shared.state().hashes_for(group, data.len(), &shared.meta.layout);
        let Some(hashes) = hashes else { return Ok(()) };
        if !shared.meta.check_group(group, &data, &hashes) {
            return Err(WrongBytes(group));
        }
        let fresh = shared.state().arrived(shared.now(), STORE, group, data.len(), &shared.meta);
        if fresh {
            // The writer ends with the peer or with a failure that the peer's progress tells.
            let _ = shared.keep(Verified { group, data }).await;
        }
        Ok(())
    }

    /// The controller's word that the load cannot succeed.
    pub fn fail(&self, why: String) {
        self.shared.state().fail(why);
    }
}
