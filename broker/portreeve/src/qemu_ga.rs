//! Called as `qemu-ga`: its command line, configuration file and environment.
//!
//! Source: `qga/main.c` of QEMU 10.2 (`config_parse`, `config_load`, `config_dump`, `main`). What is better on purpose: lists
//! of commands are separated by comma or semicolon, `--blacklist` still works, a missing state directory is made, and
//! `--dump-conf` never touches a pid file.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use authorize::Origin;
use compile::{Bundle, RpcList, Source};
use jail::DEFAULT_UID_BASE;
use proto::settings::{ChannelSettings, Method};
use proto::{Dialect, QGA_LEVEL};

use crate::activation::{self, Activated};
use crate::audit::Audit;
use crate::daemon;
use crate::getopt::{Options, Spec, Value};
use crate::key_file::{KeyFile, LIMIT, escape};
use crate::launch::{Freeze, IDLE_SECONDS, Launch, Line, Opened, launch};
use crate::say::{out, raw};

const VIRTIO_PATH: &str = "/dev/virtio-ports/org.qemu.guest_agent.0";
const SERIAL_PATH: &str = "/dev/ttyS0";
const STATE_DIRECTORY: &str = "/var/run";
const PID_FILE: &str = "/var/run/qemu-ga.pid";
const CONFIGURATION: &str = "/etc/qemu/qemu-ga.conf";
const HOOK: &str = "/etc/qemu/fsfreeze-hook";

const fn spec(letter: u8, long: &'static str, value: Value) -> Spec {
    Spec { letter, short: true, long: Some(long), value }
}

/// In the order of `qga/main.c`, which decides how possibilities are listed.
const OPTIONS: &[Spec] = &[
    spec(b'h', "help", Value::None),
    spec(b'V', "version", Value::None),
    spec(b'D', "dump-conf", Value::None),
    spec(b'c', "config", Value::Required),
    spec(b'l', "logfile", Value::Required),
    spec(b'f', "pidfile", Value::Required),
    spec(b'F', "fsfreeze-hook", Value::Optional),
    spec(b'v', "verbose", Value::None),
    spec(b'm', "method", Value::Required),
    spec(b'p', "path", Value::Required),
    spec(b'd', "daemonize", Value::None),
    spec(b'b', "block-rpcs", Value::Required),
    Spec { letter: b'b', short: false, long: Some("blacklist"), value: Value::Required },
    spec(b'a', "allow-rpcs", Value::Required),
    spec(b't', "statedir", Value::Required),
    spec(b'r', "retry-path", Value::None),
    // Windows only there; on Linux read and ignored.
    Spec { letter: b's', short: true, long: None, value: Value::Required },
];

/// What configuration file and command line say together.
#[derive(Debug, Default, PartialEq)]
struct Config {
    method: Option<String>,
    path: Option<OsString>,
    log_file: Option<OsString>,
    pid_file: Option<OsString>,
    hook: Option<OsString>,
    state_directory: Option<OsString>,
    verbose: bool,
    daemon: bool,
    retry: bool,
    dump: bool,
    allow: Vec<RpcList>,
    block: Vec<RpcList>,
}

/// Why nothing is started.
enum End {
    /// It was asked for: version, help, a list.
    Done,
    /// The reason, for standard error.
    Bad(String),
    /// getopt's text.
    BadOption(String),
}

/// Runs as `qemu-ga` with `arguments`, the first of which is the name it was called by.
pub(crate) fn main(arguments: &[OsString]) -> ExitCode {
    let called = arguments.first().cloned().unwrap_or_default();
    let rest = arguments.get(1..).unwrap_or_default();
    let shown = called.to_string_lossy();
    match prepare(&called, rest) {
        Ok(None) | Err(End::Done) => ExitCode::SUCCESS,
        Ok(Some(ready)) => launch(ready),
        Err(End::Bad(why)) => {
            raw(format_args!("{shown}: {why}"));
            ExitCode::FAILURE
        }
        Err(End::BadOption(why)) => {
            raw(format_args!("{shown}: {why}"));
            out(format_args!("Unknown option, try '{shown} --help' for more information.\n"));
            ExitCode::FAILURE
        }
    }
}

fn prepare(called: &OsStr, arguments: &[OsString]) -> Result<Option<Launch>, End> {
    let mut config = Config::default();
    let (path, required) = configuration_path(arguments);
    load(&mut config, &path, required).map_err(|why| {
        End::Bad(format!("error loading configuration from path: {}, {why}", path.display()))
    })?;
    parse(&mut config, called, arguments)?;
    let activated = activation::take(daemon::starter().unwrap_or_else(std::process::id)).map_err(End::Bad)?;
    if let Some(Activated { method, .. }) = &activated {
        config.method = Some(method.name().to_owned());
    }
    let line = line(&config, activated).map_err(End::Bad);
    if config.dump {
        // The method is not looked at before the start; a path that is missing is.
        let path = path_of(&config).map_err(End::Bad)?;
        out(dump(&config, &path));
        return Ok(None);
    }
    Ok(Some(Launch {
        called: called.to_owned(),
        arguments: arguments.to_vec(),
        lines: vec![line?],
        audit: Audit::to_syslog_if_there(),
        verbose: config.verbose,
        log_file: config.log_file.map(PathBuf::from),
        state_directory: Some(config.state_directory.map_or_else(|| STATE_DIRECTORY.into(), PathBuf::from)),
        uid_base: DEFAULT_UID_BASE,
        idle_seconds: IDLE_SECONDS,
        freeze: Freeze::default().with_hook(config.hook.map(PathBuf::from)).map_err(End::Bad)?,
        extensions: false,
        init: None,
        clock_step_seconds: 0,
        configured: None,
        daemon: config.daemon.then(|| config.pid_file.map_or_else(|| PID_FILE.into(), PathBuf::from)),
        policy: Bundle {
            sources: vec![Source::Preset("qemu-ga".to_owned())],
            allow: config.allow,
            block: config.block,
        },
    }))
}

/// `-c`, else `$QGA_CONF`, else the built-in one; only the first must exist.
fn configuration_path(arguments: &[OsString]) -> (PathBuf, bool) {
    let given = Options::new(OPTIONS, arguments.iter().cloned())
        .map_while(Result::ok)
        .filter_map(|(letter, value)| value.filter(|_| letter == b'c'))
        .last();
    match given {
        Some(path) => (path.into(), true),
        None => (std::env::var_os("QGA_CONF").map_or_else(|| CONFIGURATION.into(), PathBuf::from), false),
    }
}

fn load(config: &mut Config, path: &Path, required: bool) -> Result<(), String> {
    let text = match read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !required => return Ok(()),
        other => other.map_err(|error| match error.raw_os_error() {
            Some(number) => proto::errno_text(number).to_string(),
            None => error.to_string(),
        })?,
    };
    let file = KeyFile::parse(&text)?;
    let text = |key| file.text("general", key).map(|found| found.map(|(value, _)| value));
    let path_like = |key| text(key).map(|found| found.map(OsString::from));
    config.daemon = file.boolean("general", "daemon")?.unwrap_or_default();
    config.method = text("method")?;
    config.path = path_like("path")?;
    config.log_file = path_like("logfile")?;
    config.pid_file = path_like("pidfile")?;
    config.hook = path_like("fsfreeze-hook")?;
    config.state_directory = path_like("statedir")?;
    config.verbose = file.boolean("general", "verbose")?.unwrap_or_default();
    config.retry = file.boolean("general", "retry-path")?.unwrap_or_default();
    let list = |key| -> Result<Option<RpcList>, String> {
        let found = file.text("general", key)?;
        Ok(found.map(|(text, line)| RpcList {
            origin: Origin { place: path.display().to_string().into(), line },
            text,
        }))
    };
    config.block.extend(list("block-rpcs")?);
    if let Some(old) = list("blacklist")? {
        raw("config using deprecated 'blacklist' key, should be replaced with the 'block-rpcs' key.");
        config.block.push(old);
    }
    config.allow.extend(list("allow-rpcs")?);
    Ok(())
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("Not a regular file"));
    }
    let mut text = Vec::new();
    file.take(LIMIT.saturating_add(1) as u64).read_to_end(&mut text)?;
    if text.len() > LIMIT { Err(io::Error::other("larger than 1 MiB")) } else { Ok(text) }
}

fn parse(config: &mut Config, called: &OsStr, arguments: &[OsString]) -> Result<(), End> {
    for option in Options::new(OPTIONS, arguments.iter().cloned()) {
        let (letter, value) = option.map_err(End::BadOption)?;
        let list = |option: &str, value: Option<OsString>| RpcList {
            origin: Origin { place: option.into(), line: 0 },
            text: value.unwrap_or_default().to_string_lossy().into_owned(),
        };
        match letter {
            b'h' => {
                out(usage(&called.to_string_lossy()));
                return Err(End::Done);
            }
            b'V' => {
                out(format_args!("QEMU Guest Agent {QGA_LEVEL}\n"));
                return Err(End::Done);
            }
            b'D' => config.dump = true,
            b'v' => config.verbose = true,
            b'd' => config.daemon = true,
            b'r' => config.retry = true,
            b'm' => config.method = value.map(|method| method.to_string_lossy().into_owned()),
            b'p' => config.path = value,
            b'l' => config.log_file = value,
            b'f' => config.pid_file = value,
            b't' => config.state_directory = value,
            b'F' => config.hook = Some(value.unwrap_or_else(|| HOOK.into())),
            b'b' | b'a' if value.as_ref().is_some_and(|value| value == "help" || value == "?") => {
                out(proto::commands()
                    .filter(|command| command.dialect == Dialect::Qga)
                    .map(|command| format!("{}\n", command.name()))
                    .collect::<String>());
                return Err(End::Done);
            }
            b'b' => config.block.push(list("--block-rpcs", value)),
            b'a' => config.allow.push(list("--allow-rpcs", value)),
            // `-c` was read before; `-s` is for Windows.
            _ => {}
        }
    }
    Ok(())
}

/// The path as the dump shows it: given, or the method's default.
fn path_of(config: &Config) -> Result<OsString, String> {
    match (&config.path, config.method.as_deref().unwrap_or("virtio-serial")) {
        (Some(path), _) => Ok(path.clone()),
        (None, "virtio-serial") => Ok(VIRTIO_PATH.into()),
        (None, "isa-serial") => Ok(SERIAL_PATH.into()),
        (None, _) => Err("must specify a path for this channel".to_owned()),
    }
}

fn line(config: &Config, activated: Option<Activated>) -> Result<Line, String> {
    let settings = |method| ChannelSettings {
        name: "qga".to_owned(),
        method,
        dialects: vec![Dialect::Qga],
        peer_cid: None,
    };
    if let Some(Activated { socket, method }) = activated {
        let opened = Opened::Already(socket);
        return Ok(Line { settings: settings(method), opened, retry: false, reopen: false });
    }
    let path = path_of(config)?;
    let (method, how) = match config.method.as_deref().unwrap_or("virtio-serial") {
        "virtio-serial" => (Method::VirtioSerial, spawner::Method::VirtioSerial { path: path.into() }),
        "isa-serial" => (Method::IsaSerial, spawner::Method::IsaSerial { path: path.into() }),
        "unix-listen" => (Method::UnixListen, spawner::Method::UnixListen { path: path.into(), mode: None }),
        "vsock-listen" => {
            let (cid, port) = path
                .to_str()
                .and_then(vsock_address)
                .ok_or_else(|| format!("error parsing address '{}'", path.display()))?;
            (Method::VsockListen, spawner::Method::VsockListen { cid, port })
        }
        other => return Err(format!("unsupported channel method/type: {other}")),
    };
    // A serial line that was hung up comes back: qemu-ga stays deaf then.
    let reopen = config.retry || method == Method::IsaSerial;
    Ok(Line { settings: settings(method), opened: Opened::Later(how), retry: config.retry, reopen })
}

/// `cid:port`, both decimal.
pub(crate) fn vsock_address(text: &str) -> Option<(u32, u32)> {
    let decimal = |text: &str| {
        text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u32>().ok()).flatten()
    };
    let (cid, port) = text.split_once(':')?;
    Some((decimal(cid)?, decimal(port)?))
}

/// The effective configuration as a key file. Booleans and texts read back as they are.
fn dump(config: &Config, path: &OsStr) -> String {
    let mut text = "[general]\n".to_owned();
    let mut put = |key: &str, value: &str| {
        text.push_str(&format!("{key}={value}\n"));
    };
    let shown = |value: &OsStr| escape(&value.to_string_lossy());
    put("daemon", if config.daemon { "true" } else { "false" });
    put("method", &escape(config.method.as_deref().unwrap_or("virtio-serial")));
    put("path", &shown(path));
    if let Some(file) = &config.log_file {
        put("logfile", &shown(file));
    }
    put("pidfile", &shown(config.pid_file.as_deref().unwrap_or(OsStr::new(PID_FILE))));
    if let Some(hook) = &config.hook {
        put("fsfreeze-hook", &shown(hook));
    }
    put("statedir", &shown(config.state_directory.as_deref().unwrap_or(OsStr::new(STATE_DIRECTORY))));
    put("verbose", if config.verbose { "true" } else { "false" });
    put("retry-path", if config.retry { "true" } else { "false" });
    put("block-rpcs", &escape(&join(&config.block)));
    put("allow-rpcs", &escape(&join(&config.allow)));
    text
}

/// All lists as one. Whoever wrote semicolons reads the dump as a semicolon list (QEMU's own test does), all others as a
/// comma list (qemu-ga itself does); we read both.
fn join(lists: &[RpcList]) -> String {
    let separator = if lists.iter().any(|list| list.text.contains(';')) { ";" } else { "," };
    lists.iter().flat_map(|list| compile::elements(&list.text)).collect::<Vec<_>>().join(separator)
}

fn usage(called: &str) -> String {
    format!(
        "Usage: {called} [-m <method> -p <path>] [<options>]
QEMU Guest Agent {QGA_LEVEL}, as served by Portreeve {}

  -m, --method      how requests come in: virtio-serial (default), isa-serial,
                    unix-listen or vsock-listen
  -p, --path        device or socket; default for virtio-serial
                    {VIRTIO_PATH},
                    for isa-serial {SERIAL_PATH}; for vsock-listen <cid>:<port>
  -l, --logfile     append the log to this file instead of standard error
  -f, --pidfile     pid file of a daemon, default {PID_FILE}
  -F, --fsfreeze-hook
                    script around freeze and thaw, default {HOOK};
                    a value must be attached: -F/path
  -t, --statedir    directory of the state file, default {STATE_DIRECTORY};
                    made if it is missing
  -v, --verbose     log everything
  -V, --version     print the version and exit
  -d, --daemonize   detach once the agent is up
  -b, --block-rpcs  refuse these commands: names separated by , or ;
                    may be repeated; \"help\" lists all names
  -a, --allow-rpcs  refuse all commands but these; --block-rpcs goes first
  -c, --config      configuration file, default $QGA_CONF or
                    {CONFIGURATION}
  -D, --dump-conf   print the effective configuration and exit
  -r, --retry-path  wait for a channel that is missing or goes away
  -h, --help        print this and exit

Example: {called} -m virtio-serial -b guest-exec,guest-exec-status
What is refused beside these lists is said by the policy \"qemu-ga\": nothing.
",
        env!("CARGO_PKG_VERSION"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> RpcList {
        RpcList { origin: Origin { place: "--block-rpcs".into(), line: 0 }, text: text.to_owned() }
    }

    #[test]
    fn a_dumped_list_keeps_its_order_and_the_separator_it_was_written_with() {
        assert_eq!(join(&[list("a,b"), list("c")]), "a,b,c");
        assert_eq!(join(&[list("a;b"), list("c")]), "a;b;c");
        assert_eq!(join(&[list(" a ,, b"), list("")]), "a,b");
    }

    #[test]
    fn a_vsock_address_is_two_decimal_numbers() {
        assert_eq!(vsock_address("4294967295:1234"), Some((u32::MAX, 1234)));
        assert_eq!(vsock_address("2"), None);
        assert_eq!(vsock_address("+2:1"), None);
        assert_eq!(vsock_address("2:4294967296"), None);
        assert_eq!(vsock_address("2:1:3"), None);
        assert_eq!(vsock_address(":1"), None);
    }

    #[test]
    fn a_serial_line_is_opened_again_and_a_port_only_when_asked() {
        let with = |method: &str, retry| {
            let config = Config {
                method: Some(method.to_owned()),
                path: Some("/x".into()),
                retry,
                ..Config::default()
            };
            let line = line(&config, None).unwrap();
            (line.retry, line.reopen)
        };
        assert_eq!(with("virtio-serial", false), (false, false));
        assert_eq!(with("virtio-serial", true), (true, true));
        assert_eq!(with("isa-serial", false), (false, true));
    }
}
