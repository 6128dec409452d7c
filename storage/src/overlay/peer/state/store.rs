//! The object store as one more source of a peer: never asked by message, never connected.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::State;
use crate::overlay::layout::Layout;
use crate::overlay::metainfo::{GroupHash, Metainfo};
use crate::overlay::picker::SourceId;
use crate::overlay::policy::Millis;

/// The store's place among the sources; connections count up from 0.
pub const STORE: SourceId = SourceId::MAX;

impl State {
    pub fn chunks_unknown(&self, groups: &[u32], layout: &Layout) -> Vec<u32> {
        let chunks = BTreeSet::from_iter(groups.iter().map(|g| layout.chunk_of(*g)));
        chunks.into_iter().filter(|c| self.hashes.get(*c as usize).is_some_and(Option::is_none)).collect()
    }

    /// Takes in proven hashes of a chunk; false if they do not give its root.
    pub fn learn(&mut self, chunk: u32, hashes: Vec<GroupHash>, meta: &Metainfo) -> bool {
        if self.hashes.get(chunk as usize).is_none_or(Option::is_some) {
            return true;
        }
        if !meta.check_hashes(chunk, &hashes) {
            return false;
        }
        self.hashes[chunk as usize] = Some(Arc::new(hashes));
        self.hash_asked.remove(&chunk);
        true
    }

    /// Marks `groups` as coming from the store; false if all of them are held.
    pub fn reading(&mut self, now: Millis, groups: &[u32]) -> bool {
        self.picker.source(STORE);
        groups.iter().for_each(|group| {
            self.picker.ask(now, STORE, *group);
        });
        groups.iter().any(|g| !self.picker.have().get(*g))
    }

    pub fn read_ended(&mut self, groups: &[u32]) {
        groups.iter().for_each(|group| self.picker.failed(STORE, *group));
    }
}
