//! A small Debian with systemd, as an image that is only read, and what is laid over it at the start.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::Command;

use crate::archive::Archive;
use crate::prepare::{Prepared, is_of, run, stage_modules, told};

/// What is in it beside the minimum, without what they recommend.
const INSIDE: &str = "systemd-sysv,udev,dbus,libpam-systemd,kmod,login,passwd,e2fsprogs,xfsprogs,util-linux-extra,qemu-guest-agent";
/// Size of the image; what nobody has written takes no room.
const SIZE: u64 = 640 << 20;
/// What nobody reads in a guest of a minute.
const LEFT_OUT: [&str; 6] = [
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "var/cache/apt",
    "var/lib/apt/lists",
    "var/log/apt",
];

/// Which agent a guest with systemd starts, and by which unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// `qemu-guest-agent.service` and the udev rule of Debian's package, with `/usr/sbin/qemu-ga` being a link to Portreeve.
    QemuGuestAgent,
    /// `portreeve.service`, which is the unit in docs/operations.md, with the policy `qemu-ga`.
    Portreeve,
    /// Debian's package unchanged, to compare with.
    Stock,
}

impl Service {
    /// The unit's name.
    pub fn unit(self) -> &'static str {
        match self {
            Service::QemuGuestAgent | Service::Stock => "qemu-guest-agent.service",
            Service::Portreeve => "portreeve.service",
        }
    }

    /// An archive for the initramfs with what belongs over the image.
    pub(crate) fn overlay(self, path: &Path, disks: bool) -> io::Result<()> {
        let mut archive = Archive::new(File::create(path)?);
        match self {
            Service::Stock => {}
            Service::QemuGuestAgent => archive.link("/overlay/usr/sbin/qemu-ga", "/usr/bin/portreeve")?,
            Service::Portreeve => {
                let units = "/overlay/etc/systemd/system";
                let unit = documented_unit()?;
                archive.link(&format!("{units}/qemu-guest-agent.service"), "/dev/null")?;
                archive.file(&format!("{units}/portreeve.service"), 0o644, unit.as_bytes())?;
                // What systemctl enable does.
                for line in unit.lines().filter_map(|line| line.strip_prefix("WantedBy=")) {
                    archive
                        .link(&format!("{units}/{line}.wants/portreeve.service"), "../portreeve.service")?;
                }
                archive.file("/overlay/etc/portreeve/portreeve.toml", 0o644, b"policy = \"qemu-ga\"\n")?;
            }
        }
        let disks = if disks {
            "/dev/disk/by-id/virtio-ext4 /mnt/ext4 ext4 defaults\n/dev/disk/by-id/virtio-xfs /mnt/xfs xfs defaults\n"
        } else {
            ""
        };
        archive.file("/overlay/etc/fstab", 0o644, disks.as_bytes())?;
        archive.finish().map(drop)
    }
}

/// The unit that people copy from the documentation.
fn documented_unit() -> io::Result<String> {
    let text = fs::read_to_string(tests::programs::root().join("docs/operations.md"))?;
    text.split_once("```ini\n")
        .and_then(|(_, rest)| rest.split_once("```"))
        .map(|(unit, _)| unit.to_owned())
        .ok_or_else(|| io::Error::other("docs/operations.md has no unit"))
}

/// Builds the image unless it is of this recipe and kernel. The cache is locked meanwhile.
pub(crate) fn prepare(prepared: &Prepared, version: &str, say: &impl Fn(&str)) -> Result<(), String> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest");
    let recipe = format!(
        "{version}\n{INSIDE}\n{SIZE}\n{LEFT_OUT:?}\n{}\n{}",
        content(&own.join("systemd")).map_err(told(&"guest/systemd"))?,
        content(&own.join("systemd.masked")).map_err(told(&"guest/systemd.masked"))?,
    );
    if is_of(&prepared.disk, &recipe) {
        return Ok(());
    }
    say("building a disk with Debian and systemd: about a minute");
    // On the cache's disk: the machine's temporary folder may be small.
    let staged = tempfile::tempdir_in(&prepared.folder).map_err(told(&"a temporary folder"))?;
    let tree = staged.path().join("tree");
    bootstrap(&tree)?;
    run(Command::new("cp").arg("-aT").arg(own.join("systemd")).arg(&tree))?;
    run(Command::new("chown").args(["-R", "0:0"]).arg(tree.join("etc/systemd")).arg(tree.join("etc/udev")))?;
    let masked = own.join("systemd.masked");
    for unit in fs::read_to_string(&masked).map_err(told(&"systemd.masked"))?.lines() {
        let place = tree.join("etc/systemd/system").join(unit);
        std::os::unix::fs::symlink("/dev/null", place).map_err(told(&unit))?;
    }
    for folder in LEFT_OUT {
        let _ = fs::remove_dir_all(tree.join(folder));
    }
    for folder in ["mnt/ext4", "mnt/xfs"] {
        fs::create_dir_all(tree.join(folder)).map_err(told(&folder))?;
    }
    let (_, modules) = stage_modules(version)?;
    run(Command::new("cp")
        .arg("-rT")
        .arg(modules.path().join("lib/modules"))
        .arg(tree.join("usr/lib/modules")))?;
    run(Command::new("cp").arg("/bin/busybox").arg(tree.join("usr/bin/busybox")))?;
    run(Command::new("chroot").arg(&tree).args(["useradd", "-m", "-s", "/bin/bash", "alice"]))?;
    let half = prepared.disk.with_extension("half");
    File::create(&half).and_then(|file| file.set_len(SIZE)).map_err(told(&half.display()))?;
    run(Command::new("mke2fs").args(["-q", "-t", "ext4", "-m", "0", "-d"]).arg(&tree).arg(&half))?;
    fs::rename(&half, &prepared.disk).map_err(told(&prepared.disk.display()))?;
    fs::write(prepared.disk.with_extension("mark"), recipe).map_err(told(&"the image's mark"))
}

/// Debian of this machine's release, from where this machine has its packages.
fn bootstrap(tree: &Path) -> Result<(), String> {
    let source = ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"]
        .into_iter()
        .find(|path| fs::metadata(path).is_ok_and(|file| file.len() > 0))
        .ok_or(
            "neither /etc/apt/sources.list.d/debian.sources nor /etc/apt/sources.list says where Debian is",
        )?;
    let release = fs::read_to_string("/etc/os-release").map_err(told(&"/etc/os-release"))?;
    let release = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let release = release.ok_or("/etc/os-release does not name a release")?;
    let mut make = Command::new("mmdebstrap");
    make.args(["--quiet", "--mode=root", "--variant=minbase", "--aptopt=APT::Install-Recommends \"false\""]);
    make.arg(format!("--include={INSIDE}"));
    for folder in LEFT_OUT.iter().filter(|folder| folder.starts_with("usr/")) {
        make.arg(format!("--dpkgopt=path-exclude=/{folder}/*"));
    }
    run(make.arg(release).arg(tree).arg(source)).map(drop)
}

/// Names and content of all files below.
fn content(path: &Path) -> io::Result<String> {
    let metadata = fs::symlink_metadata(path)?;
    let name = path.file_name().unwrap_or_default().display();
    if metadata.is_symlink() {
        return Ok(format!("{name} -> {}\n", fs::read_link(path)?.display()));
    }
    if !metadata.is_dir() {
        return Ok(format!("{name}:\n{}\n", fs::read_to_string(path)?));
    }
    let mut entries: Vec<_> = fs::read_dir(path)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    let inside: String = entries.iter().map(|entry| content(&entry.path())).collect::<Result<_, _>>()?;
    Ok(format!("{name}/\n{inside}"))
}
