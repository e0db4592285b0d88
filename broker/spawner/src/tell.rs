//! What the spawner says: lines on its log, the ready pipe, systemd.
//!
//! Nothing here may fail the caller or wait: a log that is full or gone loses the line.

use std::fmt::Write as _;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use spawner::plan::READY;

/// How grave a line is; qemu-ga's words (`qga/main.c`, `ga_log_level_str`).
#[derive(Clone, Copy)]
pub(crate) enum Level {
    Critical,
    Warning,
    Message,
}

/// Lines that wait while filesystems are frozen: the log may lie on one, and a write there never returns. Those that do not fit
/// are dropped. None: nothing is frozen.
static HELD: Mutex<Option<String>> = Mutex::new(None);

/// Bytes that wait at most.
const HELD_BYTES: usize = 16 * 1024;

/// Holds lines back from now on, or writes those that were.
pub(crate) fn hold(hold: bool) {
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    if hold {
        held.get_or_insert_with(|| String::with_capacity(HELD_BYTES));
    } else if let Some(lines) = held.take() {
        write(&lines);
    }
}

fn write(text: &str) {
    // SAFETY: `text` is valid for its length and write(2) only reads it; a log that is full or gone loses it.
    let _ = unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
}

/// Writes one line to the log: `<unix seconds>.<microseconds>: <level>: <text>`, the form of qemu-ga's log.
pub(crate) fn log(level: Level, text: &std::fmt::Arguments<'_>) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let word = match level {
        Level::Critical => "critical",
        Level::Warning => "warning",
        Level::Message => "message",
    };
    let mut line = String::with_capacity(256);
    // Writing to a String does not fail.
    let _ = writeln!(line, "{}.{:06}: {word}: {text}", now.as_secs(), now.subsec_micros());
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    match &mut *held {
        Some(lines) if lines.len().saturating_add(line.len()) <= HELD_BYTES => lines.push_str(&line),
        Some(_) => {}
        None => write(&line),
    }
}

/// Those who wait for the agent to be up; told once.
pub(crate) struct Waiting {
    parent: Option<OwnedFd>,
    notify_socket: Vec<u8>,
    told: bool,
}

impl Waiting {
    pub(crate) fn new(parent: Option<OwnedFd>, notify_socket: Vec<u8>) -> Self {
        Self { parent, notify_socket, told: false }
    }

    /// Whether the agent has been up once.
    pub(crate) fn is_ready(&self) -> bool {
        self.told
    }

    /// Tells systemd and the waiting parent that the agent is up.
    pub(crate) fn ready(&mut self) {
        if self.told {
            return;
        }
        self.told = true;
        if let Some(parent) = self.parent.take() {
            let byte = [READY];
            // SAFETY: one byte is read from a live local; a parent that has gone is no concern.
            let _ = unsafe { libc::write(parent.as_raw_fd(), byte.as_ptr().cast(), byte.len()) };
        }
        self.notify(b"READY=1\n");
    }

    /// Tells systemd that the agent is on its way out.
    pub(crate) fn stopping(&self) {
        self.notify(b"STOPPING=1\n");
    }

    /// `sd_notify(3)`: one datagram to a unix socket; a name that begins with @ is abstract.
    fn notify(&self, text: &[u8]) {
        if self.notify_socket.is_empty() {
            return;
        }
        // SAFETY: sockaddr_un is plain numbers, for which all zero bits are valid.
        let mut address: libc::sockaddr_un = unsafe { MaybeUninit::zeroed().assume_init() };
        if self.notify_socket.len() > address.sun_path.len() {
            return;
        }
        address.sun_family = libc::sa_family_t::try_from(libc::AF_UNIX).unwrap_or_default();
        for (place, byte) in address.sun_path.iter_mut().zip(&self.notify_socket) {
            *place = byte.cast_signed();
        }
        if self.notify_socket.first() == Some(&b'@')
            && let Some(first) = address.sun_path.first_mut()
        {
            *first = 0;
        }
        let length = size_of::<libc::sa_family_t>().saturating_add(self.notify_socket.len());
        // SAFETY: socket(2) takes three numbers.
        let socket = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if socket < 0 {
            return;
        }
        // SAFETY: the kernel has just made it for us.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        // SAFETY: `text` is valid for its length; `address` is a sockaddr_un whose first `length` bytes are filled.
        let _ = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                text.as_ptr().cast(),
                text.len(),
                libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
                (&raw const address).cast(),
                libc::socklen_t::try_from(length).unwrap_or_default(),
            )
        };
    }
}
