//! The film's sound: a tone that steps up each second, and a pulse where each second begins.
//!
//! The tone tells *which* second is heard and shows any gap; the pulse tells *when*, to a few samples.

use std::f64::consts::TAU;
use std::ops::RangeInclusive;

/// Samples a second.
pub const RATE: u32 = 48_000;
/// Length of the pulse, in samples.
pub const PULSE: usize = 480;
const SECOND: usize = RATE as usize;
/// Tones before the ladder starts over.
const STEPS: u64 = 100;

/// Sample `n` of the film.
pub fn sample(n: u64) -> i16 {
    let (second, within) = (n / u64::from(RATE), (n % u64::from(RATE)) as usize);
    let tone = 0.15 * (TAU * tone_hertz(second) * within as f64 / f64::from(RATE)).sin();
    let pulse = if within < PULSE { 0.6 * pulse(within) } else { 0.0 };
    ((tone + pulse) * f64::from(i16::MAX)) as i16
}

fn tone_hertz(second: u64) -> f64 {
    300.0 + 20.0 * (second % STEPS) as f64
}

/// 5 kHz, above every tone, under a bell that is zero at both ends.
fn pulse(n: usize) -> f64 {
    let at = n as f64;
    (TAU * 5000.0 * at / f64::from(RATE)).sin() * (0.5 - 0.5 * (TAU * at / PULSE as f64).cos())
}

/// Where the pulse of a second lies: the offset, in samples from `expected`, at which `sound` is most like it, among
/// `offsets`. `None`: it lies at none of them.
pub fn find_pulse(sound: &[i16], expected: i64, offsets: RangeInclusive<i64>) -> Option<i64> {
    let template: Vec<f32> = (0..PULSE).map(|n| pulse(n) as f32).collect();
    let likeness = |offset: i64| -> Option<f32> {
        let from = usize::try_from(expected + offset).ok()?;
        let heard = sound.get(from..from + PULSE)?;
        Some(heard.iter().zip(&template).map(|(&s, t)| f32::from(s) * t).sum())
    };
    let (best, offset) = offsets.filter_map(|o| Some((likeness(o)?, o))).max_by(|a, b| a.0.total_cmp(&b.0))?;
    // A full pulse scores 0.6 * 32767 * the template's energy (3/16 of its length); half of that is no accident.
    (best > 0.3 * 32767.0 * PULSE as f32 * 3.0 / 16.0).then_some(offset)
}

/// As [`find_pulse`] within `reach` samples, but looks first where the last one was: a lag seldom changes.
pub fn follow_pulse(sound: &[i16], expected: i64, last: Option<i64>, reach: i64) -> Option<i64> {
    let near = last.map(|last| last - 16..=last + 16);
    let found = near.clone().and_then(|near| find_pulse(sound, expected, near));
    // At the edge of what was searched the true peak may lie beyond.
    let inside = |offset: &i64| near.is_some_and(|near| offset != near.start() && offset != near.end());
    found.filter(inside).or_else(|| find_pulse(sound, expected, -reach..=reach))
}

/// Whether the tone of `second` is what is heard in its middle, and never fades there. `start`: sample where it begins.
pub fn tone_is_whole(sound: &[i16], start: i64, second: u64) -> bool {
    let Ok(start) = usize::try_from(start.max(0)) else { return false };
    let Some(middle) = sound.get(start + SECOND / 10..start + SECOND * 9 / 10) else { return false };
    let energy: f64 = middle.iter().map(|&s| f64::from(s).powi(2)).sum();
    let (mut re, mut im) = (0.0, 0.0);
    for (n, &s) in middle.iter().enumerate() {
        let angle = TAU * tone_hertz(second) * n as f64 / f64::from(RATE);
        re += f64::from(s) * angle.cos();
        im += f64::from(s) * angle.sin();
    }
    // By Parseval, a pure tone has all of its energy here.
    let in_tone = 2.0 * (re * re + im * im) / middle.len() as f64;
    let quietest =
        middle.chunks_exact(480).map(|c| c.iter().map(|&s| f64::from(s).powi(2)).sum::<f64>()).fold(f64::MAX, f64::min);
    in_tone > 0.95 * energy && quietest > 0.5 * energy * 480.0 / middle.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn film(seconds: u64) -> Vec<i16> {
        (0..seconds * u64::from(RATE)).map(sample).collect()
    }

    #[test]
    fn pulses_are_found_where_they_are() {
        let sound = film(3);
        assert_eq!(find_pulse(&sound, 48_000, -600..=600), Some(0));
        assert_eq!(find_pulse(&sound[100..], 48_000, -600..=600), Some(-100));
        assert_eq!(find_pulse(&sound, 60_000, -600..=600), None);
    }

    #[test]
    fn a_lag_that_jumps_is_followed() {
        let sound = film(3);
        assert_eq!(follow_pulse(&sound[500..], 48_000, Some(0), 600), Some(-500));
    }

    #[test]
    fn a_hole_or_a_wrong_second_is_heard() {
        let mut sound = film(3);
        assert!(tone_is_whole(&sound, 48_000, 1));
        assert!(!tone_is_whole(&sound, 48_000, 2));
        sound[70_000..70_700].fill(0);
        assert!(!tone_is_whole(&sound, 48_000, 1));
    }
}
