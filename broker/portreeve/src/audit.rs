//! The audit log before the agent runs: opened, its end looked at, so that the broker, which can only append, goes on with its chain.
//!
//! Runs as root. The log is root's, but what is in it hosts have caused and others may have changed: a bounded part of its end is
//! read, and what is no record says nothing.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use proto::chain::{self, Chain, Hash, Head, INTENTS, Intent};
use proto::settings::{AuditSettings, AuditSink};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use spawner::AuditFile;
use spawner::plan::AUDIT_NAME;

/// Bytes of the log's end that are read: a few hundred records. Intents that began before them are not looked for.
const TAIL: u64 = 256 * 1024;

const SYSLOG: &str = "/dev/log";
const JOURNAL: &str = "/run/systemd/journal/socket";

/// Bytes after which another file is begun, unless configured.
const ROTATE_BYTES: u64 = 32 << 20;
/// Full files that are kept, unless configured.
const KEEP: u32 = 10;

/// An audit log as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Audit {
    /// The first counts, the others get copies.
    pub(crate) sinks: Vec<AuditSink>,
    /// A socket that does not answer is no error: there is no audit log then.
    pub(crate) if_there: bool,
    /// Of the sink `file`.
    pub(crate) path: Option<PathBuf>,
    /// Of `syslog` or `journald`, if not the usual one.
    pub(crate) socket: Option<PathBuf>,
    pub(crate) required: bool,
    pub(crate) sync: bool,
    /// 0 for never.
    pub(crate) rotate_bytes: u64,
    /// 0 for never.
    pub(crate) rotate_days: u32,
    pub(crate) keep: u32,
}

impl Audit {
    /// To these places, otherwise as usual.
    pub(crate) fn to(sinks: impl Into<Vec<AuditSink>>) -> Self {
        Audit {
            sinks: sinks.into(),
            if_there: false,
            path: None,
            socket: None,
            required: false,
            sync: false,
            rotate_bytes: ROTATE_BYTES,
            rotate_days: 0,
            keep: KEEP,
        }
    }

    /// To syslog if there is one, else nowhere.
    pub(crate) fn to_syslog_if_there() -> Self {
        Audit { if_there: true, ..Audit::to([AuditSink::Syslog]) }
    }
}

/// One that is open.
#[derive(Default)]
pub(crate) struct Opened {
    pub(crate) settings: AuditSettings,
    pub(crate) file: Option<File>,
    pub(crate) directory: Option<File>,
    pub(crate) socket: Option<OwnedFd>,
    pub(crate) chain: Option<OwnedFd>,
    pub(crate) plan: Option<AuditFile>,
}

/// Opens the log.
///
/// # Errors
/// A text for the log: what cannot be opened.
pub(crate) fn open(audit: &Audit) -> Result<Opened, String> {
    let mut opened = Opened {
        settings: AuditSettings {
            sinks: audit.sinks.clone(),
            required: audit.required,
            sync: audit.sync,
            ..AuditSettings::default()
        },
        ..Opened::default()
    };
    for sink in &audit.sinks {
        let (usual, what) = match sink {
            AuditSink::Syslog => (SYSLOG, "syslog"),
            AuditSink::Journald => (JOURNAL, "the journal"),
            AuditSink::File | AuditSink::Log => continue,
            AuditSink::Kernel => {
                kernel_audits().map_err(|why| format!("cannot reach the kernel's audit: {why}"))?;
                continue;
            }
        };
        let path = audit.socket.as_deref().unwrap_or(Path::new(usual));
        match connect(path) {
            Ok(socket) => opened.socket = Some(socket),
            Err(_) if audit.if_there => return Ok(Opened::default()),
            Err(error) => return Err(format!("cannot reach {what} at {}: {error}", path.display())),
        }
    }
    let mut chain = Chain { turn: 1, begun: now(), ..Chain::default() };
    if let Some(path) = &audit.path {
        opened
            .open_file(audit, path, &mut chain)
            .map_err(|error| format!("cannot open the audit log {}: {error}", path.display()))?;
    }
    if !audit.sinks.is_empty() {
        let handed = hand_over(&chain).map_err(|error| format!("the audit log's chain: {error}"))?;
        opened.chain = Some(handed);
    }
    Ok(opened)
}

impl Opened {
    fn open_file(&mut self, audit: &Audit, path: &Path, chain: &mut Chain) -> io::Result<()> {
        let (file, made) = append(path)?;
        let about = file.metadata()?;
        // A device or a pipe has no end to look at, and no name to give away.
        if about.is_file() {
            let name = path.file_name().map(|name| name.as_bytes().to_vec()).unwrap_or_default();
            if name.len() > AUDIT_NAME {
                return Err(io::Error::other(format!("its name is longer than {AUDIT_NAME} bytes")));
            }
            let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
            let directory = OpenOptions::new()
                .read(true)
                .custom_flags((OFlag::O_PATH | OFlag::O_DIRECTORY).bits())
                .open(folder)?;
            let (first, next) = numbers(folder, &name)?;
            // What the broker gets can only append; this descriptor ends here.
            let readable = OpenOptions::new().read(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(path)?;
            let same = readable.metadata()?;
            if (same.dev(), same.ino()) != (about.dev(), about.ino()) {
                return Err(io::Error::other("it was exchanged meanwhile"));
            }
            let end = End::of(&readable)?;
            if end.open_line {
                (&file).write_all(b"\n")?;
            }
            chain.cut = end.cut;
            chain.last = end.last;
            chain.intents = end.intents;
            if chain.last.sequence == 0 && next > first {
                // Begun just now: the record before is in the file before.
                let before = folder.join(path_of(&name, next - 1));
                if let Ok(before) = OpenOptions::new()
                    .read(true)
                    .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
                    .open(before)
                    && before.metadata()?.is_file()
                {
                    let end = End::of(&before)?;
                    (chain.last, chain.intents) = (end.last, end.intents);
                }
            }
            chain.last.size = file.metadata()?.len();
            let born = about.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok());
            chain.begun = born.filter(|_| !made).map_or_else(now, |born| born.as_secs());
            let rotate_seconds = u64::from(audit.rotate_days) * 24 * 60 * 60;
            self.settings.name = String::from_utf8_lossy(&name).into_owned();
            self.settings.rotate_bytes = audit.rotate_bytes;
            self.settings.rotate_seconds = rotate_seconds;
            self.directory = Some(directory);
            self.plan = Some(AuditFile {
                name,
                rotate_bytes: audit.rotate_bytes,
                rotate_seconds,
                keep: audit.keep,
                first,
                next,
            });
        }
        self.file = Some(file);
        Ok(())
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs())
}

/// Whether there is anything that the audit worker could reach. What the kernel makes of records is known when it gets one.
fn kernel_audits() -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("the sink \"kernel\" is for an agent that is started by root".to_owned());
    }
    let flags = SockFlag::SOCK_CLOEXEC;
    match socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkAudit) {
        Ok(_) => Ok(()),
        Err(Errno::EPROTONOSUPPORT) => Err(
            "this kernel has none (built without CONFIG_AUDIT, or booted with audit=0); choose another sink"
                .to_owned(),
        ),
        Err(errno) => Err(errno.desc().to_owned()),
    }
}

fn connect(path: &Path) -> io::Result<OwnedFd> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    // A log daemon that hangs must not hang the broker.
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Opens the log for its owner only: it tells what was asked. Also says whether it was made.
fn append(path: &Path) -> io::Result<(File, bool)> {
    let mut options = OpenOptions::new();
    options.append(true).mode(0o600).custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NOCTTY).bits());
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            options.create_new(true).open(path).map(|file| (file, true))
        }
        other => other.map(|file| (file, false)),
    }
}

fn path_of(name: &[u8], number: u32) -> PathBuf {
    let mut name = name.to_vec();
    name.extend(format!(".{number}").bytes());
    PathBuf::from(std::ffi::OsStr::from_bytes(&name))
}

/// The number of the oldest full file, and what the next one gets.
fn numbers(folder: &Path, name: &[u8]) -> io::Result<(u32, u32)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let found = entry?.file_name();
        let digits =
            found.as_bytes().strip_prefix(name).and_then(|rest| rest.strip_prefix(b".")).unwrap_or_default();
        if digits.iter().all(u8::is_ascii_digit)
            && let Some(number) =
                std::str::from_utf8(digits).ok().and_then(|digits| digits.parse::<u32>().ok())
            && (1..u32::MAX / 2).contains(&number)
        {
            all.push(number);
        }
    }
    let next = all.iter().max().map_or(1, |last| last + 1);
    Ok((all.into_iter().min().unwrap_or(next), next))
}

/// The memory file that every broker is born with.
fn hand_over(chain: &Chain) -> io::Result<OwnedFd> {
    let file = File::from(jail::sealed::create(c"portreeve-chain")?);
    file.set_len(chain::FILE as u64)?;
    let mut bytes = Vec::new();
    let at = chain.encode(&mut bytes);
    file.write_all_at(&bytes, at)?;
    // Its content changes, its length never does.
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(file.as_fd(), FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}

/// What the end of a log says.
#[derive(Debug, Default, PartialEq, Eq)]
struct End {
    /// The last whole record.
    last: Head,
    /// Those without an outcome.
    intents: Vec<Intent>,
    /// The last line does not end.
    open_line: bool,
    /// Bytes of it, if it is no whole record.
    cut: u64,
}

/// What is looked at in a record.
#[derive(Deserialize)]
struct Seen {
    sequence: u64,
    kind: String,
    intent: Option<u64>,
    of: Option<String>,
}

impl End {
    fn of(file: &File) -> io::Result<End> {
        let length = file.metadata()?.len();
        let begin = length.saturating_sub(TAIL);
        let mut bytes = vec![0; usize::try_from(length.saturating_sub(begin)).unwrap_or_default()];
        // It may have been cut meanwhile: what is not there is zeros, and no record.
        match file.read_exact_at(&mut bytes, begin) {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error),
            _ => {}
        }
        Ok(End::read(&bytes, begin > 0))
    }

    /// Reads lines; the first is incomplete if something is `before` it.
    fn read(bytes: &[u8], before: bool) -> End {
        let mut end = End::default();
        let mut lines = bytes.split_inclusive(|byte| *byte == b'\n');
        if before {
            lines.next();
        }
        for line in lines {
            let whole = line.strip_suffix(b"\n");
            let text = whole.unwrap_or(line);
            let seen = serde_json::from_slice::<Seen>(text).ok().filter(|_| text.starts_with(b"{"));
            end.open_line = whole.is_none();
            match seen {
                Some(seen) => end.take(&seen, text),
                None if end.open_line => end.cut = text.len() as u64,
                None => {}
            }
        }
        end
    }

    fn take(&mut self, seen: &Seen, text: &[u8]) {
        match (seen.kind.as_str(), seen.intent, &seen.of) {
            ("start", ..) => {
                let before = self.last.hash;
                self.intents.iter_mut().for_each(|intent| _ = intent.of.get_or_insert(before));
            }
            ("intent", ..) => {
                if self.intents.len() >= INTENTS {
                    self.intents.remove(0);
                }
                self.intents.push(Intent { of: None, sequence: seen.sequence });
            }
            ("request", Some(number), _) => {
                self.intents.retain(|intent| intent.of.is_some() || intent.sequence != number);
            }
            ("closed", Some(number), Some(of)) => {
                let closed = Intent { of: Hash::parse(of), sequence: number };
                self.intents.retain(|intent| *intent != closed);
            }
            _ => {}
        }
        self.last = Head { sequence: seen.sequence, hash: Hash(Sha256::digest(text).into()), size: 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(sequence: u64, kind: &str, more: &str) -> String {
        format!("{{\"version\":1,\"sequence\":{sequence},\"kind\":\"{kind}\"{more},\"prev\":\"00\"}}\n")
    }

    fn hash(line: &str) -> Hash {
        Hash(Sha256::digest(line.trim_end()).into())
    }

    fn opened(folder: &Path) -> Chain {
        let audit = Audit { path: Some(folder.join("audit")), ..Audit::to([AuditSink::File]) };
        let opened = open(&audit).unwrap();
        let mut bytes = vec![0; chain::FILE];
        File::from(opened.chain.unwrap()).read_exact_at(&mut bytes, 0).unwrap();
        Chain::decode(&bytes).unwrap()
    }

    #[test]
    fn the_chain_goes_on_with_the_last_record_and_intents_without_an_outcome_are_known() {
        let folder = tempfile::tempdir().unwrap();
        let first = [record(1, "start", ""), record(2, "intent", "")].concat();
        let of = hash(&record(2, "intent", "")).to_string();
        let second = [
            record(1, "start", ""),
            record(2, "intent", ""),
            record(3, "intent", ""),
            record(4, "request", ",\"intent\":3"),
        ]
        .concat();
        let text = format!("{first}{second}");
        std::fs::write(folder.path().join("audit"), &text).unwrap();
        let chain = opened(folder.path());
        assert_eq!(chain.last.hash, hash(text.lines().last().unwrap()));
        assert_eq!((chain.last.sequence, chain.last.size), (4, text.len() as u64));
        let open = [Intent { of: Hash::parse(&of), sequence: 2 }, Intent { of: None, sequence: 2 }];
        assert_eq!(chain.intents, open);
        assert!(!chain.of_a_broker && chain.cut == 0);
        // The first of them was closed by the agent that wrote the second part.
        let closed = record(5, "closed", &format!(",\"intent\":2,\"of\":\"{of}\""));
        std::fs::write(folder.path().join("audit"), format!("{text}{closed}")).unwrap();
        assert_eq!(opened(folder.path()).intents, [Intent { of: None, sequence: 2 }]);
    }

    #[test]
    fn a_line_that_was_cut_is_ended_and_does_not_count_and_a_whole_record_without_its_end_does() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit");
        std::fs::write(&path, record(1, "start", "") + "{\"version\":1,\"seq").unwrap();
        let chain = opened(folder.path());
        assert_eq!((chain.last.sequence, chain.cut), (1, 17));
        assert!(std::fs::read_to_string(&path).unwrap().ends_with("\"seq\n"));
        std::fs::write(&path, record(1, "start", "") + record(2, "stop", "").trim_end()).unwrap();
        let chain = opened(folder.path());
        assert_eq!((chain.last.sequence, chain.cut), (2, 0));
        assert!(std::fs::read_to_string(&path).unwrap().ends_with("}\n"));
    }

    #[test]
    fn whatever_is_in_the_file_a_bounded_part_of_it_is_read_and_the_agent_starts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit");
        let deep = "[".repeat(300_000);
        let large = format!("{{\"sequence\":{},\"kind\":\"intent\"}}\n", u64::MAX);
        for text in ["", "\n\n\n", "{}\n", "\u{0}\u{0}", &deep, &format!("{deep}\n{{")] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(opened(folder.path()).last.sequence, 0, "{:?}", text.get(..10.min(text.len())));
        }
        std::fs::write(&path, large.repeat(3000)).unwrap();
        let chain = opened(folder.path());
        assert_eq!((chain.last.sequence, chain.intents.len()), (u64::MAX, INTENTS));
        // The first line of what is read is half of one.
        std::fs::write(&path, "x".repeat(300_000) + &record(1, "start", "")).unwrap();
        assert_eq!(opened(folder.path()).last.sequence, 0);
    }

    #[test]
    fn full_files_have_numbers_and_a_log_that_was_just_begun_goes_on_after_the_last_of_them() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["audit.9", "audit.10", "audit.x", "audit.1.gz", "audit.0", "audits.99", "audit."] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(numbers(folder.path(), b"audit").unwrap(), (9, 11));
        std::fs::write(folder.path().join("audit.10"), record(7, "rotated", "")).unwrap();
        let chain = opened(folder.path());
        assert_eq!((chain.last.sequence, chain.last.hash), (7, hash(&record(7, "rotated", ""))));
        assert_eq!(chain.last.size, 0);
    }

    #[test]
    fn a_log_that_is_a_link_is_refused_and_one_that_is_made_is_its_owners_only() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/null", folder.path().join("link")).unwrap();
        let link = Audit { path: Some(folder.path().join("link")), ..Audit::to([AuditSink::File]) };
        assert!(open(&link).err().unwrap().starts_with("cannot open the audit log "));
        opened(folder.path());
        let mode = std::fs::metadata(folder.path().join("audit")).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn what_the_broker_gets_can_only_append() {
        let folder = tempfile::tempdir().unwrap();
        let audit = Audit { path: Some(folder.path().join("audit")), ..Audit::to([AuditSink::File]) };
        let file = open(&audit).unwrap().file.unwrap();
        let flags = OFlag::from_bits_truncate(fcntl(file.as_fd(), FcntlArg::F_GETFL).unwrap());
        assert!(flags.contains(OFlag::O_APPEND) && flags & OFlag::O_ACCMODE == OFlag::O_WRONLY);
    }
}
