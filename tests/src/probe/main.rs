//! Stands in for a role's program: the spawner starts it under that name, it enters that role's jail, and then tries what a
//! taken-over process would try.
//!
//! Runs in tests only. It trusts the test that talks to it, one command and one answer at a time, over descriptor 3 (the broker:
//! over a socket of its own, since its descriptor 3 leads to the spawner; the compiler: over 0 and 1). Called as
//! `probe launch` it does what `portreeve` does: writes the plan and becomes the spawner.
//!
//! With `policy/jail` and `broker/spawner` this is the only program that contains `unsafe`: it makes system calls that no
//! library offers, with arguments that make no sense.
#![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod escapes;
mod landlock;
mod launch;
mod raw;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use jail::{Entered, FileRights, Ground, Landlock, Role, Root};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg, socket,
};

use crate::raw::{Call, call};

/// As many as the file worker has.
const THREADS: usize = 4;

fn main() {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    let name = Path::new(&name).file_name().unwrap_or_default();
    if let Some(role) = Role::ALL.into_iter().find(|role| name == role.executable()) {
        Probe::new(role).serve()
    }
    let arguments: Vec<OsString> = arguments.collect();
    match arguments.first().and_then(|word| word.to_str()) {
        Some("launch") => launch::launch(&arguments[1..]),
        // Whether this kernel has the i386 calls at all: without them this ends with SIGSEGV.
        Some("i386") => println!("{}", raw::i386_getpid()),
        other => panic!("no role and no command: {other:?}"),
    }
}

/// What is needed to answer.
struct Probe {
    role: Role,
    /// Where the programs of this test are, and what the escapes are tried on.
    folder: PathBuf,
    input: RawFd,
    output: RawFd,
    /// A route socket from before the jail, in the roles that have one.
    netlink: Option<std::os::fd::OwnedFd>,
    /// Calls for a thread that was there before the filter.
    thread: Option<(Sender<Call>, Receiver<io::Result<usize>>)>,
    filtered: bool,
}

impl Probe {
    fn new(role: Role) -> Self {
        jail::report_panics(role);
        let program = std::fs::read_link("/proc/self/exe").unwrap();
        let folder = program.parent().unwrap().to_owned();
        let (input, output) = match role {
            Role::Broker => {
                let meeting = meet(&folder);
                (meeting, meeting)
            }
            Role::Compile | Role::Keys => (0, 1),
            _ => (3, 3),
        };
        let netlink = matches!(role, Role::Net | Role::NetAdmin).then(|| {
            let kind = nix::sys::socket::SockProtocol::NetlinkRoute;
            socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, kind).unwrap()
        });
        Self { role, folder, input, output, netlink, thread: None, filtered: false }
    }

    fn serve(mut self) -> ! {
        let mut buffer = vec![0; 1 << 18];
        loop {
            // read and write, which every filter knows, and which keep packets whole on these sockets.
            let length = match nix_read(self.input, &mut buffer) {
                Ok(0) | Err(_) => jail::exit_now(0),
                Ok(length) => length,
            };
            let command = String::from_utf8_lossy(&buffer[..length]);
            let (command, rest) = command.split_once(' ').unwrap_or((&command, ""));
            let answer = match command {
                "enter" => self.enter(rest),
                "calls" => calls(rest),
                "thread" => self.in_a_thread(rest),
                "i386" => raw::i386_getpid().to_string(),
                "escapes" => escapes::try_all(&self, rest),
                "landlock" => landlock::try_all(&self.folder),
                "abi" => raw::landlock_abi().to_string(),
                "panic" => panic!("told to"),
                "exit" => jail::exit_now(rest.parse().unwrap()),
                // The real broker's hello, where this one only has to be there.
                _ => continue,
            };
            if nix_write(self.output, answer.as_bytes()).is_err() {
                jail::exit_now(0);
            }
        }
    }

    /// `enter WAY [narrow]`: through the real entrance (`kill`), through the one whose filter answers (`errno`), or through
    /// the one without a filter (`open`).
    fn enter(&mut self, how: &str) -> String {
        let (way, narrow) = how.split_once(' ').unwrap_or((how, ""));
        let mut ground = Ground::from_arguments(self.role).unwrap();
        // As in the file worker's main, with everything permitted; `narrow` is one directory of this test.
        let root = if narrow == "narrow" { self.folder.join("allowed") } else { "/".into() };
        ground.files = FileRights { read: true, write: true };
        ground.roots = vec![Root { path: root, read: true, write: true, may_be_made: false }];
        let (to_thread, calls) = channel::<Call>();
        let (results, from_thread) = channel();
        let calls = std::sync::Arc::new(Mutex::new(calls));
        let threads = if self.role == Role::File { THREADS } else { 1 };
        let before_filter = || {
            for _ in 1..threads {
                let (calls, results) = (calls.clone(), results.clone());
                std::thread::spawn(move || {
                    while let Ok(wanted) = { calls.lock().unwrap().recv() } {
                        let _ = results.send(call(wanted));
                    }
                });
            }
        };
        let entered = match way {
            "kill" => jail::enter(self.role, &ground, before_filter),
            "errno" => jail::probe::enter_answering(self.role, &ground, before_filter),
            "open" => jail::probe::enter_without_filter(self.role, &ground, before_filter),
            other => panic!("not a way: {other}"),
        };
        self.thread = (threads > 1).then_some((to_thread, from_thread));
        self.filtered = way != "open";
        match entered {
            Ok(entered) => describe(&entered),
            Err(error) => error.to_string(),
        }
    }

    fn in_a_thread(&self, wanted: &str) -> String {
        let (calls, results) = self.thread.as_ref().unwrap();
        calls.send(parse(wanted)).unwrap();
        raw::describe(&results.recv().unwrap())
    }
}

fn describe(entered: &Entered) -> String {
    let landlock = match entered.landlock {
        Landlock::Full { .. } => "full",
        Landlock::Partial { .. } => "partial",
        Landlock::None => "none",
    };
    let missing = if entered.missing.is_empty() { "nothing".to_owned() } else { entered.missing.join(", ") };
    format!("landlock {landlock}; missing {missing}")
}

/// Makes the calls, one for each line, and answers one word for each: an errno's name or `ok`.
fn calls(lines: &str) -> String {
    let words: Vec<String> = lines.lines().map(|line| raw::describe(&call(parse(line)))).collect();
    words.join(" ")
}

/// A number and up to six arguments; those not given are −1, which is no descriptor, no length and no address.
fn parse(line: &str) -> Call {
    let mut words = line.split_whitespace().map(|word| word.parse::<u64>().unwrap());
    let number = words.next().unwrap();
    let mut arguments = [u64::MAX; 6];
    for (place, word) in arguments.iter_mut().zip(words) {
        *place = word;
    }
    Call { number, arguments }
}

/// Connects to the test and gives it the control socket: from now on the test is the broker towards the spawner.
fn meet(folder: &Path) -> RawFd {
    let meeting = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    connect(meeting.as_raw_fd(), &UnixAddr::new(folder.join("meeting").as_os_str().as_bytes()).unwrap())
        .unwrap();
    let text = std::process::id().to_string();
    let control = [ControlMessage::ScmRights(&[3])];
    let parts = [io::IoSlice::new(text.as_bytes())];
    sendmsg::<()>(meeting.as_raw_fd(), &parts, &control, MsgFlags::empty(), None).unwrap();
    std::os::fd::IntoRawFd::into_raw_fd(meeting)
}

fn nix_read(number: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: read(2) writes at most as many bytes as the buffer has; any number may be read from.
    let length = unsafe { libc::read(number, buffer.as_mut_ptr().cast(), buffer.len()) };
    usize::try_from(length).map_err(|_| io::Error::last_os_error())
}

fn nix_write(number: RawFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: write(2) only reads as many bytes as the slice has; any number may be written to.
    let length = unsafe { libc::write(number, bytes.as_ptr().cast(), bytes.len()) };
    usize::try_from(length).map_err(|_| io::Error::last_os_error())
}
