//! The worker's executable, started as the spawner starts it, with this process in the place of the broker.

use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};

use authorize::{Origin, Outcome, Policy, Rule, Sealed};
use command_fds::{CommandFdExt as _, FdMapping};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use pipe::Pipe;
use proto::file::{self, Request};
use proto::message::{Detail, FromWorker, Hello, Job, ToWorker};
use proto::settings::{AuditSettings, Settings};
use proto::{Failed, Group};

/// The id that the worker gets when these tests run as root: the base and the worker's number.
pub(crate) const BASE: u32 = 1_900_000_000;

/// Somebody without rights.
pub(crate) const NOBODY: u32 = 65_534;

/// A running worker.
pub(crate) struct Worker {
    child: Child,
    pipe: Pipe<ToWorker, FromWorker>,
    last_id: u64,
    /// What it said of its jail.
    pub(crate) confinement: Vec<(String, String)>,
}

/// A reply and the bytes that came with it.
pub(crate) type Answer = (Result<file::Reply, Failed>, Vec<u8>);

impl Worker {
    /// As root starts it, with everything allowed, in `folder`. None if these tests do not run as root.
    pub(crate) fn of_root(folder: &Path) -> Option<Self> {
        nix::unistd::geteuid().is_root().then(|| Self::start(folder, BASE, None, &[]))
    }

    /// As an ordinary user starts it: root's tests become one for it.
    pub(crate) fn of_a_user(folder: &Path) -> Self {
        let user = nix::unistd::geteuid().is_root().then_some(NOBODY);
        Self::start(folder, 0, user, &[])
    }

    /// With only some groups allowed; no group for all.
    pub(crate) fn start(folder: &Path, base: u32, user: Option<u32>, groups: &[Group]) -> Self {
        let allow = Rule {
            groups: groups.to_vec(),
            ..Rule::new(Outcome::Allow, Origin { place: "test".into(), line: 1 })
        };
        Self::with_rules(folder, base, user, vec![allow])
    }

    /// As root starts it, or as the user who runs these tests, with a policy of its own.
    pub(crate) fn under(folder: &Path, rules: Vec<Rule>) -> Self {
        let base = if nix::unistd::geteuid().is_root() { BASE } else { 0 };
        Self::with_rules(folder, base, None, rules)
    }

    /// As an ordinary user starts it, with a policy of its own.
    pub(crate) fn of_a_user_under(folder: &Path, rules: Vec<Rule>) -> Self {
        let user = nix::unistd::geteuid().is_root().then_some(NOBODY);
        Self::with_rules(folder, 0, user, rules)
    }

    fn with_rules(folder: &Path, base: u32, user: Option<u32>, rules: Vec<Rule>) -> Self {
        let settings = Settings {
            channels: Vec::new(),
            audit: AuditSettings::default(),
            verbose: false,
            time_zone: None,
            os_release: None,
            environment: Vec::new(),
            idle_seconds: 0,
            ..Settings::default()
        };
        let sealed = Sealed::new(settings, Policy::new("test", Vec::new(), rules)).encode().unwrap();
        let sealed = jail::sealed::from_bytes(c"sealed", &sealed).unwrap();
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_portreeve-file"));
        command.args([base.to_string(), "0".to_owned()]).env_clear().current_dir(folder);
        let mapping = |parent_fd: OwnedFd, child_fd| FdMapping { parent_fd, child_fd };
        command.fd_mappings(vec![mapping(theirs, 3), mapping(sealed, 4)]).unwrap();
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        let child = command.spawn().unwrap();
        drop(command);
        let pipe = Pipe::new(ours);
        let mut buffer = Pipe::<ToWorker, FromWorker>::buffer();
        let received = pipe.receive(&mut buffer).unwrap().expect("the worker entered its jail");
        let FromWorker::Hello(hello) = received.message else { panic!("no hello first") };
        let answer =
            Hello { build_id: proto::BUILD_ID.to_owned(), role: "broker".to_owned(), confinement: vec![] };
        pipe.send(0, 0, &ToWorker::Hello(answer), &[]).unwrap();
        Worker { child, pipe, last_id: 0, confinement: hello.confinement }
    }

    /// Sends a job and returns its id.
    pub(crate) fn send(&mut self, request: Request, detail: Detail, deadline_ms: u32, payload: &[u8]) -> u64 {
        self.last_id += 1;
        let job = Job { channel: "test".to_owned(), request: request.into(), detail };
        self.pipe.send(self.last_id, deadline_ms, &ToWorker::Job(job), payload).unwrap();
        self.last_id
    }

    /// The next answer, of whichever job.
    pub(crate) fn next_answer(&mut self) -> (u64, Answer) {
        let mut buffer = Pipe::<ToWorker, FromWorker>::buffer();
        let received = self.pipe.receive(&mut buffer).unwrap().expect("the worker lives");
        match received.message {
            FromWorker::Answer(result, _) => {
                let result = result.map(|reply| match reply {
                    proto::Reply::File(reply) => reply,
                    other => panic!("{other:?} is no file reply"),
                });
                (received.id, (result, received.payload.to_vec()))
            }
            // What the broker would decide by.
            FromWorker::Denied(found) => {
                let path = found.path.expect("it has found something");
                (received.id, (Err(Failed::new(format!("denied: {path}"))), received.payload.to_vec()))
            }
            other => panic!("{other:?} is no answer"),
        }
    }

    /// Whether it says that its own policy refuses a job, and ends.
    pub(crate) fn refuses(mut self, request: Request) -> (String, ExitStatus) {
        self.send(request, Detail::default(), 0, &[]);
        let mut buffer = Pipe::<ToWorker, FromWorker>::buffer();
        let received = self.pipe.receive(&mut buffer).unwrap().expect("it says so first");
        let FromWorker::Refused(rule) = received.message else { panic!("{:?}", received.message) };
        (rule, self.child.wait().unwrap())
    }

    /// Asks and waits for the answer.
    pub(crate) fn ask(&mut self, request: impl Into<Request>, detail: Detail, payload: &[u8]) -> Answer {
        let id = self.send(request.into(), detail, 5_000, payload);
        let (answered, answer) = self.next_answer();
        assert_eq!(answered, id);
        answer
    }

    /// Asks for something that needs no handle; a failure as its text and errno.
    pub(crate) fn try_do(&mut self, request: Request) -> Result<file::Reply, (String, Option<i32>)> {
        self.ask(request, Detail::default(), &[]).0.map_err(|failed| (failed.text, failed.errno))
    }

    /// Takes a file back that nobody knows of.
    pub(crate) fn forget(&mut self, handle: u64) {
        self.pipe.send(0, 0, &ToWorker::Forget(handle), &[]).unwrap();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The file behind a number.
pub(crate) fn handle(handle: u64) -> Detail {
    Detail { handle, ..Detail::default() }
}
