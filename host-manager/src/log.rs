//! Logs of both binaries: to standard error, filtered by `RUST_LOG`, `info` without it.

use tracing_subscriber::EnvFilter;

/// Call once, first thing in `main`.
pub fn to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}
