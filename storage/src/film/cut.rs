//! Where to cut: at the key frames nearest to evenly spaced times.

use super::plan::PlanOptions;

/// Chooses part starts among key frames. `keys`: rising seconds after the first frame, the first at or before 0;
/// `duration` in seconds. Gives indices into `keys`, the first always 0.
pub fn choose(keys: &[f64], duration: f64, options: &PlanOptions) -> Vec<usize> {
    let mut chosen = vec![0];
    for target in targets(duration, options) {
        let after = keys.partition_point(|&key| key < target);
        let near = |&i: &usize| keys.get(i).map_or(f64::INFINITY, |key| (key - target).abs());
        let nearest = [after.saturating_sub(1), after].into_iter().min_by(|a, b| near(a).total_cmp(&near(b)));
        if let Some(i) = nearest.filter(|i| chosen.last().is_none_or(|last| i > last) && *i < keys.len()) {
            chosen.push(i);
        }
    }
    chosen
}

/// Wished cut times, seconds after the first frame, without the start.
pub fn targets(duration: f64, options: &PlanOptions) -> Vec<f64> {
    if !duration.is_finite() || duration <= 0.0 {
        return Vec::new();
    }
    let most = f64::from(options.parts_max.clamp(1, 100_000));
    let least = f64::from(options.parts_min.max(1)).min(most);
    let chunk = if options.chunk_seconds > 0.0 { options.chunk_seconds } else { duration };
    let chunk = chunk.min(duration / least).max(duration / most);
    // A remainder of less than half a chunk joins the last part.
    let parts = (duration / chunk).round().clamp(1.0, most) as u32;
    (1..parts).map(|i| f64::from(i) * chunk).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_fall_on_the_nearest_key_frame_and_never_twice_on_one() {
        let keys: Vec<f64> = (0..30).map(|i| f64::from(i) * 4.0).collect();
        let cuts: Vec<f64> = choose(&keys, 120.0, &PlanOptions::default()).into_iter().map(|i| keys[i]).collect();
        assert_eq!(cuts, [0.0, 8.0, 20.0, 28.0, 40.0, 48.0, 60.0, 68.0, 80.0, 88.0, 100.0, 108.0]);
        assert_eq!(choose(&[0.0, 60.0], 120.0, &PlanOptions::default()).len(), 2);
    }

    #[test]
    fn a_short_film_is_cut_finer_and_a_long_one_into_no_more_than_the_most() {
        assert_eq!(targets(12.0, &PlanOptions::default()), [3.0, 6.0, 9.0]);
        let few = PlanOptions { parts_max: 8, ..PlanOptions::default() };
        assert_eq!(targets(8000.0, &few).len(), 7);
        assert!(targets(f64::NAN, &few).is_empty());
    }
}
