//! Asking init, in the way that this init understands.
//!
//! Runs in the power worker; found out and opened before the jail is shut. Signals by number: `systemd(1)`, "SIGNALS", whose
//! SIGRTMIN is glibc's 34 (musl's is 35, and a computed SIGRTMIN+4 would reboot instead of powering off); busybox's
//! `init/init.c`; System V's `initreq.h`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use proto::settings::Init as Kind;
use proto::{Failed, errno_text};

/// O_NONBLOCK: a FIFO without a reader is an error at once.
const NONBLOCK: i32 = 0o4000;

/// System V's places for its FIFO, the newer one first.
const FIFOS: [&str; 2] = ["/run/initctl", "/dev/initctl"];

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    PowerDown,
    Halt,
    Reboot,
}

impl Mode {
    /// Reads `guest-shutdown`'s argument.
    ///
    /// # Errors
    /// qemu-ga's text, with its missing parenthesis: clients compare it.
    pub(crate) fn named(name: Option<&str>) -> Result<Self, Failed> {
        match name {
            None | Some("powerdown") => Ok(Mode::PowerDown),
            Some("halt") => Ok(Mode::Halt),
            Some("reboot") => Ok(Mode::Reboot),
            Some(_) => Err(Failed::new("mode is invalid (valid values are: halt|powerdown|reboot")),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Mode::PowerDown => "power down",
            Mode::Halt => "halt",
            Mode::Reboot => "reboot",
        }
    }
}

/// How process 1 is asked.
pub(crate) struct Init {
    kind: Option<Kind>,
    /// `/proc/1/status`, read anew each time.
    status: Option<File>,
    fifo: Option<File>,
}

impl Init {
    /// Finds out who process 1 is, unless that was configured, and opens what asking it needs.
    pub(crate) fn open(configured: Option<Kind>) -> Self {
        let fifo = FIFOS.iter().find_map(|path| {
            let file = OpenOptions::new().write(true).custom_flags(NONBLOCK).open(path).ok()?;
            file.metadata().ok()?.file_type().is_fifo().then_some(file)
        });
        let facts = Facts {
            systemd: Path::new("/run/systemd/system").is_dir(),
            name: std::fs::read_to_string("/proc/1/comm").unwrap_or_default().trim().to_owned(),
            program: std::fs::read_link("/proc/1/exe")
                .ok()
                .and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
                .unwrap_or_default(),
            fifo: fifo.is_some(),
        };
        Init { kind: configured.or_else(|| facts.kind()), status: File::open("/proc/1/status").ok(), fifo }
    }

    /// Asks for `mode`.
    ///
    /// # Errors
    /// Init does not listen, or it is not known how it does; says what to configure.
    pub(crate) fn ask(&self, mode: Mode) -> Result<(), Failed> {
        let refused = |why: &str, errno| Failed {
            text: format!(
                "cannot {}: {why}; set `init` in the section [power] of the configuration to one of systemd, busybox, sysvinit",
                mode.name()
            ),
            errno,
        };
        let asked = match self.kind {
            None => return Err(refused("process 1 is no init that is known", None)),
            Some(Kind::Systemd | Kind::Busybox) => {
                let signal = signal_for(self.kind == Some(Kind::Systemd), mode);
                // busybox's init is in sigtimedwait(2) nearly always, and meanwhile the kernel shows what it waits for as not blocked.
                if self.kind == Some(Kind::Systemd) && !self.takes(signal) {
                    return Err(refused(&format!("process 1 does not listen to signal {signal}"), None));
                }
                jail::init::signal(signal)
            }
            Some(Kind::Sysvinit) => match &self.fifo {
                Some(fifo) => requests(mode).iter().try_for_each(|request| (&mut &*fifo).write_all(request)),
                None => return Err(refused("there is no /run/initctl", None)),
            },
        };
        asked.map_err(|error: io::Error| {
            let errno = error.raw_os_error();
            refused(&errno.map_or_else(|| error.to_string(), errno_text), errno)
        })
    }

    /// Whether process 1 handles a signal, or waits for it. One that does neither never sees it: the kernel keeps from process 1
    /// what it has no handler for.
    fn takes(&self, signal: i32) -> bool {
        let Some(status) = &self.status else { return false };
        let mut buffer = [0; 4096];
        let length = status.read_at(&mut buffer, 0).unwrap_or_default();
        handles(&String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()), signal)
    }
}

/// What tells one init from another.
struct Facts {
    systemd: bool,
    name: String,
    program: String,
    fifo: bool,
}

impl Facts {
    fn kind(&self) -> Option<Kind> {
        // sd_booted(3).
        if self.systemd || self.name == "systemd" {
            Some(Kind::Systemd)
        } else if self.program == "busybox" && ["init", "linuxrc"].contains(&self.name.as_str()) {
            Some(Kind::Busybox)
        } else if self.fifo {
            Some(Kind::Sysvinit)
        } else {
            None
        }
    }
}

const fn signal_for(systemd: bool, mode: Mode) -> i32 {
    match (systemd, mode) {
        (true, Mode::Halt) => 37,
        (true, Mode::PowerDown) => 38,
        (true, Mode::Reboot) => 39,
        (false, Mode::Halt) => 10,
        (false, Mode::PowerDown) => 12,
        (false, Mode::Reboot) => 15,
    }
}

/// Looks into `/proc/PID/status`: caught, or blocked, which is how a signalfd takes it.
fn handles(status: &str, signal: i32) -> bool {
    let Some(bit) = u32::try_from(signal - 1).ok().and_then(|shift| 1_u64.checked_shl(shift)) else {
        return false;
    };
    status.lines().any(|line| {
        let mask = line.strip_prefix("SigCgt:").or_else(|| line.strip_prefix("SigBlk:"));
        mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & bit != 0)
    })
}

/// Bytes of one `struct init_request`.
const REQUEST: usize = 384;

/// What is written into System V's FIFO: for a halt the wish not to power off goes first, as shutdown(8) sends it.
fn requests(mode: Mode) -> Vec<[u8; REQUEST]> {
    const RUN_LEVEL: u32 = 1;
    const SET_VARIABLE: u32 = 6;
    let request = |command: u32, level: u8, data: &[u8]| {
        let mut bytes = [0; REQUEST];
        let words = [0x0309_1969, command, level.into(), 0];
        let header = words.iter().flat_map(|word: &u32| word.to_ne_bytes());
        for (place, byte) in bytes.iter_mut().zip(header.chain(data.iter().copied())) {
            *place = byte;
        }
        bytes
    };
    match mode {
        Mode::PowerDown => {
            vec![request(SET_VARIABLE, 0, b"INIT_HALT=POWEROFF"), request(RUN_LEVEL, b'0', b"")]
        }
        Mode::Halt => vec![request(SET_VARIABLE, 0, b"INIT_HALT=HALT"), request(RUN_LEVEL, b'0', b"")],
        Mode::Reboot => vec![request(RUN_LEVEL, b'6', b"")],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_one_of_three_and_power_down_without_one() {
        let named = |name| Mode::named(name).map_err(|failed| failed.text);
        assert_eq!(named(None), Ok(Mode::PowerDown));
        assert_eq!(named(Some("reboot")), Ok(Mode::Reboot));
        assert_eq!(named(Some("halt")), Ok(Mode::Halt));
        let wrong = "mode is invalid (valid values are: halt|powerdown|reboot".to_owned();
        assert_eq!(named(Some("")), Err(wrong.clone()));
        assert_eq!(named(Some("Reboot")), Err(wrong));
    }

    #[test]
    fn a_reboot_is_never_the_signal_of_a_power_off() {
        assert_eq!(
            [Mode::Halt, Mode::PowerDown, Mode::Reboot].map(|mode| signal_for(true, mode)),
            [37, 38, 39]
        );
        assert_eq!(
            [Mode::Halt, Mode::PowerDown, Mode::Reboot].map(|mode| signal_for(false, mode)),
            [10, 12, 15]
        );
    }

    #[test]
    fn init_is_told_by_what_is_there() {
        let kind = |systemd, name: &str, program: &str, fifo| {
            Facts { systemd, name: name.to_owned(), program: program.to_owned(), fifo }.kind()
        };
        assert_eq!(kind(true, "systemd", "systemd", true), Some(Kind::Systemd));
        assert_eq!(kind(false, "init", "busybox", false), Some(Kind::Busybox));
        // A container's first process: no signal would reach it.
        assert_eq!(kind(false, "sh", "busybox", false), None);
        assert_eq!(kind(false, "init", "init", true), Some(Kind::Sysvinit));
        assert_eq!(kind(false, "sh", "bash", false), None);
    }

    #[test]
    fn a_signal_that_init_neither_catches_nor_waits_for_is_not_sent() {
        let status =
            "Name:\tinit\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\nSigCgt:\t0000000000000a00\n";
        assert!(handles(status, 10) && handles(status, 12));
        assert!(!handles(status, 15) && !handles(status, 38));
        let waits = "SigBlk:\t7be3c0fe28014a03\nSigCgt:\t0000000000000000\n";
        assert!(handles(waits, 38));
        assert!(!handles("", 15));
    }

    #[test]
    fn a_request_to_system_vs_init_has_the_bytes_of_its_header_file() {
        let [reboot] = requests(Mode::Reboot).try_into().unwrap();
        assert_eq!(reboot[..16], [0x69, 0x19, 0x09, 0x03, 1, 0, 0, 0, b'6', 0, 0, 0, 0, 0, 0, 0]);
        assert!(reboot[16..].iter().all(|byte| *byte == 0));
        let [variable, level] = requests(Mode::Halt).try_into().unwrap();
        assert_eq!(variable[4], 6);
        assert_eq!(&variable[16..31], b"INIT_HALT=HALT\0");
        assert_eq!((level[4], level[8]), (1, b'0'));
    }
}
