//! Bytes on their way: flows over a network of links, and the time at which the next of them ends.
//!
//! Ends are rounded up to a quantum of time, so that those which differ by rounding alone are handled together and the rates
//! are settled once for all of them. Rounding up never makes a load faster than it is.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::rates::{FlowId, LinkId, Rates};

struct Flow {
    left: f64,
    rate: f64,
    since: f64,
    /// When an entry for it stands in the queue; infinite if none does.
    queued: f64,
    version: u32,
}

pub struct Flows {
    rates: Rates,
    flows: Vec<Flow>,
    queue: BinaryHeap<Reverse<Entry>>,
    quantum: f64,
}

#[derive(PartialEq)]
struct Entry(f64, FlowId, u32);

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0).then(self.1.cmp(&other.1)).then(self.2.cmp(&other.2))
    }
}

impl Flows {
    /// `quantum` in seconds; `tolerance` as in [`Rates::new`].
    pub fn new(quantum: f64, tolerance: f64) -> Self {
        Self { rates: Rates::new(tolerance), flows: Vec::new(), queue: BinaryHeap::new(), quantum }
    }

    pub fn link(&mut self, cap: f64) -> LinkId {
        self.rates.link(cap)
    }

    pub fn set_cap(&mut self, link: LinkId, cap: f64) {
        self.rates.set_cap(link, cap);
    }

    pub fn on(&self, link: LinkId) -> usize {
        self.rates.flows_of(link).len()
    }

    pub fn start(&mut self, bytes: f64, links: &[LinkId]) -> FlowId {
        let id = self.rates.add(links);
        if id as usize == self.flows.len() {
            self.flows.push(Flow { left: 0.0, rate: 0.0, since: 0.0, queued: f64::INFINITY, version: 0 });
        }
        let flow = &mut self.flows[id as usize];
        let version = flow.version.wrapping_add(1);
        *flow = Flow { left: bytes, rate: 0.0, since: 0.0, queued: f64::INFINITY, version };
        id
    }

    pub fn stop(&mut self, id: FlowId) {
        self.rates.remove(id);
        self.flows[id as usize].version = self.flows[id as usize].version.wrapping_add(1);
    }

    /// The rates that hold from `now` on.
    pub fn settle(&mut self, now: f64) {
        let Self { rates, flows, queue, quantum } = self;
        rates.settle(|id, rate| {
            let flow = &mut flows[id as usize];
            flow.left = (flow.left - flow.rate * (now - flow.since)).max(0.0);
            (flow.rate, flow.since) = (rate, now);
            let ends = ends(flow, *quantum);
            // One that ends later than the queue says is put right when its turn comes.
            if ends < flow.queued {
                flow.queued = ends;
                flow.version = flow.version.wrapping_add(1);
                queue.push(Reverse(Entry(ends, id, flow.version)));
            }
        });
    }

    /// When the next flow ends, as things are.
    pub fn next_end(&mut self) -> Option<f64> {
        loop {
            let Reverse(Entry(at, id, version)) = self.queue.peek()?;
            let (at, id, version) = (*at, *id, *version);
            let flow = &mut self.flows[id as usize];
            if flow.version == version {
                let ends = ends(flow, self.quantum);
                if ends <= at {
                    return Some(at);
                }
                flow.queued = ends;
                if ends.is_finite() {
                    self.queue.push(Reverse(Entry(ends, id, version)));
                }
            }
            self.queue.pop();
        }
    }

    /// Takes out a flow that ends at `now`.
    pub fn ended(&mut self, now: f64) -> Option<FlowId> {
        let at = self.next_end()?;
        if at > now {
            return None;
        }
        let Reverse(Entry(_, id, _)) = self.queue.pop()?;
        self.stop(id);
        Some(id)
    }
}

fn ends(flow: &Flow, quantum: f64) -> f64 {
    if flow.rate <= 0.0 {
        return f64::INFINITY;
    }
    let at = flow.since + flow.left / flow.rate;
    if quantum > 0.0 { (at / quantum).ceil() * quantum } else { at }
}

#[cfg(test)]
mod tests {
    use super::*;
    use storage::overlay::rng::Rng;

    #[test]
    fn a_flow_that_is_slowed_and_freed_again_ends_when_its_bytes_are_through() {
        let mut flows = Flows::new(0.0, 0.0);
        let link = flows.link(10.0);
        let long = flows.start(100.0, &[link]);
        flows.settle(0.0);
        assert_eq!(flows.next_end(), Some(10.0));
        let short = flows.start(20.0, &[link]);
        flows.settle(2.0);
        assert_eq!(flows.next_end(), Some(6.0));
        assert_eq!((flows.ended(6.0), flows.ended(6.0)), (Some(short), None));
        flows.settle(6.0);
        assert_eq!((flows.next_end(), flows.ended(12.0)), (Some(12.0), Some(long)));
        assert_eq!(flows.next_end(), None);
    }

    /// Every byte that was to be sent is sent, and no link carries more than it can: over any stretch of time.
    #[test]
    fn bytes_are_conserved_and_no_link_exceeds_its_cap() {
        for seed in 0..20 {
            let mut rng = Rng::new(seed);
            let caps: Vec<f64> = (0..8).map(|_| 1.0 + rng.unit() * 9.0).collect();
            let mut flows = Flows::new(0.0, 0.0);
            caps.iter().for_each(|cap| {
                flows.link(*cap);
            });
            let mut carried = [0.0; 8];
            let mut ways = std::collections::BTreeMap::new();
            let (mut now, mut started) = (0.0, 0);
            while started < 60 || !ways.is_empty() {
                while started < 60 && ways.len() < 12 {
                    let way = [rng.index(4) as LinkId, 4 + rng.index(4) as LinkId];
                    let bytes = 1.0 + rng.unit() * 50.0;
                    ways.insert(flows.start(bytes, &way), (way, bytes));
                    started += 1;
                }
                flows.settle(now);
                for (link, cap) in caps.iter().enumerate() {
                    let on = flows.rates.flows_of(link as LinkId).iter().map(|f| flows.rates.rate(*f));
                    assert!(on.sum::<f64>() <= cap * (1.0 + 1e-9));
                }
                now = flows.next_end().expect("something runs");
                while let Some(id) = flows.ended(now) {
                    let (way, bytes) = ways.remove(&id).expect("a flow that was started ends once");
                    way.iter().for_each(|link| carried[*link as usize] += bytes);
                }
            }
            for (carried, cap) in carried.iter().zip(&caps) {
                assert!(*carried <= cap * now * (1.0 + 1e-9), "seed {seed}");
            }
        }
    }
}
