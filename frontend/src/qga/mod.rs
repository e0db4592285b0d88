//! QEMU's dialect: JSON as `qobject/json-lexer.c` and `json-streamer.c` read it, errors as `qapi/qmp-dispatch.c`
//! words them.
//!
//! Runs in the frontend on what the host sent. Pure: no I/O, memory bounded by the limits of [`reader`].

pub mod arguments;
pub mod encoding;
mod grammar;
mod modified_utf8;
pub mod reader;

pub use reader::{Event, Reader};
