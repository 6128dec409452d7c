//! Who gets which parts: a pure division of open parts over the bids of one round.
//!
//! Greedy list scheduling by waves (Graham 1969): each part goes where it would be finished first. Then every bidder gets one
//! contiguous run, the earliest parts to the fastest, so that a viewer can start early. A part that has failed somewhere goes
//! to another domain if any other bids.

use std::collections::BTreeMap;

use crate::book::Part;
use crate::id::DomainId;
use crate::message::Bid;

/// Parts by bidder; nobody gets more than it bid for, and all together cost no more than `budget_left`. Who blames the source
/// for a part gets it again only `in_need`, when nobody else has come forward for a while.
pub fn assign(
    parts: &[(u32, &Part)],
    bids: &BTreeMap<DomainId, Bid>,
    budget_left: Option<f64>,
    in_need: bool,
) -> BTreeMap<DomainId, Vec<u32>> {
    let mut purse = budget_left.unwrap_or(f64::INFINITY);
    let mut given: BTreeMap<DomainId, Vec<u32>> = BTreeMap::new();
    let mut count: BTreeMap<&DomainId, u32> = BTreeMap::new();
    let (burnt, fresh): (Vec<_>, Vec<_>) = parts.iter().partition(|(_, p)| !p.avoid.is_empty());

    for (n, part) in burnt {
        let others = best(bids, &count, purse, |d| !part.avoid.contains(d));
        let any = || best(bids, &count, purse, |d| in_need || !part.accusers.contains(d));
        if let Some((domain, bid)) = others.or_else(any) {
            *count.entry(domain).or_default() += 1;
            purse -= bid.price;
            given.entry(domain.clone()).or_default().push(n);
        }
    }

    let mut share: BTreeMap<&DomainId, usize> = BTreeMap::new();
    for _ in &fresh {
        let Some((domain, bid)) = best(bids, &count, purse, |_| true) else { break };
        *count.entry(domain).or_default() += 1;
        *share.entry(domain).or_default() += 1;
        purse -= bid.price;
    }
    let mut order: Vec<_> = share.into_iter().collect();
    order.sort_by_key(|(domain, _)| (bids.get(*domain).map(|bid| finish_ms(bid, 1)), *domain));
    let mut rest = fresh.iter().map(|(n, _)| *n);
    for (domain, share) in order {
        given.entry(domain.clone()).or_default().extend(rest.by_ref().take(share));
    }
    for run in given.values_mut() {
        run.sort_unstable();
    }
    given
}

/// The bidder that would finish one more part first; the fuller, dearer and later in the alphabet lose ties.
fn best<'a>(
    bids: &'a BTreeMap<DomainId, Bid>,
    count: &BTreeMap<&DomainId, u32>,
    purse: f64,
    may: impl Fn(&DomainId) -> bool,
) -> Option<(&'a DomainId, &'a Bid)> {
    let has = |domain: &DomainId| count.get(domain).copied().unwrap_or(0);
    let key = |domain: &DomainId, bid: &Bid| {
        let next = u64::from(has(domain)) + 1;
        let slots = u64::from(bid.slots.max(1));
        (finish_ms(bid, next.div_ceil(slots)), next.saturating_mul(1000) / slots)
    };
    bids.iter()
        .filter(|(domain, bid)| may(domain) && has(domain) < bid.parts_max && bid.price <= purse)
        .min_by(|(da, a), (db, b)| key(da, a).cmp(&key(db, b)).then(a.price.total_cmp(&b.price)).then(da.cmp(db)))
}

/// When so many waves of parts would be done, as the bid has it: all its waves take the same time.
fn finish_ms(bid: &Bid, waves: u64) -> u64 {
    let all = u64::from(bid.parts_max.div_ceil(bid.slots.max(1)).max(1));
    let wave_ms = (bid.finish_p50_ms.saturating_sub(bid.start_p50_ms) / all).max(1);
    bid.start_p50_ms.saturating_add(waves.saturating_mul(wave_ms))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::book::PartState;
    use crate::id::Millis;
    use crate::message::PartCall;

    fn bid(parts_max: u32, slots: u32, price: f64, finish: u64) -> Bid {
        let (bid, hold_until) = ("b".into(), Millis(0));
        Bid { bid, parts_max, slots, price, start_p50_ms: 0, finish_p50_ms: finish, finish_p90_ms: finish, hold_until }
    }

    fn parts(n: u32) -> Vec<Part> {
        let part = |part| Part {
            call: PartCall { part, bytes: 1, work_ms: 1 },
            state: PartState::Open,
            attempt: 0,
            failures: 0,
            avoid: Default::default(),
            accusers: Default::default(),
            last_failure: None,
            loaded: None,
            result: None,
        };
        (0..n).map(part).collect()
    }

    fn run(parts: &[Part], bids: &[(&str, Bid)], budget: Option<f64>) -> Vec<(String, Vec<u32>)> {
        let numbered: Vec<_> = parts.iter().map(|p| (p.call.part, p)).collect();
        let bids = bids.iter().map(|(d, b)| (DomainId::from(*d), b.clone())).collect();
        assign(&numbered, &bids, budget, false).into_iter().map(|(d, p)| (d.0, p)).collect()
    }

    #[test]
    fn equal_bidders_get_equal_contiguous_runs() {
        let bids = [("a", bid(8, 2, 1.0, 4000)), ("b", bid(8, 2, 1.0, 4000)), ("c", bid(8, 2, 1.0, 4000))];
        let got = run(&parts(12), &bids, None);
        let want = [("a", 0..4), ("b", 4..8), ("c", 8..12)];
        assert_eq!(got, want.map(|(d, r)| (d.to_owned(), r.collect::<Vec<_>>())));
    }

    #[test]
    fn the_fastest_gets_most_and_the_earliest_and_nobody_more_than_it_bid() {
        let bids = [("a", bid(2, 1, 1.0, 8000)), ("b", bid(9, 1, 1.0, 9000))];
        let got = run(&parts(12), &bids, None);
        assert_eq!(got, [("a".to_owned(), vec![9, 10]), ("b".to_owned(), (0..9).collect())]);
    }

    #[test]
    fn few_parts_go_to_who_can_begin_though_another_is_faster_once_it_has_begun() {
        // 1 s a wave after 8 s of other work, against 4 s a wave at once.
        let busy = Bid { start_p50_ms: 8_000, ..bid(8, 1, 1.0, 16_000) };
        let bids = [("busy", busy), ("idle", bid(8, 1, 1.0, 32_000))];
        assert_eq!(run(&parts(2), &bids, None), [("idle".to_owned(), vec![0, 1])]);
        let got = run(&parts(6), &bids, None);
        assert_eq!(got, [("busy".to_owned(), vec![3, 4, 5]), ("idle".to_owned(), vec![0, 1, 2])]);
    }

    #[test]
    fn what_the_budget_does_not_cover_stays_open() {
        let got = run(&parts(12), &[("a", bid(12, 1, 2.0, 8000))], Some(7.0));
        assert_eq!(got, [("a".to_owned(), vec![0, 1, 2])]);
    }

    #[test]
    fn a_part_that_failed_goes_elsewhere_while_there_is_an_elsewhere() {
        let mut all = parts(2);
        all[0].avoid.insert("a".into());
        let both = [("a", bid(8, 2, 1.0, 10)), ("b", bid(8, 2, 1.0, 10_000))];
        assert_eq!(run(&all, &both, None), [("a".to_owned(), vec![1]), ("b".to_owned(), vec![0])]);
        assert_eq!(run(&all, &both[..1], None), [("a".to_owned(), vec![0, 1])]);
        all[0].accusers.insert("a".into());
        assert_eq!(run(&all, &both[..1], None), [("a".to_owned(), vec![1])], "it has had its say");
    }
}
