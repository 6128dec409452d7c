//! The order for one part of a transcoding job: a JSON object that home stores beside the results and whose
//! presigned URL is all that an award carries. A guest needs nothing else, and never holds a key.

use serde::{Deserialize, Serialize};

use crate::range::ByteRange;

/// One part, complete.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartSpec {
    pub job: String,
    pub part: u32,
    pub attempt: u32,
    pub work: Work,
}

impl PartSpec {
    /// Of its JSON; it carries the rewritten index of its part.
    pub const BYTES_MAX: u64 = 64 << 20;
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[expect(clippy::large_enum_variant, reason = "one order is held at a time, and nearly all are for video")]
pub enum Work {
    Video(VideoWork),
    Audio(AudioWork),
}

/// Fetch, rebuild a small decodable input, decode once, encode every rendition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VideoWork {
    pub source: Source,
    pub input: PartInput,
    pub clip: Clip,
    pub renditions: Vec<RenditionOutput>,
    /// The sound packets of this part, to be copied out (not encoded) as soon as the input is loaded.
    pub audio: Option<AudioCut>,
}

/// The source object; every GET bears `If-Match: etag`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Presigned GET.
    pub url: String,
    pub etag: String,
    /// Bytes.
    pub size: u64,
}

/// The bytes of a small self-contained file: `head`, then the source's `ranges` in this order, nothing between.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartInput {
    /// ffmpeg demuxer name: `mp4`, `matroska` or `mpegts`.
    pub format: String,
    /// Base64 (RFC 4648 §4, padded) of the bytes that come first: a rewritten `moov`, an EBML head, program tables and parameter sets, or nothing.
    pub head: String,
    pub ranges: Vec<ByteRange>,
}

/// A number of units a second, or seconds a unit: `num / den`, both positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ratio {
    pub num: u32,
    pub den: u32,
}

/// Which decoded frames belong to the part: those with `lo <= pts < hi`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clip {
    /// In `time_base` units of the *rebuilt input* as ffmpeg reads it with `-copyts`.
    pub lo: i64,
    pub hi: i64,
    /// Seconds a unit.
    pub time_base: Ratio,
    /// Number of the first frame in the whole film.
    pub first_frame: u64,
    /// Frames in the part; a result with any other number is wrong.
    pub frames: u64,
    /// Nominal frames a second of the film, which sets the key frame distance; frame `n` shows at `n / rate` when `constant`.
    pub rate: Ratio,
    /// False: variable frame rate, presentation times are kept, counted from `origin`.
    pub constant: bool,
    /// PTS (in the rebuilt input's units) of the film's first frame; only used when not `constant`.
    pub origin: i64,
}

/// One encoding of the film, as the job asks for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rendition {
    /// Pixels, even; the width follows the aspect ratio.
    pub height: u32,
    /// `h264` (the only one today; closed set in the job schema).
    pub codec: String,
    /// Constant rate factor, 0-51.
    pub crf: u8,
    /// x264 preset, `veryfast` unless the job says otherwise.
    pub preset: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenditionOutput {
    pub rendition: Rendition,
    /// Object key, for the record; the bytes go to `put`.
    pub key: String,
    /// Presigned PUT.
    pub put: String,
}

/// Sound packets with `lo <= pts < hi` in `time_base` of the rebuilt input are copied out; `None`: all of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AudioCut {
    pub lo: Option<i64>,
    pub hi: Option<i64>,
    /// ffmpeg muxer whose outputs can be joined byte by byte: `adts`, `mp3`, `ac3`, ...
    pub format: String,
    pub key: String,
    pub put: String,
}

/// Join the sound packets of all parts and encode them once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AudioWork {
    pub format: String,
    /// In film order.
    pub pieces: Vec<AudioPiece>,
    /// Seconds by which sound starts after (or, negative, before) the first frame.
    pub offset_seconds: f64,
    /// Bits a second of the AAC made.
    pub bit_rate: u32,
    pub key: String,
    /// Presigned PUT.
    pub put: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AudioPiece {
    /// Presigned GET.
    pub url: String,
    /// Bytes.
    pub size: u64,
    /// Lower-case hex.
    pub sha256: String,
}

/// What a guest made: an object it uploaded, checked by its own box parser before it is reported.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputObject {
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// Lower-case hex of the whole object.
    pub sha256: String,
    /// Present for fMP4 objects (video renditions and the encoded sound), absent for raw sound packets.
    pub fragments: Option<FragmentSummary>,
}

/// What the boxes of a self-initialising fMP4 object say (ISO/IEC 14496-12).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FragmentSummary {
    /// Bytes of `ftyp` + `moov`, from the start of the object.
    pub init_bytes: u64,
    /// Lower-case hex of those bytes.
    pub init_sha256: String,
    /// Units a second of the times below (90000 for video).
    pub timescale: u32,
    /// First `tfdt` base media decode time.
    pub start: u64,
    /// Sum of all sample durations.
    pub duration: u64,
    /// Sum of `trun` sample counts.
    pub samples: u64,
    /// Pixels; 0 for sound.
    pub width: u32,
    pub height: u32,
    /// RFC 6381 codecs string, such as `avc1.64001f` or `mp4a.40.2`.
    pub codecs: String,
}
