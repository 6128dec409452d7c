//! The strict reader behind [`Job::parse`].

use std::collections::BTreeMap;

use quick_xml::events::{BytesStart, Event};
use quick_xml::reader::Reader;

use super::{BYTES_MAX, Credentials, Job, JobError, JobKind, NS, PARTS_MAX, RENDITIONS_MAX, Rendition};

const EXAMPLE: &str = "see examples/jobs and docs/job.xsd, or say `help` in the Shell room";
const PRESETS: [&str; 9] =
    ["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"];
/// A title or an address longer than this is not one.
const TEXT_MAX: usize = 2048;

/// Where the reader stands.
struct Cursor<'a> {
    text: &'a str,
    /// Byte at which the present event begins.
    at: usize,
}

impl Cursor<'_> {
    fn error(&self, code: &'static str, message: impl Into<String>, hint: &'static str) -> JobError {
        let before = self.text.get(..self.at.min(self.text.len())).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        JobError {
            code,
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message: message.into(),
            hint,
        }
    }
}

#[derive(Default)]
struct Draft {
    texts: BTreeMap<String, String>,
    renditions: Vec<Rendition>,
    chunk_seconds: Option<f64>,
    deadline_ms: Option<u64>,
    budget: Option<f64>,
    credentials: Option<Credentials>,
}

pub(super) fn read(text: &str) -> Result<Job, JobError> {
    let mut cursor = Cursor { text, at: 0 };
    if text.len() > BYTES_MAX {
        let message = format!("the document has {} bytes, taken are {BYTES_MAX}", text.len());
        return Err(cursor.error(
            "too-large",
            message,
            "a job document is a few hundred bytes; the data stays in the store",
        ));
    }
    let mut reader = Reader::from_str(text);
    let mut draft = Draft::default();
    let mut kind = None;
    // The element whose text is being read.
    let mut open: Option<String> = None;
    let mut ended = false;
    loop {
        cursor.at = reader.buffer_position() as usize;
        let event = reader.read_event().map_err(|e| {
            cursor.at = reader.error_position() as usize;
            cursor.error("malformed", e.to_string(), "close every element, and quote every attribute")
        })?;
        match event {
            Event::Eof if ended => break,
            Event::Eof => return Err(cursor.error("malformed", "the document ends before </job>", EXAMPLE)),
            Event::Comment(_) | Event::Decl(_) => {}
            Event::DocType(_) => {
                return Err(cursor.error("dtd-refused", "a document type is not taken", "leave <!DOCTYPE …> out"));
            }
            Event::PI(_) => return Err(cursor.error("malformed", "processing instructions are not taken", EXAMPLE)),
            Event::GeneralRef(name) => {
                let name = String::from_utf8_lossy(&name).into_owned();
                let resolved = match name.as_str() {
                    "amp" => "&",
                    "lt" => "<",
                    "gt" => ">",
                    "quot" => "\"",
                    "apos" => "'",
                    _ => {
                        let message = format!("the entity &{name}; is not taken");
                        return Err(cursor.error(
                            "entity-refused",
                            message,
                            "only &amp; &lt; &gt; &quot; &apos; are known",
                        ));
                    }
                };
                add_text(&cursor, &mut draft, open.as_deref(), resolved)?;
            }
            Event::Text(words) => {
                let words = words.decode().map_err(|e| cursor.error("malformed", e.to_string(), EXAMPLE))?;
                cursor.at += words.len() - words.trim_start().len();
                if !words.trim().is_empty() || open.is_some() {
                    if ended || kind.is_none() {
                        return Err(cursor.error("malformed", "there is text around the document", EXAMPLE));
                    }
                    add_text(&cursor, &mut draft, open.as_deref(), &words)?;
                }
            }
            Event::CData(_) => {
                return Err(cursor.error("malformed", "CDATA is not taken", "escape with &amp; and &lt;"));
            }
            Event::End(_) => match open.take() {
                Some(_) => {}
                None => ended = true,
            },
            Event::Start(element) | Event::Empty(element) if kind.is_none() => {
                kind = Some(root(&cursor, &element)?);
                ended = text[cursor.at..].split_once('>').is_some_and(|(tag, _)| tag.ends_with('/'));
            }
            Event::Start(_) | Event::Empty(_) if ended => {
                return Err(cursor.error("malformed", "there is more after </job>", "one document, one job"));
            }
            Event::Start(_) if open.is_some() => {
                return Err(cursor.error("unknown-element", "elements do not stand inside this one", EXAMPLE));
            }
            Event::Start(element) => {
                let name = name_of(&element);
                child(&cursor, &mut draft, &name, &element)?;
                open = Some(name);
            }
            Event::Empty(element) => {
                if open.is_some() {
                    return Err(cursor.error("unknown-element", "elements do not stand inside this one", EXAMPLE));
                }
                child(&cursor, &mut draft, &name_of(&element), &element)?;
            }
        }
    }
    cursor.at = text.rfind("</job").unwrap_or(text.len());
    finish(&cursor, draft, kind)
}

fn name_of(element: &BytesStart) -> String {
    String::from_utf8_lossy(element.name().as_ref()).into_owned()
}

fn add_text(cursor: &Cursor, draft: &mut Draft, open: Option<&str>, words: &str) -> Result<(), JobError> {
    let Some(text) = open.and_then(|name| draft.texts.get_mut(name)) else {
        if words.trim().is_empty() {
            return Ok(());
        }
        return Err(cursor.error("unexpected-text", "text does not stand here", EXAMPLE));
    };
    text.push_str(words);
    if text.len() > TEXT_MAX {
        return Err(cursor.error("bad-value", "this text is too long", "names and addresses are short"));
    }
    Ok(())
}

fn root(cursor: &Cursor, element: &BytesStart) -> Result<JobKind, JobError> {
    let namespace_error = |found: &str| {
        let message = format!("the document must be <job xmlns=\"{NS}\">, not {found}");
        cursor.error("wrong-namespace", message, "copy the first line of an example in examples/jobs")
    };
    if name_of(element) != "job" {
        return Err(namespace_error(&format!("<{}>", name_of(element))));
    }
    let mut attributes = attributes(cursor, element)?;
    match attributes.remove("xmlns") {
        Some(ns) if ns == NS => {}
        Some(ns) => return Err(namespace_error(&format!("xmlns=\"{ns}\""))),
        None => return Err(namespace_error("without xmlns")),
    }
    let kind = match attributes.remove("kind").as_deref() {
        Some("transcode") => JobKind::Transcode,
        Some(other) => {
            return Err(cursor.error("unknown-kind", format!("kind=\"{other}\" is not known"), "known: transcode"));
        }
        None => return Err(cursor.error("missing-attribute", "the job has no kind", "say kind=\"transcode\"")),
    };
    no_more(cursor, &attributes)?;
    Ok(kind)
}

fn child(cursor: &Cursor, draft: &mut Draft, name: &str, element: &BytesStart) -> Result<(), JobError> {
    let mut attributes = attributes(cursor, element)?;
    if attributes.get("xmlns").is_some_and(|ns| ns != NS) {
        let message = format!("<{name}> is of another namespace");
        return Err(cursor.error("wrong-namespace", message, "leave xmlns to <job>"));
    }
    let repeated = || cursor.error("repeated-element", format!("<{name}> stands here twice"), "keep one of them");
    match name {
        "source" | "target" | "title" => {
            if draft.texts.insert(name.to_owned(), String::new()).is_some() {
                return Err(repeated());
            }
        }
        "rendition" => {
            let rendition = rendition(cursor, &mut attributes)?;
            let twin =
                |r: &Rendition| (r.height, &r.codec, r.crf) == (rendition.height, &rendition.codec, rendition.crf);
            if draft.renditions.iter().any(twin) {
                return Err(repeated());
            }
            if draft.renditions.len() >= RENDITIONS_MAX {
                let message = format!("more than {RENDITIONS_MAX} renditions");
                return Err(cursor.error("bad-value", message, "submit the others as a job of their own"));
            }
            draft.renditions.push(rendition);
        }
        "parts" => {
            if let Some(count) = number(cursor, &mut attributes, "count", 1.0, f64::MAX)?
                && count > f64::from(PARTS_MAX)
            {
                let message = format!("{count} parts, at most {PARTS_MAX} are made");
                return Err(cursor.error(
                    "too-many-parts",
                    message,
                    "say how long parts should be: <parts seconds=\"10\"/>",
                ));
            }
            if draft.chunk_seconds.is_some() {
                return Err(repeated());
            }
            draft.chunk_seconds = number(cursor, &mut attributes, "seconds", 1.0, 3600.0)?;
        }
        "deadline" => {
            let seconds = number(cursor, &mut attributes, "seconds", 1.0, 1e9)?;
            if draft.deadline_ms.replace(required(cursor, "seconds", seconds)? as u64 * 1000).is_some() {
                return Err(repeated());
            }
        }
        "budget" => {
            let max = number(cursor, &mut attributes, "max", 0.0, 1e12)?;
            if draft.budget.replace(required(cursor, "max", max)?).is_some() {
                return Err(repeated());
            }
        }
        "credentials" => {
            let mut take = |name: &str| attributes.remove(name).filter(|v| !v.is_empty());
            let (access, secret) = (take("access-key"), take("secret-key"));
            let credentials = Credentials {
                access_key: required(cursor, "access-key", access)?,
                secret_key: required(cursor, "secret-key", secret)?,
                endpoint: take("endpoint"),
                region: take("region"),
            };
            if draft.credentials.replace(credentials).is_some() {
                return Err(repeated());
            }
        }
        other => return Err(cursor.error("unknown-element", format!("<{other}> is not known"), EXAMPLE)),
    }
    no_more(cursor, &attributes)
}

fn rendition(cursor: &Cursor, attributes: &mut BTreeMap<String, String>) -> Result<Rendition, JobError> {
    let height = number(cursor, attributes, "height", 16.0, 4320.0)?;
    let height = required(cursor, "height", height)? as u32;
    if height % 2 == 1 {
        return Err(cursor.error("bad-value", format!("height {height} is odd"), "H.264 wants even heights"));
    }
    let codec = attributes.remove("codec").unwrap_or_else(|| "h264".to_owned());
    if codec != "h264" {
        return Err(cursor.error("unknown-codec", format!("codec \"{codec}\" is not known"), "known: h264"));
    }
    let crf = number(cursor, attributes, "crf", 0.0, 51.0)?.unwrap_or(23.0) as u8;
    let preset = attributes.remove("preset").unwrap_or_else(|| "veryfast".to_owned());
    if !PRESETS.contains(&preset.as_str()) {
        let message = format!("preset \"{preset}\" is not known");
        return Err(cursor.error("bad-value", message, "ultrafast … veryfast … medium … veryslow, as x264 names them"));
    }
    Ok(Rendition { height, codec, crf, preset })
}

fn attributes(cursor: &Cursor, element: &BytesStart) -> Result<BTreeMap<String, String>, JobError> {
    let malformed = |e: &dyn std::fmt::Display| cursor.error("malformed", e.to_string(), "write name=\"value\"");
    let mut all = BTreeMap::new();
    for attribute in element.attributes() {
        let attribute = attribute.map_err(|e| malformed(&e))?;
        let value = attribute.unescape_value().map_err(|e| malformed(&e))?;
        all.insert(String::from_utf8_lossy(attribute.key.as_ref()).into_owned(), value.into_owned());
    }
    Ok(all)
}

fn number(
    cursor: &Cursor,
    attributes: &mut BTreeMap<String, String>,
    name: &str,
    min: f64,
    max: f64,
) -> Result<Option<f64>, JobError> {
    let Some(text) = attributes.remove(name) else { return Ok(None) };
    match text.trim().parse::<f64>() {
        Ok(value) if (min..=max).contains(&value) => Ok(Some(value)),
        _ => {
            let message = format!("{name}=\"{text}\" is not a number from {min} to {max}");
            Err(cursor.error("bad-value", message, "write a plain number"))
        }
    }
}

fn required<T>(cursor: &Cursor, name: &str, value: Option<T>) -> Result<T, JobError> {
    value.ok_or_else(|| cursor.error("missing-attribute", format!("the attribute {name} is missing"), EXAMPLE))
}

fn no_more(cursor: &Cursor, attributes: &BTreeMap<String, String>) -> Result<(), JobError> {
    match attributes.keys().find(|name| *name != "xmlns") {
        None => Ok(()),
        Some(name) => {
            Err(cursor.error("unknown-attribute", format!("the attribute {name} is not known here"), EXAMPLE))
        }
    }
}

fn finish(cursor: &Cursor, mut draft: Draft, kind: Option<JobKind>) -> Result<Job, JobError> {
    let mut place = |name: &'static str| match draft.texts.remove(name).map(|t| t.trim().to_owned()) {
        None => Err(cursor.error("missing-element", format!("<{name}> is missing"), EXAMPLE)),
        Some(text) if text.starts_with("s3://") && text.len() > 5 && !text.contains(char::is_whitespace) => Ok(text),
        Some(text) => {
            let at = cursor.text.find(&format!("<{name}")).unwrap_or(cursor.at);
            let message = format!("<{name}> holds \"{text}\"");
            Err(Cursor { text: cursor.text, at }.error("bad-value", message, "places look like s3://bucket/key"))
        }
    };
    let (source, target) = (place("source")?, place("target")?);
    if draft.renditions.is_empty() {
        return Err(cursor.error("missing-element", "<rendition> is missing", EXAMPLE));
    }
    Ok(Job {
        kind: kind.unwrap_or(JobKind::Transcode),
        title: draft.texts.remove("title").map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()),
        source,
        target,
        renditions: draft.renditions,
        chunk_seconds: draft.chunk_seconds,
        deadline_ms: draft.deadline_ms,
        budget: draft.budget,
        credentials: draft.credentials,
    })
}
