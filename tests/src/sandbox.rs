//! Agents for the tests of the sandboxes: the real spawner with any mix of real programs and probes.
//!
//! Runs in tests only. The folder of each agent holds its programs and what escapes are tried on; agents share nothing, so tests
//! may run side by side. Where the broker is a probe, the test is the broker towards the spawner. Whoever is dropped is ended,
//! and everybody below it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::Read as _;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::net::UnixListener;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use jail::Role;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};
use spawner::{Control, FromBroker, FromSpawner};

use crate::agent::{PATIENCE, children, is_alive, signal, wait_until};
use crate::programs;

/// How an agent is put together.
pub struct Setup {
    /// The probe's program.
    pub probe: &'static str,
    /// Roles that are played by the real programs.
    pub real: Vec<Role>,
    /// With [`Role::Exec`] among them the spawner has no filter, so that each role's own is alone.
    pub workers: Vec<Role>,
    /// Channels, and so frontends.
    pub channels: u16,
    /// Who runs it: 0, or an ordinary user.
    pub user: u32,
}

impl Setup {
    /// All roles are probes, exec and its unfiltered spawner are left out, one channel, root.
    pub fn new(probe: &'static str) -> Self {
        let workers = vec![
            Role::Query,
            Role::File,
            Role::Net,
            Role::NetAdmin,
            Role::Fsfreeze,
            Role::Power,
            Role::Clock,
            Role::Hotplug,
            Role::Audit,
        ];
        Self { probe, real: Vec::new(), workers, channels: 1, user: 0 }
    }

    /// Starts the spawner, and waits for the broker and all frontends.
    ///
    /// # Panics
    /// If they do not come.
    pub fn start(&self) -> Stage {
        let directory =
            tempfile::Builder::new().prefix("portreeve-sandbox-").tempdir().expect("there is room");
        let folder = directory.path();
        for role in Role::ALL {
            let program = if self.real.contains(&role) {
                programs::program(role.executable())
            } else {
                PathBuf::from(self.probe)
            };
            link(&program, &folder.join(role.executable()));
        }
        let listener = furnish(folder);
        let meeting = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .expect("makes a socket");
        let address = SocketAddrUnix::new(folder.join("meeting")).expect("the path is short");
        rustix::net::bind(&meeting, &address).expect("binds");
        rustix::net::listen(&meeting, 4).expect("listens");
        for path in [folder.to_owned(), folder.join("meeting")] {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("the directory is ours");
            chown(&path, Some(self.user), Some(self.user)).expect("root may");
        }

        let workers: Vec<&str> = self.workers.iter().map(|role| role.name()).collect();
        let base = if self.user == 0 { jail::DEFAULT_UID_BASE } else { 0 };
        let log = File::create(folder.join("log")).expect("the directory is ours");
        let spawner = Command::new(self.probe)
            .arg("launch")
            .arg(folder)
            .arg(programs::program("portreeve-spawner"))
            .args([base.to_string(), workers.join(","), self.channels.to_string()])
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .uid(self.user)
            .gid(self.user)
            .spawn()
            .expect("the probe can be executed");
        let mut stage = Stage {
            spawner,
            meeting,
            control: None,
            waiting: RefCell::default(),
            broker: None,
            frontends: Vec::new(),
            _listener: listener,
            directory,
        };
        if !self.real.contains(&Role::Broker) {
            stage.meet_broker();
            stage.frontends = (0..self.channels).map(|channel| stage.frontend(channel)).collect();
        }
        stage
    }
}

/// A running agent.
pub struct Stage {
    spawner: Child,
    meeting: OwnedFd,
    control: Option<Control>,
    /// What the spawner said before it was asked for.
    waiting: RefCell<VecDeque<spawner::Received>>,
    broker: Option<Peer>,
    /// By channel.
    pub frontends: Vec<Peer>,
    _listener: UnixListener,
    directory: tempfile::TempDir,
}

impl Stage {
    /// The spawner's process id.
    pub fn pid(&self) -> u32 {
        self.spawner.id()
    }

    /// Where programs, log and channels are.
    pub fn folder(&self) -> &Path {
        self.directory.path()
    }

    /// What spawner and broker wrote to the agent's log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder().join("log")).unwrap_or_default()
    }

    /// The probe that plays the broker.
    ///
    /// # Panics
    /// If the broker is the real one.
    pub fn broker(&self) -> &Peer {
        self.broker.as_ref().expect("the broker is a probe")
    }

    /// Takes the control socket from the probe that plays the broker; again after it has ended.
    ///
    /// # Panics
    /// If it does not come.
    pub fn meet_broker(&mut self) {
        let connection = self.patiently("no broker comes", || {
            rustix::net::accept_with(&self.meeting, SocketFlags::CLOEXEC).ok()
        });
        let mut text = [0; 16];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [std::io::IoSliceMut::new(&mut text)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let message = rustix::net::recvmsg(&connection, &mut parts, &mut control, flags).expect("receives");
        let pid = String::from_utf8_lossy(text.get(..message.bytes).unwrap_or_default()).parse();
        let socket = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        self.control = Some(Control::new(socket.expect("its socket comes along")));
        self.broker =
            Some(Peer { socket: connection, log: None, pid: pid.expect("its process id comes first") });
    }

    /// The frontend of `channel` that the spawner announces next.
    ///
    /// # Panics
    /// If it does not come.
    pub fn frontend(&self, channel: u16) -> Peer {
        let wanted = |message: FromSpawner| matches!(message, FromSpawner::Frontend { channel: of, .. } if of == channel);
        Peer::of(self.receive(wanted))
    }

    /// Starts a worker.
    ///
    /// # Panics
    /// If the spawner refuses.
    pub fn worker(&self, kind: Role, instance: u16) -> Peer {
        let control = self.control.as_ref().expect("the broker is a probe");
        control.send(FromBroker::Start { kind, instance }, 1).expect("the spawner reads");
        let received = self.receive(|message| match message {
            FromSpawner::Started { kind: of, instance: which, .. } => (of, which) == (kind, instance),
            FromSpawner::Refused { .. } => panic!("{message:?}: {}", self.log()),
            _ => false,
        });
        Peer::of(received)
    }

    /// The probe of any role but the compiler; a worker is started.
    pub fn peer(&self, role: Role) -> Peer {
        match role {
            Role::Broker => self.broker().again(),
            Role::Frontend => self.frontends.first().expect("there is a channel").again(),
            _ => self.worker(role, 0),
        }
    }

    /// Waits until the spawner says how one has ended.
    ///
    /// # Panics
    /// If it does not.
    pub fn ended(&self, role: Role, which: u16) -> ExitStatus {
        let received = self.receive(
            |message| matches!(message, FromSpawner::Exited { kind, instance, .. } if (kind, instance) == (role, which)),
        );
        let FromSpawner::Exited { status, .. } = received.message else { unreachable!("it was asked for") };
        ExitStatus::from_raw(status)
    }

    fn receive(&self, wanted: impl Fn(FromSpawner) -> bool) -> spawner::Received {
        let control = self.control.as_ref().expect("the broker is a probe");
        self.patiently("the spawner does not say it", || {
            while let Some(received) = control.try_receive().expect("a message") {
                self.waiting.borrow_mut().push_back(received);
            }
            let mut waiting = self.waiting.borrow_mut();
            let place = waiting.iter().position(|received| wanted(received.message))?;
            waiting.remove(place)
        })
    }

    /// The process that runs the program of `role`, real or not.
    ///
    /// # Panics
    /// If there is none.
    pub fn process(&self, role: Role) -> u32 {
        let program = self.folder().join(role.executable());
        self.patiently("no such process", || {
            children(self.pid())
                .into_iter()
                .find(|pid| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|path| path == program))
        })
    }

    fn patiently<T>(&self, what: &str, mut found: impl FnMut() -> Option<T>) -> T {
        let begin = Instant::now();
        loop {
            if let Some(found) = found() {
                return found;
            }
            assert!(begin.elapsed() < PATIENCE, "{what}; the log says:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let family = children(self.pid());
        // It may have ended already.
        let _ = self.spawner.kill();
        let _ = self.spawner.wait();
        if !wait_until(|| family.iter().all(|pid| !is_alive(*pid))) && !std::thread::panicking() {
            panic!("processes are left behind: {family:?}");
        }
        if std::thread::panicking() {
            eprintln!("--- the agent's log:\n{}", self.log());
        }
    }
}

/// A probe as the test talks to it, or a real program as its broker sees it.
pub struct Peer {
    /// The test's end.
    pub socket: OwnedFd,
    log: Option<OwnedFd>,
    /// Process id.
    pub pid: u32,
}

impl Peer {
    /// One that has ended before it was heard of.
    ///
    /// # Panics
    /// If no socket can be made.
    pub fn nobody() -> Self {
        let (socket, _) = std::os::unix::net::UnixStream::pair().expect("makes a pair");
        Self { socket: socket.into(), log: None, pid: 0 }
    }

    fn of(received: spawner::Received) -> Self {
        let pid = match received.message {
            FromSpawner::Started { pid, .. } | FromSpawner::Frontend { pid, .. } => pid,
            other => unreachable!("{other:?} brings no descriptors"),
        };
        let [Some(socket), Some(log)] = received.descriptors else { panic!("two descriptors come along") };
        rustix::io::ioctl_fionbio(&socket, false).expect("sets");
        Self { socket, log: Some(log), pid }
    }

    fn again(&self) -> Self {
        let twice = |descriptor: &OwnedFd| descriptor.try_clone().expect("there are descriptors left");
        Self { socket: twice(&self.socket), log: self.log.as_ref().map(twice), pid: self.pid }
    }

    /// Sends a command.
    ///
    /// # Panics
    /// If it has ended.
    pub fn tell(&self, command: &str) {
        let sent = rustix::net::send(&self.socket, command.as_bytes(), SendFlags::NOSIGNAL);
        assert_eq!(sent.expect("it lives"), command.len());
    }

    /// Sends a command and waits for the answer.
    ///
    /// # Panics
    /// If it ends instead.
    pub fn ask(&self, command: &str) -> String {
        self.tell(command);
        self.hear().unwrap_or_else(|| panic!("it has ended at: {}", command.get(..200).unwrap_or(command)))
    }

    /// Waits for what it sends next; None if it has ended.
    ///
    /// # Panics
    /// If nothing comes in time.
    pub fn hear(&self) -> Option<String> {
        assert!(self.has_something(PATIENCE), "nothing comes");
        let mut buffer = vec![0; 1 << 18];
        match rustix::net::recv(&self.socket, buffer.as_mut_slice(), RecvFlags::empty()) {
            Ok((0, _)) | Err(rustix::io::Errno::CONNRESET) => None,
            Ok((length, _)) => Some(String::from_utf8_lossy(buffer.get(..length)?).into_owned()),
            Err(errno) => panic!("{errno}"),
        }
    }

    /// Waits until there is something to hear, without taking it.
    pub fn has_something(&self, limit: Duration) -> bool {
        let mut polled = [rustix::event::PollFd::new(&self.socket, rustix::event::PollFlags::IN)];
        let limit = rustix::event::Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: 0 };
        matches!(rustix::event::poll(&mut polled, Some(&limit)), Ok(1))
    }

    /// What one that has ended wrote to its log pipe.
    ///
    /// # Panics
    /// If it has none.
    pub fn log(&self) -> String {
        let log = self.log.as_ref().and_then(|log| log.try_clone().ok()).expect("it has one");
        let mut text = String::new();
        File::from(log).read_to_string(&mut text).expect("it reads to the end");
        text
    }
}

/// The compiler, as `portreeve` starts it, or the child that works on keys, as the account worker does, but with the test at its
/// descriptors 0 and 1.
pub struct Compiler {
    child: Child,
    /// For the same commands as any probe.
    pub peer: Peer,
    _listener: UnixListener,
    _directory: tempfile::TempDir,
}

impl Compiler {
    /// Starts the probe under the compiler's name.
    ///
    /// # Panics
    /// If it cannot be executed.
    pub fn start(probe: &str) -> Self {
        Self::start_with(probe, &[])
    }

    /// As [`Self::start`], with variables in its environment, which `portreeve` leaves empty.
    ///
    /// # Panics
    /// If it cannot be executed.
    pub fn start_with(probe: &str, environment: &[(&str, &str)]) -> Self {
        Self::start_as(Role::Compile, probe, environment)
    }

    /// Starts the probe as the child that works on keys: a user whom nobody knows, whose home is the directory that escapes are
    /// tried on.
    ///
    /// # Panics
    /// If it cannot be executed.
    pub fn start_keys(probe: &str) -> Self {
        Self::start_as(Role::Keys, probe, &[])
    }

    fn start_as(role: Role, probe: &str, environment: &[(&str, &str)]) -> Self {
        let directory =
            tempfile::Builder::new().prefix("portreeve-sandbox-").tempdir().expect("there is room");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))
            .expect("the directory is ours");
        let program = directory.path().join(role.executable());
        link(Path::new(probe), &program);
        let listener = furnish(directory.path());
        let (own, its) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .expect("makes a pair");
        let child = Command::new(program)
            .args(match role {
                Role::Keys => unknown_user(directory.path().join("allowed")).arguments().to_vec(),
                _ => vec![jail::DEFAULT_UID_BASE.to_string().into(), "0".into()],
            })
            .env_clear()
            .envs(environment.iter().copied())
            .current_dir("/")
            .stdin(Stdio::from(its.try_clone().expect("duplicates")))
            .stdout(Stdio::from(its))
            .stderr(Stdio::null())
            .spawn()
            .expect("the probe can be executed");
        let peer = Peer { socket: own, log: None, pid: child.id() };
        Self { child, peer, _listener: listener, _directory: directory }
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it does not end.
    pub fn ended(&mut self) -> ExitStatus {
        assert!(wait_until(|| !is_alive(self.child.id())), "it does not end");
        self.child.wait().expect("it is our child")
    }
}

impl Drop for Compiler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One who is in no file of this machine.
#[must_use]
pub fn unknown_user(home: PathBuf) -> jail::User {
    jail::User { uid: UNKNOWN, gid: UNKNOWN + 1, groups: vec![UNKNOWN + 2], home }
}

/// Above those of containers and of ours.
const UNKNOWN: u32 = jail::DEFAULT_UID_BASE + 1_000_000;

/// A second name for a program: the spawner opens no symbolic links.
fn link(program: &Path, name: &Path) {
    if fs::hard_link(program, name).is_err() {
        // Another filesystem. Not with our own hands: a descriptor open for writing, inherited for a moment by a child of another
        // test, would make the program busy.
        let status = Command::new("cp").arg(program).arg(name).status().expect("there is a cp command");
        assert!(status.success(), "cannot copy {}", program.display());
    }
}

/// What escapes are tried on: a directory that the narrow ruleset allows, one outside it, a socket, and an abstract
/// socket under the folder's name. The listener of the latter goes with its owner.
fn furnish(folder: &Path) -> UnixListener {
    use std::os::linux::net::SocketAddrExt as _;
    for place in ["allowed", "outside"] {
        let place = folder.join(place);
        fs::create_dir(&place).expect("the directory is ours");
        fs::set_permissions(&place, fs::Permissions::from_mode(0o777)).expect("the directory is ours");
        for name in ["file", "doomed", "program", "moved-allowed", "moved-outside"] {
            fs::write(place.join(name), "content").expect("the directory is ours");
            fs::set_permissions(place.join(name), fs::Permissions::from_mode(0o777))
                .expect("the file is ours");
        }
    }
    let path = folder.join("listener");
    drop(UnixListener::bind(&path).expect("binds"));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("the socket is ours");
    let name = folder.file_name().expect("it has a name").as_encoded_bytes();
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name).expect("the name is short");
    UnixListener::bind_addr(&address).expect("binds")
}

/// Ends a process that a test has started.
pub fn end(pid: u32) {
    signal(pid, "KILL");
}

/// Whether the sandboxes can be tested here: they take root, Landlock and filters. If not, says so loudly; fails in CI.
pub fn can_be_tested() -> bool {
    if !programs::is_root() {
        programs::left_out("needs root");
        return false;
    }
    true
}
