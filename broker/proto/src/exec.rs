//! Programs. Root-equivalent by nature: off unless the policy says otherwise, and then run by a worker that
//! nothing confines, because what it starts must not inherit a filter or lose a right.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize, de};

use crate::{Payload, Text};

commands! {
    privilege Exec;
    /// What became of a program.
    Exec Qga "guest-exec-status" => Status(Status) -> StatusDone, streams ["out-data" false, "err-data" false];
    /// Starts a program.
    Exec Qga "guest-exec" => Exec(Exec) -> Started, payload input_data;
}

/// Arguments of `guest-exec`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Exec {
    /// The program; looked up in `PATH` if it has no `/`.
    pub path: Text,
    /// Its arguments, from the first on.
    pub arg: Option<Vec<Text>>,
    /// Its whole environment; the agent's if absent. Recorded by name only: values are often secrets.
    #[serde(serialize_with = "names_only")]
    pub env: Option<Vec<Text>>,
    /// What it reads from its standard input; `/dev/null` if absent.
    #[serde(default, skip_serializing_if = "Payload::is_absent")]
    pub input_data: Payload,
    /// What is kept of its output.
    #[serde(default)]
    pub capture_output: Capture,
}

fn names_only<S: serde::Serializer>(
    environment: &Option<Vec<Text>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let name = |entry: &Text| Text(entry.0.split(|&byte| byte == b'=').next().unwrap_or_default().to_vec());
    environment.as_ref().map(|entries| entries.iter().map(name).collect::<Vec<_>>()).serialize(serializer)
}

/// What is kept of a program's output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Capture {
    /// Nothing.
    #[default]
    None,
    /// Standard output; the other goes to `/dev/null`.
    Stdout,
    /// Standard error; the other goes to `/dev/null`.
    Stderr,
    /// Both, apart.
    Separated,
    /// Both, in the order written, as standard output.
    Merged,
}

impl<'de> Deserialize<'de> for Capture {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Alternate;
        impl<'de> de::Visitor<'de> for Alternate {
            type Value = Capture;
            /// Other forms than the dialect's own: what the alternate holds.
            fn visit_newtype_struct<D: de::Deserializer<'de>>(self, inner: D) -> Result<Capture, D::Error> {
                inner.deserialize_any(self)
            }
            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("GuestExecCaptureOutput")
            }
            fn visit_bool<E: de::Error>(self, both: bool) -> Result<Capture, E> {
                Ok(if both { Capture::Separated } else { Capture::None })
            }
            fn visit_str<E: de::Error>(self, word: &str) -> Result<Capture, E> {
                match word {
                    "none" => Ok(Capture::None),
                    "stdout" => Ok(Capture::Stdout),
                    "stderr" => Ok(Capture::Stderr),
                    "separated" => Ok(Capture::Separated),
                    "merged" => Ok(Capture::Merged),
                    _ => Err(E::unknown_variant(word, &["none", "stdout", "stderr", "separated", "merged"])),
                }
            }
        }
        // The name is how the deserializer knows an alternate, whose type error names the alternate.
        deserializer.deserialize_newtype_struct("GuestExecCaptureOutput", Alternate)
    }
}

/// `guest-exec`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Started {
    /// The program's process id.
    pub pid: i64,
}

/// Arguments of `guest-exec-status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Deserialize, Serialize)]
pub struct Status {
    /// From `guest-exec`.
    pub pid: i64,
}

/// `guest-exec-status`, after the captured bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct StatusDone {
    /// The program has ended and its output is complete.
    pub exited: bool,
    /// How it ended, 0 to 255.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exitcode: Option<i64>,
    /// What ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<i64>,
    /// More than 16 MiB were written to standard output; present when any were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out_truncated: Option<bool>,
    /// The same for standard error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub err_truncated: Option<bool>,
}
