//! `portreeve-frontend`: takes its descriptors, gives up its rights, serves the host.
//!
//! Faces the host. It is born with a socket to the broker (3) and the channel (5), and never gets anything else. What it
//! trusts is listed in the library; this file is its privilege story.
#![forbid(unsafe_code)]

use std::fmt::Display;

use frontend::channel::Channel;
use frontend::serve::serve;
use jail::{Ground, Role};

/// The broker's socket.
const BROKER: i32 = 3;
/// The device, or the listening socket.
const CHANNEL: i32 = 5;

fn main() {
    jail::report_panics(Role::Frontend);
    let ground = Ground::from_arguments(Role::Frontend).unwrap_or_else(|error| give_up(&error));

    // What needs system calls that the filter does not know: the runtime, its registrations, the processor's features.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    let runtime = runtime.unwrap_or_else(|error| give_up(&error));
    let inside = runtime.enter();
    let broker = jail::take_fd(BROKER).unwrap_or_else(|error| give_up(&error));
    let (sender, receiver) = pipe::split(broker).unwrap_or_else(|error| give_up(&error));
    let channel = jail::take_fd(CHANNEL).and_then(Channel::new).unwrap_or_else(|error| give_up(&error));
    frontend::warm_up();
    drop(inside);

    let entered = jail::enter(Role::Frontend, &ground, || {}).unwrap_or_else(|error| give_up(&error));

    match runtime.block_on(serve(channel, sender, receiver, entered.report())) {
        Ok(()) => jail::exit_now(0),
        Err(error) => {
            eprintln!("frontend: {error}");
            jail::exit_now(error.exit_status())
        }
    }
}

fn give_up(error: &impl Display) -> ! {
    eprintln!("frontend: {error}");
    jail::exit_now(1)
}
