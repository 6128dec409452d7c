//! What a film is and how it is cut: the answer of a probe, from which home writes one part order per part.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::mp4::Cut;
use super::part::{Clip, PartInput, Ratio};

/// How to cut, and what a hostile index may cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlanOptions {
    /// Wished length of a part; cuts fall on the nearest key frames.
    pub chunk_seconds: f64,
    /// Short films are cut finer, so that there is work for this many.
    pub parts_min: u32,
    /// Longer chunks are taken rather than more parts than this.
    pub parts_max: u32,
    /// Bytes of index read before giving up.
    pub index_bytes_max: u64,
    /// Samples (pictures, sound packets) of one track.
    pub samples_max: u64,
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self {
            chunk_seconds: 10.0,
            parts_min: 4,
            parts_max: 10_000,
            index_bytes_max: 256 << 20,
            samples_max: 4_000_000,
        }
    }
}

/// A film, cut.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub film: FilmInfo,
    /// In film order; every frame and every sound packet is in exactly one.
    pub parts: Vec<PlannedPart>,
    /// Seconds by which the first sound packet starts after (or, negative, before) the first frame.
    pub audio_offset_seconds: f64,
    /// Seconds from the first frame to the end of the sound; `None` where the index does not say how long its packets are.
    #[serde(default)]
    pub audio_end_seconds: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Container {
    Mp4,
    FragmentedMp4,
    Matroska,
    MpegTs,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FilmInfo {
    pub container: Container,
    /// Pixels as coded; 0 where only decoding would tell (MPEG-TS).
    pub width: u32,
    pub height: u32,
    /// Seconds, of the picture.
    pub duration: f64,
    /// Frames a second; the mean if not `constant`.
    pub rate: Ratio,
    pub constant: bool,
    pub frames: u64,
    pub audio: Option<AudioInfo>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AudioInfo {
    /// `aac`, `mp3`, `opus`, ...
    pub codec: String,
    /// ffmpeg muxer in which the packets are copied out and joined.
    pub format: String,
    /// Hertz; 0 where only decoding would tell.
    pub sample_rate: u32,
    pub channels: u32,
}

/// One part: what to fetch and which frames and sound packets of it count.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedPart {
    /// Of an MP4 without its head, which [`Heads`] make.
    pub input: PartInput,
    pub clip: Clip,
    pub audio: Option<AudioSpan>,
    /// Seconds after the first frame of the film.
    pub start_seconds: f64,
    pub duration_seconds: f64,
}

/// Sound packets with `lo <= pts < hi` in time base units of the rebuilt input's sound; `None`: no bound.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AudioSpan {
    pub lo: Option<i64>,
    pub hi: Option<i64>,
    pub format: String,
}

/// The heads that are not in the plan. Those of an MP4 are together larger than its index, so each is made when its part is ordered.
#[derive(Debug, Default)]
pub struct Heads(pub(super) Option<Box<Cut>>);

impl Heads {
    /// The input of part number `n` of the plan that came with these heads, whole.
    pub fn input(&self, n: usize, part: &PlannedPart) -> PartInput {
        let head = self.0.as_ref().and_then(|cut| cut.head(n, &part.input.ranges));
        let mut input = part.input.clone();
        if let Some(head) = head {
            input.head = STANDARD.encode(head);
        }
        input
    }

    /// Makes every part's input whole.
    pub fn fill(&self, plan: &mut Plan) {
        (0..).zip(&mut plan.parts).for_each(|(n, part)| part.input = self.input(n, part));
    }
}

impl PlannedPart {
    /// Bytes to fetch from the source.
    pub fn bytes(&self) -> u64 {
        self.input.ranges.iter().map(|range| range.len()).sum()
    }
}

impl Plan {
    /// Bytes to fetch over all parts.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(PlannedPart::bytes).sum()
    }
}
