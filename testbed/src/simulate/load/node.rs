//! A simulated machine: what it wants and holds, by a numbering of its own, so that a small part of a huge dataset stays small.

use storage::overlay::bits::Bits;
use storage::overlay::picker::Picker;
use storage::overlay::policy::Demand;

use crate::simulate::rates::{FlowId, LinkId};

pub struct Node {
    pub demand: Vec<Demand>,
    /// Up and down.
    pub links: (LinkId, LinkId),
    pub rack: u32,
    /// Pieces by local number: the demand's ranges laid end to end.
    pub picker: Picker,
    /// Sorted.
    pub neighbours: Vec<u32>,
    pub sending: Vec<FlowId>,
    /// With the sender.
    pub taking: Vec<(FlowId, u32)>,
    pub finished: Option<f64>,
    /// It fetched nothing at its last announce.
    pub idle: bool,
    /// The controller knows its demand.
    pub known: bool,
    pub alive: bool,
    /// Smoothed time of a piece from a neighbour.
    latency_s: f64,
}

impl Node {
    pub fn new(demand: Vec<Demand>, links: (LinkId, LinkId), rack: u32, seed: u64) -> Self {
        let len = demand.iter().map(|d| d.range.end - d.range.start).sum();
        Self {
            demand,
            links,
            rack,
            picker: Picker::new(Bits::full(len), Bits::new(len), seed),
            neighbours: Vec::new(),
            sending: Vec::new(),
            taking: Vec::new(),
            finished: None,
            idle: false,
            known: false,
            alive: true,
            latency_s: 0.0,
        }
    }

    /// Makes it a seeder of all that it wants.
    pub fn fill(&mut self) {
        let all = self.picker.have().len();
        self.picker = Picker::new(Bits::full(all), Bits::full(all), 0);
    }

    pub fn local(&self, piece: u32) -> Option<u32> {
        let mut base = 0;
        for Demand { range, .. } in &self.demand {
            if range.contains(&piece) {
                return Some(base + piece - range.start);
            }
            base += range.end - range.start;
        }
        None
    }

    pub fn global(&self, local: u32) -> u32 {
        let mut base = 0;
        for Demand { range, .. } in &self.demand {
            let len = range.end - range.start;
            if local < base + len {
                return range.start + local - base;
            }
            base += len;
        }
        u32::MAX
    }

    /// Pieces it holds, by global number.
    pub fn held(&self) -> impl Iterator<Item = u32> + '_ {
        self.picker.have().iter().map(|local| self.global(local))
    }

    /// A neighbour holds a piece.
    pub fn hears(&mut self, other: u32, piece: u32) {
        if let Some(local) = self.local(piece) {
            self.picker.source_has(u64::from(other), local);
        }
    }

    /// True if it was not linked before.
    pub fn link(&mut self, other: u32) -> bool {
        let Err(at) = self.neighbours.binary_search(&other) else { return false };
        self.neighbours.insert(at, other);
        self.picker.source(u64::from(other));
        true
    }

    pub fn takes_from(&self, other: u32) -> bool {
        self.taking.iter().any(|(_, source)| *source == other)
    }

    /// A piece came from a neighbour in so many seconds.
    pub fn took(&mut self, seconds: f64) {
        self.latency_s = if self.latency_s == 0.0 { seconds } else { 0.95 * self.latency_s + 0.05 * seconds };
    }

    /// After how long a piece may be asked of a second neighbour, once nothing else is left to ask for: as the peer does.
    pub fn patience_ms(&self) -> u64 {
        if self.latency_s == 0.0 { u64::MAX } else { (self.latency_s * 1500.0) as u64 }
    }

    pub fn unlink(&mut self, other: u32) {
        if let Ok(at) = self.neighbours.binary_search(&other) {
            self.neighbours.remove(at);
            self.picker.source_gone(u64::from(other));
        }
    }
}
