//! Any text as a job: read or refused, and what is read survives being written.
#![no_main]

use federation::job::{Job, find_job};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = find_job(text).map(Job::parse);
    if let Ok(mut job) = Job::parse(text) {
        job.credentials = Default::default();
        assert_eq!(Job::parse(&job.to_xml()).as_ref(), Ok(&job));
    }
});
