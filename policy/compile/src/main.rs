//! `portreeve-compile`: policy text on descriptor 0, its compiled form on descriptor 1, what is wrong on descriptor 2.
//!
//! Runs once, at the start, without rights and without files, and parses what root wrote in root's stead. Exit status:
//! 0 compiled; 1 the text is wrong, and the form written is a policy that serves nothing; 2 nothing was written.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Write};
use std::process::ExitCode;

use authorize::Policy;
use compile::Bundle;
use jail::{Ground, Role};

const WRONG_TEXT: u8 = 1;
const FAILED: u8 = 2;

fn main() -> ExitCode {
    jail::report_panics(Role::Compile);
    match run() {
        Ok(status) => status,
        Err(why) => {
            eprintln!("compile: {why}");
            ExitCode::from(FAILED)
        }
    }
}

fn run() -> Result<ExitCode, String> {
    let ground = Ground::from_arguments(Role::Compile).map_err(|error| error.to_string())?;
    // Descriptors of an activating init system, or of a careless shell, are none of its business.
    jail::close_from(3).map_err(|error| format!("cannot close descriptors: {error}"))?;
    let input = File::from(jail::take_fd(0).map_err(|error| format!("standard input: {error}"))?);
    let mut output = File::from(jail::take_fd(1).map_err(|error| format!("standard output: {error}"))?);
    jail::enter(Role::Compile, &ground, || {}).map_err(|error| error.to_string())?;

    let bundle = Bundle::read(input).map_err(|error| error.to_string())?;
    let (policy, status) = match compile::compile(&bundle) {
        Ok(compiled) => {
            for warning in &compiled.warnings {
                say(&format!("warning: {warning}"));
            }
            (compiled.policy, ExitCode::SUCCESS)
        }
        Err(complaint) => {
            say(&complaint.to_string());
            (Policy::closed(complaint.summary()), ExitCode::from(WRONG_TEXT))
        }
    };
    let form = policy.encode().map_err(|error| error.to_string())?;
    output.write_all(&form).map_err(|error| format!("cannot write the compiled form: {error}"))?;
    Ok(status)
}

/// A log that is gone is no reason to have no policy.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}
