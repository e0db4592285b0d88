//! Writes a plan and becomes the spawner, as `portreeve` does; in a process of its own, so that no other test's child inherits
//! a descriptor of this one.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsRawFd as _, IntoRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use authorize::{Origin, Outcome, Policy, Rule, Sealed};
use jail::Role;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use proto::Dialect;
use proto::settings::{AuditSettings, AuditSink, ChannelSettings, Method as Opened, Settings};
use spawner::{Channel, Descriptors, Method, Plan};

/// `launch FOLDER SPAWNER UID_BASE WORKERS CHANNELS`; the log is descriptor 2.
pub(crate) fn launch(arguments: &[OsString]) {
    let [folder, spawner, base, workers, channels] = arguments else {
        panic!("five arguments: {arguments:?}")
    };
    let folder = PathBuf::from(folder);
    let number = |text: &OsString| text.to_str().unwrap().parse::<u32>().unwrap();
    let paths: Vec<PathBuf> =
        (0..number(channels)).map(|index| folder.join(format!("channel{index}"))).collect();
    let workers = workers.to_str().unwrap().split(',').filter(|name| !name.is_empty());
    let role = |name: &str| Role::ALL.into_iter().find(|role| role.name() == name).unwrap();
    let file = |name: &str| inherited(File::create(folder.join(name)).unwrap().into());
    let plan = Plan {
        uid_base: number(base),
        workers: workers.map(role).collect(),
        channels: paths
            .iter()
            .map(|path| Channel {
                method: Method::UnixListen { path: path.clone(), mode: None },
                retry: false,
                reopen: false,
            })
            .collect(),
        descriptors: Descriptors {
            executables: inherited(File::open(&folder).unwrap().into()),
            settings: inherited(sealed(&paths)),
            log: 2,
            audit: Some(file("audit")),
            audit_directory: None,
            audit_socket: None,
            chain: Some(file("chain")),
            state: Some(file("state")),
            marker: None,
            ready: None,
            pid_file: None,
            command: None,
        },
        audit_file: None,
        frozen: false,
        pid_file: None,
        name: Vec::new(),
        notify_socket: Vec::new(),
    };
    let plan = inherited(plan.seal().unwrap());
    let error = Command::new(spawner).arg(plan.to_string()).exec();
    panic!("{}: {error}", Path::new(spawner).display());
}

/// Left open for the program that this one becomes.
fn inherited(descriptor: OwnedFd) -> RawFd {
    fcntl(&descriptor, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    assert!(descriptor.as_raw_fd() < 64);
    descriptor.into_raw_fd()
}

/// Everything is permitted: the widest jail that a policy can lead to.
fn sealed(channels: &[PathBuf]) -> OwnedFd {
    let everything = Rule::new(Outcome::Allow, Origin { place: "test".into(), line: 1 });
    let settings = Settings {
        channels: (0..channels.len())
            .map(|index| ChannelSettings {
                name: format!("channel{index}"),
                method: Opened::UnixListen,
                dialects: vec![Dialect::Qga, Dialect::Phoenix],
                peer_cid: None,
            })
            .collect(),
        audit: AuditSettings { sinks: vec![AuditSink::File], ..AuditSettings::default() },
        verbose: false,
        time_zone: None,
        os_release: None,
        environment: Vec::new(),
        idle_seconds: 0,
        ..Settings::default()
    };
    let sealed = Sealed::new(settings, Policy::new("test", Vec::new(), vec![everything]));
    jail::sealed::from_bytes(c"portreeve-settings", &sealed.encode().unwrap()).unwrap()
}
