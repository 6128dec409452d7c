//! One line per process: live on a terminal, appended elsewhere.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Shows what each process of the world is doing.
#[derive(Debug)]
pub struct Board {
    live: Option<MultiProgress>,
    lines: BTreeMap<String, ProgressBar>,
}

impl Board {
    /// Live when standard output is a terminal.
    pub fn new() -> Self {
        let live = std::io::stdout().is_terminal().then(|| {
            let lines = MultiProgress::new();
            lines.set_draw_target(indicatif::ProgressDrawTarget::stdout());
            lines
        });
        Self { live, lines: BTreeMap::new() }
    }

    /// Shows nothing.
    pub fn silent() -> Self {
        let live = MultiProgress::with_draw_target(indicatif::ProgressDrawTarget::hidden());
        Self { live: Some(live), lines: BTreeMap::new() }
    }

    /// The process is not there yet, for the reason given.
    pub fn starting(&mut self, name: &str, state: &str) {
        self.set(name, state, false);
    }

    /// Nothing more is waited for.
    pub fn ready(&mut self, name: &str, state: &str) {
        self.set(name, state, true);
    }

    /// Lets go of the terminal; what stands there stays.
    pub fn clear(&mut self) {
        self.lines.values().for_each(ProgressBar::abandon);
        self.lines.clear();
    }

    fn set(&mut self, name: &str, state: &str, done: bool) {
        let Some(live) = &self.live else {
            println!("{name:<24} {state}");
            return;
        };
        let line = self.lines.entry(name.to_owned()).or_insert_with(|| {
            let line = live.add(ProgressBar::new_spinner());
            line.set_style(
                ProgressStyle::with_template("{spinner} {prefix:24} {msg}").expect("the template is a constant"),
            );
            line.set_prefix(name.to_owned());
            line.enable_steady_tick(Duration::from_millis(120));
            line
        });
        match done {
            true => line.finish_with_message(state.to_owned()),
            false => line.set_message(state.to_owned()),
        }
    }
}

impl Default for Board {
    fn default() -> Self {
        Self::new()
    }
}
