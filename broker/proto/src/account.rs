//! Passwords and the keys that may log in: as good as root, for whoever may use them.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize, Serializer};

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
    #[serde(serialize_with = "shown")]
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
    #[serde(serialize_with = "shown")]
    pub keys: Vec<Text>,
}

/// For the audit log: of each key its kind and the end of its public part, which tell it from others. Options before it may hold
/// commands and variables, the comment behind it names; neither is shown, nor is what does not look like a key.
fn shown<S: Serializer>(keys: &[Text], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(keys.iter().map(|Text(line)| {
        let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        // Every public part begins with the length of its kind's name, three of whose four bytes are 0 (RFC 4253, 6.6).
        let place = words.windows(2).find(|pair| matches!(pair, [_, part] if part.starts_with(b"AAAA")));
        let plain = |word: &[u8]| {
            word.len() <= 64 && word.iter().all(|byte| b"@.-".contains(byte) || byte.is_ascii_alphanumeric())
        };
        match place {
            Some([kind, part]) if plain(kind) => {
                let end = part.get(part.len().saturating_sub(16)..).unwrap_or_default();
                format!("{} …{}", String::from_utf8_lossy(kind), String::from_utf8_lossy(end))
            }
            _ => format!("({} bytes)", line.len()),
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(request: impl Into<crate::Request>) -> serde_json::Value {
        serde_json::to_value(request.into()).unwrap()
    }

    #[test]
    fn a_record_shows_which_keys_but_neither_options_nor_comments() {
        let keys = [
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIN3q8Yx2kT0WfW1xJq3mA anna@example",
            "command=\"login TOKEN\",environment=\"A=AAAA\" ecdsa-sha2-nistp256 AAAAE2VjZHNh0123456789abcdef c",
            "password AAA",
            "TOKEN=x AAAAB3Nz",
            "",
        ];
        let keys = keys.map(Text::from).to_vec();
        let shown = serde_json::json!([
            "ssh-ed25519 …Yx2kT0WfW1xJq3mA",
            "ecdsa-sha2-nistp256 …0123456789abcdef",
            "(12 bytes)",
            "(16 bytes)",
            "(0 bytes)"
        ]);
        let add = AddKeys { username: "anna".into(), keys: keys.clone(), reset: Some(true) };
        let wanted = serde_json::json!({ "username": "anna", "keys": shown, "reset": true });
        assert_eq!(record(Request::AddKeys(add)), wanted);
        let remove = RemoveKeys { username: "anna".into(), keys };
        assert_eq!(record(Request::RemoveKeys(remove))["keys"], shown);
    }

    #[test]
    fn a_record_shows_whose_password_was_set_and_nothing_of_it() {
        let request = SetUserPassword {
            username: "anna".into(),
            password: crate::Secret(b"c2VjcmV0".to_vec()),
            crypted: false,
        };
        let wanted = serde_json::json!({ "username": "anna", "password": "(secret)", "crypted": false });
        assert_eq!(record(Request::SetUserPassword(request.clone())), wanted);
        assert!(!format!("{request:?}").contains("c2Vj"));
    }
}
