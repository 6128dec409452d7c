//! The Shell room's language: what a person or a program may say there, and the words in which it is answered.
//!
//! Pure: text or XML in, a [`Command`] out; a document in, text out. Talk that is no command is left alone, since people
//! share the room.

use std::collections::BTreeMap;

use federation::job::find_job;
use xmpp_parsers::minidom::Element;

use crate::view::{DomainDoc, ErrorDoc, JobDoc};

/// Namespace of programs' questions: `<query xmlns='urn:starling:shell:1' verb='status' job='…'/>`. The verb `submit` holds
/// the job's document as text, comments and all, so that errors name its own lines.
pub const NS: &str = "urn:starling:shell:1";

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Help,
    Jobs,
    Domains,
    Status(String),
    Cancel(String),
    /// The job document as it was written, so that errors name its own lines.
    Submit(String),
}

impl Command {
    /// For the log: never the document.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Help => "help",
            Self::Jobs => "jobs",
            Self::Domains => "domains",
            Self::Status(_) => "status",
            Self::Cancel(_) => "cancel",
            Self::Submit(_) => "submit",
        }
    }
}

pub const HELP: &str = "I split one big job over the domains of this federation. Say:\n\
    <job xmlns=\"urn:starling:job:1\" kind=\"transcode\">…</job>   start a job (paste the whole XML)\n\
    jobs           list the jobs\n\
    status ID      how a job stands\n\
    cancel ID      stop a job of yours\n\
    domains        who is in the federation\n\
    help           this text\n\
    Example: <job xmlns=\"urn:starling:job:1\" kind=\"transcode\"><source>s3://films/in.mp4</source>\
    <target>s3://films/out/</target><rendition height=\"480\" codec=\"h264\" crf=\"23\"/></job>\n\
    Never write keys or passwords here: send such a job with `starling submit`.";

/// Understands a line that a person wrote; `None` when it is not meant for us.
pub fn from_text(text: &str) -> Option<Command> {
    if let Some(job) = find_job(text) {
        return Some(Command::Submit(job.to_owned()));
    }
    let mut words = text.split_whitespace();
    let command = match (words.next()?.to_lowercase().as_str(), words.next()) {
        ("help", None) => Command::Help,
        ("jobs", None) => Command::Jobs,
        ("domains", None) => Command::Domains,
        ("status", Some(id)) => Command::Status(id.to_owned()),
        ("cancel", Some(id)) => Command::Cancel(id.to_owned()),
        _ => return None,
    };
    words.next().is_none().then_some(command)
}

/// Understands a program's payload, in a message or an IQ.
pub fn from_payload(payload: &Element) -> Option<Command> {
    // In whatever namespace: a wrong one is worth an answer.
    if payload.name() == "job" {
        return Some(Command::Submit(String::from(payload)));
    }
    if !payload.is("query", NS) {
        return None;
    }
    let job = || payload.attr("job").map(str::to_owned);
    match payload.attr("verb")? {
        "help" => Some(Command::Help),
        "jobs" => Some(Command::Jobs),
        "domains" => Some(Command::Domains),
        "status" => job().map(Command::Status),
        "cancel" => job().map(Command::Cancel),
        "submit" => Some(Command::Submit(payload.text())),
        _ => None,
    }
}

/// A job's document as a program sends it.
pub fn submission(document: &str) -> Element {
    let mut query = query("submit", None);
    query.append_text(document);
    query
}

/// The question a program sends.
pub fn query(verb: &str, job: Option<&str>) -> Element {
    let mut builder = Element::builder("query", NS).attr(xmpp_parsers::minidom::rxml::xml_ncname!("verb").into(), verb);
    if let Some(job) = job {
        builder = builder.attr(xmpp_parsers::minidom::rxml::xml_ncname!("job").into(), job);
    }
    builder.build()
}

/// A job in a few lines.
pub fn describe_job(job: &JobDoc) -> String {
    let done = job.parts.iter().filter(|p| p.state == "verified").count();
    let mut text = format!("{}: {}", job.id, job.state);
    if !job.parts.is_empty() {
        text += &format!(", {done} of {} parts done", job.parts.len());
    }
    if let Some(error) = &job.error {
        text += &format!("\n{}", describe_error(error));
    }
    for (domain, parts) in awards(job) {
        text += &format!("\n{}", describe_award(domain, parts));
    }
    for (domain, loaded) in job.usage.iter().filter_map(|used| Some((&used.domain, used.loaded.as_ref()?))) {
        text += &format!("\n{domain} loaded {loaded}");
    }
    if let Some(results) = &job.results {
        text +=
            &format!("\nplayer {}\nSMIL {}\nHLS {}\nDASH {}", results.player, results.smil, results.hls, results.dash);
    }
    text
}

/// Who was awarded how many parts, though it may have made several offers.
pub fn awards(job: &JobDoc) -> BTreeMap<&str, u32> {
    let won = job.offers.iter().filter(|offer| offer.awarded > 0);
    won.map(|offer| (offer.domain.as_str(), offer.awarded)).collect()
}

pub fn describe_award(domain: &str, parts: u32) -> String {
    format!("awarded {parts} part{} to {domain}", if parts == 1 { "" } else { "s" })
}

pub fn describe_jobs(jobs: &[JobDoc]) -> String {
    if jobs.is_empty() {
        return "no jobs yet".to_owned();
    }
    let line = |job: &JobDoc| format!("{}  {}  {} → {}", job.id, job.state, job.source, job.target);
    jobs.iter().map(line).collect::<Vec<_>>().join("\n")
}

pub fn describe_left_off(jobs: impl std::fmt::Display) -> String {
    format!("{jobs} older jobs are left off; the console and its API list all")
}

pub fn describe_domains(domains: &[DomainDoc]) -> String {
    let line = |d: &DomainDoc| {
        let marks = if d.marks.is_empty() { String::new() } else { format!("  [{}]", d.marks.join(", ")) };
        let home = if d.home { " (home)" } else { "" };
        format!("{}{home}  {}  {} of {} slots free  price {}{marks}", d.name, d.health, d.slots_free, d.slots, d.price)
    };
    domains.iter().map(line).collect::<Vec<_>>().join("\n")
}

pub fn describe_error(error: &ErrorDoc) -> String {
    let mut text = format!("error {}", error.code);
    if let Some(line) = error.line {
        text += &format!(" (line {line})");
    }
    text += &format!(": {}", error.message);
    if let Some(hint) = &error.hint {
        text += &format!("\nhint: {hint}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::OfferDoc;

    #[test]
    fn a_job_may_be_pasted_among_other_words() {
        let said = "please do\n<job xmlns=\"urn:starling:job:1\" kind=\"transcode\"><source/></job> thanks";
        let Some(Command::Submit(xml)) = from_text(said) else { panic!("not understood") };
        assert!(xml.starts_with("<job") && xml.ends_with("</job>"));
    }

    #[test]
    fn a_job_names_who_was_awarded_parts_once() {
        let offer = |domain: &str, awarded| OfferDoc { domain: domain.into(), awarded, ..OfferDoc::default() };
        let offers = vec![offer("a.test", 1), offer("b.test", 0), offer("c.test", 3), offer("c.test", 3)];
        let job = JobDoc { id: "j-1".into(), state: "running".into(), offers, ..JobDoc::default() };
        assert_eq!(describe_job(&job), "j-1: running\nawarded 1 part to a.test\nawarded 3 parts to c.test");
    }

    #[test]
    fn talk_among_people_is_left_alone() {
        assert_eq!(from_text("help me find the coffee"), None);
        assert_eq!(from_text("the status of things is fine"), None);
        assert_eq!(from_text(""), None);
    }

    #[test]
    fn programs_ask_in_xml_what_people_ask_in_words() {
        assert_eq!(from_payload(&query("status", Some("j-1"))), from_text("status j-1"));
        assert_eq!(from_payload(&query("jobs", None)), from_text(" JOBS "));
        assert_eq!(from_payload(&query("fly", None)), None);
        let document = "<?xml version='1.0'?>\n<!-- a & b -->\n<job/>";
        assert_eq!(from_payload(&submission(document)), Some(Command::Submit(document.to_owned())));
    }

    #[test]
    fn a_job_in_a_wrong_namespace_is_still_meant_for_us() {
        let job: Element = "<job xmlns='urn:starling:job:2'/>".parse().unwrap();
        assert!(matches!(from_payload(&job), Some(Command::Submit(_))));
    }
}
