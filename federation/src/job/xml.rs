//! The bytes of a job as a small tree, with everything refused that a job never needs: document types, entities, processing
//! instructions, foreign namespaces, depth.

use quick_xml::events::{BytesStart, Event};
use quick_xml::name::ResolveResult;
use quick_xml::reader::NsReader;

use super::{JobError, NS};

/// Bytes of a job at most.
pub const BYTES_MAX: usize = 64 * 1024;
const DEPTH_MAX: usize = 4;

#[derive(Debug)]
pub(super) struct Element {
    pub name: String,
    pub at: At,
    pub attributes: Vec<(String, String)>,
    pub text: String,
    pub children: Vec<Element>,
}

/// A place in the text, both counted from 1; columns in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct At {
    pub line: u32,
    pub column: u32,
}

impl At {
    fn new(text: &str, offset: u64) -> Self {
        let before = &text.as_bytes()[..text.len().min(usize::try_from(offset).unwrap_or(usize::MAX))];
        let lines = before.iter().filter(|b| **b == b'\n').count();
        let column = before.iter().rev().take_while(|b| **b != b'\n').count();
        Self { line: lines as u32 + 1, column: column as u32 + 1 }
    }

    pub fn error(self, code: &'static str, message: impl Into<String>, hint: &'static str) -> JobError {
        JobError { code, line: self.line, column: self.column, message: message.into(), hint }
    }
}

/// Reads one element, alone in the text.
pub(super) fn read(text: &str) -> Result<Element, JobError> {
    if text.len() > BYTES_MAX {
        let message = format!("the document has {} bytes; at most {BYTES_MAX} are taken", text.len());
        return Err(At { line: 1, column: 1 }.error("too-large", message, "a job only points to data, it holds none"));
    }
    let mut reader = NsReader::from_str(text);
    let mut open: Vec<Element> = Vec::new();
    let mut root = None;
    loop {
        let at = At::new(text, reader.buffer_position());
        let (space, event) = match reader.read_resolved_event() {
            Ok((space, event)) => (is_ours(&space), event),
            Err(error) => {
                let at = At::new(text, reader.error_position());
                return Err(at.error("malformed", error.to_string(), "check tags and quotes around here"));
            }
        };
        match event {
            Event::Start(start) => {
                let element = element(&reader, &start, space, at)?;
                if open.len() >= DEPTH_MAX {
                    return Err(at.error("unknown-element", "elements are nested too deeply", HINT_SCHEMA));
                }
                open.push(element);
            }
            Event::Empty(start) => {
                let element = element(&reader, &start, space, at)?;
                attach(&mut open, &mut root, element)?;
            }
            Event::End(_) => {
                if let Some(element) = open.pop() {
                    attach(&mut open, &mut root, element)?;
                }
            }
            Event::Text(part) => {
                let part = part.decode().map_err(|e| at.error("malformed", e.to_string(), "write it in UTF-8"))?;
                add_text(&mut open, &part, at)?;
            }
            Event::CData(part) => {
                let part = part.decode().map_err(|e| at.error("malformed", e.to_string(), "write it in UTF-8"))?;
                add_text(&mut open, &part, at)?;
            }
            Event::GeneralRef(reference) => {
                let name = reference.decode().unwrap_or_default();
                let known = match reference.resolve_char_ref() {
                    Ok(Some(c)) => Some(c.to_string()),
                    _ => quick_xml::escape::resolve_predefined_entity(&name).map(str::to_owned),
                };
                let Some(known) = known else {
                    return Err(at.error("entity", format!("entity &{name}; is not taken"), HINT_ENTITY));
                };
                add_text(&mut open, &known, at)?;
            }
            Event::Comment(_) | Event::Decl(_) => {}
            Event::DocType(_) => {
                return Err(at.error("doctype", "a document type is not taken", "remove <!DOCTYPE ...>"));
            }
            Event::PI(_) => {
                let hint = "remove <? ... ?>";
                return Err(at.error("processing-instruction", "a processing instruction is not taken", hint));
            }
            Event::Eof if open.is_empty() => break,
            Event::Eof => {
                let name = open.last().map_or("", |e| e.name.as_str());
                return Err(at.error(
                    "malformed",
                    format!("<{name}> is not closed"),
                    "add the end tag; if your client sends each line by itself, write the job in one line",
                ));
            }
        }
    }
    root.ok_or_else(|| At { line: 1, column: 1 }.error("malformed", "there is no element", HINT_SCHEMA))
}

pub(super) const HINT_SCHEMA: &str = "docs/job.xsd lists what a job can hold";
const HINT_ENTITY: &str = "only &lt; &gt; &amp; &quot; &apos; and character numbers are known";

fn is_ours(space: &ResolveResult) -> bool {
    matches!(space, ResolveResult::Bound(ns) if ns.as_ref() == NS.as_bytes())
}

fn element(reader: &NsReader<&[u8]>, start: &BytesStart, ours: bool, at: At) -> Result<Element, JobError> {
    let name = String::from_utf8_lossy(start.local_name().as_ref()).into_owned();
    if !ours {
        let message = format!("<{name}> is not in the namespace {NS}");
        return Err(at.error("wrong-namespace", message, "begin with <job xmlns=\"urn:starling:job:1\" ...>"));
    }
    let mut attributes = Vec::new();
    for attribute in start.attributes() {
        let attribute = attribute.map_err(|e| at.error("malformed", e.to_string(), "check the attributes"))?;
        if attribute.key.as_namespace_binding().is_some() {
            continue;
        }
        let key = String::from_utf8_lossy(attribute.key.as_ref()).into_owned();
        let value = attribute
            .decode_and_unescape_value(reader.decoder())
            .map_err(|e| at.error("entity", format!("attribute {key}: {e}"), HINT_ENTITY))?;
        attributes.push((key, value.into_owned()));
    }
    Ok(Element { name, at, attributes, text: String::new(), children: Vec::new() })
}

fn attach(open: &mut [Element], root: &mut Option<Element>, element: Element) -> Result<(), JobError> {
    match open.last_mut() {
        Some(parent) => parent.children.push(element),
        None if root.is_none() => *root = Some(element),
        None => return Err(element.at.error("malformed", "there is more than one element", "send one job at a time")),
    }
    Ok(())
}

fn add_text(open: &mut [Element], text: &str, at: At) -> Result<(), JobError> {
    match open.last_mut() {
        Some(element) => element.text.push_str(text),
        None if text.trim().is_empty() => {}
        None => return Err(at.error("malformed", "there is text outside of the job", "send the job alone")),
    }
    Ok(())
}
