//! Files. The file worker opens them with the rights that the policy's paths need, and no others.
//!
//! QEMU's handles are C streams (`qga/commands-posix.c`), Phoenix's are plain descriptors that close
//! themselves at their end. The two have separate numbers.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize, de};

use crate::agent::Nothing;
use crate::{Payload, Text};

commands! {
    privilege File;
    /// Opens a file and returns a number for it.
    FileRead Qga "guest-file-open" => Open(Open) -> i64;
    /// Closes it.
    FileRead Qga "guest-file-close" => Close(OfHandle) -> Nothing;
    /// Reads on from the position.
    FileRead Qga "guest-file-read" => Read(Read) -> ReadDone, streams ["buf-b64" true];
    /// Writes on from the position.
    FileWrite Qga "guest-file-write" => Write(Write) -> Written, payload buf_b64;
    /// Moves the position.
    FileRead Qga "guest-file-seek" => Seek(Seek) -> Position;
    /// Hands what was written to the kernel.
    FileWrite Qga "guest-file-flush" => Flush(OfHandle) -> Nothing;
    /// Opens a file and returns a number for it.
    FileRead Phoenix "file-open" => PhoenixOpen(PhoenixOpen) -> i64;
    /// Closes it; true whatever the number.
    FileRead Phoenix "file-close" => PhoenixClose(PhoenixClose) -> bool;
    /// Reads on, at most 4096 bytes; closes the file when there are no more.
    FileRead Phoenix "file-read" => PhoenixRead(PhoenixHandle) -> PhoenixReadDone, streams ["bufb64" true];
    /// Writes on; with `eof`, closes the file afterwards.
    FileWrite Phoenix "file-write" => PhoenixWrite(PhoenixWrite) -> bool, payload bufb64;
    /// The MD5 of a file's content, in lower-case hexadecimal.
    FileRead Phoenix "get-file-md5sum" => Md5Sum(OfPath) -> String;
    /// Gives a file to another owner.
    FileWrite Phoenix "file-chown" => Chown(Chown) -> bool;
    /// Changes a file's mode.
    FileWrite Phoenix "file-chmod" => Chmod(Chmod) -> bool;
    /// lstat(2).
    FileRead Phoenix "file-stat" => Stat(OfPath) -> Box<StatInfo>;
    /// Makes a directory and its missing parents.
    FileWrite Phoenix "directory-create" => CreateDirectory(CreateDirectory) -> bool;
    /// lstat(2) of everything in a directory.
    FileRead Phoenix "directory-list" => ListDirectory(ListDirectory) -> Vec<StatInfo>;
}

/// Arguments of `guest-file-open`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Deserialize, Serialize)]
pub struct Open {
    /// Relative to the directory that the agent was started in.
    pub path: Text,
    /// fopen(3)'s, 15 spellings; `r` if absent.
    pub mode: Option<String>,
}

impl Open {
    /// Whether the mode can change or create a file. An unknown mode cannot: it will be an error.
    pub fn writes(&self) -> bool {
        self.mode.as_deref().is_some_and(|mode| mode.contains(['w', 'a', '+']))
    }
}

/// Arguments that only name an open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Deserialize, Serialize)]
pub struct OfHandle {
    /// From `guest-file-open`.
    pub handle: i64,
}

/// Arguments of `guest-file-read`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Deserialize, Serialize)]
pub struct Read {
    /// From `guest-file-open`.
    pub handle: i64,
    /// Bytes, 0 to 48 MiB; 4096 if absent.
    pub count: Option<i64>,
}

/// The end of a `guest-file-read`, after its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct ReadDone {
    /// Bytes read.
    pub count: i64,
    /// This read met the end of the file.
    pub eof: bool,
}

/// Arguments of `guest-file-write`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Write {
    /// From `guest-file-open`.
    pub handle: i64,
    /// The bytes.
    pub buf_b64: Payload,
    /// How many of them to write; all if absent.
    pub count: Option<i64>,
}

/// `guest-file-write`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Written {
    /// Bytes written.
    pub count: i64,
    /// Always false.
    pub eof: bool,
}

/// Arguments of `guest-file-seek`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Deserialize, Serialize)]
pub struct Seek {
    /// From `guest-file-open`.
    pub handle: i64,
    /// Bytes, relative to `whence`.
    pub offset: i64,
    /// Where from.
    pub whence: Whence,
}

/// Where `guest-file-seek` counts from: a protocol number, or its name. A number out of range is the
/// command's error, not the arguments', so it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Whence(pub i64);

impl<'de> Deserialize<'de> for Whence {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Alternate;
        impl<'de> de::Visitor<'de> for Alternate {
            type Value = Whence;
            /// Other forms than the dialect's own: what the alternate holds.
            fn visit_newtype_struct<D: de::Deserializer<'de>>(self, inner: D) -> Result<Whence, D::Error> {
                inner.deserialize_any(self)
            }
            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("GuestFileWhence")
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Whence, E> {
                Ok(Whence(number))
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Whence, E> {
                i64::try_from(number)
                    .map(Whence)
                    .map_err(|_| E::invalid_value(de::Unexpected::Unsigned(number), &self))
            }
            fn visit_str<E: de::Error>(self, word: &str) -> Result<Whence, E> {
                match word {
                    "set" => Ok(Whence(0)),
                    "cur" => Ok(Whence(1)),
                    "end" => Ok(Whence(2)),
                    _ => Err(E::unknown_variant(word, &["set", "cur", "end"])),
                }
            }
        }
        // The name is how the deserializer knows an alternate, whose type error names the alternate.
        deserializer.deserialize_newtype_struct("GuestFileWhence", Alternate)
    }
}

/// `guest-file-seek`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Position {
    /// Bytes from the beginning.
    pub position: i64,
    /// Always false.
    pub eof: bool,
}

/// Arguments of Phoenix's `file-open`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Deserialize, Serialize)]
pub struct PhoenixOpen {
    /// Relative to the directory that the agent was started in.
    #[serde(default)]
    pub path: Text,
    /// `w` writes; anything else reads.
    #[serde(default)]
    pub mode: String,
    /// Permission bits of a new file: 0 to 07777, and Go's high bits for set-uid, set-gid, sticky.
    #[serde(default = "default_file_perm")]
    pub perm: i64,
    /// Replaces a program that is running instead of failing with ETXTBSY.
    #[serde(default)]
    pub force: bool,
}

impl PhoenixOpen {
    /// Whether it can change or create a file.
    pub fn writes(&self) -> bool {
        self.mode == "w"
    }
}

fn default_file_perm() -> i64 {
    0o644
}

/// Arguments that only name an open file of Phoenix's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Deserialize, Serialize)]
pub struct PhoenixHandle {
    /// From `file-open`.
    #[serde(default)]
    pub handle_id: i64,
}

/// Arguments of Phoenix's `file-close`, which is never an error: a number of a wrong type is none that is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Deserialize, Serialize)]
pub struct PhoenixClose {
    /// From `file-open`.
    #[serde(default, deserialize_with = "any_number")]
    pub handle_id: i64,
}

fn any_number<'de, D: de::Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    Ok(i64::deserialize(deserializer).unwrap_or_default())
}

/// The end of Phoenix's `file-read`, after its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct PhoenixReadDone {
    /// There was nothing left; the file is closed now.
    pub eof: bool,
}

/// Arguments of Phoenix's `file-write`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Deserialize, Serialize)]
pub struct PhoenixWrite {
    /// From `file-open`.
    #[serde(default)]
    pub handle_id: i64,
    /// The bytes.
    #[serde(default)]
    pub bufb64: Payload,
    /// Close the file afterwards.
    #[serde(default)]
    pub eof: bool,
}

/// Arguments that only name a path.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Deserialize, Serialize)]
pub struct OfPath {
    /// Relative to the directory that the agent was started in.
    #[serde(default)]
    pub path: Text,
}

/// Arguments of `file-chown`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Deserialize, Serialize)]
pub struct Chown {
    /// Follows symbolic links.
    #[serde(default)]
    pub path: Text,
    /// New owner, 0 if absent; -1 leaves it.
    #[serde(default)]
    pub uid: i64,
    /// New group, 0 if absent; -1 leaves it.
    #[serde(default)]
    pub gid: i64,
}

/// Arguments of `file-chmod`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Deserialize, Serialize)]
pub struct Chmod {
    /// Follows symbolic links.
    #[serde(default)]
    pub path: Text,
    /// As in [`PhoenixOpen`]; absent is an error of the command.
    pub perm: Option<i64>,
}

/// Arguments of `directory-create`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Deserialize, Serialize)]
pub struct CreateDirectory {
    /// With all its missing parents.
    #[serde(default)]
    pub path: Text,
    /// As in [`PhoenixOpen`], for each directory that is made.
    #[serde(default = "default_directory_perm")]
    pub perm: i64,
}

fn default_directory_perm() -> i64 {
    0o755
}

/// Arguments of `directory-list`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Deserialize, Serialize)]
pub struct ListDirectory {
    /// The directory.
    #[serde(default)]
    pub path: Text,
    /// At most so many entries; all if not positive.
    #[serde(default)]
    pub n: i64,
}

/// One entry of `file-stat` and `directory-list`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct StatInfo {
    /// Last component of the path as given; what is not UTF-8 becomes U+FFFD.
    pub name: String,
    /// A directory (not a link to one).
    pub isdir: bool,
    /// lstat(2), with the names of Go's structure on x86-64.
    pub stat: Stat,
}

/// lstat(2) as Go shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode, Serialize)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs, reason = "the members are stat(2)'s")]
pub struct Stat {
    pub dev: u64,
    pub ino: u64,
    pub nlink: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    #[serde(rename = "X__pad0")]
    pub pad0: i32,
    pub rdev: u64,
    pub size: i64,
    pub blksize: i64,
    pub blocks: i64,
    pub atim: Time,
    pub mtim: Time,
    pub ctim: Time,
    #[serde(rename = "X__unused")]
    pub unused: [i64; 3],
}

/// A time stamp.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Time {
    /// Since the epoch.
    pub sec: i64,
    /// 0 to 999,999,999.
    pub nsec: i64,
}
