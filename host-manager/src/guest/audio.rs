//! The sound of a whole film: join the packets that the parts handed on, encode them once, check, publish.

use std::path::Path;
use std::time::Instant;

use sha2::{Digest, Sha256};
use storage::film::ffmpeg;
use storage::film::part::AudioWork;
use storage::hex::hex;
use tokio::fs::File;
use tokio::io::AsyncWriteExt;
use tokio::sync::SemaphorePermit;

use super::fault::Fault;
use super::output::Output;
use super::runner::{Report, Tools, fetcher, ms};
use super::task::Phase;

/// `load` is the right to load; it is given back when all pieces are here.
pub(super) async fn run(
    tools: &Tools,
    work: &AudioWork,
    report: &Report,
    load: SemaphorePermit<'_>,
) -> Result<(), Fault> {
    let total = work.pieces.iter().map(|piece| piece.size).fold(0, u64::saturating_add);
    report.update(|state| state.bytes_total = total);
    let _disk = tools.root.reserve(total).await;
    let dir = tools.root.task_dir()?;
    let (joined, encoded) = (dir.path().join("joined"), dir.path().join("sound.mp4"));
    join(work, &joined, report).await?;
    report.phase(Phase::Loaded);
    drop(load);

    let turn = tools.sound.acquire().await.expect("never closed");
    report.phase(Phase::Running);
    let began = Instant::now();
    // How long it is shows only at the end; it is short work.
    let args = ffmpeg::audio_encode_args(work, &joined, &encoded);
    let cpu_ms = tools.encoder.run(&args, dir.path(), |_| ()).await?;
    drop(turn);
    report.update(|state| {
        state.usage.process_ms += ms(began);
        state.usage.cpu_ms += cpu_ms;
    });

    report.phase(Phase::Publishing);
    let began = Instant::now();
    let output = Output::inspected(&encoded, &work.key, "audio/mp4").await?;
    output.publish(fetcher()?, &work.put, report).await?;
    report.update(|state| state.usage.publish_ms += ms(began));
    Ok(())
}

/// A piece that is not byte for byte what its part reported is refused: joined sound has no seams to resynchronise at.
async fn join(work: &AudioWork, joined: &Path, report: &Report) -> Result<(), Fault> {
    let began = Instant::now();
    let mut file = File::create(joined).await?;
    for (n, piece) in work.pieces.iter().enumerate() {
        let bytes = fetcher()?.get(&piece.url, piece.size).await.map_err(Fault::of_source)?;
        if bytes.len() as u64 != piece.size || hex(&Sha256::digest(&bytes)) != piece.sha256 {
            return Err(Fault::SoundMismatch(format!("piece {n}, {} of {} bytes", bytes.len(), piece.size)));
        }
        file.write_all(&bytes).await?;
        report.update(|state| {
            state.bytes += piece.size;
            state.usage.bytes_in += piece.size;
        });
    }
    file.flush().await?;
    report.update(|state| state.usage.download_ms += ms(began));
    Ok(())
}
