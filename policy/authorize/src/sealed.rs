//! Settings and policy as they are handed to every process: one value, encoded once, in a sealed memfd.

use bincode::config::{self, Configuration, Limit};
use bincode::{Decode, Encode};
use proto::settings::Settings;

use crate::Policy;

const LIMIT: usize = 16 * 1024 * 1024;
const ENCODING: Configuration<config::LittleEndian, config::Varint, Limit<LIMIT>> =
    config::standard().with_limit::<LIMIT>();

/// What every process is born with.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Sealed {
    /// [`proto::BUILD_ID`] of the writer.
    pub build_id: String,
    /// What was configured.
    pub settings: Settings,
    /// What is permitted.
    pub policy: Policy,
}

impl Encode for Policy {
    fn encode<E: bincode::enc::Encoder>(&self, encoder: &mut E) -> Result<(), bincode::error::EncodeError> {
        let (name, layer, rules, default) = self.parts();
        name.encode(encoder)?;
        layer.encode(encoder)?;
        rules.encode(encoder)?;
        default.encode(encoder)
    }
}

impl<C> Decode<C> for Policy {
    fn decode<D: bincode::de::Decoder<Context = C>>(
        decoder: &mut D,
    ) -> Result<Self, bincode::error::DecodeError> {
        Ok(Policy::of(
            Decode::decode(decoder)?,
            Decode::decode(decoder)?,
            Decode::decode(decoder)?,
            Decode::decode(decoder)?,
        ))
    }
}
bincode::impl_borrow_decode!(Policy);

impl Policy {
    /// The form in which `portreeve-compile` hands it to `portreeve`, which puts it into a [`Sealed`].
    ///
    /// # Errors
    /// [`SealedError::TooLarge`].
    pub fn encode(&self) -> Result<Vec<u8>, SealedError> {
        bincode::encode_to_vec(self, ENCODING).map_err(|_| SealedError::TooLarge)
    }

    /// Reads what [`Self::encode`] wrote. The writer has parsed text and may have been taken over by it: every length is
    /// bounded.
    ///
    /// # Errors
    /// [`SealedError::Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, SealedError> {
        let (policy, length) = bincode::decode_from_slice(bytes, ENCODING)
            .map_err(|error| SealedError::Malformed(error.to_string()))?;
        match bytes.len().checked_sub(length) {
            Some(0) => Ok(policy),
            _ => Err(SealedError::Malformed("bytes are left over".to_owned())),
        }
    }
}

/// Why the sealed form cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealedError {
    /// Not made by this build, or damaged.
    #[error("the sealed policy does not decode: {0}")]
    Malformed(String),
    /// Made by another build.
    #[error(
        "the sealed policy is of build {found}, this is build {own}: reinstall, all executables together"
    )]
    OtherBuild {
        /// Whose it is.
        found: String,
        /// Ours.
        own: String,
    },
    /// Larger than 16 MiB.
    #[error("the policy is larger than 16 MiB when compiled")]
    TooLarge,
}

impl Sealed {
    /// Puts both together under this build's id.
    pub fn new(settings: Settings, policy: Policy) -> Self {
        Sealed { build_id: proto::BUILD_ID.to_owned(), settings, policy }
    }

    /// The bytes to seal.
    ///
    /// # Errors
    /// [`SealedError::TooLarge`].
    pub fn encode(&self) -> Result<Vec<u8>, SealedError> {
        bincode::encode_to_vec(self, ENCODING).map_err(|_| SealedError::TooLarge)
    }

    /// Reads what [`Self::encode`] wrote; `bytes` must have come from a memfd whose seals were checked.
    ///
    /// # Errors
    /// [`SealedError`] if it is not what this build wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, SealedError> {
        let (sealed, length): (Sealed, usize) = bincode::decode_from_slice(bytes, ENCODING)
            .map_err(|error| SealedError::Malformed(error.to_string()))?;
        if length != bytes.len() {
            return Err(SealedError::Malformed(format!("{} bytes too many", bytes.len() - length)));
        }
        if sealed.build_id != proto::BUILD_ID {
            return Err(SealedError::OtherBuild { found: sealed.build_id, own: proto::BUILD_ID.to_owned() });
        }
        Ok(sealed)
    }
}
