//! The whole story in one command: a world, a film, a job, and the check of its result frame by frame.
//!
//! What is shown on the way is the product's own: the job goes in and is watched by the `starling` program, as a person would do it.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use cluster_manager::view::UsageDoc;
use cluster_manager::{shell, timeline};
use storage::object::ObjectPath;
use storage::s3::PutOptions;

use crate::film::{self, Expected, Film};
use crate::world::{Board, Client, S3Access, World, WorldDocument, WorldOptions};

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
    let (client, document, state) = (world.client()?, world.document.clone(), world.state().to_owned());
    let result = tokio::select! {
        result = tour(options, &client, &document, &state, &film) => result,
        failure = world.failure() => Err(anyhow::anyhow!("{failure}")),
        () = &mut told => Err(anyhow::anyhow!("interrupted")),
    };
    if matches!(result, Ok(true)) && std::io::stdout().is_terminal() {
        println!("\nThe world stays up for the player page; Ctrl-C ends it.");
        tokio::select! {
            failure = world.failure() => eprintln!("{failure}"),
            () = &mut told => println!("\nEnding."),
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
async fn tour(
    options: &DemoOptions,
    client: &Client,
    world: &WorldDocument,
    state: &Path,
    film: &Path,
) -> Result<bool> {
    let expected = Expected { frames: options.film.frames(), rate: options.film.rate };
    let (source, target) = (put_film(&world.s3, film, None).await?, target(world));
    println!("A film of {} frames is at {source}.", expected.frames);

    println!("\n$ starling --state {} domains", state.display());
    client.starling()?.arg("domains").status().await.context("run starling")?;
    let (job_file, job) = (state.join("job.xml"), job_xml(&source, &target, &options.heights));
    std::fs::write(&job_file, &job).context("write the job")?;
    println!("\n$ starling --state {} submit {}", state.display(), job_file.display());
    let id = client.submit(&job).await?;
    println!("$ starling --state {} watch {id}", state.display());
    // Its exit code repeats what the job itself says below.
    client.starling()?.args(["watch", &id]).status().await.context("run starling")?;

    let job = client.job(&id).await?;
    if job.state != "done" {
        let why = job.error.as_ref().map(shell::describe_error).unwrap_or_default();
        bail!("the job is {}: {why}", job.state);
    }
    let results = job.results.context("a job that is done has results")?;

    println!("\nEach frame, decoded from outside:");
    let documents = [("HLS", &results.hls), ("DASH", &results.dash), ("SMIL", &results.smil)];
    let reports = futures::future::try_join_all(documents.map(|(_, url)| film::verify_any(url, expected))).await?;
    let mut right = true;
    for ((name, _), report) in documents.iter().zip(&reports) {
        let mut problems = report.problems(expected);
        if report.video.len() != options.heights.len() {
            problems.push(format!("{} renditions, not {}", report.video.len(), options.heights.len()));
        }
        let verdict = if problems.is_empty() { "right" } else { "WRONG" };
        println!("  {name:<5} {verdict}  {}", report.to_string().replace("; ", "\n               "));
        problems.iter().for_each(|problem| println!("        {problem}"));
        right &= problems.is_empty();
    }

    println!("\nWhat each domain did:\n{}", usage_table(&job.usage));
    println!("When, from the submission on:\n{}", timeline::table(&job.timeline));
    let svg = state.join("timeline.svg");
    std::fs::write(&svg, timeline::svg(&format!("Job {id}"), &job.timeline)).context("write the timeline")?;
    match right {
        true => println!("All {} frames are there, each once and in order. The film:", expected.frames),
        false => println!("The film is WRONG, see above. What there is of it:"),
    }
    let timeline = svg.display().to_string();
    for (name, place) in [
        ("Player", &results.player),
        ("SMIL", &results.smil),
        ("HLS", &results.hls),
        ("DASH", &results.dash),
        ("Timeline", &timeline),
        ("Console", &client.home().console_url),
    ] {
        println!("  {name:<9} {place}");
    }
    Ok(right)
}

/// Uploads the film, under its own name if no key is given; gives its URL.
pub async fn put_film(s3: &S3Access, film: &Path, key: Option<&str>) -> Result<String> {
    let store = s3.store().await?;
    let name = film.file_name().and_then(|name| name.to_str()).context("name the film")?;
    let path = ObjectPath::new(&s3.bucket, key.unwrap_or(name))?;
    let bytes = tokio::fs::read(film).await.with_context(|| format!("read the film {}", film.display()))?;
    store.put(&path, bytes.into(), PutOptions::default()).await.context("put the film to S3")?;
    Ok(path.to_string())
}

/// A place for results that no earlier job has used.
fn target(world: &WorldDocument) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    format!("s3://{}/out/{now}/", world.s3.bucket)
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

fn usage_table(usage: &[UsageDoc]) -> String {
    let mut text = format!("{:<12} {:>6} {:>12} {:>12} {:>10}\n", "domain", "parts", "bytes in", "bytes out", "CPU s");
    for UsageDoc { domain, parts, bytes_in, bytes_out, seconds, .. } in usage {
        text += &format!("{domain:<12} {parts:>6} {bytes_in:>12} {bytes_out:>12} {seconds:>10.2}\n");
    }
    for (domain, loaded) in usage.iter().filter_map(|used| Some((&used.domain, used.loaded.as_ref()?))) {
        text += &format!("{domain:<12} loaded {loaded}\n");
    }
    text
}
