//! Small films, each made once and shared by all tests.

use std::path::PathBuf;
use std::process::Command;
use std::sync::{LazyLock, Mutex};

use super::tools::run;

/// Frames a second and how groups of pictures are closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Picture {
    /// 30, closed GOP of one second, 3 B frames.
    Closed30,
    /// 30000/1001, open GOP: B frames before each later I frame in time.
    Open2997,
    /// 24000/1001: no whole number of 90 kHz ticks.
    Closed23976,
    /// Uneven frame distances.
    Variable,
}

static DIR: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("films");
    std::fs::create_dir_all(&dir).unwrap();
    dir
});
static MADE: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Path of the film with this picture, muxed by ffmpeg's `options` into `name`.
pub fn film(picture: Picture, name: &str, options: &str) -> PathBuf {
    let mut made = MADE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let base = DIR.join(format!("{picture:?}.mp4"));
    let key = format!("{picture:?}");
    if !made.contains(&key) {
        encode(picture, &base);
        made.push(key);
    }
    let path = DIR.join(format!("{picture:?}-{name}"));
    let key = path.display().to_string();
    if !made.contains(&key) {
        let mut ffmpeg = Command::new("ffmpeg");
        ffmpeg.args("-nostdin -y -v error -i".split(' ')).arg(&base).args(options.split(' ')).arg(&path);
        run(&mut ffmpeg);
        made.push(key);
    }
    path
}

/// 12 seconds of a moving picture and a rising tone.
fn encode(picture: Picture, path: &std::path::Path) {
    let (rate, gop, filter) = match picture {
        Picture::Closed30 => ("30", "keyint=30:min-keyint=30:scenecut=0:bframes=3:b-adapt=0", "null"),
        Picture::Open2997 => {
            ("30000/1001", "keyint=30:min-keyint=30:scenecut=0:bframes=3:b-adapt=0:open-gop=1", "null")
        }
        Picture::Closed23976 => ("24000/1001", "keyint=24:min-keyint=24:scenecut=0:bframes=3:b-adapt=0", "null"),
        Picture::Variable => ("30", "keyint=30:min-keyint=30:scenecut=0:bframes=3", "select='mod(n*n,7)'"),
    };
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg
        .args("-nostdin -y -v error -f lavfi -i".split(' '))
        .arg(format!("testsrc2=size=320x180:rate={rate},{filter}"))
        .args("-f lavfi -i".split(' '))
        .arg("aevalsrc='0.3*sin(2*PI*(200+100*t)*t)':s=44100")
        .args("-t 12 -fps_mode passthrough -c:v libx264 -preset veryfast -threads 1 -x264-params".split(' '))
        .arg(gop)
        .args("-c:a aac -b:a 96k".split(' '))
        .arg(path);
    run(&mut ffmpeg);
}
