//! The part of a film that can be played now, checked.

use std::collections::BTreeSet;

use storage::film::part::FragmentSummary;

use super::{Chunk, Error, Film, Sound, SoundTrack};

/// The contiguous run of parts from the beginning which every rendition has. Its chunks share one init segment a
/// rendition and follow each other in time.
#[derive(Clone, Debug)]
pub struct Playable<'a> {
    film: &'a Film,
    /// Best first.
    tracks: Vec<Track<'a>>,
    parts: usize,
}

#[derive(Clone, Debug)]
pub struct Track<'a> {
    pub name: &'a str,
    /// Never empty, unless nothing is playable.
    pub chunks: Vec<Timed<'a>>,
}

#[derive(Clone, Copy, Debug)]
pub struct Timed<'a> {
    pub chunk: &'a Chunk,
    /// Units of the summary's timescale until the next chunk starts (or, for the last, until its samples end).
    pub duration: u64,
}

impl<'a> Playable<'a> {
    pub fn new(film: &'a Film) -> Result<Self, Error> {
        let total = film.renditions.first().ok_or(Error::NoRendition)?.parts.len();
        let mut names = BTreeSet::from(["master", "audio"]);
        for rendition in &film.renditions {
            if !names.insert(&rendition.name) {
                return Err(Error::NameTwice { name: rendition.name.clone() });
            }
            let found = rendition.parts.len();
            if found != total {
                return Err(Error::PartCount { name: rendition.name.clone(), expected: total, found });
            }
        }
        let parts = (0..total).take_while(|&n| film.renditions.iter().all(|r| r.parts[n].is_some())).count();
        let track = |rendition: &'a super::RenditionTrack| {
            let chunks = rendition.parts.iter().map_while(Option::as_ref).take(parts).collect();
            Ok(Track { name: &rendition.name, chunks: follow(chunks)? })
        };
        let mut tracks = film.renditions.iter().map(track).collect::<Result<Vec<_>, Error>>()?;
        tracks.sort_by_key(|track| std::cmp::Reverse(track.chunks.first().map(|c| c.chunk.summary.height)));
        if let Sound::Ready(sound) = &film.sound
            && (sound.fragments.is_empty() || sound.summary.timescale == 0)
        {
            return Err(Error::Hollow { key: sound.key.clone() });
        }
        Ok(Self { film, tracks, parts })
    }

    pub fn title(&self) -> &'a str {
        &self.film.title
    }

    /// Best first.
    pub fn tracks(&self) -> &[Track<'a>] {
        &self.tracks
    }

    /// Playable parts.
    pub fn parts(&self) -> usize {
        self.parts
    }

    /// Parts of the whole film.
    pub fn total(&self) -> usize {
        self.film.renditions[0].parts.len()
    }

    /// Nothing will be added.
    pub fn complete(&self) -> bool {
        self.parts == self.total() && self.film.sound != Sound::Pending
    }

    pub fn sound(&self) -> Option<&'a SoundTrack> {
        match &self.film.sound {
            Sound::Ready(sound) => Some(sound),
            Sound::Silent | Sound::Pending => None,
        }
    }

    pub fn sound_pending(&self) -> bool {
        self.film.sound == Sound::Pending
    }

    /// Seconds from the beginning to the end of the last playable part.
    pub fn seconds(&self) -> f64 {
        self.tracks.iter().map(Track::seconds).fold(0.0, f64::max)
    }

    pub(super) fn longest_part_seconds(&self) -> f64 {
        let seen = self.tracks.iter().flat_map(|t| &t.chunks).map(Timed::seconds);
        seen.fold(self.film.longest_part_seconds, f64::max)
    }
}

impl Track<'_> {
    /// The summary of the first chunk; size, codecs and init segment are those of all.
    pub(super) fn first(&self) -> Option<&FragmentSummary> {
        self.chunks.first().map(|timed| &timed.chunk.summary)
    }

    pub fn seconds(&self) -> f64 {
        self.chunks.iter().map(Timed::seconds).sum()
    }

    /// Bits a second of the densest chunk.
    pub fn peak_bit_rate(&self) -> u64 {
        self.chunks.iter().map(|timed| bit_rate(timed.chunk.size, timed.seconds())).max().unwrap_or(0)
    }

    pub fn mean_bit_rate(&self) -> u64 {
        bit_rate(self.chunks.iter().map(|timed| timed.chunk.size).sum(), self.seconds())
    }
}

impl Timed<'_> {
    pub fn seconds(&self) -> f64 {
        self.duration as f64 / f64::from(self.chunk.summary.timescale)
    }
}

pub(super) fn bit_rate(bytes: u64, seconds: f64) -> u64 {
    (bytes as f64 * 8.0 / seconds).ceil() as u64
}

/// Gives each chunk the time until the next, or says why they do not follow each other.
fn follow(chunks: Vec<&Chunk>) -> Result<Vec<Timed<'_>>, Error> {
    for chunk in &chunks {
        let summary = &chunk.summary;
        if summary.samples == 0 || summary.duration == 0 || summary.timescale == 0 || summary.init_bytes >= chunk.size {
            return Err(Error::Hollow { key: chunk.key.clone() });
        }
        let first = chunks[0];
        if (&summary.init_sha256, summary.init_bytes, summary.timescale)
            != (&first.summary.init_sha256, first.summary.init_bytes, first.summary.timescale)
        {
            return Err(Error::InitDiffers { first_key: first.key.clone(), key: chunk.key.clone() });
        }
    }
    let mut timed = Vec::with_capacity(chunks.len());
    for (n, chunk) in chunks.iter().enumerate() {
        let duration = match chunks.get(n + 1) {
            None => chunk.summary.duration,
            Some(next) => step(&chunk.summary, next)?,
        };
        timed.push(Timed { chunk, duration });
    }
    Ok(timed)
}

/// From the start of one chunk to the start of the next. The muxer guesses how long a chunk's last frame lasts, so the
/// seam may be off by less than a frame, and by less than a second where the frame rate varies.
fn step(summary: &FragmentSummary, next: &Chunk) -> Result<u64, Error> {
    let end = summary.start.saturating_add(summary.duration);
    let start = next.summary.start;
    let frame = summary.duration / summary.samples;
    let constant = frame.abs_diff(next.summary.duration / next.summary.samples) <= 1;
    let tolerance = if constant { frame / 2 } else { u64::from(summary.timescale) };
    if start <= summary.start || end.abs_diff(start) > tolerance {
        let timescale = summary.timescale;
        return Err(Error::TimeGap { key: next.key.clone(), expected: end, found: start, timescale });
    }
    Ok(start - summary.start)
}
