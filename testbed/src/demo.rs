//! The whole story in one command: a world, a film, a job, and the check of its result frame by frame.
//!
//! What is shown on the way is the product's own: the job goes in and is watched by the `starling` program, as a person would do it.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use cluster_manager::timeline::{self, Span};
use serde::Deserialize;
use storage::object::ObjectPath;
use storage::s3::{PutOptions, S3Config, Secret, Store};

use crate::film::{self, Expected, Film};
use crate::process::{tied, workspace_binary};
use crate::world::{Board, World, WorldDocument, WorldOptions};

/// What the demo is to show.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    pub world: WorldOptions,
    pub film: Film,
    /// Heights of the renditions, pixels.
    pub heights: Vec<u32>,
}

/// Runs the demo; `told` ends it early. True: the film was right.
///
/// # Errors
/// The world did not come up or broke, the job failed, or a result cannot be decoded. Nothing is left running.
pub async fn run(options: &DemoOptions, told: impl Future<Output = ()>) -> Result<bool> {
    let mut told = std::pin::pin!(told);
    let mut board = Board::new();
    let started = Instant::now();
    let up = async {
        // The film is made while the servers start.
        let (path, spec) = (film_path(options), options.film.clone());
        let film = async { tokio::task::spawn_blocking(move || film_at(&spec, path)).await? };
        tokio::try_join!(World::start(&options.world, &mut board), film)
    };
    let (mut world, film) = tokio::select! {
        up = up => up?,
        () = &mut told => bail!("interrupted"),
    };
    board.clear();
    println!(
        "The world is up after {:.1} s; its state is in {}.\n",
        started.elapsed().as_secs_f64(),
        world.state().display()
    );
    let (document, state) = (world.document.clone(), world.state().to_owned());
    let result = tokio::select! {
        result = tour(options, &document, &state, &film) => result,
        failure = world.failure() => Err(anyhow::anyhow!("{failure}")),
        () = &mut told => Err(anyhow::anyhow!("interrupted")),
    };
    if matches!(result, Ok(true)) && std::io::stdout().is_terminal() {
        println!("\nThe world stays up for the player page; Ctrl-C ends it.");
        tokio::select! {
            failure = world.failure() => eprintln!("{failure}"),
            () = &mut told => println!(),
        }
    }
    world.end().await;
    result
}

fn film_path(options: &DemoOptions) -> PathBuf {
    let Film { seconds, rate, height, container, open_gop } = &options.film;
    let gop = if *open_gop { "-open" } else { "" };
    let name =
        format!("film-{seconds}s-{}-{}-{height}p{gop}-{container:?}.{}", rate.num, rate.den, container.extension());
    options.world.state.join(name.to_lowercase())
}

/// The film, made unless an earlier demo has.
fn film_at(film: &Film, path: PathBuf) -> Result<PathBuf> {
    if !path.exists() {
        film::make(film, &path)?;
    }
    Ok(path)
}

/// From the film in the store to the verdict on the result.
async fn tour(options: &DemoOptions, world: &WorldDocument, state: &Path, film: &Path) -> Result<bool> {
    let home = world.domains.first().context("find the home domain")?;
    let expected = Expected { frames: options.film.frames(), rate: options.film.rate };
    let (source, target) = put_film(world, film).await?;
    println!("A film of {} frames is at {source}.", expected.frames);

    let job_file = state.join("job.xml");
    std::fs::write(&job_file, job_xml(&source, &target, &options.heights)).context("write the job")?;
    println!("$ starling --state {} submit {}", state.display(), job_file.display());
    let submitted: Submitted = starling_json(state, &["submit".as_ref(), job_file.as_os_str()]).await?;
    println!("$ starling --state {} watch {}", state.display(), submitted.id);
    let mut watch = tokio::process::Command::from(tied(workspace_binary("starling")?));
    // Its exit code repeats what the job itself says below.
    watch.arg("--state").arg(state).args(["watch", &submitted.id]).status().await.context("run starling")?;

    let url = format!("{}/api/jobs/{}", home.console_url, submitted.id);
    let job: Job = http_get(&url).await?.json().await.context("understand the job")?;
    if job.state != "done" {
        bail!("the job is {}: {}", job.state, job.error.unwrap_or_default());
    }
    let results = job.results.context("a job that is done has results")?;

    println!("\nEach frame, decoded from outside:");
    let documents = [("HLS", &results.hls), ("DASH", &results.dash), ("SMIL", &results.smil)];
    let reports = futures::future::try_join_all(documents.map(|(_, url)| film::verify_any(url, expected))).await?;
    let mut right = true;
    for ((name, url), report) in documents.iter().zip(&reports) {
        let mut problems = report.problems(expected);
        if report.video.len() != options.heights.len() {
            problems.push(format!("{} renditions, not {}", report.video.len(), options.heights.len()));
        }
        println!("  {name:<5} {}  {report}", if problems.is_empty() { "right" } else { "WRONG" });
        problems.iter().for_each(|problem| println!("        {problem}"));
        right &= problems.is_empty();
        println!("        {url}");
    }

    println!("\n{}", usage_table(&job.usage));
    println!("{}", timeline::table(&job.timeline));
    let svg = state.join("timeline.svg");
    std::fs::write(&svg, timeline::svg(&format!("Job {}", submitted.id), &job.timeline))
        .context("write the timeline")?;
    println!("Timeline  {}", svg.display());
    println!("Player    {}", results.player);
    println!("Console   {}", home.console_url);
    Ok(right)
}

/// Uploads the film; gives its URL and that of a place for the results that no earlier job has used.
pub(crate) async fn put_film(world: &WorldDocument, film: &Path) -> Result<(String, String)> {
    let s3 = &world.s3;
    let config = S3Config {
        endpoint: Some(s3.endpoint.clone()),
        region: s3.region.clone(),
        access_key: Some(s3.access_key.clone()),
        secret_key: Some(Secret::new(s3.secret_key.clone())),
        ..S3Config::default()
    };
    let store = Store::connect(&config).await?;
    let name = film.file_name().and_then(|name| name.to_str()).context("name the film")?;
    let path = ObjectPath::new(&s3.bucket, name)?;
    let bytes = tokio::fs::read(film).await.context("read the film")?;
    store.put(&path, bytes.into(), PutOptions::default()).await.context("put the film to S3")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    Ok((format!("s3://{}/{name}", s3.bucket), format!("s3://{}/out/{now}/", s3.bucket)))
}

pub(crate) fn job_xml(source: &str, target: &str, heights: &[u32]) -> String {
    let renditions: String = heights
        .iter()
        .map(|height| format!("  <rendition height=\"{height}\" codec=\"h264\" crf=\"23\"/>\n"))
        .collect();
    format!(
        "<job xmlns=\"urn:starling:job:1\" kind=\"transcode\">\n  <source>{source}</source>\n  <target>{target}</target>\n\
         {renditions}</job>\n"
    )
}

pub(crate) async fn starling_json<T: for<'a> Deserialize<'a>>(
    state: &Path,
    arguments: &[&std::ffi::OsStr],
) -> Result<T> {
    let mut starling = tokio::process::Command::from(tied(workspace_binary("starling")?));
    let output =
        starling.arg("--json").arg("--state").arg(state).args(arguments).output().await.context("run starling")?;
    let (said, complaint) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "starling: {}{}", said.trim(), complaint.trim());
    serde_json::from_str(&said).with_context(|| format!("understand what starling says: {said}"))
}

async fn http_get(url: &str) -> Result<reqwest::Response> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    Ok(client.get(url).send().await?.error_for_status()?)
}

fn usage_table(usage: &[Usage]) -> String {
    let mut sum: BTreeMap<&str, Usage> = BTreeMap::new();
    for one in usage {
        let all = sum.entry(&one.domain).or_default();
        all.parts += one.parts;
        all.bytes_in += one.bytes_in;
        all.bytes_out += one.bytes_out;
        all.seconds += one.seconds;
    }
    let mut text =
        format!("{:<12} {:>6} {:>12} {:>12} {:>10}\n", "domain", "parts", "bytes in", "bytes out", "seconds");
    for (domain, all) in sum {
        text += &format!(
            "{domain:<12} {:>6} {:>12} {:>12} {:>10.2}\n",
            all.parts, all.bytes_in, all.bytes_out, all.seconds
        );
    }
    text
}

/// As `starling submit --json` answers.
#[derive(Deserialize)]
struct Submitted {
    id: String,
}

/// As `GET /api/jobs/ID` answers: what the demo shows of it.
#[derive(Deserialize)]
struct Job {
    state: String,
    results: Option<Results>,
    #[serde(default)]
    timeline: Vec<Span>,
    #[serde(default)]
    usage: Vec<Usage>,
    error: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Results {
    smil: String,
    hls: String,
    dash: String,
    player: String,
}

#[derive(Default, Deserialize)]
struct Usage {
    domain: String,
    parts: u32,
    bytes_in: u64,
    bytes_out: u64,
    /// Of encoders' CPU time.
    seconds: f64,
}
