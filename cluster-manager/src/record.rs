//! What a home remembers of each of its jobs, as the fold of what was journaled.

use std::collections::BTreeMap;
use std::sync::Arc;

use federation::book::Times;
use federation::domain::Input;
use federation::event::End;
use federation::id::{DomainId, JobId, Millis};
use federation::job::Job;
use federation::message::{Output, Usage};
use serde::{Deserialize, Serialize};

use crate::film::{FilmFailure, FilmJob, Prepared, Verified};
use crate::timeline::{Phase, Span};
use crate::view::{ErrorDoc, JobDoc, PartDoc, ResultsDoc, UsageDoc, plain};

/// What happened to a job, besides its negotiation.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobEvent {
    Accepted {
        id: JobId,
        at: Millis,
        /// Bare JID.
        owner: String,
        /// Without credentials.
        xml: String,
        /// The job's own credentials, sealed by the vault.
        sealed: Option<String>,
    },
    Prepared {
        id: JobId,
        at: Millis,
        prepared: Box<Prepared>,
    },
    /// The sound packets of a part are in the store, as reported; another attempt's replace them: a later one's, or those of one that
    /// was given up and has delivered after all.
    Loaded {
        id: JobId,
        part: u32,
        piece: Piece,
    },
    Verified {
        id: JobId,
        at: Millis,
        part: u32,
        domain: DomainId,
        by: DomainId,
        usage: Usage,
        verified: Verified,
    },
    Published {
        id: JobId,
        at: Millis,
    },
    /// `error` is `None` when the film is right.
    Ended {
        id: JobId,
        at: Millis,
        cancelled: bool,
        error: Option<ErrorDoc>,
    },
    /// The server has taken the message that tells the owner of the end.
    Told {
        id: JobId,
    },
    /// Of a job without a result: nothing that it wrote is in its target any more.
    Released {
        id: JobId,
    },
    /// Its last state is in the archive; nothing of it is kept in memory.
    Archived {
        id: JobId,
    },
}

impl JobEvent {
    pub fn id(&self) -> &JobId {
        match self {
            Self::Accepted { id, .. }
            | Self::Prepared { id, .. }
            | Self::Loaded { id, .. }
            | Self::Verified { id, .. }
            | Self::Published { id, .. }
            | Self::Ended { id, .. }
            | Self::Told { id }
            | Self::Released { id }
            | Self::Archived { id } => id,
        }
    }
}

/// The sound packets of one part, and the domain that says what they are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Piece {
    pub domain: DomainId,
    pub object: Output,
}

/// One verified part's share of the account.
#[derive(Clone, Debug)]
pub struct Done {
    pub at: Millis,
    pub domain: DomainId,
    pub by: DomainId,
    pub usage: Usage,
}

#[derive(Clone, Debug)]
pub struct Record {
    pub film: FilmJob,
    pub owner: String,
    pub submitted: Millis,
    pub sealed: Option<String>,
    pub prepared: Option<(Millis, Arc<Prepared>)>,
    pub pieces: BTreeMap<u32, Piece>,
    pub verified: BTreeMap<u32, Verified>,
    pub done: BTreeMap<u32, Done>,
    pub published: Option<Millis>,
    pub ended: Option<(Millis, bool, Option<ErrorDoc>)>,
    pub told: bool,
    pub released: bool,
}

impl Record {
    /// The record that an `Accepted` begins. `None`: the document is of another version.
    pub fn accepted(event: &JobEvent) -> Option<Self> {
        let JobEvent::Accepted { id, at, owner, xml, sealed } = event else { return None };
        let film = FilmJob::new(&id.0, Job::parse(xml).ok()?).ok()?;
        Some(Self {
            film,
            owner: owner.clone(),
            submitted: *at,
            sealed: sealed.clone(),
            prepared: None,
            pieces: BTreeMap::new(),
            verified: BTreeMap::new(),
            done: BTreeMap::new(),
            published: None,
            ended: None,
            told: false,
            released: false,
        })
    }

    pub fn apply(&mut self, event: JobEvent) {
        match event {
            JobEvent::Accepted { .. } | JobEvent::Archived { .. } => {}
            JobEvent::Prepared { at, prepared, .. } => self.prepared = Some((at, Arc::from(prepared))),
            JobEvent::Loaded { part, piece, .. } => {
                self.pieces.insert(part, piece);
            }
            JobEvent::Verified { at, part, domain, by, usage, verified, .. } => {
                if let Some(object) = verified.sound.clone() {
                    self.pieces.insert(part, Piece { domain: domain.clone(), object });
                }
                self.verified.insert(part, verified);
                self.done.insert(part, Done { at, domain, by, usage });
            }
            JobEvent::Published { at, .. } => {
                self.published.get_or_insert(at);
            }
            JobEvent::Ended { at, cancelled, error, .. } => self.ended = Some((at, cancelled, error)),
            JobEvent::Told { .. } => self.told = true,
            JobEvent::Released { .. } => self.released = true,
        }
    }

    /// All video parts have given their sound, and each piece is to be believed: that it is the film's nothing but its domain's word
    /// vouches for, so that domain must have delivered a part of this job, or be home itself.
    pub fn sound_is_loaded(&self, home: &DomainId) -> bool {
        let is_trusted = |domain: &DomainId| domain == home || self.done.values().any(|done| done.domain == *domain);
        self.prepared.as_ref().is_some_and(|(_, p)| {
            FilmJob::audio_part(p).is_some()
                && (0..p.plan.parts.len() as u32).all(|n| self.pieces.get(&n).is_some_and(|p| is_trusted(&p.domain)))
        })
    }

    /// The objects with the sound, in film order.
    pub fn sound_objects(&self) -> BTreeMap<u32, Output> {
        self.pieces.iter().map(|(n, piece)| (*n, piece.object.clone())).collect()
    }

    /// It has ended, and its owner does not know yet. Who cancels is told in the answer.
    pub fn is_untold(&self) -> bool {
        !self.told && matches!(self.ended, Some((_, false, _)))
    }

    /// What ends its negotiation as it has ended itself.
    pub fn ending(&self) -> Option<Input> {
        let (job, (_, cancelled, error)) = (JobId(self.film.id.clone()), self.ended.clone()?);
        Some(match error {
            Some(ErrorDoc { code, message, .. }) => Input::FailJob { job, code, message },
            None if cancelled => Input::CancelJob { job, reason: "cancelled by its owner".into() },
            None => Input::Finish { job },
        })
    }

    /// It has failed or was cancelled, and what it wrote is not known to be gone.
    pub fn is_unreleased(&self) -> bool {
        !self.released && matches!(self.ended, Some((_, true, _) | (_, _, Some(_))))
    }

    /// Somebody may be writing for it: whoever does holds what was prepared.
    pub fn is_written_for(&self) -> bool {
        self.prepared.as_ref().is_some_and(|(_, prepared)| Arc::strong_count(prepared) > 1)
    }

    /// What its negotiation goes by: kind, deadline and budget.
    pub fn terms(&self) -> (String, Option<Millis>, Option<f64>) {
        let job = &self.film.job;
        let deadline = job.options.deadline_ms.map(|ms| self.submitted.plus(ms));
        (job.kind.name().to_owned(), deadline, job.options.budget)
    }

    /// Every part that the film needs, the sound included.
    pub fn is_complete(&self) -> bool {
        self.prepared.as_ref().is_some_and(|(_, p)| {
            self.verified.len() == p.plan.parts.len() + usize::from(FilmJob::audio_part(p).is_some())
        })
    }

    /// The document, but for what the negotiation knows (`parts` without state, no `offers`).
    pub fn document(&self, base_url: &str) -> JobDoc {
        let id = &self.film.id;
        let state = match (&self.ended, &self.prepared) {
            (Some((_, true, _)), _) => "cancelled",
            (Some((_, _, Some(_))), _) => "failed",
            (Some(_), _) => "done",
            (None, None) => "preparing",
            (None, Some(_)) if self.is_complete() => "finalising",
            (None, Some(_)) => "bidding",
        };
        let results = self.published.map(|_| ResultsDoc::at(base_url, id));
        let audio = self.prepared.as_ref().and_then(|(_, p)| FilmJob::audio_part(p));
        let count = self.prepared.as_ref().map_or(0, |(_, p)| p.plan.parts.len() as u32);
        let parts = (0..count).chain(audio).map(|n| PartDoc {
            n,
            kind: if Some(n) == audio { "audio" } else { "video" }.to_owned(),
            state: "open".to_owned(),
            ..PartDoc::default()
        });
        JobDoc {
            id: id.clone(),
            state: state.to_owned(),
            kind: self.film.job.kind.name().to_owned(),
            owner: self.owner.clone(),
            source: self.film.job.source.clone(),
            target: self.film.job.target.clone(),
            submitted_at: self.submitted.0,
            ended_at: self.ended.as_ref().map(|(at, ..)| at.0),
            parts: parts.collect(),
            offers: Vec::new(),
            results,
            timeline: self.timeline(),
            usage: self.usage(),
            error: self.ended.as_ref().and_then(|(.., error)| error.clone()),
        }
    }

    fn usage(&self) -> Vec<UsageDoc> {
        let mut by_domain: BTreeMap<&DomainId, UsageDoc> = BTreeMap::new();
        for done in self.done.values() {
            let entry = by_domain.entry(&done.by).or_default();
            entry.domain = done.by.to_string();
            entry.parts += 1;
            // Any number that a domain may say.
            entry.bytes_in = entry.bytes_in.saturating_add(done.usage.bytes_in);
            entry.bytes_out = entry.bytes_out.saturating_add(done.usage.bytes_out);
            entry.seconds += done.usage.cpu_ms as f64 / 1000.0;
            if let Some(loaded) = done.usage.loaded.as_ref().filter(|_| entry.loaded.is_none()) {
                entry.loaded = Some(plain(loaded, LOADED_CHARS_MAX));
            }
        }
        by_domain.into_values().collect()
    }

    /// The paper's phases that happen inside domains, each from its first to its last moment there. A part's own clock
    /// ends when its result was verified; its phases are laid out backwards from there.
    fn timeline(&self) -> Vec<Span> {
        let mut spans = Vec::new();
        for done in self.done.values() {
            let usage = &done.usage;
            let mut end_ms = done.at.since(self.submitted);
            for (phase, ms) in [
                (Phase::Publish, usage.publish_ms),
                (Phase::Process, usage.process_ms),
                (Phase::Load, usage.load_ms),
                (Phase::Download, usage.download_ms),
            ] {
                let start_ms = end_ms.saturating_sub(ms);
                spans.push(Span { phase, start_ms, end_ms, domain: Some(done.by.to_string()) });
                end_ms = start_ms;
            }
        }
        spans
    }
}

impl Record {
    /// The paper's first phases, in which the domains are asked and the work is given to them.
    pub fn negotiation(&self, times: &Times) -> Vec<Span> {
        let phase = |phase, start: Option<Millis>, end: Option<Millis>| {
            let (start_ms, end_ms) = (start?.since(self.submitted), end?.since(self.submitted));
            Some(Span { phase, start_ms, end_ms, domain: None })
        };
        let retrieve = phase(Phase::RetrieveDomainInformation, times.first_call, times.last_bid);
        let forward = phase(Phase::ForwardRequests, times.last_bid.or(times.first_call), times.last_commit);
        retrieve.into_iter().chain(forward).collect()
    }
}

/// Of what a domain says about its loading.
const LOADED_CHARS_MAX: usize = 200;

/// What the end of its negotiation means for a job.
pub fn ended(id: &JobId, at: Millis, end: &End) -> JobEvent {
    match end {
        End::Failed { code, message } => failed(id, at, &FilmFailure::at_work(code, message)),
        End::Cancelled { .. } => JobEvent::Ended { id: id.clone(), at, cancelled: true, error: None },
        End::Done => JobEvent::Ended { id: id.clone(), at, cancelled: false, error: None },
    }
}

/// How a failure is journaled and shown.
pub fn failed(id: &JobId, at: Millis, failure: &FilmFailure) -> JobEvent {
    JobEvent::Ended { id: id.clone(), at, cancelled: false, error: Some(failure.document()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::film::tests::{XML, output, prepared};

    fn record() -> Record {
        let (id, at, owner, xml) = ("j-1".into(), Millis(1), "me@a.test".to_owned(), XML.to_owned());
        Record::accepted(&JobEvent::Accepted { id, at, owner, xml, sealed: None }).unwrap()
    }

    #[test]
    fn a_verified_part_has_given_its_sound_also_when_nothing_was_said_of_it_before() {
        let (mut record, home) = (record(), "a.test".into());
        let (id, at) = (JobId::from("j-1"), Millis(2));
        record.apply(JobEvent::Prepared { id: id.clone(), at, prepared: Box::new(prepared(1)) });
        assert!(!record.sound_is_loaded(&home));
        let (domain, usage) = (DomainId::from("b.test"), Usage::default());
        let verified = Verified { objects: Vec::new(), sound: Some(output("k", b"sound")) };
        record.apply(JobEvent::Verified { id, at, part: 0, by: domain.clone(), domain, usage, verified });
        assert!(record.sound_is_loaded(&home));
        assert_eq!(record.sound_objects()[&0], output("k", b"sound"));
    }

    #[test]
    fn a_job_is_shown_whatever_its_domains_say_of_their_bytes() {
        let mut record = record();
        for part in 0..2 {
            let usage = Usage { bytes_in: u64::MAX, bytes_out: u64::MAX, ..Usage::default() };
            let (id, at, verified) = ("j-1".into(), Millis(2), Verified { objects: Vec::new(), sound: None });
            record.apply(JobEvent::Verified {
                id,
                at,
                part,
                domain: "b.test".into(),
                by: "b.test".into(),
                usage,
                verified,
            });
        }
        let shown = record.document("http://here");
        assert_eq!((shown.usage[0].bytes_in, shown.usage[0].bytes_out), (u64::MAX, u64::MAX));
    }
}
