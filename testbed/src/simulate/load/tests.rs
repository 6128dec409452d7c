use super::*;

fn small() -> Load {
    Load { nodes: 50, bytes: 50_000_000, pieces: 400, up: 2.5e6, down: 2.5e6, origin: 2.5e6, ..Load::default() }
}

fn run(load: &Load) -> Outcome {
    load.run(&mut |_, _| ())
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_seed_another() {
    let first = run(&small());
    assert_eq!(first, run(&small()));
    assert_ne!(first.times, run(&Load { seed: 2, ..small() }).times);
}

#[test]
fn every_node_ends_no_sooner_than_the_bound_and_no_piece_leaves_the_origin_twice() {
    for seed in 1..4 {
        let outcome = run(&Load { seed, ..small() });
        assert_eq!((outcome.unfinished, outcome.transfers), (0, 50 * 400));
        assert!((outcome.origin_copies - 1.0).abs() < 1e-9, "{}", outcome.origin_copies);
        assert!((1.0..1.25).contains(&outcome.ratio_last), "{}", outcome.ratio_last);
    }
}

#[test]
fn bytes_received_are_bytes_demanded_whatever_is_wanted_and_by_whom_it_is_directed() {
    for control in [Control::Ours, Control::Paper] {
        for overlap in [0.0, 0.3] {
            let load = Load { wanted: Wanted::Parts, overlap, control, origin: 10e6, patience: 200.0, ..small() };
            let outcome = run(&load);
            let wanted: u32 = (0..50).flat_map(|n| load.demand(n)).map(|d| d.range.end - d.range.start).sum();
            assert_eq!((outcome.unfinished, outcome.transfers), (0, u64::from(wanted)), "{control:?} {overlap}");
            assert!(outcome.ratio_last >= 1.0);
        }
    }
    let plain = run(&Load { control: Control::Plain, ..small() });
    assert_eq!((plain.unfinished, plain.transfers), (0, 50 * 400));
    assert!(plain.ratio_last >= 1.0 && plain.origin_copies >= 1.0);
}

#[test]
fn parts_leave_the_origin_once_with_or_without_overlap() {
    for overlap in [0.0, 0.3] {
        let outcome = run(&Load { wanted: Wanted::Parts, overlap, origin: 10e6, ..small() });
        assert!((outcome.origin_copies - 1.0).abs() < 0.02, "{overlap}: {}", outcome.origin_copies);
    }
}

/// The origin could feed 60 nodes at full rate, and begins with 15.
#[test]
fn an_origin_that_feeds_many_is_found_out_though_each_lease_takes_seconds() {
    let load = Load {
        nodes: 300,
        bytes: 300_000_000_000,
        pieces: 4500,
        origin: 6e8,
        wanted: Wanted::Parts,
        ..Load::default()
    };
    let outcome = run(&load);
    assert!(outcome.ratio_last < 1.15, "{}", outcome.ratio_last);
}

#[test]
fn survivors_of_a_tenth_killed_half_way_end_within_a_quarter_of_the_bound() {
    let outcome = run(&Load { kills: vec![(0.5, Kill::Share(0.1))], ..small() });
    assert_eq!(outcome.unfinished, 0);
    assert!(outcome.ratio_last < 1.25, "{}", outcome.ratio_last);
    assert_eq!(outcome.times.iter().filter(|t| t.is_none()).count(), 5);
}

#[test]
fn a_thin_link_between_racks_binds_and_is_kept() {
    let racks = Some(Racks { count: 2, rate: 1.0e6 });
    let outcome = run(&Load { racks, origin: 20e6, ..small() });
    assert_eq!((outcome.unfinished, outcome.bound_cut), (0, "rack link"));
    assert!(outcome.ratio_last >= 1.0, "{}", outcome.ratio_last);
}

#[test]
fn rounding_the_ends_of_flows_hardly_changes_a_load() {
    // From 200 nodes on ends are rounded and small moves of a level are not passed on.
    let outcome = run(&Load { nodes: 201, pieces: 200, ..small() });
    assert_eq!(outcome.unfinished, 0);
    assert!((1.0..1.25).contains(&outcome.ratio_last), "{}", outcome.ratio_last);
}

/// In the paper nobody takes a lease back: one that was never ended, when a piece came from the store and from a neighbour at the
/// same moment, was its node's last.
#[test]
fn the_papers_mode_ends_with_an_overlap_and_a_store_that_bears_any_number_of_readers() {
    let crowd = Crowd { streams: f64::INFINITY, exponent: 1.0 };
    let (control, wanted, overlap) = (Control::Paper, Wanted::Parts, 0.3);
    let load = Load { bytes: 1_000_000_000_000, pieces: 14_901, origin: 1.25e9, ..Load::default() };
    let outcome = run(&Load { control, wanted, overlap, crowd, patience: 60.0, ..load });
    assert_eq!(outcome.unfinished, 0);
    assert!(outcome.ratio_last < 1.1, "{}", outcome.ratio_last);
}
