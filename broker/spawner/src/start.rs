//! Stage A: from the spawner to a fresh program with exactly the descriptors it should have.
//!
//! Runs in the spawner, which has one thread. Until its exec the child shares the spawner's memory, on a stack of its own: copying page
//! tables that are thrown away a moment later is most of what fork(2) costs. So it makes system calls only: no allocation, no
//! lock. It drops its rights by itself after exec (`jail::enter`), so that an SELinux or AppArmor transition is possible at
//! the exec, and a layout of its own keeps one leaked address from telling anything about another process.
//!
//! ```text
//! A1 session, parent-death signal, signals   A3 everything else closed
//! A2 descriptors to their numbers            A4 empty network (done first: its descriptor goes in A3)
//!                                            A5 exec by descriptor, empty environment
//! ```

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::ptr;

use jail::Role;

/// Descriptors a role can be born with: 0 to 9 (`docs/design.md`).
pub(crate) const BORN_WITH: usize = 10;

/// Where the program and the pipe for a failed exec wait meanwhile; both close at exec.
const PROGRAM: RawFd = 10;
const FAILURE: RawFd = 11;

// Right behind them lies what the child takes to its empty root: `close_range` spares it, and nothing else.
const _: () = assert!(jail::empty::BORN_WITH[0] == FAILURE + 1 && jail::empty::BORN_WITH[2] == FAILURE + 3);

/// Above every number that is being filled, so that nothing is overwritten before it was moved.
const ABOVE: RawFd = 50;

/// Stack of a child until its exec, in bytes: three small functions and libc's wrappers of system calls.
const STACK: usize = 32 * 1024;

/// How long an exec may take. From a dead network filesystem it takes for ever.
const EXEC_TIMEOUT_MS: libc::c_int = 5000;

/// A role's program, opened at the start: replacing the file later changes nothing, and no path is looked up again.
#[derive(Debug)]
pub(crate) struct Program {
    file: OwnedFd,
    name: CString,
}

impl Program {
    /// Opens the program of `role` in `directory`.
    ///
    /// It must be a regular file of root or of `owner`, who owns the spawner's own program and so is trusted already, and not
    /// writable by everybody.
    pub(crate) fn open(directory: &OwnedFd, role: Role, owner: u32) -> io::Result<Self> {
        let name = CString::new(role.executable())?;
        let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        // SAFETY: name is a C string that lives across the call; without O_CREAT there is no fourth argument.
        let number = unsafe { libc::openat(directory.as_raw_fd(), name.as_ptr(), flags) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made it for us.
        let file = unsafe { OwnedFd::from_raw_fd(number) };
        let mut status = std::mem::MaybeUninit::<libc::stat>::uninit();
        // SAFETY: fstat fills the stat it is given, or fails.
        if unsafe { libc::fstat(number, status.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: fstat has succeeded.
        let status = unsafe { status.assume_init() };
        if status.st_mode & libc::S_IFMT != libc::S_IFREG {
            return Err(io::Error::other("not a regular file"));
        }
        if status.st_mode & libc::S_IWOTH != 0 || (status.st_uid != 0 && status.st_uid != owner) {
            return Err(io::Error::other("somebody else could change it"));
        }
        Ok(Self { file, name })
    }

    /// The program behind a descriptor (O_PATH) that the plan brought, to be called `name`.
    pub(crate) fn of(file: OwnedFd, name: &CStr) -> Self {
        Self { file, name: name.to_owned() }
    }

    /// For somebody else to execute.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// What a child is born with.
pub(crate) struct Birth<'a> {
    pub(crate) program: &'a Program,
    pub(crate) uid_base: u32,
    pub(crate) instance: u16,
    /// By number. None: closed.
    pub(crate) descriptors: [Option<BorrowedFd<'a>>; BORN_WITH],
    /// The empty network to join.
    pub(crate) network: Option<BorrowedFd<'a>>,
    /// The namespaces of the empty root, which the child enters itself when it has its files.
    pub(crate) root: Option<[BorrowedFd<'a>; 3]>,
}

/// A running child.
pub(crate) struct Born {
    pub(crate) pid: libc::pid_t,
    /// Readable when it has ended.
    pub(crate) pidfd: OwnedFd,
}

impl Born {
    /// Sends a signal; to the process itself, never to another one that has got its number.
    pub(crate) fn signal(&self, signal: libc::c_int) {
        let pidfd = self.pidfd.as_raw_fd();
        let nothing: *const libc::siginfo_t = ptr::null();
        // SAFETY: pidfd_send_signal takes a pidfd, a signal, no information and no flags. It fails for one that has ended.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd, signal, nothing, 0) };
    }

    /// The wait status of one that has ended; it is collected by this, so it is not to be asked again.
    pub(crate) fn ended(&self) -> Option<libc::c_int> {
        let mut status = 0;
        // SAFETY: waitpid writes the status to a live local. The number is the child's own as long as it was not collected, which
        // only this call does, once: whoever holds it forgets it then.
        let pid = unsafe { libc::waitpid(self.pid, &raw mut status, libc::WNOHANG) };
        (pid == self.pid).then_some(status)
    }
}

/// Starts a program. Returns when its exec has succeeded.
///
/// # Errors
/// The errno of what failed, in the child as well; ETIMEDOUT if the exec hangs. No child is left then.
pub(crate) fn start(birth: &Birth<'_>) -> io::Result<Born> {
    let base = CString::new(birth.uid_base.to_string())?;
    let instance = CString::new(birth.instance.to_string())?;
    let (network, root) = (CString::new(jail::IN_EMPTY_NETWORK)?, CString::new(jail::WITH_EMPTY_ROOT)?);
    let words = [birth.network.is_some().then_some(&network), birth.root.is_some().then_some(&root)];
    let mut arguments = [
        birth.program.name.as_ptr(),
        base.as_ptr(),
        instance.as_ptr(),
        ptr::null(),
        ptr::null(),
        ptr::null(),
    ];
    for (place, word) in arguments.iter_mut().skip(3).zip(words.into_iter().flatten()) {
        *place = word.as_ptr();
    }
    let (failure, failure_child) = pipe(libc::O_CLOEXEC)?;
    // SAFETY: getpid has no preconditions.
    let parent = unsafe { libc::getpid() };
    let mut child = Child { birth, arguments, parent, failure: failure_child.as_raw_fd() };
    let mut stack = Vec::<u128>::with_capacity(STACK / size_of::<u128>());

    // SAFETY: the stack grows down from its end, which is aligned to 16 bytes; nothing else uses it. Stack and `child` live until the
    // child has left this memory by exec or _exit, or for ever: see below. The child has its own descriptors and signal dispositions
    // (no CLONE_FILES, CLONE_SIGHAND, CLONE_FS), reads `child` and makes system calls only (stage_a). It shares errno with us, who
    // read it after a failure only: at worst an error has the other one's number.
    let pid = unsafe {
        let top = stack.as_mut_ptr().add(stack.capacity());
        libc::clone(in_child, top.cast(), libc::CLONE_VM | libc::SIGCHLD, (&raw mut child).cast())
    };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    drop(failure_child);
    let born = pidfd_open(pid).and_then(|pidfd| {
        wait_for_exec(&failure)?;
        Ok(Born { pid, pidfd })
    });
    if let Err(error) = &born {
        // SAFETY: the child has not been waited for, so the number is still its own.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        // One that hangs in the kernel is left behind: waiting for it would hang the agent.
        let hangs = error.raw_os_error() == Some(libc::ETIMEDOUT);
        if hangs {
            // It makes no step in user mode any more, but the kernel may still write to its stack's memory. Its arguments have been
            // copied, or will never be: a process that is being killed stops there (fs/exec.c, copy_strings).
            std::mem::forget(stack);
        }
        // SAFETY: waitpid may be given no place for the status.
        unsafe { libc::waitpid(pid, ptr::null_mut(), if hangs { libc::WNOHANG } else { 0 }) };
    }
    born
}

/// What a child reads.
struct Child<'a> {
    birth: &'a Birth<'a>,
    arguments: [*const libc::c_char; 6],
    parent: libc::pid_t,
    failure: RawFd,
}

/// In the child, which ends here unless its exec succeeds; a failure is reported through the pipe.
extern "C" fn in_child(child: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `start` passes a Child and keeps it.
    let child = unsafe { &*child.cast::<Child<'_>>() };
    let Err((number, pipe)) = prepare_and_exec(child);
    // SAFETY: four bytes are read from a live local; the parent reads as many.
    unsafe { libc::write(pipe, (&raw const number).cast(), size_of::<libc::c_int>()) };
    jail::exit_now(127)
}

/// errno, and the number that the pipe for failures has by then.
type Failure = (libc::c_int, RawFd);

fn prepare_and_exec(child: &Child<'_>) -> Result<Infallible, Failure> {
    let Child { birth, arguments, parent, failure } = child;
    let (parent, failure) = (*parent, *failure);
    let at_first = |result: libc::c_int| if result < 0 { Err((errno(), failure)) } else { Ok(result) };

    // A1. The signal dies with setresuid and is set again by stage B; until then it covers this program's start-up.
    // SAFETY: setsid, prctl and getppid take numbers or nothing and change this process only.
    unsafe {
        at_first(libc::setsid())?;
        at_first(libc::prctl(
            libc::PR_SET_PDEATHSIG,
            libc::c_ulong::from(libc::SIGKILL.unsigned_abs()),
            0,
            0,
            0,
        ))?;
        if libc::getppid() != parent {
            jail::exit_now(127);
        }
    }
    let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset fills the set that sigprocmask then reads. The spawner's dispositions are the default ones (it resets all
    // at its start) but for SIGPIPE, which `jail::main!` ignores and exec would hand on.
    unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        at_first(libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut()))?;
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }

    // A4
    if let Some(network) = birth.network {
        // SAFETY: setns takes two numbers and moves this process only.
        at_first(unsafe { libc::setns(network.as_raw_fd(), libc::CLONE_NEWNET) })?;
    }

    // A2. Through numbers above ABOVE: dup2 straight to the target would overwrite what still waits there.
    let mut high = [-1; BORN_WITH];
    for (place, descriptor) in high.iter_mut().zip(&birth.descriptors) {
        if let Some(descriptor) = descriptor {
            // SAFETY: F_DUPFD_CLOEXEC takes a number.
            *place = at_first(unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_DUPFD_CLOEXEC, ABOVE) })?;
        }
    }
    // SAFETY: as above.
    let (program, failure_high) = unsafe {
        (
            at_first(libc::fcntl(birth.program.file.as_raw_fd(), libc::F_DUPFD_CLOEXEC, ABOVE))?,
            at_first(libc::fcntl(failure, libc::F_DUPFD_CLOEXEC, ABOVE))?,
        )
    };
    let then = |result: libc::c_int| if result < 0 { Err((errno(), failure_high)) } else { Ok(result) };
    let mut root = [-1; 3];
    for (place, namespace) in root.iter_mut().zip(birth.root.iter().flatten()) {
        // SAFETY: as above.
        *place = then(unsafe { libc::fcntl(namespace.as_raw_fd(), libc::F_DUPFD_CLOEXEC, ABOVE) })?;
    }
    for (target, source) in (0..).zip(high) {
        // SAFETY: both are numbers of this process's own table, which no other thread uses; close may fail for one that is not open.
        unsafe {
            if source >= 0 {
                then(libc::dup3(source, target, 0))?;
            } else {
                libc::close(target);
            }
        }
    }
    // SAFETY: as above.
    unsafe {
        then(libc::dup3(program, PROGRAM, libc::O_CLOEXEC))?;
        then(libc::dup3(failure_high, FAILURE, libc::O_CLOEXEC))?;
    }
    let mut last = FAILURE;
    for (target, source) in jail::empty::BORN_WITH.into_iter().zip(root).filter(|(_, source)| *source >= 0) {
        // SAFETY: as above.
        last = then(unsafe { libc::dup3(source, target, 0) })?;
    }

    // A3. The one way to be sure; a copy left over would also hide a peer's end.
    // SAFETY: close_range takes three numbers; nothing above `last` is used any more.
    if unsafe { libc::syscall(libc::SYS_close_range, last + 1, libc::c_uint::MAX, 0) } < 0 {
        return Err((errno(), FAILURE));
    }

    // A5
    let environment: [*const libc::c_char; 1] = [ptr::null()];
    // SAFETY: the name is an empty C string; both lists end with a null pointer and hold C strings that outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            PROGRAM,
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    Err((errno(), FAILURE))
}

fn errno() -> libc::c_int {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL)
}

/// Waits until the pipe closes at exec, or says why there was none.
fn wait_for_exec(failure: &OwnedFd) -> io::Result<()> {
    let mut poll = libc::pollfd { fd: failure.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, alive across the call. SIGTERM and SIGINT are blocked, so nothing interrupts it.
    if unsafe { libc::poll(&raw mut poll, 1, EXEC_TIMEOUT_MS) } <= 0 {
        return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
    }
    let mut number: libc::c_int = 0;
    // SAFETY: as many bytes as the local has are written to it.
    let read = unsafe { libc::read(failure.as_raw_fd(), (&raw mut number).cast(), size_of::<libc::c_int>()) };
    match usize::try_from(read) {
        Ok(0) => Ok(()),
        Ok(length) if length == size_of::<libc::c_int>() => Err(io::Error::from_raw_os_error(number)),
        Ok(_) => Err(io::Error::from_raw_os_error(libc::EIO)),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

fn pidfd_open(pid: libc::pid_t) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two numbers. The child has not been waited for, so the number is still its own.
    let number = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let number =
        RawFd::try_from(number).ok().filter(|number| *number >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Makes a pipe: reading end, writing end.
pub(crate) fn pipe(flags: libc::c_int) -> io::Result<(OwnedFd, OwnedFd)> {
    let mut numbers = [0; 2];
    // SAFETY: pipe2 writes two descriptors to an array of two.
    if unsafe { libc::pipe2(numbers.as_mut_ptr(), flags) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made both for us.
    Ok(numbers.map(|number| unsafe { OwnedFd::from_raw_fd(number) }).into())
}

/// Bytes that may wait in a socket between two processes: eight frames of 64 KiB.
const SOCKET_BUFFER: libc::c_int = 512 * 1024;

/// Makes a pair of packet sockets for two processes that pass no descriptors to each other.
///
/// The first end is the broker's: it does not wait. The second end does.
pub(crate) fn packet_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (broker, other) = socketpair()?;
    for end in [&broker, &other] {
        // Root may go above net.core.wmem_max; for others the kernel takes what is allowed. Either is only about speed.
        if set_option(end, libc::SO_SNDBUFFORCE, SOCKET_BUFFER).is_err() {
            let _ = set_option(end, libc::SO_SNDBUF, SOCKET_BUFFER);
        }
        refuse_descriptors(end);
    }
    // SAFETY: F_SETFL takes a number; a fresh socket has no other status flags.
    if unsafe { libc::fcntl(broker.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((broker, other))
}

/// Makes a control socket: the spawner's end, which accepts no descriptors, and the broker's.
pub(crate) fn control_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (spawner, broker) = socketpair()?;
    refuse_descriptors(&spawner);
    Ok((spawner, broker))
}

fn socketpair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut numbers = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: socketpair writes two descriptors to an array of two.
    if unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, numbers.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made both for us.
    Ok(numbers.map(|number| unsafe { OwnedFd::from_raw_fd(number) }).into())
}

/// asm-generic/socket.h; Linux 6.16. Older kernels answer ENOPROTOOPT: there a receiver without control data drops them.
const SO_PASSRIGHTS: libc::c_int = 83;

fn refuse_descriptors(socket: &OwnedFd) {
    let _ = set_option(socket, SO_PASSRIGHTS, 0);
}

fn set_option(socket: &OwnedFd, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(io::Error::other)?;
    // SAFETY: the option's value is an int, alive across the call, and its length is given.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const value).cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
