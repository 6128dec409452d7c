//! Answers cut to the size of a stanza: what XMPP carries has a limit, the parts of a job and the jobs of a domain have hardly one. Pure.

use std::collections::BTreeSet;

use federation::xmpp::STANZA_BYTES_MAX;
use serde::Serialize;

use crate::timeline;
use crate::view::{JobDoc, plain};

/// For what one stanza tells. The rest is more than names and addresses take.
pub const STANZA_TEXT_MAX: usize = STANZA_BYTES_MAX - 10_000;
/// Of what is said of an error, where there is not room for all.
const ERROR_CHARS_MAX: usize = 200;

/// What is given up, one after the other.
const CUTS: [fn(&mut JobDoc); 6] = [
    |job| job.timeline = timeline::merged(&job.timeline),
    |job| {
        let mut heard = BTreeSet::new();
        job.offers.reverse(); // the last of each domain stays
        job.offers.retain(|offer| heard.insert(offer.domain.clone()));
        job.offers.reverse();
    },
    |job| job.usage.iter_mut().for_each(|used| used.loaded = None),
    |job| job.parts.iter_mut().for_each(|part| part.by = part.by.take().filter(|by| part.domain.as_ref() != Some(by))),
    |job| job.parts.iter_mut().for_each(|part| (part.domain, part.by) = (None, None)),
    |job| *job = JobDoc { parts: std::mem::take(&mut job.parts), ..row(std::mem::take(job)) },
];

/// Shortens a document to so many bytes of a stanza, however many parts a job may have.
pub fn fit(job: &mut JobDoc, bytes_max: usize) {
    for cut in CUTS {
        if json_bytes(job) <= bytes_max {
            return;
        }
        cut(job);
    }
}

/// As many as so many bytes of a stanza hold, the newest first: whole, or else without what a list can do without. And how many older ones
/// are left off.
pub fn fit_list(mut jobs: Vec<JobDoc>, bytes_max: usize) -> (Vec<JobDoc>, usize) {
    jobs.sort_by(|a, b| (b.submitted_at, &b.id).cmp(&(a.submitted_at, &a.id)));
    if json_bytes(&jobs) <= bytes_max {
        return (jobs, 0);
    }
    let all = jobs.len();
    let mut bytes = "[]".len();
    let jobs: Vec<_> = jobs
        .into_iter()
        .map(row)
        .take_while(|row| {
            bytes += json_bytes(row) + ",".len();
            bytes <= bytes_max
        })
        .collect();
    let left_off = all - jobs.len();
    (jobs, left_off)
}

/// A job in a list.
fn row(mut job: JobDoc) -> JobDoc {
    if let Some(error) = &mut job.error {
        error.message = plain(&error.message, ERROR_CHARS_MAX);
    }
    JobDoc { parts: Vec::new(), offers: Vec::new(), timeline: Vec::new(), usage: Vec::new(), ..job }
}

fn json_bytes<T: Serialize>(document: &T) -> usize {
    serde_json::to_string(document).map_or(usize::MAX, |json| text_bytes(&json))
}

/// How long a text is in a stanza.
pub fn text_bytes(text: &str) -> usize {
    text.len() + text.bytes().filter(|byte| matches!(byte, b'&' | b'<' | b'>' | b'\r')).count() * "amp;".len()
}

#[cfg(test)]
mod tests {
    use federation::xmpp::payload::json_element;

    use super::*;
    use crate::timeline::{Phase, Span};
    use crate::view::{ErrorDoc, OfferDoc, PartDoc, ResultsDoc, UsageDoc};

    fn job(n: u64, parts: u32, domains: u32) -> JobDoc {
        let domain = |n: u32| format!("provider-{}.of.a.federation.example", n % domains);
        let part = |n| PartDoc {
            n,
            kind: "video".into(),
            state: "verified".into(),
            domain: Some(domain(n)),
            by: Some(domain(n)),
            attempt: 1,
            percent: 100.0,
            bytes: 123_456_789,
        };
        let spans = |n: u32| Phase::ALL.map(|phase| Span { phase, start_ms: 0, end_ms: 1, domain: Some(domain(n)) });
        let offer = |n| OfferDoc { domain: domain(n), outcome: "bid".into(), ..OfferDoc::default() };
        let loaded = Some("direct: <&> ".repeat(16));
        let used = |n| UsageDoc { domain: domain(n), loaded: loaded.clone(), ..UsageDoc::default() };
        let error =
            ErrorDoc { code: "encoder-failed".into(), message: "frame=1 <&>\n".repeat(300), ..ErrorDoc::default() };
        JobDoc {
            id: format!("j-{n}"),
            state: "failed".into(),
            submitted_at: n,
            parts: (0..parts).map(part).collect(),
            offers: (0..10 * domains).map(offer).collect(),
            results: Some(ResultsDoc::at("https://console.a.test:8443", "j-1a2b3c4d")),
            timeline: (0..parts).flat_map(spans).collect(),
            usage: (0..domains).map(used).collect(),
            error: Some(error),
            ..JobDoc::default()
        }
    }

    fn written<T: Serialize>(document: &T) -> usize {
        String::from(&json_element(&serde_json::to_string(document).unwrap())).len()
    }

    #[test]
    fn a_job_of_a_thousand_parts_fits_whatever_its_domains() {
        for (domains, shown) in [(3, true), (20, true), (1000, false)] {
            let mut job = job(1, 1000, domains);
            assert!(written(&job) > STANZA_BYTES_MAX);
            fit(&mut job, STANZA_TEXT_MAX);
            assert!(written(&job) < STANZA_BYTES_MAX, "{} bytes", written(&job));
            assert_eq!((job.parts.len(), job.results.is_some()), (1000, true));
            assert!(job.parts.iter().all(|part| part.state == "verified" && part.domain.is_some() == shown));
        }
    }

    #[test]
    fn what_fits_is_left_as_it_is() {
        let (mut fitted, job) = (job(1, 100, 3), job(1, 100, 3));
        fit(&mut fitted, STANZA_TEXT_MAX);
        assert_eq!(fitted, job);
    }

    #[test]
    fn a_list_shows_the_newest_jobs_first_whole_while_there_is_room_and_says_how_many_it_leaves_off() {
        let two = [job(2, 10, 3), job(1, 10, 3)];
        let reversed = vec![two[1].clone(), two[0].clone()];
        assert_eq!(fit_list(reversed, STANZA_TEXT_MAX), (two.to_vec(), 0));
        let (many, left_off) = fit_list((0..500).map(|n| job(n, 5, 3)).collect(), STANZA_TEXT_MAX);
        assert!(written(&many) < STANZA_BYTES_MAX);
        assert!(many.len() > 100 && many.len() + left_off == 500, "{}", many.len());
        assert_eq!((&many[0].id[..], many[0].timeline.len()), ("j-499", 0));
        assert_eq!(many[0].results, job(499, 0, 3).results);
    }
}
