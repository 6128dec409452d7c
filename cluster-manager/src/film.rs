//! A transcoding job at its home: read the index, write the orders, check what comes back, publish what is there.
//!
//! Everything here works on one [`Store`] and holds no state of its own; what must be remembered is in [`Prepared`] and
//! [`Verified`], which the coordinator journals.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use federation::job::{self, Job};
use federation::message::{Output, PartCall};
use futures::future::try_join_all;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use storage::error::{Reason, StoreError};
use storage::film::fragment::{self, Inspection};
use storage::film::part::{
    AudioCut, AudioPiece, AudioWork, PartSpec, Rendition, RenditionOutput, Source, VideoWork, Work,
};
use storage::film::plan::{Heads, Plan, PlanOptions};
use storage::film::probe::{HEAD_BYTES, Probe, Step};
use storage::hex::hex;
use storage::object::ObjectPath;
use storage::range::ByteRange;
use storage::s3::{ObjectMeta, PutOptions, Store};
use tokio::sync::OnceCell;

use crate::results::{self, Document, Links, Sound, SoundTrack};
use crate::view::ErrorDoc;

/// No result object of one part is larger; more is a hostile or broken domain.
const OBJECT_BYTES_MAX: u64 = 1 << 30;
/// More objects than a job's orders and sound pieces can be.
const LIST_MAX: usize = 100_000;
/// Objects deleted at the same time.
const DELETES_AT_ONCE: usize = 16;
/// Marks the target prefix as one job's.
const CLAIM: &str = "starling.json";
const AUDIO_BIT_RATE: u32 = 128_000;

/// A job document with its places understood.
#[derive(Clone, Debug)]
pub struct FilmJob {
    pub id: String,
    pub job: Job,
    pub source: ObjectPath,
    /// A prefix; ends with `/`.
    pub target: ObjectPath,
}

/// What the index said; enough to write any order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Prepared {
    pub etag: String,
    pub size: u64,
    pub plan: Plan,
    /// What it was planned by.
    #[serde(default)]
    options: PlanOptions,
    /// Absent after a restart, and then made once more.
    #[serde(skip)]
    heads: OnceCell<Arc<Heads>>,
    /// The target is this job's; asked once in each life.
    #[serde(skip)]
    claimed: OnceCell<()>,
}

/// A part whose objects are in the store and are what the order asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Verified {
    /// One for each rendition, in the job's order; or the encoded sound.
    pub objects: Vec<VerifiedObject>,
    /// The sound packets that came with the pictures; in older journals only among what was loaded.
    #[serde(default)]
    pub sound: Option<Output>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VerifiedObject {
    /// Relative to the target.
    pub key: String,
    pub size: u64,
    pub inspection: Inspection,
}

/// Why a job cannot go on; shown to its owner.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct FilmFailure {
    pub code: String,
    pub message: String,
    pub hint: Option<String>,
    /// The store may do it later.
    pub retryable: bool,
}

/// Why the objects of a part do not count.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// They are not what was said or ordered, in words.
    #[error("{0}")]
    Wrong(String),
    /// Nothing is known of them, and their domain is not to blame.
    #[error(transparent)]
    Unread(FilmFailure),
}

impl From<String> for CheckError {
    fn from(what: String) -> Self {
        Self::Wrong(what)
    }
}

impl FilmFailure {
    fn new(code: &str, message: impl Into<String>, hint: &str) -> Self {
        Self { code: code.into(), message: message.into(), hint: Some(hint.into()), retryable: false }
    }

    /// A job that failed at work, with what its owner can do about it.
    pub fn at_work(code: &str, message: &str) -> Self {
        let hint = match code {
            "source-changed" => "submit the job again, and leave the source alone until it has ended",
            "source-missing" | "source-forbidden" => "check the source's name and the keys' rights",
            "encoder-failed" => "the last words of ffmpeg are in the message; check the film with ffprobe",
            "encoder-missing" => "install ffmpeg on the hosts",
            "budget-exhausted" => "raise the budget, or ask partners for a better price",
            "deadline-passed" => "give the job more time, or more domains",
            "store-unreachable" | "order-unreachable" => "check the store's address as the hosts see it",
            "wrong-hash" => "look at the marks of the domains: one of them sends what it did not make",
            _ => "submit it again; if it fails the same way, the logs of the domains tell more",
        };
        Self::new(code, message, hint)
    }

    pub fn document(&self) -> ErrorDoc {
        ErrorDoc { code: self.code.clone(), message: self.message.clone(), hint: self.hint.clone(), line: None }
    }
}

impl FilmJob {
    pub fn new(id: &str, job: Job) -> Result<Self, FilmFailure> {
        let place = |uri: &str| {
            uri.parse::<ObjectPath>()
                .map_err(|error| FilmFailure::new("bad-place", error.to_string(), "places look like s3://bucket/key"))
        };
        let source = place(&job.source)?;
        let target = place(&format!("{}/", job.target.trim_end_matches('/')))?;
        Ok(Self { id: id.to_owned(), job, source, target })
    }

    /// Number of the part that encodes the sound; one after the last video part.
    pub fn audio_part(prepared: &Prepared) -> Option<u32> {
        prepared.plan.film.audio.as_ref().map(|_| prepared.plan.parts.len() as u32)
    }

    /// Where an object of the result is, if `relative` names one that players may ask for.
    pub fn result_object(&self, relative: &str) -> Option<ObjectPath> {
        let hidden = relative.split('/').any(|part| part.is_empty() || part.starts_with('.'));
        self.target.join(relative).ok().filter(|_| !hidden)
    }

    /// Reads the source's index by ranged GETs. Understanding that of a film of two hours takes most of a second of computing.
    pub async fn prepare(&self, store: &Store, chunk_seconds: f64) -> Result<Prepared, FilmFailure> {
        self.plan(store, self.plan_options(chunk_seconds)).await
    }

    /// A wished number of parts outdoes their wished length.
    fn plan_options(&self, chunk_seconds: f64) -> PlanOptions {
        let usual = PlanOptions { chunk_seconds: self.chunk_seconds(chunk_seconds), ..Default::default() };
        match self.job.options.parts {
            Some(parts) => PlanOptions { parts_min: parts, parts_max: parts, ..usual },
            None => usual,
        }
    }

    fn chunk_seconds(&self, usual: f64) -> f64 {
        self.job.options.chunk_seconds.map_or(usual, f64::from)
    }

    async fn plan(&self, store: &Store, options: PlanOptions) -> Result<Prepared, FilmFailure> {
        let first = store.get_first(&self.source, HEAD_BYTES).await;
        let (ObjectMeta { size, etag, .. }, head) = first.map_err(|e| self.source_failure(&e))?;
        let (mut probe, etag) = (Probe::new(size, options.clone()), &etag);
        if let Ok(range) = ByteRange::new(0, head.len() as u64) {
            probe.supply(range, head.to_vec());
        }
        loop {
            match probe.step().map_err(|e| FilmFailure::new(e.code(), format!("{}: {e}", self.job.source), e.hint()))? {
                Step::Done(plan, heads) => {
                    let heads = OnceCell::new_with(Some(Arc::new(heads)));
                    return Ok(Prepared {
                        etag: etag.clone(),
                        size,
                        plan: *plan,
                        options,
                        heads,
                        claimed: OnceCell::new(),
                    });
                }
                Step::Need(ranges) => {
                    let gets = ranges.into_iter().map(|range| async move {
                        let bytes = store.get_range(&self.source, range, Some(etag)).await;
                        bytes.map(|bytes| (range, bytes)).map_err(|e| self.source_failure(&e))
                    });
                    for (range, bytes) in try_join_all(gets).await? {
                        probe.supply(range, bytes.to_vec());
                    }
                }
            }
        }
    }

    /// What is not journaled of the index; read again after a restart.
    async fn heads<'a>(&self, store: &Store, prepared: &'a Prepared) -> Result<&'a Heads, StoreError> {
        let read = || async {
            let failed = |reason, what: String| StoreError::new(reason, "read the index again of", &self.source, what);
            let again = self.plan(store, prepared.options.clone()).await;
            let again = again.map_err(|failure| failed(Reason::BadInput, failure.message))?;
            if again.etag != prepared.etag {
                return Err(failed(Reason::Changed, "it is not the film that was planned with".into()));
            }
            again.heads.into_inner().ok_or_else(|| failed(Reason::BadInput, "it has no heads".into()))
        };
        prepared.heads.get_or_try_init(read).await.map(AsRef::as_ref)
    }

    /// Makes sure that the target is this job's, before anybody is let write there.
    pub async fn claim(&self, store: &Store, prepared: &Prepared) -> Result<(), FilmFailure> {
        prepared.claimed.get_or_try_init(|| self.put_claim(store)).await.copied()
    }

    async fn put_claim(&self, store: &Store) -> Result<(), FilmFailure> {
        let claim = self.target.join(CLAIM).map_err(|e| self.target_failure(&e))?;
        let body = serde_json::json!({ "job": self.id }).to_string();
        let options =
            PutOptions { only_if_absent: true, content_type: Some("application/json".into()), ..Default::default() };
        match store.put(&claim, Bytes::from(body), options).await {
            Ok(_) => Ok(()),
            Err(error) if error.code() == "exists" => {
                let holder = self.holder(store).await.map_err(|e| self.target_failure(&e))?;
                if holder == self.id.as_str() {
                    return Ok(());
                }
                Err(FilmFailure::new(
                    "target-occupied",
                    format!("{} already holds the result of job {holder}", self.job.target),
                    "choose another target, or delete what is there",
                ))
            }
            Err(error) => Err(self.target_failure(&error)),
        }
    }

    /// The job that has claimed the target.
    async fn holder(&self, store: &Store) -> Result<serde_json::Value, StoreError> {
        let claim = store.get(&self.target.join(CLAIM)?, 1 << 20).await?;
        let claim: serde_json::Value = serde_json::from_slice(&claim).unwrap_or_default();
        Ok(claim["job"].clone())
    }

    /// After a job that ended without a result, when nobody writes for it any more: nothing that it wrote is left, and the target may
    /// be used again. `prepared`: `None` before there was anything to write. Where another job has the target by now, only what bears this
    /// one's name is removed: results of both may have the same names.
    pub async fn release(
        &self,
        store: &Store,
        prepared: Option<&Prepared>,
        attempts: &BTreeMap<u32, u32>,
        verified: &BTreeMap<u32, Verified>,
    ) -> Result<(), StoreError> {
        let is_ours = match self.holder(store).await {
            Ok(holder) => holder == self.id.as_str(),
            Err(error) if error.code() == "not-found" => false,
            Err(error) => return Err(error),
        };
        if let Some(prepared) = prepared {
            let documents = is_ours.then(|| self.results(prepared, verified).ok()).flatten().unwrap_or_default();
            for document in documents {
                store.delete(&self.target.join(&document.key)?).await?;
            }
            let none = BTreeMap::new();
            self.tidy(store, prepared, if is_ours { attempts } else { &none }, &BTreeMap::new()).await?;
        }
        match is_ours {
            true => store.delete(&self.target.join(CLAIM)?).await,
            false => Ok(()),
        }
    }

    fn source_failure(&self, error: &StoreError) -> FilmFailure {
        let code = match error.code() {
            "not-found" => "source-missing",
            "forbidden" => "source-forbidden",
            "changed" => "source-changed",
            other => other,
        };
        FilmFailure::new(code, format!("{}: {error}", self.job.source), "check the source's name and the keys' rights")
    }

    fn target_failure(&self, error: &StoreError) -> FilmFailure {
        let code = if error.code() == "forbidden" { "target-forbidden" } else { error.code() };
        let (message, hint) = (format!("{}: {error}", self.job.target), "check the target's name and the keys' rights");
        FilmFailure { retryable: error.retryable(), ..FilmFailure::new(code, message, hint) }
    }

    /// What is called out for bids.
    pub fn calls(&self, prepared: &Prepared) -> Vec<PartCall> {
        let calls = prepared.plan.parts.iter().enumerate().map(|(n, part)| PartCall {
            part: n as u32,
            bytes: part.bytes(),
            work_ms: self.work_ms(part.duration_seconds),
        });
        calls.collect()
    }

    /// What a part is likely to take, before the index tells.
    pub fn part_work_ms(&self, chunk_seconds: f64) -> u64 {
        self.work_ms(self.chunk_seconds(chunk_seconds))
    }

    fn work_ms(&self, seconds: f64) -> u64 {
        // One decoding for all renditions.
        let rate = 0.07 + self.job.renditions.iter().map(job::Rendition::core_seconds).sum::<f64>();
        (seconds * 1000.0 * rate) as u64
    }

    pub fn audio_call(&self, prepared: &Prepared, pieces: &BTreeMap<u32, Output>) -> Option<PartCall> {
        let part = Self::audio_part(prepared)?;
        let bytes = pieces.values().map(|piece| piece.size).fold(0, u64::saturating_add);
        // AAC encodes at some fifty times real time on one core.
        Some(PartCall { part, bytes, work_ms: (prepared.plan.film.duration * 20.0) as u64 })
    }

    fn order_place(&self, part: u32, attempt: u32) -> Result<ObjectPath, StoreError> {
        self.target.join(&format!(".starling/{}/order-{part:05}-{attempt}.json", self.id))
    }

    fn sound_place(&self, part: u32, attempt: u32) -> Result<ObjectPath, StoreError> {
        self.target.join(&format!(".starling/{}/sound-{part:05}-{attempt}", self.id))
    }

    /// The presigned URL of the order for one attempt of one part, written or not.
    pub async fn order_url(&self, store: &Store, part: u32, attempt: u32, ttl: Duration) -> Result<String, StoreError> {
        store.presign_get(&self.order_place(part, attempt)?, ttl).await
    }

    /// The source as whoever holds no key reads it.
    pub async fn readable(&self, store: &Store, prepared: &Prepared, ttl: Duration) -> Result<Source, StoreError> {
        let url = store.presign_get(&self.source, ttl).await?;
        Ok(Source { url, etag: prepared.etag.clone(), size: prepared.size })
    }

    /// Writes the order for one attempt of one part.
    pub async fn order(
        &self,
        store: &Store,
        prepared: &Prepared,
        pieces: &BTreeMap<u32, Output>,
        part: u32,
        attempt: u32,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        let claimed = self.claim(store, prepared).await;
        claimed.map_err(|failure| StoreError::new(Reason::Exists, "claim", &self.target, failure.message))?;
        let work = match prepared.plan.parts.get(part as usize) {
            Some(planned) => {
                let mut renditions = Vec::new();
                for rendition in &self.job.renditions {
                    let object = self.target.join(&video_name(rendition, part, attempt))?;
                    let put = store.presign_put(&object, ttl, None).await?;
                    renditions.push(RenditionOutput {
                        rendition: encoding(rendition),
                        key: object.key().to_owned(),
                        put,
                    });
                }
                let audio = match &planned.audio {
                    Some(span) => {
                        let object = self.sound_place(part, attempt)?;
                        let put = store.presign_put(&object, ttl, None).await?;
                        let format = span.format.clone();
                        Some(AudioCut { lo: span.lo, hi: span.hi, format, key: object.key().to_owned(), put })
                    }
                    None => None,
                };
                let source = self.readable(store, prepared, ttl).await?;
                let input = self.heads(store, prepared).await?.input(part as usize, planned);
                Work::Video(VideoWork { source, input, clip: planned.clip, renditions, audio })
            }
            None => {
                let object = self.target.join(&audio_name(attempt))?;
                let put = store.presign_put(&object, ttl, None).await?;
                let mut ordered = Vec::new();
                for piece in pieces.values() {
                    let place = ObjectPath::new(self.target.bucket(), &piece.key)?;
                    let url = store.presign_get(&place, ttl).await?;
                    ordered.push(AudioPiece { url, size: piece.size, sha256: piece.sha256.clone() });
                }
                Work::Audio(AudioWork {
                    format: prepared.plan.film.audio.as_ref().map(|a| a.format.clone()).unwrap_or_default(),
                    pieces: ordered,
                    offset_seconds: prepared.plan.audio_offset_seconds,
                    bit_rate: AUDIO_BIT_RATE,
                    key: object.key().to_owned(),
                    put,
                })
            }
        };
        let spec = PartSpec { job: self.id.clone(), part, attempt, work };
        let body = serde_json::to_vec(&spec)
            .map_err(|e| StoreError::new(Reason::BadInput, "write the order to", &self.target, e.to_string()))?;
        let options = PutOptions { content_type: Some("application/json".into()), ..Default::default() };
        store.put(&self.order_place(part, attempt)?, Bytes::from(body), options).await.map(drop)
    }

    /// Reads the objects of a part back and compares them with what was reported and with what was ordered.
    pub async fn check(
        &self,
        store: &Store,
        prepared: &Prepared,
        part: u32,
        attempt: u32,
        outputs: &[Output],
    ) -> Result<Verified, CheckError> {
        let planned = prepared.plan.parts.get(part as usize);
        let expected = self.names(planned.is_some(), part, attempt);
        let sound = match planned.and_then(|planned| planned.audio.as_ref()) {
            Some(_) => Some(self.check_sound(store, part, attempt, outputs).await?),
            None => None,
        };
        let mut objects = Vec::new();
        for name in expected {
            let place = self.target.join(&name).map_err(|e| e.to_string())?;
            let key = place.key();
            let (output, bytes) = self.read_back(store, &place, outputs).await?;
            let inspection = fragment::inspect(&bytes).map_err(|e| format!("{key}: {e}"))?;
            match (planned, prepared.plan.audio_end_seconds) {
                (Some(planned), _) => fragment::check(&inspection.summary, &planned.clip),
                (None, Some(end)) => fragment::check_sound(&inspection.summary, end),
                (None, None) => Ok(()),
            }
            .map_err(|e| format!("{key}: {e}"))?;
            objects.push(VerifiedObject { key: name, size: output.size, inspection });
        }
        Ok(Verified { objects, sound })
    }

    /// The sound packets of a part, if they are in the store as reported, where they were ordered to: whoever encodes them is given a URL
    /// to read them, must not read anything else by it, and would be taken for the one at fault.
    pub async fn check_sound(
        &self,
        store: &Store,
        part: u32,
        attempt: u32,
        outputs: &[Output],
    ) -> Result<Output, CheckError> {
        let place = self.sound_place(part, attempt).map_err(|e| e.to_string())?;
        self.read_back(store, &place, outputs).await.map(|(output, _)| output.clone())
    }

    /// What was reported of an object, and the object, if that is what it is.
    async fn read_back<'a>(
        &self,
        store: &Store,
        place: &ObjectPath,
        outputs: &'a [Output],
    ) -> Result<(&'a Output, Bytes), CheckError> {
        let key = place.key();
        let output = outputs.iter().find(|o| o.key == key).ok_or_else(|| format!("{key} was not reported"))?;
        let bytes = store.get(place, OBJECT_BYTES_MAX).await.map_err(|error| match error.reason {
            Reason::NotFound | Reason::TooLarge => CheckError::Wrong(format!("{key}: {error}")),
            _ => CheckError::Unread(self.target_failure(&error)),
        })?;
        if bytes.len() as u64 != output.size {
            return Err(format!("{key} has {} bytes, reported were {}", bytes.len(), output.size).into());
        }
        if hex(&Sha256::digest(&bytes)) != output.sha256 {
            return Err(format!("{key} has another hash than reported").into());
        }
        Ok((output, bytes))
    }

    /// Writes SMIL, HLS and DASH for what is there.
    pub async fn publish(
        &self,
        store: &Store,
        prepared: &Prepared,
        verified: &BTreeMap<u32, Verified>,
    ) -> Result<(), FilmFailure> {
        for document in self.results(prepared, verified)? {
            let options = PutOptions { content_type: Some(document.content_type.into()), ..Default::default() };
            let place = self.target.join(&document.key).map_err(|e| self.target_failure(&e))?;
            store.put(&place, Bytes::from(document.body), options).await.map_err(|e| self.target_failure(&e))?;
        }
        Ok(())
    }

    fn results(&self, prepared: &Prepared, verified: &BTreeMap<u32, Verified>) -> Result<Vec<Document>, FilmFailure> {
        // Relative names, so that the result stays whole wherever the prefix is copied to.
        results::documents(&self.film(prepared, verified), &Links::Relative { base: "" })
            .map_err(|e| FilmFailure::new(e.code(), e.to_string(), "all domains must run the same encoder build"))
    }

    /// Objects of the result that one attempt of one part writes.
    fn names(&self, video: bool, part: u32, attempt: u32) -> Vec<String> {
        match video {
            true => self.job.renditions.iter().map(|r| video_name(r, part, attempt)).collect(),
            false => vec![audio_name(attempt)],
        }
    }

    /// Removes the orders, the raw sound, and the objects of all attempts but those that count; what is left is the result.
    /// `attempts`: how often each part was awarded. By name, so that nothing of anybody else is touched.
    pub async fn tidy(
        &self,
        store: &Store,
        prepared: &Prepared,
        attempts: &BTreeMap<u32, u32>,
        keep: &BTreeMap<u32, Verified>,
    ) -> Result<(), StoreError> {
        let mut places = Vec::new();
        for object in store.list(&self.target.join(&format!(".starling/{}/", self.id))?, LIST_MAX).await? {
            places.push(ObjectPath::new(self.target.bucket(), &object.key)?);
        }
        for (part, awards) in attempts {
            let kept = |name: &String| keep.get(part).is_some_and(|v| v.objects.iter().any(|o| o.key == *name));
            let video = (*part as usize) < prepared.plan.parts.len();
            let names = (1..=*awards).flat_map(|attempt| self.names(video, *part, attempt));
            for name in names.filter(|name| !kept(name)) {
                places.push(self.target.join(&name)?);
            }
        }
        let delete = |place: ObjectPath| async move { store.delete(&place).await };
        stream::iter(places).map(Ok).try_for_each_concurrent(DELETES_AT_ONCE, delete).await
    }

    fn film(&self, prepared: &Prepared, verified: &BTreeMap<u32, Verified>) -> results::Film {
        let parts = &prepared.plan.parts;
        let chunk = |object: &VerifiedObject| results::Chunk {
            key: object.key.clone(),
            size: object.size,
            summary: object.inspection.summary.clone(),
        };
        let renditions = self.job.renditions.iter().enumerate().map(|(i, rendition)| results::RenditionTrack {
            name: track_name(rendition),
            parts: (0..parts.len() as u32)
                .map(|n| verified.get(&n).and_then(|v| v.objects.get(i)).map(chunk))
                .collect(),
        });
        let sound = match Self::audio_part(prepared) {
            None => Sound::Silent,
            Some(n) => match verified.get(&n).and_then(|v| v.objects.first()) {
                None => Sound::Pending,
                Some(object) => Sound::Ready(sound_track(object)),
            },
        };
        results::Film {
            title: self.job.title.clone().unwrap_or_else(|| self.id.clone()),
            duration_seconds: prepared.plan.film.duration,
            longest_part_seconds: parts.iter().map(|p| p.duration_seconds).fold(0.0, f64::max),
            renditions: renditions.collect(),
            sound,
        }
    }
}

fn sound_track(object: &VerifiedObject) -> SoundTrack {
    SoundTrack {
        key: object.key.clone(),
        size: object.size,
        summary: object.inspection.summary.clone(),
        fragments: object.inspection.fragments.clone(),
    }
}

fn video_name(rendition: &job::Rendition, part: u32, attempt: u32) -> String {
    format!("{}/v{part:05}-{attempt}.mp4", track_name(rendition))
}

fn audio_name(attempt: u32) -> String {
    format!("audio/a-{attempt}.mp4")
}

fn track_name(rendition: &job::Rendition) -> String {
    format!("{}p-{}-crf{}", rendition.height, rendition.codec, rendition.crf)
}

fn encoding(rendition: &job::Rendition) -> Rendition {
    Rendition {
        height: rendition.height,
        codec: rendition.codec.to_string(),
        crf: rendition.crf,
        preset: rendition.preset.to_string(),
    }
}

#[cfg(test)]
pub(crate) mod tests;
