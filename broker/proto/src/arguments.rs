//! Shapes that arguments of several commands share.
//!
//! Decoding here happens in the frontend, from what a host sent.

use std::fmt;

use bincode::{Decode, Encode};
use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde::ser::{Serialize, SerializeStruct, Serializer};

/// For commands that take none: any member is unexpected in QEMU's dialect and ignored in Phoenix's.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode, serde::Deserialize, serde::Serialize,
)]
pub struct NoArguments {}

/// Bulk data of a request: base64 text in the frontend, raw pieces behind the request from there on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Payload {
    /// Whether the member was there at all.
    pub present: bool,
    /// Decoded bytes that follow the request in pieces; the frontend sets it when it has decoded the text.
    pub length: u64,
    /// The text as it came, in the frontend only.
    pub text: Base64Text,
}

impl Payload {
    /// Whether the member was not there: then no record shows one.
    pub fn is_absent(&self) -> bool {
        !self.present
    }
}

impl Encode for Payload {
    fn encode<E: bincode::enc::Encoder>(&self, encoder: &mut E) -> Result<(), bincode::error::EncodeError> {
        self.present.encode(encoder)?;
        self.length.encode(encoder)
    }
}

impl<C> Decode<C> for Payload {
    fn decode<D: bincode::de::Decoder<Context = C>>(
        decoder: &mut D,
    ) -> Result<Self, bincode::error::DecodeError> {
        Ok(Payload {
            present: bool::decode(decoder)?,
            length: u64::decode(decoder)?,
            text: Base64Text::default(),
        })
    }
}
bincode::impl_borrow_decode!(Payload);

impl Serialize for Payload {
    /// For the audit log: how much, never what.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut payload = serializer.serialize_struct("Payload", 1)?;
        payload.serialize_field("bytes", &self.length)?;
        payload.end()
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Payload { present: true, length: 0, text: Base64Text::deserialize(deserializer)? })
    }
}

/// Base64 text of a request, moved out of the parsed request without a copy.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Base64Text(pub Vec<u8>);

impl fmt::Debug for Base64Text {
    /// Only the length: the content may be a secret.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Base64Text({} characters)", self.0.len())
    }
}

/// Base64 text that no log and no record may show.
#[derive(Clone, PartialEq, Eq, Default, Encode, Decode)]
pub struct Secret(pub Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret")
    }
}

impl Serialize for Secret {
    /// For the audit log: that there is one. Not even its length.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("(secret)")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Base64Text::deserialize(deserializer).map(|Base64Text(text)| Secret(text))
    }
}

impl<'de> Deserialize<'de> for Base64Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Owned;
        impl Visitor<'_> for Owned {
            type Value = Base64Text;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("string")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Base64Text, E> {
                Ok(Base64Text(text.as_bytes().to_vec()))
            }
            fn visit_string<E: Error>(self, text: String) -> Result<Base64Text, E> {
                Ok(Base64Text(text.into_bytes()))
            }
            fn visit_byte_buf<E: Error>(self, text: Vec<u8>) -> Result<Base64Text, E> {
                Ok(Base64Text(text))
            }
        }
        deserializer.deserialize_string(Owned)
    }
}

/// A text argument as bytes: a file name need not be UTF-8, and QEMU's dialect turns `\u0000` into C0 80.
#[derive(Clone, PartialEq, Eq, Hash, Default, Encode, Decode)]
pub struct Text(pub Vec<u8>);

impl Text {
    /// For messages: what is not UTF-8 shows as U+FFFD.
    pub fn lossy(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}", self.lossy())
    }
}

impl fmt::Display for Text {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.lossy())
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Text(text.as_bytes().to_vec())
    }
}

impl Serialize for Text {
    /// For the audit log: what is not UTF-8 becomes U+FFFD, and a text that somebody made long is cut.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        const SHOWN: usize = 1024;
        match self.0.get(..SHOWN) {
            Some(beginning) if self.0.len() > SHOWN => {
                let text = String::from_utf8_lossy(beginning);
                serializer.collect_str(&format_args!("{text}… ({} bytes)", self.0.len()))
            }
            _ => serializer.serialize_str(&self.lossy()),
        }
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Base64Text::deserialize(deserializer).map(|Base64Text(bytes)| Text(bytes))
    }
}
