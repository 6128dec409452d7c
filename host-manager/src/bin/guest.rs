//! The `guest` binary: prints `{"address": "IP:PORT"}` when it is ready, then serves until it is told to end.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use host_manager::guest::runner::{Guest, GuestConfig};
use host_manager::guest::server;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};

/// Agent inside a machine: fetches, encodes, checks and uploads parts of films.
#[derive(Parser)]
#[command(version, after_help = "Example: guest --listen 127.0.0.1:0 --token-file token --dir work --slots 2")]
struct Args {
    /// Address to serve on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// File with the bearer token that every request must show.
    #[arg(long)]
    token_file: PathBuf,
    /// Directory for working files, used by no one else.
    #[arg(long)]
    dir: PathBuf,
    /// Parts encoded at the same time.
    #[arg(long, default_value_t = 1)]
    slots: usize,
    /// Parts loaded at the same time.
    #[arg(long, default_value_t = 4)]
    loads: usize,
    /// Input kept on disk, MiB.
    #[arg(long, default_value_t = 20 * 1024)]
    disk_mib_max: u64,
    /// ffmpeg, a path or a name in PATH.
    #[arg(long, default_value = "ffmpeg", env = "STARLING_FFMPEG")]
    ffmpeg: PathBuf,
    /// How long to wait for an order that is not in the store yet, seconds.
    #[arg(long, default_value_t = 40)]
    order_wait: u64,
    /// Address on which peers of a swarm reach this guest.
    #[arg(long, default_value = "127.0.0.1")]
    swarm_listen: IpAddr,
    /// End when standard input, a pipe, is closed: when whoever started this is gone, however it went.
    #[arg(long)]
    exit_with_stdin: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    host_manager::log::to_stderr();
    let token = std::fs::read_to_string(&args.token_file).context("read the token file")?.trim().to_owned();
    anyhow::ensure!(token.len() >= 16, "the token in {} has fewer than 16 bytes", args.token_file.display());
    let parent = args.exit_with_stdin.then(parent_pipe).transpose()?;
    let guest = Guest::open(GuestConfig {
        dir: args.dir,
        slots: args.slots,
        loads: args.loads,
        disk_bytes_max: args.disk_mib_max << 20,
        ffmpeg: args.ffmpeg,
        order_wait: Duration::from_secs(args.order_wait),
        swarm_listen: args.swarm_listen,
    })
    .context("open the working directory")?;
    let listener = tokio::net::TcpListener::bind(args.listen).await.context("listen")?;
    let mut stop = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    println!("{}", serde_json::json!({ "address": listener.local_addr()? }));
    std::io::stdout().flush()?;
    let end = async {
        tokio::select! {
            _ = stop.recv() => (),
            _ = tokio::signal::ctrl_c() => (),
            () = closed(parent) => (),
        }
    };
    // Not the graceful kind: open event streams would hold it for as long as their tasks run.
    tokio::select! {
        served = axum::serve(listener, server::router(guest.clone(), token)).into_future() => served.context("serve")?,
        () = end => (),
    }
    guest.close().await;
    Ok(())
}

fn parent_pipe() -> anyhow::Result<pipe::Receiver> {
    let fd = std::io::stdin().as_fd().try_clone_to_owned().context("open standard input")?;
    pipe::Receiver::from_owned_fd(fd).context("--exit-with-stdin needs a pipe as standard input")
}

/// Waits for the other end to be closed; for ever if there is none.
async fn closed(pipe: Option<pipe::Receiver>) {
    let Some(mut pipe) = pipe else { return std::future::pending().await };
    let mut ignored = [0; 64];
    while let Ok(1..) = pipe.read(&mut ignored).await {}
}
