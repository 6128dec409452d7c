//! One table or figure: what the paper says beside what comes out here, and a chart of it.

use std::fmt;
use std::fmt::Write as _;

use serde::Serialize;

#[derive(Clone, Debug, Serialize)]
pub struct Study {
    pub id: String,
    pub title: String,
    pub head: Vec<String>,
    pub rows: Vec<Vec<String>>,
    /// What was assumed, calibrated, or found at odds.
    pub notes: Vec<String>,
    pub chart: Chart,
}

/// Lines over a plane. A series of few points shows them as dots as well.
#[derive(Clone, Debug, Serialize)]
pub struct Chart {
    pub x: String,
    pub y: String,
    pub log_x: bool,
    pub log_y: bool,
    pub series: Vec<Series>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

impl Series {
    pub fn new(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.into(), points }
    }
}

impl Study {
    pub fn new(id: &str, title: &str, head: &[&str]) -> Self {
        let chart = Chart { x: String::new(), y: String::new(), log_x: false, log_y: false, series: Vec::new() };
        let head = head.iter().map(|h| (*h).to_owned()).collect();
        Self { id: id.to_owned(), title: title.to_owned(), head, rows: Vec::new(), notes: Vec::new(), chart }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }
}

impl fmt::Display for Study {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wide = |column: usize| {
            let cells = self.rows.iter().chain([&self.head]).filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        writeln!(f, "{}: {}", self.id, self.title)?;
        for row in [&self.head].into_iter().chain(&self.rows) {
            let padded: Vec<_> = row.iter().enumerate().map(|(column, cell)| pad(cell, wide(column))).collect();
            writeln!(f, "  {}", padded.join("  ").trim_end())?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "  - {note}"))
    }
}

fn pad(cell: &str, width: usize) -> String {
    let blanks = width.saturating_sub(cell.chars().count());
    format!("{cell}{}", " ".repeat(blanks))
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 74.0;
const RIGHT: f64 = 200.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 52.0;
const COLOURS: [&str; 8] = ["#0b6e99", "#c2410c", "#15803d", "#7c3aed", "#b91c1c", "#525252", "#a16207", "#be185d"];

/// One direction of the plane.
struct Axis {
    log: bool,
    from: f64,
    to: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64>, log: bool) -> Self {
        let fit = values.filter(|v| v.is_finite() && (!log || *v > 0.0));
        let (least, most) = fit.fold((f64::INFINITY, 0.0f64), |(a, b), v| (a.min(v), b.max(v)));
        if !least.is_finite() || most <= 0.0 {
            return Self { log: false, from: 0.0, to: 1.0 };
        }
        if log {
            return Self { log, from: least.log10().floor(), to: most.log10().ceil().max(least.log10().floor() + 1.0) };
        }
        let step = step(most);
        Self { log, from: 0.0, to: (most / step).ceil() * step }
    }

    /// 0 to 1 along the axis; `None` if it has no place there.
    fn place(&self, value: f64) -> Option<f64> {
        let value = if self.log { value.log10() } else { value };
        value.is_finite().then(|| (value - self.from) / (self.to - self.from))
    }

    fn ticks(&self) -> Vec<f64> {
        if self.log {
            return (self.from as i32..=self.to as i32).map(|e| 10f64.powi(e)).collect();
        }
        let step = step(self.to);
        (0..=(self.to / step).round() as u32).map(|i| f64::from(i) * step).collect()
    }
}

/// A round distance that gives about five ticks.
fn step(most: f64) -> f64 {
    let base = 10f64.powf((most / 5.0).log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|m| m * base).into_iter().find(|s| most / s <= 6.0).unwrap_or(10.0 * base)
}

fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 1e6 => format!("{:.0}k", value / 1e3),
        v if v >= 10.0 || v == 0.0 => format!("{value:.0}"),
        v if v >= 1.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

impl Study {
    /// A stand-alone SVG document.
    pub fn svg(&self) -> String {
        let all = || self.chart.series.iter().flat_map(|s| &s.points);
        let x = Axis::over(all().map(|p| p.0), self.chart.log_x);
        let y = Axis::over(all().map(|p| p.1), self.chart.log_y);
        let (wide, high) = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
        let at_x = |share: f64| LEFT + share * wide;
        let at_y = |share: f64| TOP + (1.0 - share) * high;
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n<text x=\"{LEFT}\" y=\"22\" font-size=\"14\">{}</text>\n",
            escape(&self.title)
        );
        for tick in x.ticks() {
            let Some(at) = x.place(tick).map(at_x) else { continue };
            let (foot, label) = (TOP + high, TOP + high + 16.0);
            let _ = writeln!(
                out,
                "<path d=\"M{at:.1} {TOP}V{foot}\" stroke=\"#e5e5e5\"/><text x=\"{at:.1}\" y=\"{label}\" text-anchor=\"middle\">{}</text>",
                number(tick)
            );
        }
        for tick in y.ticks() {
            let Some(at) = y.place(tick).map(at_y) else { continue };
            let (end, label) = (LEFT + wide, LEFT - 6.0);
            let _ = writeln!(
                out,
                "<path d=\"M{LEFT} {at:.1}H{end}\" stroke=\"#e5e5e5\"/><text x=\"{label}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                at + 4.0,
                number(tick)
            );
        }
        let (middle, foot) = (LEFT + wide / 2.0, HEIGHT - 12.0);
        let _ =
            writeln!(out, "<text x=\"{middle}\" y=\"{foot}\" text-anchor=\"middle\">{}</text>", escape(&self.chart.x));
        let centre = TOP + high / 2.0;
        let _ = writeln!(
            out,
            "<text x=\"16\" y=\"{centre}\" text-anchor=\"middle\" transform=\"rotate(-90 16 {centre})\">{}</text>",
            escape(&self.chart.y)
        );
        for (i, series) in self.chart.series.iter().enumerate() {
            let colour = COLOURS[i % COLOURS.len()];
            let placed = series.points.iter().filter_map(|p| Some((at_x(x.place(p.0)?), at_y(y.place(p.1)?))));
            let placed: Vec<_> = placed.collect();
            let line: Vec<_> = placed.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            let _ = writeln!(
                out,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\"/>",
                line.join(" ")
            );
            if placed.len() <= 20 {
                for (x, y) in &placed {
                    let _ = writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>");
                }
            }
            let (key, row) = (LEFT + wide + 12.0, TOP + 14.0 + 18.0 * i as f64);
            let _ = writeln!(
                out,
                "<path d=\"M{key} {}h16\" stroke=\"{colour}\" stroke-width=\"3\"/><text x=\"{}\" y=\"{row}\">{}</text>",
                row - 4.0,
                key + 22.0,
                escape(&series.name)
            );
        }
        out.push_str("</svg>\n");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_is_well_formed_and_keeps_every_point_inside() {
        let mut study = Study::new("x", "a < b & c", &["one", "two"]);
        study.row(["1".into(), "zwei".into()]);
        study.chart.log_x = true;
        study.chart.series = vec![
            Series::new("paper", vec![(1.0, 0.0), (1000.0, 37.0)]),
            Series::new("ours", vec![(10.0, f64::INFINITY), (0.0, 3.0), (20.0, 5.0)]),
        ];
        let svg = study.svg();
        let mut reader = quick_xml::Reader::from_str(&svg);
        let mut circles = 0;
        loop {
            match reader.read_event().expect("well-formed") {
                quick_xml::events::Event::Eof => break,
                quick_xml::events::Event::Empty(tag) if tag.name().as_ref() == b"circle" => {
                    circles += 1;
                    for (name, most) in [("cx", WIDTH - RIGHT), ("cy", HEIGHT - BOTTOM)] {
                        let value = tag.try_get_attribute(name).unwrap().unwrap();
                        let at: f64 = std::str::from_utf8(&value.value).unwrap().parse().unwrap();
                        assert!(at >= 0.0 && at <= most, "{name} {at}");
                    }
                }
                _ => {}
            }
        }
        assert_eq!(circles, 3);
        assert!(study.to_string().contains("  one  two\n  1    zwei\n"), "{study}");
    }
}
