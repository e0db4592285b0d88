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
    let mut rules = Vec::new();
    let mut included = Vec::new();
    let mut names = Vec::new();
    for source in &bundle.sources {
        let read = read(source).map_err(|wrong| match wrong.into_iter().next() {
            Some(first) => first,
            None => Complaint::without_text(source.name(), "cannot be read"),
        })?;
        names.push(source.name());
        rules.extend(read.rules);
        included.extend(read.included);
    }
    rules.extend(included);
    // What the policy is called is its first text, and how many more there are.
    let name = match names.as_slice() {
        [] | [_] => names.concat(),
        [first, rest @ ..] => format!("{first} and {} more", rest.len()),
    };
    let mut warnings = Vec::new();
    let layer = layer::rules(&bundle.allow, &bundle.block, &mut warnings);
    Ok(Compiled { policy: Policy::new(name, layer, rules), warnings })
}

/// Everything that is wrong with a bundle's texts: for whoever repairs them. None of it if [`compile`] succeeds.
pub fn complaints(bundle: &Bundle) -> Vec<Complaint> {
    bundle.sources.iter().filter_map(|source| read(source).err()).flatten().collect()
}

fn read(source: &Source) -> Result<language::Read, Vec<Complaint>> {
    match source {
        Source::Preset(name) => {
            let place = format!("preset {name}");
            let text = preset(name)
                .ok_or_else(|| vec![Complaint::without_text(&place, &presets::unknown_preset(name))])?;
            language::read(&place, text)
        }
        Source::File { name, text } => language::read(name, text),
        Source::Unusable { name, reason } => Err(vec![Complaint::without_text(name, reason)]),
    }
}
