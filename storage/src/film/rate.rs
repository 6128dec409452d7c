//! Is the frame rate constant, and which is it? Containers round times to their own ticks, so a rate is accepted when every
//! frame lies within one tick of its grid.

use super::part::Ratio;

/// Rates that cameras, editors and broadcasters use, frames a second.
const KNOWN: [(u32, u32); 17] = [
    (24000, 1001),
    (24, 1),
    (25, 1),
    (30000, 1001),
    (30, 1),
    (48, 1),
    (50, 1),
    (60000, 1001),
    (60, 1),
    (5, 1),
    (10, 1),
    (12, 1),
    (15, 1),
    (20, 1),
    (100, 1),
    (120000, 1001),
    (120, 1),
];

/// Presentation times, in order, in ticks of `tick` seconds: the constant rate that they follow, if any.
pub fn constant(times: &[i64], tick: Ratio) -> Option<Ratio> {
    let (first, last) = (*times.first()?, *times.last()?);
    let steps = i64::try_from(times.len() - 1).ok()?;
    let step = last.checked_sub(first)?.checked_div(steps)?;
    if step <= 0 {
        return None;
    }
    let even = times.windows(2).all(|pair| pair[1].checked_sub(pair[0]) == Some(step));
    let exact = || reduce(u64::from(tick.den), u64::try_from(step).ok()?.checked_mul(u64::from(tick.num))?);
    // With coarse ticks even steps may still be rounded ones: two frames 33 ms apart are 30 a second.
    if even && step >= 100 {
        return exact();
    }
    let known = KNOWN.iter().map(|&(num, den)| Ratio { num, den }).find(|&rate| on_grid(times, tick, rate));
    known.or_else(|| if even { exact() } else { None })
}

/// Frame `i` within one tick of `first + i / rate`.
pub fn on_grid(times: &[i64], tick: Ratio, rate: Ratio) -> bool {
    let Some(&first) = times.first() else { return false };
    (0u64..).zip(times).all(|(i, &time)| {
        let Some(index) = nearest(time, first, tick, rate) else { return false };
        index == i
    })
}

/// The number of the frame nearest to `time` if it is within one tick of it, frame 0 being at `first`.
pub fn nearest(time: i64, first: i64, tick: Ratio, rate: Ratio) -> Option<u64> {
    // index = (time - first) * tick.num / tick.den * rate.num / rate.den
    let elapsed = i128::from(time) - i128::from(first);
    let up = i128::from(tick.num) * i128::from(rate.num);
    let down = i128::from(tick.den) * i128::from(rate.den);
    let index = (elapsed * up + down / 2).div_euclid(down);
    let error = elapsed * up - index * down; // in frames * down; one tick is `up`
    (error.abs() <= up).then(|| u64::try_from(index).ok()).flatten()
}

/// `num / den` in lowest terms, if it fits.
pub fn reduce(num: u64, den: u64) -> Option<Ratio> {
    let (mut a, mut b) = (num, den);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    let num = u32::try_from(num.checked_div(a)?).ok()?;
    let den = u32::try_from(den.checked_div(a)?).ok()?;
    (num > 0 && den > 0).then_some(Ratio { num, den })
}

/// The known rate nearest to a frame duration in nanoseconds, or that duration itself.
pub fn from_nanoseconds(duration: u64) -> Option<Ratio> {
    let near = |&&(num, den): &&(u32, u32)| {
        let exact = u128::from(den) * 1_000_000_000 / u128::from(num);
        exact.abs_diff(u128::from(duration)) <= 2
    };
    match KNOWN.iter().find(near) {
        Some(&(num, den)) => Some(Ratio { num, den }),
        None => reduce(1_000_000_000, duration),
    }
}

/// Mean rate of `frames` frames over `ticks`.
pub fn mean(frames: u64, ticks: u64, tick: Ratio) -> Option<Ratio> {
    // Milli-frames a second are exact enough for what only sets a key frame distance.
    let seconds_num = u128::from(ticks) * u128::from(tick.num);
    let milli = (u128::from(frames) * u128::from(tick.den) * 1000).checked_div(seconds_num)?;
    reduce(u64::try_from(milli.clamp(1, 1_000_000)).ok()?, 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Ratio = Ratio { num: 1, den: 1000 };

    fn times(rate: (i64, i64), ticks: i64, n: i64) -> Vec<i64> {
        (0..n).map(|i| (i * ticks * rate.1 + rate.0 / 2) / rate.0).collect()
    }

    #[test]
    fn rounded_times_show_the_rate_they_were_made_from() {
        for (num, den) in KNOWN {
            let rounded = times((num.into(), den.into()), 1000, 300);
            let rate = constant(&rounded, MS).unwrap();
            assert_eq!(u64::from(rate.num) * u64::from(den), u64::from(rate.den) * u64::from(num));
        }
    }

    #[test]
    fn a_film_that_drops_a_frame_is_not_constant() {
        let mut dropped = times((30, 1), 1000, 300);
        dropped.remove(100);
        assert_eq!(constant(&dropped, MS), None);
    }
}
