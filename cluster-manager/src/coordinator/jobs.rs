//! The life of the jobs that are at home here, outside their negotiation: prepare, check, publish, tell, archive.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use federation::domain::{Input, Output};
use federation::id::JobId;
use federation::message;
use federation::xmpp::{BareJid, FullJid, IqFailure, Jid, SendError, payload};
use storage::s3::{S3Config, Secret, Store};
use tracing::{info, warn};
use xmpp_parsers::minidom::Element;

use super::orders::{ADDRESSES_AHEAD, OrderWriter};
use super::tasks::HAND_OUT;
use super::{Coordinator, Done, now, quiet};
use crate::archive::Ended;
use crate::film::{CheckError, FilmFailure, Prepared, Verified};
use crate::fit::{STANZA_TEXT_MAX, fit, text_bytes};
use crate::record::{self, JobEvent, Piece, Record};
use crate::shell;
use crate::view::{JobDoc, OfferDoc};

/// Before each try to tidy the target of a job without a result; first while guests stop, which they do after their domain has said
/// so.
const RELEASE_AFTER: [Duration; 4] =
    [Duration::from_millis(500), Duration::from_secs(5), Duration::from_secs(30), Duration::from_secs(120)];
/// Before what an ill store did not do is tried again; the store itself has been patient before.
const STORE_AGAIN: Duration = Duration::from_secs(1);
/// Between two tries to tell an owner how a job has ended.
const TELL_AGAIN: Duration = Duration::from_secs(5);
/// The claim of a target waits so long at most until no answer is awaited: where partners are near it takes the core that they need,
/// and where they are far it must not be what work waits for.
const CLAIM_AFTER: Duration = Duration::from_millis(25);

impl Coordinator {
    pub(super) fn url_ttl(&self) -> Duration {
        Duration::from_secs(self.config.job.url_ttl_seconds)
    }

    pub(super) fn store_of(&self, job: &JobId) -> Option<&Store> {
        // Never the domain's own keys for a job that brought some: its owner may not be allowed what the domain is.
        match self.records.get(job).is_some_and(|record| record.sealed.is_some()) {
            true => self.stores.get(job),
            false => self.store.as_ref(),
        }
    }

    /// Reads the index in the background.
    pub(super) async fn prepare(&mut self, id: &JobId) -> Result<()> {
        let Some(record) = self.records.get(id) else { return Ok(()) };
        let (film, sealed) = (record.film.clone(), record.sealed.clone());
        if let Some(sealed) = sealed.filter(|_| !self.stores.contains_key(id))
            && let Err(error) = self.open_own_store(id, &sealed).await
        {
            warn!(job = %id, %error, "the job's own keys cannot be used");
        }
        let store = self.store_of(id).cloned();
        let (job, done, chunk_seconds) = (id.clone(), self.done.0.clone(), self.config.job.chunk_seconds);
        let (addresses, to_sign) = (self.addresses(id), store.clone().map(|store| (film.clone(), store)));
        self.spawn_apart("prepare", async move {
            let result = match &store {
                Some(store) => film.prepare(store, chunk_seconds).await.map(Box::new),
                None => Err(FilmFailure {
                    code: "keys-unusable".into(),
                    message: "the keys of this job cannot be used".into(),
                    hint: Some("submit it again".into()),
                    retryable: false,
                }),
            };
            let _ = done.send(Done::Prepared { job, result }).await; // fails only when we are leaving
        });
        // Wanted with the bids; signing uses the time until they and the index are here.
        if let Some((film, store)) = to_sign {
            self.spawn_apart("sign", async move { addresses.sign(&film, &store, 0..ADDRESSES_AHEAD).await });
        }
        let Some(record) = self.records.get(id) else { return Ok(()) };
        let (kind, deadline, budget) = record.terms();
        let part_work_ms = record.film.part_work_ms(chunk_seconds);
        self.step(Input::Expect { job: id.clone(), kind, part_work_ms, deadline, budget })
    }

    async fn open_own_store(&mut self, id: &JobId, sealed: &str) -> Result<()> {
        let store = Store::connect(&self.own_config(sealed)?).await?;
        self.stores.insert(id.clone(), store);
        Ok(())
    }

    /// The store's configuration with the keys that a job brought.
    pub(super) fn own_config(&self, sealed: &str) -> Result<S3Config> {
        let (access_key, secret_key): (String, String) = serde_json::from_str(&self.vault.open_sealed(sealed)?)?;
        let base = self.config.s3.clone().unwrap_or_default();
        Ok(S3Config {
            access_key: Some(access_key),
            secret_key: Some(Secret::new(secret_key)),
            secret_key_file: None,
            ..base
        })
    }

    pub(super) fn prepared(&mut self, id: JobId, result: Result<Box<Prepared>, FilmFailure>) -> Result<()> {
        if self.records.get(&id).is_none_or(|r| r.ended.is_some()) {
            return Ok(()); // cancelled meanwhile
        }
        match result {
            Ok(prepared) => {
                info!(job = %id, parts = prepared.plan.parts.len(), bytes = prepared.size, "index read");
                self.journal_job(JobEvent::Prepared { id: id.clone(), at: now(), prepared })?;
                self.submit_parts(id)
            }
            Err(failure) => self.fail(&id, failure),
        }
    }

    /// Once no answer is awaited, or a moment later: the parts' orders wait for it, and nobody is held up before there are any. In a later life they see to it
    /// themselves: a store that is away then must not end a job that is at work.
    fn claim_target(&self, id: &JobId, wait: Duration) {
        let Some(OrderWriter { film, prepared, store, .. }) = self.writer(&self.me, id) else { return };
        let (job, done, asked) = (id.clone(), self.done.0.clone(), self.asked.subscribe());
        self.spawn_apart("claim", async move {
            tokio::time::sleep(wait).await;
            quiet(asked, CLAIM_AFTER).await;
            let result = film.claim(&store, &prepared).await;
            let _ = done.send(Done::Claimed { job, result }).await; // fails only when we are leaving
        });
    }

    pub(super) fn claimed(&mut self, id: JobId, result: Result<(), FilmFailure>) -> Result<()> {
        match result {
            Ok(()) => Ok(()),
            Err(failure) if failure.retryable => {
                warn!(job = %id, %failure, "the target is claimed again later");
                if self.records.get(&id).is_some_and(|record| record.ended.is_none()) {
                    self.claim_target(&id, STORE_AGAIN);
                }
                Ok(())
            }
            Err(failure) => self.fail(&id, failure),
        }
    }

    /// The job cannot go on.
    pub(super) fn fail(&mut self, id: &JobId, failure: FilmFailure) -> Result<()> {
        if self.records.get(id).is_none_or(|r| r.ended.is_some()) {
            return Ok(());
        }
        warn!(job = %id, code = failure.code, "failed");
        self.journal_job(record::failed(id, now(), &failure))?;
        self.step(Input::FailJob { job: id.clone(), code: failure.code, message: failure.message })?;
        self.tell_owner(id);
        Ok(())
    }

    fn submit_parts(&mut self, id: JobId) -> Result<()> {
        let Some(record) = self.records.get(&id) else { return Ok(()) };
        let Some((_, prepared)) = &record.prepared else { return Ok(()) };
        let (kind, deadline, budget) = record.terms();
        let (film, parts, count) = (record.film.clone(), record.film.calls(prepared), prepared.plan.parts.len() as u32);
        self.step(Input::Submit { job: id.clone(), kind, parts, deadline, budget })?;
        if let Some(store) = self.store_of(&id).cloned().filter(|_| count > ADDRESSES_AHEAD) {
            let addresses = self.addresses(&id);
            self.spawn_apart("sign", async move { addresses.sign(&film, &store, ADDRESSES_AHEAD..count).await });
        }
        self.claim_target(&id, Duration::ZERO);
        Ok(())
    }

    /// After a restart: everything that was accepted goes on.
    pub(super) async fn resume_jobs(&mut self) -> Result<()> {
        // Of ended ones, too: their results are still read with the keys they brought.
        let own: Vec<_> = self.records.iter().filter_map(|(id, r)| Some((id.clone(), r.sealed.clone()?))).collect();
        for (id, sealed) in own {
            if let Err(error) = self.open_own_store(&id, &sealed).await {
                warn!(job = %id, %error, "the job's own keys cannot be used");
            }
        }
        self.settle_ends()?;
        let open: Vec<_> = self.records.iter().filter(|(_, r)| r.ended.is_none()).map(|(id, _)| id.clone()).collect();
        for id in open {
            info!(job = %id, "taken up again");
            let Some(record) = self.records.get(&id) else { continue };
            if record.prepared.is_none() {
                self.prepare(&id).await?;
                continue;
            }
            if self.domain.book().jobs.get(&id).is_none_or(|job| job.parts.is_empty()) {
                self.submit_parts(id.clone())?;
            }
            self.call_for_sound(&id)?;
            self.publish(&id);
            self.rewrite_orders(&id);
        }
        // Archived right before the end of the last life.
        let own = self.domain.book().jobs.iter().filter(|(_, job)| job.terms.parent.is_none());
        let archived: Vec<_> = own.map(|(id, _)| id.clone()).filter(|id| !self.records.contains_key(id)).collect();
        for job in archived {
            self.step(Input::Forget { job })?;
        }
        let untold: Vec<_> = self.records.iter().filter(|(_, r)| r.is_untold()).map(|(id, _)| id.clone()).collect();
        untold.iter().for_each(|id| self.tell_owner(id));
        Ok(())
    }

    /// A job's record and its negotiation end one after the other, and the last life may have been killed in between.
    fn settle_ends(&mut self) -> Result<()> {
        let (mut events, mut inputs) = (Vec::new(), Vec::new());
        for (id, record) in &self.records {
            let Some(job) = self.domain.book().jobs.get(id) else { continue };
            match (record.ending(), &job.end) {
                (None, Some(end)) => events.push(record::ended(id, job.times.ended.unwrap_or_else(now), end)),
                (Some(input), None) => inputs.push(input),
                _ => {}
            }
        }
        events.into_iter().try_for_each(|event| self.journal_job(event))?;
        inputs.into_iter().try_for_each(|input| self.step(input))
    }

    /// What an output means for the journal of jobs; written in one batch with the domain's own events.
    pub(super) fn note(&mut self, output: &Output) -> Option<JobEvent> {
        match output {
            Output::PartVerified { job, part, attempt, domain, by, usage, .. } => {
                let verified = self.checked.remove(&(job.clone(), *part, *attempt))?;
                Some(JobEvent::Verified {
                    id: job.clone(),
                    at: now(),
                    part: *part,
                    domain: domain.clone(),
                    by: by.clone(),
                    usage: usage.clone(),
                    verified,
                })
            }
            _ => None,
        }
    }

    /// Reads the sound packets of a part back as soon as they are said to be there. Where that fails they are looked at once more with the
    /// part's result, and its domain is judged then.
    pub(super) fn check_sound(&self, job: JobId, part: u32, attempt: u32, outputs: Vec<message::Output>) {
        let has_sound = |writer: &OrderWriter| {
            writer.prepared.plan.parts.get(part as usize).is_some_and(|planned| planned.audio.is_some())
        };
        let Some(writer) = self.writer(&self.me, &job).filter(has_sound) else { return };
        let view = self.domain.job(&job).and_then(|view| view.parts.into_iter().find(|shown| shown.n == part));
        let Some(domain) = view.and_then(|shown| shown.domain) else { return };
        let done = self.done.0.clone();
        self.spawn("check sound", async move {
            match writer.film.check_sound(&writer.store, part, attempt, &outputs).await {
                Ok(object) => {
                    let piece = Piece { domain, object };
                    let _ = done.send(Done::Loaded { job, part, piece }).await; // fails only when we are leaving
                }
                Err(reason) => warn!(%job, part, attempt, %domain, %reason, "sound cannot be used yet"),
            }
        });
    }

    /// A verified part has given its sound for good.
    pub(super) fn loaded(&mut self, id: JobId, part: u32, piece: Piece) -> Result<()> {
        if self.records.get(&id).is_none_or(|r| r.ended.is_some() || r.verified.contains_key(&part)) {
            return Ok(());
        }
        self.journal_job(JobEvent::Loaded { id: id.clone(), part, piece })?;
        self.call_for_sound(&id)
    }

    /// Once all sound packets are in the store, encoding them becomes a part of its own.
    pub(super) fn call_for_sound(&mut self, id: &JobId) -> Result<()> {
        let Some(record) = self.records.get(id).filter(|r| r.sound_is_loaded(&self.me)) else { return Ok(()) };
        let Some((_, prepared)) = &record.prepared else { return Ok(()) };
        let Some(call) = record.film.audio_call(prepared, &record.sound_objects()) else { return Ok(()) };
        if self.domain.book().jobs.get(id).is_some_and(|job| job.parts.contains_key(&call.part)) {
            return Ok(());
        }
        self.step(Input::AddParts { job: id.clone(), parts: vec![call] })
    }

    pub(super) fn check(&self, job: JobId, part: u32, attempt: u32, outputs: Vec<message::Output>, wait: Duration) {
        let Some(writer) = self.writer(&self.me, &job) else { return };
        let done = self.done.0.clone();
        self.spawn("check", async move {
            tokio::time::sleep(wait).await;
            let OrderWriter { film, prepared, store, .. } = writer;
            let result = film.check(&store, &prepared, part, attempt, &outputs).await;
            let _ = done.send(Done::Checked { job, part, attempt, outputs, result }).await; // fails only when we are leaving
        });
    }

    /// A domain is judged by what was read, and not by a store that is ill.
    pub(super) fn part_checked(
        &mut self,
        job: JobId,
        part: u32,
        attempt: u32,
        outputs: Vec<message::Output>,
        result: Result<Verified, CheckError>,
    ) -> Result<()> {
        let result = match result {
            Ok(verified) => {
                self.checked.insert((job.clone(), part, attempt), verified);
                Ok(())
            }
            Err(CheckError::Wrong(reason)) => {
                warn!(%job, part, attempt, %reason, "a part's objects are not what was reported");
                Err(reason)
            }
            Err(CheckError::Unread(failure)) if failure.retryable => {
                warn!(%job, part, attempt, %failure, "a part's objects are looked at again later");
                if self.records.get(&job).is_some_and(|record| record.ended.is_none()) {
                    self.check(job, part, attempt, outputs, STORE_AGAIN);
                }
                return Ok(());
            }
            Err(CheckError::Unread(failure)) => return self.fail(&job, failure),
        };
        self.step(Input::Checked { job, part, attempt, result })
    }

    /// Writes the manifests for what there is; one writing at a time, and another after it if more came.
    pub(super) fn publish(&mut self, id: &JobId) {
        self.publish_after(id, Duration::ZERO);
    }

    fn publish_after(&mut self, id: &JobId, wait: Duration) {
        if let Some(again) = self.publishing.get_mut(id) {
            *again = true;
            return;
        }
        let Some(record) = self.records.get(id).filter(|r| r.ended.is_none() && !r.verified.is_empty()) else { return };
        let (Some((_, prepared)), Some(store)) = (record.prepared.clone(), self.store_of(id).cloned()) else { return };
        let (film, verified, complete) = (record.film.clone(), record.verified.clone(), record.is_complete());
        let (job, done, attempts) = (id.clone(), self.done.0.clone(), self.attempts(id));
        self.publishing.insert(id.clone(), false);
        self.spawn("publish", async move {
            tokio::time::sleep(wait).await;
            let mut result = film.publish(&store, &prepared, &verified).await;
            if complete
                && result.is_ok()
                && let Err(error) = film.tidy(&store, &prepared, &attempts, &verified).await
            {
                warn!(job = %job, %error, "orders, raw sound and lost attempts could not be removed");
                result = Ok(());
            }
            let _ = done.send(Done::Published { job, complete, result }).await; // fails only when we are leaving
        });
    }

    pub(super) fn published(&mut self, id: JobId, complete: bool, result: Result<(), FilmFailure>) -> Result<()> {
        let again = self.publishing.remove(&id).unwrap_or(false);
        let Some(record) = self.records.get(&id).filter(|r| r.ended.is_none()) else { return Ok(()) };
        match result {
            Ok(()) => {}
            Err(failure) if failure.retryable => {
                warn!(job = %id, %failure, "published again later");
                self.publish_after(&id, STORE_AGAIN);
                return Ok(());
            }
            Err(failure) => return self.fail(&id, failure),
        }
        if record.published.is_none() {
            info!(job = %id, "can be played from here on");
            self.journal_job(JobEvent::Published { id: id.clone(), at: now() })?;
        }
        if complete {
            info!(job = %id, "done");
            self.journal_job(JobEvent::Ended { id: id.clone(), at: now(), cancelled: false, error: None })?;
            self.step(Input::Finish { job: id.clone() })?;
            self.tell_owner(&id);
        } else if again {
            self.publish(&id);
        }
        Ok(())
    }

    /// How often each part was awarded.
    fn attempts(&self, id: &JobId) -> BTreeMap<u32, u32> {
        let job = self.domain.book().jobs.get(id);
        job.map(|job| job.parts.iter().map(|(n, part)| (*n, part.attempt)).collect()).unwrap_or_default()
    }

    /// A job that has no result leaves its target free, once its domains have been told and nobody here writes for it any more.
    pub(super) fn release_ended(&mut self) {
        let is_quiet = |id: &JobId, record: &Record| {
            record.is_unreleased()
                && !record.is_written_for()
                && !self.releasing.contains(id)
                && self.domain.book().is_over(id)
        };
        let quiet: Vec<_> = self.records.iter().filter(|(id, r)| is_quiet(id, r)).map(|(id, _)| id.clone()).collect();
        for job in quiet {
            self.release_target(job);
        }
    }

    fn release_target(&mut self, job: JobId) {
        let Some(record) = self.records.get(&job) else { return };
        let (film, verified, attempts) = (record.film.clone(), record.verified.clone(), self.attempts(&job));
        let prepared = record.prepared.as_ref().map(|(_, prepared)| prepared.clone());
        let (store, done) = (self.store_of(&job).cloned(), self.done.0.clone());
        self.releasing.insert(job.clone());
        self.spawn("release", async move {
            if let Some(store) = store {
                for wait in RELEASE_AFTER {
                    tokio::time::sleep(wait).await;
                    match film.release(&store, prepared.as_deref(), &attempts, &verified).await {
                        Ok(()) => break,
                        Err(error) => warn!(%job, %error, "the target could not be tidied"),
                    }
                }
            }
            let _ = done.send(Done::Released { job }).await; // fails only when we are leaving
        });
    }

    /// In private, because the addresses are nobody else's business; with the same id each time, until the server has taken it.
    pub(super) fn tell_owner(&self, id: &JobId) {
        let Some(mut document) = self.show().job(&id.0) else { return };
        // After a restart the full JID is not known any more; the account is.
        let to: Jid = match self.owners.get(id) {
            Some(full) => full.clone().into(),
            None => match document.owner.parse() {
                Ok(bare) => bare,
                Err(_) => return,
            },
        };
        let Ok(server) = self.me.0.parse::<BareJid>() else { return };
        let (agent, text, name) = (self.agent.clone(), shell::describe_job(&document), format!("ended-{id}"));
        fit(&mut document, STANZA_TEXT_MAX.saturating_sub(text_bytes(&text)));
        let json = payload::json_element(&serde_json::to_string(&document).unwrap_or_default());
        let (job, done) = (id.clone(), self.done.0.clone());
        self.spawn("tell owner", async move {
            // A server takes a session's stanzas in order (RFC 6120 §10.1), so any answer to a ping says that it has what was sent before.
            let is_heard = || async {
                let ping = Element::bare("ping", "urn:xmpp:ping");
                match agent.iq_get(server.clone().into(), ping, HAND_OUT).await {
                    Ok(_) | Err(IqFailure::Remote(_)) => Some(true),
                    Err(IqFailure::Closed) => None,
                    Err(_) => Some(false),
                }
            };
            loop {
                // Nothing is said while offline: it would only pile up.
                let Some(mut heard) = is_heard().await else { return };
                if heard {
                    let mut said = agent.message(&name, to.clone(), Some(&text), Some(json.clone())).await;
                    if let Err(SendError::TooLarge { .. }) = said {
                        said = agent.message(&name, to.clone(), Some(&text), None).await;
                    }
                    match said {
                        Ok(()) => heard = is_heard().await == Some(true),
                        Err(error) => warn!(%error, "the owner cannot be told"), // nor later
                    }
                }
                if heard {
                    let _ = done.send(Done::Told { job }).await; // fails only when we are leaving
                    return;
                }
                tokio::time::sleep(TELL_AGAIN).await;
            }
        });
    }

    pub(super) fn live_documents(&self) -> BTreeMap<String, JobDoc> {
        self.records.keys().filter_map(|id| Some((id.0.clone(), self.document(id)?))).collect()
    }

    /// Moves what has ended, and is over for everybody, from memory to the archive.
    pub(super) fn archive_ended(&mut self) -> Result<()> {
        let is_over = |id: &JobId, record: &Record| {
            record.ended.is_some()
                && !record.is_untold()
                && !record.is_unreleased()
                && !self.publishing.contains_key(id)
                && self.domain.book().is_over(id)
        };
        let over: Vec<_> = self.records.iter().filter(|(id, r)| is_over(id, r)).map(|(id, _)| id.clone()).collect();
        for id in over {
            let (Some(document), Some(record)) = (self.document(&id), self.records.get(&id)) else { continue };
            let ended = Ended { document, xml: record.film.job.to_xml(), sealed: record.sealed.clone() };
            self.journal.keep(&ended)?;
            self.journal_job(JobEvent::Archived { id: id.clone() })?;
            self.step(Input::Forget { job: id.clone() })?;
            self.records.remove(&id);
            self.stores.remove(&id);
            self.addresses.remove(&id);
            self.owners.remove(&id);
            self.checked.retain(|(job, ..), _| *job != id);
            info!(job = %id, "archived");
        }
        Ok(())
    }

    /// What is known of a job from both its record and its negotiation.
    pub(super) fn document(&self, id: &JobId) -> Option<JobDoc> {
        let Some(record) = self.records.get(id) else { return Some(self.archive.get(&id.0)?.document) };
        let mut document = record.document(&self.base_url);
        let Some(view) = self.domain.job(id) else { return Some(document) };
        for part in &view.parts {
            let Some(shown) = document.parts.iter_mut().find(|shown| shown.n == part.n) else { continue };
            shown.state = part.state.to_owned();
            shown.domain = part.domain.as_ref().map(ToString::to_string);
            shown.by = part.by.as_ref().map(ToString::to_string);
            shown.attempt = part.attempt;
            shown.percent = part.percent;
            shown.bytes = part.bytes;
        }
        if record.ended.is_none()
            && document.parts.iter().any(|p| !matches!(p.state.as_str(), "open" | "offered" | "awarded"))
        {
            document.state = if record.is_complete() { "finalising" } else { "running" }.to_owned();
        }
        document.offers = view
            .offers
            .iter()
            .map(|offer| OfferDoc {
                domain: offer.domain.to_string(),
                outcome: offer.refused.clone().unwrap_or_else(|| "bid".to_owned()),
                parts_max: offer.parts_max.unwrap_or(0),
                price: offer.price.unwrap_or(0.0),
                awarded: view.parts.iter().filter(|p| p.domain.as_ref() == Some(&offer.domain)).count() as u32,
            })
            .collect();
        for usage in &mut document.usage {
            let paid = view.usage.iter().find(|paid| paid.domain.0 == usage.domain);
            usage.cost = paid.map_or(0.0, |paid| paid.price);
        }
        document.timeline.splice(0..0, record.negotiation(&view.timeline));
        Some(document)
    }
}

/// Who submitted, while that session lasts.
pub(super) type Owners = BTreeMap<JobId, FullJid>;
