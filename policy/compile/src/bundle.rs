//! The texts on their way from `portreeve`, which opens files, to `portreeve-compile`, which parses them.
//!
//! A magic word, then fields: kind u8, line u32, length of the name u32, name, length of the text u32, text; little
//! endian. The reader bounds everything, though the writer is trusted.

use std::io::{self, Read};

use authorize::Origin;

/// "prvpol01"
const MAGIC: &[u8; 8] = b"prvpol01";

/// Largest bundle in bytes.
const LIMIT: u64 = 4 * 1024 * 1024;

/// Most lists of commands; one for each option of a command line.
const FIELDS: usize = 1024;

/// Everything that a policy is compiled from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// The rules.
    pub source: Source,
    /// `--allow-rpcs`, from wherever.
    pub allow: Vec<RpcList>,
    /// `--block-rpcs`, from wherever.
    pub block: Vec<RpcList>,
}

/// Where the rules are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// In a preset of this name.
    Preset(String),
    /// In a file.
    File {
        /// As it was named, for messages.
        name: String,
        /// Its content.
        text: String,
    },
}

/// One list of commands, as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RpcList {
    /// The option or the configuration file's line.
    pub origin: Origin,
    /// Names, separated by commas or semicolons.
    pub text: String,
}

/// Why a bundle cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// Not written by [`Bundle::encode`].
    #[error("not a bundle of policy texts")]
    Malformed,
    /// More than 4 MiB, or more than 1024 lists.
    #[error("the policy texts are larger than 4 MiB together, or there are more than 1024 lists")]
    TooLarge,
    /// It could not be read.
    #[error("cannot read the policy texts: {0}")]
    Io(#[from] io::Error),
}

impl Bundle {
    /// The bytes for the compiler's standard input.
    ///
    /// # Errors
    /// [`BundleError::TooLarge`].
    pub fn encode(&self) -> Result<Vec<u8>, BundleError> {
        let mut out = MAGIC.to_vec();
        match &self.source {
            Source::Preset(name) => put(&mut out, 1, 0, name, "")?,
            Source::File { name, text } => put(&mut out, 2, 0, name, text)?,
        }
        for (kind, lists) in [(3, &self.allow), (4, &self.block)] {
            for RpcList { origin, text } in lists {
                put(&mut out, kind, origin.line, &origin.place, text)?;
            }
        }
        let fields = self.allow.len().saturating_add(self.block.len());
        if out.len() as u64 > LIMIT || fields > FIELDS { Err(BundleError::TooLarge) } else { Ok(out) }
    }

    /// Reads a bundle until end of file.
    ///
    /// # Errors
    /// [`BundleError`]; every byte must be accounted for.
    pub fn read(from: impl Read) -> Result<Self, BundleError> {
        let mut bytes = Vec::new();
        from.take(LIMIT.saturating_add(1)).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > LIMIT {
            return Err(BundleError::TooLarge);
        }
        let mut rest = bytes.strip_prefix(MAGIC).ok_or(BundleError::Malformed)?;
        let source = match field(&mut rest)? {
            (1, 0, name, text) if text.is_empty() => Source::Preset(name),
            (2, 0, name, text) => Source::File { name, text },
            _ => return Err(BundleError::Malformed),
        };
        let mut bundle = Bundle { source, allow: Vec::new(), block: Vec::new() };
        while !rest.is_empty() {
            let (kind, line, place, text) = field(&mut rest)?;
            let list = RpcList { origin: Origin { place, line }, text };
            match kind {
                3 => bundle.allow.push(list),
                4 => bundle.block.push(list),
                _ => return Err(BundleError::Malformed),
            }
            if bundle.allow.len().saturating_add(bundle.block.len()) > FIELDS {
                return Err(BundleError::TooLarge);
            }
        }
        Ok(bundle)
    }
}

fn put(out: &mut Vec<u8>, kind: u8, line: u32, name: &str, text: &str) -> Result<(), BundleError> {
    out.push(kind);
    out.extend(line.to_le_bytes());
    for part in [name, text] {
        out.extend(u32::try_from(part.len()).map_err(|_| BundleError::TooLarge)?.to_le_bytes());
        out.extend(part.as_bytes());
    }
    Ok(())
}

fn field(rest: &mut &[u8]) -> Result<(u8, u32, String, String), BundleError> {
    let ([kind], after) = rest.split_first_chunk().ok_or(BundleError::Malformed)?;
    *rest = after;
    Ok((*kind, number(rest)?, text(rest)?, text(rest)?))
}

fn number(rest: &mut &[u8]) -> Result<u32, BundleError> {
    let (number, after) = rest.split_first_chunk().ok_or(BundleError::Malformed)?;
    *rest = after;
    Ok(u32::from_le_bytes(*number))
}

fn text(rest: &mut &[u8]) -> Result<String, BundleError> {
    let length = usize::try_from(number(rest)?).map_err(|_| BundleError::Malformed)?;
    let (text, after) = rest.split_at_checked(length).ok_or(BundleError::Malformed)?;
    *rest = after;
    String::from_utf8(text.to_vec()).map_err(|_| BundleError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle() -> Bundle {
        let list = |place: &str, line, text: &str| RpcList {
            origin: Origin { place: place.to_owned(), line },
            text: text.to_owned(),
        };
        Bundle {
            source: Source::File { name: "policy.toml".to_owned(), text: "version = 1\n".to_owned() },
            allow: vec![list("qemu-ga.conf", 3, "a,b")],
            block: vec![list("--block-rpcs", 0, "c"), list("--block-rpcs", 0, "")],
        }
    }

    #[test]
    fn a_bundle_survives_the_way() {
        let bytes = bundle().encode().unwrap();
        assert_eq!(Bundle::read(bytes.as_slice()).unwrap(), bundle());
    }

    #[test]
    fn a_bundle_cut_inside_a_field_is_refused() {
        let bytes = bundle().encode().unwrap();
        let whole = bundle();
        for length in 0..bytes.len() {
            // Cut between two lists it is a shorter bundle; it never is the whole one.
            assert_ne!(Bundle::read(&bytes[..length]).ok(), Some(whole.clone()), "{length}");
        }
        assert!(matches!(Bundle::read(&bytes[..bytes.len() - 1]), Err(BundleError::Malformed)));
    }

    #[test]
    fn a_length_beyond_the_end_is_refused() {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([1, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, b'x']);
        assert!(matches!(Bundle::read(bytes.as_slice()), Err(BundleError::Malformed)));
    }

    #[test]
    fn an_endless_text_is_not_held() {
        assert!(matches!(Bundle::read(io::repeat(b'x')), Err(BundleError::TooLarge)));
    }
}
