//! `testbed`: starts the world, makes and checks films, runs the demo.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Args, Parser, Subcommand};
use testbed::film::{self, Container, Expected, Film, Rate};

#[derive(Parser)]
#[command(name = "testbed", version, about = "Starling's world in a box: real XMPP servers, S3 and agents on loopback")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a film with numbered frames, or check one.
    #[command(subcommand)]
    Film(FilmCommand),
}

#[derive(Subcommand)]
enum FilmCommand {
    /// Make a film whose frames bear their own number.
    Make(MakeArgs),
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
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    // Whoever comes first installs it; a second installation is refused and harmless.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match Cli::parse().command {
        Command::Film(FilmCommand::Make(args)) => make(&args),
        Command::Film(FilmCommand::Verify(args)) => verify(&args).await,
    }
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
