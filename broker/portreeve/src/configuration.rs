//! `/etc/portreeve/portreeve.toml`: how `portreeve run` is set up.
//!
//! Written by root, so it is read by root. What is not understood is an error with file and line; nothing is ignored.
//! Without the file the agent serves QEMU's dialect on its usual port, with the policy of `policy.toml` beside it, or `observe` and `freeze`.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::ops::Range;
use std::path::{Path, PathBuf};

use compile::{Bundle, Complaint, PRESETS, Source, closest};
use jail::DEFAULT_UID_BASE;
use proto::Dialect;
use proto::settings::{AuditSink, ChannelSettings, Init, Method};
use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor};
use spawner::plan::CHANNELS;
use toml::Spanned;

use crate::audit::Audit;
use crate::launch::{Freeze, IDLE_SECONDS, Line, Opened};
use crate::trust;

/// Where it is unless `--config` says otherwise.
pub(crate) const PATH: &str = "/etc/portreeve/portreeve.toml";

const QGA_PORT: &str = "/dev/virtio-ports/org.qemu.guest_agent.0";
const SERIAL_PATH: &str = "/dev/ttyS0";
const STATE_DIRECTORY: &str = "/run/portreeve";
/// The policy, where there is no other.
const POLICY_FILE: &str = "/etc/portreeve/policy.toml";

/// Largest configuration or policy file in bytes.
const LIMIT: u64 = 1024 * 1024;

/// Smallest size in bytes at which an audit log may be rotated.
const ROTATE_LEAST: u64 = 64 * 1024;

/// What `portreeve run` needs to know.
pub(crate) struct Configuration {
    pub(crate) lines: Vec<Line>,
    pub(crate) policy: Vec<Source>,
    pub(crate) state_directory: Option<PathBuf>,
    pub(crate) audit: Audit,
    pub(crate) verbose: bool,
    pub(crate) log_file: Option<PathBuf>,
    pub(crate) uid_base: u32,
    pub(crate) idle_seconds: u32,
    pub(crate) extensions: bool,
    pub(crate) freeze: Freeze,
    pub(crate) init: Option<Init>,
    pub(crate) clock_step_seconds: u32,
    /// Keys and values as they are written, without the policy's.
    pub(crate) values: Vec<(String, String)>,
}

#[derive(serde::Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Document {
    #[serde(default)]
    channel: Vec<Spanned<WrittenChannel>>,
    policy: Option<Spanned<String>>,
    #[serde(default)]
    state: WrittenState,
    #[serde(default)]
    audit: WrittenAudit,
    #[serde(default)]
    log: WrittenLog,
    uid_base: Option<Spanned<u32>>,
    idle_seconds: Option<u32>,
    #[serde(default = "yes")]
    extensions: bool,
    #[serde(default)]
    freeze: WrittenFreeze,
    #[serde(default)]
    power: WrittenPower,
    #[serde(default)]
    clock: WrittenClock,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct WrittenChannel {
    name: Spanned<String>,
    method: Spanned<String>,
    path: Option<PathBuf>,
    cid: Option<u32>,
    port: Option<u32>,
    dialects: Option<Spanned<Vec<Spanned<String>>>>,
    peer_cid: Option<Spanned<u32>>,
    mode: Option<Spanned<u32>>,
    #[serde(default)]
    retry: bool,
    #[serde(default = "yes")]
    reopen: bool,
}

fn yes() -> bool {
    true
}

#[derive(serde::Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct WrittenState {
    directory: Option<PathBuf>,
}

#[derive(serde::Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct WrittenAudit {
    sink: Option<Spanned<Sinks>>,
    path: Option<Spanned<PathBuf>>,
    socket: Option<Spanned<PathBuf>>,
    required: Option<Spanned<bool>>,
    sync: Option<Spanned<bool>>,
    rotate_bytes: Option<Spanned<u64>>,
    rotate_days: Option<Spanned<u32>>,
    keep: Option<Spanned<u32>>,
}

/// One name, or a list of them.
struct Sinks(Vec<String>);

impl<'de> Deserialize<'de> for Sinks {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = Sinks;
            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("a sink or a list of sinks")
            }
            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Sinks, E> {
                Ok(Sinks(vec![name.to_owned()]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Sinks, A::Error> {
                let mut names = Vec::new();
                while let Some(name) = list.next_element()? {
                    names.push(name);
                }
                Ok(Sinks(names))
            }
        }
        deserializer.deserialize_any(Names)
    }
}

#[derive(serde::Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct WrittenLog {
    #[serde(default)]
    verbose: bool,
    file: Option<PathBuf>,
}

#[derive(serde::Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct WrittenFreeze {
    limit_seconds: Option<u32>,
    hook: Option<Spanned<PathBuf>>,
    hook_limit_seconds: Option<u32>,
}

#[derive(serde::Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct WrittenPower {
    init: Option<Spanned<String>>,
}

#[derive(serde::Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct WrittenClock {
    max_step_seconds: Option<u32>,
}

/// Reads the configuration: `given`, which must exist, or [`PATH`], which need not.
///
/// # Errors
/// A text that names file, line and reason.
pub(crate) fn load(given: Option<&Path>) -> Result<Configuration, String> {
    let path = given.unwrap_or(Path::new(PATH));
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && given.is_none() => None,
        other => Some(other.map_err(|error| format!("cannot read {}: {error}", path.display()))?),
    };
    let text = file.map_or(Ok(String::new()), read_open);
    let text = text.map_err(|reason| format!("{} {reason}", path.display()))?;
    let mut found = parse(&path.display().to_string(), &text).map_err(|complaint| complaint.to_string())?;
    // It says which policy is in force: as little as that may it be somebody else's. The agent starts and serves nothing.
    if !text.is_empty()
        && let Err(reason) = trust::open(path)
    {
        found.policy = vec![unusable(path, reason)];
    }
    Ok(found)
}

impl Configuration {
    /// The policy's texts: a preset's name, or the content of its file.
    pub(crate) fn bundle(sources: Vec<Source>) -> Bundle {
        Bundle { sources, allow: Vec::new(), block: Vec::new() }
    }
}

/// The policy where none is configured: the usual file's, or what is taken without one.
pub(crate) fn policy_in_force() -> Vec<Source> {
    let file = Path::new(POLICY_FILE);
    // Whatever is there: a part that stands alone, or a link to nowhere, is no reason to take another policy.
    let there = |path: &Path| fs::symlink_metadata(path).is_ok();
    let any = there(file) || there(&file.with_extension("d"));
    if any { policy_files(file) } else { usual_policy() }
}

/// The texts of a policy file: its own, then those of the folder beside it (`policy.d` for `policy.toml`) by name.
///
/// What cannot be read, or somebody else could have written, is in the list as unusable: a policy without one of its parts may
/// permit what that part refuses.
pub(crate) fn policy_files(file: &Path) -> Vec<Source> {
    let mut files = vec![file.to_owned()];
    let folder = file.with_extension("d");
    match parts(&folder) {
        Ok(found) => files.extend(found),
        Err(reason) => return vec![unusable(&folder, reason)],
    }
    files.iter().map(|file| policy_file(file)).collect()
}

/// The texts in a folder by name; none if there is no folder. Nobody else may be able to add one, or to take one away.
fn parts(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let cannot = |error: io::Error| format!("cannot be read: {error}");
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(cannot(error)),
    };
    trust::folder(folder)?;
    trust::folders(folder)?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(cannot)?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn unusable(path: &Path, reason: String) -> Source {
    Source::Unusable { name: path.display().to_string(), reason }
}

fn policy_file(path: &Path) -> Source {
    match trust::open(path).and_then(read_open) {
        Ok(text) => Source::File { name: path.display().to_string(), text },
        Err(reason) => unusable(path, reason),
    }
}

fn read_open(file: File) -> Result<String, String> {
    let mut bytes = Vec::new();
    file.take(LIMIT.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > LIMIT {
        return Err("cannot be read: it is larger than 1 MiB".to_owned());
    }
    String::from_utf8(bytes).map_err(|error| {
        let before = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
        let line = before.iter().filter(|byte| **byte == b'\n').count().saturating_add(1);
        format!("cannot be read: line {line} is not UTF-8 text")
    })
}

fn parse(file: &str, text: &str) -> Result<Configuration, Complaint> {
    let reader = Reader { file, text };
    let document: Document = toml::from_str(text).map_err(|error| Complaint::of_toml(file, text, &error))?;
    let mut names = HashSet::new();
    let mut lines = Vec::new();
    for written in document.channel {
        let span = written.span();
        if lines.len() >= CHANNELS {
            return Err(reader.complaint(span, &format!("more than {CHANNELS} channels")));
        }
        let name = written.get_ref().name.clone();
        if !names.insert(name.get_ref().clone()) {
            return Err(reader.complaint(name.span(), "another channel has this name"));
        }
        lines.push(reader.line(span, written.into_inner())?);
    }
    if lines.is_empty() {
        lines.push(usual_line());
    }
    let audit = reader.audit(document.audit)?;
    let uid_base = document.uid_base.map_or(Ok(DEFAULT_UID_BASE), |base| match *base.get_ref() {
        // Frontends have the highest numbers.
        number if number >= 1000 && jail::Role::Frontend.uid(number, u16::MAX).is_some() => Ok(number),
        _ => Err(reader.complaint(
            base.span(),
            "uid-base is from 1000 to 4294901660, and no user may have the 1000 ids from there",
        )),
    })?;
    let root = nix::unistd::geteuid().is_root();
    Ok(Configuration {
        lines,
        policy: reader.policy(document.policy)?,
        // An ordinary user has no place of that name; numbers of open files then begin anew at each start.
        state_directory: document.state.directory.or_else(|| root.then(|| STATE_DIRECTORY.into())),
        audit,
        verbose: document.log.verbose,
        log_file: document.log.file,
        uid_base,
        idle_seconds: document.idle_seconds.unwrap_or(IDLE_SECONDS),
        extensions: document.extensions,
        freeze: reader.freeze(document.freeze)?,
        init: document.power.init.map(|init| reader.one_of(&init, "init", &Init::ALL)).transpose()?,
        clock_step_seconds: document.clock.max_step_seconds.unwrap_or(0),
        values: values(text),
    })
}

/// The keys of a text that has been understood, those of tables with a dot between, and their values.
fn values(text: &str) -> Vec<(String, String)> {
    let mut values = Vec::new();
    for (key, value) in toml::from_str::<toml::Table>(text).unwrap_or_default() {
        match value {
            toml::Value::Table(table) => {
                values.extend(
                    table.into_iter().map(|(below, value)| (format!("{key}.{below}"), value.to_string())),
                );
            }
            _ if key == "policy" => {}
            value => values.push((key, value.to_string())),
        }
    }
    values
}

/// The keys whose values differ between two of [`Configuration::values`].
pub(crate) fn changed(before: &[(String, String)], now: &[(String, String)]) -> Vec<String> {
    let only = |left: &[(String, String)], right: &[(String, String)]| -> Vec<String> {
        left.iter().filter(|entry| !right.contains(entry)).map(|(key, _)| key.clone()).collect()
    };
    let mut keys = only(before, now);
    keys.extend(only(now, before));
    keys.sort();
    keys.dedup();
    keys
}

/// The host may look, and freeze for a backup.
fn usual_policy() -> Vec<Source> {
    ["observe", "freeze"].map(|name| Source::Preset(name.to_owned())).into()
}

fn usual_line() -> Line {
    Line {
        settings: ChannelSettings {
            name: "qga".to_owned(),
            method: Method::VirtioSerial,
            dialects: vec![Dialect::Qga],
            peer_cid: None,
        },
        opened: Opened::Later(spawner::Method::VirtioSerial { path: QGA_PORT.into() }),
        retry: false,
        reopen: true,
    }
}

struct Reader<'a> {
    file: &'a str,
    text: &'a str,
}

impl Reader<'_> {
    fn complaint(&self, span: Range<usize>, reason: &str) -> Complaint {
        Complaint::new(self.file, self.text, span, reason)
    }

    /// What is called `name`, among `known`.
    fn one_of<T: Copy>(
        &self,
        name: &Spanned<String>,
        what: &str,
        known: &[(&'static str, T)],
    ) -> Result<T, Complaint> {
        let found = known.iter().find(|(known, _)| known == name.get_ref());
        found.map(|(_, value)| *value).ok_or_else(|| {
            let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
            let hint = closest(name.get_ref(), names.iter().copied())
                .map(|meant| format!("did you mean \"{meant}\"?"))
                .unwrap_or_else(|| format!("it is one of {}", names.join(", ")));
            self.complaint(name.span(), &format!("unknown {what} \"{}\"; {hint}", name.get_ref()))
        })
    }

    fn line(&self, span: Range<usize>, written: WrittenChannel) -> Result<Line, Complaint> {
        let name = written.name.get_ref();
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if name.is_empty() || name.len() > 32 || !name.bytes().all(plain) {
            let reason = "a channel's name has 1 to 32 letters, digits, dots, dashes or underscores";
            return Err(self.complaint(written.name.span(), reason));
        }
        const METHODS: [(&str, Method); 4] = [
            ("virtio-serial", Method::VirtioSerial),
            ("isa-serial", Method::IsaSerial),
            ("unix-listen", Method::UnixListen),
            ("vsock-listen", Method::VsockListen),
        ];
        let method = self.one_of(&written.method, "method", &METHODS)?;
        let dialects = match written.dialects {
            None => vec![Dialect::Qga],
            Some(list) if list.get_ref().is_empty() => {
                return Err(self.complaint(list.span(), "a channel speaks at least one dialect"));
            }
            Some(list) => list
                .get_ref()
                .iter()
                .map(|name| {
                    self.one_of(name, "dialect", &[("qga", Dialect::Qga), ("phoenix", Dialect::Phoenix)])
                })
                .collect::<Result<_, _>>()?,
        };
        if method != Method::VsockListen {
            if written.cid.is_some() || written.port.is_some() {
                return Err(self.complaint(span, "`cid` and `port` are for vsock-listen only"));
            }
            if let Some(peer) = &written.peer_cid {
                return Err(self.complaint(peer.span(), "`peer-cid` is for vsock-listen only"));
            }
        }
        if let Some(mode) = &written.mode {
            if method != Method::UnixListen {
                return Err(self.complaint(mode.span(), "`mode` is for unix-listen only"));
            }
            if *mode.get_ref() > 0o777 {
                return Err(
                    self.complaint(mode.span(), "a mode is at most 0o777, in octal digits such as 0o660")
                );
            }
        }
        let how = match (method, written.path, written.cid, written.port) {
            (Method::VirtioSerial, path, ..) => {
                spawner::Method::VirtioSerial { path: path.unwrap_or_else(|| QGA_PORT.into()) }
            }
            (Method::IsaSerial, path, ..) => {
                spawner::Method::IsaSerial { path: path.unwrap_or_else(|| SERIAL_PATH.into()) }
            }
            (Method::UnixListen, Some(path), ..) => {
                spawner::Method::UnixListen { path, mode: written.mode.map(Spanned::into_inner) }
            }
            (Method::UnixListen, None, ..) => return Err(self.complaint(span, "unix-listen needs a `path`")),
            (Method::VsockListen, None, cid, Some(port)) => {
                spawner::Method::VsockListen { cid: cid.unwrap_or(u32::MAX), port }
            }
            (Method::VsockListen, Some(_), ..) => {
                return Err(self.complaint(span, "vsock-listen has no `path`"));
            }
            (Method::VsockListen, None, ..) => {
                return Err(self.complaint(span, "vsock-listen needs a `port`"));
            }
        };
        Ok(Line {
            settings: ChannelSettings {
                name: name.clone(),
                method,
                dialects,
                peer_cid: written.peer_cid.map(Spanned::into_inner),
            },
            opened: Opened::Later(how),
            retry: written.retry,
            reopen: written.reopen,
        })
    }

    /// A name without a slash is a preset, anything else a file. Without either it is the usual file if there is one.
    fn policy(&self, written: Option<Spanned<String>>) -> Result<Vec<Source>, Complaint> {
        let Some(written) = written else { return Ok(policy_in_force()) };
        let name = written.get_ref();
        if !name.contains('/') {
            let known: Vec<(&str, ())> = PRESETS.iter().map(|(name, _)| (*name, ())).collect();
            self.one_of(&written, "preset", &known)?;
            return Ok(vec![Source::Preset(name.clone())]);
        }
        Ok(policy_files(Path::new(name)))
    }

    fn freeze(&self, written: WrittenFreeze) -> Result<Freeze, Complaint> {
        let usual = Freeze::default();
        if let Some(hook) = written.hook.as_ref().filter(|hook| !hook.get_ref().is_absolute()) {
            return Err(self.complaint(hook.span(), "the freeze hook is named by its whole path"));
        }
        let freeze = Freeze {
            limit_seconds: written.limit_seconds.unwrap_or(usual.limit_seconds),
            hook: None,
            hook_limit_seconds: written.hook_limit_seconds.unwrap_or(usual.hook_limit_seconds),
        };
        let span = written.hook.as_ref().map_or(0..0, Spanned::span);
        freeze.with_hook(written.hook.map(Spanned::into_inner)).map_err(|why| self.complaint(span, &why))
    }

    fn audit(&self, written: WrittenAudit) -> Result<Audit, Complaint> {
        const SINKS: [(&str, Option<AuditSink>); 6] = [
            ("file", Some(AuditSink::File)),
            ("syslog", Some(AuditSink::Syslog)),
            ("journald", Some(AuditSink::Journald)),
            ("stderr", Some(AuditSink::Log)),
            ("kernel", Some(AuditSink::Kernel)),
            ("off", None),
        ];
        let (span, names) = match written.sink {
            Some(sinks) => (sinks.span(), sinks.into_inner().0),
            None if written.path.is_some() => (0..0, vec!["file".to_owned()]),
            None => (0..0, vec!["stderr".to_owned()]),
        };
        let known = names
            .iter()
            .map(|name| self.one_of(&Spanned::new(span.clone(), name.clone()), "sink", &SINKS))
            .collect::<Result<Vec<_>, _>>()?;
        let sinks: Vec<AuditSink> = known.iter().copied().flatten().collect();
        let has = |sink| sinks.contains(&sink);
        let twice =
            known.iter().enumerate().any(|(at, sink)| known.iter().skip(at + 1).any(|other| other == sink));
        if known.is_empty() || twice || (known.contains(&None) && known.len() > 1) {
            return Err(
                self.complaint(span, "a list of sinks has each of them once, and \"off\" stands alone")
            );
        }
        if has(AuditSink::Syslog) && has(AuditSink::Journald) {
            return Err(self.complaint(span, "the journal has what syslog gets: choose one of the two"));
        }
        if has(AuditSink::File) != written.path.is_some() {
            return Err(match written.path {
                Some(path) => self.complaint(path.span(), "a `path` is for the sink \"file\" only"),
                None => self.complaint(span, "the sink \"file\" needs a `path`"),
            });
        }
        if let Some(socket) = &written.socket
            && !(has(AuditSink::Syslog) || has(AuditSink::Journald))
        {
            return Err(
                self.complaint(socket.span(), "a `socket` is for the sinks \"syslog\" and \"journald\" only")
            );
        }
        let of_file = [
            written.rotate_bytes.as_ref().map(Spanned::span),
            written.rotate_days.as_ref().map(Spanned::span),
            written.keep.as_ref().map(Spanned::span),
        ];
        if let (false, Some(span)) = (has(AuditSink::File), of_file.into_iter().flatten().next()) {
            return Err(self.complaint(span, "only the sink \"file\" is rotated"));
        }
        if let Some(bytes) =
            written.rotate_bytes.as_ref().filter(|bytes| (1..ROTATE_LEAST).contains(bytes.get_ref()))
        {
            return Err(
                self.complaint(bytes.span(), "less than 65536 bytes are a few records only; 0 is for never")
            );
        }
        let required = written.required.as_ref().filter(|required| *required.get_ref());
        if let (true, Some(required)) = (sinks.is_empty(), required) {
            return Err(
                self.complaint(required.span(), "what is recorded nowhere cannot be required: choose a sink")
            );
        }
        let sync = written.sync.as_ref().filter(|sync| *sync.get_ref());
        if let Some(sync) = sync
            && (sinks.first() != Some(&AuditSink::File) || required.is_none())
        {
            return Err(self.complaint(
                sync.span(),
                "`sync` is for a log that is required, and whose first sink is \"file\"",
            ));
        }
        let usual = Audit::to(sinks);
        Ok(Audit {
            path: written.path.map(Spanned::into_inner),
            socket: written.socket.map(Spanned::into_inner),
            required: required.is_some(),
            sync: sync.is_some(),
            rotate_bytes: written.rotate_bytes.map_or(usual.rotate_bytes, Spanned::into_inner),
            rotate_days: written.rotate_days.map_or(usual.rotate_days, Spanned::into_inner),
            keep: written.keep.map_or(usual.keep, Spanned::into_inner),
            ..usual
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str) -> String {
        parse("portreeve.toml", text).err().expect("it is wrong").to_string()
    }

    #[test]
    fn without_anything_it_is_the_usual_port_and_a_policy_that_only_looks() {
        let found = parse("portreeve.toml", "").unwrap();
        assert_eq!(found.policy, usual_policy());
        assert_eq!(found.uid_base, DEFAULT_UID_BASE);
        assert!(found.audit == Audit::to([AuditSink::Log]) && found.idle_seconds == 60);
        assert!(found.extensions);
        let [line] = found.lines.as_slice() else { panic!("one channel") };
        assert_eq!((line.settings.name.as_str(), line.settings.method), ("qga", Method::VirtioSerial));
        assert!(
            matches!(&line.opened, Opened::Later(spawner::Method::VirtioSerial { path }) if path == Path::new(QGA_PORT))
        );
    }

    #[test]
    fn every_key_is_read() {
        let found = parse(
            "portreeve.toml",
            r#"
                policy = "qemu-ga"
                uid-base = 2000
                idle-seconds = 5
                [[channel]]
                name = "a"
                method = "unix-listen"
                path = "/run/a.sock"
                mode = 0o660
                dialects = ["qga", "phoenix"]
                reopen = false
                [[channel]]
                name = "b"
                method = "vsock-listen"
                port = 1024
                peer-cid = 2
                retry = true
                [state]
                directory = "/var/lib/portreeve"
                [audit]
                sink = ["file", "journald", "kernel"]
                path = "/var/log/portreeve.jsonl"
                socket = "/run/systemd/journal.guest/socket"
                required = true
                sync = true
                rotate-bytes = 65536
                rotate-days = 7
                keep = 30
                [log]
                verbose = true
                file = "/var/log/portreeve.log"
                [freeze]
                limit-seconds = 30
                hook = "/etc/qemu/fsfreeze-hook"
                [power]
                init = "busybox"
                [clock]
                max-step-seconds = 3600
            "#,
        )
        .unwrap();
        assert_eq!(
            (found.uid_base, found.idle_seconds, found.verbose, found.audit.required),
            (2000, 5, true, true)
        );
        let audit = Audit {
            path: Some("/var/log/portreeve.jsonl".into()),
            socket: Some("/run/systemd/journal.guest/socket".into()),
            required: true,
            sync: true,
            rotate_bytes: 65536,
            rotate_days: 7,
            keep: 30,
            ..Audit::to([AuditSink::File, AuditSink::Journald, AuditSink::Kernel])
        };
        assert_eq!(found.audit, audit);
        assert_eq!(found.state_directory, Some("/var/lib/portreeve".into()));
        assert_eq!(found.log_file, Some("/var/log/portreeve.log".into()));
        let hook = Some("/etc/qemu/fsfreeze-hook".into());
        assert_eq!(found.freeze, Freeze { limit_seconds: 30, hook, ..Freeze::default() });
        assert_eq!((found.init, found.clock_step_seconds), (Some(Init::Busybox), 3600));
        let [a, b] = found.lines.as_slice() else { panic!("two channels") };
        assert_eq!(a.settings.dialects, [Dialect::Qga, Dialect::Phoenix]);
        assert!(matches!(&a.opened, Opened::Later(spawner::Method::UnixListen { mode: Some(0o660), .. })));
        assert_eq!((a.retry, a.reopen, b.retry, b.reopen), (false, false, true, true));
        assert_eq!(b.settings.peer_cid, Some(2));
        assert!(matches!(
            b.opened,
            Opened::Later(spawner::Method::VsockListen { cid: u32::MAX, port: 1024 })
        ));
    }

    #[test]
    fn what_a_reload_does_not_take_over_is_named_when_it_has_changed() {
        let before = values("policy = \"observe\"\nidle-seconds = 60\n[log]\nverbose = true\n");
        let now = values(
            "policy = \"qemu-ga\"\nidle-seconds = 60\n[log]\nverbose = false\n[freeze]\nlimit-seconds = 1\n",
        );
        assert_eq!(changed(&before, &now), ["freeze.limit-seconds", "log.verbose"]);
        assert_eq!(changed(&before, &before), Vec::<String>::new());
    }

    #[test]
    fn an_unknown_key_is_shown_with_its_line() {
        assert_eq!(
            wrong("[log]\nverbos = true\n"),
            "portreeve.toml:2: unknown field `verbos`, expected `verbose` or `file`\n  verbos = true\n  ^^^^^^"
        );
    }

    #[test]
    fn a_hook_is_named_by_its_whole_path_and_dev_null_is_none() {
        let found = |hook: &str| parse("portreeve.toml", &format!("[freeze]\nhook = \"{hook}\"\n"));
        assert_eq!(found("/dev/null").unwrap_or_else(|why| panic!("{why}")).freeze.hook, None);
        assert!(
            wrong("[freeze]\nhook = \"hook\"\n").starts_with("portreeve.toml:2: the freeze hook is named")
        );
    }

    #[test]
    fn an_unknown_method_is_shown_with_the_one_that_was_meant() {
        assert_eq!(
            wrong("[[channel]]\nname = \"a\"\nmethod = \"virtio-seral\"\n"),
            "portreeve.toml:3: unknown method \"virtio-seral\"; did you mean \"virtio-serial\"?\n\
             \x20 method = \"virtio-seral\"\n           ^^^^^^^^^^^^^^"
        );
    }

    #[test]
    fn keys_that_mean_nothing_for_a_method_are_refused() {
        let channel = |rest: &str| wrong(&format!("[[channel]]\nname = \"a\"\n{rest}"));
        assert!(
            channel("method = \"unix-listen\"\n").starts_with("portreeve.toml:1: unix-listen needs a `path`")
        );
        assert!(
            channel("method = \"vsock-listen\"\n")
                .starts_with("portreeve.toml:1: vsock-listen needs a `port`")
        );
        assert!(
            channel("method = \"isa-serial\"\nmode = 0o600\n")
                .starts_with("portreeve.toml:4: `mode` is for unix-listen only")
        );
        assert!(
            channel("method = \"isa-serial\"\npeer-cid = 2\n")
                .starts_with("portreeve.toml:4: `peer-cid` is for vsock-listen only")
        );
        assert!(
            channel("method = \"isa-serial\"\nport = 2\n")
                .starts_with("portreeve.toml:1: `cid` and `port` are for vsock-listen only")
        );
    }

    #[test]
    fn two_channels_have_two_names() {
        let one = "[[channel]]\nname = \"a\"\nmethod = \"isa-serial\"\n";
        assert!(wrong(&format!("{one}{one}")).starts_with("portreeve.toml:5: another channel has this name"));
    }

    #[test]
    fn an_audit_log_that_is_required_is_written_somewhere() {
        assert!(
            wrong("[audit]\nsink = \"off\"\nrequired = true\n")
                .starts_with("portreeve.toml:3: what is recorded nowhere")
        );
        assert!(
            wrong("[audit]\nsink = \"file\"\n")
                .starts_with("portreeve.toml:2: the sink \"file\" needs a `path`")
        );
        assert!(
            wrong("[audit]\nsink = \"syslog\"\npath = \"/x\"\n")
                .starts_with("portreeve.toml:3: a `path` is for")
        );
        for (audit, reason) in [
            (
                "sink = [\"file\", \"jounrald\"]",
                "portreeve.toml:2: unknown sink \"jounrald\"; did you mean \"journald\"?",
            ),
            ("sink = []", "portreeve.toml:2: a list of sinks has each of them once"),
            ("sink = [\"off\", \"stderr\"]", "portreeve.toml:2: a list of sinks has each of them once"),
            ("sink = [\"stderr\", \"stderr\"]", "portreeve.toml:2: a list of sinks has each of them once"),
            ("sink = [\"syslog\", \"journald\"]", "portreeve.toml:2: the journal has what syslog gets"),
            ("sink = \"stderr\"\nsocket = \"/x\"", "portreeve.toml:3: a `socket` is for the sinks"),
            ("sink = \"stderr\"\nkeep = 3", "portreeve.toml:3: only the sink \"file\" is rotated"),
            ("path = \"/x\"\nrotate-bytes = 9", "portreeve.toml:3: less than 65536 bytes"),
            ("path = \"/x\"\nsync = true", "portreeve.toml:3: `sync` is for a log that is required"),
        ] {
            let said = wrong(&format!("[audit]\n{audit}\n"));
            assert!(said.starts_with(reason), "{said}");
        }
    }

    #[test]
    fn a_uid_base_leaves_room_and_is_no_user_of_the_system() {
        for base in ["0", "999", "4294967000"] {
            assert!(
                wrong(&format!("uid-base = {base}\n")).starts_with("portreeve.toml:1: uid-base is from 1000"),
                "{base}"
            );
        }
    }

    #[test]
    fn a_policy_is_a_preset_or_a_file_that_can_be_read() {
        assert!(
            wrong("policy = \"obsrve\"\n")
                .starts_with("portreeve.toml:1: unknown preset \"obsrve\"; did you mean \"observe\"?")
        );
        // The agent starts all the same and serves nothing: a closed agent can be asked what is wrong, a missing one cannot.
        let found = parse("portreeve.toml", "policy = \"/nonexistent/p.toml\"\n").unwrap();
        let reason = "cannot be read: No such file or directory (os error 2)".to_owned();
        assert_eq!(found.policy, [Source::Unusable { name: "/nonexistent/p.toml".to_owned(), reason }]);
    }

    #[test]
    fn a_policy_that_others_can_write_is_unusable_and_the_folder_beside_it_is_part_of_it() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("policy.toml");
        let part = folder.path().join("policy.d/10-users.toml");
        fs::create_dir(folder.path().join("policy.d")).unwrap();
        for (path, text) in [(&file, "version = 1\n"), (&part, "# none\n")] {
            fs::write(path, text).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
        }
        let name = |path: &Path| path.display().to_string();
        let usable = |path: &Path, text: &str| Source::File { name: name(path), text: text.to_owned() };
        assert_eq!(policy_files(&file), [usable(&file, "version = 1\n"), usable(&part, "# none\n")]);
        fs::set_permissions(&part, fs::Permissions::from_mode(0o664)).unwrap();
        let reason = "can be written by others than its owner: chmod go-w".to_owned();
        assert_eq!(
            policy_files(&file),
            [usable(&file, "version = 1\n"), Source::Unusable { name: name(&part), reason }]
        );
    }
}
