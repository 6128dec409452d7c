//! HTTP Live Streaming (RFC 8216): a master playlist, one media playlist a rendition, one for the sound.
//!
//! Segments are byte ranges of the chunk objects and the init segment is the head of the first one. No discontinuities:
//! decode times run on through the whole film, which is what lets one unbroken sound track go with all renditions.
//! Until the film is complete the playlists are of type EVENT, and a player that comes back finds more at the end. A
//! player reads the master once, so one that started before the sound was ready has to be opened again to hear it.

use std::fmt::Write;

use storage::range::ByteRange;

use super::{Document, Fragment, HLS_KEY, Links, Playable, SoundTrack, Track, playable::bit_rate};

const SOUND_KEY: &str = "audio.m3u8";

struct Segment<'a> {
    key: &'a str,
    range: ByteRange,
    seconds: f64,
}

pub(super) fn playlists(film: &Playable<'_>, links: &Links<'_>) -> Vec<Document> {
    let mut lists: Vec<(String, Vec<Segment<'_>>, u64)> = Vec::new();
    for track in film.tracks() {
        let Some(first) = track.first() else { continue };
        lists.push((playlist_key(track), picture(track), first.init_bytes));
    }
    if let Some(sound) = film.sound() {
        lists.push((SOUND_KEY.into(), voice(film, sound), sound.summary.init_bytes));
    }
    let longest = lists.iter().flat_map(|(_, segments, _)| segments).map(|segment| segment.seconds);
    let target = longest.fold(film.longest_part_seconds(), f64::max).ceil() as u64;
    let document = |key, body| Document { key, content_type: "application/vnd.apple.mpegurl", body };
    let mut documents: Vec<_> = lists
        .into_iter()
        .map(|(key, segments, init)| document(key, media(film.complete(), target, init, &segments, links)))
        .collect();
    documents.push(document(HLS_KEY.into(), master(film, links)));
    documents
}

fn playlist_key(track: &Track<'_>) -> String {
    format!("{}.m3u8", track.name)
}

fn picture<'a>(track: &Track<'a>) -> Vec<Segment<'a>> {
    let segment = |timed: &super::Timed<'a>| {
        let range = ByteRange::new(timed.chunk.summary.init_bytes, timed.chunk.size).ok()?;
        Some(Segment { key: &timed.chunk.key, range, seconds: timed.seconds() })
    };
    track.chunks.iter().filter_map(segment).collect()
}

/// The sound that goes with the playable parts, in segments about as long as a part.
fn voice<'a>(film: &Playable<'_>, sound: &'a SoundTrack) -> Vec<Segment<'a>> {
    let timescale = f64::from(sound.summary.timescale);
    let end = if film.complete() { f64::INFINITY } else { film.seconds() };
    group(&sound.fragments, film.longest_part_seconds() * timescale)
        .into_iter()
        .take_while(|joined| (joined.start as f64) < end * timescale)
        .map(|joined| Segment { key: &sound.key, range: joined.range, seconds: joined.duration as f64 / timescale })
        .collect()
}

/// Joins fragments that stand side by side while they stay within `longest` units.
pub(super) fn group(fragments: &[Fragment], longest: f64) -> Vec<Fragment> {
    let mut joined: Vec<Fragment> = Vec::new();
    for fragment in fragments {
        match joined.last_mut() {
            Some(last)
                if last.range.end() == fragment.range.start()
                    && (last.duration.saturating_add(fragment.duration)) as f64 <= longest =>
            {
                last.duration += fragment.duration;
                last.samples += fragment.samples;
                last.range = ByteRange::new(last.range.start(), fragment.range.end()).unwrap_or(last.range);
            }
            _ => joined.push(fragment.clone()),
        }
    }
    joined
}

fn media(complete: bool, target: u64, init_bytes: u64, segments: &[Segment<'_>], links: &Links<'_>) -> String {
    let kind = if complete { "VOD" } else { "EVENT" };
    let mut text = format!(
        "#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:{target}\n#EXT-X-PLAYLIST-TYPE:{kind}\n#EXT-X-INDEPENDENT-SEGMENTS\n"
    );
    if let Some(first) = segments.first() {
        let uri = links.reference(first.key);
        let _ = writeln!(text, "#EXT-X-MAP:URI=\"{uri}\",BYTERANGE=\"{init_bytes}@0\"");
    }
    for Segment { key, range, seconds } in segments {
        let (bytes, start, uri) = (range.len(), range.start(), links.reference(key));
        let _ = writeln!(text, "#EXTINF:{seconds:.6},\n#EXT-X-BYTERANGE:{bytes}@{start}\n{uri}");
    }
    if complete {
        text.push_str("#EXT-X-ENDLIST\n");
    }
    text
}

fn master(film: &Playable<'_>, links: &Links<'_>) -> String {
    let mut text = String::from("#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-INDEPENDENT-SEGMENTS\n");
    let (mut sound_rate, mut sound_codecs, mut group) = (0, String::new(), "");
    if let Some(sound) = film.sound() {
        let uri = links.reference(SOUND_KEY);
        let _ = writeln!(
            text,
            "#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"sound\",NAME=\"Sound\",DEFAULT=YES,AUTOSELECT=YES,URI=\"{uri}\""
        );
        sound_rate = sound_bit_rate(sound);
        sound_codecs = format!(",{}", sound.summary.codecs);
        group = ",AUDIO=\"sound\"";
    }
    for track in film.tracks() {
        let Some(first) = track.first() else { continue };
        let with_sound = |rate: u64| rate.saturating_add(sound_rate);
        let (peak, mean) = (with_sound(track.peak_bit_rate()), with_sound(track.mean_bit_rate()));
        let (width, height, codecs) = (first.width, first.height, &first.codecs);
        let rate = first.samples as f64 * f64::from(first.timescale) / first.duration as f64;
        let uri = links.reference(&playlist_key(track));
        let _ = writeln!(
            text,
            "#EXT-X-STREAM-INF:BANDWIDTH={peak},AVERAGE-BANDWIDTH={mean},RESOLUTION={width}x{height},FRAME-RATE={rate:.3},CODECS=\"{codecs}{sound_codecs}\"{group}\n{uri}"
        );
    }
    text
}

pub(super) fn sound_bit_rate(sound: &SoundTrack) -> u64 {
    bit_rate(sound.size, sound.summary.duration.max(1) as f64 / f64::from(sound.summary.timescale))
}
