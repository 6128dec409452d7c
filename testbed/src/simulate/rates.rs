//! Max-min fair rates of flows over shared links, kept up to date as flows come and go.
//!
//! Each link has a fair level: the most that a flow may have there, infinite while the link is not full. A flow runs at the
//! least level on its way. Levels that are consistent with each other *are* the max-min fair allocation (every flow then
//! has a full link on which none is faster), so after a change only the links whose level moves are filled
//! again, and the change spreads no further than it is felt (Charny et al. 1995; Bertsekas & Gallager §6.5.2). If that does not settle
//! soon, everything is filled progressively from nothing.

/// Links of one flow, at most: sender, receiver, a rack each way.
const LINKS_MAX: usize = 4;
/// Fillings of one link per change before the incremental way is given up.
const PATIENCE: usize = 64;

pub type LinkId = u32;
pub type FlowId = u32;

#[derive(Clone, Copy)]
struct Flow {
    links: [LinkId; LINKS_MAX],
    /// Where the flow stands in the member list of each of its links.
    at: [u32; LINKS_MAX],
    len: u8,
    touched: bool,
    rate: f64,
}

struct Link {
    cap: f64,
    level: f64,
    flows: Vec<FlowId>,
    dirty: bool,
}

#[derive(Default)]
pub struct Rates {
    links: Vec<Link>,
    flows: Vec<Flow>,
    free: Vec<FlowId>,
    dirty: std::collections::VecDeque<LinkId>,
    touched: Vec<FlowId>,
    limits: Vec<f64>,
    /// A level that moves by less than this share is left alone; 0 = exact to rounding.
    tolerance: f64,
}

impl Rates {
    pub fn new(tolerance: f64) -> Self {
        Self { tolerance: tolerance.max(1e-12), ..Self::default() }
    }

    /// A link of `cap` bytes per second.
    pub fn link(&mut self, cap: f64) -> LinkId {
        self.links.push(Link { cap, level: f64::INFINITY, flows: Vec::new(), dirty: false });
        self.links.len() as LinkId - 1
    }

    pub fn set_cap(&mut self, link: LinkId, cap: f64) {
        if self.links[link as usize].cap != cap {
            self.links[link as usize].cap = cap;
            self.soil(link);
        }
    }

    pub fn flows_of(&self, link: LinkId) -> &[FlowId] {
        &self.links[link as usize].flows
    }

    #[cfg(test)]
    pub fn rate(&self, flow: FlowId) -> f64 {
        self.flows[flow as usize].rate
    }

    /// A flow over `links`; it has a rate after [`Rates::settle`].
    pub fn add(&mut self, links: &[LinkId]) -> FlowId {
        assert!((1..=LINKS_MAX).contains(&links.len()), "a flow has one to four links");
        let blank = Flow { links: [0; LINKS_MAX], at: [0; LINKS_MAX], len: 0, touched: false, rate: 0.0 };
        let id = self.free.pop().unwrap_or_else(|| {
            self.flows.push(blank);
            self.flows.len() as FlowId - 1
        });
        let mut flow = Flow { len: links.len() as u8, touched: true, ..blank };
        for (i, link) in links.iter().enumerate() {
            let members = &mut self.links[*link as usize].flows;
            (flow.links[i], flow.at[i]) = (*link, members.len() as u32);
            members.push(id);
            self.soil(*link);
        }
        self.flows[id as usize] = flow;
        self.touched.push(id);
        id
    }

    pub fn remove(&mut self, id: FlowId) {
        let flow = self.flows[id as usize];
        for i in 0..flow.len as usize {
            let link = flow.links[i];
            let members = &mut self.links[link as usize].flows;
            members.swap_remove(flow.at[i] as usize);
            if let Some(moved) = members.get(flow.at[i] as usize).copied() {
                let moved = &mut self.flows[moved as usize];
                let place = (0..moved.len as usize).find(|k| moved.links[*k] == link);
                place.into_iter().for_each(|k| moved.at[k] = flow.at[i]);
            }
            self.soil(link);
        }
        self.flows[id as usize].len = 0;
        self.flows[id as usize].rate = 0.0;
        self.free.push(id);
    }

    fn soil(&mut self, link: LinkId) {
        let entry = &mut self.links[link as usize];
        if !std::mem::replace(&mut entry.dirty, true) {
            self.dirty.push_back(link);
        }
    }

    /// Brings all rates up to date and calls `changed` for each flow whose rate is another than before.
    pub fn settle(&mut self, mut changed: impl FnMut(FlowId, f64)) {
        let mut budget = PATIENCE * (self.dirty.len() + 16) + self.links.len();
        while let Some(link) = self.dirty.pop_front() {
            self.links[link as usize].dirty = false;
            if budget == 0 {
                self.refill();
                break;
            }
            budget -= 1;
            self.fill(link);
        }
        let mut touched = std::mem::take(&mut self.touched);
        for id in touched.drain(..) {
            let flow = &mut self.flows[id as usize];
            flow.touched = false;
            if flow.len == 0 {
                continue;
            }
            let rate = least(&self.links, flow, LinkId::MAX);
            if rate != flow.rate {
                flow.rate = rate;
                changed(id, rate);
            }
        }
        self.touched = touched;
    }

    /// Finds the level of one link under what its flows are allowed elsewhere, and tells the links that feel it.
    fn fill(&mut self, id: LinkId) {
        let link = &self.links[id as usize];
        let old = link.level;
        let mut limits = std::mem::take(&mut self.limits);
        limits.clear();
        limits.extend(link.flows.iter().map(|flow| least(&self.links, &self.flows[*flow as usize], id)));
        let level = level(link.cap, &limits);
        let moved = match (old.is_finite(), level.is_finite()) {
            (true, true) => (level - old).abs() > self.tolerance * old,
            (a, b) => a != b,
        };
        if moved {
            self.links[id as usize].level = level;
            for (at, limit) in limits.iter().enumerate() {
                if level.min(*limit) != old.min(*limit) {
                    let flow = self.links[id as usize].flows[at];
                    self.tell(flow, id, old.min(level));
                }
            }
        }
        self.limits = limits;
    }

    /// The flow may have another rate, and its links but `from` may have another level if it was held back below theirs.
    fn tell(&mut self, id: FlowId, from: LinkId, lesser: f64) {
        let flow = &mut self.flows[id as usize];
        if !std::mem::replace(&mut flow.touched, true) {
            self.touched.push(id);
        }
        let flow = *flow;
        for link in flow.links[..flow.len as usize].iter().filter(|link| **link != from) {
            if lesser < self.links[*link as usize].level {
                self.soil(*link);
            }
        }
    }

    /// Progressive filling of everything: the slow way, which cannot fail.
    fn refill(&mut self) {
        self.dirty.clear();
        for link in &mut self.links {
            (link.level, link.dirty) = (f64::INFINITY, false);
        }
        let mut left: Vec<(f64, usize)> = self.links.iter().map(|l| (l.cap, l.flows.len())).collect();
        let mut open: Vec<bool> = self.flows.iter().map(|f| f.len > 0).collect();
        loop {
            let fair = |(cap, n): &(f64, usize)| cap.max(0.0) / *n as f64;
            let tightest = left.iter().enumerate().filter(|(_, l)| l.1 > 0);
            let Some((id, share)) = tightest.map(|(i, l)| (i, fair(l))).min_by(|a, b| a.1.total_cmp(&b.1)) else {
                break;
            };
            self.links[id].level = share;
            for flow in self.links[id].flows.clone() {
                if std::mem::replace(&mut open[flow as usize], false) {
                    let flow = self.flows[flow as usize];
                    for link in &flow.links[..flow.len as usize] {
                        let (cap, n) = &mut left[*link as usize];
                        (*cap, *n) = (*cap - share, *n - 1);
                    }
                }
            }
        }
        for id in 0..self.flows.len() as FlowId {
            let flow = &mut self.flows[id as usize];
            if flow.len > 0 && !std::mem::replace(&mut flow.touched, true) {
                self.touched.push(id);
            }
        }
    }
}

/// The least level on a flow's way, one link left out.
fn least(links: &[Link], flow: &Flow, but: LinkId) -> f64 {
    let way = flow.links[..flow.len as usize].iter().filter(|link| **link != but);
    way.fold(f64::INFINITY, |least, link| least.min(links[*link as usize].level))
}

/// The level at which flows with these other limits fill `cap`; infinite if they cannot.
fn level(cap: f64, limits: &[f64]) -> f64 {
    let mut level = cap / limits.len() as f64;
    loop {
        let (mut held, mut n) = (0.0, 0);
        for limit in limits.iter().filter(|limit| **limit < level) {
            (held, n) = (held + limit, n + 1);
        }
        if n == limits.len() {
            return f64::INFINITY;
        }
        let next = (cap - held) / (limits.len() - n) as f64;
        if next <= level {
            return level;
        }
        level = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use storage::overlay::rng::Rng;

    /// The text-book way, on plain lists.
    fn naive(caps: &[f64], flows: &[Vec<LinkId>]) -> Vec<f64> {
        let mut rates = vec![None; flows.len()];
        while rates.iter().any(Option::is_none) {
            let share = |link: usize| {
                let on = |f: &&usize| flows[**f].contains(&(link as LinkId));
                let all: Vec<_> = (0..flows.len()).collect();
                let used: f64 = all.iter().filter(on).filter_map(|f| rates[*f]).sum();
                let n = all.iter().filter(on).filter(|f| rates[**f].is_none()).count();
                (n > 0).then(|| (caps[link] - used) / n as f64)
            };
            let shares = (0..caps.len()).filter_map(|l| Some((l, share(l)?)));
            let (link, fair) = shares.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
            for f in 0..flows.len() {
                if flows[f].contains(&(link as LinkId)) && rates[f].is_none() {
                    rates[f] = Some(fair);
                }
            }
        }
        rates.into_iter().flatten().collect()
    }

    fn agrees(rates: &Rates, caps: &[f64], flows: &[(FlowId, Vec<LinkId>)]) {
        let ways: Vec<_> = flows.iter().map(|(_, way)| way.clone()).collect();
        for ((id, way), fair) in flows.iter().zip(naive(caps, &ways)) {
            let found = rates.rate(*id);
            assert!((found - fair).abs() <= 1e-6 * fair, "{way:?}: {found}, fair is {fair}");
        }
    }

    fn drawn_way(rng: &mut Rng, links: usize) -> Vec<LinkId> {
        let mut way: Vec<LinkId> = (0..1 + rng.index(LINKS_MAX)).map(|_| rng.index(links) as LinkId).collect();
        way.sort_unstable();
        way.dedup();
        way
    }

    #[test]
    fn rates_are_max_min_fair_after_any_change_on_random_networks() {
        for seed in 0..60 {
            let mut rng = Rng::new(seed);
            let mut rates = Rates::new(0.0);
            let mut caps: Vec<f64> = (0..2 + rng.index(12)).map(|_| 1.0 + (rng.unit() * 9.0).round()).collect();
            caps.iter().for_each(|cap| {
                rates.link(*cap);
            });
            let mut flows: Vec<(FlowId, Vec<LinkId>)> = Vec::new();
            for _ in 0..40 {
                if flows.len() > 4 && rng.below(3) == 0 {
                    let (id, _) = flows.swap_remove(rng.index(flows.len()));
                    rates.remove(id);
                } else if rng.below(8) == 0 {
                    let link = rng.index(caps.len());
                    caps[link] = 1.0 + (rng.unit() * 9.0).round();
                    rates.set_cap(link as LinkId, caps[link]);
                } else {
                    let way = drawn_way(&mut rng, caps.len());
                    flows.push((rates.add(&way), way));
                }
                rates.settle(|_, _| ());
                agrees(&rates, &caps, &flows);
            }
        }
    }

    #[test]
    fn filling_from_nothing_gives_the_same_rates() {
        let mut rng = Rng::new(5);
        let caps: Vec<f64> = (0..30).map(|_| 1.0 + rng.unit() * 9.0).collect();
        let mut rates = Rates::new(0.0);
        caps.iter().for_each(|cap| {
            rates.link(*cap);
        });
        let flows: Vec<_> = (0..200)
            .map(|_| {
                let way = drawn_way(&mut rng, caps.len());
                (rates.add(&way), way)
            })
            .collect();
        rates.refill();
        rates.settle(|_, _| ());
        agrees(&rates, &caps, &flows);
    }

    #[test]
    fn only_changed_flows_are_reported() {
        let mut rates = Rates::new(0.0);
        let links: Vec<_> = [10.0, 10.0, 4.0].map(|cap| rates.link(cap)).into();
        let (a, b) = (rates.add(&links[..1]), rates.add(&links[1..]));
        let mut seen = Vec::new();
        rates.settle(|flow, rate| seen.push((flow, rate)));
        seen.sort_by_key(|s| s.0);
        assert_eq!(seen, [(a, 10.0), (b, 4.0)]);
        let c = rates.add(&links[..1]);
        seen.clear();
        rates.settle(|flow, rate| seen.push((flow, rate)));
        seen.sort_by_key(|s| s.0);
        assert_eq!(seen, [(a, 5.0), (c, 5.0)]);
    }
}
