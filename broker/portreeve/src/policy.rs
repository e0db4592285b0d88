//! Has a policy file compiled by `portreeve-compile`, in a process without rights.
//!
//! A preset is part of this program, not text from outside: it is compiled when the program is built, or here if something is
//! laid over it. What comes back was made by a parser of text, so it is decoded with bounds. Whatever goes wrong, there is a policy
//! afterwards: one that serves sync, ping and info only, and says why.

use std::fs::File;
use std::io::{self, Seek as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use authorize::Policy;
use compile::{Bundle, Complaint, Source, closest};
use jail::Role;
use proto::settings::ChannelSettings;

use crate::say::{Level, log, raw};

/// Largest compiled form in bytes; as for settings and policy together.
pub(crate) const LIMIT: usize = 16 * 1024 * 1024;

/// The compiler's exit status for a text that is wrong; it has said so itself.
const WRONG_TEXT: i32 = 1;

/// The presets by name, as `build.rs` has compiled them.
const PRESETS: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/presets.rs"));

/// A compilation, under way or done.
pub(crate) enum Compiling {
    /// In a process of its own.
    Child {
        /// The process.
        child: Child,
        /// Where it writes.
        form: OwnedFd,
    },
    /// Here.
    Done(Policy),
}

/// Starts the compiler, which is the program at `program`. Its complaints go to our standard error.
///
/// # Errors
/// A text for the log.
pub(crate) fn start(program: &Path, bundle: &Bundle, uid_base: u32) -> Result<Compiling, String> {
    if let Some(policy) = built_in(bundle) {
        return Ok(Compiling::Done(policy));
    }
    if bundle.sources.iter().all(|source| matches!(source, Source::Preset(_))) {
        let compiled = compile::compile(bundle).map_err(|complaint| complaint.to_string())?;
        for warning in &compiled.warnings {
            log(Level::Warning, warning);
        }
        return Ok(Compiling::Done(compiled.policy));
    }
    let text = bundle.encode().map_err(|error| error.to_string())?;
    let started = || -> io::Result<Compiling> {
        let mut input = File::from(jail::sealed::from_bytes(c"portreeve-policy-text", &text)?);
        // The position is shared with the child, and writing has moved it.
        input.rewind()?;
        let form = jail::sealed::create(c"portreeve-policy")?;
        let child = Command::new(program)
            .arg0(Role::Compile.executable())
            .arg(uid_base.to_string())
            .arg("0")
            .env_clear()
            .stdin(Stdio::from(input))
            .stdout(Stdio::from(form.try_clone()?))
            .spawn()?;
        Ok(Compiling::Child { child, form })
    };
    started().map_err(|error| format!("cannot start {}: {error}", program.display()))
}

/// What one preset with nothing over it means.
fn built_in(bundle: &Bundle) -> Option<Policy> {
    let Bundle { sources, allow, block } = bundle;
    let [Source::Preset(name)] = sources.as_slice() else { return None };
    let (_, form) = PRESETS.iter().find(|(known, _)| known == name)?;
    (allow.is_empty() && block.is_empty()).then(|| Policy::decode(form).ok()).flatten()
}

impl Compiling {
    /// Waits for the end and takes the policy.
    pub(crate) fn finish(self) -> Policy {
        let policy = match self {
            Compiling::Done(policy) => Ok(policy),
            Compiling::Child { mut child, form } => {
                child.wait().map_err(|error| error.to_string()).and_then(|status| match status.code() {
                    Some(0 | WRONG_TEXT) => read(&form),
                    _ => Err(format!("the policy compiler ended with {status}")),
                })
            }
        };
        policy.unwrap_or_else(|why| {
            log(Level::Critical, &why);
            Policy::closed(why)
        })
    }
}

/// The policy, or a closed one if a rule is for a channel that there is not: it could never match, and a name that is not quite
/// right may be that of a rule that refuses. The text is only searched for the place to show.
pub(crate) fn for_channels(policy: Policy, bundle: &Bundle, channels: &[ChannelSettings]) -> Policy {
    let names = || channels.iter().map(|channel| channel.name.as_str());
    let stranger = policy.rules().find_map(|rule| {
        let name = rule.channels.iter().find(|name| !names().any(|known| known == name.as_str()))?;
        Some((&rule.origin, name))
    });
    let Some((origin, name)) = stranger else { return policy };
    let hint = match closest(name, names()) {
        Some(meant) => format!("did you mean \"{meant}\"?"),
        None => format!("there are: {}", names().collect::<Vec<_>>().join(", ")),
    };
    let reason = format!("this rule can never match: no channel is called \"{name}\"; {hint}");
    let text = bundle.sources.iter().find_map(|source| match source {
        Source::File { name, text } if **name == *origin.place => Some(text.as_str()),
        _ => None,
    });
    let text = text.unwrap_or_default();
    let lines = usize::try_from(origin.line).unwrap_or_default().saturating_sub(1);
    let rule: usize = text.split_inclusive('\n').take(lines).map(str::len).sum();
    let quoted = format!("\"{name}\"");
    let begin =
        text.get(rule..).and_then(|behind| behind.find(&quoted)).map_or(rule, |at| rule.saturating_add(at));
    let complaint = Complaint::new(&origin.place, text, begin..begin.saturating_add(quoted.len()), &reason);
    raw(&complaint);
    Policy::closed(complaint.summary())
}

/// Whether it is what there is in place of a policy that is wrong.
pub(crate) fn is_closed(policy: &Policy) -> bool {
    policy.name() == CLOSED
}

/// What is wrong with the policy in whose place it is.
pub(crate) fn why_closed(policy: &Policy) -> &str {
    policy.rules().next().map_or("", |rule| &rule.origin.place)
}

/// The name of [`Policy::closed`].
const CLOSED: &str = "closed";

fn read(form: &OwnedFd) -> Result<Policy, String> {
    let bytes = jail::sealed::seal(form.as_fd()).and_then(|()| jail::sealed::read(form.as_fd(), LIMIT));
    let bytes = bytes.map_err(|error| format!("cannot read the compiled policy: {error}"))?;
    Policy::decode(&bytes).map_err(|error| format!("the compiled policy: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preset_that_was_compiled_beforehand_is_what_its_text_means() {
        assert_eq!(PRESETS.len(), compile::PRESETS.len());
        for (name, _) in compile::PRESETS {
            let sources = vec![Source::Preset((*name).to_owned())];
            let mut bundle = Bundle { sources, allow: Vec::new(), block: Vec::new() };
            let form = compile::compile(&bundle).unwrap().policy.encode().unwrap();
            assert_eq!(built_in(&bundle).unwrap().encode().unwrap(), form, "{name}");
            let origin = authorize::Origin { place: "-b".into(), line: 0 };
            bundle.block.push(compile::RpcList { origin, text: "guest-exec".to_owned() });
            assert!(built_in(&bundle).is_none(), "{name}");
        }
    }

    #[test]
    fn the_policy_that_serves_nothing_is_known_by_its_name() {
        let closed = Policy::closed("p.toml:1: bad");
        assert!(is_closed(&closed));
        assert_eq!(why_closed(&closed), "p.toml:1: bad");
    }

    #[test]
    fn bytes_that_are_no_policy_are_refused() {
        let mut form = File::from(jail::sealed::create(c"test").unwrap());
        io::Write::write_all(&mut form, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff").unwrap();
        let form = OwnedFd::from(form);
        assert!(read(&form).unwrap_err().starts_with("the compiled policy: "));
    }
}
