//! A socket that systemd listens on for us (`sd_listen_fds(3)`), as qemu-ga takes it.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{AddressFamily, SockaddrLike as _, SockaddrStorage, getsockname};
use proto::settings::Method;

/// The first descriptor that systemd passes.
const FIRST: i32 = 3;

/// A listening socket that was passed to this process.
pub(crate) struct Activated {
    pub(crate) socket: OwnedFd,
    pub(crate) method: Method,
}

/// Takes the socket that `LISTEN_FDS` announces, if `LISTEN_PID` is `pid`: our own or, in a daemon, our starter's.
///
/// # Errors
/// qemu-ga's texts (`qga/main.c`, `check_socket_activation` and after it).
pub(crate) fn take(pid: u32) -> Result<Option<Activated>, String> {
    let variable = |name: &str| {
        std::env::var_os(name).as_deref().and_then(OsStr::to_str).and_then(|text| text.parse::<u32>().ok())
    };
    if variable("LISTEN_PID") != Some(pid) {
        return Ok(None);
    }
    match variable("LISTEN_FDS") {
        None | Some(0) => return Ok(None),
        Some(1) => {}
        Some(_) => return Err("qemu-ga only supports listening on one socket".to_owned()),
    }
    let socket =
        jail::take_fd(FIRST).map_err(|error| format!("descriptor {FIRST} of LISTEN_FDS: {error}"))?;
    let address = getsockname::<SockaddrStorage>(socket.as_raw_fd());
    let method = match address.ok().and_then(|address| address.family()) {
        Some(AddressFamily::Unix) => Method::UnixListen,
        Some(AddressFamily::Vsock) => Method::VsockListen,
        _ => return Err("unsupported listen fd type".to_owned()),
    };
    Ok(Some(Activated { socket, method }))
}
