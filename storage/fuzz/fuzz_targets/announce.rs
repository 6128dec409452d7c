#![no_main]

use storage::overlay::announce::{PeerReport, Query};
use storage::overlay::policy::{Config, Policy};

// Whatever is believed of an announce, the policy survives it and leases only what exists.
libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    if let Ok(text) = std::str::from_utf8(input) {
        let _ = Query::parse(text);
    }
    let Ok(said) = PeerReport::parse(input) else { return };
    let Ok(report) = said.report(40) else { return };
    let mut policy = Policy::new(Config::default(), 40, 1);
    let orders = policy.announce(0, said.node, report);
    policy.connected(said.node, orders.origin);
    while let Some((node, piece)) = policy.next_lease(0) {
        assert!(piece < 40);
        policy.lease_done(1, node, piece);
    }
    policy.tick(1_000_000);
});
