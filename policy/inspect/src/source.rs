//! A policy together with the texts that it was compiled from.

use authorize::{Origin, Policy};
use compile::{Bundle, Complaint, Source, compile, preset};

/// A compiled policy and its texts.
#[derive(Debug)]
pub struct Loaded {
    /// The policy.
    pub policy: Policy,
    sources: Vec<Source>,
}

impl Loaded {
    /// Compiles `sources`, which were read as `portreeve run` reads them.
    ///
    /// # Errors
    /// All that is wrong with the texts, in their order; never an empty list.
    pub fn compile(sources: Vec<Source>) -> Result<Self, Vec<Complaint>> {
        let bundle = Bundle { sources, allow: Vec::new(), block: Vec::new() };
        match compile(&bundle) {
            Ok(compiled) => Ok(Loaded { policy: compiled.policy, sources: bundle.sources }),
            Err(first) => {
                let all = compile::complaints(&bundle);
                Err(if all.is_empty() { vec![first] } else { all })
            }
        }
    }

    /// The text of the rule at `origin`, from its `[[rule]]` to the last line that belongs to it. None where there is none.
    pub fn rule_text(&self, origin: &Origin) -> Option<String> {
        let first = usize::try_from(origin.line).ok()?.checked_sub(1)?;
        let text = match origin.place.strip_prefix("preset ") {
            Some(name) => preset(name)?,
            None => self.sources.iter().find_map(|source| match source {
                Source::File { name, text } if **name == *origin.place => Some(text.as_str()),
                _ => None,
            })?,
        };
        let mut lines = text.lines().skip(first);
        let mut rule = vec![lines.next()?];
        rule.extend(lines.take_while(|line| !is_header_of_another(line)).take(LINES));
        // What stands between two rules belongs to the next.
        while rule.last().is_some_and(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
            rule.pop();
        }
        Some(rule.join("\n"))
    }
}

/// Lines of a rule that are shown.
const LINES: usize = 60;

/// `[[rule]]`, or another table that is not a part of a rule.
fn is_header_of_another(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with('[') && !line.starts_with("[rule.") && !line.starts_with("[[rule.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_shown_as_it_was_written_and_no_more() {
        let text = "version = 1\n\n[[rule]]\noutcome = \"allow\"\n# why\ngroups = [\"exec\"]\n[[rule.program]]\npath = \"/bin/x\"\n\n# next\n[[rule]]\noutcome = \"deny\"\n";
        let source = Source::File { name: "p.toml".to_owned(), text: text.to_owned() };
        let loaded = Loaded::compile(vec![source]).unwrap();
        let origins: Vec<Origin> = loaded.policy.rules().map(|rule| rule.origin.clone()).collect();
        assert_eq!(
            loaded.rule_text(&origins[0]).unwrap(),
            "[[rule]]\noutcome = \"allow\"\n# why\ngroups = [\"exec\"]\n[[rule.program]]\npath = \"/bin/x\""
        );
        assert_eq!(loaded.rule_text(&origins[1]).unwrap(), "[[rule]]\noutcome = \"deny\"");
    }
}
