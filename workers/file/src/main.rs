//! The file worker: opens, reads, writes and describes files for both dialects, with the rights that the policy leaves it.
//!
//! Trusts its sealed policy. Does not trust the broker (every job is decided again, by [`runtime`]), the host (paths, modes, numbers
//! are its choice), or the guest's users, who may change any tree while it is walked: a path is resolved once, by the kernel,
//! and what follows is done to the descriptor (`paths`). It never runs anything, never follows a magic link of procfs, and never
//! changes owner or mode by path.
//!
//! # How the broker uses it
//!
//! - `detail.handle` is the number of an open file, chosen by the broker and unique over both dialects; the numbers in
//!   requests only appear in error texts. Jobs on one handle come one at a time, those on different handles run
//!   side by side on four threads. A file that is stuck in the kernel holds up one thread, and no lock that others need.
//! - Open (both dialects): answers `detail.handle`, and one byte of output: 1 if the file is plain storage, so that reading it ahead has
//!   no effect and gives the same bytes, else 0. An open whose client has gone is followed by `Forget`.
//! - Read: one piece. `detail.count` bytes, at most [`PIECE`](proto::limits::PIECE), into the output. With `detail.offset` there and
//!   without moving the position, else at the position, which is then behind what the client knows.
//! - Write (both dialects): one job for each piece; `detail.offset` is where the piece begins in the request's payload, none
//!   for 0. With `detail.position` the file is moved there first. A failed piece is the last one.
//! - Seek: to where the client means; what is relative to a position that only the broker knows comes as absolute.
//! - Phoenix: the number is gone after a read that answers `eof: true`, and after a write job with `eof` that was the last piece or
//!   that failed. If an earlier piece fails, `eof` or not, the file stays until it is closed or forgotten.
#![forbid(unsafe_code)]

mod asked;
mod attributes;
mod modes;
mod paths;
mod phoenix;
mod plain;
mod qga;
mod stream;
mod table;

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::sync::Arc;

use authorize::{may_ever, roots};
use jail::{FileRights, Role, Root};
use nix::errno::Errno;
use nix::sys::stat::{Mode, umask};
use proto::file::{Reply, Request};
use proto::{Failed, Group};
use runtime::{Birth, NotDone, give_up};

use crate::asked::Asked;
use crate::paths::{PathError, Paths};
use crate::plain::Waiting;
use crate::table::{OpenFile, Table};

/// Threads that take jobs.
const THREADS: usize = 4;
/// Of these, how many may wait for the other end of a FIFO. The rest is for work that does not depend on strangers.
const WAITING: usize = THREADS - 1;

/// What all threads share.
#[derive(Debug)]
struct Files {
    paths: Paths,
    table: Table,
    waiting: Waiting,
}

fn main() {
    let mut birth = Birth::of(Role::File);
    let rights = FileRights {
        read: may_ever(birth.policy(), Group::FileRead),
        write: may_ever(birth.policy(), Group::FileWrite),
    };
    birth.ground.files = rights;
    let roots = roots(birth.policy());
    let places = roots.iter().map(|root| root.path.clone()).collect();
    let root = |root: authorize::Root| Root {
        path: OsString::from_vec(root.path).into(),
        read: root.read,
        write: root.write,
        may_be_made: root.may_be_made,
    };
    birth.ground.roots = roots.into_iter().map(root).collect();
    // Permissions are worked out here, the same whoever starts the agent.
    umask(Mode::empty());
    let own = match birth.ground.uid_base {
        0 => None,
        base => Role::File.uid(base, birth.ground.instance),
    };
    let paths = Paths::new(own, places).unwrap_or_else(|errno| {
        give_up(Role::File, &format_args!("cannot open /proc/self/fd: {errno}; is /proc mounted?"))
    });
    let files = Arc::new(Files { paths, table: Table::default(), waiting: Waiting::new(WAITING) });
    let table = files.clone();
    birth.serve_on_threads(
        THREADS,
        move |handle| drop(table.table.remove(handle)),
        move |request: Request, call| {
            let request = proto::Request::from(request);
            let asked = Asked::new(call, &request, &files.table);
            match &request {
                proto::Request::File(of_file) => {
                    files.work(of_file, &asked).inspect_err(|not_done| asked.ended(not_done, &files.paths))
                }
                _ => Err(Failed::new("not about files").into()),
            }
        },
    )
}

impl Files {
    fn work(&self, request: &Request, asked: &Asked<'_>) -> Result<Reply, NotDone> {
        Ok(match request {
            Request::Open(open) => Reply::Open(qga::open(self, open, asked)?),
            Request::Close(close) => Reply::Close(qga::close(self, close, asked)?),
            Request::Read(read) => Reply::Read(qga::read(self, read, asked)?),
            Request::Write(write) => Reply::Write(qga::write(self, write, asked)?),
            Request::Seek(seek) => Reply::Seek(qga::seek(self, seek, asked)?),
            Request::Flush(flush) => Reply::Flush(qga::flush(self, flush, asked)?),
            Request::PhoenixOpen(open) => Reply::PhoenixOpen(phoenix::open(self, open, asked)?),
            Request::PhoenixClose(_) => Reply::PhoenixClose(phoenix::close(self, asked)),
            Request::PhoenixRead(_) => Reply::PhoenixRead(phoenix::read(self, asked)?),
            Request::PhoenixWrite(write) => Reply::PhoenixWrite(phoenix::write(self, write, asked)?),
            Request::Md5Sum(of) => Reply::Md5Sum(phoenix::md5_sum(self, of, asked)?),
            Request::Chown(chown) => Reply::Chown(attributes::chown(self, chown, asked)?),
            Request::Chmod(chmod) => Reply::Chmod(attributes::chmod(self, chmod, asked)?),
            Request::Stat(of) => Reply::Stat(Box::new(phoenix::stat(self, of, asked)?)),
            Request::CreateDirectory(create) => {
                Reply::CreateDirectory(attributes::create_directory(self, create, asked)?)
            }
            Request::ListDirectory(list) => Reply::ListDirectory(phoenix::list(self, list, asked)?),
        })
    }

    /// Puts a file that was opened into the table and answers for it.
    fn keep(&self, asked: &Asked<'_>, file: OpenFile, read_ahead: bool) -> Result<i64, Errno> {
        let (number, grant) = (asked.call.detail.handle, asked.grant());
        let read_ahead = read_ahead && grant.may_be_read_ahead();
        self.table.insert(number, file, grant)?;
        asked.call.output.borrow_mut().push(read_ahead.into());
        Ok(i64::try_from(number).unwrap_or(i64::MAX))
    }

    /// Whether one more file may be open.
    fn room(&self, asked: &Asked<'_>) -> Result<(), PathError> {
        self.table.room()?;
        // Where it is decided about a path, that says which rule's files count.
        if asked.is_about_paths() { Ok(()) } else { asked.room() }
    }

    /// Refuses set-gid where the kernel would drop it without a word (`chmod(2)`: the group is not ours, and CAP_FSETID is not held).
    fn may_set_group_id(&self, permissions: Mode) -> Result<(), Errno> {
        if self.paths.acts_for_root() && permissions.contains(Mode::S_ISGID) {
            Err(Errno::EPERM)
        } else {
            Ok(())
        }
    }
}
