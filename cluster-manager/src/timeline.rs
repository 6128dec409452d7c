//! The paper's timeline of a federated job, as a table and as a picture.
//!
//! The paper measures from t0 to t4; each phase below begins at its mark. Publishing is ours: the paper ends with the
//! processing. Phases overlap, because each part goes on as soon as it can.

use std::{collections::BTreeMap, fmt::Write};

use serde::{Deserialize, Serialize};

use crate::results::xml;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// t0: who is there, with what, at which price.
    RetrieveDomainInformation,
    /// t1: calls, bids, awards.
    ForwardRequests,
    /// t2: from object storage to the domain.
    Download,
    /// t3: from the domain to its machines, into what their engine reads.
    Load,
    /// t4: the engine's work.
    Process,
    /// Results and manifests back to object storage.
    Publish,
}

impl Phase {
    pub const ALL: [Self; 6] = [
        Self::RetrieveDomainInformation,
        Self::ForwardRequests,
        Self::Download,
        Self::Load,
        Self::Process,
        Self::Publish,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::RetrieveDomainInformation => "retrieve domain information",
            Self::ForwardRequests => "forward requests",
            Self::Download => "download",
            Self::Load => "load",
            Self::Process => "process",
            Self::Publish => "publish",
        }
    }

    /// The paper's mark at which the phase begins.
    pub fn mark(self) -> Option<&'static str> {
        match self {
            Self::RetrieveDomainInformation => Some("t0"),
            Self::ForwardRequests => Some("t1"),
            Self::Download => Some("t2"),
            Self::Load => Some("t3"),
            Self::Process => Some("t4"),
            Self::Publish => None,
        }
    }

    /// Distinct for the usual kinds of colour blindness (after Okabe and Ito).
    fn colour(self) -> &'static str {
        match self {
            Self::RetrieveDomainInformation => "#999999",
            Self::ForwardRequests => "#cc79a7",
            Self::Download => "#56b4e9",
            Self::Load => "#e69f00",
            Self::Process => "#009e73",
            Self::Publish => "#0072b2",
        }
    }
}

/// When something of one phase went on. Times are milliseconds since the job was submitted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Span {
    pub phase: Phase,
    pub start_ms: u64,
    pub end_ms: u64,
    /// None: home as the broker of the whole job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
}

const WHOLE_JOB: &str = "whole job";

/// Lane of a domain and phase, with its first start and last end.
fn lanes(spans: &[Span]) -> BTreeMap<(Option<&str>, Phase), (u64, u64)> {
    let mut lanes = BTreeMap::new();
    for span in spans {
        let lane = lanes.entry((span.domain.as_deref(), span.phase)).or_insert((span.start_ms, span.end_ms));
        *lane = (lane.0.min(span.start_ms), lane.1.max(span.end_ms));
    }
    lanes
}

/// One span for each domain and phase.
pub fn merged(spans: &[Span]) -> Vec<Span> {
    let span = |((domain, phase), (start_ms, end_ms)): ((Option<&str>, Phase), _)| Span {
        phase,
        start_ms,
        end_ms,
        domain: domain.map(str::to_owned),
    };
    lanes(spans).into_iter().map(span).collect()
}

/// Plain text: per domain and phase when it began, when it ended, and how long that was, in seconds.
pub fn table(spans: &[Span]) -> String {
    let lanes = lanes(spans);
    let name = |domain: Option<&str>| domain.unwrap_or(WHOLE_JOB).to_owned();
    let wide = lanes.keys().map(|(domain, _)| name(*domain).chars().count()).max().unwrap_or(0).max("domain".len());
    let phase_wide = Phase::ALL.iter().map(|phase| phase.name().len()).max().unwrap_or(0);
    let mut text = format!(
        "{:<wide$}  {:<phase_wide$}  {:<4}  {:>9}  {:>9}  {:>9}\n",
        "domain", "phase", "mark", "start s", "end s", "length s"
    );
    for ((domain, phase), (start, end)) in lanes {
        let (mark, phase) = (phase.mark().unwrap_or(""), phase.name());
        let [start_s, end_s, length_s] = [start, end, end.saturating_sub(start)].map(|ms| ms as f64 / 1000.0);
        let _ = writeln!(
            text,
            "{:<wide$}  {phase:<phase_wide$}  {mark:<4}  {start_s:>9.3}  {end_s:>9.3}  {length_s:>9.3}",
            name(domain)
        );
    }
    text
}

const LEFT: f64 = 150.0;
const PLOT: f64 = 780.0;
const ROW: f64 = 14.0;
const TOP: f64 = 84.0;

/// A picture with a lane for each domain, in it a row for each phase, one bar a span, an axis in seconds and a legend.
pub fn svg(title: &str, spans: &[Span]) -> String {
    let lanes = lanes(spans);
    let last_ms = spans.iter().map(|span| span.end_ms).max().unwrap_or(0).max(1);
    let x = |ms: u64| LEFT + PLOT * ms as f64 / last_ms as f64;
    let mut domains: Vec<Option<&str>> = lanes.keys().map(|(domain, _)| *domain).collect();
    domains.dedup();
    let (mut body, mut y) = (String::new(), TOP);
    for (n, domain) in domains.into_iter().enumerate() {
        let phases: Vec<Phase> = lanes.keys().filter(|(d, _)| *d == domain).map(|(_, phase)| *phase).collect();
        let height = phases.len() as f64 * ROW + 8.0;
        let shade = if n % 2 == 0 { "#f4f4f4" } else { "#ffffff" };
        let _ =
            writeln!(body, r#"<rect x="0" y="{y}" width="{}" height="{height}" fill="{shade}"/>"#, LEFT + PLOT + 30.0);
        let name = xml(&shorten(domain.unwrap_or(WHOLE_JOB)));
        let _ = writeln!(
            body,
            r#"<text x="{}" y="{}" text-anchor="end">{name}</text>"#,
            LEFT - 10.0,
            y + height / 2.0 + 4.0
        );
        for (row, phase) in phases.into_iter().enumerate() {
            for span in spans.iter().filter(|span| span.domain.as_deref() == domain && span.phase == phase) {
                bar(&mut body, span, x(span.start_ms), x(span.end_ms), y + 4.0 + row as f64 * ROW);
            }
        }
        y += height;
    }
    let (width, height) = (LEFT + PLOT + 30.0, y + 34.0);
    let (axis, legend) = (axis(last_ms, y), legend());
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#222\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n<text x=\"16\" y=\"26\" font-size=\"16\">{}</text>\n{legend}{body}{axis}</svg>\n",
        xml(title)
    )
}

fn bar(body: &mut String, span: &Span, left: f64, right: f64, y: f64) {
    let (width, colour, name) = ((right - left).max(1.5), span.phase.colour(), span.phase.name());
    let tip = format!("{name} {:.3}-{:.3} s", span.start_ms as f64 / 1000.0, span.end_ms as f64 / 1000.0);
    let _ = writeln!(
        body,
        r#"<rect x="{left:.2}" y="{y:.2}" width="{width:.2}" height="{:.2}" rx="2" fill="{colour}"><title>{tip}</title></rect>"#,
        ROW - 3.0
    );
}

/// Between four and ten ticks at round numbers of seconds.
fn axis(last_ms: u64, y: f64) -> String {
    let mut step_ms = 1;
    for factor in [2, 5, 10].iter().cycle().scan(1_u64, |decade, &factor| {
        let step = *decade * factor;
        *decade = if factor == 10 { step } else { *decade };
        Some(step)
    }) {
        if last_ms / step_ms <= 10 {
            break;
        }
        step_ms = factor;
    }
    let mut text = String::new();
    for tick in (0..=last_ms).step_by(step_ms as usize) {
        let x = LEFT + PLOT * tick as f64 / last_ms as f64;
        let _ = writeln!(
            text,
            "<path d=\"M{x:.2} {TOP}V{}\" stroke=\"#bbb\" stroke-dasharray=\"2 3\"/><text x=\"{x:.2}\" y=\"{}\" text-anchor=\"middle\">{} s</text>",
            y + 4.0,
            y + 20.0,
            tick as f64 / 1000.0
        );
    }
    text
}

fn legend() -> String {
    let mut x = 16.0;
    let mut text = String::new();
    for phase in Phase::ALL {
        let label = phase.mark().map_or(phase.name().to_owned(), |mark| format!("{mark} {}", phase.name()));
        let _ = writeln!(
            text,
            "<rect x=\"{x}\" y=\"46\" width=\"12\" height=\"12\" rx=\"2\" fill=\"{}\"/><text x=\"{}\" y=\"56\">{label}</text>",
            phase.colour(),
            x + 18.0
        );
        x += 44.0 + label.len() as f64 * 6.6;
    }
    text
}

/// Lane names have a fixed room.
fn shorten(name: &str) -> String {
    match name.char_indices().nth(20) {
        Some((cut, _)) => format!("{}…", &name[..cut]),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans() -> Vec<Span> {
        let span = |phase, start_ms, end_ms, domain: Option<&str>| Span {
            phase,
            start_ms,
            end_ms,
            domain: domain.map(Into::into),
        };
        vec![
            span(Phase::RetrieveDomainInformation, 0, 40, None),
            span(Phase::ForwardRequests, 40, 120, None),
            span(Phase::Download, 120, 900, Some("b.example")),
            span(Phase::Process, 500, 4000, Some("b.example")),
            span(Phase::Process, 3000, 9000, Some("b.example")),
            span(Phase::Process, 400, 7000, Some("c & <co>")),
            span(Phase::Publish, 9000, 9100, None),
        ]
    }

    #[test]
    fn the_table_says_when_each_phase_of_each_domain_ran() {
        let table = table(&spans());
        let process = table.lines().find(|line| line.starts_with("b.example") && line.contains("process")).unwrap();
        let fields: Vec<_> = process.split_whitespace().collect();
        assert_eq!(fields, ["b.example", "process", "t4", "0.500", "9.000", "8.500"]);
        assert!(table.lines().nth(1).unwrap().starts_with("whole job"));
    }

    #[test]
    fn spans_of_one_domain_and_phase_are_merged_and_the_table_stays_the_same() {
        let merged = merged(&spans());
        assert_eq!((merged.len(), table(&merged)), (spans().len() - 1, table(&spans())));
    }

    #[test]
    fn the_picture_is_well_formed_and_has_a_bar_for_every_span() {
        let picture = svg("Job <1> & more", &spans());
        let mut reader = quick_xml::Reader::from_str(&picture);
        let mut bars = 0;
        loop {
            match reader.read_event().unwrap() {
                quick_xml::events::Event::Start(tag) if tag.name().as_ref() == b"rect" => bars += 1,
                quick_xml::events::Event::Eof => break,
                _ => {}
            }
        }
        assert_eq!(bars, spans().len());
        assert!(picture.contains("c &amp; &lt;co&gt;"));
    }

    #[test]
    fn the_axis_keeps_to_a_readable_number_of_ticks() {
        for last_ms in [1, 7, 99, 1000, 9100, 61_000, 7_200_000] {
            let ticks = axis(last_ms, 100.0).lines().count();
            assert!((2..=11).contains(&ticks), "{last_ms} ms gives {ticks} ticks");
        }
    }

    #[test]
    fn a_job_without_spans_still_has_a_table_and_a_picture() {
        assert_eq!(table(&[]).lines().count(), 1);
        assert!(svg("none", &[]).ends_with("</svg>\n"));
    }
}
