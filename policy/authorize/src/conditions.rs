//! What a rule can ask of a request's arguments, and what a request shows of itself for that.
//!
//! A rule that allows must cover everything that is asked for, one that refuses needs to touch only a part of it: of four CPUs, all
//! must be among the allowed ones, and one that is refused is enough.
//!
//! What a path leads to, or which number a user has, only the worker can find out. Until then ([`Facts`] without it) a rule that allows
//! is taken to match and one that refuses is not; the worker decides again with what it has really found.

use bincode::{Decode, Encode};
use proto::message::Found;
use proto::{Command, Group, Request, Text, account, exec, file, fsfreeze, hotplug, netadmin, power};

use crate::{Network, Pattern};

/// Conditions on arguments. An empty list is no condition; several must all hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct Conditions {
    /// Where the file is that was really opened.
    pub paths: Vec<Pattern>,
    /// How it is opened: fopen(3)'s modes without `b`.
    pub modes: Vec<String>,
    /// Whose password or keys.
    pub users: Vec<Pattern>,
    /// The same by number: first and last.
    pub uids: Vec<(u32, u32)>,
    /// Which interface is changed.
    pub interfaces: Vec<Pattern>,
    /// Which addresses and routes are added or removed.
    pub networks: Vec<Network>,
    /// Which filesystems are frozen, by mount point. Freezing without a list is freezing everything, which no pattern covers but `/**`.
    pub mountpoints: Vec<Pattern>,
    /// Which CPUs or memory blocks are switched: first and last.
    pub units: Vec<(u64, u64)>,
    /// How it is shut down or suspended.
    pub power: Vec<PowerMode>,
    /// Which programs are run, and how.
    pub programs: Vec<Program>,
}

/// A way to stop the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum PowerMode {
    /// `guest-shutdown`, `powerdown`, which is also what no mode means.
    Powerdown,
    /// `guest-shutdown`, `halt`.
    Halt,
    /// `guest-shutdown`, `reboot`.
    Reboot,
    /// `guest-suspend-disk`.
    SuspendDisk,
    /// `guest-suspend-ram`.
    SuspendRam,
    /// `guest-suspend-hybrid`.
    SuspendHybrid,
}

impl PowerMode {
    /// Every one, as written in a policy.
    pub const ALL: [(&'static str, PowerMode); 6] = [
        ("powerdown", PowerMode::Powerdown),
        ("halt", PowerMode::Halt),
        ("reboot", PowerMode::Reboot),
        ("suspend-disk", PowerMode::SuspendDisk),
        ("suspend-ram", PowerMode::SuspendRam),
        ("suspend-hybrid", PowerMode::SuspendHybrid),
    ];
}

/// A program and what it may be called with.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Program {
    /// Its path, as the host must say it.
    pub path: Pattern,
    /// Its arguments, one by one; `None`: any.
    pub arguments: Option<Vec<Argument>>,
    /// Names of environment entries that the host may set; `None`: any. With a list, a request that sets none gets the agent's.
    pub environment: Option<Vec<Pattern>>,
    /// Whether it may be given input.
    pub input: bool,
}

/// One argument of a [`Program`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Argument {
    /// One of these.
    OneOf(Vec<Vec<u8>>),
    /// What matches.
    Like(Pattern),
    /// Anything, once.
    Any,
    /// Anything, any number of times; only the last one.
    Rest,
}

impl Argument {
    fn admits(&self, argument: &[u8]) -> bool {
        match self {
            Argument::OneOf(words) => words.iter().any(|word| word == argument),
            Argument::Like(pattern) => pattern.matches(argument),
            Argument::Any | Argument::Rest => true,
        }
    }
}

impl Program {
    fn admits(&self, request: &exec::Exec) -> bool {
        self.path.matches(&request.path.0)
            && (self.input || !request.input_data.present)
            && self.admits_arguments(request.arg.as_deref().unwrap_or_default())
            && self.admits_environment(request.env.as_deref().unwrap_or_default())
    }

    fn admits_arguments(&self, given: &[Text]) -> bool {
        let Some(wanted) = &self.arguments else { return true };
        let open_ended = matches!(wanted.last(), Some(Argument::Rest));
        let fixed = wanted.len().saturating_sub(usize::from(open_ended));
        let enough = if open_ended { given.len() >= fixed } else { given.len() == fixed };
        enough && wanted.iter().zip(given).all(|(wanted, given)| wanted.admits(&given.0))
    }

    fn admits_environment(&self, given: &[Text]) -> bool {
        let Some(names) = &self.environment else { return true };
        given.iter().all(|Text(entry)| {
            let name = entry.split(|byte| *byte == b'=').next().unwrap_or_default();
            names.iter().any(|pattern| pattern.matches(name))
        })
    }
}

/// What a worker has found out about a request; nothing, before it has.
#[derive(Debug, Clone, Copy, Default)]
pub struct Facts<'a> {
    /// The absolute path of what a path led to; of a request about an open file, that by which it was opened.
    pub path: Option<&'a [u8]>,
    /// The number of the user that was named.
    pub uid: Option<u32>,
}

impl<'a> From<&'a Found> for Facts<'a> {
    fn from(found: &'a Found) -> Self {
        Facts { path: found.path.as_ref().map(|Text(path)| path.as_slice()), uid: found.uid }
    }
}

/// An argument, as far as a condition can be about it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Shown<T> {
    /// The request has no such argument.
    Absent,
    /// It has one, and what it is remains to be found out.
    Unknown,
    /// These. None at all means nothing that a pattern could cover.
    These(Vec<T>),
}

/// What a request shows of itself.
pub(crate) struct Subject<'a> {
    request: &'a Request,
    facts: Facts<'a>,
    /// It is about something that an earlier request was permitted: an open file, a program that runs.
    follows: bool,
}

/// Whether a rule with conditions matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// A rule that lets through: everything must be covered.
    Allows,
    /// A rule that refuses: one thing is enough.
    Refuses,
}

impl<'a> Subject<'a> {
    pub(crate) fn of(request: &'a Request, facts: Facts<'a>) -> Self {
        let follows = matches!(
            request,
            Request::File(
                file::Request::Close(_)
                    | file::Request::Read(_)
                    | file::Request::Write(_)
                    | file::Request::Seek(_)
                    | file::Request::Flush(_)
                    | file::Request::PhoenixClose(_)
                    | file::Request::PhoenixRead(_)
                    | file::Request::PhoenixWrite(_)
            ) | Request::Exec(exec::Request::Status(_))
        );
        Subject { request, facts, follows }
    }

    /// Whether it is about what an earlier request was permitted.
    pub(crate) fn follows(&self) -> bool {
        self.follows
    }

    pub(crate) fn path(&self) -> Shown<&'a [u8]> {
        match (self.facts.path, asked_path(self.request)) {
            (Some(path), Some(_)) => Shown::These(vec![path]),
            // Reading what was opened to be written is decided as reading there.
            (Some(path), None) if self.follows => Shown::These(vec![path]),
            (None, Some(_)) => Shown::Unknown,
            (_, None) => Shown::Absent,
        }
    }

    pub(crate) fn program(&self) -> Option<&'a [u8]> {
        match self.request {
            Request::Exec(exec::Request::Exec(exec)) => Some(&exec.path.0),
            _ => None,
        }
    }

    fn modes(&self) -> Shown<String> {
        match self.request {
            Request::File(file::Request::Open(open)) => {
                let mode = open.mode.as_deref().unwrap_or("r").replace('b', "");
                Shown::These(vec![mode])
            }
            Request::File(file::Request::PhoenixOpen(open)) => {
                Shown::These(vec![if open.writes() { "w" } else { "r" }.to_owned()])
            }
            _ => Shown::Absent,
        }
    }

    pub(crate) fn user(&self) -> Option<&'a Text> {
        asked_user(self.request)
    }

    pub(crate) fn interface(&self) -> Option<&'a str> {
        let Request::NetAdmin(request) = self.request else { return None };
        Some(match request {
            netadmin::Request::AddAddress(request) | netadmin::Request::DeleteAddress(request) => {
                &request.ifname
            }
            netadmin::Request::LinkUp(request) | netadmin::Request::LinkDown(request) => &request.ifname,
            netadmin::Request::AddRoute(request) | netadmin::Request::DeleteRoute(request) => &request.ifname,
        })
    }

    fn networks(&self) -> Shown<Network> {
        let Request::NetAdmin(request) = self.request else { return Shown::Absent };
        let text = match request {
            netadmin::Request::AddAddress(request) | netadmin::Request::DeleteAddress(request) => {
                // Behind a space stands a label.
                request.ip.split(' ').next().unwrap_or_default()
            }
            netadmin::Request::AddRoute(request) | netadmin::Request::DeleteRoute(request) => &request.dst,
            netadmin::Request::LinkUp(_) | netadmin::Request::LinkDown(_) => return Shown::Absent,
        };
        // What is no network is covered by none, and the worker will say what is wrong with it.
        Shown::These(Network::parse(text).into_iter().collect())
    }

    fn mountpoints(&self) -> Shown<&'a [u8]> {
        match self.request {
            Request::Fsfreeze(fsfreeze::Request::FreezeList(fsfreeze::FreezeList {
                mountpoints: Some(list),
            })) => Shown::These(list.iter().map(|Text(path)| path.as_slice()).collect()),
            Request::Fsfreeze(
                fsfreeze::Request::FreezeList(_)
                | fsfreeze::Request::Freeze(_)
                | fsfreeze::Request::PhoenixFreeze(_),
            ) => Shown::These(vec![EVERYTHING]),
            _ => Shown::Absent,
        }
    }

    fn units(&self) -> Shown<u64> {
        match self.request {
            Request::Hotplug(hotplug::Request::SetVcpus(request)) => Shown::These(
                // A negative number is none that there is, and none that a policy can name.
                request.vcpus.iter().map(|cpu| u64::try_from(cpu.logical_id).unwrap_or(u64::MAX)).collect(),
            ),
            Request::Hotplug(hotplug::Request::SetMemoryBlocks(request)) => {
                Shown::These(request.mem_blks.iter().map(|block| block.phys_index).collect())
            }
            _ => Shown::Absent,
        }
    }

    fn power(&self) -> Shown<PowerMode> {
        let Request::Power(request) = self.request else { return Shown::Absent };
        let mode = match request {
            power::Request::Shutdown(shutdown) => {
                let mode = shutdown.mode.as_deref().unwrap_or("powerdown");
                PowerMode::ALL.iter().take(3).find(|(name, _)| *name == mode).map(|(_, mode)| *mode)
            }
            power::Request::SuspendDisk(_) => Some(PowerMode::SuspendDisk),
            power::Request::SuspendRam(_) => Some(PowerMode::SuspendRam),
            power::Request::SuspendHybrid(_) => Some(PowerMode::SuspendHybrid),
        };
        Shown::These(mode.into_iter().collect())
    }
}

/// Stands for all filesystems where a list of mount points could be: only `/**` and `**` match it.
const EVERYTHING: &[u8] = b"/\xff/\xff";

/// The path that a request names, as the host wrote it.
pub fn asked_path(request: &Request) -> Option<&Text> {
    let Request::File(request) = request else { return None };
    Some(match request {
        file::Request::Open(request) => &request.path,
        file::Request::PhoenixOpen(request) => &request.path,
        file::Request::Md5Sum(request) | file::Request::Stat(request) => &request.path,
        file::Request::Chown(request) => &request.path,
        file::Request::Chmod(request) => &request.path,
        file::Request::CreateDirectory(request) => &request.path,
        file::Request::ListDirectory(request) => &request.path,
        _ => return None,
    })
}

/// The user that a request names.
pub fn asked_user(request: &Request) -> Option<&Text> {
    let Request::Account(request) = request else { return None };
    Some(match request {
        account::Request::SetUserPassword(request) => &request.username,
        account::Request::GetKeys(request) => &request.username,
        account::Request::AddKeys(request) => &request.username,
        account::Request::RemoveKeys(request) => &request.username,
    })
}

impl Conditions {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        *self == Conditions::default()
    }

    /// Whether they hold, for a rule that is on this side.
    pub(crate) fn hold(&self, subject: &Subject<'_>, side: Side) -> bool {
        let check = Check { side };
        // What was opened or started under a rule stays usable under it.
        let (open, running) = match subject.request {
            Request::File(_) => (subject.follows, false),
            _ => (false, subject.follows),
        };
        let text = |text: Option<&str>| {
            text.map_or(Shown::Absent, |text| Shown::These(vec![text.as_bytes().to_vec()]))
        };
        let any = |patterns: &[Pattern], name: &[u8]| patterns.iter().any(|pattern| pattern.matches(name));
        check.of(&self.paths, open, || subject.path(), |path| any(&self.paths, path))
            && check.of(&self.modes, open, || subject.modes(), |mode| self.modes.contains(mode))
            && check.of(
                &self.users,
                false,
                || subject.user().map_or(Shown::Absent, |Text(user)| Shown::These(vec![user.clone()])),
                |user| any(&self.users, user),
            )
            && check.of(
                &self.uids,
                false,
                || match (subject.user(), subject.facts.uid) {
                    (None, _) => Shown::Absent,
                    (Some(_), None) => Shown::Unknown,
                    (Some(_), Some(uid)) => Shown::These(vec![uid]),
                },
                |uid| self.uids.iter().any(|(first, last)| (first..=last).contains(&uid)),
            )
            && check.of(
                &self.interfaces,
                false,
                || text(subject.interface()),
                |name| any(&self.interfaces, name),
            )
            && check.of(
                &self.networks,
                false,
                || subject.networks(),
                |network| self.networks.iter().any(|own| own.contains(network)),
            )
            && check.of(
                &self.mountpoints,
                false,
                || subject.mountpoints(),
                |path| any(&self.mountpoints, path),
            )
            && check.of(
                &self.units,
                false,
                || subject.units(),
                |unit| self.units.iter().any(|(first, last)| (first..=last).contains(&unit)),
            )
            && check.of(&self.power, false, || subject.power(), |mode| self.power.contains(mode))
            && check.of(
                &self.programs,
                running,
                || match subject.request {
                    Request::Exec(exec::Request::Exec(exec)) => Shown::These(vec![exec]),
                    _ => Shown::Absent,
                },
                |exec| self.programs.iter().any(|program| program.admits(exec)),
            )
    }

    /// Whether they hold as far as anybody can tell who knows the command and nothing of its arguments.
    pub(crate) fn could_hold(&self, side: Side, command: &Command) -> bool {
        match side {
            Side::Allows => self.kinds().all(|kind| kind.commands().contains(&command.name())),
            Side::Refuses => self.is_empty(),
        }
    }

    /// Whether a call of `command` that needs `group` could fit the modes: opening a file needs another right to write than to read
    /// (see [`Command::groups`]).
    pub fn could_need(&self, group: Group, command: &Command) -> bool {
        let fits = |mode: &String| if mode == "r" { Group::FileRead } else { Group::FileWrite } == group;
        self.modes.is_empty() || command.groups().count() < 2 || self.modes.iter().any(fits)
    }

    /// Whether they are about something that only the worker can find out, so that a rule that refuses waits for it.
    pub(crate) fn need_facts(&self) -> bool {
        !self.paths.is_empty() || !self.uids.is_empty()
    }

    /// Each of them alone, by its key in a policy.
    pub fn apart(&self) -> Vec<(&'static str, Conditions)> {
        let none = Conditions::default;
        let all = [
            ("paths", Conditions { paths: self.paths.clone(), ..none() }),
            ("modes", Conditions { modes: self.modes.clone(), ..none() }),
            ("users", Conditions { users: self.users.clone(), ..none() }),
            ("uids", Conditions { uids: self.uids.clone(), ..none() }),
            ("interfaces", Conditions { interfaces: self.interfaces.clone(), ..none() }),
            ("networks", Conditions { networks: self.networks.clone(), ..none() }),
            ("mountpoints", Conditions { mountpoints: self.mountpoints.clone(), ..none() }),
            ("units", Conditions { units: self.units.clone(), ..none() }),
            ("power", Conditions { power: self.power.clone(), ..none() }),
            ("program", Conditions { programs: self.programs.clone(), ..none() }),
        ];
        all.into_iter().filter(|(_, one)| !one.is_empty()).collect()
    }

    /// Which kinds of argument they are about.
    pub fn kinds(&self) -> impl Iterator<Item = Kind> + '_ {
        Kind::ALL.iter().copied().filter(|kind| match kind {
            Kind::Paths => !self.paths.is_empty(),
            Kind::Modes => !self.modes.is_empty(),
            Kind::Users => !self.users.is_empty() || !self.uids.is_empty(),
            Kind::Interfaces => !self.interfaces.is_empty(),
            Kind::Networks => !self.networks.is_empty(),
            Kind::Mountpoints => !self.mountpoints.is_empty(),
            Kind::Units => !self.units.is_empty(),
            Kind::Power => !self.power.is_empty(),
            Kind::Programs => !self.programs.is_empty(),
        })
    }
}

/// A kind of argument that there can be a condition on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Paths.
    Paths,
    /// File modes.
    Modes,
    /// Users, by name or number.
    Users,
    /// Interfaces.
    Interfaces,
    /// Addresses and routes.
    Networks,
    /// Mount points.
    Mountpoints,
    /// CPUs and memory blocks.
    Units,
    /// Ways to stop the machine.
    Power,
    /// Programs.
    Programs,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 9] = [
        Kind::Paths,
        Kind::Modes,
        Kind::Users,
        Kind::Interfaces,
        Kind::Networks,
        Kind::Mountpoints,
        Kind::Units,
        Kind::Power,
        Kind::Programs,
    ];

    /// The argument, in words.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Paths => "a path",
            Kind::Modes => "a file mode",
            Kind::Users => "a user",
            Kind::Interfaces => "an interface",
            Kind::Networks => "an address",
            Kind::Mountpoints => "a mount point",
            Kind::Units => "a CPU or memory block",
            Kind::Power => "a power mode",
            Kind::Programs => "a program",
        }
    }

    /// The command names of both dialects that have such an argument, or work on what was got by one.
    pub fn commands(self) -> &'static [&'static str] {
        match self {
            Kind::Paths => &[
                "guest-file-open",
                "guest-file-close",
                "guest-file-read",
                "guest-file-write",
                "guest-file-seek",
                "guest-file-flush",
                "file-open",
                "file-close",
                "file-read",
                "file-write",
                "get-file-md5sum",
                "file-chown",
                "file-chmod",
                "file-stat",
                "directory-create",
                "directory-list",
            ],
            Kind::Modes => &[
                "guest-file-open",
                "guest-file-close",
                "guest-file-read",
                "guest-file-write",
                "guest-file-seek",
                "guest-file-flush",
                "file-open",
                "file-close",
                "file-read",
                "file-write",
            ],
            Kind::Users => &[
                "guest-set-user-password",
                "guest-ssh-get-authorized-keys",
                "guest-ssh-add-authorized-keys",
                "guest-ssh-remove-authorized-keys",
            ],
            Kind::Interfaces => {
                &["ipaddr-add", "ipaddr-del", "net-iface-up", "net-iface-down", "route-add", "route-del"]
            }
            Kind::Networks => &["ipaddr-add", "ipaddr-del", "route-add", "route-del"],
            Kind::Mountpoints => &["guest-fsfreeze-freeze", "guest-fsfreeze-freeze-list", "fs-freeze"],
            Kind::Units => &["guest-set-vcpus", "guest-set-memory-blocks"],
            Kind::Power => {
                &["guest-shutdown", "guest-suspend-disk", "guest-suspend-ram", "guest-suspend-hybrid"]
            }
            Kind::Programs => &["guest-exec", "guest-exec-status"],
        }
    }
}

struct Check {
    side: Side,
}

impl Check {
    /// One condition: the list of the rule, what the request shows, and whether the list covers one of these.
    ///
    /// `follows`: it has no such argument, because it is about what was got by one.
    fn of<C, T>(
        &self,
        list: &[C],
        follows: bool,
        shown: impl FnOnce() -> Shown<T>,
        covers: impl Fn(&T) -> bool,
    ) -> bool {
        if list.is_empty() {
            return true;
        }
        match (shown(), self.side) {
            (Shown::Absent, Side::Allows) => follows,
            (Shown::Unknown, Side::Allows) => true,
            (Shown::Absent | Shown::Unknown, Side::Refuses) => false,
            (Shown::These(all), Side::Allows) => !all.is_empty() && all.iter().all(covers),
            (Shown::These(all), Side::Refuses) => all.iter().any(covers),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::Payload;

    fn path(text: &str) -> Pattern {
        Pattern::path(text).unwrap()
    }

    fn name(text: &str) -> Pattern {
        Pattern::name(text).unwrap()
    }

    fn hold(when: &Conditions, request: impl Into<Request>, side: Side) -> bool {
        when.hold(&Subject::of(&request.into(), Facts::default()), side)
    }

    fn open(mode: Option<&str>) -> Request {
        let mode = mode.map(str::to_owned);
        file::Request::Open(file::Open { path: "/x".into(), mode }).into()
    }

    #[test]
    fn a_path_counts_when_it_is_known_what_it_leads_to() {
        let when = Conditions { paths: vec![path("/var/log/**")], ..Conditions::default() };
        let open = open(None);
        let at = |path: Option<&str>, side| {
            let facts = Facts { path: path.map(str::as_bytes), uid: None };
            when.hold(&Subject::of(&open, facts), side)
        };
        assert!(at(None, Side::Allows) && !at(None, Side::Refuses));
        assert!(at(Some("/var/log/a"), Side::Allows) && at(Some("/var/log/a"), Side::Refuses));
        assert!(!at(Some("/etc/shadow"), Side::Allows) && !at(Some("/etc/shadow"), Side::Refuses));
    }

    #[test]
    fn what_was_opened_under_a_rule_stays_usable_under_it() {
        let when = Conditions { paths: vec![path("/var/log/**")], ..Conditions::default() };
        let read = || file::Request::Read(file::Read { handle: 1, count: None });
        assert!(hold(&when, read(), Side::Allows) && !hold(&when, read(), Side::Refuses));
        let status = || exec::Request::Status(exec::Status { pid: 1 });
        assert!(!hold(&when, status(), Side::Allows), "a program is not what a rule about paths let start");
    }

    #[test]
    fn a_mode_is_that_of_fopen_without_the_b() {
        let when = Conditions { modes: vec!["r".to_owned(), "a+".to_owned()], ..Conditions::default() };
        for (mode, holds) in
            [(None, true), (Some("rb"), true), (Some("ab+"), true), (Some("a"), false), (Some("r+b"), false)]
        {
            assert_eq!(hold(&when, open(mode), Side::Allows), holds, "{mode:?}");
        }
    }

    #[test]
    fn allowing_needs_all_and_refusing_one() {
        let when = Conditions { units: vec![(1, 3)], ..Conditions::default() };
        let switch = |numbers: &[i64]| {
            let vcpus = numbers.iter().map(|number| hotplug::Vcpu {
                logical_id: *number,
                online: false,
                can_offline: None,
            });
            hotplug::Request::SetVcpus(hotplug::SetVcpus { vcpus: vcpus.collect() })
        };
        assert!(hold(&when, switch(&[1, 3]), Side::Allows) && !hold(&when, switch(&[1, 4]), Side::Allows));
        assert!(hold(&when, switch(&[1, 4]), Side::Refuses) && !hold(&when, switch(&[0, -1]), Side::Refuses));
        assert!(!hold(&when, switch(&[]), Side::Allows), "nothing is not covered");
    }

    #[test]
    fn freezing_everything_is_covered_by_the_pattern_of_everything_alone() {
        let freeze = || fsfreeze::Request::Freeze(proto::NoArguments {});
        let of = |text: &str| Conditions { mountpoints: vec![path(text)], ..Conditions::default() };
        assert!(hold(&of("/**"), freeze(), Side::Allows));
        assert!(!hold(&of("/srv/**"), freeze(), Side::Allows) && !hold(&of("/"), freeze(), Side::Allows));
        let list = |paths: &[&str]| {
            let mountpoints = Some(paths.iter().map(|path| Text::from(*path)).collect());
            fsfreeze::Request::FreezeList(fsfreeze::FreezeList { mountpoints })
        };
        assert!(hold(&of("/srv/**"), list(&["/srv", "/srv/a"]), Side::Allows));
        assert!(!hold(&of("/srv/**"), list(&["/srv", "/"]), Side::Allows));
    }

    #[test]
    fn a_network_covers_addresses_within_it() {
        let when = Conditions {
            networks: vec![Network::parse("10.0.0.0/8").unwrap()],
            interfaces: vec![name("eth*")],
            ..Conditions::default()
        };
        let add = |ip: &str, ifname: &str| {
            netadmin::Request::AddAddress(netadmin::Address { ip: ip.to_owned(), ifname: ifname.to_owned() })
        };
        assert!(hold(&when, add("10.1.2.3/24 label", "eth0"), Side::Allows));
        assert!(!hold(&when, add("10.1.2.3/24", "lo"), Side::Allows));
        assert!(!hold(&when, add("192.168.0.1/24", "eth0"), Side::Allows));
        assert!(!hold(&when, add("nonsense", "eth0"), Side::Allows));
    }

    #[test]
    fn shutting_down_without_a_mode_is_powering_down() {
        let when = Conditions { power: vec![PowerMode::Powerdown], ..Conditions::default() };
        let shutdown =
            |mode: Option<&str>| power::Request::Shutdown(power::Shutdown { mode: mode.map(str::to_owned) });
        assert!(
            hold(&when, shutdown(None), Side::Allows)
                && hold(&when, shutdown(Some("powerdown")), Side::Allows)
        );
        assert!(!hold(&when, shutdown(Some("reboot")), Side::Allows));
        assert!(!hold(&when, shutdown(Some("suspend-ram")), Side::Allows), "no mode of guest-shutdown");
        assert!(!hold(&when, power::Request::SuspendRam(proto::NoArguments {}), Side::Allows));
    }

    fn exec(path: &str, arguments: &[&str], environment: Option<&[&str]>, input: bool) -> exec::Request {
        let texts = |texts: &[&str]| texts.iter().map(|text| Text::from(*text)).collect();
        exec::Request::Exec(exec::Exec {
            path: path.into(),
            arg: Some(texts(arguments)),
            env: environment.map(texts),
            input_data: Payload { present: input, ..Payload::default() },
            capture_output: exec::Capture::None,
        })
    }

    #[test]
    fn a_program_is_told_by_its_path_arguments_environment_and_input() {
        let restart = Program {
            path: path("/usr/bin/systemctl"),
            arguments: Some(vec![
                Argument::OneOf(vec![b"restart".to_vec(), b"status".to_vec()]),
                Argument::Like(name("nginx*")),
            ]),
            environment: Some(vec![name("LC_*")]),
            input: false,
        };
        let when = Conditions { programs: vec![restart], ..Conditions::default() };
        let systemctl = |arguments: &[&str]| exec("/usr/bin/systemctl", arguments, None, false);
        assert!(hold(&when, systemctl(&["restart", "nginx.service"]), Side::Allows));
        for arguments in
            [&["restart"][..], &["stop", "nginx"], &["restart", "sshd"], &["restart", "nginx", "--force"]]
        {
            assert!(!hold(&when, systemctl(arguments), Side::Allows), "{arguments:?}");
        }
        assert!(!hold(&when, exec("systemctl", &["restart", "nginx"], None, false), Side::Allows));
        let with = |environment: &[&str], input| {
            hold(
                &when,
                exec("/usr/bin/systemctl", &["restart", "nginx"], Some(environment), input),
                Side::Allows,
            )
        };
        assert!(with(&["LC_ALL=C"], false) && !with(&["LD_PRELOAD=/tmp/x.so"], false) && !with(&[], true));
    }

    #[test]
    fn the_rest_is_any_number_of_arguments() {
        let program =
            |arguments| Program { path: path("/bin/echo"), arguments, environment: None, input: false };
        let holds = |arguments: Option<Vec<Argument>>, given: &[&str]| {
            let when = Conditions { programs: vec![program(arguments)], ..Conditions::default() };
            hold(&when, exec("/bin/echo", given, None, false), Side::Allows)
        };
        assert!(holds(Some(vec![Argument::Any, Argument::Rest]), &["a", "b", "c"]));
        assert!(holds(Some(vec![Argument::Any, Argument::Rest]), &["a"]));
        assert!(!holds(Some(vec![Argument::Any, Argument::Rest]), &[]));
        assert!(holds(Some(vec![]), &[]) && !holds(Some(vec![]), &["a"]));
        assert!(holds(None, &["a", "b"]));
    }
}
