//! A job that comes line by line: some clients send each line of what is pasted as a message of its own. Pure.

use std::collections::BTreeMap;

use federation::id::Millis;
use federation::job::{BYTES_MAX, find_job};
use xmpp_parsers::jid::FullJid;

/// After so long without a further line a document is not waited for: its lines come at once, or from slow fingers.
pub const GAP_MS: u64 = 3_000;

/// Documents that have begun, one for each occupant of a room, with the time of their last line.
#[derive(Debug, Default)]
pub struct Pastes(BTreeMap<FullJid, (Millis, String)>);

impl Pastes {
    /// What somebody has said with this message: it alone, or the document that is whole with it. `None`: not yet all.
    pub fn heard(&mut self, now: Millis, from: &FullJid, text: &str) -> Option<String> {
        let said = match self.0.remove(from) {
            Some((_, begun)) => format!("{begun}\n{text}"),
            None => text.to_owned(),
        };
        // An opening tag may go on in the next line. Too long a document is refused as any other.
        if find_job(&format!("{said}\n")).is_none() || said.contains("</job>") || said.len() > BYTES_MAX {
            return Some(said);
        }
        self.0.insert(from.clone(), (now, said));
        None
    }

    /// Documents that nobody goes on with, so that what is wrong can be said.
    pub fn broken_off(&mut self, now: Millis) -> BTreeMap<FullJid, String> {
        let (over, open): (BTreeMap<_, _>, _) =
            std::mem::take(&mut self.0).into_iter().partition(|(_, (at, _))| now.since(*at) > GAP_MS);
        self.0 = open;
        over.into_iter().map(|(from, (_, text))| (from, text)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: &str =
        "<job\n  xmlns=\"urn:starling:job:1\" kind=\"transcode\">\n<source>s3://films/in.mp4</source>\n</job>";

    fn jid(name: &str) -> FullJid {
        format!("{name}@a.test/x").parse().unwrap()
    }

    #[test]
    fn lines_of_one_occupant_become_one_document_and_others_may_talk_meanwhile() {
        let (mut pastes, now) = (Pastes::default(), Millis(0));
        let lines: Vec<_> = JOB.lines().collect();
        for line in &lines[..3] {
            assert_eq!(pastes.heard(now, &jid("a"), line), None);
            assert_eq!(pastes.heard(now, &jid("b"), "jobs").as_deref(), Some("jobs"));
        }
        assert_eq!(pastes.heard(now, &jid("a"), lines[3]).as_deref(), Some(JOB));
        assert_eq!(pastes.heard(now, &jid("a"), "jobs").as_deref(), Some("jobs"));
    }

    #[test]
    fn a_whole_document_and_talk_are_left_as_they_are() {
        let mut pastes = Pastes::default();
        for text in [JOB, "please <job kind='x'></job> thanks", "the <jobs> are done"] {
            assert_eq!(pastes.heard(Millis(0), &jid("a"), text).as_deref(), Some(text));
        }
        assert!(pastes.broken_off(Millis(GAP_MS + 1)).is_empty());
    }

    #[test]
    fn what_is_not_gone_on_with_is_given_up_and_what_is_too_long_is_not_collected() {
        let mut pastes = Pastes::default();
        assert_eq!(pastes.heard(Millis(0), &jid("a"), "<job>"), None);
        assert_eq!(pastes.heard(Millis(GAP_MS), &jid("a"), "<source>"), None);
        assert!(pastes.broken_off(Millis(2 * GAP_MS)).is_empty());
        assert_eq!(pastes.broken_off(Millis(2 * GAP_MS + 1))[&jid("a")], "<job>\n<source>");
        assert_eq!(pastes.heard(Millis(0), &jid("a"), "<job>"), None);
        let long = "x".repeat(BYTES_MAX);
        assert!(pastes.heard(Millis(0), &jid("a"), &long).is_some_and(|said| said.len() > BYTES_MAX));
        assert_eq!(pastes.heard(Millis(0), &jid("a"), "</job>").as_deref(), Some("</job>"));
    }
}
