//! What of a request a rule can be about, and how often it came.

use authorize::{Network, Pattern, PowerMode};
use proto::{Command, CommandId, Request, Text, exec, file, fsfreeze, hotplug, netadmin, power};

use crate::case::Case;

/// How often, and when.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) count: u64,
    pub(super) first: Option<String>,
    pub(super) last: Option<String>,
}

impl Seen {
    pub(super) fn once(time: Option<&str>) -> Self {
        // It goes into a comment: only what a time is made of.
        let plain = |text: &&str| {
            text.len() <= 40 && text.bytes().all(|byte| byte.is_ascii_digit() || b"-:.TZ+".contains(&byte))
        };
        let time = time.filter(plain).map(str::to_owned);
        Seen { count: 1, first: time.clone(), last: time }
    }

    pub(super) fn add(&mut self, other: &Seen) {
        self.count = self.count.saturating_add(other.count);
        let times = [self.first.take(), other.first.clone()];
        self.first = times.into_iter().flatten().min();
        self.last = self.last.take().max(other.last.clone());
    }

    /// `3 times, 2026-11-26T… to …`
    pub(super) fn text(&self) -> String {
        let times = if self.count == 1 { "once".to_owned() } else { format!("{} times", self.count) };
        match (&self.first, &self.last) {
            (Some(first), Some(last)) if first != last => format!("{times}, {first} to {last}"),
            (Some(first), _) => format!("{times}, {first}"),
            _ => times,
        }
    }
}

/// A request, without what no rule can be about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Item {
    /// Nothing but its command.
    Plain(CommandId),
    /// A path, and how it is opened if it is.
    Path(CommandId, Option<String>, String),
    /// A program, its arguments, names of its environment, and whether it is given input.
    Program { path: String, arguments: Vec<String>, environment: Vec<String>, input: bool },
    /// A user.
    User(CommandId, String),
    /// An interface and a network.
    Interface(CommandId, String, Option<String>),
    /// Mount points.
    Mounts(CommandId, Vec<String>),
    /// CPUs or memory blocks.
    Units(CommandId, Vec<u64>),
    /// A way to stop the machine.
    Power(CommandId, &'static str),
}

impl Item {
    /// What a rule would have to be about.
    ///
    /// # Errors
    /// Why no rule can allow just this.
    pub(super) fn of(case: &Case) -> Result<Self, String> {
        let command: &'static Command = case.request.command();
        let id = command.id();
        if authorize::asked_path(&case.request).is_some() {
            let path = utf8(case.path.as_deref().unwrap_or_default())?;
            Pattern::path(&path).map_err(|why| format!("the path {path:?} is no pattern: {why}"))?;
            return Ok(Item::Path(id, mode(&case.request)?, path));
        }
        if let Some(user) = authorize::asked_user(&case.request) {
            return Ok(Item::User(id, name(&user.0, "user")?));
        }
        match &case.request {
            Request::Exec(exec::Request::Exec(exec)) => program(exec),
            Request::NetAdmin(request) => network(id, request),
            Request::Fsfreeze(fsfreeze::Request::FreezeList(fsfreeze::FreezeList {
                mountpoints: Some(list),
            })) => {
                if list.is_empty() {
                    return Err("a list without mount points fits no rule".to_owned());
                }
                let path = |Text(path): &Text| {
                    let path = utf8(path)?;
                    Pattern::path(&path)
                        .map_err(|why| format!("the mount point {path:?} is no pattern: {why}"))?;
                    Ok(path)
                };
                list.iter().map(path).collect::<Result<_, String>>().map(|paths| Item::Mounts(id, paths))
            }
            Request::Hotplug(request) => {
                let units: Vec<u64> = match request {
                    hotplug::Request::SetVcpus(request) => {
                        let cpus = request.vcpus.iter().map(|cpu| u64::try_from(cpu.logical_id));
                        cpus.collect::<Result<_, _>>().map_err(|_| "no rule can name a negative number")?
                    }
                    hotplug::Request::SetMemoryBlocks(request) => {
                        request.mem_blks.iter().map(|block| block.phys_index).collect()
                    }
                };
                if units.is_empty() {
                    Err("a list without units fits no rule".to_owned())
                } else {
                    Ok(Item::Units(id, units))
                }
            }
            Request::Power(power::Request::Shutdown(shutdown)) => {
                let mode = shutdown.mode.as_deref().unwrap_or("powerdown");
                let known = PowerMode::ALL.iter().take(3).find(|(known, _)| *known == mode);
                known
                    .map(|(known, _)| Item::Power(id, known))
                    .ok_or_else(|| "there is no such mode".to_owned())
            }
            _ => Ok(Item::Plain(id)),
        }
    }
}

fn utf8(bytes: &[u8]) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| "a rule is text in UTF-8".to_owned())
}

/// A text that is to stand for itself as a pattern of names.
fn name(bytes: &[u8], what: &str) -> Result<String, String> {
    let name = utf8(bytes)?;
    match Pattern::name(&name) {
        Ok(_) => Ok(name),
        Err(why) => Err(format!("the {what} {name:?} is no pattern: {why}")),
    }
}

/// How a file is opened, without the `b`.
fn mode(request: &Request) -> Result<Option<String>, String> {
    const MODES: [&str; 6] = ["r", "r+", "w", "w+", "a", "a+"];
    match request {
        Request::File(file::Request::Open(open)) => {
            let mode = open.mode.as_deref().unwrap_or("r").replace('b', "");
            if MODES.contains(&mode.as_str()) { Ok(Some(mode)) } else { Err(format!("{mode:?} is no mode")) }
        }
        Request::File(file::Request::PhoenixOpen(open)) => {
            Ok(Some(if open.writes() { "w" } else { "r" }.to_owned()))
        }
        _ => Ok(None),
    }
}

fn program(exec: &exec::Exec) -> Result<Item, String> {
    let path = utf8(&exec.path.0)?;
    let pattern = if path.contains('/') { Pattern::path(&path) } else { Pattern::name(&path) };
    pattern.map_err(|why| format!("the program {path:?} is no pattern: {why}"))?;
    let arguments = exec.arg.iter().flatten().map(|Text(text)| utf8(text)).collect::<Result<_, _>>()?;
    let names = exec.env.iter().flatten().map(|Text(entry)| {
        name(entry.split(|byte| *byte == b'=').next().unwrap_or_default(), "environment entry")
    });
    let mut environment = names.collect::<Result<Vec<String>, _>>()?;
    environment.sort();
    environment.dedup();
    Ok(Item::Program { path, arguments, environment, input: exec.input_data.present })
}

fn network(id: CommandId, request: &netadmin::Request) -> Result<Item, String> {
    let (interface, network) = match request {
        netadmin::Request::AddAddress(address) | netadmin::Request::DeleteAddress(address) => {
            (&address.ifname, Some(address.ip.split(' ').next().unwrap_or_default()))
        }
        netadmin::Request::LinkUp(link) | netadmin::Request::LinkDown(link) => (&link.ifname, None),
        netadmin::Request::AddRoute(route) | netadmin::Request::DeleteRoute(route) => {
            (&route.ifname, Some(route.dst.as_str()))
        }
    };
    let interface = name(interface.as_bytes(), "interface")?;
    let network = network
        .map(|text| {
            Network::parse(text).map(|network| network.masked().to_string()).ok_or("it is no network")
        })
        .transpose()?;
    Ok(Item::Interface(id, interface, network))
}
