//! A film whose every frame says its own number, and the check that a result shows each of them once.
//!
//! The number is burnt in as sixteen black or white cells, so it survives any encoder and needs no side channel; sound is a
//! ladder of tones with one pulse a second, so that a gap, an overlap or a drift shows. ffmpeg does the decoding: the check
//! shares no code with what it checks.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};

mod decode;
mod make;
mod smil;
mod sound;
mod verify;

pub use make::make;
pub use smil::verify_smil;
pub use verify::{AudioReport, Expected, Report, VideoReport, verify};

/// Frames a second, as a fraction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub num: u32,
    pub den: u32,
}

impl Rate {
    /// When frame `n` shows, in seconds.
    pub fn seconds(self, n: u64) -> f64 {
        n as f64 * f64::from(self.den) / f64::from(self.num)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.num, self.den)
    }
}

impl FromStr for Rate {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<Self> {
        let (num, den) = text.split_once('/').unwrap_or((text, "1"));
        let number = |t: &str| {
            t.parse::<u32>().with_context(|| format!("read a frame rate from {text:?}, like 30 or 30000/1001"))
        };
        let rate = Self { num: number(num)?, den: number(den)? };
        ensure!(rate.num > 0 && rate.den > 0, "a frame rate is more than zero, not {text}");
        Ok(rate)
    }
}

/// How the film is packed; the two MP4 kinds differ in where the index stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Container {
    Mp4,
    Mp4MoovLast,
    Fmp4,
    Mkv,
    Webm,
    Ts,
}

impl Container {
    pub const ALL: [Self; 6] = [Self::Mp4, Self::Mp4MoovLast, Self::Fmp4, Self::Mkv, Self::Webm, Self::Ts];

    /// File name extension.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Mp4 | Self::Mp4MoovLast | Self::Fmp4 => "mp4",
            Self::Mkv => "mkv",
            Self::Webm => "webm",
            Self::Ts => "ts",
        }
    }
}

/// Which film to make.
#[derive(Clone, Debug)]
pub struct Film {
    pub seconds: u32,
    pub rate: Rate,
    /// Pixels, even; the picture is 16:9.
    pub height: u32,
    pub container: Container,
    /// Frames that show before a key frame but are coded after it, and need the group before to decode.
    pub open_gop: bool,
}

impl Default for Film {
    /// The film of the demo.
    fn default() -> Self {
        Self { seconds: 120, rate: Rate { num: 30, den: 1 }, height: 720, container: Container::Mp4, open_gop: false }
    }
}

impl Film {
    /// Frames in the film: the last one starts before `seconds` are over.
    pub fn frames(&self) -> u64 {
        u64::from(self.seconds) * u64::from(self.rate.num) / u64::from(self.rate.den)
    }

    fn check(&self) -> Result<()> {
        if self.height < 120 || !self.height.is_multiple_of(2) {
            bail!("a height is even and at least 120, so that the frame number stays readable; not {}", self.height);
        }
        ensure!(self.frames() > 0, "a film has at least one frame");
        Ok(())
    }
}

/// [`verify_smil`] for a URL whose path ends in `.smil`, [`verify`] for any other.
///
/// # Errors
/// As theirs.
pub async fn verify_any(url: &str, expected: Expected) -> Result<Report> {
    if url.split('?').next().is_some_and(|path| path.ends_with(".smil")) {
        return verify_smil(url, expected).await;
    }
    let url = url.to_owned();
    tokio::task::spawn_blocking(move || verify(&url, expected)).await?
}

/// Cells of the frame number; it starts over after 2^16 frames.
const BITS: usize = 16;
