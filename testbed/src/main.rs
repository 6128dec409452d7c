//! `testbed`: starts the world, makes and checks films, runs the demo.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser, Subcommand};
use testbed::bench::{self, BenchArgs};
use testbed::demo::{self, DemoOptions};
use testbed::film::{self, Container, Expected, Film, Rate};
use testbed::s3::{self, S3Args};
use testbed::simulate::{self, SimulateArgs};
use testbed::world::{Board, StoreOptions, World, WorldDocument, WorldOptions};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(name = "testbed", version, about = "Starling's world in a box: real XMPP servers, S3 and agents on loopback")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start the world and keep it up until Ctrl-C.
    Up(UpArgs),
    /// Start the world, transcode a film in it, and check the result frame by frame.
    Demo(DemoArgs),
    /// Run the S3 server alone.
    S3(S3Args),
    /// Measure what docs/benchmarks.md tells of.
    Bench(BenchArgs),
    /// Make a film with numbered frames, put one into a world's store, or check one.
    #[command(subcommand)]
    Film(FilmCommand),
    /// Simulate a load of many machines under the overlay's real policy.
    Simulate(SimulateArgs),
}

#[derive(Args)]
#[command(
    after_help = "Example: testbed up --state target/world\nThen, elsewhere: starling --state target/world domains"
)]
struct UpArgs {
    #[command(flatten)]
    world: WorldArgs,
    /// End as soon as everything is ready.
    #[arg(long)]
    exit_after_ready: bool,
}

#[derive(Args)]
struct WorldArgs {
    /// Directory for everything that is written.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// XMPP host names; the first is home to the Federation room and to the films.
    #[arg(long, value_delimiter = ',', default_value = "a.test,b.test,c.test")]
    domains: Vec<String>,
    /// Host managers in each domain.
    #[arg(long, default_value_t = 2)]
    hosts: u32,
    /// Parts that each host manager encodes at the same time.
    #[arg(long, default_value_t = 1)]
    slots: u32,
    #[command(flatten)]
    store: StoreOptions,
}

impl From<WorldArgs> for WorldOptions {
    fn from(args: WorldArgs) -> Self {
        let WorldArgs { state, domains, hosts, slots, store } = args;
        Self { domains, hosts, slots, store, ..Self::new(state) }
    }
}

#[derive(Args)]
struct DemoArgs {
    #[command(flatten)]
    world: WorldArgs,
    /// Length of the film.
    #[arg(long, default_value_t = 120)]
    seconds: u32,
    #[arg(long, value_enum, default_value = "mp4")]
    container: Container,
    #[arg(long, default_value = "30")]
    rate: Rate,
    #[arg(long)]
    open_gop: bool,
    /// Heights of the renditions, pixels.
    #[arg(long, value_delimiter = ',', default_value = "480")]
    heights: Vec<u32>,
}

#[derive(Subcommand)]
enum FilmCommand {
    /// Make a film whose frames bear their own number.
    Make(MakeArgs),
    /// Put a film into a world's store, where jobs find it.
    Put(PutArgs),
    /// Decode a film, playlist, manifest or SMIL document and check each frame and the sound.
    Verify(VerifyArgs),
}

#[derive(Args)]
struct MakeArgs {
    #[arg(long, default_value_t = 120)]
    seconds: u32,
    /// Frames a second, as 30 or 30000/1001.
    #[arg(long, alias = "fps", default_value = "30")]
    rate: Rate,
    /// Pixels; the picture is 16:9.
    #[arg(long, default_value_t = 720)]
    height: u32,
    #[arg(long, value_enum, default_value = "mp4")]
    container: Container,
    /// Let frames before a key frame lean on the group before.
    #[arg(long)]
    open_gop: bool,
    #[arg(long)]
    out: PathBuf,
}

#[derive(Args)]
#[command(after_help = "Example: testbed film put target/in.mp4 --state target/world")]
struct PutArgs {
    /// The film.
    file: PathBuf,
    /// The object's key, if it is not the file's name.
    #[arg(long)]
    key: Option<String>,
    /// Into this domain's bucket; the first one's unless given.
    #[arg(long)]
    domain: Option<String>,
    /// Where the world is.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
}

#[derive(Args)]
struct VerifyArgs {
    /// An HLS playlist, a DASH manifest, a SMIL document (by its ending) or a film; a URL or a path.
    #[arg(long)]
    url: String,
    #[arg(long)]
    frames: u64,
    #[arg(long, default_value = "30")]
    rate: Rate,
    /// Print what was seen as JSON.
    #[arg(long)]
    json: bool,
}

// One thread runs everything that starts processes: they are told to end when the thread that started them does.
fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let result =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Into::into).and_then(|runtime| {
            let result = runtime.block_on(run(cli.command));
            // An ffmpeg that still runs is not waited for: it is tied to this process.
            runtime.shutdown_background();
            result
        });
    result.unwrap_or_else(|error: anyhow::Error| {
        eprintln!("testbed: {error:#}");
        ExitCode::FAILURE
    })
}

async fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Up(args) => up(args).await,
        Command::Demo(args) => {
            let DemoArgs { world, seconds, container, rate, open_gop, heights } = args;
            let film = Film { seconds, rate, container, open_gop, ..Film::default() };
            let right = demo::run(&DemoOptions { world: world.into(), film, heights }, told_to_end()?).await?;
            Ok(if right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Bench(args) => {
            let told = told_to_end()?;
            tokio::select! {
                measured = bench::run(args) => measured.map(|()| ExitCode::SUCCESS),
                () = told => bail!("told to end; nothing was measured to its end"),
            }
        }
        Command::S3(args) => s3::run_command(args).await.map(|()| ExitCode::SUCCESS),
        Command::Film(FilmCommand::Make(args)) => make(&args),
        Command::Film(FilmCommand::Put(args)) => put(&args).await,
        Command::Film(FilmCommand::Verify(args)) => verify(&args).await,
        Command::Simulate(args) => simulate::run(&args).map(|()| ExitCode::SUCCESS),
    }
}

/// SIGINT or SIGTERM, from now on.
fn told_to_end() -> Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => (),
            _ = terminate.recv() => (),
        }
    })
}

async fn up(args: UpArgs) -> Result<ExitCode> {
    let told = told_to_end()?;
    tokio::pin!(told);
    let (options, mut board) = (WorldOptions::from(args.world), Board::new());
    let mut world = tokio::select! {
        world = World::start(&options, &mut board) => world?,
        () = &mut told => return Ok(ExitCode::FAILURE),
    };
    board.clear();
    println!("The world is up: {}. Ctrl-C ends it.", world.state().join("world.json").display());
    let mut code = ExitCode::SUCCESS;
    if !args.exit_after_ready {
        tokio::select! {
            failure = world.failure() => {
                eprintln!("{failure}");
                code = ExitCode::FAILURE;
            }
            () = &mut told => (),
        }
    }
    world.end().await;
    Ok(code)
}

fn make(args: &MakeArgs) -> Result<ExitCode> {
    let film = Film {
        seconds: args.seconds,
        rate: args.rate,
        height: args.height,
        container: args.container,
        open_gop: args.open_gop,
    };
    film::make(&film, &args.out)?;
    println!("{}: {} frames at {}", args.out.display(), film.frames(), film.rate);
    Ok(ExitCode::SUCCESS)
}

async fn put(args: &PutArgs) -> Result<ExitCode> {
    let world = WorldDocument::read(&args.state)?;
    let found = world.domains.iter().find(|domain| args.domain.as_ref().is_none_or(|name| domain.name == *name));
    let s3 = &found.context("this world has no such domain")?.s3;
    let s3 = s3.as_ref().context("this domain has no store of its own")?;
    println!("{}", demo::put_film(s3, &args.file, args.key.as_deref()).await?);
    Ok(ExitCode::SUCCESS)
}

async fn verify(args: &VerifyArgs) -> Result<ExitCode> {
    ensure!(args.frames > 0, "a film has at least one frame");
    let expected = Expected { frames: args.frames, rate: args.rate };
    let report = film::verify_any(&args.url, expected).await?;
    let problems = report.problems(expected);
    if args.json {
        println!("{}", serde_json::json!({ "report": report, "problems": problems }));
    } else {
        println!("{report}");
        problems.iter().for_each(|problem| println!("wrong: {problem}"));
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
