//! Starts programs of an administrator's or host's choosing, for the exec worker alone.
//!
//! std's `Command` cannot pass an environment entry without `=` and starts with a copy of all memory where it may not
//! share it. posix_spawn(3) takes argument and environment lists as they are, shares memory until the exec
//! (`CLONE_VM | CLONE_VFORK` in glibc), and returns the errno of the exec. The caller's thread waits for the exec, which a dead
//! file server can delay for ever: call it on a thread that nobody needs.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::ptr;

/// What is started.
#[derive(Debug)]
pub struct Program<'a> {
    /// Its file; never looked up anywhere. Relative to this process's working directory.
    pub file: &'a CStr,
    /// Its arguments, the one numbered 0 included.
    pub arguments: &'a [CString],
    /// Its whole environment, entry by entry as it will see it.
    pub environment: &'a [CString],
    /// What becomes its descriptors 0, 1 and 2. Their own numbers must be 3 or higher. It gets no others.
    pub descriptors: [BorrowedFd<'a>; 3],
    /// Whether it begins a session of its own, so that a signal to its group reaches it and its children and nobody else.
    pub session: bool,
}

/// A program that was started. It is the caller's to reap.
#[derive(Debug)]
pub struct Started {
    /// Its process id.
    pub pid: libc::pid_t,
    /// Readable as soon as it has ended; close-on-exec.
    pub pidfd: OwnedFd,
}

/// Starts a program with the caller's ids, capabilities, working directory, umask and limits, with no signal blocked and
/// SIGPIPE at its default; other ignored signals stay ignored. It is not tied to the caller's life: the parent-death signal is not
/// inherited, and exec makes it dumpable again (`prctl(2)`).
///
/// # Errors
/// The errno of the exec, of making the process, or of `pidfd_open(2)`; then no program exists. EINVAL if a descriptor's number is
/// below 3.
pub fn spawn(program: &Program<'_>) -> io::Result<Started> {
    let mut actions = Actions::new()?;
    for (descriptor, number) in program.descriptors.iter().zip(0..) {
        actions.duplicate(*descriptor, number)?;
    }
    actions.close_from(3)?;
    let attributes = Attributes::new(program.session)?;
    let arguments = pointers(program.arguments);
    let environment = pointers(program.environment);
    let mut pid = 0;
    // SAFETY: file is a C string; both lists end with a null pointer and point to C strings that `program` borrows; actions and
    // attributes are initialised; all live across the call, and posix_spawn(3) changes none of them. No preparation function runs
    // in the child, only glibc's own code.
    let errno = unsafe {
        libc::posix_spawn(
            &raw mut pid,
            program.file.as_ptr(),
            &raw const actions.0,
            &raw const attributes.0,
            arguments.as_ptr(),
            environment.as_ptr(),
        )
    };
    check(errno)?;
    match open_pidfd(pid) {
        Ok(pidfd) => Ok(Started { pid, pidfd }),
        Err(error) => {
            // Out of descriptors. Nobody could tell when it ends, so it does not begin.
            // SAFETY: kill and waitpid take numbers; pid is a child that nobody has reaped, so it is still ours.
            unsafe {
                libc::kill(pid, libc::SIGKILL);
                libc::waitpid(pid, ptr::null_mut(), 0);
            }
            Err(error)
        }
    }
}

fn open_pidfd(pid: libc::pid_t) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open(2) takes two numbers; it sets close-on-exec by itself.
    let number = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match libc::c_int::try_from(number) {
        // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
        Ok(number) if number >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(number) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn pointers(texts: &[CString]) -> Vec<*mut libc::c_char> {
    texts.iter().map(|text| text.as_ptr().cast_mut()).chain([ptr::null_mut()]).collect()
}

fn check(errno: libc::c_int) -> io::Result<()> {
    if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
}

/// What the child does with its descriptors before the exec.
struct Actions(libc::posix_spawn_file_actions_t);

impl Actions {
    fn new() -> io::Result<Self> {
        let mut actions = MaybeUninit::uninit();
        // SAFETY: it initialises what it is given room for.
        check(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        // SAFETY: the call above succeeded.
        Ok(Actions(unsafe { actions.assume_init() }))
    }

    fn duplicate(&mut self, from: BorrowedFd<'_>, to: libc::c_int) -> io::Result<()> {
        // A lower number could have been overwritten by an earlier action.
        if from.as_raw_fd() < 3 {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        // SAFETY: self is initialised; the numbers are looked at in the child only.
        check(unsafe { libc::posix_spawn_file_actions_adddup2(&raw mut self.0, from.as_raw_fd(), to) })
    }

    /// Before the exec, not by it: an exec that hangs must not keep another program's pipe open.
    fn close_from(&mut self, first: libc::c_int) -> io::Result<()> {
        // SAFETY: self is initialised.
        check(unsafe { libc::posix_spawn_file_actions_addclosefrom_np(&raw mut self.0, first) })
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: self is initialised and not used again.
        unsafe { libc::posix_spawn_file_actions_destroy(&raw mut self.0) };
    }
}

/// POSIX_SPAWN_SETSID, `spawn.h` of glibc since 2.26 and of musl; the libc crate has no name for it.
const SETSID: libc::c_int = 0x80;

/// What the child does with its signals.
struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    fn new(session: bool) -> io::Result<Self> {
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: it initialises what it is given room for.
        check(unsafe { libc::posix_spawnattr_init(attributes.as_mut_ptr()) })?;
        // SAFETY: the call above succeeded.
        let mut attributes = Attributes(unsafe { attributes.assume_init() });
        let mut signals = MaybeUninit::uninit();
        // SAFETY: sigemptyset initialises the set; then it is passed on, and to sigaddset with a signal that exists. The attributes
        // are initialised and copy the sets.
        unsafe {
            libc::sigemptyset(signals.as_mut_ptr());
            check(libc::posix_spawnattr_setsigmask(&raw mut attributes.0, signals.as_ptr()))?;
            libc::sigaddset(signals.as_mut_ptr(), libc::SIGPIPE);
            check(libc::posix_spawnattr_setsigdefault(&raw mut attributes.0, signals.as_ptr()))?;
        }
        let session = if session { SETSID } else { 0 };
        let flags = libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF | session;
        let flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
        // SAFETY: the attributes are initialised; both flags are ones it knows.
        check(unsafe { libc::posix_spawnattr_setflags(&raw mut attributes.0, flags) })?;
        Ok(attributes)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: self is initialised and not used again.
        unsafe { libc::posix_spawnattr_destroy(&raw mut self.0) };
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read as _;
    use std::os::fd::AsFd as _;

    use super::*;

    fn output_of(file: &CStr, arguments: &[&CStr], environment: &[&CStr]) -> (String, libc::c_int) {
        let (mut reader, writer) = std::io::pipe().expect("makes a pipe");
        let null = File::open("/dev/null").expect("opens");
        let arguments: Vec<CString> = arguments.iter().map(|text| (*text).to_owned()).collect();
        let environment: Vec<CString> = environment.iter().map(|text| (*text).to_owned()).collect();
        let started = spawn(&Program {
            file,
            arguments: &arguments,
            environment: &environment,
            descriptors: [null.as_fd(), writer.as_fd(), null.as_fd()],
            session: false,
        })
        .expect("starts");
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("reads");
        let mut status = 0;
        // SAFETY: waitpid writes one number to a live local; the child is ours.
        assert_eq!(unsafe { libc::waitpid(started.pid, &raw mut status, 0) }, started.pid);
        (text, libc::WEXITSTATUS(status))
    }

    #[test]
    fn a_program_sees_its_arguments_and_environment_as_they_are() {
        let (arguments, _) = output_of(c"/bin/cat", &[c"any name", c"/proc/self/cmdline"], &[]);
        assert_eq!(arguments, "any name\0/proc/self/cmdline\0");
        let (environment, _) =
            output_of(c"/bin/cat", &[c"cat", c"/proc/self/environ"], &[c"NOEQ", c"=x", c"A=1", c"A=2"]);
        assert_eq!(environment, "NOEQ\0=x\0A=1\0A=2\0");
    }

    #[test]
    fn a_program_gets_three_descriptors_and_no_others() {
        let _ours_without_close_on_exec =
            nix::fcntl::fcntl(io::stderr(), nix::fcntl::FcntlArg::F_DUPFD(40)).expect("duplicates");
        // By name: listing the folder would need a descriptor.
        let count = c"n=0; while [ $n -lt 64 ]; do [ -e /proc/$$/fd/$n ] && echo $n; n=$((n+1)); done";
        let (numbers, status) = output_of(c"/bin/sh", &[c"sh", c"-c", count], &[c"PATH=/bin"]);
        assert_eq!((numbers.as_str(), status), ("0\n1\n2\n", 0));
    }

    #[test]
    fn sigpipe_is_not_ignored_by_a_program() {
        // std ignores it in this process, proc(5): bit 12 of SigIgn.
        let (status, _) = output_of(c"/bin/grep", &[c"grep", c"SigIgn", c"/proc/self/status"], &[]);
        let mask = u64::from_str_radix(status.trim_start_matches("SigIgn:").trim(), 16).expect("is a mask");
        assert_eq!(mask & (1 << 12), 0, "{status}");
    }

    #[test]
    fn what_cannot_be_executed_is_an_error_and_no_process() {
        let null = File::open("/dev/null").expect("opens");
        let started = |file: &CStr| {
            spawn(&Program {
                file,
                arguments: &[],
                environment: &[],
                descriptors: [null.as_fd(); 3],
                session: false,
            })
        };
        assert_eq!(started(c"/nonexistent").expect_err("not there").raw_os_error(), Some(libc::ENOENT));
        assert_eq!(started(c"/tmp").expect_err("a directory").raw_os_error(), Some(libc::EACCES));
    }

    #[test]
    fn a_low_descriptor_is_refused() {
        let input = io::stdin();
        let program = Program {
            file: c"/bin/true",
            arguments: &[],
            environment: &[],
            descriptors: [input.as_fd(); 3],
            session: false,
        };
        assert_eq!(spawn(&program).expect_err("0 is low").raw_os_error(), Some(libc::EINVAL));
    }
}
