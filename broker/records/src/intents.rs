//! Which changes began and were never recorded as ended.

use std::collections::{BTreeMap, HashMap};

use crate::{Hash, Place};

/// Intents that are remembered at once; an agent has far fewer that run at the same time.
const MOST: usize = 4096;

/// A change that began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenIntent {
    /// Where its record stands.
    pub place: Place,
    /// Of its record.
    pub sequence: u64,
    /// What was asked, as somebody wrote it; at most 64 characters.
    pub command: String,
}

/// Intents without an outcome so far.
#[derive(Default)]
pub(crate) struct Intents {
    /// Of the run that the log is in.
    running: BTreeMap<u64, OpenIntent>,
    /// Of runs that ended, by the hash of the run's last record.
    left: HashMap<(Hash, u64), OpenIntent>,
    /// So many did not fit.
    pub(crate) forgotten: u64,
}

impl Intents {
    pub(crate) fn begin(&mut self, intent: OpenIntent) {
        if self.running.len() + self.left.len() < MOST {
            self.running.insert(intent.sequence, intent);
        } else {
            self.forgotten = self.forgotten.saturating_add(1);
        }
    }

    pub(crate) fn end(&mut self, sequence: u64) {
        self.running.remove(&sequence);
    }

    /// Another run begins; the last record of the one before has this hash.
    pub(crate) fn next_run(&mut self, last: Hash) {
        let ended = std::mem::take(&mut self.running);
        self.left.extend(ended.into_iter().map(|(sequence, intent)| ((last, sequence), intent)));
    }

    /// A later run closed it.
    pub(crate) fn close(&mut self, last: Hash, sequence: u64) {
        self.left.remove(&(last, sequence));
    }

    /// Those of runs that ended, and those of the run that the log ends in, each in the log's order.
    pub(crate) fn finish(self) -> (Vec<OpenIntent>, Vec<OpenIntent>) {
        let mut left: Vec<OpenIntent> = self.left.into_values().collect();
        left.sort_by_key(|intent| intent.place);
        (left, self.running.into_values().collect())
    }
}
