//! Setting the clock.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::agent::Nothing;

commands! {
    privilege Clock;
    /// Sets the system's clock and the hardware's, or the system's from the hardware's.
    Clock Qga "guest-set-time" => SetTime(SetTime) -> Nothing;
}

/// Arguments of `guest-set-time`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode, Deserialize, Serialize)]
pub struct SetTime {
    /// Nanoseconds since the epoch, UTC; from the hardware's clock if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<i64>,
}
