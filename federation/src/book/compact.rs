//! Which events a book still says something of, so that a journal need not grow with every job there ever was.

use super::Book;
use crate::event::Event;
use crate::id::{JobId, LeaseId};

impl Book {
    /// Whether this book, being the fold of all events, would be another without this one. What is held against domains, and for
    /// them, outlives the jobs it was learnt from: [`Book::standings`] says that in the place of its events.
    pub fn needs(&self, event: &Event) -> bool {
        let job = |job: &JobId| self.jobs.contains_key(job);
        let granted = |lease: &LeaseId| self.leases.contains_key(lease);
        // A job in which parts were sold on tells of what came back unsold, too.
        let taken = |lease: &LeaseId| {
            self.taken.contains_key(lease) || self.jobs.values().any(|job| job.terms.parent.as_ref() == Some(lease))
        };
        match event {
            Event::Submitted { job: id, .. }
            | Event::PartsAdded { job: id, .. }
            | Event::Called { job: id, .. }
            | Event::Offered { job: id, .. }
            | Event::Awarded { job: id, .. }
            | Event::Fetching { job: id, .. }
            | Event::Loaded { job: id, .. }
            | Event::Verified { job: id, .. }
            | Event::Closed { job: id, .. }
            | Event::Forgotten { job: id, .. } => job(id),
            Event::Withdrawn { lease, .. }
            | Event::Committed { lease, .. }
            | Event::Confirmed { lease, .. }
            | Event::Uploaded { lease, .. }
            | Event::Adopted { lease, .. }
            | Event::Failed { lease, .. }
            | Event::Returned { lease, .. }
            | Event::Lost { lease, .. }
            | Event::Late { lease, .. }
            | Event::Ended { lease, .. } => granted(lease),
            Event::Taken { lease, .. }
            | Event::Started { lease, .. }
            | Event::Kept { lease, .. }
            | Event::Settled { lease, .. }
            | Event::Dropped { lease, .. }
            | Event::Unsold { lease, .. }
            | Event::LeaseClosed { lease, .. } => taken(lease),
            Event::Marked { .. } | Event::Standing { .. } => false,
        }
    }

    /// What comes after the needed events so that all of them together give this book again.
    pub fn standings(&self) -> Vec<Event> {
        let standing = self.marks.iter();
        standing.map(|(domain, record)| Event::Standing { domain: domain.clone(), record: record.clone() }).collect()
    }
}
