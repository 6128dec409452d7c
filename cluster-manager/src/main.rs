//! `cluster-manager`: one domain's coordinator.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use cluster_manager::config::{Config, DOCUMENTED};
use cluster_manager::coordinator::Coordinator;
use cluster_manager::rest::{self, Rest, Snapshot};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::{error, info};
use tracing_subscriber::EnvFilter;

/// Questions of REST clients that wait for the coordinator; more wait in their connections.
const ASKS: usize = 64;
/// Long enough to say good-bye in the rooms.
const DRAIN: Duration = Duration::from_secs(5);

/// The coordinator of one domain: its rooms, its host managers, its clients' jobs.
#[derive(Parser)]
#[command(
    version,
    after_help = "\
Example:
  cluster-manager --print-config > cm.toml    # then edit it
  cluster-manager --config cm.toml

The first line on standard output is JSON with the address of the REST API and console. RUST_LOG sets what is logged."
)]
struct Args {
    /// TOML; see --print-config.
    #[arg(long, env = "STARLING_CM_CONFIG", required_unless_present = "print_config")]
    config: Option<PathBuf>,
    /// Print a documented configuration and exit.
    #[arg(long)]
    print_config: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.print_config {
        print!("{DOCUMENTED}");
        return ExitCode::SUCCESS;
    }
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn run(args: Args) -> Result<()> {
    let config = Config::load(&args.config.context("--config is needed")?)?;
    let listener = TcpListener::bind(config.http_listen).await.context("listen for the REST API")?;
    let address = listener.local_addr()?;
    let base_url = config.public_url.clone().unwrap_or_else(|| format!("http://{address}"));
    let (ask, asks) = mpsc::channel(ASKS);
    let (snapshot_tx, snapshot) = watch::channel(Arc::new(Snapshot::default()));
    let coordinator = Coordinator::start(config, base_url.clone(), asks, snapshot_tx).await?;
    println!("{}", serde_json::json!({ "http": base_url }));
    let rest = tokio::spawn(async move { axum::serve(listener, rest::router(Rest { snapshot, ask })).await });
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let result = tokio::select! {
        result = coordinator.run(stop) => result,
        served = rest => Err(anyhow::anyhow!("the REST API ended: {served:?}")),
    };
    info!(drain = ?DRAIN, "ended");
    result
}
