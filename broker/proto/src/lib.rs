//! What may be asked of the agent, and nothing else.
//!
//! Linked by every process; runs in none of its own. It has no I/O and decides nothing: it names the
//! commands of both dialects, their arguments, replies and failures, and the messages that carry them
//! between processes. The broker owns this contract, because it is the one that must distrust the other end.
//!
//! One file for each privilege. Adding a command touches three files: the privilege's file here (a row, its
//! arguments, its reply), the worker's `main.rs` (the build stops without its arm) and the section in
//! `docs/commands/<privilege>.md` (`tests/tests/tree.rs` fails without it).
#![forbid(unsafe_code)]

#[macro_use]
mod commands;
mod arguments;
pub mod chain;
mod failure;
pub mod limits;
pub mod message;
pub mod settings;

pub mod account;
pub mod agent;
pub mod clock;
pub mod exec;
pub mod file;
pub mod fsfreeze;
pub mod hotplug;
pub mod net;
pub mod netadmin;
pub mod power;
pub mod query;

pub use arguments::{Base64Text, NoArguments, Payload, Secret, Text};
pub use commands::{Command, CommandId, Dialect, Group, Stream};
pub use failure::{Denied, Failed, PeerFault, errno_text, go_errno_text};

use bincode::{Decode, Encode};
use serde::{Deserializer, Serialize};

/// Identifies the contract: two processes talk only if they were built from the same sources of it.
pub const BUILD_ID: &str = env!("PORTREEVE_BUILD_ID");

/// The level of QEMU's agent whose texts and rules are reproduced; `guest-info` reports it.
pub const QGA_LEVEL: &str = "10.2.0";

/// The level of Phoenix's agent that is reproduced; its `ping` returns it.
pub const PHOENIX_LEVEL: &str = "0.7.2";

macro_rules! privileges {
    ($($(#[$doc:meta])* $name:ident = $module:ident: $request:ty, $reply:ty);+ $(;)?) => {
        /// The right that a request needs; one worker and one sandbox for each.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
        pub enum Privilege { $($(#[$doc])* $name),+ }

        impl Privilege {
            /// Every privilege, in the order of the documentation.
            pub const ALL: &[Privilege] = &[$(Privilege::$name),+];

            /// The stem under which files, executable and documentation are found.
            pub const fn name(self) -> &'static str {
                match self { $(Privilege::$name => stringify!($module)),+ }
            }

            /// The commands that need this privilege.
            pub const fn commands(self) -> &'static [Command] {
                match self { $(Privilege::$name => $module::COMMANDS),+ }
            }
        }

        /// One decoded, bounded call of a command. Serialised, it is what the audit log may show of the arguments.
        #[derive(Debug, Clone, PartialEq, Encode, Decode, Serialize)]
        #[serde(untagged)]
        pub enum Request { $($(#[$doc])* $name($request)),+ }

        /// The answer of permitted work that succeeded.
        #[derive(Debug, Clone, PartialEq, Encode, Decode, Serialize)]
        #[serde(untagged)]
        pub enum Reply { $($(#[$doc])* $name($reply)),+ }

        impl Reply {
            /// The command that this is a reply of.
            pub fn command(&self) -> &'static Command {
                match self { $(Reply::$name(reply) => reply.command()),+ }
            }
        }

        impl Request {
            /// The command this is a call of.
            pub fn command(&self) -> &'static Command {
                match self { $(Request::$name(request) => request.command()),+ }
            }

            /// The right it needs.
            pub const fn privilege(&self) -> Privilege {
                match self { $(Request::$name(_) => Privilege::$name),+ }
            }

            /// The bulk data that goes with the request, if its command takes any.
            pub fn payload(&self) -> Option<&Payload> {
                match self { $(Request::$name(request) => request.payload()),+ }
            }

            /// As [`Self::payload`], to take the text out of it.
            pub fn payload_mut(&mut self) -> Option<&mut Payload> {
                match self { $(Request::$name(request) => request.payload_mut()),+ }
            }
        }

        $(
            impl From<$module::Request> for Request {
                fn from(request: $module::Request) -> Self { Request::$name(request) }
            }
            impl From<$module::Reply> for Reply {
                fn from(reply: $module::Reply) -> Self { Reply::$name(reply) }
            }
            impl TryFrom<Request> for $module::Request {
                type Error = Request;
                fn try_from(request: Request) -> Result<Self, Request> {
                    match request { Request::$name(request) => Ok(request), other => Err(other) }
                }
            }
        )+

        /// Decodes the arguments of the command called `name` in `dialect`.
        ///
        /// `arguments` yields the members of the arguments object; an absent object is an empty one.
        /// Nothing is returned for a name that the dialect does not have.
        ///
        /// # Errors
        /// Whatever the deserializer finds wrong with the arguments, in its own words.
        pub fn decode<'de, D: Deserializer<'de>>(
            dialect: Dialect,
            name: &str,
            arguments: D,
        ) -> Option<Result<Request, D::Error>> {
            let command = find(dialect, name)?;
            Some(match command.privilege {
                $(Privilege::$name => $module::Request::decode(command, arguments).map(Request::from)),+
            })
        }
    };
}

privileges! {
    /// About the agent itself: answered in front or by the broker, no worker.
    Agent = agent: agent::Request, agent::Reply;
    /// Reads facts of the guest.
    Query = query: query::Request, query::Reply;
    /// Reads and writes files.
    File = file: file::Request, file::Reply;
    /// Reads interfaces and routes.
    Net = net: net::Request, net::Reply;
    /// Changes addresses, routes and links.
    NetAdmin = netadmin: netadmin::Request, netadmin::Reply;
    /// Runs programs.
    Exec = exec: exec::Request, exec::Reply;
    /// Freezes, thaws and trims filesystems.
    Fsfreeze = fsfreeze: fsfreeze::Request, fsfreeze::Reply;
    /// Shuts down, reboots, suspends.
    Power = power: power::Request, power::Reply;
    /// Sets the clock.
    Clock = clock: clock::Request, clock::Reply;
    /// Takes CPUs and memory online and offline.
    Hotplug = hotplug: hotplug::Request, hotplug::Reply;
    /// Sets passwords and authorized keys.
    Account = account: account::Request, account::Reply;
}

impl Request {
    /// What a policy grants it by: the command's group, unless the arguments ask for more.
    pub fn group(&self) -> Group {
        match self {
            Request::File(file::Request::Open(open)) if open.writes() => Group::FileWrite,
            Request::File(file::Request::PhoenixOpen(open)) if open.writes() => Group::FileWrite,
            _ => self.command().group,
        }
    }
}

/// Every command of both dialects.
pub fn commands() -> impl Iterator<Item = &'static Command> {
    Privilege::ALL.iter().flat_map(|privilege| privilege.commands())
}

/// The command called `name` in `dialect`; old names count.
pub fn find(dialect: Dialect, name: &str) -> Option<&'static Command> {
    commands().find(|command| command.dialect == dialect && command.names.contains(&name))
}

/// Work that ended, well or not: what travels back towards the host.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub enum Answer {
    /// Done; the reply is complete once the payload pieces before it are added.
    Done(Reply),
    /// A correct request that the policy refuses.
    Denied(Denied),
    /// Permitted work that went wrong.
    Failed(Failed),
}

impl From<Result<Reply, Failed>> for Answer {
    fn from(result: Result<Reply, Failed>) -> Self {
        result.map_or_else(Answer::Failed, Answer::Done)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_name_stands_twice_in_a_dialect() {
        let mut seen = HashSet::new();
        for command in commands() {
            for name in command.names {
                assert!(seen.insert((command.dialect, name)), "{name} stands twice");
            }
        }
    }

    #[test]
    fn a_request_knows_the_row_it_came_from() {
        let request = Request::from(file::Request::Flush(file::OfHandle { handle: 1 }));
        assert_eq!(request.command().name(), "guest-file-flush");
        assert_eq!(find(Dialect::Qga, "guest-file-flush"), Some(request.command()));
    }

    #[test]
    fn opening_for_writing_needs_the_right_to_write() {
        let open = |mode: Option<&str>| {
            let open = file::Open { path: "/x".into(), mode: mode.map(str::to_owned) };
            Request::from(file::Request::Open(open)).group()
        };
        assert_eq!(open(None), Group::FileRead);
        assert_eq!(open(Some("rb")), Group::FileRead);
        assert_eq!(open(Some("r+")), Group::FileWrite);
        assert_eq!(open(Some("a")), Group::FileWrite);
    }

    #[test]
    fn an_old_name_is_the_same_command() {
        assert_eq!(find(Dialect::Phoenix, "linux-ipaddr-add"), find(Dialect::Phoenix, "ipaddr-add"));
        assert_eq!(find(Dialect::Qga, "ipaddr-add"), None);
    }
}
