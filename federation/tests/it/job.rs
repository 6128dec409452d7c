//! Job XML: what is taken, and what is refused with which code at which line.

use std::path::{Path, PathBuf};
use std::process::Command;

use federation::job::{Job, JobKind, Rendition, find_job};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn examples() -> Vec<PathBuf> {
    let folder = root().join("examples/jobs");
    let mut all: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    all.sort();
    assert!(all.len() >= 4);
    all
}

fn job(body: &str) -> String {
    format!("<job xmlns=\"urn:starling:job:1\" kind=\"transcode\">\n{body}\n</job>")
}

const SOURCE: &str = "<source>s3://films/in.mp4</source>\n";
const TARGET: &str = "<target>s3://films/out/</target>\n";
const RENDITION: &str = "<rendition height=\"480\" codec=\"h264\"/>\n";

fn good(options: &str) -> String {
    job(&format!("{SOURCE}{TARGET}{RENDITION}{options}"))
}

#[test]
fn the_smallest_job_is_read() {
    let job = Job::parse(&std::fs::read_to_string(root().join("examples/jobs/smallest.xml")).unwrap()).unwrap();
    let (codec, preset) = ("h264".into(), "veryfast".into());
    assert_eq!(job.kind, JobKind::Transcode);
    assert_eq!((job.source.as_str(), job.target.as_str()), ("s3://films/in.mp4", "s3://films/out/"));
    assert_eq!(job.renditions, [Rendition { height: 480, codec, crf: 23, preset }]);
    assert!(job.credentials.is_empty());
}

#[test]
fn every_example_is_read_and_survives_being_written() {
    for path in examples() {
        let text = std::fs::read_to_string(&path).unwrap();
        let mut job = Job::parse(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        job.credentials = Default::default();
        assert_eq!(Job::parse(&job.to_xml()).unwrap(), job, "{}", path.display());
        assert_eq!(Job::parse(find_job(&format!("please do\n{text}\nthanks")).unwrap()).unwrap().source, job.source);
    }
}

#[test]
fn the_schema_takes_every_example_and_every_job_that_is_written() {
    if Command::new("xmllint").arg("--version").output().is_err() {
        eprintln!("xmllint (libxml2-utils) is not installed: not checked");
        return;
    }
    let lint = |path: &Path| {
        let schema = root().join("docs/job.xsd");
        let out = Command::new("xmllint").args(["--noout", "--schema"]).arg(schema).arg(path).output().unwrap();
        (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let folder = std::env::temp_dir().join(format!("starling-xsd-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let written = folder.join("job.xml");
    for path in examples() {
        let (ok, words) = lint(&path);
        assert!(ok, "{words}");
        let job = Job::parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
        std::fs::write(&written, job.to_xml()).unwrap();
        let (ok, words) = lint(&written);
        assert!(ok, "{words}");
    }
    // Both refuse what either refuses, where XML Schema can say it.
    for (bad, code) in refused().iter().filter(|(_, c)| !matches!(*c, "bad-source" | "bad-target" | "doctype")) {
        if matches!(*code, "processing-instruction" | "entity" | "too-large") {
            continue;
        }
        std::fs::write(&written, bad).unwrap();
        assert!(!lint(&written).0, "the schema takes {bad}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

fn refused() -> Vec<(String, &'static str)> {
    let all = |middle: &str| good(middle);
    let keys = "<credentials access-key=\"a\" secret-key=\"b\"/></source>";
    let full = all("<options parts=\"2\"/>").replace("</source>", keys);
    let full = full.replacen("<source>", "<title>a film</title><source>", 1);
    let elements = ["job", "title", "source", "credentials", "target", "rendition", "options"];
    let coloured = |name: &str| full.replacen(&format!("<{name}"), &format!("<{name} colour=\"red\""), 1);
    let coloured = elements.map(|name| (coloured(name), "unknown-attribute"));
    let mut refused = vec![
        (String::new(), "malformed"),
        ("hello".into(), "malformed"),
        (job("<source>"), "malformed"),
        (good("<options parts=1/>"), "malformed"),
        (format!("{}{}", good(""), good("")), "malformed"),
        (all("<extra/>"), "unknown-element"),
        (all("<options colour=\"red\"/>"), "unknown-attribute"),
        (good("").replace("urn:starling:job:1", "urn:other"), "wrong-namespace"),
        ("<job kind=\"transcode\"/>".into(), "wrong-namespace"),
        (all("<options xmlns=\"urn:other\"/>"), "wrong-namespace"),
        (format!("<!DOCTYPE job [<!ENTITY x \"y\">]>{}", good("")), "doctype"),
        (format!("<?php evil ?>{}", good("")), "processing-instruction"),
        (good("").replace("in.mp4", "&x;"), "entity"),
        (good("").replace("\"480\"", "\"&x;\""), "entity"),
        (good(&" ".repeat(70_000)), "too-large"),
        (job(&format!("{TARGET}{RENDITION}")), "missing-source"),
        (job(&format!("{SOURCE}{RENDITION}")), "missing-target"),
        (job(&format!("{SOURCE}{TARGET}")), "missing-rendition"),
        (good("").replace("h264", "theora"), "unknown-codec"),
        (good("").replace("transcode", "dig"), "unknown-kind"),
        (good("").replace("\"480\"", "\"-480\""), "bad-number"),
        (good("").replace("\"480\"", "\"481\""), "bad-number"),
        (good("").replace("height=\"480\" ", ""), "missing-attribute"),
        (all("<options parts=\"10000\"/>"), "too-many-parts"),
        (all("<options parts=\"99999999999999999999999\"/>"), "bad-number"),
        (all("<options budget=\"-1\"/>"), "bad-number"),
        (all("<options budget=\"NaN\"/>"), "bad-number"),
        (all("<options engine=\"steam\"/>"), "unknown-engine"),
        (all(RENDITION), "duplicate-rendition"),
        (job(&format!("{TARGET}{SOURCE}{RENDITION}")), "wrong-order"),
        (job(&format!("{SOURCE}{SOURCE}{TARGET}{RENDITION}")), "duplicate-element"),
        (all("some words"), "unexpected-text"),
        (good("").replace("s3://films/in.mp4", "/etc/passwd"), "bad-source"),
        (good("").replace("s3://films/in.mp4", "s3://films/../in.mp4"), "bad-source"),
        (good("").replace("s3://films/out/", "s3://films/out"), "bad-target"),
    ];
    refused.extend(coloured);
    refused
}

#[test]
fn bad_jobs_are_refused_with_a_code_a_line_and_a_hint() {
    for (text, code) in refused() {
        let error = Job::parse(&text).expect_err(&text);
        assert_eq!(error.code, code, "{text}: {error}");
        assert!(error.line >= 1 && !error.hint.is_empty() && error.to_string().starts_with("line "));
    }
}

#[test]
fn the_line_is_that_of_the_fault() {
    let error = Job::parse(&good("<options parts=\"-1\"/>")).unwrap_err();
    assert_eq!((error.line, error.column, error.code), (5, 1, "bad-number"));
    assert_eq!(Job::parse(&job(&format!("{SOURCE}\n\n<nonsense/>"))).unwrap_err().line, 5);
}

#[test]
fn ten_megabytes_are_refused_at_once() {
    assert_eq!(Job::parse(&good(&"<a>".repeat(3_500_000))).unwrap_err().code, "too-large");
}

#[test]
fn credentials_are_known_and_never_shown() {
    let text = std::fs::read_to_string(root().join("examples/jobs/own-keys.xml")).unwrap();
    let job = Job::parse(&text).unwrap();
    assert!(!job.credentials.is_empty());
    assert_eq!(job.credentials.source.as_ref().unwrap().access_key, "AKEXAMPLE");
    let shown = format!("{job:?}{}{}", job.to_xml(), serde_json::to_string(&job).unwrap());
    assert!(!shown.contains("not-a-real-key") && !shown.contains("AKEXAMPLE"));
}

#[test]
fn a_job_is_found_in_what_people_write() {
    assert_eq!(find_job("hi <job a='1'>x</job> bye"), Some("<job a='1'>x</job>"));
    assert_eq!(find_job("my <jobs/> are done"), None);
    assert_eq!(find_job("<job is not closed"), Some("<job is not closed"));
    assert_eq!(find_job("help"), None);
    let whole = "<?xml version='1.0'?>\n<!DOCTYPE job>\n<job/>";
    let found = find_job(&format!("this one: {whole}")[..]).map(str::to_owned);
    assert_eq!(found.as_deref(), Some(whole));
    assert_eq!(Job::parse(whole).unwrap_err().code, "doctype");
}

#[test]
fn a_prefix_for_the_namespace_is_as_good_as_none() {
    let text = "<s:job xmlns:s='urn:starling:job:1' kind='transcode'><s:source>s3://films/a&amp;b</s:source>\
        <s:target>s3://films/o/</s:target><s:rendition height='16' codec='h264'/></s:job>";
    assert_eq!(Job::parse(text).unwrap().source, "s3://films/a&b");
}

#[test]
fn slower_presets_and_more_pixels_are_more_work() {
    let work = |height: u32, preset: &str| {
        Rendition { height, codec: "h264".into(), crf: 23, preset: preset.into() }.core_seconds()
    };
    let by_preset = ["ultrafast", "superfast", "veryfast", "fast", "medium", "slow", "slower", "veryslow"];
    assert!(by_preset.map(|preset| work(480, preset)).is_sorted_by(|a, b| a < b));
    assert!((work(960, "fast") / work(480, "fast") - 4.0).abs() < 1e-9);
}
