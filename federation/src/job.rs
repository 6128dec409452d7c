//! The job document (`urn:starling:job:1`): a closed schema, read strictly, with errors that name the line.
//!
//! `docs/job.xsd` says the same for editors. Nothing here resolves entities, reads a DTD or recurses, and a document has a
//! size limit before the first byte is parsed.

mod reader;

use std::fmt;

use serde::{Deserialize, Serialize};

pub const NS: &str = "urn:starling:job:1";
/// A larger document is refused unread.
pub const BYTES_MAX: usize = 64 << 10;
pub const PARTS_MAX: u32 = 1000;
pub const RENDITIONS_MAX: usize = 16;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    pub kind: JobKind,
    pub title: Option<String>,
    /// `s3://bucket/key`
    pub source: String,
    /// `s3://bucket/prefix/`
    pub target: String,
    /// At least one; each another encoding.
    pub renditions: Vec<Rendition>,
    /// Wished length of a part, seconds.
    pub chunk_seconds: Option<f64>,
    /// From submission.
    pub deadline_ms: Option<u64>,
    /// Most that all parts may cost together.
    pub budget: Option<f64>,
    pub credentials: Option<Credentials>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobKind {
    Transcode,
}

impl fmt::Display for JobKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transcode => f.write_str("transcode"),
        }
    }
}

/// One encoding of the film.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendition {
    /// Pixels, even, 16 to 4320.
    pub height: u32,
    pub codec: String,
    /// 0-51.
    pub crf: u8,
    pub preset: String,
}

/// Keys that the job brings along. Never printed; taken by IQ only.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    pub access_key: String,
    pub secret_key: String,
    pub endpoint: Option<String>,
    pub region: Option<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

/// Why a document is refused; nothing of it was kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct JobError {
    /// Stable, kebab-case.
    pub code: &'static str,
    /// From 1.
    pub line: usize,
    pub column: usize,
    pub message: String,
    pub hint: &'static str,
}

impl Job {
    /// # Errors
    /// The first thing that is wrong, in reading order.
    pub fn parse(text: &str) -> Result<Self, JobError> {
        reader::read(text)
    }

    /// The document again, without credentials.
    pub fn to_xml(&self) -> String {
        let escape = |text: &str| quick_xml::escape::escape(text).into_owned();
        let mut xml = format!("<job xmlns=\"{NS}\" kind=\"{}\">", self.kind);
        if let Some(title) = &self.title {
            xml += &format!("<title>{}</title>", escape(title));
        }
        xml += &format!("<source>{}</source><target>{}</target>", escape(&self.source), escape(&self.target));
        for Rendition { height, codec, crf, preset } in &self.renditions {
            xml += &format!("<rendition height=\"{height}\" codec=\"{codec}\" crf=\"{crf}\" preset=\"{preset}\"/>");
        }
        if let Some(seconds) = self.chunk_seconds {
            xml += &format!("<parts seconds=\"{seconds}\"/>");
        }
        if let Some(ms) = self.deadline_ms {
            xml += &format!("<deadline seconds=\"{}\"/>", ms as f64 / 1000.0);
        }
        if let Some(budget) = self.budget {
            xml += &format!("<budget max=\"{budget}\"/>");
        }
        xml + "</job>"
    }
}

/// The first `<job …>…</job>` in what somebody said.
pub fn find_job(text: &str) -> Option<&str> {
    let start = text
        .match_indices("<job")
        .map(|(at, _)| at)
        .find(|at| text[at + 4..].starts_with(|c: char| c.is_whitespace() || c == '>' || c == '/'))?;
    let rest = &text[start..];
    let end = match rest.find("</job>") {
        Some(at) => at + "</job>".len(),
        // Unfinished: the parser will say where.
        None => rest.len(),
    };
    Some(&rest[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALLEST: &str = "<job xmlns=\"urn:starling:job:1\" kind=\"transcode\">\n  <source>s3://films/in.mp4</source>\n  \
        <target>s3://films/out/</target>\n  <rendition height=\"480\" codec=\"h264\" crf=\"23\"/>\n</job>";

    fn code(text: &str) -> (&'static str, usize) {
        let error = Job::parse(text).unwrap_err();
        assert!(!error.hint.is_empty() && !error.message.is_empty());
        (error.code, error.line)
    }

    fn with(line: &str) -> String {
        SMALLEST.replace("</job>", &format!("{line}</job>"))
    }

    #[test]
    fn the_smallest_job_is_read() {
        let job = Job::parse(SMALLEST).unwrap();
        assert_eq!((job.source.as_str(), job.target.as_str()), ("s3://films/in.mp4", "s3://films/out/"));
        let preset = "veryfast".to_owned();
        assert_eq!(job.renditions, [Rendition { height: 480, codec: "h264".into(), crf: 23, preset }]);
    }

    #[test]
    fn a_document_survives_being_written_and_read_again() {
        let all = with("<title>A &amp; B</title><parts seconds='4.5'/><deadline seconds='60'/><budget max='9.5'/>");
        let job = Job::parse(&all).unwrap();
        assert_eq!(job.title.as_deref(), Some("A & B"));
        assert_eq!(Job::parse(&job.to_xml()).unwrap(), job);
    }

    #[test]
    fn each_kind_of_bad_document_has_its_code_and_line() {
        assert_eq!(code("<job"), ("malformed", 1));
        assert_eq!(code(""), ("malformed", 1));
        assert_eq!(code(&SMALLEST.replace("</target>", "</targte>")), ("malformed", 3));
        assert_eq!(code(&with("<colour/>")), ("unknown-element", 5));
        assert_eq!(code(&SMALLEST.replace("crf=", "cfr=")), ("unknown-attribute", 4));
        assert_eq!(code(&SMALLEST.replace("job:1", "job:9")), ("wrong-namespace", 1));
        assert_eq!(code(&SMALLEST.replace(" xmlns=\"urn:starling:job:1\"", "")), ("wrong-namespace", 1));
        assert_eq!(code(&format!("<!DOCTYPE job [<!ENTITY a \"b\">]>\n{SMALLEST}")), ("dtd-refused", 1));
        assert_eq!(code(&SMALLEST.replace("in.mp4", "&a;")), ("entity-refused", 2));
        assert_eq!(code(&" ".repeat(10 << 20)), ("too-large", 1));
        assert_eq!(code(&SMALLEST.replace("<source>s3://films/in.mp4</source>", "")), ("missing-element", 5));
        assert_eq!(code(&SMALLEST.replace("h264", "h263")), ("unknown-codec", 4));
        assert_eq!(code(&SMALLEST.replace("\"480\"", "\"-480\"")), ("bad-value", 4));
        assert_eq!(code(&SMALLEST.replace("\"480\"", "\"481\"")), ("bad-value", 4));
        assert_eq!(code(&with("<parts count='10000'/>")), ("too-many-parts", 5));
        assert_eq!(code(&with("<source>s3://a/b</source>")), ("repeated-element", 5));
        assert_eq!(code(&with("\nloose words")), ("unexpected-text", 6));
        assert_eq!(code(&SMALLEST.replace("transcode", "mine")), ("unknown-kind", 1));
        assert_eq!(code(&SMALLEST.replace("s3://films/in.mp4", "")), ("bad-value", 2));
        assert_eq!(code(&format!("{SMALLEST}<job/>")), ("malformed", 5));
        assert_eq!(
            code(&with("<rendition height='480' codec='h264' crf='23' preset='slow'/>")),
            ("repeated-element", 5)
        );
    }

    #[test]
    fn credentials_are_read_and_never_shown_again() {
        let job = Job::parse(&with("<credentials access-key='AK' secret-key='SK'/>")).unwrap();
        assert_eq!(job.credentials.as_ref().map(|c| c.secret_key.as_str()), Some("SK"));
        assert!(!format!("{job:?}").contains("SK") && !job.to_xml().contains("AK"));
    }

    #[test]
    fn a_job_is_found_in_talk() {
        assert_eq!(find_job("hi <jobs/> <job a='b'>x</job> bye"), Some("<job a='b'>x</job>"));
        assert_eq!(find_job("my job"), None);
    }
}
