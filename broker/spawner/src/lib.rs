//! What the spawner, the broker and `portreeve` say to each other.
//!
//! - [`message`]: 16 bytes between broker and spawner. Used by both.
//! - [`control`]: the socket they travel on, with the descriptors of a started process. Used by both.
//! - [`plan`]: all that the spawner needs to know, written once by `portreeve`, in a sealed memory file.
//! - [`reloads`]: what the spawner says of reloads, for `portreeve reload`, in a memory file.
//!
//! Nothing here allocates for a peer: a message is an array of 16 bytes, and what is received is decoded
//! in place. The plan is trusted (root wrote and sealed it), and still every length in it is bounded.

pub mod control;
pub mod message;
pub mod plan;
pub mod reloads;

pub use control::{Control, ControlError, Received};
pub use message::{Compiled, FromBroker, FromSpawner, Malformed, Reason, Verdict};
pub use plan::{AuditFile, Channel, Descriptors, Method, Plan};
