//! What a client asks for: `<job xmlns="urn:starling:job:1">`, as `docs/job.xsd` has it.
//!
//! The schema is closed: whatever is not known is refused with a code, the place and a hint, so that a slip of the pen never
//! becomes another job than was meant.

mod xml;

use std::fmt;

use serde::{Deserialize, Serialize};

use xml::{At, Element, HINT_SCHEMA};

pub use xml::BYTES_MAX;

pub const NS: &str = "urn:starling:job:1";

/// Parts of a job at most.
pub const PARTS_MAX: u32 = 1_000;
const RENDITIONS_MAX: usize = 16;
/// Each preset of x264 with its CPU time, that of `veryfast` being 1: measured on a noisy film of 480p, one thread.
const PRESETS: [(&str, f64); 9] = [
    ("ultrafast", 0.6),
    ("superfast", 0.9),
    ("veryfast", 1.0),
    ("faster", 1.5),
    ("fast", 2.0),
    ("medium", 2.6),
    ("slow", 6.0),
    ("slower", 9.5),
    ("veryslow", 14.5),
];

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    pub kind: JobKind,
    /// For people.
    pub title: Option<String>,
    /// `s3://bucket/key`.
    pub source: String,
    /// `s3://bucket/prefix/`.
    pub target: String,
    pub renditions: Vec<Rendition>,
    pub options: Options,
    /// Never written down with the job, and never printed.
    #[serde(skip)]
    pub credentials: Credentials,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobKind {
    Transcode,
}

impl JobKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Transcode => "transcode",
        }
    }
}

/// One encoding of the film.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rendition {
    /// Pixels, even.
    pub height: u32,
    /// `h264`.
    pub codec: String,
    /// Constant rate factor, 0-51.
    pub crf: u8,
    /// x264 preset.
    pub preset: String,
}

impl Rendition {
    /// Core seconds that encoding one second of film takes about: 0.12 for 480 rows of 16:9 `veryfast`, growing with the pixels.
    pub fn core_seconds(&self) -> f64 {
        let preset = PRESETS.iter().find(|(name, _)| *name == self.preset).map_or(1.0, |(_, cost)| *cost);
        0.12 * preset * (f64::from(self.height) / 480.0).powi(2)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// Wished length of a part.
    pub chunk_seconds: Option<u32>,
    /// Wished number of parts.
    pub parts: Option<u32>,
    /// `embedded`.
    pub engine: Option<String>,
    /// Counted from when the job is taken on.
    pub deadline_ms: Option<u64>,
    /// In the unit of the domains' prices.
    pub budget: Option<f64>,
}

/// Keys for the store, if the job brings its own. They are for IQs only; a room has too many ears.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    pub source: Option<Keys>,
    pub target: Option<Keys>,
}

#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    pub access_key: String,
    pub secret_key: String,
}

impl Credentials {
    pub fn is_empty(&self) -> bool {
        self.source.is_none() && self.target.is_none()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "none" } else { "hidden" })
    }
}

/// What is wrong in a job, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize)]
#[error("line {line}: {message}")]
pub struct JobError {
    pub code: &'static str,
    pub line: u32,
    pub column: u32,
    pub message: String,
    pub hint: &'static str,
}

/// The job that somebody has pasted into a chat message, from its `<job`, or what belongs to the document before it, to its
/// `</job>` (or to the end, so that what is wrong can be said).
pub fn find_job(text: &str) -> Option<&str> {
    let begins = |rest: &str| rest.starts_with(|c: char| c.is_whitespace() || c == '>' || c == '/');
    let start = text.match_indices("<job").map(|(i, _)| i).find(|i| begins(&text[i + 4..]))?;
    // Left out, a document type would go unrefused, and lines would be counted from elsewhere.
    let prolog = ["<?xml", "<!--", "<!DOCTYPE"].into_iter().filter_map(|mark| text[..start].find(mark)).min();
    let job = &text[prolog.unwrap_or(start)..];
    let end = job.find("</job>").map_or(job.len(), |i| i + "</job>".len());
    Some(&job[..end])
}

impl Job {
    /// Reads a job, whole and alone in `text`.
    pub fn parse(text: &str) -> Result<Self, JobError> {
        let root = xml::read(text)?;
        if root.name != "job" {
            return Err(root.at.error("unknown-element", format!("<{}> is not a job", root.name), HINT_SCHEMA));
        }
        root.allow(&["kind"])?;
        root.no_text()?;
        let kind = root.need("kind")?;
        if kind != "transcode" {
            return Err(root.at.error("unknown-kind", format!("job kind \"{kind}\" is not known"), "use transcode"));
        }
        root.in_order(&["title", "source", "target", "rendition", "options"])?;

        let title = root.one("title")?.map(title).transpose()?;
        let source = root.one("source")?.ok_or_else(|| root.lacks("source"))?;
        let target = root.one("target")?.ok_or_else(|| root.lacks("target"))?;
        let renditions = renditions(&root)?;
        let options = root.one("options")?.map(options).transpose()?.unwrap_or_default();
        Ok(Self {
            kind: JobKind::Transcode,
            title,
            source: uri(source, false)?,
            target: uri(target, true)?,
            renditions,
            options,
            credentials: Credentials { source: keys(source)?, target: keys(target)? },
        })
    }

    /// As XML, without credentials.
    pub fn to_xml(&self) -> String {
        use quick_xml::escape::escape;
        let mut xml = format!("<job xmlns=\"{NS}\" kind=\"{}\">\n", self.kind.name());
        if let Some(title) = &self.title {
            xml += &format!("  <title>{}</title>\n", escape(title));
        }
        xml += &format!("  <source>{}</source>\n", escape(&self.source));
        xml += &format!("  <target>{}</target>\n", escape(&self.target));
        for Rendition { height, codec, crf, preset } in &self.renditions {
            let (codec, preset) = (escape(codec), escape(preset));
            xml += &format!("  <rendition height=\"{height}\" codec=\"{codec}\" crf=\"{crf}\" preset=\"{preset}\"/>\n");
        }
        let o = &self.options;
        let mut all = String::new();
        let mut put = |key: &str, value: Option<String>| {
            if let Some(value) = value {
                all += &format!(" {key}=\"{}\"", escape(&value));
            }
        };
        put("chunk-seconds", o.chunk_seconds.map(|v| v.to_string()));
        put("parts", o.parts.map(|v| v.to_string()));
        put("engine", o.engine.clone());
        put("deadline-ms", o.deadline_ms.map(|v| v.to_string()));
        put("budget", o.budget.map(|v| v.to_string()));
        if !all.is_empty() {
            xml += &format!("  <options{all}/>\n");
        }
        xml + "</job>\n"
    }
}

fn title(e: &Element) -> Result<String, JobError> {
    e.allow(&[])?;
    e.in_order(&[])?;
    let title = e.text.trim();
    if title.is_empty() || title.chars().count() > 200 {
        return Err(e.at.error("bad-title", "a title has 1 to 200 characters", "shorten it, or leave it out"));
    }
    Ok(title.to_owned())
}

fn uri(e: &Element, prefix: bool) -> Result<String, JobError> {
    e.allow(&[])?;
    e.in_order(&["credentials"])?;
    let uri = e.text.trim();
    let (code, hint) = match prefix {
        false => ("bad-source", "write s3://bucket/key"),
        true => ("bad-target", "write s3://bucket/prefix/ with a slash at the end"),
    };
    let wrong = |what: &str| Err(e.at.error(code, format!("<{}>: {what}", e.name), hint));
    let Some((bucket, key)) = uri.strip_prefix("s3://").and_then(|rest| rest.split_once('/')) else {
        return wrong("not an S3 address");
    };
    let bucket_char = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    if !(3..=63).contains(&bucket.len()) || !bucket.chars().all(bucket_char) {
        return wrong("not the name of a bucket");
    }
    if key.is_empty() || key.len() > 1024 || key.chars().any(char::is_control) {
        return wrong("a key has 1 to 1024 bytes and no control characters");
    }
    if key.starts_with('/') || key.split('/').any(|s| s == "." || s == "..") || key.contains("//") {
        return wrong("no empty, . or .. steps in a key");
    }
    if key.ends_with('/') != prefix {
        return wrong(if prefix { "not a prefix" } else { "not an object" });
    }
    Ok(uri.to_owned())
}

fn keys(e: &Element) -> Result<Option<Keys>, JobError> {
    let Some(keys) = e.one("credentials")? else { return Ok(None) };
    keys.allow(&["access-key", "secret-key"])?;
    keys.no_text()?;
    keys.in_order(&[])?;
    let (access_key, secret_key) = (keys.need("access-key")?.to_owned(), keys.need("secret-key")?.to_owned());
    Ok(Some(Keys { access_key, secret_key }))
}

fn renditions(root: &Element) -> Result<Vec<Rendition>, JobError> {
    let mut all: Vec<Rendition> = Vec::new();
    for e in root.children.iter().filter(|c| c.name == "rendition") {
        let one = rendition(e)?;
        if all.iter().any(|r| r.height == one.height && r.codec == one.codec) {
            let message = format!("height {} is asked for twice", one.height);
            return Err(e.at.error("duplicate-rendition", message, "one rendition for each height"));
        }
        if all.len() >= RENDITIONS_MAX {
            let message = format!("more than {RENDITIONS_MAX} renditions");
            return Err(e.at.error("too-many-renditions", message, "leave some out"));
        }
        all.push(one);
    }
    if all.is_empty() {
        return Err(root.lacks("rendition"));
    }
    Ok(all)
}

fn rendition(e: &Element) -> Result<Rendition, JobError> {
    e.allow(&["height", "codec", "crf", "preset"])?;
    e.no_text()?;
    e.in_order(&[])?;
    let codec = e.need("codec")?;
    if codec != "h264" {
        return Err(e.at.error("unknown-codec", format!("codec \"{codec}\" is not known"), "use h264"));
    }
    let height = e.number("height", 16, 4320)?.ok_or_else(|| e.lacks_attribute("height"))?;
    if height % 2 != 0 {
        return Err(e.at.error("bad-number", "height must be even", "H.264 frames have even sides"));
    }
    let preset = e.get("preset").unwrap_or("veryfast");
    if PRESETS.iter().all(|(name, _)| *name != preset) {
        let message = format!("preset \"{preset}\" is not known");
        return Err(e.at.error("unknown-preset", message, "use an x264 preset from ultrafast to veryslow"));
    }
    Ok(Rendition {
        height: height as u32,
        codec: codec.to_owned(),
        crf: e.number("crf", 0, 51)?.unwrap_or(23) as u8,
        preset: preset.to_owned(),
    })
}

fn options(e: &Element) -> Result<Options, JobError> {
    e.allow(&["chunk-seconds", "parts", "engine", "deadline-ms", "budget"])?;
    e.no_text()?;
    e.in_order(&[])?;
    let engine = e.get("engine").map(str::to_owned);
    if let Some(engine) = engine.as_deref().filter(|e| *e != "embedded") {
        return Err(e.at.error("unknown-engine", format!("engine \"{engine}\" is not known"), "use embedded"));
    }
    let parts = e.number("parts", 1, u64::from(u32::MAX))?.map(|v| v as u32);
    if let Some(parts) = parts.filter(|p| *p > PARTS_MAX) {
        let message = format!("{parts} parts; at most {PARTS_MAX} are taken");
        return Err(e.at.error("too-many-parts", message, "longer parts cost less, too"));
    }
    let budget = e.get("budget").map(|text| {
        let number = text.trim().parse::<f64>().ok().filter(|b| b.is_finite() && *b > 0.0);
        let plain = text.trim().bytes().all(|b| b.is_ascii_digit() || b == b'.');
        number.filter(|_| plain).ok_or_else(|| {
            let message = format!("budget \"{text}\" is not a number above 0");
            e.at.error("bad-number", message, "write it like 12.5, or leave it out")
        })
    });
    Ok(Options {
        chunk_seconds: e.number("chunk-seconds", 1, 3_600)?.map(|v| v as u32),
        parts,
        engine,
        deadline_ms: e.number("deadline-ms", 1, 366 * 86_400_000)?,
        budget: budget.transpose()?,
    })
}

impl Element {
    fn get(&self, key: &str) -> Option<&str> {
        self.attributes.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    fn need(&self, key: &str) -> Result<&str, JobError> {
        self.get(key).filter(|v| !v.is_empty()).ok_or_else(|| self.lacks_attribute(key))
    }

    fn lacks_attribute(&self, key: &str) -> JobError {
        self.at.error("missing-attribute", format!("<{}> needs the attribute {key}", self.name), HINT_SCHEMA)
    }

    fn lacks(&self, child: &str) -> JobError {
        let code = match child {
            "source" => "missing-source",
            "target" => "missing-target",
            _ => "missing-rendition",
        };
        self.at.error(code, format!("<{}> needs a <{child}>", self.name), HINT_SCHEMA)
    }

    fn number(&self, key: &str, min: u64, max: u64) -> Result<Option<u64>, JobError> {
        let Some(text) = self.get(key) else { return Ok(None) };
        let digits = !text.trim().is_empty() && text.trim().bytes().all(|b| b.is_ascii_digit());
        let number = text.trim().parse::<u64>().ok().filter(|v| digits && (min..=max).contains(v));
        number.map(Some).ok_or_else(|| {
            let message = format!("{key} \"{text}\" is not a whole number from {min} to {max}");
            self.at.error("bad-number", message, HINT_SCHEMA)
        })
    }

    fn allow(&self, keys: &[&str]) -> Result<(), JobError> {
        match self.attributes.iter().find(|(k, _)| !keys.contains(&k.as_str())) {
            None => Ok(()),
            Some((key, _)) => {
                let message = format!("<{}> has no attribute {key}", self.name);
                Err(self.at.error("unknown-attribute", message, HINT_SCHEMA))
            }
        }
    }

    fn no_text(&self) -> Result<(), JobError> {
        if self.text.trim().is_empty() {
            return Ok(());
        }
        Err(self.at.error("unexpected-text", format!("<{}> holds no text", self.name), HINT_SCHEMA))
    }

    /// Children are known ones, in the order of the schema.
    fn in_order(&self, names: &[&str]) -> Result<(), JobError> {
        let mut last = 0;
        for child in &self.children {
            let Some(place) = names.iter().position(|n| *n == child.name) else {
                let message = format!("<{}> has no element <{}>", self.name, child.name);
                return Err(child.at.error("unknown-element", message, HINT_SCHEMA));
            };
            if place < last {
                let message = format!("<{}> comes too late", child.name);
                return Err(child.at.error("wrong-order", message, "title, source, target, rendition, options"));
            }
            last = place;
        }
        Ok(())
    }

    fn one(&self, name: &str) -> Result<Option<&Element>, JobError> {
        let mut all = self.children.iter().filter(|c| c.name == name);
        let first = all.next();
        match all.next() {
            None => Ok(first),
            Some(second) => {
                let at: At = second.at;
                Err(at.error("duplicate-element", format!("<{name}> stands here twice"), HINT_SCHEMA))
            }
        }
    }
}
