//! The open files of all clients, by the broker's numbers. The lock of the table is never held over a system call:
//! a file on a dead server keeps its own lock, and nobody else's.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use proto::limits::OPEN_FILES;

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

/// A file that several jobs may know, of which one works on it at a time.
pub(crate) type Shared = Arc<Mutex<OpenFile>>;

/// The open files by number.
#[derive(Debug, Default)]
pub(crate) struct Table {
    files: Mutex<HashMap<u64, Shared>>,
}

impl Table {
    /// Whether one more file may be opened.
    pub(crate) fn room(&self) -> Result<(), Errno> {
        if self.lock().len() < OPEN_FILES { Ok(()) } else { Err(Errno::EMFILE) }
    }

    /// Keeps a file under `number`; closes it again if there is no room, or the number is taken.
    pub(crate) fn insert(&self, number: u64, file: OpenFile) -> Result<(), Errno> {
        // What is refused is closed at the end of this function, without the lock: that may take long.
        let file = Arc::new(Mutex::new(file));
        let mut files = self.lock();
        if files.len() >= OPEN_FILES {
            return Err(Errno::EMFILE);
        }
        match files.entry(number) {
            Entry::Vacant(place) => {
                place.insert(file);
                Ok(())
            }
            Entry::Occupied(_) => Err(Errno::EEXIST),
        }
    }

    /// The file with that number.
    pub(crate) fn find(&self, number: u64) -> Option<Shared> {
        self.lock().get(&number).cloned()
    }

    /// Forgets the number. The file is closed when the last job that knows it is done.
    pub(crate) fn remove(&self, number: u64) -> Option<Shared> {
        self.lock().remove(&number)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Shared>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Locks one file.
pub(crate) fn lock(file: &Shared) -> MutexGuard<'_, OpenFile> {
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
        assert_eq!(table.insert(7, file()), Ok(()));
        assert_eq!(table.insert(7, file()), Err(Errno::EEXIST));
        assert!(table.find(7).is_some());
        assert!(table.remove(7).is_some());
        assert!(table.find(7).is_none());
        assert!(table.remove(7).is_none());
    }

    #[test]
    fn the_table_is_full_at_its_limit() {
        let table = Table::default();
        // One descriptor is enough to fill it.
        let shared = Arc::new(Mutex::new(file()));
        table.lock().extend((0..OPEN_FILES as u64).map(|number| (number, shared.clone())));
        assert_eq!(table.room(), Err(Errno::EMFILE));
        assert_eq!(table.insert(5000, file()), Err(Errno::EMFILE));
        table.remove(3);
        assert_eq!(table.room(), Ok(()));
    }
}
