//! What a jail enforces, as name and value: for the HELLO message, the log and `portreeve doctor`.

use crate::enter::{Entered, Landlock};

impl Entered {
    /// Names and values in a fixed order.
    pub fn report(&self) -> Vec<(String, String)> {
        let landlock = match self.landlock {
            Landlock::Full { abi } => format!("full, ABI {abi}"),
            Landlock::Partial { abi } => format!("partial, ABI {abi}"),
            Landlock::None => "none".to_owned(),
        };
        let seccomp = if self.seccomp { "filter" } else { "none" };
        let or_none = |list: &[&str]| if list.is_empty() { "none".to_owned() } else { list.join(", ") };
        [
            ("uid", self.uid.to_string()),
            ("capabilities", format!("{:016x}", self.capabilities)),
            ("seccomp", seccomp.to_owned()),
            ("landlock", landlock),
            ("namespaces", or_none(&self.namespaces)),
            ("missing", or_none(&self.missing)),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }
}
