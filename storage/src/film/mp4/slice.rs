//! Cutting sample lists into parts.

use std::ops::Range;

use super::boxes::Boxes;
use super::rebuild::{self, Slice};
use super::track::{Sample, Track};
use crate::film::cut;
use crate::film::error::{FilmError, damaged};
use crate::film::part::{Clip, PartInput, Ratio};
use crate::film::plan::{AudioInfo, AudioSpan, Container, FilmInfo, Plan, PlanOptions, PlannedPart};
use crate::film::rate;
use crate::range::ByteRange;

/// Everything that the index said.
#[derive(Debug)]
pub struct Film {
    pub container: Container,
    pub size: u64,
    pub ftyp: Vec<u8>,
    pub mvhd: Vec<u8>,
    pub video: Track,
    pub audio: Option<Track>,
}

/// A film and which samples are in which part.
#[derive(Debug)]
pub struct Cut {
    film: Film,
    shift: i64,
    parts: Vec<Span>,
}

/// The samples of a part, in decode order.
#[derive(Debug)]
struct Span {
    pictures: Range<usize>,
    sound: Range<usize>,
}

/// A place where a part may begin.
struct Key {
    /// Index of the key frame in decode order.
    sample: usize,
    pts: i64,
}

/// Names the sound codec, or says that its packets cannot be joined.
pub fn audio_info(track: &Track) -> Result<AudioInfo, FilmError> {
    let (codec, format) = match &track.codec {
        b"mp4a" if track.stsd.windows(2).any(|pair| matches!(pair, [0x6b | 0x69, 0x15])) => ("mp3", "mp3"),
        b"mp4a" => ("aac", "adts"),
        b".mp3" => ("mp3", "mp3"),
        b"ac-3" => ("ac3", "ac3"),
        b"ec-3" => ("eac3", "eac3"),
        b"Opus" => ("opus", "matroska"),
        b"fLaC" => ("flac", "matroska"),
        b"alac" => ("alac", "matroska"),
        other => return Err(FilmError::UnsupportedAudio(super::name(other))),
    };
    let (sample_rate, channels) = track.sound().unwrap_or_default();
    Ok(AudioInfo { codec: codec.into(), format: format.into(), sample_rate, channels })
}

impl Film {
    /// The heads of the parts are not in the plan.
    pub fn cut(self, options: &PlanOptions) -> Result<(Plan, Cut), FilmError> {
        self.check()?;
        let shown = shown(&self.video)?;
        let (Some(&first), Some(&last)) = (shown.first(), shown.last()) else { return Err(FilmError::NoVideo) };
        let tick = Ratio { num: 1, den: self.video.timescale };
        let end = last.saturating_add(self.last_duration(last));
        let ticks = end.abs_diff(first);
        let constant = rate::constant(&shown, tick);
        let rate = constant.or_else(|| rate::mean(shown.len() as u64, ticks, tick));
        let rate = rate.ok_or_else(|| damaged("no frame rate"))?;
        let seconds = |pts: i64| pts.saturating_sub(first) as f64 / f64::from(self.video.timescale);
        let keys = self.keys(first)?;
        let times: Vec<f64> = keys.iter().map(|key| seconds(key.pts)).collect();
        let chosen: Vec<&Key> =
            cut::choose(&times, seconds(end), options).into_iter().filter_map(|i| keys.get(i)).collect();
        let mut cuts: Vec<i64> = chosen.iter().map(|key| key.pts).collect();
        cuts.push(end);
        if let Some(start) = cuts.first_mut() {
            *start = first;
        }
        let shift = self.video.samples.iter().map(|s| s.dts.saturating_sub(s.pts)).max().unwrap_or(0).max(0);
        let frame = |pts: i64| shown.partition_point(|&other| other < pts) as u64;
        let earliest = earliest(self.video.samples.iter().map(|sample| sample.pts).collect());
        let audio = self.audio_span()?;
        let (mut parts, mut spans) = (Vec::new(), Vec::new());
        for (key, span) in chosen.iter().zip(cuts.windows(2)) {
            let &[lo, hi] = span else { continue };
            // From the key frame to the last picture that is shown before `hi`.
            let pictures = key.sample..earliest.partition_point(|&pts| pts < hi).max(key.sample);
            let span = Span { pictures, sound: self.packets(lo, hi, first, end) };
            let slices = self.slices(&span, shift);
            let base = slices[0].samples.first().map_or(0, |sample| sample.dts).saturating_sub(shift);
            let ranges = rebuild::ranges(&slices, self.size)?;
            spans.push(span);
            parts.push(PlannedPart {
                input: PartInput { format: "mp4".into(), head: String::new(), ranges },
                clip: Clip {
                    lo: lo.saturating_sub(base),
                    hi: hi.saturating_sub(base),
                    time_base: tick,
                    first_frame: frame(lo),
                    frames: frame(hi) - frame(lo),
                    rate,
                    constant: constant.is_some(),
                    origin: first.saturating_sub(base),
                },
                audio: audio.clone(),
                start_seconds: seconds(lo),
                duration_seconds: seconds(hi) - seconds(lo),
            });
        }
        let (width, height) = self.video.picture().unwrap_or_default();
        let usual = usual_length(self.sound());
        let sound_start = self.audio.as_ref().zip(usual.and_then(|usual| sound_start(self.sound(), usual)));
        let film = FilmInfo {
            container: self.container,
            width,
            height,
            duration: seconds(end),
            rate,
            constant: constant.is_some(),
            frames: shown.len() as u64,
            audio: self.audio_used().map(audio_info).transpose()?,
        };
        let audio_offset_seconds = match sound_start {
            Some((audio, pts)) => show(audio, pts) + dropped(audio) - show(&self.video, first),
            _ => 0.0,
        };
        let audio_end_seconds = sound_start.and_then(|(audio, _)| {
            let (usual, _) = usual.filter(|(_, is_even)| *is_even)?;
            let seconds = usual as f64 * self.sound().len() as f64 / f64::from(audio.timescale);
            Some(audio_offset_seconds - dropped(audio) + seconds)
        });
        Ok((Plan { film, parts, audio_offset_seconds, audio_end_seconds }, Cut { film: self, shift, parts: spans }))
    }

    fn check(&self) -> Result<(), FilmError> {
        let all = self.video.samples.iter().chain(self.audio.iter().flat_map(|audio| &audio.samples));
        for sample in all {
            if sample.end() > self.size {
                let what = format!("a sample reaches to {} of {}", sample.end(), self.size);
                return Err(FilmError::Truncated(what));
            }
        }
        Ok(())
    }

    fn last_duration(&self, last: i64) -> i64 {
        let last = self.video.samples.iter().find(|sample| sample.pts == last);
        last.map_or(1, |sample| i64::from(sample.duration).max(1))
    }

    /// Key frames at which a part may begin: everything shown later is decoded later.
    fn keys(&self, first: i64) -> Result<Vec<Key>, FilmError> {
        let mut keys: Vec<Key> = Vec::new();
        let mut latest = i64::MIN;
        for (sample, &Sample { pts, key, .. }) in self.video.samples.iter().enumerate() {
            if key && latest < pts {
                // Before the first shown frame only the last key frame matters.
                if pts <= first {
                    keys.clear();
                }
                keys.push(Key { sample, pts });
            }
            latest = latest.max(pts);
        }
        if keys.is_empty() { Err(damaged("no key frame")) } else { Ok(keys) }
    }

    fn audio_used(&self) -> Option<&Track> {
        self.audio.as_ref().filter(|_| !self.sound().is_empty())
    }

    fn audio_span(&self) -> Result<Option<AudioSpan>, FilmError> {
        let Some(audio) = self.audio_used() else { return Ok(None) };
        Ok(Some(AudioSpan { lo: None, hi: None, format: audio_info(audio)?.format }))
    }

    /// The sound packets that are heard at all.
    fn sound(&self) -> &[Sample] {
        let Some(audio) = &self.audio else { return &[] };
        let end = audio.edit.length.map_or(i64::MAX, |length| audio.edit.media.saturating_add(length));
        let len = audio.samples.partition_point(|sample| sample.pts < end);
        audio.samples.get(..len).unwrap_or_default()
    }

    /// The sound that is heard while pictures from `lo` to `hi` are shown.
    fn packets(&self, lo: i64, hi: i64, first: i64, end: i64) -> Range<usize> {
        let Some(audio) = self.audio_used() else { return 0..0 };
        let sound = self.sound();
        let index = |pts: i64| {
            let time = show(&self.video, pts);
            sound.partition_point(|sample| show(audio, sample.pts) < time)
        };
        let from = if lo == first { 0 } else { index(lo) };
        let to = if hi == end { sound.len() } else { index(hi) };
        from..to
    }

    /// The pictures first.
    fn slices(&self, span: &Span, shift: i64) -> Vec<Slice<'_>> {
        let pictures = self.video.samples.get(span.pictures.clone()).unwrap_or_default();
        let mut slices = vec![Slice { track: &self.video, samples: pictures, shift }];
        if let Some(audio) = self.audio_used() {
            let samples = self.sound().get(span.sound.clone()).unwrap_or_default();
            slices.push(Slice { track: audio, samples, shift: 0 });
        }
        slices
    }
}

impl Cut {
    /// What stands before the `ranges` of part `n`.
    pub fn head(&self, n: usize, ranges: &[ByteRange]) -> Option<Vec<u8>> {
        let Film { ftyp, mvhd, .. } = &self.film;
        Some(rebuild::head(ftyp, mvhd, &self.film.slices(self.parts.get(n)?, self.shift), ranges))
    }
}

/// Of each picture, in decode order: when the first is shown of it and all after it. So they rise.
fn earliest(mut pts: Vec<i64>) -> Vec<i64> {
    for i in (1..pts.len()).rev() {
        pts[i - 1] = pts[i - 1].min(pts[i]);
    }
    pts
}

/// When the sound would start if its packets followed each other without a gap, as they do once joined: the median over all
/// packets, because writers stretch the first one to fill what an encoder's priming left.
fn sound_start(sound: &[Sample], (usual, is_even): (i64, bool)) -> Option<i64> {
    let start = |(i, sample): (i64, &Sample)| sample.pts.saturating_sub(i.saturating_mul(usual));
    let mut starts: Vec<i64> = (0i64..).zip(sound).map(start).collect();
    // Lengths rounded to the track's ticks would add up to a drift.
    if is_even { middle(&mut starts).copied() } else { sound.first().map(|sample| sample.pts) }
}

/// The median length of a packet, in the track's units, and whether nearly all have it.
fn usual_length(sound: &[Sample]) -> Option<(i64, bool)> {
    let mut lengths: Vec<u32> = sound.iter().map(|sample| sample.duration).collect();
    let usual = *middle(&mut lengths)?;
    let others = lengths.iter().filter(|&&length| length != usual).count();
    Some((i64::from(usual), others * 20 <= lengths.len()))
}

/// Seconds that a decoder drops at the start by itself: what an Opus setup says (`dOps`), since it survives the joining.
fn dropped(audio: &Track) -> f64 {
    let skip = || {
        let entry = audio.entry().filter(|_| &audio.codec == b"Opus")?;
        let setup = Boxes::of(entry.get(36..)?).flatten().find(|child| &child.kind == b"dOps")?;
        Some(u16::from_be_bytes(setup.body.get(2..4)?.try_into().ok()?))
    };
    skip().map_or(0.0, |skip| f64::from(skip) / 48_000.0)
}

fn middle<T: Ord>(values: &mut [T]) -> Option<&T> {
    let middle = values.len() / 2;
    (!values.is_empty()).then(|| &*values.select_nth_unstable(middle).1)
}

/// When a sample is shown, in seconds of the film's own clock.
fn show(track: &Track, pts: i64) -> f64 {
    track.edit.delay + pts.saturating_sub(track.edit.media) as f64 / f64::from(track.timescale)
}

/// Presentation times that the edit list lets through, rising.
fn shown(video: &Track) -> Result<Vec<i64>, FilmError> {
    let from = video.edit.media;
    let to = video.edit.length.map_or(i64::MAX, |length| from.saturating_add(length));
    // An edit from 0 is what writers leave who mean "all of it"; times before it are then kept by players.
    let kept = |&pts: &i64| pts >= from && pts < to;
    let mut times: Vec<i64> = video.samples.iter().map(|sample| sample.pts).filter(kept).collect();
    times.sort_unstable();
    if times.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(FilmError::Irregular("two frames at one time".into()));
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_decoded_after_those_they_are_shown_before_belong_to_the_part_before() {
        // Groups of a key frame, pictures that are shown before it and decoded after it, and one more.
        for (groups, leading) in (1..12).flat_map(|groups| (0..9).map(move |leading| (groups, leading))) {
            let group = |n: i64| {
                let key = n * 20;
                [key].into_iter().chain(key - leading..key).chain([key + 10])
            };
            let pts: Vec<i64> = (0..groups).flat_map(group).collect();
            let earliest = earliest(pts.clone());
            for hi in -10..groups * 20 {
                let last = pts.iter().rposition(|&pts| pts < hi).map_or(0, |last| last + 1);
                let found = earliest.partition_point(|&pts| pts < hi);
                assert_eq!(found, last, "{groups} groups, {leading} before each key frame, shown before {hi}");
            }
        }
    }
}
