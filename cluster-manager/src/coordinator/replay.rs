//! What the journal says at start. Where most of it tells of jobs that are over it is made shorter then, or each start would
//! take longer than the one before.

use std::collections::{BTreeMap, BTreeSet};

use federation::book::Book;
use federation::domain::Domain;
use federation::id::JobId;
use tracing::{info, warn};

use super::Entry;
use crate::journal::{Journal, JournalError};
use crate::record::{JobEvent, Record};

/// A shorter journal is read within milliseconds.
const ENTRIES_MIN: usize = 1_000;

/// Folds the journal into the domain and into the records of its own jobs.
pub(super) fn take_up(journal: &mut Journal, domain: &mut Domain) -> Result<BTreeMap<JobId, Record>, JournalError> {
    let (mut records, mut archived, mut entries) = (BTreeMap::<JobId, Record>::new(), BTreeSet::new(), 0);
    for entry in journal.replay::<Entry>() {
        entries += 1;
        match entry? {
            Entry::Domain(event) => domain.replay(&event),
            Entry::Job(JobEvent::Archived { id }) => {
                records.remove(&id);
                archived.insert(id);
            }
            Entry::Job(event) => match records.get_mut(event.id()) {
                Some(record) => record.apply(event),
                None => match Record::accepted(&event) {
                    Some(record) => drop(records.insert(event.id().clone(), record)),
                    None => warn!(job = %event.id(), "a journaled job is not understood; it is left out"),
                },
            },
        }
    }
    info!(epoch = domain.config().epoch, entries, jobs = records.len(), "journal read");
    if entries >= ENTRIES_MIN {
        // One that is not understood stays: another version may understand it.
        let is_over = |id: &JobId| archived.contains(id) && !records.contains_key(id);
        shorten(journal, domain.book(), entries, is_over)?;
    }
    Ok(records)
}

/// Takes out what tells of nothing but jobs that are over, if that is most of the journal.
fn shorten(
    journal: &mut Journal,
    book: &Book,
    entries: usize,
    is_over: impl Fn(&JobId) -> bool,
) -> Result<(), JournalError> {
    let is_needed = |entry: &Entry| match entry {
        Entry::Domain(event) => book.needs(event),
        Entry::Job(event) => !is_over(event.id()),
    };
    let standings = book.standings();
    let (mut folded, mut left) = (Book::default(), standings.len());
    for entry in journal.replay::<Entry>() {
        let entry = entry?;
        if is_needed(&entry) {
            left += 1;
            if let Entry::Domain(event) = &entry {
                folded.apply(event);
            }
        }
    }
    if left * 2 > entries {
        return Ok(());
    }
    standings.iter().for_each(|event| folded.apply(event));
    if folded != *book {
        warn!("the journal would say something else if it were shorter; it stays as it is");
        return Ok(());
    }
    info!(entries, left, "journal shortened");
    journal.shorten(is_needed, &standings.into_iter().map(Entry::Domain).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::path::Path;

    use federation::agreement::Agreements;
    use federation::cluster::Status;
    use federation::domain::{DomainConfig, Input, Output};
    use federation::id::Millis;
    use federation::message::{self, PartCall, Usage};
    use federation::timers::Timers;

    use super::*;
    use crate::archive::Ended;
    use crate::view::JobDoc;

    const XML: &str = "<job xmlns='urn:starling:job:1' kind='transcode'><source>s3://films/in</source>\
                       <target>s3://films/out/</target><rendition height='90' codec='h264'/></job>";

    fn domain() -> Domain {
        let (agreements, timers) = (Agreements::default(), Timers::default());
        Domain::new(DomainConfig { me: "a.test".into(), epoch: 1, seed: [7; 32], agreements, timers })
    }

    /// A home whose own cluster does every part at once.
    struct Home {
        domain: Domain,
        journal: Journal,
        now: Millis,
    }

    impl Home {
        fn write(&mut self, entry: Entry) {
            self.journal.append(&[entry]).unwrap();
        }

        fn accept(&mut self, id: &JobId, xml: &str) {
            let (at, owner, xml) = (self.now, "me@a.test".to_owned(), xml.to_owned());
            self.write(Entry::Job(JobEvent::Accepted { id: id.clone(), at, owner, xml, sealed: None }));
        }

        fn submit(&mut self, id: &JobId) {
            self.accept(id, XML);
            let parts = (0..6).map(|part| PartCall { part, bytes: 1, work_ms: 1 }).collect();
            let (job, kind) = (id.clone(), "transcode".to_owned());
            self.input(Input::Submit { job, kind, parts, deadline: None, budget: None });
        }

        fn input(&mut self, first: Input) {
            let mut inputs = VecDeque::from([first]);
            while let Some(input) = inputs.pop_front() {
                for output in self.domain.handle(self.now, input) {
                    match output {
                        Output::Event(event) => self.write(Entry::Domain(event)),
                        Output::Run { lease, part, attempt, .. } => {
                            let output =
                                message::Output { key: "k".into(), size: 1, sha256: "0".into(), fragments: None };
                            let (state, outputs, usage) = ("done".into(), vec![output], Some(Usage::default()));
                            let (task, percent) = (String::new(), 100.0);
                            let status = Status { task, state, bytes: 1, percent, outputs, usage, failure: None };
                            inputs.push_back(Input::Task { lease, part, attempt, status });
                        }
                        Output::Check { job, part, attempt, .. } => {
                            inputs.push_back(Input::Checked { job, part, attempt, result: Ok(()) });
                        }
                        Output::AllParts { job } => inputs.push_back(Input::Finish { job }),
                        _ => {}
                    }
                }
            }
        }

        /// Done, kept and forgotten.
        fn archive(&mut self, id: &JobId) {
            while !self.domain.book().is_over(id) {
                self.now = self.domain.deadline().unwrap();
                self.input(Input::Tick);
            }
            self.write(Entry::Job(JobEvent::Ended { id: id.clone(), at: self.now, cancelled: false, error: None }));
            let document = JobDoc { id: id.0.clone(), state: "done".into(), ..JobDoc::default() };
            self.journal.keep(&Ended { document, xml: XML.into(), sealed: None }).unwrap();
            self.write(Entry::Job(JobEvent::Archived { id: id.clone() }));
            self.input(Input::Forget { job: id.clone() });
        }
    }

    fn taken_up(dir: &Path) -> (Book, Vec<JobId>, usize, usize) {
        let (mut journal, mut domain) = (Journal::open(dir).unwrap(), domain());
        let records = take_up(&mut journal, &mut domain).unwrap();
        let (entries, archived) = (journal.replay::<Entry>().count(), journal.archive("").documents().count());
        (domain.book().clone(), records.into_keys().collect(), entries, archived)
    }

    #[test]
    fn a_journal_of_many_jobs_that_are_over_is_shorter_after_a_start_and_says_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let mut home = Home { domain: domain(), journal: Journal::open(dir.path()).unwrap(), now: Millis(1) };
        home.input(Input::Capacity { slots: 2, free: 2 });
        let name = |n: u32| JobId(format!("j-{n}"));
        // One that another version may understand, and one that goes on.
        home.accept(&name(100), "<job from='the future'/>");
        for n in 0..30 {
            home.submit(&name(n));
            if n == 7 {
                home.submit(&name(200));
            }
            home.archive(&name(n));
        }
        let book = home.domain.book().clone();
        let whole = home.journal.len() as usize;
        assert!(whole > ENTRIES_MIN && book.jobs.len() == 1 && !book.marks.is_empty(), "{whole} entries, {book:?}");
        drop(home);
        let (first, second) = (taken_up(dir.path()), taken_up(dir.path()));
        let (_, _, entries, _) = first;
        assert!(entries < whole / 10, "{entries} of {whole} entries are left");
        assert_eq!(first, (book, vec![name(200)], entries, 30));
        assert_eq!(second, first);
        let mut journal = Journal::open(dir.path()).unwrap();
        journal.append(&[Entry::Job(JobEvent::Told { id: name(200) })]).unwrap();
        journal.settle().unwrap();
        let kept: Vec<_> = journal.replay::<Entry>().map(Result::unwrap).collect();
        assert_eq!(kept.len(), entries + 1);
        let of_the_future = |entry: &&Entry| matches!(entry, Entry::Job(event) if *event.id() == name(100));
        assert_eq!(kept.iter().filter(of_the_future).count(), 1);
    }
}
