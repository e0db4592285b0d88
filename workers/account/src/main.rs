//! The account worker: sets passwords and authorized keys.
//!
//! Runs as root and unconfined, since what changes a password is the distribution's own program, and that must inherit no filter
//! of ours. It is not started unless the policy permits a command of the group `account`. It trusts its sealed policy, `/etc/passwd`
//! and `/etc/group`, and the four folders where root's programs are; the broker gives it user names, passwords and keys, which it
//! checks and passes on over pipes. It never opens a file in a user's home: a child does, this same program under another name
//! (`keys`), which first becomes that user and gives up everything else. It never writes a password anywhere but into one pipe.
#![forbid(unsafe_code)]

mod keys;
mod lines;
mod password;
mod program;
mod users;

use std::path::Path;

use jail::Role;
use proto::Failed;
use proto::account::{Reply, Request};
use proto::agent::Nothing;
use runtime::{Birth, Event, ToBroker, give_up};
use users::Users;
use zeroize::Zeroize as _;

fn main() {
    let name = std::env::args_os().next().unwrap_or_default();
    if Path::new(&name).file_name().is_some_and(|name| name == Role::Keys.executable()) {
        keys::serve()
    }
    let connection = Birth::of(Role::Account).enter(|| {});
    let users = Users::new("/etc/passwd", "/etc/group");
    let mut buffer = ToBroker::buffer();
    while let Some(event) = connection.receive(&mut buffer) {
        match event {
            Event::Job(request, call) => {
                let id = call.id;
                let secret = matches!(request, Request::SetUserPassword(_));
                let result = work(&users, request);
                if secret {
                    buffer.as_mut_slice().zeroize();
                }
                connection.answer(id, result);
            }
            // It has been done by now or waits behind this message; the broker drops the answer.
            Event::Abandoned(_) => {}
            Event::Piece(..) | Event::More(..) | Event::Forget(_) | Event::Adopt => {
                give_up(Role::Account, &"the broker sent pieces, and no command here has any")
            }
        }
    }
    jail::exit_now(0)
}

fn work(users: &Users, request: Request) -> Result<Reply, Failed> {
    match request {
        Request::SetUserPassword(request) => {
            password::set(request, password::PROGRAMS).map(|()| Reply::SetUserPassword(Nothing {}))
        }
        Request::GetKeys(_) | Request::AddKeys(_) | Request::RemoveKeys(_) => keys::ask(users, &request),
    }
}
