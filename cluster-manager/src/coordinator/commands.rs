//! What clients ask for, from the Shell room or by IQ.

use anyhow::Result;
use federation::domain::Input;
use federation::id::JobId;
use federation::job::Job;
use federation::view::DomainView;
use federation::xmpp::{Element, FullJid, payload};
use serde::Serialize;
use storage::object::ObjectPath;
use storage::s3::{S3Config, Store};
use tracing::info;

use super::{Ask, Coordinator, now};
use crate::film::FilmJob;
use crate::fit::{STANZA_TEXT_MAX, fit, fit_list};
use crate::record::{JobEvent, Record};
use crate::rest::Located;
use crate::shell::{self, Command};
use crate::view::{DomainDoc, ErrorDoc, JobDoc};

/// What opens the store of a result.
enum Key {
    Open(Store),
    /// The keys that an ended job brought; its store is not kept open.
    Own(Box<S3Config>),
}

/// An answer, for people and for programs.
pub struct Answer {
    pub text: String,
    document: serde_json::Value,
    left_off: usize,
}

impl Answer {
    fn new<T: Serialize>(document: &T, text: String) -> Self {
        Self { text, document: serde_json::to_value(document).unwrap_or_default(), left_off: 0 }
    }

    /// The words are of all that is known, the document of what a stanza holds.
    fn job(mut job: JobDoc, words: impl FnOnce(&JobDoc) -> String) -> Self {
        let text = words(&job);
        fit(&mut job, STANZA_TEXT_MAX);
        Self::new(&job, text)
    }

    fn refused(error: &ErrorDoc) -> Self {
        Self::new(&serde_json::json!({ "error": error }), shell::describe_error(error))
    }

    fn jobs(all: Vec<JobDoc>) -> Self {
        let (jobs, left_off) = fit_list(all, STANZA_TEXT_MAX);
        let mut text = shell::describe_jobs(&jobs);
        if left_off > 0 {
            text += &format!("\n{}", shell::describe_left_off(left_off));
        }
        Self { left_off, ..Self::new(&jobs, text) }
    }

    /// A JSON container, which says how many jobs a list leaves off.
    pub fn payload(&self) -> Element {
        payload::json_list(&self.document.to_string(), self.left_off)
    }
}

fn error(code: &str, message: impl Into<String>, hint: &str) -> ErrorDoc {
    ErrorDoc { code: code.into(), message: message.into(), hint: Some(hint.into()), line: None }
}

impl Coordinator {
    pub(super) async fn command(&mut self, from: &FullJid, command: Command, in_room: bool) -> Result<Answer> {
        info!(%from, command = command.name(), in_room, "asked");
        Ok(match command {
            Command::Help => Answer::new(&shell::HELP, shell::HELP.to_owned()),
            Command::Jobs => Answer::jobs(self.show().all_jobs()),
            Command::Domains => {
                let shown = self.show();
                Answer::new(&shown.domains, shell::describe_domains(&shown.domains))
            }
            Command::Status(id) => match self.show().job(&id) {
                Some(job) => Answer::job(job, shell::describe_job),
                None => Answer::refused(&no_such_job(&id)),
            },
            Command::Cancel(id) => self.cancel(from, id)?,
            Command::Submit(xml) => match self.submit(from, &xml, in_room).await? {
                Ok(job) => Answer::job(job, |job| format!("{} is taken; I tell you in private how it goes", job.id)),
                Err(refusal) => Answer::refused(&refusal),
            },
        })
    }

    /// `Err` inside: refused, and nothing was journaled.
    async fn submit(&mut self, from: &FullJid, xml: &str, in_room: bool) -> Result<Result<JobDoc, ErrorDoc>> {
        let mut job = match Job::parse(xml) {
            Ok(job) => job,
            Err(refusal) => return Ok(Err(refusal.into())),
        };
        let credentials = std::mem::take(&mut job.credentials);
        if !credentials.is_empty() && in_room {
            return Ok(Err(error(
                "credentials-in-room",
                "the document bears keys, and everybody in this room has now seen them",
                "withdraw these keys, and send such a job with `starling submit`, which does not pass the room",
            )));
        }
        if credentials.is_empty() && self.store.is_none() {
            return Ok(Err(error(
                "no-store",
                "this domain holds no keys to an object store",
                "put credentials into the job, or ask the operator for a [s3] section",
            )));
        }
        let id = JobId(format!("j-{}", &uuid::Uuid::new_v4().simple().to_string()[..8]));
        let clear = job.to_xml();
        let film = match FilmJob::new(&id.0, job) {
            Ok(film) => film,
            Err(failure) => return Ok(Err(failure.document())),
        };
        // One store holds source and target, so one pair of keys opens it.
        let keys = match (credentials.source, credentials.target) {
            (Some(source), Some(target)) if source != target => {
                return Ok(Err(error(
                    "two-keys",
                    "source and target bring different keys",
                    "give both places to one pair of keys",
                )));
            }
            (source, target) => source.or(target),
        };
        let sealed = match keys {
            Some(keys) => Some(self.vault.seal(&serde_json::to_string(&(keys.access_key, keys.secret_key))?)?),
            None => None,
        };
        let owner = from.to_bare().to_string();
        let event = JobEvent::Accepted { id: id.clone(), at: now(), owner, xml: clear, sealed };
        let Some(record) = Record::accepted(&event) else {
            return Ok(Err(error("internal", "the job could not be written down", "please report this job document")));
        };
        info!(job = %id, source = %film.job.source, "job accepted");
        self.records.insert(id.clone(), record);
        self.journal_job(event)?;
        self.owners.insert(id.clone(), from.clone());
        self.prepare(&id).await?;
        // The call for bids leaves before documents are written.
        tokio::task::yield_now().await;
        Ok(self.show().job(&id.0).ok_or_else(|| no_such_job(&id.0)))
    }

    fn cancel(&mut self, from: &FullJid, id: String) -> Result<Answer> {
        let job = JobId(id.clone());
        let Some(document) = self.document(&job) else { return Ok(Answer::refused(&no_such_job(&id))) };
        if document.owner != from.to_bare().to_string() {
            let refusal = error("not-yours", format!("{id} belongs to {}", document.owner), "ask its owner");
            return Ok(Answer::refused(&refusal));
        }
        if self.records.get(&job).is_some_and(|record| record.ended.is_none()) {
            self.step(Input::CancelJob { job: job.clone(), reason: "cancelled by its owner".into() })?;
            self.journal_job(JobEvent::Ended { id: job.clone(), at: now(), cancelled: true, error: None })?;
            self.tell_owner(&job);
        }
        Ok(Answer::job(self.show().job(&id).unwrap_or_default(), shell::describe_job))
    }

    pub(super) fn on_ask(&self, ask: Ask) {
        let Ask::Locate { job, path, reply } = ask;
        let Some((object, key)) = self.result_of(&JobId(job), &path) else {
            let _ = reply.send(Located::Nowhere); // the asker has gone: nothing to do
            return;
        };
        let ttl = self.url_ttl();
        self.spawn("locate", async move {
            let store = match key {
                Key::Open(store) => store,
                Key::Own(config) => match Store::connect(&config).await {
                    Ok(store) => store,
                    Err(_) => return drop(reply.send(Located::Nowhere)),
                },
            };
            let media_type = [
                (".smil", "application/smil+xml"),
                (".m3u8", "application/vnd.apple.mpegurl"),
                (".mpd", "application/dash+xml"),
                (".xspf", "application/xspf+xml"),
            ];
            let located = match media_type.iter().find(|(ending, _)| path.ends_with(ending)) {
                // Documents are small; one that is not is not ours.
                Some((_, media_type)) => match store.get(&object, 16 << 20).await {
                    Ok(bytes) => Located::Document(bytes.to_vec(), media_type),
                    Err(_) => Located::Nowhere,
                },
                None => store.presign_get(&object, ttl).await.map_or(Located::Nowhere, Located::Elsewhere),
            };
            let _ = reply.send(located);
        });
    }

    /// Where an object of a job's result is, and what opens the store.
    fn result_of(&self, id: &JobId, path: &str) -> Option<(ObjectPath, Key)> {
        if let Some(record) = self.records.get(id) {
            return Some((record.film.result_object(path)?, Key::Open(self.store_of(id)?.clone())));
        }
        let ended = self.archive.get(&id.0)?;
        let key = match &ended.sealed {
            Some(sealed) => Key::Own(Box::new(self.own_config(sealed).ok()?)),
            None => Key::Open(self.store.clone()?),
        };
        Some((ended.film()?.result_object(path)?, key))
    }

    pub(super) fn domain_documents(&self) -> Vec<DomainDoc> {
        let mut domains: Vec<DomainDoc> = self.domain.domains().map(|view| self.domain_document(view)).collect();
        domains.sort_by(|a, b| (!a.home, &a.name).cmp(&(!b.home, &b.name)));
        domains
    }
}

impl Coordinator {
    fn domain_document(&self, view: DomainView) -> DomainDoc {
        let (slots, slots_free) = self.hosts.capacity();
        let mine = DomainDoc {
            name: view.domain.to_string(),
            health: "ok".into(),
            home: view.me,
            slots,
            slots_free,
            price: self.domain.config().agreements.price,
            version: env!("CARGO_PKG_VERSION").into(),
            marks: view.mark.iter().map(|mark| mark.name().to_owned()).collect(),
        };
        match view.ad {
            _ if view.me => mine,
            Some(ad) => DomainDoc {
                health: ad.health,
                slots: ad.slots,
                slots_free: ad.slots_free,
                price: ad.price,
                version: ad.version,
                ..mine
            },
            None => DomainDoc { health: "gone".into(), slots: 0, slots_free: 0, ..mine },
        }
    }
}

fn no_such_job(id: &str) -> ErrorDoc {
    error("no-such-job", format!("there is no job {id} here"), "`jobs` lists them")
}
