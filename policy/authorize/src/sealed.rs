//! Settings and policy as they are handed to every process: one value, encoded once, in a sealed memfd.

use bincode::config::{self, Configuration, Limit};
use bincode::{Decode, Encode};
use proto::settings::Settings;

use crate::Policy;

const LIMIT: usize = 16 * 1024 * 1024;
const ENCODING: Configuration<config::LittleEndian, config::Varint, Limit<LIMIT>> =
    config::standard().with_limit::<LIMIT>();
/// What is decoded may take more room than its bytes: for each list bincode counts its elements at their size in memory, some 400
/// bytes for a rule that is written in 60. 100,000 rules need a third of this.
const MEMORY: usize = 128 * 1024 * 1024;
const DECODING: Configuration<config::LittleEndian, config::Varint, Limit<MEMORY>> =
    config::standard().with_limit::<MEMORY>();

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
    /// bounded, and so is the memory for all of them together.
    ///
    /// # Errors
    /// [`SealedError::Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, SealedError> {
        let (policy, length) = bincode::decode_from_slice(bytes, DECODING)
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
        let (sealed, length): (Sealed, usize) = bincode::decode_from_slice(bytes, DECODING)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Conditions, Origin, Outcome, Pattern, Rule};

    #[test]
    fn a_policy_of_a_hundred_thousand_rules_is_sealed_and_read_again() {
        let rules = (0..100_000_u32).map(|line| {
            let origin = Origin { place: "/etc/portreeve/policy.d/10-files.toml".into(), line };
            let paths = vec![Pattern::path(&format!("/srv/app-{line}/data/**")).unwrap()];
            let when = Conditions { paths, ..Conditions::default() };
            Rule { when, ..Rule::new(Outcome::Allow, origin) }
        });
        let policy = Policy::new("large", Vec::new(), rules.collect());
        let bytes = policy.encode().unwrap();
        assert!(bytes.len() < LIMIT, "{}", bytes.len());
        assert_eq!(Policy::decode(&bytes), Ok(policy));
    }

    #[test]
    fn a_list_that_says_it_is_longer_than_there_is_memory_is_refused() {
        // A name, no layer, and two thousand million rules.
        let bytes = [&[1, b'p', 0][..], &[252], &2_000_000_000_u32.to_le_bytes()].concat();
        assert!(matches!(Policy::decode(&bytes), Err(SealedError::Malformed(_))));
    }
}
