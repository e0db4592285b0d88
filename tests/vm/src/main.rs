//! `vm`: prepares and opens guests by hand.
#![forbid(unsafe_code)]

use std::io::Read as _;
use std::process::ExitCode;

use clap::Parser;
use vm::{Guest, Options, prepare};

/// Real guests for Portreeve's tests.
#[derive(Parser)]
#[command(
    name = "vm",
    after_help = "Examples:\n  cargo run -p vm -- prepare\n  cargo run -p vm -- boot --disks\n  VM_KEEP=1 cargo test -p vm a_guest -- --nocapture"
)]
enum What {
    /// Builds what guests are made of, if it is not there; installs what is missing with VM_INSTALL=1.
    Prepare,
    /// Boots a guest with the agent in it and keeps it until Enter is pressed.
    Boot {
        /// Scratch disks to freeze.
        #[arg(long)]
        disks: bool,
        /// QEMU's -smp.
        #[arg(long, default_value = "1")]
        processors: String,
        /// QEMU's -m.
        #[arg(long, default_value = "512")]
        memory: String,
        /// Debian's qemu-ga instead of ours.
        #[arg(long)]
        stock: bool,
    },
}

fn main() -> ExitCode {
    match run(What::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("vm: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(what: What) -> Result<(), String> {
    let prepared = prepare(|step| eprintln!("{step} ..."))?;
    let What::Boot { disks, processors, memory, stock } = what else {
        println!("prepared in {}", prepared.folder.display());
        return Ok(());
    };
    let mut options = Options::default().processors(&processors).memory(&memory);
    if disks {
        options = options.disks();
    }
    eprintln!("booting ...");
    let mut guest = Guest::boot(&prepared, &options)?;
    if stock {
        guest.start_qemu_ga(&[]);
    } else {
        guest.start_portreeve(&["-v"]);
    }
    println!("its agent:  socat - UNIX-CONNECT:{}/agent", guest.folder().display());
    println!("its shell:  socat - UNIX-CONNECT:{}/shell", guest.folder().display());
    println!(
        "Each has one host's end, which this program holds until it ends. Press Enter to end the guest."
    );
    let _ = std::io::stdin().read(&mut [0]);
    Ok(())
}
