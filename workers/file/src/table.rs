//! The open files of all clients, by the broker's numbers. The lock of the table is never held over a system call:
//! a file on a dead server keeps its own lock, and nobody else's.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use authorize::Exceeded;
use nix::errno::Errno;
use proto::limits::OPEN_FILES;
use runtime::Terms;

use crate::asked::Grant;
use crate::plain::Plain;
use crate::stream::Stream;

/// One open file. The dialects' handles have nothing in common.
#[derive(Debug)]
pub(crate) enum OpenFile {
    /// QEMU's.
    Stream(Stream),
    /// Phoenix's.
    Plain(Plain),
}

/// An open file, and how it may be used.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) file: OpenFile,
    pub(crate) grant: Grant,
}

/// A file that several jobs may know, of which one works on it at a time.
pub(crate) type Shared = Arc<Mutex<Kept>>;

/// Each with the terms of the rule by which it was opened.
type ByNumber = HashMap<u64, (Shared, Option<Arc<Terms>>)>;

/// The open files by number.
#[derive(Debug, Default)]
pub(crate) struct Table {
    files: Mutex<ByNumber>,
}

impl Table {
    /// Whether one more file may be opened.
    pub(crate) fn room(&self) -> Result<(), Errno> {
        if self.lock().len() < OPEN_FILES { Ok(()) } else { Err(Errno::EMFILE) }
    }

    /// Whether one more file may be opened by the rule with these terms. The broker counts those of all workers.
    pub(crate) fn room_by(&self, terms: &Arc<Terms>) -> Result<(), Exceeded> {
        if terms.open_files.is_none() {
            return Ok(());
        }
        // A rule's terms are one value in the policy, which all of its files share.
        let of_rule = |(_, of_file): &&(Shared, Option<Arc<Terms>>)| {
            of_file.as_ref().is_some_and(|of_file| Arc::ptr_eq(of_file, terms))
        };
        terms.room(self.lock().values().filter(of_rule).count())
    }

    /// Keeps a file under `number`; closes it again if there is no room, or the number is taken.
    pub(crate) fn insert(&self, number: u64, file: OpenFile, grant: Grant) -> Result<(), Errno> {
        let terms = grant.terms.clone();
        // What is refused is closed at the end of this function, without the lock: that may take long.
        let file = Arc::new(Mutex::new(Kept { file, grant }));
        let mut files = self.lock();
        if files.len() >= OPEN_FILES {
            return Err(Errno::EMFILE);
        }
        match files.entry(number) {
            Entry::Vacant(place) => {
                place.insert((file, terms));
                Ok(())
            }
            Entry::Occupied(_) => Err(Errno::EEXIST),
        }
    }

    /// The file with that number.
    pub(crate) fn find(&self, number: u64) -> Option<Shared> {
        self.lock().get(&number).map(|(file, _)| file.clone())
    }

    /// Forgets the number. The file is closed when the last job that knows it is done.
    pub(crate) fn remove(&self, number: u64) -> Option<Shared> {
        self.lock().remove(&number).map(|(file, _)| file)
    }

    fn lock(&self) -> MutexGuard<'_, ByNumber> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Locks one file.
pub(crate) fn lock(file: &Shared) -> MutexGuard<'_, Kept> {
    file.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::Kind;
    use proto::Text;

    fn file() -> OpenFile {
        let null = std::fs::File::open("/dev/null").unwrap();
        OpenFile::Plain(Plain::new(null.into(), Kind::Other, Text::from("/dev/null")))
    }

    #[test]
    fn a_number_is_given_once_and_forgotten_when_removed() {
        let table = Table::default();
        assert_eq!(table.insert(7, file(), Grant::default()), Ok(()));
        assert_eq!(table.insert(7, file(), Grant::default()), Err(Errno::EEXIST));
        assert!(table.find(7).is_some());
        assert!(table.remove(7).is_some());
        assert!(table.find(7).is_none());
        assert!(table.remove(7).is_none());
    }

    #[test]
    fn files_are_counted_by_the_rule_that_let_them_be_opened() {
        let table = Table::default();
        let rule = || Arc::new(Terms { open_files: Some(1), ..Terms::default() });
        let (one, other) = (rule(), rule());
        let grant = Grant { terms: Some(one.clone()), ..Grant::default() };
        assert_eq!(table.room_by(&one), Ok(()));
        table.insert(1, file(), grant).unwrap();
        assert_eq!(table.room_by(&one), Err(Exceeded::OpenFiles(1)));
        assert_eq!(table.room_by(&other), Ok(()));
        table.remove(1);
        assert_eq!(table.room_by(&one), Ok(()));
    }

    #[test]
    fn the_table_is_full_at_its_limit() {
        let table = Table::default();
        // One descriptor is enough to fill it.
        let shared = Arc::new(Mutex::new(Kept { file: file(), grant: Grant::default() }));
        table.lock().extend((0..OPEN_FILES as u64).map(|number| (number, (shared.clone(), None))));
        assert_eq!(table.room(), Err(Errno::EMFILE));
        assert_eq!(table.insert(5000, file(), Grant::default()), Err(Errno::EMFILE));
        table.remove(3);
        assert_eq!(table.room(), Ok(()));
    }
}
