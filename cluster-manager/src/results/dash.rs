//! MPEG-DASH (ISO/IEC 23009-1), segment lists with byte ranges into the chunk objects.
//!
//! While parts are missing the manifest is a static one of what there is: a dynamic one would send players to its live
//! edge, and a film is watched from the beginning. A player has to be opened again to see what landed since.

use std::fmt::Write;

use super::{
    Fragment, Links, Playable, SoundTrack, Track,
    hls::{group, sound_bit_rate},
    links::{seconds, xml},
};

/// Bytes in the notation of `mediaRange`: the last one is inclusive.
fn media_range(start: u64, end: u64) -> String {
    format!("{start}-{}", end.saturating_sub(1))
}

pub(super) fn manifest(film: &Playable<'_>, links: &Links<'_>) -> String {
    let duration = seconds(film.seconds());
    let buffer = seconds(film.longest_part_seconds());
    let title = xml(film.title());
    let pictures: String = film.tracks().iter().map(|track| picture(track, links)).collect();
    let sound = film.sound().map(|sound| voice(film, sound, links)).unwrap_or_default();
    format!(
        r#"<?xml version="1.0" encoding="UTF-8"?>
<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" profiles="urn:mpeg:dash:profile:isoff-main:2011" type="static" mediaPresentationDuration="PT{duration}S" minBufferTime="PT{buffer}S">
  <ProgramInformation><Title>{title}</Title></ProgramInformation>
  <Period id="0" start="PT0S">
    <AdaptationSet id="0" contentType="video" mimeType="video/mp4" segmentAlignment="true" startWithSAP="1">
{pictures}    </AdaptationSet>
{sound}  </Period>
</MPD>
"#
    )
}

fn picture(track: &Track<'_>, links: &Links<'_>) -> String {
    let Some(first) = track.first() else { return String::new() };
    let (mut times, mut urls) = (String::new(), String::new());
    for timed in &track.chunks {
        let (start, duration) = (timed.chunk.summary.start, timed.duration);
        let _ = writeln!(times, "            <S t=\"{start}\" d=\"{duration}\"/>");
        let url = xml(&links.reference(&timed.chunk.key));
        let range = media_range(timed.chunk.summary.init_bytes, timed.chunk.size);
        let _ = writeln!(urls, "          <SegmentURL media=\"{url}\" mediaRange=\"{range}\"/>");
    }
    let rate = frame_rate(first.samples, first.timescale, first.duration);
    let attributes = format!(
        "id=\"{}\" bandwidth=\"{}\" codecs=\"{}\" width=\"{}\" height=\"{}\"{rate}",
        xml(track.name),
        track.peak_bit_rate(),
        xml(&first.codecs),
        first.width,
        first.height
    );
    let init = xml(&links.reference(&track.chunks[0].chunk.key));
    representation(&attributes, first.timescale, &init, first.init_bytes, &times, &urls)
}

fn voice(film: &Playable<'_>, sound: &SoundTrack, links: &Links<'_>) -> String {
    let timescale = sound.summary.timescale;
    let units = |seconds: f64| seconds * f64::from(timescale);
    let end = if film.complete() { f64::INFINITY } else { units(film.seconds()) };
    let segments = group(&sound.fragments, units(film.longest_part_seconds()));
    let url = xml(&links.reference(&sound.key));
    let (mut times, mut urls) = (String::new(), String::new());
    for Fragment { range, start, duration, .. } in segments.into_iter().take_while(|s| (s.start as f64) < end) {
        let _ = writeln!(times, "            <S t=\"{start}\" d=\"{duration}\"/>");
        let range = media_range(range.start(), range.end());
        let _ = writeln!(urls, "          <SegmentURL media=\"{url}\" mediaRange=\"{range}\"/>");
    }
    let attributes =
        format!("id=\"audio\" bandwidth=\"{}\" codecs=\"{}\"", sound_bit_rate(sound), xml(&sound.summary.codecs));
    let representation = representation(&attributes, timescale, &url, sound.summary.init_bytes, &times, &urls);
    format!(
        "    <AdaptationSet id=\"1\" contentType=\"audio\" mimeType=\"audio/mp4\" segmentAlignment=\"true\" startWithSAP=\"1\">\n{representation}    </AdaptationSet>\n"
    )
}

fn representation(attributes: &str, timescale: u32, init: &str, init_bytes: u64, times: &str, urls: &str) -> String {
    let range = media_range(0, init_bytes);
    format!(
        r#"      <Representation {attributes}>
        <SegmentList timescale="{timescale}">
          <Initialization sourceURL="{init}" range="{range}"/>
          <SegmentTimeline>
{times}          </SegmentTimeline>
{urls}        </SegmentList>
      </Representation>
"#
    )
}

/// `frameRate` as a reduced fraction, or nothing where the numbers are no rate.
fn frame_rate(samples: u64, timescale: u32, duration: u64) -> String {
    let Some(units) = samples.checked_mul(u64::from(timescale)) else { return String::new() };
    let divisor = gcd(units, duration).max(1);
    match (units / divisor, duration / divisor) {
        (rate, 1) => format!(" frameRate=\"{rate}\""),
        (rate, per) if per < 100_000 => format!(" frameRate=\"{rate}/{per}\""),
        _ => String::new(),
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
