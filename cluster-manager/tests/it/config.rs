//! The example files are what the programs read.

use std::path::PathBuf;

use cluster_manager::cli::access::Access;
use cluster_manager::config::{Config, DOCUMENTED};
use federation::agreement::Agreements;

fn example(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples/config").join(name)
}

#[test]
fn the_printed_configuration_is_read_back() {
    let config = Config::load(&example("cluster-manager.toml")).unwrap();
    assert_eq!((config.domain.as_str(), config.job.chunk_seconds), ("a.test", 10.0));
    assert_eq!(std::fs::read_to_string(example("cluster-manager.toml")).unwrap(), DOCUMENTED);
}

#[test]
fn the_commented_lines_show_the_defaults() {
    let config: Config = toml::from_str(&uncommented(DOCUMENTED)).unwrap();
    let plain: Config = toml::from_str(DOCUMENTED).unwrap();
    assert_eq!(config.http_listen, plain.http_listen);
    assert_eq!(config.job.url_ttl_seconds, plain.job.url_ttl_seconds);
    assert_eq!(config.rooms.host_accounts, plain.rooms.host_accounts);
    assert_eq!(config.timers, plain.timers);
    let (ours, theirs) = (config.s3.unwrap(), plain.s3.unwrap());
    assert_eq!((ours.path_style, ours.read_timeout_ms), (theirs.path_style, theirs.read_timeout_ms));
    // All of them: what is left out here cannot be found out.
    let all: toml::Table = uncommented(DOCUMENTED).parse().unwrap();
    let timers = toml::Table::try_from(&plain.timers).unwrap();
    assert_eq!(all["timers"].as_table(), Some(&timers));
}

/// Uncommented, each line must be a key that is known and a value of its type.
fn uncommented(text: &str) -> String {
    let uncomment = |line: &str| match line.strip_prefix("# ") {
        Some(rest) if rest.contains(" = ") => rest.to_owned(),
        _ => line.to_owned(),
    };
    text.lines().map(uncomment).collect::<Vec<_>>().join("\n")
}

#[test]
fn unknown_keys_are_refused_by_name() {
    let error = toml::from_str::<Config>(&format!("colour = 1\n{DOCUMENTED}")).unwrap_err();
    assert!(error.to_string().contains("colour"), "{error}");
}

#[test]
fn the_clients_example_is_read() {
    let text = std::fs::read_to_string(example("starling.toml")).unwrap();
    let access: Access = toml::from_str(&text).unwrap();
    assert_eq!((access.shell.as_str(), access.xmpp.jid.as_str()), ("shell@conference.a.test", "me@a.test"));
}

#[test]
fn what_joining_tells_to_write_is_read_and_names_no_file_that_it_has_not_told_of() {
    let page = include_str!("../../../docs/joining.md");
    let block = page.split("```toml").nth(1).unwrap().split("```").next().unwrap();
    let text: Vec<_> = block.lines().map(str::trim_start).collect();
    let config: Config = toml::from_str(&text.join("\n")).unwrap();
    assert_eq!((config.domain.as_str(), config.agreements.path), ("d.example", None));
    assert!(config.s3.is_none());
}

#[test]
fn the_agreements_example_is_read() {
    let agreements = Agreements::parse(&std::fs::read_to_string(example("agreements.toml")).unwrap()).unwrap();
    assert_eq!(agreements.with(&"b.test".into()).parts_max, Some(50));
    let text = std::fs::read_to_string(example("agreements.toml")).unwrap();
    assert_eq!(Agreements::parse(&uncommented(&text)).unwrap(), agreements, "commented lines show the defaults");
    let shown: toml::Table = uncommented(&text).parse().unwrap();
    let known = toml::Table::try_from(Agreements::default()).unwrap();
    assert!(known.keys().all(|key| shown.contains_key(key)), "{known:?}");
}
