//! Any bytes as a message: an element, an envelope, and a request that a domain answers.
#![no_main]

use federation::agreement::Agreements;
use federation::domain::{Domain, DomainConfig, Input};
use federation::id::Millis;
use federation::message::Envelope;
use federation::timers::Timers;
use libfuzzer_sys::fuzz_target;
use xmpp_parsers::minidom::Element;

fuzz_target!(|bytes: &[u8]| {
    let Ok(element) = xso::from_bytes::<Element>(bytes) else { return };
    let Ok(envelope) = Envelope::try_from(element) else { return };
    let (agreements, timers) = (Agreements::default(), Timers::default());
    let mut domain = Domain::new(DomainConfig { me: "a".into(), epoch: 1, seed: [0; 32], agreements, timers });
    domain.handle(Millis(1), Input::Capacity { slots: 2, free: 2 });
    let outputs = domain.handle(Millis(2), Input::Request("b".into(), envelope));
    assert!(!outputs.is_empty());
});
