//! `vm`: prepares and opens guests by hand.
#![forbid(unsafe_code)]

use std::io::Read as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use vm::{Guest, Options, Part, Prepared, Service, prepare};

/// Real guests for Portreeve's tests.
#[derive(Parser)]
#[command(
    name = "vm",
    after_help = "Examples:\n  cargo run -p vm -- prepare\n  cargo run -p vm -- boot --disks\n  cargo run -p vm -- figures --rounds 10\n  VM_KEEP=1 cargo test -p vm a_guest -- --nocapture"
)]
enum What {
    /// Builds what guests are made of, if it is not there; installs what is missing with VM_INSTALL=1.
    Prepare,
    /// Freezes and thaws four filesystems again and again, with Debian's qemu-ga and with ours in the same guest, and starts both.
    Figures {
        /// How often.
        #[arg(long, default_value = "20")]
        rounds: u32,
        /// For programs to read.
        #[arg(long)]
        json: bool,
    },
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
        /// Debian with systemd instead of busybox.
        #[arg(long)]
        systemd: bool,
        /// Debian's qemu-ga instead of ours.
        #[arg(long)]
        stock: bool,
    },
}

/// Milliseconds of one round: a freeze, a thaw, and from the agent's start to its first answer.
fn measure(guest: &mut Guest, stock: bool) -> [f64; 3] {
    let begun = Instant::now();
    if stock {
        guest.start_qemu_ga(&[])
    } else {
        guest.start_portreeve(&[])
    }
    let started = begun.elapsed();
    // The worker for it is there a moment after the start.
    std::thread::sleep(Duration::from_millis(800));
    let begun = Instant::now();
    let frozen = guest.agent.call("guest-fsfreeze-freeze", ());
    let freeze = begun.elapsed();
    let begun = Instant::now();
    let thawed = guest.agent.call("guest-fsfreeze-thaw", ());
    let thaw = begun.elapsed();
    assert_eq!((frozen, thawed), (Ok(4.into()), Ok(4.into())));
    guest.stop_agent();
    [freeze, thaw, started].map(|time| time.as_secs_f64() * 1e3)
}

/// Lower quartile, median and upper quartile.
fn quartiles(mut all: Vec<f64>) -> [f64; 3] {
    all.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| all.get(all.len() * quarter / 4).copied().unwrap_or_default())
}

/// Both in turn, round by round: what else the machine does meets both.
fn figures(prepared: &Prepared, rounds: u32, json: bool) -> Result<(), String> {
    let mut guest = Guest::boot(prepared, &Options::default().disks())?;
    let mut times: [[Vec<f64>; 3]; 2] = Default::default();
    for round in 0..rounds {
        eprint!("\rround {} of {rounds} ", round + 1);
        for (stock, times) in [true, false].into_iter().zip(&mut times) {
            for (all, time) in times.iter_mut().zip(measure(&mut guest, stock)) {
                all.push(time);
            }
        }
    }
    eprintln!();
    if !json {
        println!("{:<14} {:>26} {:>26} {:>6}", "ms", "portreeve (quartiles)", "qemu-ga (quartiles)", "ratio");
    }
    let [stock, ours] = times.map(|of_one| of_one.map(quartiles));
    for ((name, ours), stock) in ["freeze", "thaw", "first answer"].into_iter().zip(ours).zip(stock) {
        let ([low, median, high], [stock_low, stock_median, stock_high]) = (ours, stock);
        if json {
            let line = serde_json::json!({ "figure": name, "portreeve_ms": median, "qemu_ga_ms": stock_median,
                "portreeve_quartiles_ms": [low, high], "qemu_ga_quartiles_ms": [stock_low, stock_high] });
            println!("{line}");
        } else {
            let shown = |median, low, high| format!("{median:.2} ({low:.2} to {high:.2})");
            println!(
                "{name:<14} {:>26} {:>26} {:>6.2}",
                shown(median, low, high),
                shown(stock_median, stock_low, stock_high),
                median / stock_median
            );
        }
    }
    Ok(())
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
    let parts: &[Part] = match what {
        What::Prepare => &Part::ALL,
        What::Boot { systemd: true, .. } => &[Part::Systemd],
        What::Boot { .. } | What::Figures { .. } => &[],
    };
    let prepared = prepare(parts, |step| eprintln!("{step} ..."))?;
    let (disks, processors, memory, systemd, stock) = match what {
        What::Prepare => {
            let plain = Options::default();
            for options in [plain.clone(), plain.clone().disks(), plain.systemd(Service::QemuGuestAgent)] {
                Guest::save(&prepared, &options, |step| eprintln!("{step} ..."))?;
            }
            println!("prepared in {}", prepared.folder.display());
            return Ok(());
        }
        What::Figures { rounds, json } => return figures(&prepared, rounds, json),
        What::Boot { disks, processors, memory, systemd, stock } => {
            (disks, processors, memory, systemd, stock)
        }
    };
    let mut options = Options::default().processors(&processors).memory(&memory);
    if disks {
        options = options.disks();
    }
    if systemd {
        options = options.systemd(if stock { Service::Stock } else { Service::QemuGuestAgent });
    }
    eprintln!("booting ...");
    let mut guest = Guest::boot(&prepared, &options)?;
    if systemd {
        guest.agent.sync();
    } else if stock {
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
