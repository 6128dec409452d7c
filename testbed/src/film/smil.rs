//! A SMIL document played in the plainest way: its objects one after another.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt as _;
use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

use super::verify::{Expected, Report, hear, start_seconds, verify};

/// The objects of a document, in playing order.
#[derive(Debug, Default, PartialEq)]
struct Playlist {
    /// For each rendition, its URLs.
    video: Vec<Vec<String>>,
    audio: Vec<String>,
    /// Sum of the `dur` of the first rendition, in seconds.
    seconds: f64,
}

/// Fetches a SMIL document and all it names (by HTTP, or from disk), joins each rendition and decodes it.
///
/// # Errors
/// The document or an object cannot be read or decoded, or renditions differ in their initialisation from part to part.
pub async fn verify_smil(url: &str, expected: Expected) -> Result<Report> {
    let document = String::from_utf8(fetch(url).await?).context("read the SMIL document as UTF-8")?;
    let playlist = parse(&document, url)?;
    let film = expected.rate.seconds(expected.frames);
    ensure!((playlist.seconds - film).abs() < 0.01, "the SMIL lasts {} s, the film {film} s", playlist.seconds);
    let dir = tempfile::tempdir().context("create a directory for the film's objects")?;
    let mut report = Report::default();
    for (n, urls) in playlist.video.iter().enumerate() {
        let mut whole = join(urls, &dir.path().join(format!("{n}.mp4")), expected).await?;
        report.video.append(&mut whole.video);
    }
    if !playlist.audio.is_empty() {
        let path = dir.path().join("audio.mp4");
        write_joined(&playlist.audio, &path).await?;
        let (path, zero) = (path.display().to_string(), start_seconds(&report.video));
        report.audio = Some(tokio::task::spawn_blocking(move || hear(&path, expected, zero)).await??);
    }
    Ok(report)
}

async fn join(urls: &[String], path: &Path, expected: Expected) -> Result<Report> {
    write_joined(urls, path).await?;
    let path = path.display().to_string();
    tokio::task::spawn_blocking(move || verify(&path, expected)).await?
}

/// Writes objects one after another, with the `ftyp` and `moov` of the first only, after checking that all agree on them.
async fn write_joined(urls: &[String], path: &Path) -> Result<()> {
    let mut whole = Vec::new();
    let mut first_init: Option<Vec<u8>> = None;
    let mut objects = futures::stream::iter(urls.iter().map(|url| fetch(url))).buffered(4);
    while let Some(object) = objects.next().await {
        let object = object?;
        let init = object.get(..init_length(&object)?).context("cut the initialisation off an object")?;
        match &first_init {
            None => {
                whole.extend_from_slice(init);
                first_init = Some(init.to_vec());
            }
            Some(first) => ensure!(first == init, "two parts of one rendition differ in their initialisation"),
        }
        whole.extend_from_slice(object.get(init.len()..).unwrap_or_default());
    }
    Ok(tokio::fs::write(path, whole).await?)
}

/// Bytes before the first box that is neither `ftyp` nor `moov` (ISO/IEC 14496-12 §4.2).
fn init_length(object: &[u8]) -> Result<usize> {
    let mut at = 0;
    while let Some([a, b, c, d, kind @ ..]) = object.get(at..at + 8) {
        if !matches!(kind, b"ftyp" | b"moov") {
            return Ok(at);
        }
        let size = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        ensure!(size >= 8, "a box of {size} bytes cannot be");
        at += size;
    }
    bail!("an object has no media in it")
}

fn parse(document: &str, url: &str) -> Result<Playlist> {
    let mut reader = Reader::from_str(document);
    let mut playlist = Playlist::default();
    let mut base = url.rsplit_once('/').map_or(String::new(), |(dir, _)| format!("{dir}/"));
    // Inside a switch, each child is the same moment in another rendition.
    let mut rendition = 0;
    let mut switches = 0;
    loop {
        match reader.read_event().context("parse the SMIL document")? {
            Event::Eof => break,
            Event::End(end) if end.name().as_ref() == b"switch" => switches -= 1,
            Event::Start(tag) | Event::Empty(tag) => match tag.name().as_ref() {
                b"smil" => {
                    if let Some(declared) = attribute(&tag, "xml:base")? {
                        base = resolve(&base, &declared);
                    }
                }
                b"switch" => {
                    switches += 1;
                    rendition = 0;
                }
                b"video" => {
                    let source = attribute(&tag, "src")?.context("a <video> has no src")?;
                    if rendition == 0 {
                        playlist.seconds += clock(&attribute(&tag, "dur")?.context("a <video> has no dur")?)?;
                    }
                    if playlist.video.len() <= rendition {
                        playlist.video.resize_with(rendition + 1, Vec::new);
                    }
                    playlist.video[rendition].push(resolve(&base, &source));
                    rendition = if switches > 0 { rendition + 1 } else { 0 };
                }
                b"audio" => {
                    let source = attribute(&tag, "src")?.context("an <audio> has no src")?;
                    playlist.audio.push(resolve(&base, &source));
                }
                _ => (),
            },
            _ => (),
        }
    }
    let chunks = playlist.video.first().map_or(0, Vec::len);
    ensure!(chunks > 0, "the SMIL document names no video");
    ensure!(playlist.video.iter().all(|urls| urls.len() == chunks), "renditions have different numbers of objects");
    Ok(playlist)
}

fn attribute(tag: &BytesStart<'_>, name: &str) -> Result<Option<String>> {
    let found = tag.try_get_attribute(name).context("read an attribute")?;
    Ok(found.map(|a| a.unescape_value().map(|value| value.into_owned())).transpose()?)
}

/// `10s`, `10.5s`, `1500ms`, `00:01:10.5` (SMIL 3.0 §5.4.3, the forms that are in use).
fn clock(value: &str) -> Result<f64> {
    let number = |text: &str| text.parse::<f64>().with_context(|| format!("read the clock value {value:?}"));
    if let Some(ms) = value.strip_suffix("ms") {
        return Ok(number(ms)? / 1e3);
    }
    if let Some(seconds) = value.strip_suffix('s') {
        return number(seconds);
    }
    value.split(':').try_fold(0.0, |sum, field| Ok(sum * 60.0 + number(field)?))
}

/// A reference against a base whose path ends in `/`; absolute URLs and absolute paths stand for themselves.
fn resolve(base: &str, reference: &str) -> String {
    if reference.contains("://") {
        return reference.to_owned();
    }
    let host_end = base.find("://").map_or(0, |at| base[at + 3..].find('/').map_or(base.len(), |slash| at + 3 + slash));
    if reference.starts_with('/') {
        return format!("{}{reference}", &base[..host_end]);
    }
    let mut base = base;
    let mut reference = reference;
    while let Some(rest) = reference.strip_prefix("../") {
        reference = rest;
        base = base.trim_end_matches('/').rsplit_once('/').map_or("", |(dir, _)| dir);
    }
    match base {
        "" => reference.to_owned(),
        _ => format!("{}/{reference}", base.trim_end_matches('/')),
    }
}

async fn fetch(url: &str) -> Result<Vec<u8>> {
    if !url.contains("://") {
        return tokio::fs::read(url).await.with_context(|| format!("read {url}"));
    }
    let shown = url.split('?').next().unwrap_or_default();
    let response = storage::fetch::http().build()?.get(url).send().await.and_then(reqwest::Response::error_for_status);
    let response = response.map_err(reqwest::Error::without_url).with_context(|| format!("fetch {shown}"))?;
    Ok(response.bytes().await.map_err(reqwest::Error::without_url).with_context(|| format!("fetch {shown}"))?.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renditions_in_a_switch_become_films_of_their_own() {
        let document = r#"<smil xmlns="http://www.w3.org/ns/SMIL" xml:base="http://s3/films/out/"><body><par><seq>
            <switch><video src="hi/0.mp4" dur="10s"/><video src="lo/0.mp4" dur="10s"/></switch>
            <switch><video src="hi/1.mp4" dur="2500ms"/><video src="lo/1.mp4" dur="2500ms"/></switch>
            </seq><audio src="a.mp4"/></par></body></smil>"#;
        let playlist = parse(document, "http://cm/x/film.smil").unwrap();
        assert_eq!(playlist.video[1], ["http://s3/films/out/lo/0.mp4", "http://s3/films/out/lo/1.mp4"]);
        assert_eq!(playlist.audio, ["http://s3/films/out/a.mp4"]);
        assert!((playlist.seconds - 12.5).abs() < 1e-9);
    }

    #[test]
    fn references_resolve_as_a_browser_would() {
        assert_eq!(resolve("http://h:1/a/b/", "c.mp4"), "http://h:1/a/b/c.mp4");
        assert_eq!(resolve("http://h:1/a/b/", "/c.mp4"), "http://h:1/c.mp4");
        assert_eq!(resolve("http://h:1/a/b/", "../c.mp4"), "http://h:1/a/c.mp4");
        assert_eq!(resolve("http://h:1/a/", "http://s3/c.mp4?x"), "http://s3/c.mp4?x");
        assert_eq!(resolve("/tmp/", "c.mp4"), "/tmp/c.mp4");
    }

    #[test]
    fn clock_values_in_all_their_forms() {
        assert_eq!(clock("00:01:10.5").unwrap(), 70.5);
        assert_eq!(clock("1500ms").unwrap(), 1.5);
        assert!(clock("soon").is_err());
    }
}
