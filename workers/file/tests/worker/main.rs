//! The file worker as a process: its own executable in its own jail, asked over its socket.
//!
//! What needs root is proved only when these tests run as root; the rest runs as an ordinary user in both cases.

mod harness;
mod phoenix;
mod qga;
mod stock;
