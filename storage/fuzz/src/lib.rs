//! What the fuzz targets of film indexes share: the input is the film, and the probe may read all of it.

use storage::film::{PlanOptions, Probe, Step};

/// Probes `film` and makes the heads of its parts; the outcome is of no interest, only that there is one.
pub fn probe(film: &[u8]) {
    let options = PlanOptions { index_bytes_max: 1 << 20, samples_max: 20_000, ..PlanOptions::default() };
    let mut probe = Probe::new(film.len() as u64, options);
    loop {
        match probe.step() {
            Ok(Step::Need(ranges)) => {
                assert!(!ranges.is_empty(), "a step that needs nothing");
                for range in ranges {
                    probe.supply(range, film[range.start() as usize..range.end() as usize].to_vec());
                }
            }
            Ok(Step::Done(plan, heads)) => {
                for (n, part) in plan.parts.iter().enumerate() {
                    heads.input(n, part);
                }
                return;
            }
            Err(_) => return,
        }
    }
}
