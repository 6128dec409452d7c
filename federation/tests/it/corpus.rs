//! The fuzzers' corpora hold what they are meant to: jobs and messages that are read.

use std::collections::BTreeSet;
use std::path::Path;

use federation::job::Job;
use federation::message::Ad;
use xmpp_parsers::minidom::Element;

use crate::message::read;

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let all: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| std::fs::read(e.unwrap().path()).unwrap()).collect();
    assert!(all.len() >= 3);
    all
}

#[test]
fn the_corpora_of_the_fuzzers_are_read() {
    for bytes in corpus("job") {
        Job::parse(&String::from_utf8(bytes).unwrap()).unwrap();
    }
    let mut verbs = BTreeSet::new();
    for bytes in corpus("envelope") {
        let element: Element = xso::from_bytes(bytes.trim_ascii()).unwrap();
        verbs.insert(element.name().to_owned());
        match Ad::try_from(element) {
            Ok(_) => {}
            Err(_) => drop(read(bytes.trim_ascii()).unwrap()),
        }
    }
    assert_eq!(verbs.len(), 21, "an ad and every verb: {verbs:?}");
}
