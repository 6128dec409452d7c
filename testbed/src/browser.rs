//! A real browser that plays a film: headless Chromium, driven over the WebDriver protocol (W3C).
//!
//! The driver and the browser are children of this process and end with the [`Browser`], also when a test fails.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

/// Headless and quiet: no request of its own leaves the machine.
const FLAGS: [&str; 9] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
];

/// What a film looked like from the chair.
#[derive(Clone, Debug, Deserialize)]
pub struct Playback {
    /// Frames given to the screen, by the browser's own count (dropped ones included).
    pub frames: u64,
    pub dropped: u64,
    /// Seconds.
    pub duration: f64,
    /// Seconds from the start to the end of each run of data.
    pub buffered: Vec<(f64, f64)>,
    /// How often it halted for want of data after it had begun.
    pub stalls: u64,
    /// How often it halted although the data was there, because the machine was too busy to decode it.
    pub slow: u64,
    /// It reached its end by itself.
    pub ended: bool,
    /// Seconds.
    pub time: f64,
    /// Decoded bytes of sound; 0 for a silent film.
    pub sound_bytes: u64,
    /// The player page's word for what goes on, and its complaint.
    pub state: String,
    pub error: Option<String>,
}

/// What the page's video element says now. The stalls are the page's: events cannot be counted afterwards.
const LOOK: &str = r#"
const v = document.querySelector("video"), q = v.getVideoPlaybackQuality(), s = window.starling ?? {};
const buffered = Array.from({length: v.buffered.length}, (_, n) => [v.buffered.start(n), v.buffered.end(n)]);
return {frames: q.totalVideoFrames, dropped: q.droppedVideoFrames, duration: Number.isFinite(v.duration) ? v.duration : 0,
  buffered, stalls: s.stalls ?? 0, slow: s.slow ?? 0, ended: v.ended, time: v.currentTime, sound_bytes: v.webkitAudioDecodedByteCount ?? 0,
  state: s.state ?? "", error: s.error ?? null};
"#;

/// Plays the player page's film to its end, at its natural speed.
///
/// # Errors
/// No Chromium, the page complains, or the film is not over two minutes after its length.
pub async fn play(player_url: &str) -> Result<Playback> {
    let browser = Browser::start().await?;
    browser.open(player_url).await?;
    let first = browser.watch(|seen| seen.duration > 0.0, Duration::from_secs(60)).await?;
    browser.watch(|seen| seen.ended, Duration::from_secs_f64(first.duration + 120.0)).await
}

/// One browser window, with a profile of its own.
pub struct Browser {
    http: reqwest::Client,
    session: String,
    // Fields go in this order: browser, its driver, its files.
    _chromium: Chromium,
    _driver: Child,
    _profile: tempfile::TempDir,
}

/// The browser's main process, which the driver leaves behind when it is killed.
struct Chromium(Pid);

impl Drop for Chromium {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = kill(self.0, Signal::SIGKILL);
    }
}

impl Browser {
    pub async fn start() -> Result<Self> {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("start chromedriver; `make setup` installs it (Debian packages chromium and chromium-driver)")?;
        let port =
            timeout(Duration::from_secs(30), driver_port(&mut driver)).await.context("wait for chromedriver")??;
        let profile = tempfile::tempdir().context("create a browser profile")?;
        let mut args: Vec<String> = FLAGS.map(String::from).to_vec();
        args.push(format!("--user-data-dir={}", profile.path().display()));
        let wishes = json!({"goog:chromeOptions": {"args": args}, "goog:loggingPrefs": {"browser": "ALL"}});
        let capabilities = json!({"capabilities": {"alwaysMatch": wishes}});
        let http = storage::fetch::http().no_proxy().timeout(Duration::from_secs(60)).build()?;
        let root = format!("http://127.0.0.1:{port}/session");
        let answer = send(http.post(&root).json(&capabilities))
            .await
            .context("start Chromium; `make setup` installs it (Debian package chromium)")?;
        let id = answer["sessionId"].as_str().context("chromedriver gave no session")?;
        let pid = answer["capabilities"]["goog:processID"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        let chromium = Chromium(Pid::from_raw(pid.context("chromedriver did not say which process is Chromium")?));
        Ok(Self { session: format!("{root}/{id}"), http, _chromium: chromium, _driver: driver, _profile: profile })
    }

    pub async fn open(&self, url: &str) -> Result<()> {
        send(self.http.post(format!("{}/url", self.session)).json(&json!({ "url": url }))).await.map(drop)
    }

    /// Runs a function body in the page and gives what it returns.
    pub async fn run(&self, script: &str) -> Result<Value> {
        send(self.http.post(format!("{}/execute/sync", self.session)).json(&json!({"script": script, "args": []})))
            .await
    }

    pub async fn look(&self) -> Result<Playback> {
        Ok(serde_json::from_value(self.run(LOOK).await?)?)
    }

    /// Looks until `until` holds.
    ///
    /// # Errors
    /// The page complains, or it takes longer than `limit`.
    pub async fn watch(&self, until: impl Fn(&Playback) -> bool, limit: Duration) -> Result<Playback> {
        let end = Instant::now() + limit;
        loop {
            let seen = self.look().await?;
            if let Some(error) = &seen.error {
                bail!("the player page says: {error}");
            }
            if until(&seen) {
                return Ok(seen);
            }
            ensure!(Instant::now() < end, "still waiting for the player after {limit:?}: {seen:?}");
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// What pages wrote to the browser's console since the last call, and what it complained of about them (a script that
    /// failed, an answer that did not come, a policy that was broken).
    pub async fn console(&self) -> Result<Vec<String>> {
        let entries =
            send(self.http.post(format!("{}/se/log", self.session)).json(&json!({"type": "browser"}))).await?;
        let line = |entry: &Value| format!("{}: {}", entry["level"], entry["message"].as_str().unwrap_or_default());
        Ok(entries.as_array().context("no log came")?.iter().map(line).collect())
    }

    /// A picture of the window (PNG, base64).
    pub async fn screenshot(&self) -> Result<String> {
        let picture = send(self.http.get(format!("{}/screenshot", self.session))).await?;
        Ok(picture.as_str().context("no picture came")?.to_owned())
    }
}

/// "ChromeDriver was started successfully on port 12345."
async fn driver_port(driver: &mut Child) -> Result<u16> {
    let mut lines = BufReader::new(driver.stdout.take().context("chromedriver has no output")?).lines();
    while let Some(line) = lines.next_line().await? {
        if let Some((_, port)) = line.rsplit_once("successfully on port ") {
            return port.trim_end_matches('.').parse().context("read chromedriver's port");
        }
    }
    bail!("chromedriver ended before it gave its port")
}

/// The `value` of an answer; a WebDriver error becomes one of ours.
async fn send(request: reqwest::RequestBuilder) -> Result<Value> {
    let mut answer: Value = request.send().await?.json().await?;
    let value = answer["value"].take();
    match value["error"].as_str() {
        Some(error) => Err(anyhow!("{error}: {}", value["message"].as_str().unwrap_or_default())),
        None => Ok(value),
    }
}
