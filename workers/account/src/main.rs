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

use jail::{Role, User};
use proto::Secret;
use proto::account::{Reply, Request, SetUserPassword};
use proto::agent::Nothing;
use proto::message::Found;
use runtime::{Birth, Call, Event, NotDone, ToBroker, give_up};
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
                let secret = matches!(request, Request::SetUserPassword(_));
                let result = work(&users, request, &call);
                connection.end(&call, result);
                if secret {
                    buffer.as_mut_slice().zeroize();
                }
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

fn work(users: &Users, request: Request, call: &Call<'_>) -> Result<Reply, NotDone> {
    match request {
        Request::SetUserPassword(mut request) => {
            if let Err(not_done) = may_set(users, &request, call) {
                request.password.0.zeroize();
                return Err(not_done);
            }
            password::set(request, password::PROGRAMS)?;
            Ok(Reply::SetUserPassword(Nothing {}))
        }
        Request::GetKeys(_) | Request::AddKeys(_) | Request::RemoveKeys(_) => {
            keys::ask(users, &request, |user| decide(call, user, || request.clone()))
        }
    }
}

/// The user is looked for in `/etc/passwd` only where the policy asks for the number: other programs know of more users.
fn may_set(users: &Users, request: &SetUserPassword, call: &Call<'_>) -> Result<(), NotDone> {
    if !call.asks_uids() {
        return Ok(());
    }
    // Nothing is decided by the password, and no copy of it made.
    let SetUserPassword { username, password: _, crypted } = request;
    let bare =
        SetUserPassword { username: username.clone(), password: Secret(Vec::new()), crypted: *crypted };
    decide(call, &users.find(username)?, || Request::SetUserPassword(bare))
}

/// Decides about the request by the user's number, if the policy asks for it.
fn decide(call: &Call<'_>, user: &User, request: impl FnOnce() -> Request) -> Result<(), NotDone> {
    if call.asks_uids() {
        call.decide(&request().into(), Found { uid: Some(user.uid), ..Found::default() })?;
    }
    Ok(())
}
