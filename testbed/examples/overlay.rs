//! The overlay's own testbed commands by themselves: `simulate` and `bench`.

use clap::Parser;

#[derive(Parser)]
enum Cli {
    Simulate(testbed::simulate::SimulateArgs),
    Bench(testbed::bench::overlay::OverlayArgs),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse() {
        Cli::Simulate(args) => testbed::simulate::run(&args),
        Cli::Bench(args) => testbed::bench::overlay::run(&args),
    }
}
