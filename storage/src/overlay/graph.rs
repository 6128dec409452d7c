//! Who is connected to whom: an explicit random regular graph, kept regular by splitting and switching edges.
//!
//! A node joins by cutting `degree / 2` random edges and taking both ends of each, leaves by joining its neighbours
//! in pairs; so degrees never drift (after Law & Siu, INFOCOM 2003). λ2 of its random walk tells how fast bytes mix: about 0.9 for a
//! tree, 2·sqrt(d-1)/d for a random d-regular graph.

use std::collections::{BTreeMap, BTreeSet};

use super::rng::Rng;

pub type NodeId = u64;

/// So often does a node that joins split an edge of its rack, once that is larger than the degree. The edge's other end lies anywhere: of all edges 0.4
/// (racks of 20 nodes) to 0.65 (of 250) stay in their rack.
const LOCAL_TENTHS: u64 = 7;
const TRIES: usize = 16;
#[derive(Clone, Debug, Default)]
pub struct Graph {
    degree: usize,
    edges: BTreeMap<NodeId, BTreeSet<NodeId>>,
    rack: BTreeMap<NodeId, u32>,
    /// The nodes again, to draw one at random.
    order: Vec<NodeId>,
    by_rack: BTreeMap<u32, Vec<NodeId>>,
}

impl Graph {
    /// Degrees of 8 to 12 are asked for; the parity is made even.
    pub fn new(degree: usize) -> Self {
        Self { degree: degree.max(2) & !1, ..Self::default() }
    }

    pub fn len(&self) -> usize {
        self.order.len()
    }

    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    pub fn contains(&self, node: NodeId) -> bool {
        self.edges.contains_key(&node)
    }

    pub fn neighbours(&self, node: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        self.edges.get(&node).into_iter().flatten().copied()
    }

    /// Adds a node with no edges.
    pub fn add(&mut self, node: NodeId, rack: u32) {
        if self.edges.insert(node, BTreeSet::new()).is_none() {
            self.rack.insert(node, rack);
            self.order.push(node);
            self.by_rack.entry(rack).or_default().push(node);
        }
    }

    pub fn link(&mut self, a: NodeId, b: NodeId) -> bool {
        if a == b || !self.contains(a) || !self.contains(b) {
            return false;
        }
        self.edges.entry(a).or_default().insert(b) & self.edges.entry(b).or_default().insert(a)
    }

    fn unlink(&mut self, a: NodeId, b: NodeId) {
        for (from, to) in [(a, b), (b, a)] {
            if let Some(set) = self.edges.get_mut(&from) {
                set.remove(&to);
            }
        }
    }

    fn linked(&self, a: NodeId, b: NodeId) -> bool {
        self.edges.get(&a).is_some_and(|set| set.contains(&b))
    }

    fn degree_of(&self, node: NodeId) -> usize {
        self.edges.get(&node).map_or(0, BTreeSet::len)
    }

    /// So many are all linked with each other: no more than the degree allows. Each link carries a request at all times, and the more of
    /// them share an uplink, the later comes each group.
    pub fn all_linked_max(&self) -> usize {
        self.degree + 1
    }

    /// Gives `node` its edges: to everybody while there are few, by splitting random edges afterwards.
    pub fn join(&mut self, node: NodeId, rack: u32, rng: &mut Rng) {
        self.add(node, rack);
        if self.len() <= self.all_linked_max() {
            let all = self.order.clone();
            all.into_iter().for_each(|other| {
                self.link(node, other);
            });
            return;
        }
        for _ in 0..self.degree * TRIES {
            if self.degree_of(node) + 1 >= self.degree {
                return;
            }
            let Some((a, b)) = self.draw_edge(rack, rng) else { continue };
            let fresh = a != node && b != node && !self.linked(node, a) && !self.linked(node, b);
            if fresh {
                self.unlink(a, b);
                self.link(node, a);
                self.link(node, b);
            }
        }
        // Too few edges to split (a tree, say): plain random links.
        for _ in 0..self.degree * TRIES {
            if self.degree_of(node) >= self.degree {
                return;
            }
            let other = self.order[rng.index(self.order.len())];
            self.link(node, other);
        }
    }

    fn draw_edge(&self, rack: u32, rng: &mut Rng) -> Option<(NodeId, NodeId)> {
        let local = self.by_rack.get(&rack).filter(|peers| peers.len() > self.degree && rng.below(10) < LOCAL_TENTHS);
        let pool = local.unwrap_or(&self.order);
        let a = *pool.get(rng.index(pool.len()))?;
        let set = self.edges.get(&a)?;
        let b = *set.iter().nth(rng.index(set.len()))?;
        Some((a, b))
    }

    /// The node that was added before all others.
    pub fn first(&self) -> Option<NodeId> {
        self.order.first().copied()
    }

    /// Replaces all edges by a tree over the nodes in the order in which they came.
    pub fn grow_tree(&mut self, arity: usize) {
        self.edges.values_mut().for_each(BTreeSet::clear);
        for child in 1..self.order.len() {
            self.link(self.order[child], self.order[(child - 1) / arity]);
        }
    }

    /// Removes a node; its neighbours are joined in pairs.
    pub fn leave(&mut self, node: NodeId, rng: &mut Rng) {
        let Some(set) = self.edges.remove(&node) else { return };
        self.order.retain(|other| *other != node);
        if let Some(peers) = self.rack.remove(&node).and_then(|rack| self.by_rack.get_mut(&rack)) {
            peers.retain(|other| *other != node);
        }
        let mut left: Vec<_> = set.into_iter().collect();
        left.iter().for_each(|other| {
            self.edges.entry(*other).or_default().remove(&node);
        });
        rng.shuffle(&mut left);
        for pair in left.chunks_exact(2) {
            self.link(pair[0], pair[1]);
        }
    }

    /// Moves edge (a, b) of two nodes that gain nothing from each other: with a random edge (c, d) it becomes (a, c), (b, d).
    pub fn switch(&mut self, a: NodeId, b: NodeId, rng: &mut Rng) -> bool {
        if !self.linked(a, b) {
            return false;
        }
        for _ in 0..TRIES {
            let c = self.order[rng.index(self.order.len())];
            let set = &self.edges[&c];
            let Some(d) = set.iter().nth(rng.index(set.len())).copied() else { continue };
            let distinct = [c, d].iter().all(|x| *x != a && *x != b);
            if distinct && !self.linked(a, c) && !self.linked(b, d) {
                self.unlink(a, b);
                self.unlink(c, d);
                self.link(a, c);
                self.link(b, d);
                return true;
            }
        }
        false
    }

    /// Forgets all edges and deals a fresh regular graph over the same nodes.
    pub fn deal(&mut self, rng: &mut Rng) {
        let mut nodes: Vec<_> = self.order.iter().map(|node| (*node, self.rack[node])).collect();
        rng.shuffle(&mut nodes);
        *self = Self::new(self.degree);
        nodes.into_iter().for_each(|(node, rack)| self.join(node, rack, rng));
    }

    /// Second largest eigenvalue of the random walk on the graph (1 when it falls apart), by power iteration with the
    /// stationary vector taken out. The walk is made lazy for the iteration, so that the answer is the largest one, not
    /// the largest magnitude.
    pub fn lambda2(&self) -> f64 {
        let index: BTreeMap<_, _> = self.order.iter().enumerate().map(|(i, node)| (*node, i)).collect();
        let adjacent: Vec<Vec<usize>> = self
            .order
            .iter()
            .map(|node| self.edges[node].iter().filter_map(|n| index.get(n).copied()).collect())
            .collect();
        if adjacent.len() < 2 || adjacent.iter().any(Vec::is_empty) {
            return 1.0;
        }
        let degree: Vec<f64> = adjacent.iter().map(|a| a.len() as f64).collect();
        let sum: f64 = degree.iter().sum();
        let mut rng = Rng::new(1);
        let mut x: Vec<f64> = degree.iter().map(|_| rng.unit() - 0.5).collect();
        let mut lambda = 1.0;
        for _ in 0..200 {
            // Remove the stationary part (weights are degrees), normalise, then step x <- (x + Px) / 2.
            let mean = x.iter().zip(&degree).map(|(x, d)| x * d).sum::<f64>() / sum;
            x.iter_mut().for_each(|x| *x -= mean);
            let norm = x.iter().zip(&degree).map(|(x, d)| x * x * d).sum::<f64>().sqrt();
            if norm < 1e-300 {
                return 0.0;
            }
            x.iter_mut().for_each(|x| *x /= norm);
            let walked: Vec<f64> =
                adjacent.iter().zip(&degree).map(|(a, d)| a.iter().map(|i| x[*i]).sum::<f64>() / d).collect();
            lambda = walked.iter().zip(&x).zip(&degree).map(|((w, x), d)| w * x * d).sum();
            x.iter_mut().zip(&walked).for_each(|(x, w)| *x = 0.5 * (*x + w));
        }
        lambda
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grown(n: u64, degree: usize, racks: u64) -> Graph {
        let mut rng = Rng::new(7);
        let mut graph = Graph::new(degree);
        (0..n).for_each(|node| graph.join(node, (node % racks) as u32, &mut rng));
        graph
    }

    #[test]
    fn joining_leaving_and_switching_keep_degrees_within_8_to_12() {
        let mut graph = grown(300, 8, 4);
        let mut rng = Rng::new(3);
        (0..60).for_each(|node| graph.leave(node * 5, &mut rng));
        for node in 1..100 {
            let other = graph.neighbours(node).next();
            other.map(|other| graph.switch(node, other, &mut rng));
        }
        let degrees: Vec<_> = graph.order.iter().map(|node| graph.degree_of(*node)).collect();
        let fit = degrees.iter().filter(|d| (8..=12).contains(*d)).count();
        assert!(fit * 100 >= degrees.len() * 95, "{degrees:?}");
    }

    #[test]
    fn few_are_all_linked_whether_they_were_there_at_the_deal_or_join_later() {
        let mut graph = grown(10, 10, 1);
        graph.deal(&mut Rng::new(5));
        graph.join(99, 0, &mut Rng::new(6));
        assert!(graph.order.iter().all(|node| graph.degree_of(*node) == 10));
        let many = grown(20, 10, 1);
        assert!(many.order.iter().all(|node| many.degree_of(*node) <= 12));
    }

    #[test]
    fn edges_stay_in_their_rack_far_more_often_than_by_chance() {
        let local = |nodes: u64, racks: u64, told: bool| {
            let mut rng = Rng::new(7);
            let mut graph = Graph::new(8);
            (0..nodes).for_each(|node| graph.add(node, if told { (node % racks) as u32 } else { 0 }));
            graph.deal(&mut rng);
            let edges = Vec::from_iter((0..nodes).flat_map(|a| graph.neighbours(a).map(move |b| (a, b))));
            edges.iter().filter(|(a, b)| a % racks == b % racks).count() as f64 / edges.len() as f64
        };
        for (nodes, racks) in [(100, 4), (200, 10), (1000, 4), (1000, 20)] {
            let (found, chance) = (local(nodes, racks, true), local(nodes, racks, false));
            let told = format!("{nodes} nodes in {racks} racks: {found} and {chance}");
            assert!((chance - 1.0 / racks as f64).abs() < 0.05, "{told}");
            assert!(found > chance + 0.25 && (0.35..0.7).contains(&found), "{told}");
        }
    }

    #[test]
    fn lambda2_of_a_random_regular_graph_is_near_the_ramanujan_bound() {
        for d in [8usize, 10, 12] {
            let ideal = 2.0 * ((d - 1) as f64).sqrt() / d as f64;
            let found = grown(1000, d, 1).lambda2();
            assert!((found - ideal).abs() < 0.06, "d {d}: {found} against {ideal}");
        }
    }

    #[test]
    fn lambda2_of_a_tree_is_high_and_of_two_islands_one() {
        let mut tree = Graph::new(4);
        (0..31u64).for_each(|node| tree.add(node, 0));
        (1..31u64).for_each(|node| {
            tree.link(node, (node - 1) / 2);
        });
        assert!(tree.lambda2() > 0.9);
        let mut islands = Graph::new(4);
        (0..8u64).for_each(|node| islands.add(node, 0));
        let _ = [(0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4)].map(|(a, b)| islands.link(a, b));
        assert!(islands.lambda2() > 0.999);
    }
}
