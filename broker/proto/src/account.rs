//! Passwords and the keys that may log in: as good as root, for whoever may use them.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::agent::Nothing;
use crate::{Secret, Text};

commands! {
    privilege Account;
    /// Sets a user's password.
    Account Qga "guest-set-user-password" => SetUserPassword(SetUserPassword) -> Nothing;
    /// Lists a user's authorized keys.
    Account Qga "guest-ssh-get-authorized-keys" => GetKeys(OfUser) -> Keys;
    /// Adds to them, or replaces them.
    Account Qga "guest-ssh-add-authorized-keys" => AddKeys(AddKeys) -> Nothing;
    /// Takes keys away.
    Account Qga "guest-ssh-remove-authorized-keys" => RemoveKeys(RemoveKeys) -> Nothing;
}

/// Arguments of `guest-set-user-password`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Deserialize, Serialize)]
pub struct SetUserPassword {
    /// Whose.
    pub username: Text,
    /// Base64 of the password, or of its hash.
    pub password: Secret,
    /// Whether it is a hash in the form of crypt(5).
    pub crypted: bool,
}

/// Arguments of `guest-ssh-get-authorized-keys`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Deserialize, Serialize)]
pub struct OfUser {
    /// Whose.
    pub username: Text,
}

/// What `guest-ssh-get-authorized-keys` returns.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Keys {
    /// One line of the file each, the last first.
    pub keys: Vec<String>,
}

/// Arguments of `guest-ssh-add-authorized-keys`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Deserialize, Serialize)]
pub struct AddKeys {
    /// Whose.
    pub username: Text,
    /// Lines to add.
    pub keys: Vec<Text>,
    /// Whether they replace what is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset: Option<bool>,
}

/// Arguments of `guest-ssh-remove-authorized-keys`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Deserialize, Serialize)]
pub struct RemoveKeys {
    /// Whose.
    pub username: Text,
    /// Lines to take away.
    pub keys: Vec<Text>,
}
