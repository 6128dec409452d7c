//! Following a job: a bar for each part on a terminal, a line for each change elsewhere.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Result;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::link::{Answer, Link};
use crate::shell::{self, Command};
use crate::view::{ErrorDoc, JobDoc, OfferDoc, PartDoc};

/// Seldom enough for the server, often enough for the eye.
const EVERY: Duration = Duration::from_millis(300);

pub fn has_ended(job: &JobDoc) -> bool {
    matches!(job.state.as_str(), "done" | "failed" | "cancelled")
}

/// Asks until the job has ended, or (`Err` inside) is refused; `quiet` shows nothing.
pub async fn until_ended(link: &Link, mut job: JobDoc, quiet: bool) -> Result<Result<JobDoc, ErrorDoc>> {
    let mut display = match (quiet, std::io::stderr().is_terminal()) {
        (true, _) => Display::None,
        (false, true) => Display::Bars(Bars::default()),
        (false, false) => Display::Lines(Lines::default()),
    };
    loop {
        display.show(&job);
        if has_ended(&job) {
            return Ok(Ok(job));
        }
        tokio::time::sleep(EVERY).await;
        // One unanswered question is no news about the job.
        match link.ask(&Command::Status(job.id.clone())).await {
            Ok(Answer::Document(document)) => job = serde_json::from_value(document)?,
            Ok(Answer::Refused(error)) => return Ok(Err(error)),
            Err(error) => display.say(&format!("starling: {error:#}; asking again")),
        }
    }
}

enum Display {
    None,
    Lines(Lines),
    Bars(Bars),
}

impl Display {
    fn show(&mut self, job: &JobDoc) {
        match self {
            Self::None => {}
            Self::Lines(lines) => lines.show(job),
            Self::Bars(bars) => bars.show(job),
        }
    }

    /// Of the watching itself.
    fn say(&self, text: &str) {
        match self {
            Self::None | Self::Lines(_) => eprintln!("{text}"),
            // Written in between, it would push lines of the bars away from where they are drawn again.
            Self::Bars(bars) => bars.all.suspend(|| eprintln!("{text}")),
        }
    }
}

fn who(part: &PartDoc) -> String {
    match (&part.domain, &part.by) {
        (Some(domain), Some(by)) if domain != by => format!("{by} for {domain}"),
        (Some(domain), _) => domain.clone(),
        (None, _) => "-".to_owned(),
    }
}

fn describe_offer(offer: &OfferDoc) -> String {
    let OfferDoc { domain, outcome, parts_max, price, .. } = offer;
    match outcome.as_str() {
        "bid" => format!("offer of {domain}: at most {parts_max} parts, price {price}"),
        reason => format!("no offer of {domain}: {reason}"),
    }
}

/// What was told of the negotiation.
#[derive(Default)]
struct Told {
    offers: usize,
    awarded: BTreeMap<String, u32>,
}

impl Told {
    /// Offers and awards that are new.
    fn news(&mut self, job: &JobDoc) -> Vec<String> {
        let mut news: Vec<_> = job.offers.iter().skip(self.offers).map(describe_offer).collect();
        self.offers = job.offers.len();
        for (domain, parts) in shell::awards(job) {
            let told = self.awarded.entry(domain.to_owned()).or_default();
            if parts > *told {
                news.push(shell::describe_award(domain, parts - *told));
                *told = parts;
            }
        }
        news
    }
}

#[derive(Default)]
struct Lines {
    state: String,
    told: Told,
    parts: BTreeMap<u32, String>,
}

impl Lines {
    fn show(&mut self, job: &JobDoc) {
        if self.state != job.state {
            eprintln!("{} {}", job.id, job.state);
            self.state.clone_from(&job.state);
        }
        for news in self.told.news(job) {
            eprintln!("  {news}");
        }
        for part in &job.parts {
            let line = format!("{} {}", part.state, who(part));
            if self.parts.get(&part.n) != Some(&line) {
                eprintln!("  part {} ({}) {line}", part.n, part.kind);
                self.parts.insert(part.n, line);
            }
        }
    }
}

struct Bars {
    all: MultiProgress,
    state: ProgressBar,
    told: Told,
    parts: BTreeMap<u32, ProgressBar>,
}

impl Default for Bars {
    fn default() -> Self {
        let all = MultiProgress::new();
        let state = all.add(ProgressBar::no_length().with_style(style("{msg} {elapsed}")));
        Self { all, state, told: Told::default(), parts: BTreeMap::new() }
    }
}

impl Bars {
    fn show(&mut self, job: &JobDoc) {
        self.state.set_message(format!("{} {}", job.id, job.state));
        self.state.tick();
        for news in self.told.news(job) {
            // A terminal that is gone is no reason to stop.
            let _ = self.all.println(news);
        }
        for part in &job.parts {
            let bar = self.parts.entry(part.n).or_insert_with(|| {
                self.all.add(ProgressBar::new(100).with_style(style("  {prefix:>3} {bar:30.green} {pos:>3}% {msg}")))
            });
            bar.set_prefix(if part.kind == "audio" { "snd".to_owned() } else { part.n.to_string() });
            bar.set_message(format!("{} {}", part.state, who(part)));
            bar.set_position(if part.state == "verified" { 100 } else { part.percent as u64 });
        }
        if has_ended(job) {
            self.parts.values().for_each(ProgressBar::abandon);
            self.state.abandon();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offers_and_awards_are_told_once_and_later_parts_by_themselves() {
        let job = |awarded| {
            let domain = "b.test".to_owned();
            let offer = OfferDoc { domain, outcome: "bid".into(), parts_max: 4, price: 1.0, awarded };
            JobDoc { offers: vec![offer], ..JobDoc::default() }
        };
        let mut told = Told::default();
        assert_eq!(told.news(&job(0)), ["offer of b.test: at most 4 parts, price 1"]);
        assert_eq!(told.news(&job(3)), ["awarded 3 parts to b.test"]);
        assert_eq!(told.news(&job(2)), <[String; 0]>::default());
        assert_eq!(told.news(&job(4)), ["awarded 1 part to b.test"]);
    }
}
