//! What a rule gives away that is as good as being root.

use std::sync::LazyLock;

use authorize::{Argument, Outcome, Pattern, Program, Rule};
use proto::Group;

use crate::calls::Calls;
use crate::words;

/// Programs that run what their arguments or input say: whatever stands beside them in a rule, they are root. File names; a version may
/// follow.
const INTERPRETERS: &[&str] = &[
    "sh",
    "bash",
    "dash",
    "ash",
    "ksh",
    "zsh",
    "fish",
    "csh",
    "tcsh",
    "busybox",
    "toybox",
    "env",
    "sudo",
    "su",
    "doas",
    "runuser",
    "pkexec",
    "chroot",
    "nsenter",
    "unshare",
    "setpriv",
    "nohup",
    "nice",
    "ionice",
    "timeout",
    "xargs",
    "find",
    "awk",
    "gawk",
    "mawk",
    "sed",
    "perl",
    "python",
    "ruby",
    "node",
    "lua",
    "php",
    "tclsh",
    "expect",
    "vi",
    "vim",
    "ex",
    "ed",
    "emacs",
    "less",
    "man",
    "ssh",
    "scp",
    "rsync",
    "tar",
    "git",
    "gdb",
    "strace",
    "systemd-run",
    "systemd-nspawn",
    "docker",
    "podman",
    "kubectl",
    "crontab",
    "at",
    "batch",
    "make",
    "dpkg",
    "rpm",
    "apt",
    "apt-get",
    "dnf",
    "yum",
    "pip",
    "npm",
    "openssl",
    "socat",
    "nc",
    "screen",
    "tmux",
    "watch",
    "ld.so",
    "ld-linux-x86-64.so.2",
    "dd",
    "cp",
    "mv",
    "install",
    "tee",
    "mount",
    "ln",
    "chmod",
    "chown",
    "useradd",
    "usermod",
    "passwd",
    "chpasswd",
    "visudo",
    "insmod",
    "modprobe",
    "kexec",
];

/// Where a file that somebody else writes makes them root, or lets them in.
const POWERFUL: &[(&str, &str)] = &[
    ("/etc/passwd", "the list of users"),
    ("/etc/shadow", "the passwords"),
    ("/etc/sudoers", "who may become root"),
    ("/etc/sudoers.d/**", "who may become root"),
    ("/etc/cron*/**", "what cron runs as root"),
    ("/etc/crontab", "what cron runs as root"),
    ("/var/spool/cron/**", "what cron runs"),
    ("/etc/systemd/**", "what systemd runs as root"),
    ("/run/systemd/**", "what systemd runs as root"),
    ("/etc/init.d/**", "what is run at the start"),
    ("/etc/rc*", "what is run at the start"),
    ("/etc/profile*/**", "what shells run"),
    ("/etc/profile", "what shells run"),
    ("/etc/bash*", "what shells run"),
    ("/etc/ld.so*", "what every program loads"),
    ("/etc/pam.d/**", "who may log in"),
    ("/etc/ssh/**", "who may log in"),
    ("/etc/udev/**", "what udev runs as root"),
    ("/etc/portreeve/**", "this policy itself"),
    ("/etc/qemu/**", "the freeze hook, which root runs"),
    ("/root/**", "root's own files"),
    ("/home/*/.ssh/**", "keys that may log in"),
    ("/home/*/.config/**", "what a user's session runs"),
    ("/home/*/.*rc", "what a user's shell runs"),
    ("/var/lib/*/.ssh/**", "keys that may log in"),
    ("/usr/**", "the programs themselves"),
    ("/bin/**", "the programs themselves"),
    ("/sbin/**", "the programs themselves"),
    ("/lib*/**", "what every program loads"),
    ("/boot/**", "the kernel"),
    ("/dev/**", "the disks and the memory"),
    ("/proc/**", "the kernel's settings"),
    ("/sys/**", "the kernel's settings"),
];

static POWERFUL_PATTERNS: LazyLock<Vec<(Pattern, &str)>> = LazyLock::new(|| {
    POWERFUL.iter().filter_map(|(text, what)| Some((Pattern::path(text).ok()?, *what))).collect()
});

/// What a path pattern for writing hands over: the first such place, and what is there. None if it touches none of them.
pub(crate) fn powerful_place(pattern: &Pattern) -> Option<&'static str> {
    POWERFUL_PATTERNS.iter().find(|(place, _)| place.overlaps(pattern)).map(|(_, what)| *what)
}

/// Whether a program runs what it is told by its arguments, input or environment.
pub(crate) fn is_interpreter(path: &Pattern) -> bool {
    let text = path.text();
    let name = text.rsplit('/').next().unwrap_or_default();
    // python3.11, perl5.36
    let stem =
        name.trim_end_matches(|letter: char| letter.is_ascii_digit() || letter == '.' || letter == '-');
    INTERPRETERS.iter().any(|known| *known == name || *known == stem)
        // A pattern that could be one.
        || (!path.is_literal() && INTERPRETERS.iter().any(|known| could_be(path, known)))
}

fn could_be(path: &Pattern, program: &str) -> bool {
    ["/bin/", "/usr/bin/", "/sbin/", "/usr/sbin/", "/usr/local/bin/", ""]
        .iter()
        .any(|folder| path.matches(format!("{folder}{program}").as_bytes()))
}

/// What a rule gives away, in words; one sentence for each. Empty for a rule that refuses.
pub(crate) fn grants(rule: &Rule, calls: Calls) -> Vec<String> {
    if rule.outcome == Outcome::Deny {
        return Vec::new();
    }
    let may = |group: Group| calls.has(|_, known| known == group);
    let mut found = Vec::new();
    if calls.has(|command, _| command.name() == "guest-exec") {
        found.extend(programs(rule));
    }
    if may(Group::FileWrite) {
        found.extend(files(rule));
    }
    if may(Group::Account) {
        found.extend(accounts(rule, calls));
    }
    if may(Group::NetChange) {
        let what = match (rule.when.interfaces.is_empty(), rule.when.networks.is_empty()) {
            (true, true) => "any interface and route",
            (true, false) => "addresses and routes of any interface",
            (false, _) => "the interfaces named",
        };
        found.push(format!(
            "the network: whoever asks can cut the guest off, or lead its traffic elsewhere, by {what}"
        ));
    }
    found
}

fn programs(rule: &Rule) -> Vec<String> {
    const ROOT: &str = "whoever asks is root in this guest";
    // What runs as somebody else is that user at most.
    let as_root = rule.terms.as_deref().and_then(|terms| terms.run_as).is_none_or(|run_as| run_as.uid == 0);
    if rule.when.programs.is_empty() {
        let whom = if as_root { ROOT } else { "whoever asks is that user in this guest" };
        return vec![format!("any program may be run: {whom}")];
    }
    if !as_root {
        return Vec::new();
    }
    let said = |program: &Program| {
        let shown = words::program(program);
        let open = |argument: &Argument| !matches!(argument, Argument::OneOf(_));
        let any_arguments = program.arguments.as_ref().is_none_or(|arguments| arguments.iter().any(open));
        if is_interpreter(&program.path) && (any_arguments || program.input || !program.path.is_literal()) {
            Some(format!("{shown} runs what its arguments or input say: {ROOT}"))
        } else if program.environment.is_none() {
            Some(format!(
                "{shown}: LD_PRELOAD makes any program run anything; {ROOT}. Add `environment = []`"
            ))
        } else if !program.path.text().contains('/') {
            Some(format!(
                "{shown} is looked up in the agent's PATH, whose folders must be root's. Write its whole path"
            ))
        } else {
            None
        }
    };
    rule.when.programs.iter().filter_map(said).collect()
}

fn files(rule: &Rule) -> Vec<String> {
    if rule.when.paths.is_empty() {
        return vec!["every file may be written: whoever asks is root in this guest".to_owned()];
    }
    let said = |pattern: &Pattern| {
        let what = powerful_place(pattern)?;
        Some(format!(
            "files at {:?} may be written, which takes in {what}: whoever asks can become root",
            pattern.text()
        ))
    };
    rule.when.paths.iter().filter_map(said).collect()
}

fn accounts(rule: &Rule, calls: Calls) -> Option<String> {
    let changes = |name: &str| {
        matches!(
            name,
            "guest-set-user-password" | "guest-ssh-add-authorized-keys" | "guest-ssh-remove-authorized-keys"
        )
    };
    if !calls.has(|command, _| changes(command.name())) {
        return None;
    }
    let whose = match (rule.when.users.is_empty(), rule.when.uids.is_empty()) {
        (true, true) => "every user, root too, unless a rule before this one refuses that: whoever asks is root in this guest".to_owned(),
        (true, false) | (false, _) => {
            let root = rule.when.users.iter().any(|user| user.matches(b"root"))
                || rule.when.uids.iter().any(|(first, _)| *first == 0);
            let users = words::few(&words::values(&rule.when));
            let end = if root { "whoever asks is root in this guest" } else { "whoever asks can be these users, and what they may become" };
            format!("{users}: {end}")
        }
    };
    Some(format!("passwords or keys may be set of {whose}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Loaded;
    use compile::Source;

    fn found(rule: &str) -> Vec<String> {
        let text = format!("version = 1\n[[rule]]\noutcome = \"allow\"\n{rule}\n");
        let loaded = Loaded::compile(vec![Source::File { name: "p".to_owned(), text }]).unwrap();
        loaded.policy.rules().flat_map(|rule| grants(rule, Calls::matched_by(rule))).collect()
    }

    #[test]
    fn every_place_is_a_pattern() {
        assert_eq!(POWERFUL_PATTERNS.len(), POWERFUL.len());
    }

    #[test]
    fn what_is_as_good_as_root_is_named_as_such() {
        for (rule, wanted) in [
            ("groups = [\"exec\"]", Some("any program may be run: whoever asks is root")),
            (
                "groups = [\"exec\"]\n[[rule.program]]\npath = \"/usr/bin/python3.11\"\nenvironment = []\narguments = [{ rest = true }]",
                Some("`/usr/bin/python3.11 …` runs what its arguments or input say"),
            ),
            (
                "groups = [\"exec\"]\n[[rule.program]]\npath = \"/usr/bin/*\"\nenvironment = []\narguments = []",
                Some("runs what its"),
            ),
            (
                "groups = [\"exec\"]\n[[rule.program]]\npath = \"/bin/uptime\"\narguments = []",
                Some("LD_PRELOAD"),
            ),
            (
                "groups = [\"exec\"]\n[[rule.program]]\npath = \"uptime\"\nenvironment = []\narguments = []",
                Some("PATH"),
            ),
            (
                "groups = [\"exec\"]\n[[rule.program]]\npath = \"/bin/uptime\"\nenvironment = []\narguments = []",
                None,
            ),
            (
                "groups = [\"exec\"]\n[[rule.program]]\npath = \"/bin/sh\"\nenvironment = []\narguments = [\"-c\", \"uptime\"]",
                None,
            ),
            ("groups = [\"file.write\"]", Some("every file may be written")),
            (
                "groups = [\"file.write\"]\npaths = [\"/etc/**\"]",
                Some("may be written, which takes in the list of users"),
            ),
            ("groups = [\"file.write\"]\npaths = [\"/etc/cron.d/backup\"]", Some("what cron runs as root")),
            (
                "groups = [\"file.write\"]\npaths = [\"/home/*/.ssh/authorized_keys\"]",
                Some("keys that may log in"),
            ),
            ("groups = [\"file.write\"]\npaths = [\"/srv/app/**\"]", None),
            ("commands = [\"guest-file-open\"]\nmodes = [\"r\"]", None),
            ("groups = [\"account\"]", Some("every user, root too")),
            ("groups = [\"account\"]\nusers = [\"deploy\"]", Some("can be these users")),
            ("commands = [\"guest-ssh-get-authorized-keys\"]", None),
            ("groups = [\"net.change\"]\ninterfaces = [\"eth1\"]", Some("can cut the guest off")),
            ("groups = [\"query\"]", None),
        ] {
            let found = found(rule);
            match wanted {
                None => assert_eq!(found, Vec::<String>::new(), "{rule}"),
                Some(wanted) => assert!(found.iter().any(|said| said.contains(wanted)), "{rule}: {found:?}"),
            }
        }
    }
}
