//! Loading a part's bytes from the swarm of the domain's share instead of the store.
//!
//! The guest is a node like any other: it takes in the pieces that hold its ranges, and gives them on as long as its task lasts. A swarm
//! that fails is no failure of the task: the store still has the bytes.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use storage::overlay::client::{Controller, Joined, Member};
use storage::overlay::peer::{Config, Peer, Place};
use storage::overlay::share::Map;
use storage::overlay::store::Store;
use storage::range::ByteRange;
use tracing::{info, warn};

use super::fault::Fault;
use super::runner::{Report, Tools, ms};

/// A swarm that brought nothing for so long is left.
const PATIENCE: Duration = Duration::from_secs(60);

/// Appends the ranges, in their order, to `input`. `None`: the swarm did not bring them, and `input` is as it was.
pub(super) async fn load(
    tools: &Tools,
    url: &str,
    ranges: &[ByteRange],
    input: &Path,
    report: &Report,
) -> Result<Option<Joined>, Fault> {
    let began = Instant::now();
    match from_swarm(tools, url, ranges, input, report).await {
        Ok((seat, places, path)) => {
            let (ranges, input) = (ranges.to_vec(), input.to_owned());
            let copied = tokio::task::spawn_blocking(move || copy(&path, &places, &ranges, &input));
            copied.await.map_err(io::Error::other)??;
            report.update(|state| state.usage.download_ms += ms(began));
            Ok(Some(seat))
        }
        Err(why) => {
            warn!(why, "the swarm did not bring the bytes; they come from the store");
            report.update(|state| (state.bytes, state.usage.download_ms) = (0, state.usage.download_ms + ms(began)));
            Ok(None)
        }
    }
}

type Loaded = (Joined, Vec<u64>, std::path::PathBuf);

async fn from_swarm(
    tools: &Tools,
    url: &str,
    ranges: &[ByteRange],
    input: &Path,
    report: &Report,
) -> Result<Loaded, String> {
    let dir = input.parent().unwrap_or(Path::new("."));
    let text = |error: &dyn std::error::Error| error.to_string();
    let controller = Controller::new(url, tools.swarm_listen).map_err(|e| text(&e))?;
    let meta = Arc::new(controller.metainfo().await.map_err(|e| text(&e))?);
    let map = Map::read(&meta).ok_or("this is not the swarm of a share")?;
    let part = map.part(&meta.layout, ranges).ok_or("the share lacks bytes of this part")?;
    let places = map.offsets(&part, ranges).ok_or("the share lacks bytes of this part")?;
    let (store, have) = Store::open_part(dir, &meta, "part", &part).map_err(|e| text(&e))?;
    let node = uuid::Uuid::new_v4().as_u64_pair().0;
    let member = Member { node, rack: 0, demand: part.pieces(&meta.layout) };
    let listen = (tools.swarm_listen, 0).into();
    let peer =
        Peer::start(meta.clone(), Vec::new(), Place::Filling(store, have), Config::new(listen, node), None).await;
    let seat = Joined::start(controller, peer.map_err(|e| text(&e))?, meta, member);
    let (mut from_peers, mut from_origin) = (0, 0);
    let loaded = seat.whole(PATIENCE, |progress| {
        (from_peers, from_origin) = (progress.from_peers, progress.from_origin);
        report.update(|state| state.bytes = progress.bytes_held.min(state.bytes_total));
    });
    let path = loaded.await;
    report.update(|state| state.usage.bytes_in += from_peers + from_origin);
    info!(from_peers, from_origin, "loaded from the swarm");
    match path {
        Ok(path) => Ok((seat, places, path)),
        Err(why) => {
            seat.leave().await;
            Err(text(&why))
        }
    }
}

fn copy(from: &Path, places: &[u64], ranges: &[ByteRange], input: &Path) -> io::Result<()> {
    let (mut from, mut to) = (File::open(from)?, OpenOptions::new().append(true).open(input)?);
    for (at, range) in places.iter().zip(ranges) {
        from.seek(SeekFrom::Start(*at))?;
        let copied = io::copy(&mut (&from).take(range.len()), &mut to)?;
        if copied != range.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}
