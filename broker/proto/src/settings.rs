//! What `portreeve` read from options and configuration, for all other processes.
//!
//! Written once before the spawner starts, sealed together with the policy, then read-only for everyone.

use bincode::{Decode, Encode};

use crate::Dialect;

/// How bytes reach the agent; decides what end-of-file means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Method {
    /// A virtio port: one byte stream for ever, end-of-file while no host is connected.
    VirtioSerial,
    /// A serial line, put into raw mode.
    IsaSerial,
    /// A listening unix socket: one client at a time.
    UnixListen,
    /// A listening vsock socket: one client at a time.
    VsockListen,
}

impl Method {
    /// As written on the command line and in configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Method::VirtioSerial => "virtio-serial",
            Method::IsaSerial => "isa-serial",
            Method::UnixListen => "unix-listen",
            Method::VsockListen => "vsock-listen",
        }
    }

    /// Whether clients connect one after the other, each with a parser of its own.
    pub const fn listens(self) -> bool {
        matches!(self, Method::UnixListen | Method::VsockListen)
    }
}

/// One channel and what is spoken on it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ChannelSettings {
    /// For policy, log and audit; unique.
    pub name: String,
    /// How it is opened.
    pub method: Method,
    /// What is spoken: one of the two, or both, told apart by each command's name.
    pub dialects: Vec<Dialect>,
    /// vsock: the only context id that may connect (2 is the host); every one if not set.
    pub peer_cid: Option<u32>,
}

/// Where audit records go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum AuditSink {
    /// To the file that the broker was born with, opened for appending.
    File,
    /// To the syslog socket that the broker was born with, with facility and severity in front.
    Syslog,
    /// To the journal's socket that the broker was born with, with fields.
    Journald,
    /// To the agent's log.
    Log,
    /// To the kernel's audit, by the audit worker.
    Kernel,
}

/// The audit log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct AuditSettings {
    /// The first is the log that counts, the others get copies; none: there is no audit log.
    pub sinks: Vec<AuditSink>,
    /// Whether a request is refused when its record cannot be written.
    pub required: bool,
    /// Whether an intent is on the disk before what it announces begins.
    pub sync: bool,
    /// The file's name, without its directory.
    pub name: String,
    /// Bytes after which a new file is begun; 0 for never.
    pub rotate_bytes: u64,
    /// Seconds after which a new file is begun; 0 for never.
    pub rotate_seconds: u64,
}

/// Everything the processes need to know beside the policy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct Settings {
    /// The channels; the position is the frontend's instance number.
    pub channels: Vec<ChannelSettings>,
    /// Where audit records go.
    pub audit: AuditSettings,
    /// The log shows everything, else errors only.
    pub verbose: bool,
    /// `$TZ` of the agent, for `guest-get-timezone`.
    pub time_zone: Option<String>,
    /// `$QGA_OS_RELEASE`: the only os-release file to read.
    pub os_release: Option<String>,
    /// `$PATH`, and with it the rest of the environment, that programs of `guest-exec` inherit.
    pub environment: Vec<(Vec<u8>, Vec<u8>)>,
    /// Seconds without work after which a worker is ended; 0 for never.
    pub idle_seconds: u32,
    /// Whether commands are served that qemu-ga does not have on Linux.
    pub extensions: bool,
    /// Freezing.
    pub freeze: FreezeSettings,
    /// How init is asked to shut down; found out if not set.
    pub init: Option<Init>,
    /// Seconds that one `guest-set-time` may move the clock; 0 for any.
    pub clock_step_seconds: u32,
    /// What a reload reads anew. None: the agent does not reload.
    pub configured: Option<Configured>,
}

/// The configuration file as it was at the start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct Configured {
    /// Its path, absolute. None: the usual one, which need not exist.
    pub file: Option<Vec<u8>>,
    /// Its keys, tables' with a dot, and their values as text; without the policy's, which a reload takes over.
    pub values: Vec<(String, String)>,
}

/// Who process 1 is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Init {
    /// systemd: real-time signals.
    Systemd,
    /// busybox: SIGUSR1, SIGUSR2, SIGTERM.
    Busybox,
    /// System V's, OpenRC's usual one as well: a request into its FIFO.
    Sysvinit,
}

impl Init {
    /// Every one, as written in configuration.
    pub const ALL: [(&'static str, Init); 3] =
        [("systemd", Init::Systemd), ("busybox", Init::Busybox), ("sysvinit", Init::Sysvinit)];
}

/// How freezing is done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct FreezeSettings {
    /// Seconds after which frozen filesystems are thawed by themselves; 0 for never.
    pub limit_seconds: u32,
    /// The program to run before a freeze and after a thaw; absolute.
    pub hook: Option<Vec<u8>>,
    /// Seconds that one run of it may take.
    pub hook_limit_seconds: u32,
    /// Names this boot of the kernel, in the file that says whether something is frozen and in the audit log.
    pub boot_id: String,
}
