//! libvirtd and one domain, as its users have them, and nothing of it outside of a folder.
//!
//! The daemon runs in namespaces of its own for mounts, processes and network: what it writes to `/etc`, `/run` and `/var` is on
//! a layer that goes with it, it sees no network, and all that it started ends with it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::Flock;
use serde_json::Value;

use crate::guest::{Options, initrd, scratch, tail, take_slot};
use crate::prepare::{Part, Prepared, prepare};
use crate::systemd::Service;
use crate::talk::{LIMIT, Shell};

const PARTS: [Part; 2] = [Part::Systemd, Part::Libvirt];

/// The domain's name.
const NAME: &str = "guest";

/// A guest with systemd, a network that leads nowhere, and the agent's port in libvirtd's hands. Ends with its owner.
#[derive(Debug)]
pub struct Domain {
    shell: Shell,
    daemon: Daemon,
    _slot: Flock<File>,
}

impl Domain {
    /// Starts libvirtd and the domain, waits until the guest is up. `None` where that cannot be; see [`crate::possible`]. Of the
    /// options it takes service, disks and processors.
    ///
    /// # Panics
    /// If either does not come up.
    pub fn with(options: &Options) -> Option<Self> {
        if !crate::possible(&PARTS) {
            return None;
        }
        let prepared = prepare(&PARTS, |_| {}).unwrap_or_else(|why| panic!("{why}"));
        Some(Domain::boot(&prepared, options).unwrap_or_else(|why| panic!("{why}")))
    }

    fn boot(prepared: &Prepared, options: &Options) -> Result<Self, String> {
        let told = |error: io::Error| error.to_string();
        let slot = take_slot(&prepared.folder).map_err(told)?;

        let daemon = Daemon::start()?;
        let folder = daemon.folder.path();
        let service = options.service.unwrap_or(Service::QemuGuestAgent);
        initrd(prepared, Some(service), options.disks, folder).map_err(told)?;
        if options.disks {
            scratch(folder, "ext4", 256, &["mkfs.ext4", "-q"]).map_err(told)?;
            scratch(folder, "xfs", 320, &["mkfs.xfs", "-q"]).map_err(told)?;
        }
        // A copy: libvirt's snapshots have an opinion on overlays.
        let copied = Command::new("cp")
            .arg("--sparse=always")
            .arg(&prepared.disk)
            .arg(folder.join("root.img"))
            .status()
            .map_err(told)?;
        if !copied.success() {
            return Err("the disk cannot be copied".to_owned());
        }
        let definition = folder.join("domain.xml");
        fs::write(&definition, xml(prepared, folder, options)).map_err(told)?;
        let (created, said) = daemon.virsh(&["create", &definition.display().to_string()]);
        if !created {
            return Err(format!("{said}\n{}", daemon.log()));
        }
        let mut shell = Shell::connect(&folder.join("shell")).map_err(told)?;
        let up = shell.run("while [ ! -e /run/up ]; do sleep 0.05; done", LIMIT);
        up.map_err(|error| format!("the domain does not come up: {error}\n{}", tail(folder)))?;
        let mut domain = Domain { shell, daemon, _slot: slot };
        domain.wait_for_agent();
        Ok(domain)
    }

    /// Where its sockets, disks and logs are.
    pub fn folder(&self) -> &Path {
        self.daemon.folder.path()
    }

    /// Runs virsh; `line` is split at blanks and `{}` is the domain's name. Whether it succeeded, and what it printed.
    pub fn virsh(&self, line: &str) -> (bool, String) {
        let words: Vec<&str> = line.split(' ').map(|word| if word == "{}" { NAME } else { word }).collect();
        self.daemon.virsh(&words)
    }

    /// What virsh prints, which must succeed.
    ///
    /// # Panics
    /// If it fails.
    pub fn output(&self, line: &str) -> String {
        let (succeeded, said) = self.virsh(line);
        assert!(succeeded, "virsh {line}: {said}\n{}", self.daemon.log());
        said
    }

    /// `virsh qemu-agent-command`: the reply as libvirt hands it on.
    ///
    /// # Panics
    /// If it fails, or is not JSON.
    pub fn agent_command(&self, request: &Value) -> Value {
        let (succeeded, said) = self.daemon.virsh(&["qemu-agent-command", NAME, &request.to_string()]);
        assert!(succeeded, "virsh qemu-agent-command {request}: {said}");
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{said}: {error}"))
    }

    /// Waits until the agent answers through libvirt.
    ///
    /// # Panics
    /// If it does not within five minutes.
    pub fn wait_for_agent(&mut self) {
        let until = Instant::now() + LIMIT;
        while !self.daemon.virsh(&["qemu-agent-command", NAME, r#"{"execute":"guest-ping"}"#]).0 {
            assert!(Instant::now() < until, "no agent: {}\n{}", tail(self.folder()), self.daemon.log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// What a command prints in the guest's shell, which must succeed.
    ///
    /// # Panics
    /// If it fails, or has not ended after five minutes.
    pub fn sh(&mut self, command: &str) -> String {
        let result = self.shell.run(command, LIMIT);
        let (status, output) = result.unwrap_or_else(|error| panic!("{command}: {error}"));
        assert_eq!(status, 0, "{command}: {output}");
        output
    }

    /// Whether a command succeeds in the guest within `limit`, tried again and again.
    pub fn becomes_true(&mut self, command: &str, limit: Duration) -> bool {
        self.shell.becomes_true(command, limit)
    }

    /// The end of what the console showed.
    pub fn console(&self) -> String {
        tail(self.folder())
    }
}

/// libvirtd and what it runs.
#[derive(Debug)]
struct Daemon {
    process: Child,
    folder: Kept,
    address: String,
}

/// A folder that is kept when a test fails.
#[derive(Debug)]
struct Kept(Option<tempfile::TempDir>);

impl Kept {
    fn path(&self) -> &Path {
        self.0.as_ref().map_or(Path::new("/"), tempfile::TempDir::path)
    }
}

/// Run in the namespaces; `$1` is the folder.
const IN_NAMESPACES: &str = r#"
set -e
mkdir "$1/layer"
mount -t tmpfs -o mode=755 layer "$1/layer"
for d in etc var; do
    mkdir "$1/layer/$d" "$1/layer/$d.work"
    mount -t overlay -o "lowerdir=/$d,upperdir=$1/layer/$d,workdir=$1/layer/$d.work" overlay "/$d"
done
mount -t tmpfs -o mode=755 run /run
mount -t sysfs sys /sys
mkdir -p /etc/libvirt /run/libvirt /var/lib/libvirt /var/log/libvirt/qemu
# Looked up at the start, though its programs run as root here.
echo 'libvirt-qemu:x:64055:64055::/:/bin/false' >> /etc/passwd
echo 'libvirt-qemu:x:64055:' >> /etc/group
cat > /etc/libvirt/qemu.conf <<END
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = [ ]
namespaces = [ ]
stdio_handler = "file"
END
cat > /etc/libvirt/libvirtd.conf <<END
unix_sock_dir = "$1"
auth_unix_ro = "none"
auth_unix_rw = "none"
END
# The shell is process 1 here and reaps what QEMU leaves; libvirtd would not.
/usr/sbin/libvirtd &
wait $!
"#;

impl Daemon {
    fn start() -> Result<Self, String> {
        let told = |error: io::Error| error.to_string();
        let folder = tempfile::Builder::new().prefix("vm.").tempdir().map_err(told)?;
        let log = File::create(folder.path().join("libvirtd.log")).map_err(told)?;
        let process = Command::new("unshare")
            .args(["--mount", "--net", "--pid", "--mount-proc", "--fork", "--kill-child"])
            .args(["sh", "-c", IN_NAMESPACES, "libvirtd"])
            .arg(folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(told)?)
            .stderr(log)
            .spawn()
            .map_err(|error| format!("unshare: {error}"))?;
        let address = format!("qemu:///system?socket={}", folder.path().join("libvirt-sock").display());
        let mut daemon = Daemon { process, folder: Kept(Some(folder)), address };
        let until = Instant::now() + LIMIT;
        while !daemon.virsh(&["version"]).0 {
            if Instant::now() > until || daemon.process.try_wait().map_err(told)?.is_some() {
                return Err(format!("libvirtd does not answer: {}", daemon.log()));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(daemon)
    }

    fn virsh(&self, words: &[&str]) -> (bool, String) {
        let output = Command::new("virsh")
            .args(["-c", &self.address])
            .args(words)
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("virsh: {error}"));
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).trim().to_owned())
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.folder.path().join("libvirtd.log")).unwrap_or_default())
            .into_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::env::var_os("VM_KEEP").is_some() {
            eprintln!(
                "libvirtd stays: end it with kill -9 {}; virsh -c '{}'; the guest's shell: socat - UNIX-CONNECT:{}/shell",
                self.process.id(),
                self.address,
                self.folder.path().display(),
            );
            self.folder.keep();
            return;
        }
        // With it goes the first process of the namespace, and with that all others.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("the domain's console and logs are in {}", self.folder.path().display());
            self.folder.keep();
        }
    }
}

impl Kept {
    fn keep(&mut self) {
        if let Some(folder) = self.0.take() {
            let _: PathBuf = folder.keep();
        }
    }
}

fn xml(prepared: &Prepared, folder: &Path, options: &Options) -> String {
    let disk = |name: &str, target: &str| {
        format!(
            "<disk type='file' device='disk'><driver name='qemu' type='raw' cache='unsafe' discard='unmap'/>\
             <source file='{}/{name}.img'/><target dev='{target}' bus='virtio'/><serial>{name}</serial></disk>",
            folder.display()
        )
    };
    let mut disks = disk("root", "vda");
    if options.disks {
        disks += &(disk("ext4", "vdb") + &disk("xfs", "vdc"));
    }
    format!(
        "<domain type='qemu'><name>{NAME}</name><memory unit='MiB'>512</memory><vcpu>{processors}</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type><kernel>{kernel}</kernel><initrd>{folder}/initrd</initrd>
<cmdline>console=ttyS0 quiet panic=-1 cryptomgr.notests random.trust_cpu=on vm.systemd</cmdline></os>
<features><acpi/></features><cpu mode='maximum'/><clock offset='utc'/>
<on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>
<pm><suspend-to-mem enabled='yes'/><suspend-to-disk enabled='yes'/></pm>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
{disks}
<interface type='user'><mac address='52:54:00:12:34:56'/><model type='virtio'/></interface>
<controller type='usb' model='none'/><memballoon model='none'/>
<serial type='file'><source path='{folder}/console'/></serial>
<channel type='unix'><source mode='bind' path='{folder}/agent'/><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
<channel type='unix'><source mode='bind' path='{folder}/shell'/><target type='virtio' name='vm.shell'/></channel>
</devices></domain>
",
        kernel = prepared.bzimage.display(),
        folder = folder.display(),
        processors = options.processors,
    )
}
