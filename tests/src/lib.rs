//! Test support: starts whole agents in private directories and talks to them as a host does.
//!
//! Runs in test processes only. Every agent that is started is ended, by pid, and its processes are counted.
#![forbid(unsafe_code)]

pub mod agent;
pub mod golden;
pub mod process_state;
pub mod processes;
pub mod programs;
pub mod sandbox;
pub mod transcript;
