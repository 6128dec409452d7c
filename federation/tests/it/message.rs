//! Every message as XML and back, and bytes that are none.

use federation::cluster::{Failure, Host, Manager, Run, Status, Stop, Taken, Task};
use federation::id::{MessageId, Millis};
use federation::message::*;
use proptest::prelude::*;
use xmpp_parsers::minidom::Element;

use crate::world::{d, j};

fn samples() -> Vec<Body> {
    let (lease, secret, bid) = ("a-1-7".into(), "c0ffee <&\"'>".to_owned(), "b-1-3".into());
    let lease = || -> federation::id::LeaseId { Clone::clone(&lease) };
    let secret = || secret.clone();
    let bid = || -> federation::id::BidId { Clone::clone(&bid) };
    let at = Millis(1_700_000_000_123);
    let refs = || vec![PartRef { part: 0, attempt: 1 }, PartRef { part: 7, attempt: 2 }];
    let usage = Usage {
        bytes_in: 1,
        bytes_out: 2,
        throttled: 8,
        download_ms: 3,
        load_ms: 4,
        process_ms: 5,
        publish_ms: 6,
        cpu_ms: 7,
        loaded: Some("direct: why".into()),
    };
    let output = |fragments| Output { key: "out/é/0.mp4".into(), size: u64::MAX, sha256: "ab".into(), fragments };
    let outputs = || vec![output(None), output(Some("{\"init_bytes\":1,\"x\":\"<&>\"}".into()))];
    let progress = || PartProgress {
        part: 3,
        attempt: 1,
        state: "running".into(),
        bytes: 5,
        percent: 12.5,
        by: Some(d("c")),
        outputs: outputs(),
    };
    let award = PartAward { part: 1, attempt: 1, bytes: 2, work_ms: 3, url: "https://s3/x?a=b&c=d".into() };
    let parts = || vec![PartProgress { by: None, outputs: vec![], ..progress() }, progress()];
    vec![
        Body::Cfp(Cfp {
            kind: "transcode".into(),
            deadline: Some(at),
            budget_left: Some(0.1),
            bid_by: at,
            hold_ms: 30_000,
            depth_left: 2,
            parts: 1,
            bytes: 2,
            work_ms: u64::MAX,
        }),
        Body::Bid(Bid {
            bid: bid(),
            parts_max: 4,
            slots: 2,
            price: 1.25,
            start_p50_ms: 0,
            finish_p50_ms: 10,
            finish_p90_ms: 20,
            hold_until: at,
        }),
        Body::Refuse(Refuse { reason: "busy".into(), retry_after_ms: Some(5) }),
        Body::Refuse(Refuse { reason: "loop".into(), retry_after_ms: None }),
        Body::Award(Award {
            bid: bid(),
            lease: lease(),
            secret: secret(),
            ttl_ms: 60_000,
            renew_ms: 20_000,
            price_cap: 3.3,
            urls: None,
            common: Some(7),
            parts: vec![award],
        }),
        Body::Accept(Accept { lease: lease(), contract: "00ff".into() }),
        Body::Decline(Decline { reason: "no hold".into() }),
        Body::Commit(Commit { lease: lease(), secret: secret(), contract: "00ff".into() }),
        Body::RejectBid(RejectBid { bid: bid() }),
        Body::Renew(Renew { lease: lease(), secret: secret(), parts: refs() }),
        Body::Inventory(Inventory { lease: lease(), known: true, parts: parts() }),
        Body::Inventory(Inventory { lease: lease(), known: false, parts: vec![] }),
        Body::Progress(Progress { lease: lease(), secret: secret(), parts: parts() }),
        Body::PartDone(PartDone {
            lease: lease(),
            secret: secret(),
            part: 3,
            attempt: 1,
            by: Some(d("c")),
            outputs: outputs(),
            usage,
        }),
        Body::PartFailed(PartFailed {
            lease: lease(),
            secret: secret(),
            part: 3,
            attempt: 1,
            class: "code".into(),
            retryable: true,
            code: "encoder-failed".into(),
            log: "line one\nline <two> & three".into(),
        }),
        Body::Cancel(Cancel { lease: lease(), secret: secret(), reason: "why".into(), parts: refs() }),
        Body::Revoke(Revoke { lease: lease(), secret: secret(), reason: "why".into(), parts: vec![] }),
        Body::Release(Release { lease: lease(), secret: secret() }),
        Body::Resync(Resync { lease: lease(), secret: secret() }),
        Body::Ack(Ack {}),
        Body::Stale(Stale { reason: "attempt".into() }),
        Body::NotUnderstood(NotUnderstood { reason: "verb".into() }),
    ]
}

fn envelope(body: Body) -> Envelope {
    let (id, job, home) = (MessageId::from("a-1-9"), j("film"), d("a"));
    let (sent_at, expires_at) = (Millis(1), Millis(2));
    Envelope { id, job, home, epoch: 3, seq: 4, sent_at, expires_at, path: vec![d("a"), d("b")], body }
}

/// Through the bytes, as a stream would carry them.
fn through<T: xso::AsXml + xso::FromXml>(value: &T) -> T {
    let bytes = xso::to_vec(value).expect("written");
    xso::from_bytes(&bytes).expect("read")
}

fn written(envelope: &Envelope) -> Vec<u8> {
    xso::to_vec(&Element::from(envelope.clone())).expect("written")
}

pub fn read(bytes: &[u8]) -> Result<Envelope, xso::error::Error> {
    Envelope::try_from(xso::from_bytes::<Element>(bytes)?)
}

/// An award of so many parts with addresses like those of a store.
fn award(parts: u32) -> Award {
    let url = |n: u32| {
        let signature = format!("{:064x}", u128::from(n) << 90);
        format!(
            "https://s3.test/films/out/é/order-{n:05}-1.json?X-Amz-Credential={}&X-Amz-Signature={signature}",
            "k".repeat(400)
        )
    };
    let part = |n: u32| PartAward { part: n, attempt: 1, bytes: 1_000_000, work_ms: 2_000, url: url(n) };
    let parts = (0..parts).map(part).collect();
    let (bid, lease, secret) = ("b-1-3".into(), "a-1-7".into(), "c0ffee".into());
    Award { bid, lease, secret, ttl_ms: 1, renew_ms: 1, price_cap: 1.0, urls: None, common: None, parts }
}

#[test]
fn an_award_of_a_whole_call_fits_into_a_stanza_and_its_addresses_arrive_in_full() {
    for parts in [1, 2, 1_000] {
        let plain = award(parts);
        let mut packed = plain.clone();
        packed.pack();
        let element = Element::from(packed);
        assert!(String::from(&element).len() < 200_000, "{}", String::from(&element).len());
        assert_eq!(Award::try_from(element).unwrap(), plain);
    }
    // Addresses of another kind go as they are.
    let mut mixed = award(2);
    mixed.parts[1].url = "https://other.test/order".into();
    let plain = mixed.clone();
    mixed.pack();
    assert_eq!(mixed, plain);
}

#[test]
fn an_award_whose_addresses_make_no_sense_is_not_understood() {
    for (urls, url) in [("no query", "a?b"), ("x?y", "no query"), (&*format!("{}?y", "x".repeat(10_000)), "a?b")] {
        let mut bad = award(2);
        bad.urls = Some(urls.into());
        bad.parts[1].url = url.into();
        assert!(Award::try_from(Element::from(bad)).is_err(), "{url}");
    }
}

#[test]
fn an_award_with_a_line_that_is_no_part_is_not_understood() {
    let whole = String::from(&Element::from(award(1)));
    assert!(whole.contains(">0 1 1000000 2000 https://"), "{whole}");
    for line in
        ["0 1 1000000", "-1 1 1 1 https://", "0 1 1 1 1 https://", "0  1 1 1 https://", "4294967296 1 1 1 https://"]
    {
        let bad: Element = whole.replace("0 1 1000000 2000 https://", line).parse().unwrap();
        assert!(Award::try_from(bad).is_err(), "{line}");
    }
}

#[test]
fn every_message_survives_being_written_and_read() {
    for body in samples() {
        let envelope = envelope(body);
        assert_eq!(read(&written(&envelope)).expect("an envelope"), envelope);
    }
}

#[test]
fn every_message_of_a_cluster_survives_too() {
    let host = Host { name: "vm1".into(), epoch: 1, seq: 2, slots: 2, slots_free: 1 };
    assert_eq!(through(&host), host);
    assert_eq!(through(&Manager { epoch: 3 }), Manager { epoch: 3 });
    let task = Task { id: "t".into(), url: "https://x/?a&b".into(), swarm: Some("http://10.0.0.1:7/share".into()) };
    let run = Run { tasks: vec![task.clone(), Task { swarm: None, ..task }] };
    assert_eq!(through(&run), run);
    assert_eq!(through(&Taken { tasks: 2 }), Taken { tasks: 2 });
    assert_eq!(through(&Stop { task: "t".into() }), Stop { task: "t".into() });
    let failure = Failure { class: "code".into(), retryable: true, code: "c".into(), log: "a\n<b>&".into() };
    let (task, state, outputs) = ("t".into(), "failed".into(), vec![]);
    let usage = Some(Usage::default());
    let status = Status { task, state, bytes: 1, percent: 2.0, outputs, usage, failure: Some(failure) };
    assert_eq!(through(&status), status);
}

#[test]
fn an_unknown_verb_and_a_name_without_end_are_refused() {
    let ack = String::from_utf8(written(&envelope(Body::Ack(Ack {})))).expect("text");
    let read = |text: &str| read(text.as_bytes());
    assert!(read(&ack).is_ok());
    assert!(read(&ack.replace("ack", "nack")).is_err());
    assert!(read(&ack.replace("a-1-9", &"x".repeat(300))).is_err());
    assert!(read(&ack.replace("epoch='3'", "epoch='-3'").replace("epoch=\"3\"", "epoch=\"-3\"")).is_err());
}

#[test]
fn a_price_or_a_percentage_that_is_no_number_is_refused() {
    let ad = Ad {
        domain: d("b"),
        epoch: 1,
        seq: 2,
        health: "ok".into(),
        slots: 2,
        slots_free: 1,
        price: 1.25,
        region: None,
        kinds: "transcode".into(),
        version: "0".into(),
    };
    assert_eq!(through(&ad), ad);
    for bad in ["NaN", "inf", "-inf", "-1", "1e999", "much"] {
        let mut fields = 0;
        for body in samples() {
            let text = String::from_utf8(written(&envelope(body))).expect("text");
            for (name, good) in [("price", "1.25"), ("price-cap", "3.3"), ("budget-left", "0.1"), ("percent", "12.5")] {
                let [good, bad] = [good, bad].map(|value| format!(" {name}=\"{value}\""));
                let text = text.replace('\'', "\"");
                if text.contains(&good) {
                    fields += 1;
                    let error = read(text.replace(&good, &bad).as_bytes()).expect_err(&bad).to_string();
                    assert!(bad.contains("much") || error.contains("number of at least 0"), "{error}");
                }
            }
        }
        assert_eq!(fields, 5, "in a call, a bid, an award, an inventory and progress");
        let bytes = xso::to_vec(&ad).expect("written");
        let text = String::from_utf8(bytes).expect("text").replace("1.25", bad);
        assert!(xso::from_bytes::<Ad>(text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn attributes_that_a_later_version_adds_to_any_element_are_ignored() {
    for body in samples() {
        let known = envelope(body);
        let text = String::from_utf8(written(&known)).expect("text");
        let more: String = text
            .split_inclusive(|c: char| c.is_whitespace() || c == '>')
            .map(|word| match word.strip_prefix('<').filter(|name| name.starts_with(char::is_alphabetic)) {
                Some(name) => {
                    let end = name.find(['/', '>']).unwrap_or(name.trim_end().len());
                    format!("<{} later=\"1\"{}", &name[..end], &name[end..])
                }
                None => word.to_owned(),
            })
            .collect();
        let elements = text.matches('<').count() - text.matches("</").count();
        assert_eq!(more.matches(" later=").count(), elements, "{more}");
        assert_eq!(read(more.as_bytes()).expect("an envelope"), known, "{more}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    /// No bytes make a decoder or a domain panic (invariant 10).
    #[test]
    fn damaged_messages_are_refused_or_answered(which in 0usize..22, at in any::<prop::sample::Index>(), byte: u8, cut: bool) {
        let mut bytes = written(&envelope(samples()[which].clone()));
        let place = at.index(bytes.len());
        if cut { bytes.truncate(place) } else { bytes[place] = byte }
        if let Ok(envelope) = read(&bytes) {
            let mut world = crate::world::World::new(7, 2);
            world.input(&d("a"), federation::domain::Input::Request(d("b"), envelope));
        }
        let _ = federation::job::Job::parse(&String::from_utf8_lossy(&bytes));
    }

    /// Any values, however wild, in a message from a peer with a lease and from one without.
    #[test]
    fn wild_numbers_are_survived(n: u64, m: u32, price: f64, percent: f32, which in 0usize..22) {
        let mut world = crate::world::World::new(7, 2);
        world.submit("a", "film", 4);
        world.run_for(500);
        let mut body = samples()[which].clone();
        let taken = world.nodes[&d("b")].domain.book().taken.iter().next().map(|(l, t)| (l.clone(), t.terms.secret.0.clone()));
        let (lease, secret) = taken.expect("b has a lease");
        match &mut body {
            Body::Cfp(b) => (b.hold_ms, b.depth_left, b.budget_left, b.parts, b.work_ms) = (n, m, Some(price), m, n),
            Body::Award(b) => (b.ttl_ms, b.renew_ms, b.price_cap, b.parts[0].part) = (n, n, price, m),
            Body::Progress(b) => {
                (b.lease, b.secret) = (lease, secret);
                (b.parts[0].part, b.parts[0].bytes, b.parts[0].percent) = (m, n, percent);
            }
            Body::PartDone(b) => {
                (b.lease, b.secret, b.part, b.attempt) = (lease, secret, m % 8, 1);
                b.usage = Usage { bytes_in: n, cpu_ms: n, process_ms: n, ..b.usage.clone() };
            }
            Body::PartFailed(b) => (b.lease, b.secret, b.part, b.attempt) = (lease, secret, m % 8, 1),
            Body::Revoke(b) => (b.lease, b.secret) = (lease, secret),
            _ => {}
        }
        let wild = Envelope { epoch: n.max(3), seq: n, sent_at: Millis(n), path: vec![d("b")], home: d("b"), ..envelope(body.clone()) };
        world.input(&d("a"), federation::domain::Input::Request(d("b"), wild.clone()));
        world.input(&d("b"), federation::domain::Input::Request(d("a"), Envelope { path: vec![d("a")], home: d("a"), ..wild }));
        let _ = world.nodes[&d("a")].domain.jobs().count();
    }
}
