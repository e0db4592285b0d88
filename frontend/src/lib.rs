//! The process that faces the host: bytes to typed requests and back, in both dialects.
//!
//! Runs in `portreeve-frontend`, one for each channel. It trusts nothing that comes from the channel, and of the
//! broker's messages only their shape. It decides nothing, opens nothing, knows no file; what is permitted it
//! hears from the broker, which decides again. A fault in here gives an attacker what the host has anyway: the
//! right to ask.
//!
//! ```text
//!  channel ──bytes──► reader (qga or phoenix) ──value──► session ──Request──► broker
//!     ▲                                                    │  ▲                  │
//!     └───────────────── output ◄──replies, in order───────┘  └─ pieces, Answer ─┘
//! ```
//!
//! [`Session`] is a value without I/O: bytes, messages and the time go in, bytes and messages come out. Tests and
//! fuzz targets drive it. [`serve`] connects it with the channel and the broker's socket.
#![forbid(unsafe_code)]

pub mod channel;
mod output;
mod payload;
pub mod phoenix;
pub mod qga;
mod scan;
pub mod serve;
pub mod session;
pub mod value;

pub use payload::{BadBase64, Rules, Upload};
pub use session::{BrokerFault, Outgoing, Session, TooLarge};

/// Finds out what this processor can do; to be called before the filter, where that takes a system call. On x86-64 it takes none, but the
/// instruction leaves a virtual machine each time: there the first base64 waits for it, and not every start.
pub fn warm_up() {
    #[cfg(not(target_arch = "x86_64"))]
    let _ = payload::engine();
}
