//! Typed messages over a SOCK_SEQPACKET socketpair.
//!
//! Runs in frontend, broker and workers. The peer is another process of ours that may have been taken over:
//! nothing it sends is believed before it is checked, no length of its choosing is allocated, and the first
//! thing that is wrong ends the conversation ([`proto::PeerFault`]). It never passes or accepts descriptors.
//!
//! This is the only place that encodes and decodes messages, so that the encoding can be exchanged.
#![forbid(unsafe_code)]

mod blocking;
mod frame;
#[cfg(feature = "tokio")]
mod nonblocking;

pub use bincode::{Decode, Encode};
pub use blocking::Pipe;
pub use frame::{Assembler, FRAME_MAX, HEADER, Received, decode_head, encode_head};
#[cfg(feature = "tokio")]
pub use nonblocking::{Receiver, Sender, readable, split, watch, watch_full};

/// Why a conversation cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum PipeError {
    /// The peer sent something that is not a message. Stop it.
    #[error("the peer sent {0}")]
    Malformed(String),
    /// The socket failed.
    #[error("socket: {0}")]
    Socket(#[from] std::io::Error),
    /// A message of our own is too large to be sent; a fault of ours or of its maker's.
    #[error("a message of {0} bytes is over the limit")]
    TooLarge(usize),
}
