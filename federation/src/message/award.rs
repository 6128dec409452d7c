//! An award on its way: what its addresses share is said once, and its parts are lines of text.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use xso::TextCodec;
use xso::error::Error;

use super::{Award, PartAward};

/// What addresses may share; more would let a small stanza grow large here.
const SHARED_MAX: usize = 2_048;

impl Award {
    /// Says only once what presigned addresses have in common, which is most of them: a stanza would not hold some hundreds
    /// of them in full. Whoever reads the stanza gets them in full.
    pub fn pack(&mut self) {
        let split =
            |part: &PartAward| part.url.split_once('?').map(|(path, query)| (path.to_owned(), query.to_owned()));
        let Some(urls) = self.parts.iter().map(split).collect::<Option<Vec<_>>>() else { return };
        let Some((first, rest)) = urls.split_first().filter(|(_, rest)| !rest.is_empty()) else { return };
        let path = rest.iter().fold(first.0.as_str(), |shared, (path, _)| common(shared, path));
        let query = rest.iter().fold(first.1.as_str(), |shared, (_, query)| common(shared, query));
        if path.len() + query.len() < SHARED_MAX {
            self.urls = Some(format!("{path}?{query}"));
            for (part, (own_path, own_query)) in self.parts.iter_mut().zip(&urls) {
                part.url = format!("{}?{}", &own_path[path.len()..], &own_query[query.len()..]);
            }
        }
    }

    pub(super) fn unpack(&mut self) -> Result<(), Error> {
        let Some(urls) = self.urls.take() else { return Ok(()) };
        let bad = Error::Other("addresses that make no sense");
        let Some((path, query)) = urls.split_once('?').filter(|_| urls.len() <= SHARED_MAX) else { return Err(bad) };
        for part in &mut self.parts {
            let Some((own_path, own_query)) = part.url.split_once('?') else { return Err(bad) };
            part.url = format!("{path}{own_path}?{query}{own_query}");
        }
        Ok(())
    }
}

/// What both begin with.
fn common<'a>(a: &'a str, b: &str) -> &'a str {
    let same = a.chars().zip(b.chars()).take_while(|(a, b)| a == b).map(|(c, _)| c.len_utf8()).sum();
    &a[..same]
}

pub struct PartLines;

impl TextCodec<Vec<PartAward>> for PartLines {
    fn decode(&self, text: String) -> Result<Vec<PartAward>, Error> {
        text.lines().map(|line| line.parse().map_err(Error::text_parse_error)).collect()
    }

    fn encode<'x>(&self, parts: &'x Vec<PartAward>) -> Result<Option<Cow<'x, str>>, Error> {
        let lines: Vec<_> = parts.iter().map(ToString::to_string).collect();
        Ok(Some(lines.join("\n").into()))
    }
}

impl fmt::Display for PartAward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { part, attempt, bytes, work_ms, url } = self;
        write!(f, "{part} {attempt} {bytes} {work_ms} {url}")
    }
}

/// Not a line of an award.
#[derive(Debug, thiserror::Error)]
#[error("a part is awarded as: number, attempt, bytes, work in ms, address")]
pub struct BadPart;

impl FromStr for PartAward {
    type Err = BadPart;

    fn from_str(line: &str) -> Result<Self, BadPart> {
        fn number<T: FromStr>(field: Option<&str>) -> Result<T, BadPart> {
            field.and_then(|field| field.parse().ok()).ok_or(BadPart)
        }
        let mut fields = line.split(' ');
        let (part, attempt) = (number(fields.next())?, number(fields.next())?);
        let (bytes, work_ms) = (number(fields.next())?, number(fields.next())?);
        match (fields.next(), fields.next()) {
            (Some(url), None) => Ok(Self { part, attempt, bytes, work_ms, url: url.to_owned() }),
            _ => Err(BadPart),
        }
    }
}
