//! Opens the channels. Runs in the spawner, as root; reads and writes nothing on them.
//!
//! Paths come from the configuration. A device is opened without becoming the controlling terminal and without waiting; a
//! listening socket is left to the frontend, which accepts.

use std::ffi::CString;
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use spawner::Method;

/// One client is served at a time; a second one waits in the kernel, as with qemu-ga.
const BACKLOG: libc::c_int = 1;

/// Why a channel could not be opened; the words of qemu-ga where it has some.
#[derive(Debug)]
pub(crate) struct ChannelError(String);

impl std::fmt::Display for ChannelError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Opens what `method` names; the result is close-on-exec.
pub(crate) fn open(method: &Method) -> Result<OwnedFd, ChannelError> {
    match method {
        Method::VirtioSerial { path } => device(path),
        Method::IsaSerial { path } => {
            let line = device(path)?;
            raw(&line)
                .map_err(|error| ChannelError(format!("error setting up {}: {error}", path.display())))?;
            Ok(line)
        }
        Method::UnixListen { path, mode } => unix(path, *mode),
        Method::VsockListen { cid, port } => vsock(*cid, *port)
            .map_err(|error| ChannelError(format!("cannot listen on vsock {cid}:{port}: {error}"))),
        Method::Inherited { descriptor } => jail::take_fd(*descriptor)
            .map_err(|error| ChannelError(format!("inherited descriptor {descriptor}: {error}"))),
    }
}

/// qemu-ga also sets O_ASYNC; without an owner (F_SETOWN) nobody gets its signal, so it is left out. O_NOCTTY: the spawner may
/// lead a session, and a terminal must not become its own.
fn device(path: &Path) -> Result<OwnedFd, ChannelError> {
    let failed =
        |error: io::Error| ChannelError(format!("error opening channel '{}': {error}", path.display()));
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|error| failed(error.into()))?;
    let flags = libc::O_RDWR | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: name is a C string that lives across the call; without O_CREAT there is no fourth argument.
    let number = unsafe { libc::openat(libc::AT_FDCWD, name.as_ptr(), flags) };
    if number < 0 {
        return Err(failed(io::Error::last_os_error()));
    }
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Sets a serial line to raw, 38400 baud or what it has, after throwing pending input away; `termios(3)`.
fn raw(line: &OwnedFd) -> io::Result<()> {
    let number = line.as_raw_fd();
    let mut settings = MaybeUninit::<libc::termios>::uninit();
    // SAFETY: tcgetattr fills the termios it is given, or fails.
    check(unsafe { libc::tcgetattr(number, settings.as_mut_ptr()) })?;
    // SAFETY: tcgetattr has succeeded.
    let mut settings = unsafe { settings.assume_init() };
    settings.c_iflag &= !(libc::IGNBRK
        | libc::BRKINT
        | libc::IGNPAR
        | libc::PARMRK
        | libc::INPCK
        | libc::ISTRIP
        | libc::INLCR
        | libc::IGNCR
        | libc::ICRNL
        | libc::IXON
        | libc::IXOFF
        | libc::IXANY
        | libc::IMAXBEL);
    settings.c_oflag = 0;
    settings.c_lflag = 0;
    settings.c_cflag |= libc::B38400;
    for (index, value) in [(libc::VMIN, 1), (libc::VTIME, 0)] {
        if let Some(place) = settings.c_cc.get_mut(index) {
            *place = value;
        }
    }
    // SAFETY: tcflush takes two numbers.
    check(unsafe { libc::tcflush(number, libc::TCIFLUSH) })?;
    // SAFETY: tcsetattr reads the termios it is given, which lives across the call.
    check(unsafe { libc::tcsetattr(number, libc::TCSANOW, &raw const settings) })
}

/// Listens on a path. A socket that is there is replaced: it is ours from an earlier run, or a dead one. Anything else stays:
/// qemu-ga would remove a regular file, which nobody can want of a root process.
fn unix(path: &Path, mode: Option<u32>) -> Result<OwnedFd, ChannelError> {
    let shown = path.display();
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| ChannelError(format!("{what}: {error}"))
    };
    // SAFETY: sockaddr_un is plain numbers, for which all zero bits are valid.
    let mut address: libc::sockaddr_un = unsafe { MaybeUninit::zeroed().assume_init() };
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() >= address.sun_path.len() {
        return Err(ChannelError(format!("UNIX socket path '{shown}' is too long")));
    }
    address.sun_family = libc::sa_family_t::try_from(libc::AF_UNIX).unwrap_or_default();
    for (place, byte) in address.sun_path.iter_mut().zip(bytes) {
        *place = byte.cast_signed();
    }
    remove_socket(path).map_err(failed(&format!("Failed to unlink socket {shown}")))?;

    let socket = stream(libc::AF_UNIX).map_err(failed("Failed to create Unix socket"))?;
    // The mode is there from the first moment: bind(2) takes the umask off, chmod afterwards would be too late.
    // SAFETY: umask takes a number and cannot fail; this process has one thread.
    let umask = mode.map(|mode| unsafe { libc::umask(!mode & 0o777) });
    let bound = bind(&socket, &address);
    if let Some(umask) = umask {
        // SAFETY: as above.
        unsafe { libc::umask(umask) };
    }
    bound.map_err(failed(&format!("Failed to bind socket to {shown}")))?;
    Ok(socket)
}

fn remove_socket(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt as _;
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(metadata) if metadata.file_type().is_socket() => std::fs::remove_file(path),
        Ok(metadata) if metadata.is_dir() => Err(io::Error::from_raw_os_error(libc::EISDIR)),
        Ok(_) => Err(io::Error::other("it is not a socket")),
    }
}

fn vsock(cid: u32, port: u32) -> io::Result<OwnedFd> {
    // SAFETY: sockaddr_vm is plain numbers, for which all zero bits are valid.
    let mut address: libc::sockaddr_vm = unsafe { MaybeUninit::zeroed().assume_init() };
    address.svm_family = libc::sa_family_t::try_from(libc::AF_VSOCK).unwrap_or_default();
    address.svm_cid = cid;
    address.svm_port = port;
    let socket = stream(libc::AF_VSOCK)?;
    bind(&socket, &address)?;
    Ok(socket)
}

fn stream(family: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: socket(2) takes three numbers.
    let number =
        unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0) };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn bind<Address>(socket: &OwnedFd, address: &Address) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<Address>()).map_err(io::Error::other)?;
    // SAFETY: Address is one of the sockaddr structs above, alive and filled; its length is its size. A unix path ends at its NUL.
    check(unsafe { libc::bind(socket.as_raw_fd(), std::ptr::from_ref(address).cast(), length) })?;
    // SAFETY: listen(2) takes two numbers.
    check(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
