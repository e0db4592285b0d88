//! What Landlock stops and what it does not, inside and outside the one directory that is allowed: the file worker's jail
//! without its filter, so that Landlock alone answers. Every file may be written by everybody.

use std::ffi::CString;
use std::fmt::Write as _;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use crate::raw::{Call, call, describe};

const HERE: u64 = libc::AT_FDCWD.cast_unsigned() as u64;
const FCHMODAT2: i64 = 452;
const EMPTY: u64 = libc::AT_EMPTY_PATH as u64;

/// One line for each row: `name: inside, outside`.
pub(crate) fn try_all(folder: &Path) -> String {
    let mut rows = String::new();
    for (name, attempt) in ROWS {
        let [inside, outside] =
            ["allowed", "outside"].map(|place| describe(&attempt(&Place::new(folder, place))));
        writeln!(rows, "{name}: {inside}, {outside}").unwrap();
    }
    rows
}

type Row = (&'static str, fn(&Place) -> io::Result<usize>);

const ROWS: &[Row] = &[
    ("open for reading", |place| open(&place.path("file"), libc::O_RDONLY)),
    ("open for writing", |place| open(&place.path("file"), libc::O_WRONLY)),
    ("open to truncate", |place| open(&place.path("file"), libc::O_WRONLY | libc::O_TRUNC)),
    ("open a directory", |place| open(&place.path(""), libc::O_RDONLY | libc::O_DIRECTORY)),
    ("create", |place| open(&place.path("new"), libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL)),
    ("truncate by path", |place| make(libc::SYS_truncate, &[text(&place.path("file")), 0])),
    ("mkdir", |place| make(libc::SYS_mkdirat, &[HERE, text(&place.path("directory")), 0o700])),
    ("symlink", |place| make(libc::SYS_symlinkat, &[text(c"file"), HERE, text(&place.path("symlink"))])),
    ("make a FIFO", |place| {
        make(libc::SYS_mknodat, &[HERE, text(&place.path("fifo")), u64::from(libc::S_IFIFO) | 0o600, 0])
    }),
    ("make a device", |place| {
        make(libc::SYS_mknodat, &[HERE, text(&place.path("device")), u64::from(libc::S_IFCHR) | 0o600, 0x103])
    }),
    ("unlink", |place| make(libc::SYS_unlinkat, &[HERE, text(&place.path("doomed")), 0])),
    ("rename from the allowed directory", |place| {
        let from = place.of("allowed", &format!("moved-{}", place.name));
        make(libc::SYS_renameat2, &[HERE, text(&from), HERE, text(&place.path("moved")), 0])
    }),
    ("link into the allowed directory", |place| {
        let new = place.of("allowed", &format!("link-{}", place.name));
        make(libc::SYS_linkat, &[HERE, text(&place.path("file")), HERE, text(&new), 0])
    }),
    ("link a descriptor into the allowed directory", |place| {
        let new = place.of("allowed", &format!("link2-{}", place.name));
        let file = handle_only(&place.path("file"))?;
        make(libc::SYS_linkat, &[file, text(c""), HERE, text(&new), EMPTY])
    }),
    ("open a descriptor again", |place| {
        let file = handle_only(&place.path("file"))?;
        open(&CString::new(format!("/proc/self/fd/{file}")).unwrap(), libc::O_RDONLY)
    }),
    ("open by handle", |place| {
        let mut handle = [0_u32; 34];
        handle[0] = 128;
        let mut mount = 0_i32;
        let (handle, mount) = ((&raw mut handle) as u64, (&raw mut mount) as u64);
        make(libc::SYS_name_to_handle_at, &[HERE, text(&place.path("file")), handle, mount, 0])?;
        // Relative to the working directory's filesystem, which is the folder's.
        make(libc::SYS_open_by_handle_at, &[HERE, handle, libc::O_RDONLY as u64])
    }),
    ("execute", |place| {
        let list = [0_u64];
        let list = (&raw const list) as u64;
        make(libc::SYS_execve, &[text(&place.path("program")), list, list])
    }),
    // From here on: what Landlock does not stop, so that filter and ids have to.
    ("open a name only", |place| handle_only(&place.path("file")).map(|_| 0)),
    ("stat", |place| {
        let mut room = [0_u64; 64];
        make(libc::SYS_statx, &[HERE, text(&place.path("file")), 0, 0x7ff, (&raw mut room) as u64])
    }),
    ("chmod by path", |place| make(libc::SYS_fchmodat, &[HERE, text(&place.path("file")), 0o666])),
    ("chown by path", |place| make(libc::SYS_fchownat, &[HERE, text(&place.path("file")), 0, 0, 0])),
    ("utimes by path", |place| make(libc::SYS_utimensat, &[HERE, text(&place.path("file")), 0, 0])),
    ("setxattr by path", |place| {
        let (name, value) = (c"user.portreeve", c"x");
        let set = make(libc::SYS_setxattr, &[text(&place.path("file")), text(name), text(value), 1, 0]);
        // As far as the filesystem: it has no attributes of users.
        if set.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EOPNOTSUPP)) {
            Ok(0)
        } else {
            set
        }
    }),
    ("chown by an empty path", |place| {
        make(libc::SYS_fchownat, &[handle_only(&place.path("file"))?, text(c""), 0, 0, EMPTY])
    }),
    ("chmod by an empty path", |place| {
        make(FCHMODAT2, &[handle_only(&place.path("file"))?, text(c""), 0o666, EMPTY])
    }),
    // What an O_PATH descriptor is no good for: the descriptor forms that the file worker may use.
    ("fchmod of a name", |place| make(libc::SYS_fchmod, &[handle_only(&place.path("file"))?, 0o666])),
    ("fchown of a name", |place| make(libc::SYS_fchown, &[handle_only(&place.path("file"))?, 0, 0])),
    ("fsetxattr of a name", |place| {
        let (name, value) = (c"user.portreeve", c"x");
        make(libc::SYS_fsetxattr, &[handle_only(&place.path("file"))?, text(name), text(value), 1, 0])
    }),
    ("utimes of a name", |place| make(libc::SYS_utimensat, &[handle_only(&place.path("file"))?, 0, 0, 0])),
];

struct Place<'a> {
    folder: &'a Path,
    name: &'static str,
}

impl<'a> Place<'a> {
    fn new(folder: &'a Path, name: &'static str) -> Self {
        Self { folder, name }
    }

    fn path(&self, file: &str) -> CString {
        self.of(self.name, file)
    }

    fn of(&self, name: &str, file: &str) -> CString {
        CString::new(self.folder.join(name).join(file).as_os_str().as_bytes()).unwrap()
    }
}

fn open(path: &CString, flags: i32) -> io::Result<usize> {
    let flags = u64::from((flags | libc::O_CLOEXEC).unsigned_abs());
    make(libc::SYS_openat, &[HERE, text(path), flags, 0o600])
}

fn handle_only(path: &CString) -> io::Result<u64> {
    open(path, libc::O_PATH | libc::O_NOFOLLOW).map(|number| number as u64)
}

fn make(number: i64, given: &[u64]) -> io::Result<usize> {
    let mut arguments = [0; 6];
    for (place, argument) in arguments.iter_mut().zip(given) {
        *place = *argument;
    }
    call(Call { number: number.cast_unsigned(), arguments })
}

fn text(path: &std::ffi::CStr) -> u64 {
    path.as_ptr() as u64
}
