//! `starling plan`: who of N nodes would get which bytes of a source, and the least time that any load of them can take.
//!
//! Logical: the partitioner reads what its strategy needs (nothing, the bytes around the cuts, the index of a film, or every line) and
//! moves no data. Exit codes: 0 planned, 2 usage or a source that the strategy cannot cut, 3 the store, 4 the source or the disk.

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use serde::Serialize;
use storage::film::{FilmError, PlanOptions, PlannedPart as FilmPart, Probe};
use storage::object::ObjectPath;
use storage::overlay::bound::{Bound, lower_bound};
use storage::overlay::objects::Objects;
use storage::overlay::partition::{self, AtCuts, Binary, Lines, Part, Partitioner, ReadAt, VertexModulus};
use storage::overlay::store::Files;
use storage::s3::Store;

use crate::swarm::source::{self, Source, StoreArgs};
use crate::swarm::{Failure, Rate, parse_overlap, parse_rate};

/// A longer line is taken as a sign that there are none.
const RECORD_MAX: u64 = 16 << 20;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  starling plan edges.txt --strategy vertex-modulus --to 8
  starling plan s3://films/in.mp4 --strategy keyframes --to 20 --overlap 0.3 --rate 10MB --origin-rate 10gbit --json

Exit codes: 0 planned, 2 usage or a source that cannot be cut so, 3 the store, 4 the source.")]
pub struct PlanArgs {
    /// File, directory, or s3://BUCKET/KEY-or-PREFIX
    pub source: Source,
    #[command(flatten)]
    pub store: StoreArgs,
    /// How to cut it
    #[arg(long, value_enum, default_value = "binary")]
    pub strategy: Strategy,
    /// Number of nodes
    #[arg(long, value_name = "N")]
    pub to: usize,
    /// Share of the next part that each node holds for others, 0 to 1
    #[arg(long, default_value_t = 0.0, value_parser = parse_overlap)]
    pub overlap: f64,
    /// Each node's link, each way
    #[arg(long, default_value = "10MB", value_parser = parse_rate)]
    pub rate: Rate,
    /// What the origin sends, or `none` for no limit
    #[arg(long, default_value = "none", value_parser = parse_rate)]
    pub origin_rate: Rate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// Equal ranges
    Binary,
    /// Near-equal ranges that end with a line
    Lines,
    /// An edge list: each line to the worker of its source vertex
    VertexModulus,
    /// A film: near-equal ranges that begin with a key frame
    Keyframes,
}

/// What `--json` prints. Ranges are bytes, `[start, end)`; rates bytes per second, null for no limit.
#[derive(Debug, Serialize)]
pub struct Planned {
    pub source: String,
    pub bytes: u64,
    pub strategy: Strategy,
    pub overlap: f64,
    pub parts: Vec<PlannedPart>,
    /// Demanded bytes, each once, and once per node that takes them in.
    pub distinct: u64,
    pub total: u64,
    /// Nodes that want one byte: on average, and at most.
    pub multiplicity_mean: f64,
    pub multiplicity_max: u32,
    pub rate: Option<u64>,
    pub origin_rate: Option<u64>,
    /// Absent where no rate is limited.
    pub lower_bound_seconds: Option<f64>,
    pub binding_cut: Option<&'static str>,
}

#[derive(Debug, Serialize)]
pub struct PlannedPart {
    pub number: usize,
    pub bytes: u64,
    pub own: Vec<(u64, u64)>,
    pub seed_only: Vec<(u64, u64)>,
}

pub async fn run(args: PlanArgs, json: bool) -> ExitCode {
    match plan(args).await {
        Ok(planned) if json => println!("{}", serde_json::to_string_pretty(&planned).unwrap_or_default()),
        Ok(planned) => print!("{}", words(&planned)),
        Err(failure) => {
            eprintln!("plan: {}", failure.text);
            return ExitCode::from(failure.exit);
        }
    }
    ExitCode::SUCCESS
}

pub async fn plan(args: PlanArgs) -> Result<Planned, Failure> {
    let data: Box<dyn ReadAt + Send> = match &args.source {
        Source::Local(path) => Box::new(Local::open(path)?),
        Source::Store(url) => {
            let path: ObjectPath = url.parse().map_err(|e| Failure { exit: 2, ..source::at_store(&e) })?;
            let store = args.store.connect().await?;
            let objects = Objects::find(&store, &path).await.map_err(|e| source::at_store(&e))?;
            Box::new(Remote { store, objects: Arc::new(objects) })
        }
    };
    // The strategies read by themselves, and a store answers only while this thread runs: they go to another.
    let (strategy, to) = (args.strategy, args.to);
    let cut =
        tokio::task::spawn_blocking(move || cut(data.as_ref(), strategy, to).map(|parts| (parts, data.len()))).await;
    let (mut parts, bytes) = cut.map_err(|e| Failure::new(4, "source-unreadable", e))??;
    partition::overlap(&mut parts, args.overlap);
    let nodes = partition::demands(&parts, args.rate.per_second(), args.rate.per_second());
    let bound = lower_bound(&nodes, args.origin_rate.per_second(), &[]);
    Ok(Planned::new(&args, bytes, &parts, &bound))
}

fn cut(data: &dyn ReadAt, strategy: Strategy, to: usize) -> Result<Vec<Part>, Failure> {
    let parts = match strategy {
        Strategy::Binary => Binary { align: 1 }.partition(data, to),
        Strategy::Lines => Lines { record_max: RECORD_MAX }.partition(data, to),
        Strategy::VertexModulus => VertexModulus.partition(data, to),
        Strategy::Keyframes => AtCuts { starts: key_frames(data)? }.partition(data, to),
    };
    parts.map_err(|e| {
        let exit = if matches!(e, partition::Error::Read { .. }) { 3 } else { 2 };
        Failure::new(exit, e.code(), crate::swarm::chain(&e))
    })
}

/// Where the film's key frames begin, as far as its index tells.
fn key_frames(data: &dyn ReadAt) -> Result<Vec<u64>, Failure> {
    let options = PlanOptions { chunk_seconds: 0.1, parts_min: 1, ..PlanOptions::default() };
    let (plan, _) = Probe::new(data.len(), options).run(|range| {
        let mut bytes = vec![0; range.len() as usize];
        let read = data.read_at(range.start(), &mut bytes);
        let read = read.map_err(|e| Failure::new(3, "partition-read", crate::swarm::chain(&e)))?;
        bytes.truncate(read);
        Ok::<_, Failure>(bytes)
    })?;
    let first = |part: &FilmPart| part.input.ranges.iter().map(|r| r.start()).min();
    let mut starts: Vec<_> = plan.parts.iter().filter_map(first).collect();
    starts.sort_unstable();
    Ok(starts)
}

impl From<FilmError> for Failure {
    fn from(e: FilmError) -> Self {
        Self::new(2, e.code(), format!("{e} ({})", e.hint()))
    }
}

impl Planned {
    fn new(args: &PlanArgs, bytes: u64, parts: &[Part], bound: &Bound) -> Self {
        let pairs = |ranges: &[std::ops::Range<u64>]| ranges.iter().map(|r| (r.start, r.end)).collect();
        let parts = parts.iter().enumerate().map(|(i, part)| PlannedPart {
            number: i + 1,
            bytes: part.own.iter().map(|r| r.end - r.start).sum(),
            own: pairs(&part.own),
            seed_only: pairs(&part.seed_only),
        });
        let (lower_bound_seconds, binding_cut) = bound.binding().unzip();
        Self {
            source: args.source.to_string(),
            bytes,
            strategy: args.strategy,
            overlap: args.overlap,
            parts: parts.collect(),
            distinct: bound.distinct,
            total: bound.total,
            multiplicity_mean: bound.total as f64 / bound.distinct.max(1) as f64,
            multiplicity_max: bound.multiplicity,
            rate: args.rate.0,
            origin_rate: args.origin_rate.0,
            lower_bound_seconds,
            binding_cut,
        }
    }
}

fn words(plan: &Planned) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    for part in &plan.parts {
        let ranges = match part.own.as_slice() {
            [] => "nothing".to_owned(),
            [(start, end)] => format!("{start}..{end}"),
            many => format!("{} ranges in {}..{}", many.len(), many[0].0, many[many.len() - 1].1),
        };
        let others: u64 = part.seed_only.iter().map(|(start, end)| end - start).sum();
        let others = if others > 0 { format!(", and {others} held for others") } else { String::new() };
        let _ = writeln!(text, "part {}: {} bytes, {ranges}{others}", part.number, part.bytes);
    }
    let _ = writeln!(
        text,
        "{}: {} bytes to {} nodes, {} taken in; a byte is wanted by {:.2} nodes on average, {} at most",
        plan.source,
        plan.distinct,
        plan.parts.len(),
        plan.total,
        plan.multiplicity_mean,
        plan.multiplicity_max,
    );
    let _ = match (plan.lower_bound_seconds, plan.binding_cut) {
        (Some(seconds), Some(cut)) => writeln!(text, "no load can be faster than {seconds:.2} s: the {cut} binds"),
        _ => writeln!(text, "no rate is limited, so there is no bound; give --rate or --origin-rate"),
    };
    text
}

/// A file or a directory, its files end to end.
struct Local {
    files: Files,
    len: u64,
}

impl Local {
    fn open(path: &Path) -> Result<Self, Failure> {
        let fail = |e: io::Error| Failure::new(4, "source-unreadable", format!("{}: {e}", path.display()));
        let (list, _) = source::list(path).map_err(fail)?;
        let len = list.iter().map(|f| f.len).fold(0, u64::saturating_add);
        let files = Files::open(path, &list).map_err(|e| Failure::new(4, e.code(), crate::swarm::chain(&e)))?;
        Ok(Self { files, len })
    }
}

impl ReadAt for Local {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let end = (at + buffer.len() as u64).min(self.len);
        let bytes = self.files.read(at.min(end)..end).map_err(io::Error::other)?;
        buffer[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }
}

/// Objects of a store by ranged GETs, to be read from a thread that may wait.
struct Remote {
    store: Store,
    objects: Arc<Objects>,
}

impl ReadAt for Remote {
    fn len(&self) -> u64 {
        self.objects.total()
    }

    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        let end = (at + buffer.len() as u64).min(self.len());
        for (object, range) in self.objects.spans(at.min(end)..end) {
            let got = self.store.get_range(&object.path, range, Some(&object.etag));
            let got = tokio::runtime::Handle::current().block_on(got).map_err(io::Error::other)?;
            buffer[done..done + got.len()].copy_from_slice(&got);
            done += got.len();
        }
        Ok(done)
    }
}
