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

/// Most texts and lists of commands; one for each file, and for each option of a command line.
const FIELDS: usize = 1024;

/// Everything that a policy is compiled from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// The rules, in the order in which they are asked; at least one.
    pub sources: Vec<Source>,
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
    /// In a file that cannot be used: then nothing is served.
    Unusable {
        /// As it was named.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl Source {
    /// The preset's name, or the file's.
    pub fn name(&self) -> &str {
        match self {
            Source::Preset(name) | Source::File { name, .. } | Source::Unusable { name, .. } => name,
        }
    }
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
    /// More than 4 MiB, or more than 1024 texts and lists.
    #[error("the policy texts are larger than 4 MiB together, or there are more than 1024 of them")]
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
        for source in &self.sources {
            match source {
                Source::Preset(name) => put(&mut out, 1, 0, name, "")?,
                Source::File { name, text } => put(&mut out, 2, 0, name, text)?,
                Source::Unusable { name, reason } => put(&mut out, 5, 0, name, reason)?,
            }
        }
        for (kind, lists) in [(3, &self.allow), (4, &self.block)] {
            for RpcList { origin, text } in lists {
                put(&mut out, kind, origin.line, &origin.place, text)?;
            }
        }
        let fields = self.sources.len().saturating_add(self.allow.len()).saturating_add(self.block.len());
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
        let mut bundle = Bundle { sources: Vec::new(), allow: Vec::new(), block: Vec::new() };
        let mut fields = 0_usize;
        while !rest.is_empty() {
            let (kind, line, name, text) = field(&mut rest)?;
            match (kind, line) {
                (1, 0) if text.is_empty() => bundle.sources.push(Source::Preset(name)),
                (2, 0) => bundle.sources.push(Source::File { name, text }),
                (5, 0) => bundle.sources.push(Source::Unusable { name, reason: text }),
                (3, _) => bundle.allow.push(RpcList { origin: Origin { place: name.into(), line }, text }),
                (4, _) => bundle.block.push(RpcList { origin: Origin { place: name.into(), line }, text }),
                _ => return Err(BundleError::Malformed),
            }
            fields = fields.saturating_add(1);
            if fields > FIELDS {
                return Err(BundleError::TooLarge);
            }
        }
        if bundle.sources.is_empty() {
            return Err(BundleError::Malformed);
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
            origin: Origin { place: place.into(), line },
            text: text.to_owned(),
        };
        Bundle {
            sources: vec![
                Source::File { name: "policy.toml".to_owned(), text: "version = 1\n".to_owned() },
                Source::Unusable {
                    name: "policy.d/10-x.toml".to_owned(),
                    reason: "others may write it".to_owned(),
                },
                Source::Preset("observe".to_owned()),
            ],
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
