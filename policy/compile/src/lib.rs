//! From policy text to [`authorize::Policy`].
//!
//! The parsing runs in `portreeve-compile` only, after it has entered its jail: policy files are trusted, the parsers
//! of text are not. `portreeve` uses the [`Bundle`] to hand the texts over, and [`Complaint`] for its own configuration.
//! Nothing here opens a file.
#![forbid(unsafe_code)]

mod bundle;
mod complaint;
mod language;
mod layer;
mod presets;

pub use bundle::{Bundle, BundleError, RpcList, Source};
pub use complaint::{Complaint, closest};
pub use layer::{elements, unknown_commands};
pub use presets::{PRESETS, preset};

use authorize::Policy;

/// What came out, and what to tell about it.
#[derive(Debug)]
pub struct Compiled {
    /// The policy.
    pub policy: Policy,
    /// Lines for the log: what is ignored.
    pub warnings: Vec<String>,
}

/// Compiles a bundle.
///
/// # Errors
/// [`Complaint`] about the first thing that is wrong: a policy that is half understood is none.
pub fn compile(bundle: &Bundle) -> Result<Compiled, Complaint> {
    let (name, rules) = match &bundle.source {
        Source::Preset(name) => {
            let text = preset(name).ok_or_else(|| {
                Complaint::without_text(&format!("preset {name}"), &presets::unknown_preset(name))
            })?;
            (name.clone(), language::rules(&format!("preset {name}"), text)?)
        }
        Source::File { name, text } => (name.clone(), language::rules(name, text)?),
    };
    let mut warnings = Vec::new();
    let layer = layer::rules(&bundle.allow, &bundle.block, &mut warnings);
    Ok(Compiled { policy: Policy::new(name, layer, rules), warnings })
}
