//! Making the film: one ffmpeg run over a still that pans, which costs less than the encoding.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::{BITS, Container, Film, sound};
use crate::process::tied;

/// Writes the film to `out`. Blocks for about a tenth of the film's length on two free cores at 720p.
///
/// # Errors
/// ffmpeg is missing or refuses, or the disk is full; the text holds what ffmpeg said.
pub fn make(film: &Film, out: &Path) -> Result<()> {
    film.check()?;
    let dir = out.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let work = tempfile::tempdir_in(dir).context("create a directory for the film's sound")?;
    let wav = work.path().join("sound.s16");
    write_sound(film, &wav).context("write the film's sound")?;
    // Renamed when whole: a film cut short by Ctrl-C is never taken for one.
    let whole = work.path().join(format!("film.{}", film.container.extension()));

    let mut ffmpeg = tied("ffmpeg");
    ffmpeg.args(["-nostdin", "-y", "-v", "error", "-f", "lavfi", "-i", &picture(film)]);
    ffmpeg.args(["-f", "s16le", "-ar", "48000", "-ac", "1", "-i"]).arg(&wav);
    ffmpeg.args(["-map", "0:v", "-map", "1:a", "-ac", "2"]);
    ffmpeg.args(codec_arguments(film)).arg(&whole);
    let output = ffmpeg.output().context("start ffmpeg (Debian package ffmpeg)")?;
    ensure!(
        output.status.success(),
        "ffmpeg did not make the film: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    std::fs::rename(&whole, out).with_context(|| format!("put the film at {}", out.display()))
}

fn write_sound(film: &Film, path: &Path) -> Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let samples = (film.rate.seconds(film.frames()) * f64::from(sound::RATE)).round() as u64;
    for n in 0..samples {
        file.write_all(&sound::sample(n).to_le_bytes())?;
    }
    Ok(file.flush()?)
}

/// The source filter: a wide still, panned, with the frame number burnt in.
fn picture(film: &Film) -> String {
    let (height, width) = (film.height, film.height * 16 / 9 / 2 * 2);
    let mut graph = format!(
        "testsrc2=s={double}x{height}:r={rate},trim=end_frame=1,format=yuv420p,loop=-1:1:0,trim=end_frame={frames},setpts=N,\
         crop={width}:{height}:x='mod(n*4,{width})':y=0,drawbox=x=0:y=0:w=iw*17/40:h=ih*4/45:color=black:t=fill",
        double = width * 2,
        rate = film.rate,
        frames = film.frames(),
    );
    for bit in 0..BITS {
        let _ = write!(
            graph,
            ",drawbox=x='iw/80+{bit}*iw/40':y='ih/45':w='iw/40':h='ih*2/45':color=white:t=fill:\
             enable='gt(mod(floor((n+0.5)/{weight}),2),0.5)'",
            weight = 1 << bit,
        );
    }
    graph
}

fn codec_arguments(film: &Film) -> Vec<String> {
    let two_seconds = (2 * film.rate.num).div_ceil(film.rate.den);
    let gop = if film.open_gop { "open-gop=1:bframes=3:b-adapt=0" } else { "open-gop=0:bframes=2:b-adapt=0" };
    let mut arguments = match film.container {
        Container::Webm => {
            "-c:v libvpx -deadline realtime -cpu-used 16 -b:v 2M -c:a libopus -b:a 128k -threads 2".to_owned()
        }
        _ => format!(
            "-c:v libx264 -preset ultrafast -crf 26 -sc_threshold 0 -x264-params {gop} -c:a aac -b:a 128k -threads 2"
        ),
    };
    let _ = write!(arguments, " -pix_fmt yuv420p -g {two_seconds}");
    arguments.push_str(match film.container {
        Container::Mp4 => " -movflags +faststart -f mp4",
        Container::Mp4MoovLast => " -f mp4",
        Container::Fmp4 => " -movflags +frag_keyframe+delay_moov+default_base_moof -f mp4",
        Container::Mkv => " -f matroska",
        Container::Webm => " -f webm",
        Container::Ts => " -f mpegts",
    });
    arguments.split_whitespace().map(str::to_owned).collect()
}
