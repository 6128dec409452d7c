//! The `host-manager` binary.

use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use host_manager::host::config::{Config, DOCUMENTED};
use host_manager::host::manager::HostManager;
use host_manager::log;
use tokio::signal::unix::{SignalKind, signal};

/// Offers this machine to the cluster manager of its domain and runs parts of jobs on it.
#[derive(Parser)]
#[command(
    version,
    after_help = "Example:\n  host-manager --print-config > host1.toml   # then set names and places\n  \
    host-manager --config host1.toml\n\nLogs go to standard error; RUST_LOG=debug tells more."
)]
struct Args {
    /// Configuration file (TOML).
    #[arg(long, env = "STARLING_HOST_CONFIG", required_unless_present = "print_config")]
    config: Option<PathBuf>,
    /// Print the documented defaults and end.
    #[arg(long)]
    print_config: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if args.print_config {
        print!("{DOCUMENTED}");
        return Ok(());
    }
    let config = Config::load(&args.config.context("--config is missing")?)?;
    log::to_stderr();
    let mut terminated = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let host = HostManager::start(config).await?;
    host.run(async move {
        tokio::select! {
            _ = terminated.recv() => (),
            _ = tokio::signal::ctrl_c() => (),
        }
    })
    .await
}
