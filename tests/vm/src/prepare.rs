//! What a guest is made of, built once and kept: kernel, initramfs, the agents under test.
//!
//! Kept in `$VM_CACHE`, or `vm-cache` in the workspace's target folder. Built anew when the kernel, this package or the
//! programs under test have changed.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::fcntl::{Flock, FlockArg};

use crate::archive::Archive;

/// Debian packages that a guest is made from and run by.
const PACKAGES: [&str; 13] = [
    "qemu-system-x86",
    "qemu-utils",
    "linux-image-cloud-amd64",
    "busybox-static",
    "kmod",
    "lz4",
    "e2fsprogs",
    "xfsprogs",
    "btrfs-progs",
    "lvm2",
    "qemu-guest-agent",
    "socat",
    "util-linux",
];

/// What some stories need beside a guest of busybox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A guest of Debian with systemd.
    Systemd,
    /// libvirtd and virsh. The daemon's package only: the one with its units would set up networks.
    Libvirt,
    /// QEMU's library for Python, from PyPI.
    Python,
    /// Sockets between host and guest without a module of the host's kernel: a program from crates.io.
    Vsock,
}

impl Part {
    /// All there are.
    pub const ALL: [Part; 4] = [Part::Systemd, Part::Libvirt, Part::Python, Part::Vsock];

    fn packages(self) -> &'static [&'static str] {
        match self {
            Part::Systemd => &["mmdebstrap"],
            Part::Libvirt => &["libvirt-daemon", "libvirt-daemon-driver-qemu", "libvirt-clients"],
            Part::Python => &["python3-pip"],
            Part::Vsock => &[],
        }
    }
}

/// Loaded at the start, in this order, each after what it needs.
const EARLY: [&str; 4] = ["virtio_pci", "virtio_console", "virtio_blk", "button"];
/// There when they are asked for.
const LATER: [&str; 12] = [
    "xfs",
    "btrfs",
    "dm_mod",
    "loop",
    "virtio_net",
    "vmw_vsock_virtio_transport",
    "vsock_loopback",
    "squashfs",
    "overlay",
    "virtio_balloon",
    "acpi_memhotplug",
    "rtc_cmos",
];
/// With their libraries.
const PROGRAMS: [&str; 11] = [
    "/usr/bin/socat",
    "/usr/sbin/lvm",
    "/usr/sbin/dmsetup",
    "/usr/sbin/mke2fs",
    "/usr/sbin/mkfs.xfs",
    "/usr/sbin/mkfs.btrfs",
    "/usr/bin/btrfs",
    "/usr/sbin/fsfreeze",
    "/usr/sbin/qemu-ga",
    "/usr/sbin/chpasswd",
    // What it changes passwords with.
    "/lib/x86_64-linux-gnu/security/pam_unix.so",
];

/// Files of this package, and where they are in the initramfs.
const GUEST_FILES: [(&str, &str); 8] = [
    ("init", "/init"),
    ("inittab", "/etc/inittab"),
    ("rc", "/etc/rc"),
    ("rc.down", "/etc/rc.down"),
    ("ports", "/etc/ports"),
    ("shell-port", "/etc/shell-port"),
    ("shutdown", "/sbin/shutdown"),
    ("switch-root", "/etc/switch-root"),
];

/// Where everything is.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// ELF image of the kernel: the fastest to boot.
    pub kernel: PathBuf,
    /// The same as a bzImage, which survives suspend to memory.
    pub bzimage: PathBuf,
    /// The initramfs, with stock's agent.
    pub initramfs: PathBuf,
    /// The agent under test.
    pub agent: PathBuf,
    /// A disk with Debian and systemd, made for [`Part::Systemd`]. Only read: a guest gets a copy or an overlay.
    pub disk: PathBuf,
    /// For `PYTHONPATH`: QEMU's library, made for [`Part::Python`].
    pub python: PathBuf,
    /// The back end of a guest's vsock device, made for [`Part::Vsock`].
    pub vsock: PathBuf,
    /// For locks of guests that run.
    pub folder: PathBuf,
}

/// Prepares what is missing for guests of busybox, and `parts`; `say` hears what is being done.
///
/// # Errors
/// A text: what failed, and what to install.
pub fn prepare(parts: &[Part], say: impl Fn(&str)) -> Result<Prepared, String> {
    install(parts, &say)?;
    let folder = std::env::var_os("VM_CACHE")
        .map_or_else(|| tests::programs::folder().join("../vm-cache"), PathBuf::from);
    fs::create_dir_all(&folder).map_err(told(&folder.display()))?;
    let lock = File::create(folder.join("lock")).map_err(told(&"the cache's lock"))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| errno.to_string())?;
    let prepared = Prepared {
        kernel: folder.join("vmlinux"),
        bzimage: folder.join("bzImage"),
        initramfs: folder.join("base.cpio"),
        agent: folder.join("agent.cpio"),
        disk: folder.join("systemd.ext4"),
        python: folder.join("python"),
        vsock: folder.join("vsock/bin/vhost-device-vsock"),
        folder,
    };
    let version = kernel_version()?;
    let mark = format!("{version} {}", stamp(&guest_files()));
    if !is_of(&prepared.initramfs, &mark) {
        say("building the guest's kernel and initramfs");
        unpack_kernel(&version, &prepared)?;
        build(&prepared.initramfs, &mark, |archive| base(archive, &version))?;
    }
    let programs = tests::programs::folder();
    let mark = stamp(&programs_under_test(programs));
    if !is_of(&prepared.agent, &mark) {
        say("packing the programs under test");
        build(&prepared.agent, &mark, |archive| agent(archive, programs))?;
    }
    if parts.contains(&Part::Systemd) {
        crate::systemd::prepare(&prepared, &version, &say)?;
    }
    if parts.contains(&Part::Python) && !prepared.python.join("qemu/qmp").exists() {
        say("fetching QEMU's library for Python");
        let listed = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/requirements.txt");
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--target"]);
        run(pip.arg(&prepared.python).arg("-r").arg(listed))?;
    }
    if parts.contains(&Part::Vsock) && !prepared.vsock.exists() {
        say("building the back end of the vsock device: about a minute");
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["install", "--quiet", "--locked", "--debug", "--version", "0.3.0", "vhost-device-vsock"]);
        run(cargo.arg("--root").arg(prepared.folder.join("vsock")))?;
    }
    Ok(prepared)
}

pub(crate) fn told(what: &dyn Display) -> impl Fn(io::Error) -> String + use<> {
    let what = what.to_string();
    move |error| format!("{what}: {error}")
}

pub(crate) fn run(command: &mut Command) -> Result<Vec<u8>, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(format!("{name} failed: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }
}

/// The packages that are missing, if they are not to be installed.
pub(crate) fn missing(parts: &[Part]) -> Option<String> {
    let missing = missing_packages(parts);
    let install = std::env::var_os("CI").is_some() || std::env::var_os("VM_INSTALL").is_some();
    (!missing.is_empty() && !install).then(|| {
        format!(
            "packages are missing: apt-get install --no-install-recommends {} (or set VM_INSTALL=1)",
            missing.join(" ")
        )
    })
}

fn missing_packages(parts: &[Part]) -> Vec<&'static str> {
    let is_missing = |package: &&str| {
        // There may be one that is not Debian's.
        if *package == "python3-pip" && run(Command::new("python3").args(["-m", "pip", "--version"])).is_ok()
        {
            return false;
        }
        let state = run(Command::new("dpkg-query").args(["-W", "-f=${Status}", package]));
        !state.is_ok_and(|state| state.ends_with(b"ok installed"))
    };
    let of_parts = parts.iter().flat_map(|part| part.packages().iter().copied());
    PACKAGES.into_iter().chain(of_parts).filter(is_missing).collect()
}

fn install(parts: &[Part], say: &impl Fn(&str)) -> Result<(), String> {
    if let Some(why) = missing(parts) {
        return Err(why);
    }
    let missing = missing_packages(parts);
    if missing.is_empty() {
        return Ok(());
    }
    say(&format!("installing {}", missing.join(", ")));
    let mut apt = Command::new("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive").args(["install", "-y", "-qq", "--no-install-recommends"]);
    let first = run(apt.args(&missing));
    if first.is_err() {
        run(Command::new("apt-get").args(["update", "-qq"]))?;
        run(&mut apt)?;
    }
    Ok(())
}

/// The newest cloud kernel whose modules are there.
fn kernel_version() -> Result<String, String> {
    let mut versions: Vec<String> = fs::read_dir("/lib/modules")
        .map_err(told(&"/lib/modules"))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| {
            name.ends_with("-cloud-amd64") && Path::new("/boot").join(format!("vmlinuz-{name}")).exists()
        })
        .collect();
    versions.sort();
    versions.pop().ok_or_else(|| "no cloud kernel in /boot and /lib/modules".to_owned())
}

fn guest_files() -> Vec<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<PathBuf> = GUEST_FILES.iter().map(|(name, _)| own.join("guest").join(name)).collect();
    files.push(own.join("src/prepare.rs"));
    files
}

fn programs_under_test(folder: &Path) -> Vec<PathBuf> {
    let mut programs: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| {
            path.extension().is_none()
                && path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("portreeve"))
        })
        .collect();
    programs.sort();
    programs
}

/// Says which files of which time and size; other ones have another stamp.
pub(crate) fn stamp(files: &[PathBuf]) -> String {
    let one = |file: &PathBuf| {
        let metadata = fs::metadata(file).ok();
        let time = metadata.as_ref().and_then(|metadata| metadata.modified().ok());
        let time = time.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok()).unwrap_or_default();
        format!("{}:{}:{}", file.display(), metadata.map_or(0, |metadata| metadata.len()), time.as_nanos())
    };
    files.iter().map(one).collect::<Vec<_>>().join(" ")
}

pub(crate) fn is_of(file: &Path, mark: &str) -> bool {
    file.exists() && fs::read_to_string(file.with_extension("mark")).is_ok_and(|there| there == mark)
}

type Out = Archive<io::BufWriter<File>>;

fn build(path: &Path, mark: &str, fill: impl FnOnce(&mut Out) -> Result<(), String>) -> Result<(), String> {
    let told = told(&path.display());
    let half = path.with_extension("half");
    let mut archive = Archive::new(io::BufWriter::new(File::create(&half).map_err(&told)?));
    fill(&mut archive)?;
    archive.finish().and_then(|mut out| out.flush()).map_err(&told)?;
    fs::rename(&half, path).map_err(&told)?;
    fs::write(path.with_extension("mark"), mark).map_err(&told)
}

/// The payload of a bzImage lies where its header says (`Documentation/arch/x86/boot.rst`); Debian packs it with LZ4.
fn unpack_kernel(version: &str, prepared: &Prepared) -> Result<(), String> {
    let path = format!("/boot/vmlinuz-{version}");
    let image = fs::read(&path).map_err(told(&path))?;
    let number = |at: usize| {
        let bytes = image.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes
            .map(u32::from_le_bytes)
            .and_then(|number| usize::try_from(number).ok())
            .ok_or("a kernel cut short")
    };
    let setup = usize::from(*image.get(0x1f1).ok_or("no kernel")?);
    let begin = (setup + 1) * 512 + number(0x248)?;
    let payload = image.get(begin..begin + number(0x24c)?).ok_or("a kernel without payload")?;
    let packed = prepared.folder.join("payload.lz4");
    fs::write(&packed, payload).map_err(told(&packed.display()))?;
    // It complains about the length that the kernel's build adds behind the frame.
    let unpacked = Command::new("lz4").args(["-dc", "-q"]).arg(&packed).stdin(Stdio::null()).output();
    let unpacked = unpacked.map_err(|error| format!("lz4: {error}"))?.stdout;
    if !unpacked.starts_with(b"\x7fELF") {
        return Err(format!("{path} does not unpack to an ELF image"));
    }
    fs::write(&prepared.kernel, unpacked).map_err(told(&prepared.kernel.display()))?;
    fs::write(&prepared.bzimage, image).map_err(told(&prepared.bzimage.display()))
}

fn base(archive: &mut Out, version: &str) -> Result<(), String> {
    let io = |result: io::Result<()>| result.map_err(|error| format!("the initramfs: {error}"));
    for folder in
        ["proc", "sys", "dev", "run", "tmp", "mnt", "root", "sbin", "bin", "usr/bin", "usr/sbin", "var/log"]
    {
        io(archive.folder(folder))?;
    }
    io(archive.link("/var/run", "/run"))?;
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest");
    for (name, place) in GUEST_FILES {
        let content = fs::read(own.join(name)).map_err(told(&name))?;
        io(archive.file(place, 0o755, &content))?;
    }
    io(archive.file(
        "/etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n",
    ))?;
    io(archive.file("/etc/group", 0o644, b"root:x:0:\nalice:x:1000:\nstaff:x:50:alice\n"))?;
    io(archive.file("/etc/shadow", 0o600, b"root:*:19000:0:99999:7:::\nalice:!:19000:0:99999:7:::\n"))?;
    io(archive.file("/etc/pam.d/chpasswd", 0o644, b"password required pam_unix.so sha512\n"))?;
    io(archive.file("/etc/lvm/lvm.conf", 0o644, b"activation { udev_sync=0 udev_rules=0 }\ndevices { obtain_device_list_from_udev=0 use_devicesfile=0 }\n"))?;
    io(archive.copy("/etc/mke2fs.conf", Path::new("/etc/mke2fs.conf")))?;
    io(archive.copy("/etc/os-release", Path::new("/etc/os-release")))?;
    io(archive.copy("/bin/busybox", Path::new("/bin/busybox")))?;
    io(archive.link("/usr/sbin/mkfs.ext4", "mke2fs"))?;
    for program in PROGRAMS {
        with_libraries(archive, program)?;
    }
    modules(archive, version)
}

fn with_libraries(archive: &mut Out, program: &str) -> Result<(), String> {
    let copy = |archive: &mut Out, path: &str| {
        archive.copy(path, Path::new(path)).map_err(|error| format!("{path}: {error}"))
    };
    copy(archive, program)?;
    let libraries = run(Command::new("ldd").arg(program)).unwrap_or_default();
    for word in String::from_utf8_lossy(&libraries).split_whitespace().filter(|word| word.starts_with('/')) {
        copy(archive, word)?;
    }
    Ok(())
}

/// Modules for the start, each after what it needs, and a folder with `lib/modules` in it.
pub(crate) fn stage_modules(version: &str) -> Result<(Vec<String>, tempfile::TempDir), String> {
    let needs = |module: &str| -> Result<Vec<String>, String> {
        let shown = run(Command::new("modprobe").args(["-S", version, "--show-depends", module]))?;
        let shown = String::from_utf8_lossy(&shown).into_owned();
        Ok(shown.lines().filter_map(|line| Some(line.strip_prefix("insmod ")?.trim().to_owned())).collect())
    };
    let staged = tempfile::tempdir().map_err(told(&"a temporary folder"))?;
    let place = |file: &str| staged.path().join(file.trim_start_matches('/'));
    let (mut early, mut all) = (Vec::new(), Vec::new());
    for module in EARLY {
        early.extend(needs(module)?);
    }
    all.extend(early.iter().cloned());
    for module in LATER {
        // Some are built in.
        all.extend(needs(module).unwrap_or_default());
    }
    let base = format!("/lib/modules/{version}");
    all.extend(["order", "builtin", "builtin.modinfo"].map(|name| format!("{base}/modules.{name}")));
    for file in &all {
        let to = place(file);
        fs::create_dir_all(to.parent().unwrap_or(staged.path())).map_err(told(&to.display()))?;
        fs::copy(file, &to).map_err(told(file))?;
    }
    run(Command::new("depmod").arg("-b").arg(staged.path()).arg(version))?;
    let mut once: Vec<String> = Vec::new();
    for module in early {
        if !once.contains(&module) {
            once.push(module);
        }
    }
    Ok((once, staged))
}

fn modules(archive: &mut Out, version: &str) -> Result<(), String> {
    let (early, staged) = stage_modules(version)?;
    archive.tree("lib/modules", &staged.path().join("lib/modules")).map_err(told(&"modules"))?;
    archive.file("/etc/modules.early", 0o644, (early.join("\n") + "\n").as_bytes()).map_err(told(&"modules"))
}

/// All programs of ours, without what only a debugger reads, as one folder; they find each other beside themselves.
fn agent(archive: &mut Out, folder: &Path) -> Result<(), String> {
    let stripped = tempfile::tempdir().map_err(told(&"a temporary folder"))?;
    for program in programs_under_test(folder) {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let small = stripped.path().join(&name);
        run(Command::new("strip").arg("-o").arg(&small).arg(&program))?;
        archive.copy(&format!("/opt/portreeve/{name}"), &small).map_err(told(&name))?;
    }
    archive.link("/opt/portreeve/qemu-ga", "portreeve").map_err(told(&"qemu-ga"))
}
