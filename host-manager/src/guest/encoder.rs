//! The encoder: one ffmpeg child, its progress, its CPU time, and the end of what it had to say.
//!
//! A child ends with its future (`kill_on_drop`) and with its guest, however that dies: `setpriv --pdeathsig` (util-linux)
//! stands in front of the command where it is installed, because the safe std API cannot ask the kernel for that.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::Command;

use super::fault::{Fault, LOG_BYTES_MAX};

/// Kernel clock ticks a second as user space sees them (`USER_HZ`, proc(5)); 100 on every Linux port Rust has.
const TICKS_PER_SECOND: u64 = 100;

/// How to start the encoder on this machine.
#[derive(Clone, Debug)]
pub struct Encoder {
    ffmpeg: OsString,
    setpriv: Option<PathBuf>,
}

impl Encoder {
    /// `ffmpeg` is a path, or a name looked up in `PATH`.
    pub fn new(ffmpeg: impl Into<OsString>) -> Self {
        Self { ffmpeg: ffmpeg.into(), setpriv: in_path("setpriv") }
    }

    /// Runs `ffmpeg ARGS` in `dir` to its end and returns the CPU ms it took. `on_frame` gets the count of frames
    /// written, whenever it is known anew; that needs `-progress pipe:1` among the arguments.
    pub async fn run(&self, args: &[String], dir: &Path, mut on_frame: impl FnMut(u64)) -> Result<u64, Fault> {
        let mut command = match &self.setpriv {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--pdeathsig", "KILL", "--"]).arg(&self.ffmpeg);
                command
            }
            None => Command::new(&self.ffmpeg),
        };
        command.args(args).current_dir(dir).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let name = || self.ffmpeg.to_string_lossy().into_owned();
        let mut child = command.spawn().map_err(|error| Fault::EncoderMissing(name(), error))?;
        let pid = child.id().unwrap_or_default();
        let stderr = child.stderr.take().expect("piped above");
        let mut lines = BufReader::with_capacity(1024, child.stdout.take().expect("piped above")).lines();
        let progress = async {
            while let Ok(Some(line)) = lines.next_line().await {
                if let Some(frame) = line.strip_prefix("frame=").and_then(|n| n.trim().parse().ok()) {
                    on_frame(frame);
                }
            }
        };
        let ((), stderr) = tokio::join!(progress, tail(stderr));
        // Not waited for yet, so the kernel still keeps its account.
        let cpu_ms = cpu_ms(pid).unwrap_or_default();
        let status = child.wait().await?;
        if status.success() {
            return Ok(cpu_ms);
        }
        if status.code() == Some(127) && self.setpriv.is_some() {
            return Err(Fault::EncoderMissing(name(), std::io::Error::other(stderr)));
        }
        // A disk that is full while ffmpeg writes shows only in what it says (strerror of ENOSPC).
        if stderr.contains("No space left on device") {
            return Err(Fault::DiskFull);
        }
        Err(Fault::EncoderFailed { status: status.to_string(), stderr })
    }
}

fn in_path(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Reads to the end and keeps the last [`LOG_BYTES_MAX`] bytes.
async fn tail(mut from: impl AsyncRead + Unpin) -> String {
    let mut kept = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..read]);
        let surplus = kept.len().saturating_sub(LOG_BYTES_MAX);
        kept.drain(..surplus);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// User and system time of a process, in ms, from `/proc/PID/stat` fields 14 and 15 (proc(5)).
fn cpu_ms(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, field 2, may hold anything but ends at the last parenthesis.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) * 1000 / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[tokio::test]
    async fn progress_is_seen_and_the_cpu_time_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let mut last = 0;
        let order = "-nostdin -v error -progress pipe:1 -f lavfi -i testsrc2=s=640x360:d=4 -c:v libx264 -f null -";
        let cpu = Encoder::new("ffmpeg").run(&args(order), dir.path(), |n| last = n).await.unwrap();
        assert_eq!(last, 100);
        assert!(cpu > 0);
    }

    #[tokio::test]
    async fn a_failing_encoder_tells_its_last_words() {
        let dir = tempfile::tempdir().unwrap();
        let fault =
            Encoder::new("ffmpeg").run(&args("-v error -i absent.mp4 out.mp4"), dir.path(), |_| ()).await.unwrap_err();
        let failure = fault.to_failure();
        assert_eq!((failure.code.as_str(), failure.retryable), ("encoder-failed", true));
        assert!(failure.log.contains("absent.mp4: No such file"), "{}", failure.log);
    }

    #[tokio::test]
    async fn an_encoder_that_is_not_installed_is_a_lack_of_the_machine() {
        let dir = tempfile::tempdir().unwrap();
        let fault = Encoder::new("/no/such/ffmpeg").run(&args("-version"), dir.path(), |_| ()).await.unwrap_err();
        assert_eq!((fault.code(), fault.class()), ("encoder-missing", "resource"));
    }
}
