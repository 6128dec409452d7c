//! The `starling swarm` command by itself.

use clap::Parser;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: cluster_manager::swarm::Command,
}

// One thread is enough for a capped peer, and spares the switches between several.
#[tokio::main(flavor = "current_thread")]
async fn main() -> std::process::ExitCode {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    cluster_manager::swarm::run(Cli::parse().command).await
}
