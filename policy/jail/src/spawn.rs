//! Starts programs of an administrator's or host's choosing, for the exec worker alone.
//!
//! std's `Command` cannot pass an environment entry without `=` and starts with a copy of all memory where it may not
//! share it. posix_spawn(3) takes argument and environment lists as they are, shares memory until the exec
//! (`CLONE_VM | CLONE_VFORK` in glibc), and returns the errno of the exec. The caller's thread waits for the exec, which a dead
//! file server can delay for ever: call it on a thread that nobody needs.
//!
//! What posix_spawn(3) cannot do is to become another user. For a program that is to run as one, the process is made by fork(2),
//! gives up its ids for good and looks whether it could take them back, before it executes anything.

use std::ffi::{CStr, CString};
use std::io::{self, Read as _};
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
    /// Who it runs as; as this process if not set.
    pub run_as: Option<RunAs>,
}

/// A user by number, without other groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunAs {
    /// Never 4294967295, which the kernel takes for "leave it as it is" (`setresuid(2)`).
    pub uid: u32,
    /// The same.
    pub gid: u32,
}

/// A program that was started. It is the caller's to reap.
#[derive(Debug)]
pub struct Started {
    /// Its process id.
    pub pid: libc::pid_t,
    /// Readable as soon as it has ended; close-on-exec.
    pub pidfd: OwnedFd,
}

/// Starts a program with the caller's ids and capabilities (or another user's ids and then none), working directory, umask and limits,
/// with no signal blocked and SIGPIPE at its default; other ignored signals stay ignored. It is not tied to the caller's life: the parent-death signal is not
/// inherited, and exec makes it dumpable again (`prctl(2)`).
///
/// # Errors
/// The errno of the exec, of making the process, or of `pidfd_open(2)`; then no program exists. EINVAL if a descriptor's number is
/// below 3, or an id is 4294967295. EPERM if this process may not become the other user, or would not be bound to stay it.
pub fn spawn(program: &Program<'_>) -> io::Result<Started> {
    let pid = match program.run_as {
        None => spawn_as_is(program)?,
        Some(user) => fork_as(program, user)?,
    };
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

fn spawn_as_is(program: &Program<'_>) -> io::Result<libc::pid_t> {
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
    Ok(pid)
}

fn fork_as(program: &Program<'_>, user: RunAs) -> io::Result<libc::pid_t> {
    // Made before the fork: the child may not allocate.
    let arguments = pointers(program.arguments);
    let environment = pointers(program.environment);
    let (mut reader, writer) = io::pipe()?;
    let mut numbers = program.descriptors.iter().map(BorrowedFd::as_raw_fd).chain([writer.as_raw_fd()]);
    // A lower number would be overwritten before it is used.
    if numbers.any(|number| number < 3) || [user.uid, user.gid].contains(&u32::MAX) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: the child runs `become_program` alone, which makes system calls and nothing else, so that it needs no lock that
    // another thread of ours may hold.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let errno = become_program(program, user, writer.as_raw_fd(), &arguments, &environment);
        let bytes = errno.to_ne_bytes();
        // SAFETY: the bytes are live and so many; _exit has no preconditions. If nobody reads there is nothing else to be done.
        unsafe {
            libc::write(writer.as_raw_fd(), bytes.as_ptr().cast(), bytes.len());
            libc::_exit(127)
        }
    }
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    drop(writer);
    // The exec closes the pipe. Whatever else ends it says why before.
    let mut bytes = [0; 4];
    match reader.read_exact(&mut bytes) {
        Err(_) => Ok(pid),
        Ok(()) => {
            // SAFETY: waitpid takes a number and no place for a status; pid is our child, which ends by itself.
            unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
            Err(io::Error::from_raw_os_error(libc::c_int::from_ne_bytes(bytes)))
        }
    }
}

/// In the child: gets ready and executes the program. Returns the errno of what failed.
fn become_program(
    program: &Program<'_>,
    user: RunAs,
    report: libc::c_int,
    arguments: &[*mut libc::c_char],
    environment: &[*mut libc::c_char],
) -> libc::c_int {
    let failed = |result: libc::c_long| result < 0;
    let mut numbers = program.descriptors.iter().zip(0..);
    // SAFETY: these calls take numbers, and pointers to what lives in this frame or in the caller's, which the fork has copied: the
    // two lists end with a null pointer and point to C strings that `program` borrows. sigemptyset initialises the set before it is
    // used. Ids are changed by the system calls themselves: the C library's functions would ask other threads to follow, and
    // there are none here. Nothing allocates, and this process has one thread.
    unsafe {
        let mut signals = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(signals.as_mut_ptr());
        let close = |first: libc::c_int, last: libc::c_uint| {
            first.unsigned_abs() <= last && failed(libc::syscall(libc::SYS_close_range, first, last, 0))
        };
        // Numbers from 3 on become 0 to 2, so none is overwritten before it is used. The pipe stays, until the exec.
        let wrong = numbers.any(|(descriptor, number)| libc::dup2(descriptor.as_raw_fd(), number) < 0)
            || close(3, report.unsigned_abs().saturating_sub(1))
            || close(report.saturating_add(1), libc::c_uint::MAX)
            || (program.session && libc::setsid() < 0)
            || failed(libc::syscall(libc::SYS_setgroups, 0, ptr::null::<libc::gid_t>()))
            || failed(libc::syscall(libc::SYS_setresgid, user.gid, user.gid, user.gid))
            || failed(libc::syscall(libc::SYS_setresuid, user.uid, user.uid, user.uid))
            || libc::signal(libc::SIGPIPE, libc::SIG_DFL) == libc::SIG_ERR
            || libc::sigprocmask(libc::SIG_SETMASK, signals.as_ptr(), ptr::null_mut()) < 0;
        if wrong {
            return *libc::__errno_location();
        }
        // Whoever can still take root's ids has kept more than ids. Asked of the kernel, whatever the calls above said.
        let back = |call, own: u32| own != 0 && !failed(libc::syscall(call, u32::MAX, 0, u32::MAX));
        if back(libc::SYS_setresuid, user.uid) || back(libc::SYS_setresgid, user.gid) {
            return libc::EPERM;
        }
        libc::execve(program.file.as_ptr(), arguments.as_ptr().cast(), environment.as_ptr().cast());
        *libc::__errno_location()
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
            run_as: None,
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
                run_as: None,
            })
        };
        assert_eq!(started(c"/nonexistent").expect_err("not there").raw_os_error(), Some(libc::ENOENT));
        assert_eq!(started(c"/tmp").expect_err("a directory").raw_os_error(), Some(libc::EACCES));
    }

    /// What a shell says as user 65534 with group 65533; none without the right to become one.
    fn as_nobody(script: &CStr, session: bool) -> Option<String> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: needs root to become another user");
            return None;
        }
        let (mut reader, writer) = std::io::pipe().expect("makes a pipe");
        let null = File::open("/dev/null").expect("opens");
        let started = spawn(&Program {
            file: c"/bin/sh",
            arguments: &[c"sh".to_owned(), c"-c".to_owned(), script.to_owned()],
            environment: &[c"PATH=/bin:/usr/bin".to_owned()],
            descriptors: [null.as_fd(), writer.as_fd(), writer.as_fd()],
            session,
            run_as: Some(RunAs { uid: 65534, gid: 65533 }),
        })
        .expect("starts");
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("reads");
        // SAFETY: waitpid takes a number and no place for a status; the child is ours.
        unsafe { libc::waitpid(started.pid, ptr::null_mut(), 0) };
        Some(text)
    }

    #[test]
    fn another_user_has_its_ids_alone_and_no_capability() {
        let script = c"grep -E '^(Uid|Gid|Groups|Cap(Prm|Eff|Amb)|SigBlk)' /proc/self/status";
        let Some(status) = as_nobody(script, false) else { return };
        let fields: Vec<Vec<&str>> = status.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(
            fields,
            [
                &["Uid:", "65534", "65534", "65534", "65534"][..],
                &["Gid:", "65533", "65533", "65533", "65533"],
                &["Groups:"],
                &["SigBlk:", "0000000000000000"],
                &["CapPrm:", "0000000000000000"],
                &["CapEff:", "0000000000000000"],
                &["CapAmb:", "0000000000000000"],
            ]
        );
    }

    #[test]
    fn another_user_gets_three_descriptors_and_keeps_the_working_directory() {
        let script =
            c"n=0; while [ $n -lt 64 ]; do [ -e /proc/$$/fd/$n ] && echo $n; n=$((n+1)); done; pwd -P";
        let Some(said) = as_nobody(script, false) else { return };
        let own = std::env::current_dir().expect("exists");
        assert_eq!(said, format!("0\n1\n2\n{}\n", own.display()));
    }

    #[test]
    fn another_user_can_have_a_session_of_its_own() {
        // proc(5), stat: pid, comm, state, ppid, pgrp, session.
        let script = c"read -r pid comm state ppid group session rest < /proc/$$/stat; echo $((pid - group)) $((pid - session))";
        let Some(said) = as_nobody(script, true) else { return };
        assert_eq!(said, "0 0\n");
        assert_ne!(as_nobody(script, false).as_deref(), Some("0 0\n"));
    }

    #[test]
    fn a_user_who_could_become_root_again_is_not_started() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: needs root to become another user");
            return;
        }
        /// Who changes ids keeps capabilities (`capabilities(7)`).
        const NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;
        let null = File::open("/dev/null").expect("opens");
        let started = || {
            let program = Program {
                file: c"/bin/true",
                arguments: &[c"true".to_owned()],
                environment: &[],
                descriptors: [null.as_fd(); 3],
                session: false,
                run_as: Some(RunAs { uid: 65534, gid: 65534 }),
            };
            let pid = spawn(&program).map_err(|error| error.raw_os_error())?.pid;
            // SAFETY: waitpid takes a number and no place for a status; the child is ours.
            Ok(unsafe { libc::waitpid(pid, ptr::null_mut(), 0) })
        };
        assert!(started().is_ok());
        // A thread has bits of its own.
        let with_rights = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                // SAFETY: prctl takes numbers here.
                assert_eq!(unsafe { libc::prctl(libc::PR_SET_SECUREBITS, NO_SETUID_FIXUP) }, 0);
                started()
            });
            thread.join().expect("does not panic")
        });
        assert_eq!(with_rights, Err(Some(libc::EPERM)));
    }

    #[test]
    fn what_another_user_may_not_execute_is_an_error_and_no_process() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: needs root to become another user");
            return;
        }
        let null = File::open("/dev/null").expect("opens");
        let errno = |file: &CStr, uid: u32| {
            let program = Program {
                file,
                arguments: &[],
                environment: &[],
                descriptors: [null.as_fd(); 3],
                session: false,
                run_as: Some(RunAs { uid, gid: 65534 }),
            };
            spawn(&program).expect_err("is not started").raw_os_error()
        };
        let path = std::env::temp_dir().join(format!("portreeve-spawn-{}", std::process::id()));
        std::fs::copy("/bin/true", &path).expect("copies");
        let for_root = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(&path, for_root).expect("it is ours");
        let name = CString::new(path.as_os_str().as_encoded_bytes()).expect("no NUL");
        assert_eq!(errno(&name, 65534), Some(libc::EACCES));
        std::fs::remove_file(&path).expect("it is ours");
        assert_eq!(errno(c"/nonexistent", 65534), Some(libc::ENOENT));
        assert_eq!(errno(c"/bin/true", u32::MAX), Some(libc::EINVAL), "it would stay root");
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
            run_as: None,
        };
        assert_eq!(spawn(&program).expect_err("0 is low").raw_os_error(), Some(libc::EINVAL));
    }
}
