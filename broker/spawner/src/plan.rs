//! The plan: everything the spawner knows. `portreeve` writes it once, the spawner reads it once.
//!
//! A sealed memory file in a binary form of its own, so that the root process holds no parser: integers are little endian,
//! texts have a u16 length before them. Every length and count is compared with a limit before it is used; what is left over or
//! missing is an error. Whoever can write the plan is root (or, without root, the user it all runs as).

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

use jail::Role;

/// Most channels of one agent; the ids of frontends and the spawner's tables are laid out for it.
pub const CHANNELS: usize = 16;

/// The one byte that is written to the ready pipe when the agent is up. A pipe closed without it: the start failed.
pub const READY: u8 = 1;

/// Largest encoded plan in bytes.
const LIMIT: usize = 128 * 1024;

/// Longest path in bytes: PATH_MAX with its final NUL.
const LONGEST_PATH: usize = 4095;

/// "prvplan3"
const MAGIC: [u8; 8] = *b"prvplan3";

/// What the spawner is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// First user id of ours. 0: not started by root, no uid separation.
    pub uid_base: u32,
    /// Workers that may exist. [`Role::Exec`] and [`Role::NetAdmin`] only if the policy permits them: with the first the
    /// spawner runs unfiltered, since commands must not inherit a filter.
    pub workers: Vec<Role>,
    /// 1 to [`CHANNELS`]; the position is the frontend's instance.
    pub channels: Vec<Channel>,
    /// What is open already.
    pub descriptors: Descriptors,
    /// How the audit log's file is exchanged; needs [`Descriptors::audit`] and [`Descriptors::audit_directory`].
    pub audit_file: Option<AuditFile>,
    /// Whether an earlier agent left filesystems frozen: nothing is written until the broker says that they are thawed.
    pub frozen: bool,
    /// The pid file to remove at the end; needs [`Descriptors::pid_file`]. Absolute.
    pub pid_file: Option<PathBuf>,
    /// Process name to show in `ps` and `pidof`, at most 15 bytes. Empty: left as it is.
    pub name: Vec<u8>,
    /// systemd's `NOTIFY_SOCKET`, as in the environment: a path, or `@` and an abstract name. Empty: nobody to tell.
    pub notify_socket: Vec<u8>,
}

/// Longest name of an audit log's file in bytes: a dot and ten digits fit behind it into NAME_MAX.
pub const AUDIT_NAME: usize = 240;

/// How the audit log's file is exchanged. Those that are full are named `NAME.1`, `NAME.2` and so on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditFile {
    /// Its name in its directory: no slash, at most [`AUDIT_NAME`] bytes.
    pub name: Vec<u8>,
    /// Bytes from which on another may be begun; 0 for never.
    pub rotate_bytes: u64,
    /// Seconds after which another may be begun; 0 for never.
    pub rotate_seconds: u64,
    /// Full ones to keep.
    pub keep: u32,
    /// The oldest that is there.
    pub first: u32,
    /// What the next gets; at least `first`, from 1.
    pub next: u32,
}

/// Where requests come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Channel {
    /// What to open.
    pub method: Method,
    /// Whether a channel that cannot be opened at the start is waited for, trying every 5 s (`qemu-ga -r`), instead of ending
    /// the agent with status 1.
    pub retry: bool,
    /// Whether a channel that has gone (frontend status 10) is opened anew, trying every second, instead of ending
    /// the agent with status 0.
    pub reopen: bool,
}

/// What to open for a channel; qemu-ga's `--method`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Method {
    /// A virtio port.
    VirtioSerial {
        /// Device.
        path: PathBuf,
    },
    /// A serial line, set to raw.
    IsaSerial {
        /// Device.
        path: PathBuf,
    },
    /// A unix socket to listen on. A socket that is there is replaced.
    UnixListen {
        /// Where; at most 107 bytes, `unix(7)`.
        path: PathBuf,
        /// Permission bits. None: 0777 less the umask, as qemu-ga.
        mode: Option<u32>,
    },
    /// A vsock port to listen on.
    VsockListen {
        /// Own context id; `u32::MAX` for any.
        cid: u32,
        /// Port.
        port: u32,
    },
    /// A socket that listens already (socket activation).
    Inherited {
        /// Its number in the spawner, 0 to 63.
        descriptor: RawFd,
    },
}

/// Numbers of the descriptors that `portreeve` leaves open for the spawner, 0 to 63, all different.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptors {
    /// The directory that holds the roles' programs.
    pub executables: RawFd,
    /// Sealed settings and policy; descriptor 4 of broker and workers.
    pub settings: RawFd,
    /// The agent's log; descriptor 2 of the broker. The spawner's own lines go there, too: usually 2.
    pub log: RawFd,
    /// The audit log's file; descriptor 5 of the broker.
    pub audit: Option<RawFd>,
    /// The directory that it is in.
    pub audit_directory: Option<RawFd>,
    /// A log daemon's socket for audit records; descriptor 8 of the broker.
    pub audit_socket: Option<RawFd>,
    /// Where the audit log's chain stands; descriptor 9 of the broker.
    pub chain: Option<RawFd>,
    /// The state file; descriptor 6 of the broker.
    pub state: Option<RawFd>,
    /// The file that says whether filesystems are frozen; descriptor 7 of the broker, 5 of the fsfreeze worker.
    pub marker: Option<RawFd>,
    /// Writing end of the pipe that a waiting parent reads; see [`READY`].
    pub ready: Option<RawFd>,
    /// The pid file, locked by this process (`fcntl(2)`, F_SETLK).
    pub pid_file: Option<RawFd>,
    /// The program of `portreeve` (O_PATH), which compiles the policy anew when SIGHUP comes. None: SIGHUP ends the agent, as it
    /// ends qemu-ga.
    pub command: Option<RawFd>,
}

/// A plan that cannot be written or read.
#[derive(Debug)]
pub enum PlanError {
    /// Not a plan, or of another version.
    Magic,
    /// Shorter than its content says.
    Short,
    /// Longer than its content says.
    Long,
    /// A number, length or count out of range; what it is.
    Range(&'static str),
    /// The memory file is not sealed, or could not be read.
    Io(io::Error),
}

impl std::fmt::Display for PlanError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Magic => f.write_str("not a plan of this version"),
            Self::Short => f.write_str("the plan is cut off"),
            Self::Long => f.write_str("the plan has bytes left over"),
            Self::Range(what) => write!(f, "the plan's {what} is out of range"),
            Self::Io(error) => write!(f, "the plan cannot be read: {error}"),
        }
    }
}

impl std::error::Error for PlanError {}

impl From<io::Error> for PlanError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Plan {
    /// Whether this worker may be started.
    #[must_use]
    pub fn permits(&self, role: Role) -> bool {
        self.workers.contains(&role)
    }

    /// Writes the plan into a sealed memory file, to be left open (without close-on-exec) for the spawner, whose last
    /// argument is its number in decimal.
    ///
    /// # Errors
    /// As [`encode`](Self::encode), and [`PlanError::Io`].
    pub fn seal(&self) -> Result<OwnedFd, PlanError> {
        Ok(jail::sealed::from_bytes(c"portreeve-plan", &self.encode()?)?)
    }

    /// Reads the plan from a sealed memory file.
    ///
    /// # Errors
    /// As [`decode`](Self::decode), and [`PlanError::Io`] if a seal is missing.
    pub fn unseal(file: &OwnedFd) -> Result<Self, PlanError> {
        Self::decode(&jail::sealed::read(file.as_fd(), LIMIT)?)
    }

    /// Encodes the plan.
    ///
    /// # Errors
    /// [`PlanError::Range`] for what the documented limits do not allow.
    pub fn encode(&self) -> Result<Vec<u8>, PlanError> {
        let mut out = MAGIC.to_vec();
        out.extend(self.uid_base.to_le_bytes());
        let workers = mask_of(&self.workers).ok_or(PlanError::Range("list of workers"))?;
        out.extend(workers.to_le_bytes());
        if self.channels.is_empty() || self.channels.len() > CHANNELS {
            return Err(PlanError::Range("number of channels"));
        }
        out.push(u8::try_from(self.channels.len()).map_err(|_| PlanError::Range("number of channels"))?);
        for channel in &self.channels {
            out.extend([u8::from(channel.retry), u8::from(channel.reopen)]);
            match &channel.method {
                Method::VirtioSerial { path } => {
                    out.push(1);
                    put_path(&mut out, path)?;
                }
                Method::IsaSerial { path } => {
                    out.push(2);
                    put_path(&mut out, path)?;
                }
                Method::UnixListen { path, mode } => {
                    out.push(3);
                    put_path(&mut out, path)?;
                    out.extend(socket_mode(*mode)?.unwrap_or(u32::MAX).to_le_bytes());
                }
                Method::VsockListen { cid, port } => {
                    out.push(4);
                    out.extend(cid.to_le_bytes());
                    out.extend(port.to_le_bytes());
                }
                Method::Inherited { descriptor } => {
                    out.push(5);
                    put_descriptor(&mut out, Some(*descriptor))?;
                }
            }
        }
        let Descriptors {
            executables,
            settings,
            log,
            audit,
            audit_directory,
            audit_socket,
            chain,
            state,
            marker,
            ready,
            pid_file,
            command,
        } = self.descriptors;
        let audits = [audit, audit_directory, audit_socket, chain];
        let others = [state, marker, ready, pid_file, command];
        for descriptor in [executables, settings, log].map(Some).into_iter().chain(audits).chain(others) {
            put_descriptor(&mut out, descriptor)?;
        }
        match &self.audit_file {
            Some(file) => {
                if !file.is_sound() {
                    return Err(PlanError::Range("audit log"));
                }
                put_text(&mut out, &file.name, AUDIT_NAME, "audit log")?;
                out.extend(file.rotate_bytes.to_le_bytes());
                out.extend(file.rotate_seconds.to_le_bytes());
                for number in [file.keep, file.first, file.next] {
                    out.extend(number.to_le_bytes());
                }
            }
            None => put_text(&mut out, b"", 0, "audit log")?,
        }
        out.push(self.frozen.into());
        match &self.pid_file {
            Some(path) => put_path(&mut out, path)?,
            None => put_text(&mut out, b"", 0, "pid file")?,
        }
        put_text(&mut out, &self.name, 15, "process name")?;
        put_text(&mut out, &self.notify_socket, 108, "notify socket")?;
        Ok(out)
    }

    /// Decodes a plan.
    ///
    /// # Errors
    /// [`PlanError`]: every byte must be accounted for.
    pub fn decode(bytes: &[u8]) -> Result<Self, PlanError> {
        let mut rest = Rest { bytes };
        if rest.take(MAGIC.len())? != MAGIC {
            return Err(PlanError::Magic);
        }
        let uid_base = rest.u32()?;
        let workers = workers_of(rest.u32()?).ok_or(PlanError::Range("list of workers"))?;
        let count = usize::from(rest.u8()?);
        if count == 0 || count > CHANNELS {
            return Err(PlanError::Range("number of channels"));
        }
        let mut channels = Vec::with_capacity(count);
        for _ in 0..count {
            channels.push(rest.channel()?);
        }
        let descriptors = Descriptors {
            executables: rest.open_descriptor("directory")?,
            settings: rest.open_descriptor("settings")?,
            log: rest.open_descriptor("log")?,
            audit: rest.descriptor()?,
            audit_directory: rest.descriptor()?,
            audit_socket: rest.descriptor()?,
            chain: rest.descriptor()?,
            state: rest.descriptor()?,
            marker: rest.descriptor()?,
            ready: rest.descriptor()?,
            pid_file: rest.descriptor()?,
            command: rest.descriptor()?,
        };
        let audit_file = rest.audit_file()?;
        let frozen = match rest.u8()? {
            0 => false,
            1 => true,
            _ => return Err(PlanError::Range("frozen")),
        };
        let pid_file = Some(rest.path()?).filter(|path| !path.as_os_str().is_empty());
        let name = rest.text(15, "process name")?.to_vec();
        let notify_socket = rest.text(108, "notify socket")?.to_vec();
        if !rest.bytes.is_empty() {
            return Err(PlanError::Long);
        }
        Ok(Self {
            uid_base,
            workers,
            channels,
            descriptors,
            audit_file,
            frozen,
            pid_file,
            name,
            notify_socket,
        })
    }
}

impl AuditFile {
    fn is_sound(&self) -> bool {
        !self.name.is_empty()
            && !self.name.contains(&b'/')
            && self.name != b"."
            && self.name != b".."
            && (1..=self.next).contains(&self.first)
    }
}

/// A list of workers in one number, a bit for each; None if one of them is no worker.
#[must_use]
pub fn mask_of(workers: &[Role]) -> Option<u32> {
    workers.iter().try_fold(0, |mask, role| role.is_worker().then_some(mask | bit(*role)))
}

/// The workers of [`mask_of`]; None if a bit stands for something else.
#[must_use]
pub fn workers_of(mask: u32) -> Option<Vec<Role>> {
    let workers: Vec<Role> =
        Role::ALL.into_iter().filter(|role| role.is_worker() && mask & bit(*role) != 0).collect();
    (mask_of(&workers) == Some(mask)).then_some(workers)
}

fn bit(role: Role) -> u32 {
    1 << (role as u8)
}

fn socket_mode(mode: Option<u32>) -> Result<Option<u32>, PlanError> {
    if mode.is_none_or(|mode| mode <= 0o777) { Ok(mode) } else { Err(PlanError::Range("socket mode")) }
}

fn put_path(out: &mut Vec<u8>, path: &std::path::Path) -> Result<(), PlanError> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() || bytes.contains(&0) {
        return Err(PlanError::Range("path"));
    }
    put_text(out, bytes, LONGEST_PATH, "path")
}

fn put_text(out: &mut Vec<u8>, text: &[u8], longest: usize, what: &'static str) -> Result<(), PlanError> {
    let length = u16::try_from(text.len()).map_err(|_| PlanError::Range(what))?;
    if text.len() > longest || text.contains(&0) {
        return Err(PlanError::Range(what));
    }
    out.extend(length.to_le_bytes());
    out.extend(text);
    Ok(())
}

/// 255 stands for none.
fn put_descriptor(out: &mut Vec<u8>, descriptor: Option<RawFd>) -> Result<(), PlanError> {
    let number = match descriptor {
        None => u8::MAX,
        Some(number) => {
            u8::try_from(number).ok().filter(|number| *number < 64).ok_or(PlanError::Range("descriptor"))?
        }
    };
    out.push(number);
    Ok(())
}

/// What is left to decode.
struct Rest<'a> {
    bytes: &'a [u8],
}

impl<'a> Rest<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], PlanError> {
        let (head, tail) = self.bytes.split_at_checked(count).ok_or(PlanError::Short)?;
        self.bytes = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PlanError> {
        let (head, tail) = self.bytes.split_first_chunk().ok_or(PlanError::Short)?;
        self.bytes = tail;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, PlanError> {
        self.array().map(u8::from_le_bytes)
    }

    fn u16(&mut self) -> Result<u16, PlanError> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, PlanError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, PlanError> {
        self.array().map(u64::from_le_bytes)
    }

    fn audit_file(&mut self) -> Result<Option<AuditFile>, PlanError> {
        let name = self.text(AUDIT_NAME, "audit log")?.to_vec();
        if name.is_empty() {
            return Ok(None);
        }
        let (rotate_bytes, rotate_seconds) = (self.u64()?, self.u64()?);
        let (keep, first, next) = (self.u32()?, self.u32()?, self.u32()?);
        let file = AuditFile { name, rotate_bytes, rotate_seconds, keep, first, next };
        if file.is_sound() { Ok(Some(file)) } else { Err(PlanError::Range("audit log")) }
    }

    fn flag(&mut self) -> Result<bool, PlanError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(PlanError::Range("flag")),
        }
    }

    fn text(&mut self, longest: usize, what: &'static str) -> Result<&'a [u8], PlanError> {
        let length = usize::from(self.u16()?);
        if length > longest {
            return Err(PlanError::Range(what));
        }
        let text = self.take(length)?;
        if text.contains(&0) { Err(PlanError::Range(what)) } else { Ok(text) }
    }

    /// May be empty.
    fn path(&mut self) -> Result<PathBuf, PlanError> {
        self.text(LONGEST_PATH, "path").map(|path| OsString::from_vec(path.to_vec()).into())
    }

    fn device(&mut self) -> Result<PathBuf, PlanError> {
        let path = self.path()?;
        if path.as_os_str().is_empty() { Err(PlanError::Range("path")) } else { Ok(path) }
    }

    fn descriptor(&mut self) -> Result<Option<RawFd>, PlanError> {
        match self.u8()? {
            u8::MAX => Ok(None),
            number if number < 64 => Ok(Some(number.into())),
            _ => Err(PlanError::Range("descriptor")),
        }
    }

    fn open_descriptor(&mut self, what: &'static str) -> Result<RawFd, PlanError> {
        self.descriptor()?.ok_or(PlanError::Range(what))
    }

    fn channel(&mut self) -> Result<Channel, PlanError> {
        let (retry, reopen) = (self.flag()?, self.flag()?);
        let method = match self.u8()? {
            1 => Method::VirtioSerial { path: self.device()? },
            2 => Method::IsaSerial { path: self.device()? },
            3 => {
                let path = self.device()?;
                Method::UnixListen {
                    path,
                    mode: socket_mode(Some(self.u32()?).filter(|mode| *mode != u32::MAX))?,
                }
            }
            4 => Method::VsockListen { cid: self.u32()?, port: self.u32()? },
            5 => Method::Inherited { descriptor: self.open_descriptor("channel")? },
            _ => return Err(PlanError::Range("method")),
        };
        Ok(Channel { method, retry, reopen })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        let channel = |method| Channel { method, retry: true, reopen: false };
        Plan {
            uid_base: 1_900_000_000,
            workers: vec![Role::Query, Role::File, Role::Exec],
            channels: vec![
                channel(Method::VirtioSerial { path: "/dev/virtio-ports/org.qemu.guest_agent.0".into() }),
                channel(Method::IsaSerial { path: "/dev/ttyS0".into() }),
                channel(Method::UnixListen { path: "/run/a.sock".into(), mode: Some(0o660) }),
                channel(Method::UnixListen { path: "/run/b.sock".into(), mode: None }),
                channel(Method::VsockListen { cid: u32::MAX, port: 1234 }),
                channel(Method::Inherited { descriptor: 3 }),
            ],
            descriptors: Descriptors {
                executables: 4,
                settings: 5,
                log: 2,
                audit: Some(6),
                audit_directory: Some(10),
                audit_socket: Some(11),
                chain: Some(12),
                state: None,
                marker: Some(9),
                ready: Some(7),
                pid_file: Some(8),
                command: Some(10),
            },
            audit_file: Some(AuditFile {
                name: b"audit.jsonl".to_vec(),
                rotate_bytes: 1 << 25,
                rotate_seconds: 0,
                keep: 10,
                first: 3,
                next: 7,
            }),
            frozen: false,
            pid_file: Some("/run/qemu-ga.pid".into()),
            name: b"qemu-ga".to_vec(),
            notify_socket: b"@notify".to_vec(),
        }
    }

    #[test]
    fn a_plan_survives_encoding_and_sealing() {
        let file = plan().seal().expect("seals");
        assert_eq!(Plan::unseal(&file).expect("unseals"), plan());
    }

    #[test]
    fn a_plan_cut_anywhere_is_refused() {
        let bytes = plan().encode().expect("encodes");
        let accepted: Vec<usize> =
            (0..bytes.len()).filter(|length| Plan::decode(&bytes[..*length]).is_ok()).collect();
        assert_eq!(accepted, Vec::<usize>::new());
    }

    #[test]
    fn an_audit_log_has_a_name_in_its_own_directory() {
        for name in ["..", ".", "a/b", "/a"] {
            let mut wrong = plan();
            wrong.audit_file.as_mut().expect("it has one").name = name.into();
            assert!(matches!(wrong.encode(), Err(PlanError::Range("audit log"))), "{name}");
        }
        let mut wrong = plan();
        wrong.audit_file.as_mut().expect("it has one").first = 8;
        assert!(matches!(wrong.encode(), Err(PlanError::Range("audit log"))));
    }

    #[test]
    fn bytes_left_over_are_refused() {
        let mut bytes = plan().encode().expect("encodes");
        bytes.push(0);
        assert!(matches!(Plan::decode(&bytes), Err(PlanError::Long)));
    }

    #[test]
    fn a_plan_for_a_role_that_is_no_worker_is_refused() {
        let broker = Plan { workers: vec![Role::Broker], ..plan() };
        assert!(matches!(broker.encode(), Err(PlanError::Range("list of workers"))));
        let mut bytes = plan().encode().expect("encodes");
        bytes[12] |= 1 << Role::Frontend as u8;
        assert!(matches!(Plan::decode(&bytes), Err(PlanError::Range("list of workers"))));
    }

    #[test]
    fn a_plan_without_channels_or_with_seventeen_is_refused() {
        let none = Plan { channels: Vec::new(), ..plan() };
        assert!(matches!(none.encode(), Err(PlanError::Range("number of channels"))));
        let seventeen = Plan { channels: vec![plan().channels[0].clone(); 17], ..plan() };
        assert!(matches!(seventeen.encode(), Err(PlanError::Range("number of channels"))));
    }

    #[test]
    fn any_single_changed_byte_decodes_to_an_equal_form_or_to_an_error() {
        let bytes = plan().encode().expect("encodes");
        let mut checked = 0;
        for index in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[index] ^= 0x55;
            if let Ok(plan) = Plan::decode(&changed) {
                assert_eq!(plan.encode().expect("encodes"), changed, "byte {index}");
            }
            checked += 1;
        }
        assert_eq!(checked, bytes.len());
    }

    #[test]
    fn an_unsealed_plan_is_refused() {
        let file = jail::sealed::create(c"plan").expect("makes it");
        assert!(matches!(Plan::unseal(&file), Err(PlanError::Io(_))));
    }
}
