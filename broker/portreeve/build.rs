//! Compiles the presets when the program is built, because the agent is often started with one of them.

use std::path::Path;
use std::{env, fs};

use compile::{Bundle, PRESETS, Source};

fn main() {
    let folder = env::var_os("OUT_DIR").expect("cargo names a folder");
    for (name, _) in PRESETS {
        let sources = vec![Source::Preset((*name).to_owned())];
        let compiled = compile::compile(&Bundle { sources, allow: Vec::new(), block: Vec::new() })
            .unwrap_or_else(|complaint| panic!("{complaint}"));
        assert!(compiled.warnings.is_empty(), "{name}: {:?}", compiled.warnings);
        let form = compiled.policy.encode().expect("a preset is short");
        fs::write(Path::new(&folder).join(name), form).expect("writes");
    }
    let forms = PRESETS.iter().map(|(name, _)| format!("(\"{name}\", include_bytes!(\"{name}\")),\n"));
    fs::write(Path::new(&folder).join("presets.rs"), format!("&[\n{}]\n", forms.collect::<String>()))
        .expect("writes");
    println!("cargo::rerun-if-changed=build.rs");
}
