//! `testbed simulate`: loads of up to ten thousand machines under the overlay's real policy and the real picker, and the paper's
//! tables and figures beside what comes out.
//!
//! Event-driven, a piece at a time, over max-min fair flows. No randomness but the seed's: the same arguments give the same output.

mod baseline;
mod flows;
mod load;
mod paper;
mod rates;
mod replay;
mod study;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};

use self::load::{Control, Kill, Load, Outcome, Racks, Wanted};
use self::study::{Series, Study};

#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  testbed simulate --nodes 1000 --bytes 10e9 --pieces 1000         one load, all want all
  testbed simulate --wanted parts --overlap 0.3 --origin 1.25e9    every machine its part
  testbed simulate --table IV --figure 6 --svg target/figures      the paper's numbers beside ours
  testbed simulate --replay runs.json                              what `testbed bench overlay --json runs.json` measured")]
pub struct SimulateArgs {
    /// A table of the paper beside ours
    #[arg(long, value_enum, value_delimiter = ',')]
    table: Vec<Table>,
    /// A figure of the paper beside ours
    #[arg(long, value_enum, value_delimiter = ',')]
    figure: Vec<Figure>,
    /// All tables and figures, and the targets
    #[arg(long)]
    all: bool,
    /// What the overlay must reach, case by case
    #[arg(long)]
    targets: bool,
    /// Simulate the namespace runs of this file and compare; fails if one is off by more than 10 %
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// Seconds from a piece's arrival to its first byte at a neighbour
    #[arg(long)]
    hop: Option<f64>,
    /// Draw each as an SVG in this directory
    #[arg(long, value_name = "DIR")]
    svg: Option<PathBuf>,
    /// Print the outcome as JSON
    #[arg(long)]
    json: bool,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, default_value_t = 100)]
    nodes: u32,
    /// Bytes of the dataset, such as 10e9
    #[arg(long, default_value_t = 10e9)]
    bytes: f64,
    /// Pieces it is cut into
    #[arg(long, default_value_t = 1000)]
    pieces: u32,
    /// Rate of every node each way, bytes per second
    #[arg(long, default_value_t = 10e6)]
    rate: f64,
    /// Rate at which a node's disk takes bytes, if it is less
    #[arg(long)]
    disk: Option<f64>,
    /// Rate of the origin, bytes per second
    #[arg(long, default_value_t = 10e6)]
    origin: f64,
    /// Front ends that share the origin's rate
    #[arg(long, default_value_t = 1)]
    fronts: u32,
    /// Every node wants everything, or its own part only
    #[arg(long, value_enum, default_value_t = Wanted::All)]
    wanted: Wanted,
    /// Overlap of parts that is held for others (0 to 1)
    #[arg(long, default_value_t = 0.0)]
    overlap: f64,
    /// Do what the paper describes
    #[arg(long, conflicts_with = "plain")]
    paper: bool,
    /// Our picker without a controller
    #[arg(long)]
    plain: bool,
    /// Percentage of nodes killed half way
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..100))]
    kill: u32,
    /// Percentage of nodes at a quarter of the rate
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..100))]
    slow: u32,
    /// Racks of equal size
    #[arg(long, requires = "rack_rate")]
    racks: Option<u32>,
    /// Rate between a rack and the rest, each way
    #[arg(long, requires = "racks")]
    rack_rate: Option<f64>,
    /// Pieces that a node sends at once
    #[arg(long, default_value_t = 4)]
    uploads: usize,
    /// Pieces that a node takes at once from others
    #[arg(long, default_value_t = 4)]
    downloads: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Table {
    #[value(name = "III", alias = "3")]
    Three,
    #[value(name = "IV", alias = "4")]
    Four,
    #[value(name = "V", alias = "5")]
    Five,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Figure {
    #[value(name = "6")]
    Six,
    #[value(name = "7")]
    Seven,
    #[value(name = "lambda2")]
    Lambda2,
}

type Make = fn(u64, paper::Say<'_>) -> Study;

impl SimulateArgs {
    fn studies(&self) -> Vec<Make> {
        let table = |table, make: Make| (self.all || self.table.contains(&table)).then_some(make);
        let figure = |figure, make: Make| (self.all || self.figure.contains(&figure)).then_some(make);
        let chosen = [
            table(Table::Three, paper::table_3 as Make),
            table(Table::Four, paper::table_4),
            table(Table::Five, paper::table_5),
            figure(Figure::Six, paper::figure_6),
            figure(Figure::Seven, paper::figure_7),
            figure(Figure::Lambda2, paper::lambda2),
            (self.all || self.targets).then_some(paper::targets as Make),
        ];
        chosen.into_iter().flatten().collect()
    }

    fn load(&self) -> anyhow::Result<Load> {
        let positive = [self.rate, self.origin, self.bytes, self.disk.unwrap_or(1.0), self.rack_rate.unwrap_or(1.0)];
        ensure!(positive.iter().all(|v| v.is_finite() && *v > 0.0), "sizes and rates must be positive");
        ensure!(self.nodes > 0 && self.pieces > 0, "there must be a node and a piece");
        ensure!((0.0..=1.0).contains(&self.overlap), "--overlap is a share, 0 to 1");
        ensure!(self.bytes >= f64::from(self.pieces), "a piece has at least one byte");
        ensure!(self.wanted == Wanted::All || self.pieces >= self.nodes, "a part has at least one piece");
        ensure!(self.uploads > 0 && self.downloads > 0, "without slots nothing moves");
        let control = if self.paper {
            Control::Paper
        } else if self.plain {
            Control::Plain
        } else {
            Control::Ours
        };
        ensure!(control != Control::Plain || self.wanted == Wanted::All, "--plain is for --wanted all");
        let racks = self.racks.zip(self.rack_rate).map(|(count, rate)| Racks { count: count.max(1), rate });
        let kills = if self.kill > 0 { vec![(0.5, Kill::Share(f64::from(self.kill) / 100.0))] } else { Vec::new() };
        Ok(Load {
            nodes: self.nodes,
            bytes: self.bytes as u64,
            pieces: self.pieces,
            up: self.rate,
            down: self.rate.min(self.disk.unwrap_or(f64::INFINITY)),
            origin: self.origin,
            fronts: self.fronts,
            wanted: self.wanted,
            overlap: self.overlap,
            control,
            racks,
            slow: f64::from(self.slow) / 100.0,
            uploads: self.uploads,
            downloads: self.downloads,
            hop_s: self.hop.unwrap_or(0.0),
            kills,
            seed: self.seed,
            ..Load::default()
        })
    }
}

pub fn run(args: &SimulateArgs) -> anyhow::Result<()> {
    let bar = ProgressBar::no_length().with_style(ProgressStyle::with_template("{elapsed:>4} {msg}")?);
    let mut said = Instant::now();
    let mut say = |what: &str, done: f64, events: u64| {
        if said.elapsed() > Duration::from_millis(250) {
            said = Instant::now();
            bar.set_message(format!(
                "{what}: {:.0} % of the machines done, {:.1} M events",
                done * 100.0,
                events as f64 / 1e6
            ));
            bar.tick();
        }
    };
    let studies = args.studies();
    let mut agrees = true;
    let mut found = Vec::new();
    for make in &studies {
        found.push(make(args.seed, &mut say));
    }
    if let Some(path) = &args.replay {
        let (study, within) = replay::replay(path, args.hop.unwrap_or(replay::HOP_S), args.seed)?;
        agrees = within;
        found.push(study);
    }
    if found.is_empty() {
        let load = args.load()?;
        let began = Instant::now();
        let outcome = load.run(&mut |done, events| say("simulating", done, events));
        bar.finish_and_clear();
        return single(args, &load, &outcome, began.elapsed());
    }
    bar.finish_and_clear();
    if args.json {
        println!("{}", serde_json::to_string(&found)?);
    } else {
        found.iter().for_each(|study| println!("{study}"));
    }
    for study in &found {
        draw(args.svg.as_deref(), study)?;
    }
    if agrees { Ok(()) } else { bail!("the simulation is off by more than 10 %") }
}

fn draw(dir: Option<&Path>, study: &Study) -> anyhow::Result<()> {
    let Some(dir) = dir else { return Ok(()) };
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let name = study.id.to_lowercase().replace(' ', "-").replace('λ', "lambda");
    let path = dir.join(format!("{name}.svg"));
    std::fs::write(&path, study.svg()).with_context(|| format!("writing {}", path.display()))
}

fn single(args: &SimulateArgs, load: &Load, outcome: &Outcome, took: Duration) -> anyhow::Result<()> {
    if args.json {
        println!("{}", serde_json::json!({ "load": load, "outcome": outcome }));
    } else {
        println!("bound {:.1} s ({})", outcome.bound_s, outcome.bound_cut);
        println!(
            "last node {:.1} s = {:.3} x bound; median {:.3} x; nodes at full speed {:.3} x their bound",
            outcome.last_s, outcome.ratio_last, outcome.ratio_median, outcome.ratio_last_fast
        );
        println!(
            "origin copies {:.3}, downlinks used {:.0} %, unfinished {}",
            outcome.origin_copies,
            outcome.use_of_down * 100.0,
            outcome.unfinished
        );
        for (seconds, lambda2) in &outcome.lambda2 {
            println!("  t {seconds:8.2} s  lambda2 {lambda2:.3}");
        }
        let rate = outcome.events as f64 / took.as_secs_f64() / 1e6;
        println!("{} events in {:.1} s: {rate:.2} M events/s", outcome.events, took.as_secs_f64());
    }
    let mut study = Study::new("Load", "a simulated load", &[]);
    study.chart.x = "seconds".into();
    study.chart.y = "λ2, and share of the bytes that has arrived".into();
    study.chart.series =
        vec![Series::new("λ2", outcome.lambda2.clone()), Series::new("arrived", outcome.arrived.clone())];
    draw(args.svg.as_deref(), &study)
}
