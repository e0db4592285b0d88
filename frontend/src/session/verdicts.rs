//! What may be served, and the answers that are ready when they are asked for again.
//!
//! Runs in the frontend. Made from what the broker says at the start and after each reload. Without a verdict a
//! command is refused. The broker decides again on everything that reaches it.

use std::cell::OnceCell;
use std::collections::HashMap;

use proto::agent::{CommandInfo, Info};
use proto::message::Welcome;
use proto::{Command, CommandId, Dialect};

use crate::{phoenix, qga};

/// Commands that are answered in front.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Front {
    SyncDelimited,
    Sync,
    Ping,
    Info,
    PhoenixPing,
    Commands,
}

impl Front {
    fn of(command: &Command) -> Option<Self> {
        Some(match (command.dialect, command.name()) {
            (Dialect::Qga, "guest-sync-delimited") => Front::SyncDelimited,
            (Dialect::Qga, "guest-sync") => Front::Sync,
            (Dialect::Qga, "guest-ping") => Front::Ping,
            (Dialect::Qga, "guest-info") => Front::Info,
            (Dialect::Phoenix, "ping") => Front::PhoenixPing,
            (Dialect::Phoenix, "get-commands") => Front::Commands,
            _ => return None,
        })
    }
}

/// A command of the channel's dialects.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    pub(super) name: &'static str,
    pub(super) id: CommandId,
    pub(super) permitted: bool,
    /// Answered in front, if permitted.
    pub(super) front: Option<Front>,
    /// The broker is told of each answer at once.
    pub(super) each: bool,
}

/// All of them.
pub(super) struct Verdicts {
    qga: HashMap<&'static [u8], Known>,
    phoenix: HashMap<&'static [u8], Known>,
    /// Whether filesystems are frozen.
    pub(super) frozen: bool,
    welcomed: HashMap<CommandId, bool>,
    versions: Vec<(Dialect, String)>,
    // Made when they are first asked for: not every start is for them.
    info: OnceCell<Vec<u8>>,
    commands: OnceCell<Vec<u8>>,
}

impl Verdicts {
    pub(super) fn of(welcome: &Welcome) -> Self {
        let welcomed: HashMap<CommandId, bool> = welcome.verdicts.iter().copied().collect();
        let (mut qga, mut phoenix) = (HashMap::new(), HashMap::new());
        for command in proto::commands() {
            let id = command.id();
            let verdict = welcomed.get(&id).copied();
            // One that is not spoken of here is unknown, and not only refused.
            if command.extension && verdict.is_none() {
                continue;
            }
            let permitted = verdict.unwrap_or(false);
            let front = Front::of(command).filter(|_| permitted);
            let each = welcome.each.contains(&id);
            let table = match command.dialect {
                Dialect::Qga => &mut qga,
                Dialect::Phoenix => &mut phoenix,
            };
            for &name in command.names {
                table.insert(name.as_bytes(), Known { name, id, permitted, front, each });
            }
        }
        Verdicts {
            qga,
            phoenix,
            frozen: welcome.frozen,
            welcomed,
            versions: welcome.versions.clone(),
            info: OnceCell::new(),
            commands: OnceCell::new(),
        }
    }

    /// What `guest-info` returns.
    pub(super) fn info(&self) -> &[u8] {
        self.info.get_or_init(|| {
            let mut info = Vec::new();
            qga::encoding::typed(&self.qga_info(), &mut info);
            info
        })
    }

    /// What Phoenix's `get-commands` returns.
    pub(super) fn commands(&self) -> &[u8] {
        self.commands.get_or_init(|| {
            let mut commands = Vec::new();
            phoenix::encoding::typed(&self.phoenix_commands(), &mut commands);
            commands
        })
    }

    /// What Phoenix's `ping` returns.
    pub(super) fn version(&self) -> Vec<u8> {
        let mut version = Vec::new();
        phoenix::encoding::typed(&self.level(Dialect::Phoenix), &mut version);
        version
    }

    fn level(&self, dialect: Dialect) -> &str {
        self.versions.iter().find(|(of, _)| *of == dialect).map_or("", |(_, level)| level.as_str())
    }

    fn permits(&self, command: &'static Command) -> bool {
        self.welcomed.get(&command.id()).copied().unwrap_or(false)
    }

    pub(super) fn find(&self, dialect: Dialect, name: &[u8]) -> Option<Known> {
        let table = match dialect {
            Dialect::Qga => &self.qga,
            Dialect::Phoenix => &self.phoenix,
        };
        table.get(name).copied()
    }

    /// qemu-ga lists its commands in the reverse order of their registration, refused ones, too.
    fn qga_info(&self) -> Info {
        let mut supported_commands: Vec<CommandInfo> = proto::commands()
            .filter(|command| command.dialect == Dialect::Qga)
            .filter(|command| !command.extension || self.welcomed.contains_key(&command.id()))
            .map(|command| CommandInfo {
                name: command.name().to_owned(),
                enabled: self.permits(command),
                success_response: !command.silent,
            })
            .collect();
        supported_commands.reverse();
        Info { version: self.level(Dialect::Qga).to_owned(), supported_commands }
    }

    /// Phoenix has no way to list a command as refused: what is listed can be called.
    fn phoenix_commands(&self) -> Vec<&'static str> {
        const FIRST: [&str; 3] = ["get-commands", "agent-shutdown", "ping"];
        let listed =
            proto::commands().filter(|command| command.dialect == Dialect::Phoenix && self.permits(command));
        let mut names: Vec<&str> = listed.flat_map(|command| command.names).copied().collect();
        names.sort_by_key(|name| FIRST.iter().position(|first| first == name).unwrap_or(FIRST.len()));
        names
    }
}
