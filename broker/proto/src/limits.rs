//! Numbers that bound what one process may make another hold.

use std::time::Duration;

/// Bulk data travels in pieces of this many bytes: whole pages, and a multiple of three, so that base64 of
/// consecutive pieces can be joined without a remainder.
pub const PIECE: usize = 96 * 1024;

/// Pieces that may be under way in one direction before the receiver asks for [`crate::message::FromFrontend::More`].
pub const WINDOW: u16 = 2;

/// Requests of one channel that may be at the broker at the same time.
pub const REQUESTS_IN_FLIGHT: usize = 16;

/// The encoded form of one message, without its payload piece: argument lists, directory listings.
pub const MESSAGE: usize = 16 * 1024 * 1024;

/// `guest-file-read`: the most bytes one request may ask for (qga/commands-posix.c, 48 MiB).
pub const FILE_READ: u64 = 48 * 1024 * 1024;

/// The most bytes of payload that one request may carry.
pub const PAYLOAD: u64 = 64 * 1024 * 1024;

/// Open files of all clients together.
pub const OPEN_FILES: usize = 1024;

/// Bytes of one record of the audit log, without the end of its line.
pub const RECORD: usize = 16 * 1024;

/// Threads of one file worker: as many operations may hang at a time before a second worker is started.
pub const FILE_THREADS: usize = 4;

/// Programs of `guest-exec` that are remembered, running or ended.
pub const PROGRAMS: usize = 128;

/// Captured bytes of each output stream of a program (qga: 16 MiB).
pub const CAPTURED: usize = 16 * 1024 * 1024;

/// Path names, as the kernel's PATH_MAX, without the final NUL.
pub const PATH: usize = 4095;

/// The path of what is to be made: that of a directory, a slash, and a name.
pub const FOUND_PATH: usize = PATH + 1 + 255;

/// A command on which another waits is given up once it has not moved for this long ...
pub const PATIENCE: Duration = Duration::from_millis(100);

/// ... and the other has waited for this long. The time that its worker takes to start does not count ...
pub const GRACE: Duration = Duration::from_millis(25);

/// ... up to this: what starts in a few milliseconds can take a hundred times that while the guest itself starts.
pub const STARTING: Duration = Duration::from_secs(2);
