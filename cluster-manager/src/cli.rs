//! The `starling` command line: a client of one domain's Shell room.
//!
//! It joins the room like any member, finds the active cluster manager there by its affiliation, and asks it by direct
//! IQ, so that documents (and credentials in them) never pass the room.

pub mod access;
pub mod link;
pub mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use federation::job::Job;
use serde::Serialize;

use crate::load::{self, LoadArgs};
use crate::plan::{self, PlanArgs};
use crate::shell::{self, Command as Question};
use crate::swarm;
use crate::view::{DomainDoc, ErrorDoc, JobDoc};
use access::AccessArgs;
use link::{Answer, Link};

pub const EXIT_JOB_FAILED: u8 = 1;
pub const EXIT_REFUSED: u8 = 2;
pub const EXIT_UNREACHABLE: u8 = 3;

/// Client of a Starling federation: submit one big job, watch it, get one answer; and fill machines with data without one.
#[derive(Parser)]
#[command(
    version,
    after_help = "\
Examples:
  starling --state target/demo submit film.xml --watch
  starling --config ~/starling.toml jobs --json
  starling --jid me@a.test --password-file pw --server 127.0.0.2:5222 --ca ca.pem domains

Exit codes: 0 done, 1 the job failed or was cancelled, 2 refused (bad job, no such job, usage), 3 not reachable."
)]
pub struct Cli {
    #[command(flatten)]
    access: AccessArgs,
    /// Print JSON, one document, on standard output.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Submit a job document.
    #[command(after_help = "Example: starling --state DIR submit examples/jobs/smallest.xml --watch")]
    Submit {
        /// The job, XML; `-` reads standard input.
        file: PathBuf,
        /// Stay until the job has ended, showing a progress bar for each part.
        #[arg(long)]
        watch: bool,
    },
    /// Follow a job until it has ended.
    #[command(after_help = "Example: starling --state DIR watch j-1a2b3c4d")]
    Watch {
        /// Of the job, as `submit` and `jobs` show it.
        id: String,
    },
    /// Show a job as it stands.
    #[command(after_help = "Example: starling --state DIR status j-1a2b3c4d --json")]
    Status {
        /// Of the job, as `submit` and `jobs` show it.
        id: String,
    },
    /// List the jobs of the domain, the newest first; `status` shows one with its parts.
    #[command(after_help = "Example: starling --state DIR jobs")]
    Jobs,
    /// List the domains of the federation as the home domain sees them.
    #[command(after_help = "Example: starling --state DIR domains --json")]
    Domains,
    /// Stop a job of yours.
    #[command(after_help = "Example: starling --state DIR cancel j-1a2b3c4d")]
    Cancel {
        /// Of the job, as `submit` and `jobs` show it.
        id: String,
    },
    /// Load machines from one source as fast as the network allows; needs no federation.
    #[command(subcommand)]
    Swarm(swarm::Command),
    /// Show who of N nodes would get which bytes, and the least time that can take; needs no federation.
    Plan(PlanArgs),
    /// Load one source onto N nodes of this machine and show how; needs no federation.
    Load(LoadArgs),
}

/// Runs one command to its end.
pub fn run(cli: Cli) -> Result<ExitCode> {
    // One thread also for a swarm: a capped peer needs no more, and is spared the switches between several.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let cli = match cli {
        Cli { command: Command::Swarm(command), .. } => return Ok(runtime.block_on(swarm::run(command))),
        Cli { command: Command::Plan(args), json, .. } => return Ok(runtime.block_on(plan::run(args, json))),
        Cli { command: Command::Load(args), json, .. } => {
            // Many peers in one process: here several threads do help.
            let many = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
            return Ok(many.block_on(load::run(args, json)));
        }
        cli => cli,
    };
    runtime.block_on(async {
        let question = match &cli.command {
            Command::Submit { file, .. } => {
                let text = match read(file) {
                    Ok(text) => text,
                    Err(error) => return Ok(refused(cli.json, &unreadable(&error))),
                };
                // Read here first: the error then names the lines of the file, and nothing is sent.
                if let Err(error) = Job::parse(&text) {
                    return Ok(refused(cli.json, &ErrorDoc::from(error)));
                }
                Question::Submit(text)
            }
            Command::Watch { id } | Command::Status { id } => Question::Status(id.clone()),
            Command::Cancel { id } => Question::Cancel(id.clone()),
            Command::Jobs => Question::Jobs,
            Command::Domains => Question::Domains,
            Command::Swarm(_) | Command::Plan(_) | Command::Load(_) => unreachable!("run above"),
        };
        let access = match cli.access.resolve(|name| std::env::var_os(name))? {
            Ok(access) => access,
            Err(error) => return Ok(refused(cli.json, &error)),
        };
        let link = Link::open(access).await?;
        let code = answer(&cli, &link, &question).await;
        link.close().await;
        code
    })
}

async fn answer(cli: &Cli, link: &Link, question: &Question) -> Result<ExitCode> {
    let answer = match link.ask(question).await? {
        Answer::Refused(error) => return Ok(refused(cli.json, &error)),
        Answer::Document(document) => document,
    };
    match &cli.command {
        Command::Domains => {
            let domains: Vec<DomainDoc> = serde_json::from_value(answer)?;
            print(cli.json, &domains, || shell::describe_domains(&domains))
        }
        Command::Jobs => {
            let jobs: Vec<JobDoc> = serde_json::from_value(answer)?;
            print(cli.json, &jobs, || shell::describe_jobs(&jobs))
        }
        Command::Submit { watch: false, .. } | Command::Status { .. } | Command::Cancel { .. } => {
            let job: JobDoc = serde_json::from_value(answer)?;
            print(cli.json, &job, || shell::describe_job(&job))
        }
        Command::Submit { watch: true, .. }
        | Command::Watch { .. }
        | Command::Swarm(_)
        | Command::Plan(_)
        | Command::Load(_) => {
            let job: JobDoc = serde_json::from_value(answer)?;
            let job = match watch::until_ended(link, job, cli.json).await? {
                Ok(job) => job,
                Err(error) => return Ok(refused(cli.json, &error)),
            };
            print(cli.json, &job, || shell::describe_job(&job))?;
            Ok(if job.state == "done" { ExitCode::SUCCESS } else { ExitCode::from(EXIT_JOB_FAILED) })
        }
    }
}

fn print<T: Serialize>(json: bool, document: &T, words: impl FnOnce() -> String) -> Result<ExitCode> {
    println!("{}", if json { serde_json::to_string_pretty(document)? } else { words() });
    Ok(ExitCode::SUCCESS)
}

fn refused(json: bool, error: &ErrorDoc) -> ExitCode {
    if json {
        println!("{}", serde_json::json!({ "error": error }));
    } else {
        eprintln!("{}", shell::describe_error(error));
    }
    ExitCode::from(EXIT_REFUSED)
}

fn unreadable(error: &anyhow::Error) -> ErrorDoc {
    let (message, hint) = (format!("{error:#}"), Some("give a file of text, or - for standard input".into()));
    ErrorDoc { code: "unreadable-job".into(), message, hint, line: None }
}

fn read(file: &PathBuf) -> Result<String> {
    if file.as_os_str() == "-" {
        return std::io::read_to_string(std::io::stdin()).context("read the job from standard input");
    }
    std::fs::read_to_string(file).with_context(|| format!("read the job {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_cannot_be_read_is_a_wrong_call() {
        let code = run(Cli::parse_from(["starling", "submit", "/no/such/job"])).unwrap();
        assert_eq!(code, ExitCode::from(EXIT_REFUSED));
    }
}
