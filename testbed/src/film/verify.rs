//! The verdict on a result: every frame once, in order, on time; sound whole and in step.

use std::fmt;

use anyhow::{Result, ensure};
use serde::Serialize;

use super::decode::{Stamp, frame_numbers, samples, streams};
use super::{Rate, sound};

/// What the film was.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    pub frames: u64,
    pub rate: Rate,
}

/// What was seen and heard.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// One for each rendition.
    pub video: Vec<VideoReport>,
    pub audio: Option<AudioReport>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct VideoReport {
    pub frames: u64,
    pub missing: u64,
    pub repeated: u64,
    /// Frames with a lower number than the one before.
    pub out_of_order: u64,
    /// When the first frame shows.
    pub start_ms: f64,
    /// Largest distance of a frame from its time, counted from the first.
    pub pts_error_ms: f64,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct AudioReport {
    pub seconds: f64,
    /// How late sound is against the pictures, over all seconds of the film.
    pub lag_ms_min: f64,
    pub lag_ms_max: f64,
    /// Seconds whose pulse was not found or whose tone is broken or another's.
    pub broken_seconds: Vec<u64>,
    /// Largest hole or overlap between two decoded blocks.
    pub gap_ms: f64,
}

/// One AAC frame at 48 kHz: more than this and the sound is out of step by the packaging, not by rounding.
const LAG_MS_MAX: f64 = 22.0;

/// Decodes a film, an HLS playlist or a DASH manifest, whole. Blocks.
///
/// # Errors
/// Only when it cannot be decoded; what is wrong with a decoded film is in the report.
pub fn verify(url: &str, expected: Expected) -> Result<Report> {
    let (videos, audios) = streams(url)?;
    ensure!(videos > 0, "there is no picture in {}", url.split('?').next().unwrap_or_default());
    let video: Vec<VideoReport> =
        (0..videos).map(|n| Ok(watch(&frame_numbers(url, n)?, expected))).collect::<Result<_>>()?;
    let audio = if audios > 0 { Some(hear(url, expected, start_seconds(&video))?) } else { None };
    Ok(Report { video, audio })
}

/// When the picture starts, in seconds: the zero of the sound's time.
pub(super) fn start_seconds(video: &[VideoReport]) -> f64 {
    video.first().map_or(0.0, |video| video.start_ms / 1e3)
}

/// The sound alone, against pictures that start at `zero` seconds.
pub(super) fn hear(url: &str, expected: Expected, zero: f64) -> Result<AudioReport> {
    let (sound, stamps) = samples(url)?;
    Ok(listen(&sound, &stamps, expected, zero))
}

fn watch(seen: &[(u16, Stamp)], expected: Expected) -> VideoReport {
    let mut report = VideoReport { frames: seen.len() as u64, ..VideoReport::default() };
    let Some(&(_, first)) = seen.first() else {
        report.missing = expected.frames;
        return report;
    };
    report.start_ms = first.at * 1e3;
    let mut times_seen = vec![0u64; usize::try_from(expected.frames).unwrap_or(0)];
    let (mut before, mut beyond) = (None, 0);
    for (n, &(cells, stamp)) in seen.iter().enumerate() {
        // The cells hold 16 bits; the rest of the number follows from the place.
        let number = unwrap_number(cells, n as u64);
        match times_seen.get_mut(number as usize) {
            Some(times) => *times += 1,
            None => beyond += 1,
        }
        report.out_of_order += u64::from(before.is_some_and(|b| number < b));
        before = Some(number);
        let error = (stamp.at - first.at - expected.rate.seconds(number)).abs() * 1e3;
        report.pts_error_ms = report.pts_error_ms.max(error);
    }
    report.missing = times_seen.iter().filter(|&&times| times == 0).count() as u64;
    report.repeated = beyond + times_seen.iter().map(|times| times.saturating_sub(1)).sum::<u64>();
    report
}

/// The number nearest to `place` whose low 16 bits are `cells`.
fn unwrap_number(cells: u16, place: u64) -> u64 {
    let turn = i64::from(u16::MAX) + 1;
    let near = (place as i64 - i64::from(cells) + turn / 2).div_euclid(turn) * turn + i64::from(cells);
    u64::try_from(near).unwrap_or(u64::from(cells))
}

fn listen(sound: &[i16], stamps: &[Stamp], expected: Expected, zero: f64) -> AudioReport {
    let rate = f64::from(sound::RATE);
    let start = stamps.first().map_or(0.0, |stamp| stamp.at);
    let mut report = AudioReport { seconds: sound.len() as f64 / rate, ..AudioReport::default() };
    for pair in stamps.windows(2) {
        report.gap_ms = report.gap_ms.max((pair[1].at - pair[0].at - pair[0].lasts).abs() * 1e3);
    }
    let (mut lags, mut last) = (Vec::new(), None);
    // The pulse at the very start may be lost in the encoder's priming; a second that is cut has no whole tone.
    for second in 1..(expected.rate.seconds(expected.frames) + 0.001) as u64 {
        let place = ((second as f64 + zero - start) * rate).round() as i64;
        last = sound::follow_pulse(sound, place, last, 4800);
        match last {
            Some(offset) if sound::tone_is_whole(sound, place + offset, second) => {
                lags.push(offset as f64 / rate * 1e3)
            }
            _ => report.broken_seconds.push(second),
        }
    }
    report.lag_ms_min = lags.iter().copied().fold(f64::INFINITY, f64::min);
    report.lag_ms_max = lags.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    report
}

impl Report {
    /// What is wrong, in words; empty when the film is right.
    pub fn problems(&self, expected: Expected) -> Vec<String> {
        let mut problems = Vec::new();
        let mut check = |right: bool, problem: String| {
            if !right {
                problems.push(problem)
            }
        };
        for (n, v) in self.video.iter().enumerate() {
            check(v.frames == expected.frames, format!("video {n}: {} frames, not {}", v.frames, expected.frames));
            check(v.missing == 0, format!("video {n}: {} frames missing", v.missing));
            check(v.repeated == 0, format!("video {n}: {} frames too many", v.repeated));
            check(v.out_of_order == 0, format!("video {n}: {} frames out of order", v.out_of_order));
            // Half a tick of 90 kHz is what a 29.97 rate may be off by rounding.
            check(v.pts_error_ms < 0.012, format!("video {n}: a frame is {:.3} ms off its time", v.pts_error_ms));
            check(v.start_ms.abs() < 0.012, format!("video {n}: starts at {:.3} ms", v.start_ms));
        }
        check(!self.video.is_empty(), "no picture".to_owned());
        match &self.audio {
            None => check(false, "no sound".to_owned()),
            Some(a) => {
                check(a.broken_seconds.is_empty(), format!("sound is broken in seconds {:?}", a.broken_seconds));
                check(a.gap_ms < 1.0, format!("sound has a gap of {:.3} ms", a.gap_ms));
                let drift = a.lag_ms_max - a.lag_ms_min;
                check(drift < 1.0, format!("sound drifts by {drift:.3} ms"));
                check(a.lag_ms_max.abs() < LAG_MS_MAX, format!("sound is {:.3} ms late", a.lag_ms_max));
            }
        }
        problems
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for v in &self.video {
            write!(
                f,
                "{} frames, {} missing, {} repeated, PTS error {:.3} ms; ",
                v.frames, v.missing, v.repeated, v.pts_error_ms
            )?;
        }
        match &self.audio {
            Some(a) => write!(
                f,
                "sound {:.2} s, lag {:.2} to {:.2} ms, gap {:.2} ms",
                a.seconds, a.lag_ms_min, a.lag_ms_max, a.gap_ms
            ),
            None => write!(f, "no sound"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(numbers: impl IntoIterator<Item = u64>) -> Vec<(u16, Stamp)> {
        let stamp = |n: usize| Stamp { at: n as f64 / 30.0, lasts: 1.0 / 30.0 };
        numbers.into_iter().enumerate().map(|(n, number)| (number as u16, stamp(n))).collect()
    }

    #[test]
    fn a_lost_a_doubled_and_a_swapped_frame_are_told_apart() {
        let expected = Expected { frames: 4, rate: Rate { num: 30, den: 1 } };
        let right = watch(&seen([0, 1, 2, 3]), expected);
        assert_eq!((right.missing, right.repeated, right.out_of_order), (0, 0, 0));
        assert!(right.pts_error_ms < 1e-6);
        assert_eq!(watch(&seen([0, 1, 3]), expected).missing, 1);
        assert_eq!(watch(&seen([0, 1, 1, 2, 3]), expected).repeated, 1);
        assert_eq!(watch(&seen([0, 2, 1, 3]), expected).out_of_order, 1);
        assert_eq!(watch(&seen([0, 1, 2, 3, 4]), expected).repeated, 1);
    }

    #[test]
    fn numbers_go_on_past_sixteen_bits() {
        let expected = Expected { frames: 70_000, rate: Rate { num: 30, den: 1 } };
        let report = watch(&seen(0..70_000), expected);
        assert_eq!((report.missing, report.repeated, report.out_of_order), (0, 0, 0));
    }
}
