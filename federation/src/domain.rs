//! One domain's part in the federation, as home of its own jobs and as contractor of others', in one pure object.
//!
//! `(now, input) → outputs`, and [`Domain::deadline`] says when to come again with [`Input::Tick`]. The driver journals the
//! events of a batch, in order and before it carries out anything else of that batch; after a restart it gives them all to
//! [`Domain::replay`] and then says [`Input::Restarted`]. What a domain says to itself never leaves this object.

use std::collections::VecDeque;

use crate::agreement::Agreements;
use crate::book::Book;
use crate::broker::Broker;
use crate::cluster::Status;
use crate::contractor::Contractor;
use crate::cx::{About, Cx, Frame, Ids};
use crate::event::{Event, Mark};
use crate::id::{DomainId, JobId, LeaseId, MessageId, Millis};
use crate::message::{self, Ad, Body, Envelope, NotUnderstood, PartCall, Stale, Usage};
use crate::post::{Inbound, Post};
use crate::timers::Timers;

/// Borrows everything of a domain but its two sides.
macro_rules! cx {
    ($self:ident, $out:expr, $mail:expr) => {
        Cx {
            now: $self.now,
            config: &$self.config,
            book: &mut $self.book,
            ids: &mut $self.ids,
            out: &mut $out,
            mail: &mut $mail,
        }
    };
}

#[derive(Clone, Debug)]
pub struct DomainConfig {
    pub me: DomainId,
    /// Greater at each start than ever before: names given in an earlier life must not come again.
    pub epoch: u64,
    /// Secrets of leases are derived from it; the same for the life of the journal.
    pub seed: [u8; 32],
    pub agreements: Agreements,
    pub timers: Timers,
}

/// What can happen to a domain.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// Once, after the journal was replayed.
    Restarted,
    /// The deadline has come.
    Tick,
    /// A job that is at home here, before its parts are known: bids are called for meanwhile. `part_work_ms`: what a part of it is likely
    /// to take.
    Expect {
        job: JobId,
        kind: String,
        part_work_ms: u64,
        deadline: Option<Millis>,
        budget: Option<f64>,
    },
    /// A job that is at home here, expected or not, and all its parts.
    Submit {
        job: JobId,
        kind: String,
        parts: Vec<PartCall>,
        deadline: Option<Millis>,
        budget: Option<f64>,
    },
    AddParts {
        job: JobId,
        parts: Vec<PartCall>,
    },
    /// Everything is published.
    Finish {
        job: JobId,
    },
    FailJob {
        job: JobId,
        code: String,
        message: String,
    },
    CancelJob {
        job: JobId,
        reason: String,
    },
    /// The job [is over](Book::is_over), and the driver has kept what it needs of it. Else this does nothing.
    Forget {
        job: JobId,
    },
    /// Presence in the Federation room.
    Ad(Ad),
    AdGone(DomainId),
    /// A request of a peer whose name the transport has verified.
    Request(DomainId, Envelope),
    /// The answer to a [`Output::Send`], or that there is none.
    Answer {
        id: MessageId,
        from: DomainId,
        result: Result<Envelope, Lost>,
    },
    /// Of the own cluster: how many parts it can run at the same time, and how many more just now.
    Capacity {
        slots: u32,
        free: u32,
    },
    /// From a host manager.
    Task {
        lease: LeaseId,
        part: u32,
        attempt: u32,
        status: Status,
    },
    /// The objects of a part were looked at in the store. `Err` only if they are not what was said, in words.
    Checked {
        job: JobId,
        part: u32,
        attempt: u32,
        result: Result<(), String>,
    },
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    Timeout,
    Reset,
    Unreachable,
    NotUnderstood,
}

/// What the driver is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Journal this before anything else of the batch.
    Event(Event),
    /// IQ-set. In an `award` the driver fills in each `url` that is empty, and it answers with [`Input::Answer`].
    Send {
        to: DomainId,
        envelope: Envelope,
        timeout_ms: u64,
    },
    /// IQ-result to the request `re`.
    Reply {
        to: DomainId,
        re: MessageId,
        envelope: Envelope,
    },
    /// To a host manager of the own cluster; the same task may be said again. `url` is empty if `home` is this domain:
    /// then the driver makes it.
    Run {
        home: DomainId,
        job: JobId,
        lease: LeaseId,
        part: u32,
        attempt: u32,
        url: String,
    },
    Stop {
        lease: LeaseId,
        part: u32,
        attempt: u32,
    },
    /// Look at these objects in the store, then say [`Input::Checked`].
    Check {
        job: JobId,
        part: u32,
        attempt: u32,
        outputs: Vec<message::Output>,
    },
    /// The input of a part is loaded; its sound packets are in the store (once for each attempt that gets there).
    Loaded {
        job: JobId,
        part: u32,
        attempt: u32,
        outputs: Vec<message::Output>,
    },
    PartVerified {
        job: JobId,
        part: u32,
        attempt: u32,
        domain: DomainId,
        by: DomainId,
        outputs: Vec<message::Output>,
        usage: Usage,
    },
    /// Every part there is now is verified (said again when parts were added, and after a restart).
    AllParts {
        job: JobId,
    },
    JobFailed {
        job: JobId,
        code: String,
        message: String,
    },
    JobCancelled {
        job: JobId,
        reason: String,
    },
    JobDone {
        job: JobId,
    },
}

pub struct Domain {
    config: DomainConfig,
    book: Book,
    broker: Broker,
    contractor: Contractor,
    post: Post,
    ids: Ids,
    now: Millis,
}

impl Domain {
    pub fn new(mut config: DomainConfig) -> Self {
        // What is agreed with those that are not listed does not bind the domain itself.
        config.agreements.partner.entry(config.me.clone()).or_default();
        let ids = Ids::new(&config.me, config.epoch);
        let (broker, contractor) = (Broker::default(), Contractor::default());
        Self { config, book: Book::default(), broker, contractor, post: Post::default(), ids, now: Millis(0) }
    }

    /// Takes up one event of the journal, in order.
    pub fn replay(&mut self, event: &Event) {
        self.book.apply(event);
    }

    pub fn handle(&mut self, now: Millis, input: Input) -> Vec<Output> {
        // A clock that is set back must not make anything happen twice.
        self.now = self.now.max(now);
        let (mut out, mut mail) = (Vec::new(), VecDeque::new());
        self.take(input, &mut out, &mut mail);
        self.overdue(&mut out, &mut mail);
        loop {
            let said = out.len();
            let mut cx = cx!(self, out, mail);
            // Sold before it is started: what runs here is nobody else's to do.
            self.broker.settle_sales(&mut cx, &mut self.contractor);
            self.contractor.tick(&mut cx);
            self.broker.tick(&mut cx);
            // What one side did may be the other's turn, also without a message.
            if mail.is_empty() && out.len() == said {
                break;
            }
            self.dispatch(&mut out, &mut mail);
        }
        out.sort_by_key(|o| !matches!(o, Output::Event(_)));
        out
    }

    /// When to come again with [`Input::Tick`].
    pub fn deadline(&self) -> Option<Millis> {
        let all = [self.broker.deadline(&self.book, &self.config), self.contractor.deadline(&self.book, &self.config)];
        all.into_iter().chain([self.post.deadline()]).flatten().min()
    }

    /// What lasts.
    pub fn book(&self) -> &Book {
        &self.book
    }

    pub fn config(&self) -> &DomainConfig {
        &self.config
    }

    pub(crate) fn broker(&self) -> &Broker {
        &self.broker
    }

    pub(crate) fn contractor(&self) -> &Contractor {
        &self.contractor
    }

    pub(crate) fn now(&self) -> Millis {
        self.now
    }

    fn take(&mut self, input: Input, out: &mut Vec<Output>, mail: &mut VecDeque<crate::cx::Mail>) {
        if let Input::Request(from, envelope) = input {
            return self.request(&from, &envelope, out, mail);
        }
        let mut cx = cx!(self, *out, *mail);
        match input {
            Input::Restarted => {
                self.broker.restarted(&mut cx);
                self.contractor.restarted(&mut cx);
            }
            Input::Tick | Input::Request(..) => {}
            Input::Expect { job, kind, part_work_ms, deadline, budget } => {
                self.broker.expect(&mut cx, job, kind, part_work_ms, deadline, budget);
            }
            Input::Submit { job, kind, parts, deadline, budget } => {
                self.broker.submit(&mut cx, job, kind, parts, deadline, budget);
            }
            Input::AddParts { job, parts } => self.broker.add_parts(&mut cx, &job, parts),
            Input::Finish { job } => self.broker.finish(&mut cx, &job),
            Input::FailJob { job, code, message } => self.broker.fail(&mut cx, &job, code, message),
            Input::CancelJob { job, reason } => self.broker.cancel(&mut cx, &job, reason),
            Input::Forget { job } => self.broker.forget(&mut cx, &job),
            Input::Ad(ad) => self.broker.ad(&mut cx, ad),
            Input::AdGone(domain) => self.broker.ad_gone(&domain),
            Input::Answer { id, from, result } => {
                if let Some((about, _)) = self.post.landed(&id, &from) {
                    let answer = result.map(|e| (e.sent_at, e.body));
                    answered(&mut self.broker, &mut self.contractor, &mut cx, about, &from, answer);
                }
            }
            Input::Capacity { slots, .. } => {
                self.contractor.capacity(&cx, slots);
                self.broker.something_freed();
            }
            Input::Task { lease, part, attempt, status } => {
                self.contractor.task(&mut cx, &lease, part, attempt, status)
            }
            Input::Checked { job, part, attempt, result } => self.broker.checked(&mut cx, &job, part, attempt, result),
        }
    }

    fn overdue(&mut self, out: &mut Vec<Output>, mail: &mut VecDeque<crate::cx::Mail>) {
        for (to, about) in self.post.overdue(self.now) {
            let mut cx = cx!(self, *out, *mail);
            answered(&mut self.broker, &mut self.contractor, &mut cx, about, &to, Err(Lost::Timeout));
        }
    }

    /// Sends what is to be sent; what is for this domain is answered on the spot.
    fn dispatch(&mut self, out: &mut Vec<Output>, mail: &mut VecDeque<crate::cx::Mail>) {
        while let Some(item) = mail.pop_front() {
            let (id, to) = (self.ids.fresh::<MessageId>(), item.to.clone());
            if to != self.config.me {
                let envelope = self.post.fly(self.now, &self.config, id, item);
                out.push(Output::Send { to, envelope, timeout_ms: self.config.timers.answer_ms });
                continue;
            }
            let about = item.about;
            let envelope = self.post.envelope(&self.config, self.now, id, &item.frame, item.body);
            let body = self.serve(&to, &envelope, out, mail);
            let mut cx = cx!(self, *out, *mail);
            answered(&mut self.broker, &mut self.contractor, &mut cx, about, &to, Ok((self.now, body)));
        }
    }

    fn request(
        &mut self,
        from: &DomainId,
        envelope: &Envelope,
        out: &mut Vec<Output>,
        mail: &mut VecDeque<crate::cx::Mail>,
    ) {
        if *from == self.config.me {
            return; // nobody else is me
        }
        let (body, keep) = match self.post.inbound(&self.config, self.now, from, envelope) {
            Inbound::Repeat(answer) => {
                return out.push(Output::Reply { to: from.clone(), re: envelope.id.clone(), envelope: *answer });
            }
            Inbound::Fresh => (self.serve(from, envelope, out, mail), true),
            Inbound::Old => (Body::Stale(Stale { reason: "epoch".into() }), false),
            Inbound::Flood => {
                let mut cx = cx!(self, *out, *mail);
                self.broker.mark(&mut cx, from, Mark::Flooding);
                (Body::NotUnderstood(NotUnderstood { reason: "too many requests".into() }), false)
            }
        };
        let mut path = envelope.path.clone();
        path.push(self.config.me.clone());
        let frame = Frame { job: envelope.job.clone(), home: envelope.home.clone(), path };
        let id = self.ids.fresh();
        let answer = self.post.envelope(&self.config, self.now, id, &frame, body);
        if keep {
            self.post.store(self.now, from, &envelope.id, &answer);
        }
        out.push(Output::Reply { to: from.clone(), re: envelope.id.clone(), envelope: answer });
    }

    /// The answer to a request.
    fn serve(
        &mut self,
        from: &DomainId,
        envelope: &Envelope,
        out: &mut Vec<Output>,
        mail: &mut VecDeque<crate::cx::Mail>,
    ) -> Body {
        let mut cx = cx!(self, *out, *mail);
        let answer = self.broker.request(&mut cx, from, envelope);
        let answer = answer.or_else(|| self.contractor.request(&mut cx, from, envelope));
        answer.unwrap_or_else(|| Body::NotUnderstood(NotUnderstood { reason: "not a request".into() }))
    }
}

fn answered(
    broker: &mut Broker,
    contractor: &mut Contractor,
    cx: &mut Cx,
    about: About,
    from: &DomainId,
    answer: Result<(Millis, Body), Lost>,
) {
    match about {
        About::Nothing => {}
        About::Progress(lease) => contractor.progress_answered(cx, &lease, answer.map(|a| a.1)),
        About::Result { lease, part, attempt } => {
            contractor.result_answered(cx, &lease, part, attempt, answer.map(|a| a.1));
        }
        about => broker.answered(cx, about, from, answer),
    }
}
