//! `starling`: the client. See `cluster_manager::cli`.

use std::process::ExitCode;

use clap::Parser;
use cluster_manager::cli::{self, Cli};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli::run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("starling: {error:#}");
            ExitCode::from(cli::EXIT_UNREACHABLE)
        }
    }
}
