//! `portreeve-frontend`: takes its descriptors, gives up its rights, serves the host.
//!
//! Faces the host. It is born with a socket to the broker (3) and the channel (5), and never gets anything else. What it
//! trusts is listed in the library; this file is its privilege story.
#![forbid(unsafe_code)]
#![cfg_attr(target_env = "gnu", no_main)]

use std::fmt::Display;

use frontend::channel::Channel;
use frontend::serve::serve;
use jail::{Ground, Role};

/// The broker's socket.
const BROKER: i32 = 3;
/// The device, or the listening socket.
const CHANNEL: i32 = 5;

jail::main!(frontend);

fn frontend() -> i32 {
    jail::report_panics(Role::Frontend);
    let ground = or_end("", Ground::from_arguments(Role::Frontend));

    // What needs system calls that the filter does not know: the runtime, its registrations, the processor's features.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    let runtime = or_end("frontend: runtime: ", runtime);
    let inside = runtime.enter();
    let broker = or_end("frontend: socket to the broker: ", jail::take_fd(BROKER));
    let (sender, receiver) = or_end("frontend: socket to the broker: ", pipe::split(broker));
    let channel = or_end("frontend: channel: ", jail::take_fd(CHANNEL).and_then(Channel::new));
    frontend::warm_up();
    drop(inside);

    let entered = or_end("", jail::enter(Role::Frontend, &ground, || {}));

    match runtime.block_on(serve(channel, sender, receiver, entered.report())) {
        Ok(()) => jail::exit_now(0),
        Err(error) => {
            eprintln!("frontend: {error}");
            jail::exit_now(error.exit_status())
        }
    }
}

/// The value, or the end of a process that could not be born.
fn or_end<T>(what: &str, result: Result<T, impl Display>) -> T {
    result.unwrap_or_else(|error| {
        eprintln!("{what}{error}");
        jail::exit_now(1)
    })
}
