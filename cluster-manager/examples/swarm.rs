//! The `starling swarm` command by itself.

use clap::Parser;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: cluster_manager::swarm::Command,
}

#[tokio::main]
async fn main() -> std::process::ExitCode {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    cluster_manager::swarm::run(Cli::parse().command).await
}
