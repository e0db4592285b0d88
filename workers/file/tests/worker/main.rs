//! The file worker as a process: its own executable in its own jail, asked over its socket.
//!
//! What needs root is proved only when these tests run as root; the rest runs as an ordinary user in both cases.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_wrap,
    reason = "what fails here fails a test"
)]

mod harness;
mod hostile;
mod phoenix;
mod policy;
mod qga;
mod stock;
