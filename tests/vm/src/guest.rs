//! One guest: started, driven, ended with its test.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};

use crate::prepare::{Part, Prepared, is_of, prepare, run, stamp, told};
use crate::systemd::Service;
use crate::talk::{Agent, LIMIT, Qmp, Shell};

/// Guests that run at once on one machine, whoever started them.
const GUESTS: usize = 2;

const MIB: u64 = 1 << 20;

/// What a guest is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    pub(crate) service: Option<Service>,
    pub(crate) disks: bool,
    swap: bool,
    bzimage: bool,
    serial: bool,
    pub(crate) processors: String,
    memory: String,
    ports: Vec<String>,
    extra: Vec<String>,
    folder: Option<PathBuf>,
}

impl Default for Options {
    /// One processor, 512 MiB, no disk, the agent's port and the shell's.
    fn default() -> Self {
        Options {
            service: None,
            disks: false,
            swap: false,
            bzimage: false,
            serial: false,
            processors: "1".to_owned(),
            memory: "512".to_owned(),
            ports: Vec::new(),
            extra: Vec::new(),
            folder: None,
        }
    }
}

impl Options {
    /// Debian with systemd on a disk, instead of busybox in memory. It starts its agent by itself, so there is no need for
    /// [`Guest::start_portreeve`]; [`Agent::sync`] waits for it.
    #[must_use]
    pub fn systemd(mut self, service: Service) -> Self {
        self.service = Some(service);
        self
    }

    fn parts(&self) -> &'static [Part] {
        if self.service.is_some() { &[Part::Systemd] } else { &[] }
    }

    /// What a saved guest like this is called. `None` for those that too few stories want for a saving to pay, and for one that goes
    /// on with another's disks.
    fn saved_as(&self) -> Option<String> {
        let plain = Options { service: self.service, disks: self.disks, ..Options::default() };
        let system =
            self.service.map_or("busybox".to_owned(), |service| format!("{service:?}").to_lowercase());
        (*self == plain).then(|| if self.disks { system + "-disks" } else { system })
    }

    /// Four filesystems to freeze: `/mnt/ext4`, `/mnt/xfs`, `/mnt/lvm`, and `/mnt/loop` in a file on the first. With systemd
    /// only the first two, beside the root.
    #[must_use]
    pub fn disks(mut self) -> Self {
        self.disks = true;
        self
    }

    /// A disk to hibernate to.
    #[must_use]
    pub fn swap(mut self) -> Self {
        self.swap = true;
        self
    }

    /// The kernel as firmware loads it: a little slower, and needed to wake up from a suspend to memory.
    #[must_use]
    pub fn bzimage(mut self) -> Self {
        self.bzimage = true;
        self
    }

    /// The agent's line is a second serial port (`/dev/ttyS1`), not a virtio one.
    #[must_use]
    pub fn serial(mut self) -> Self {
        self.serial = true;
        self
    }

    /// QEMU's `-smp`.
    #[must_use]
    pub fn processors(mut self, text: &str) -> Self {
        text.clone_into(&mut self.processors);
        self
    }

    /// QEMU's `-m`.
    #[must_use]
    pub fn memory(mut self, text: &str) -> Self {
        text.clone_into(&mut self.memory);
        self
    }

    /// One more virtio port, `/dev/virtio-ports/NAME`, whose host's end is the socket NAME in the guest's folder.
    #[must_use]
    pub fn port(mut self, name: &str) -> Self {
        self.ports.push(name.to_owned());
        self
    }

    /// More arguments for QEMU.
    #[must_use]
    pub fn qemu(mut self, arguments: &[&str]) -> Self {
        self.extra.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }

    /// The folder of an earlier guest, whose disks this one gets.
    #[must_use]
    pub fn folder(mut self, folder: &Path) -> Self {
        self.folder = Some(folder.to_owned());
        self
    }
}

/// A running guest. Ends with its owner.
#[derive(Debug)]
pub struct Guest {
    /// The host's end of the agent's port.
    pub agent: Agent,
    /// QEMU's monitor.
    pub qmp: Qmp,
    shell: Shell,
    qemu: Child,
    folder: PathBuf,
    temporary: Option<tempfile::TempDir>,
    _slot: Flock<File>,
}

impl Guest {
    /// A guest whose shell answers: restored from one that was saved when its start was over, or booted where none is saved. `None`
    /// where no guest can run; see [`crate::possible`].
    ///
    /// # Panics
    /// If it is not up within five minutes: with the end of what its console showed.
    pub fn with(options: Options) -> Option<Self> {
        if !crate::possible(options.parts()) {
            return None;
        }
        let prepared = prepare(options.parts(), |_| {}).unwrap_or_else(|why| panic!("{why}"));
        let guest = match saved(&prepared, &options, |_| {}) {
            Ok(Some(state)) => Guest::up(&prepared, &options, Some(&state)),
            Ok(None) => Guest::boot(&prepared, &options),
            Err(why) => Err(why),
        };
        Some(guest.unwrap_or_else(|why| panic!("{why}")))
    }

    /// A guest from its kernel's start on, with what was prepared.
    ///
    /// # Errors
    /// What went wrong, with the end of what the console showed.
    pub fn boot(prepared: &Prepared, options: &Options) -> Result<Self, String> {
        Guest::up(prepared, options, None)
    }

    fn up(prepared: &Prepared, options: &Options, state: Option<&Path>) -> Result<Self, String> {
        let slot = take_slot(&prepared.folder).map_err(|error| error.to_string())?;
        let temporary = match options.folder {
            None => {
                Some(tempfile::Builder::new().prefix("vm.").tempdir().map_err(|error| error.to_string())?)
            }
            Some(_) => None,
        };
        let folder =
            options.folder.clone().or_else(|| temporary.as_ref().map(|folder| folder.path().to_owned()));
        let folder = folder.ok_or("no folder")?;
        let told = |error: io::Error| format!("{}: {error}", folder.display());
        match state {
            None => initrd(prepared, options.service, options.disks, &folder).map_err(told)?,
            Some(state) => copy_disks(state, &folder)?,
        }
        for socket in
            ["agent", "shell", "qmp"].iter().map(|name| (*name).to_owned()).chain(options.ports.clone())
        {
            let _ = fs::remove_file(folder.join(socket));
        }
        let log = File::create(folder.join("qemu.log")).map_err(told)?;
        let qemu = Command::new("qemu-system-x86_64")
            .args(arguments(prepared, options, &folder, state).map_err(told)?)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(told)?)
            .stderr(log)
            .spawn()
            .map_err(|error| format!("qemu-system-x86_64: {error}"))?;
        let mut qemu = Ended(Some(qemu));
        let begun = || -> io::Result<(Agent, Qmp, Shell)> {
            // The shell's end first: a port without a host reads as ended.
            let shell = Shell::connect(&folder.join("shell"))?;
            Ok((Agent::connect(folder.join("agent"))?, Qmp::connect(&folder.join("qmp"))?, shell))
        };
        let (agent, mut qmp, mut shell) = begun().map_err(|error| format!("{error}\n{}", tail(&folder)))?;
        if state.is_some() {
            qmp.status_becomes("query-status", |status| status != "inmigrate")?;
            qmp.call("cont", ())?;
        }
        // Wait for the end of its start: what is written to the shell's port before is read then.
        let up = shell.run("while [ ! -e /run/up ]; do sleep 0.05; done", LIMIT);
        up.map_err(|error| format!("the guest does not come up: {error}\n{}", tail(&folder)))?;
        let qemu = qemu.0.take().ok_or("no process")?;
        Ok(Guest { agent, qmp, shell, qemu, folder, temporary, _slot: slot })
    }

    /// Saves a guest like this, once, for all stories that want one.
    ///
    /// # Errors
    /// What went wrong, with the end of what the console showed.
    pub fn save(prepared: &Prepared, options: &Options, say: impl Fn(&str)) -> Result<(), String> {
        saved(prepared, options, say).map(drop)
    }

    /// Writes all of it into its folder, as the file `state`, and ends it.
    fn write_state(mut self, service: Option<Service>) -> Result<(), String> {
        if service.is_some() {
            self.agent.sync();
        }
        self.output("sync; echo 3 > /proc/sys/vm/drop_caches");
        let folder = self.folder.clone();
        self.qmp.call("stop", ())?;
        let file = folder.join("state");
        self.qmp.call("migrate", json!({ "uri": format!("exec:cat > '{}'", file.display()) }))?;
        let status =
            self.qmp.status_becomes("query-migrate", |status| status == "completed" || status == "failed")?;
        if status != "completed" {
            return Err(format!("the guest cannot be saved: {status}\n{}", tail(&folder)));
        }
        self.qmp.call("quit", ())?;
        self.wait_for_end();
        Ok(())
    }

    /// Where its sockets, disks and logs are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Runs a command in the guest's shell; its status, and what it printed.
    ///
    /// # Panics
    /// If it has not ended after five minutes.
    pub fn sh(&mut self, command: &str) -> (i32, String) {
        let result = self.shell.run(command, LIMIT);
        result.unwrap_or_else(|error| panic!("{command}: {error}\n{}", tail(&self.folder)))
    }

    /// What a command prints, which must succeed.
    ///
    /// # Panics
    /// If it fails.
    pub fn output(&mut self, command: &str) -> String {
        let (status, output) = self.sh(command);
        assert_eq!(status, 0, "{command}: {output}");
        output
    }

    /// Whether a command succeeds within `limit`, tried again and again.
    pub fn becomes_true(&mut self, command: &str, limit: Duration) -> bool {
        self.shell.becomes_true(command, limit)
    }

    /// Starts the agent under test, called as qemu-ga on the agent's port, and waits until it answers.
    ///
    /// # Panics
    /// If it does not.
    pub fn start_portreeve(&mut self, arguments: &[&str]) {
        self.start("/opt/portreeve/qemu-ga -t /run/agent", arguments);
    }

    /// Starts Debian's qemu-ga in its place.
    ///
    /// # Panics
    /// If it does not answer.
    pub fn start_qemu_ga(&mut self, arguments: &[&str]) {
        self.start("/usr/sbin/qemu-ga -t /run/agent", arguments);
    }

    fn start(&mut self, program: &str, arguments: &[&str]) {
        let port = "-m virtio-serial -p /dev/virtio-ports/org.qemu.guest_agent.0";
        let line = format!("{program} {port} {}", arguments.join(" "));
        self.launch(&line);
        assert!(
            self.agent.answers_within(LIMIT / 2),
            "{line} does not answer; it wrote: {}",
            self.agent_log()
        );
    }

    /// Starts an agent by its whole command line, with its output in `/run/agent.log`.
    pub fn launch(&mut self, line: &str) {
        self.output(&format!(
            "cd /; PATH=/sbin:/usr/sbin:/bin:/usr/bin setsid {line} </dev/null >>/run/agent.log 2>&1 & echo $! > /run/agent.pid"
        ));
    }

    /// Ends the agent with SIGTERM and waits for it.
    ///
    /// # Panics
    /// If it does not end within 20 s.
    pub fn stop_agent(&mut self) {
        self.sh("kill $(cat /run/agent.pid)");
        let gone = "! kill -0 $(cat /run/agent.pid) 2>/dev/null";
        assert!(
            self.becomes_true(gone, Duration::from_secs(20)),
            "the agent does not end: {}",
            self.agent_log()
        );
    }

    /// What the agent wrote, and whom the kernel killed for a system call.
    pub fn agent_log(&mut self) -> String {
        self.sh("cat /run/agent.log; dmesg | grep -F type=1326 | tail -n 5").1
    }

    /// Asks QEMU.
    ///
    /// # Panics
    /// If QEMU refuses.
    pub fn qemu(&mut self, command: &str, arguments: impl Into<Value>) -> Value {
        self.qmp.call(command, arguments).unwrap_or_else(|why| panic!("{why}"))
    }

    /// Waits until QEMU ends by itself.
    ///
    /// # Panics
    /// If it does not within five minutes.
    pub fn wait_for_end(&mut self) {
        let until = Instant::now() + LIMIT;
        while self.qemu.try_wait().ok().flatten().is_none() {
            assert!(Instant::now() < until, "the guest does not end\n{}", tail(&self.folder));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The end of what the console showed.
    pub fn console(&self) -> String {
        tail(&self.folder)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        let runs = matches!(self.qemu.try_wait(), Ok(None));
        if runs && std::env::var_os("VM_KEEP").is_some() {
            eprintln!(
                "the guest stays: QEMU is process {}; its agent: socat - UNIX-CONNECT:{}/agent; its shell: socat - \
                 UNIX-CONNECT:{0}/shell",
                self.qemu.id(),
                self.folder.display(),
            );
            self.keep();
            return;
        }
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        if failed {
            eprintln!("the guest's console and logs are in {}", self.folder.display());
            self.keep();
        }
    }
}

impl Guest {
    fn keep(&mut self) {
        if let Some(folder) = self.temporary.take() {
            let _ = folder.keep();
        }
    }
}

/// Ends a QEMU whose guest did not come up.
struct Ended(Option<Child>);

impl Drop for Ended {
    fn drop(&mut self) {
        if let Some(qemu) = &mut self.0 {
            let _ = qemu.kill();
            let _ = qemu.wait();
        }
    }
}

/// The folder of the saved guest for these options, which is made unless it is there and of what is prepared now.
fn saved(prepared: &Prepared, options: &Options, say: impl Fn(&str)) -> Result<Option<PathBuf>, String> {
    let Some(name) = options.saved_as() else { return Ok(None) };
    let folder = prepared.folder.join(format!("saved-{name}"));
    // Held until it is there: others who want it wait here, and not in one of the places for guests that run.
    let lock = File::create(folder.with_extension("lock")).map_err(told(&"the lock of a saved guest"))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| errno.to_string())?;
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut parts = vec![prepared.kernel.clone(), prepared.initramfs.clone(), prepared.agent.clone()];
    parts.push(own.join("src/guest.rs"));
    if options.service.is_some() {
        let unit = tests::programs::root().join("docs/operations.md");
        parts.extend([prepared.disk.clone(), own.join("src/systemd.rs"), unit]);
    }
    let mark = stamp(&parts);
    let state = folder.join("state");
    if is_of(&state, &mark) {
        return Ok(Some(folder));
    }
    say(&format!("booting and saving the guest {name}"));
    let half = folder.with_extension("half");
    let _ = fs::remove_dir_all(&half);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&half).map_err(told(&half.display()))?;
    if options.service.is_some() {
        let mut overlay = Command::new("qemu-img");
        overlay
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
            .arg(&prepared.disk)
            .arg(half.join("root.qcow2"));
        run(&mut overlay)?;
    }
    Guest::boot(prepared, &options.clone().folder(&half))?.write_state(options.service)?;
    fs::rename(&half, &folder).map_err(told(&folder.display()))?;
    fs::write(state.with_extension("mark"), mark).map_err(told(&"a saved guest's mark"))?;
    Ok(Some(folder))
}

/// The disks that a saved guest had mounted, as they were.
fn copy_disks(state: &Path, folder: &Path) -> Result<(), String> {
    for entry in fs::read_dir(state).map_err(told(&state.display()))? {
        let path = entry.map_err(told(&state.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "img") {
            run(Command::new("cp").arg("--sparse=always").arg(&path).arg(folder))?;
        }
    }
    Ok(())
}

/// What the kernel starts from, as the file `initrd` in `folder`.
pub(crate) fn initrd(
    prepared: &Prepared,
    service: Option<Service>,
    disks: bool,
    folder: &Path,
) -> io::Result<()> {
    let mut parts = vec![prepared.initramfs.clone(), prepared.agent.clone()];
    if let Some(service) = service {
        let overlay = folder.join("overlay.cpio");
        service.overlay(&overlay, disks)?;
        parts.push(overlay);
    }
    let mut joined = File::create(folder.join("initrd"))?;
    for part in parts {
        io::copy(&mut File::open(part)?, &mut joined)?;
    }
    Ok(())
}

pub(crate) fn take_slot(folder: &Path) -> io::Result<Flock<File>> {
    loop {
        for number in 0..GUESTS {
            let file = File::create(folder.join(format!("slot{number}")))?;
            if let Ok(slot) = Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                return Ok(slot);
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A disk of some MiB, formatted unless it is there from an earlier guest.
pub(crate) fn scratch(folder: &Path, name: &str, size: u64, format: &[&str]) -> io::Result<PathBuf> {
    let path = folder.join(format!("{name}.img"));
    if !path.exists() {
        File::create(&path)?.set_len(size * MIB)?;
        if let [program, options @ ..] = format {
            let status = Command::new(program).args(options).arg(&path).stdout(Stdio::null()).status()?;
            assert!(status.success(), "{program} fails");
        }
    }
    Ok(path)
}

pub(crate) fn tail(folder: &Path) -> String {
    let text =
        |name: &str| String::from_utf8_lossy(&fs::read(folder.join(name)).unwrap_or_default()).into_owned();
    let console = text("console");
    let lines: Vec<&str> = console.lines().collect();
    let last = lines.get(lines.len().saturating_sub(30)..).unwrap_or_default().join("\n");
    format!("console:\n{last}\nQEMU:\n{}", text("qemu.log"))
}

fn arguments(
    prepared: &Prepared,
    options: &Options,
    folder: &Path,
    state: Option<&Path>,
) -> io::Result<Vec<String>> {
    let socket = |id: &str| format!("socket,id={id},path={},server=on,wait=off", folder.join(id).display());
    let kernel = if options.bzimage { &prepared.bzimage } else { &prepared.kernel };
    let mut line = "console=ttyS0 quiet panic=-1 cryptomgr.notests random.trust_cpu=on".to_owned();
    let mut arguments: Vec<String> = [
        "-M pc -accel tcg -cpu max -nodefaults -no-user-config -display none -no-reboot",
        "-device virtio-serial-pci,id=ports",
    ]
    .join(" ")
    .split(' ')
    .map(str::to_owned)
    .collect();
    let mut add = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
    add("-smp", options.processors.clone());
    add("-m", options.memory.clone());
    add("-kernel", kernel.display().to_string());
    add("-initrd", state.unwrap_or(folder).join("initrd").display().to_string());
    add("-serial", format!("file:{}", folder.join("console").display()));
    add("-qmp", format!("unix:{},server=on,wait=off", folder.join("qmp").display()));
    add("-chardev", socket("agent"));
    if options.serial {
        add("-serial", "chardev:agent".to_owned());
    } else {
        add(
            "-device",
            "virtserialport,bus=ports.0,nr=1,id=agentport,chardev=agent,name=org.qemu.guest_agent.0"
                .to_owned(),
        );
    }
    add("-chardev", socket("shell"));
    add("-device", "virtserialport,bus=ports.0,nr=2,chardev=shell,name=vm.shell".to_owned());
    for (name, number) in options.ports.iter().zip(3..) {
        add("-chardev", socket(name));
        add("-device", format!("virtserialport,bus=ports.0,nr={number},chardev={name},name={name}"));
    }
    let mut disk = |name: &str, size: u64, format: &[&str]| -> io::Result<()> {
        let path = scratch(folder, name, size, format)?;
        let drive =
            format!("if=none,id={name},file={},format=raw,cache=unsafe,discard=unmap", path.display());
        arguments.extend(["-drive".to_owned(), drive]);
        arguments.extend(["-device".to_owned(), format!("virtio-blk-pci,drive={name},serial={name}")]);
        Ok(())
    };
    if options.disks {
        line += " vm.disks";
        disk("ext4", 256, &["mkfs.ext4", "-q"])?;
        disk("xfs", 320, &["mkfs.xfs", "-q"])?;
        if options.service.is_none() {
            disk("lvm", 128, &[])?;
        }
    }
    if options.swap {
        line += " vm.swap";
        disk("swap", 768, &["mkswap"])?;
    }
    if options.service.is_some() {
        line += " vm.systemd";
        // What a guest that is saved has written is on a layer of its own, and only read by those restored from it.
        let layer = state.unwrap_or(folder).join("root.qcow2");
        let image = match layer.exists() {
            true => format!("file={},format=qcow2", layer.display()),
            false => format!("file={},format=raw", prepared.disk.display()),
        };
        let written = if layer.exists() && state.is_none() { "off" } else { "on" };
        let drive = format!("if=none,id=root,{image},snapshot={written},cache=unsafe");
        arguments.extend(["-drive".to_owned(), drive]);
        arguments.extend(["-device".to_owned(), "virtio-blk-pci,drive=root,serial=root".to_owned()]);
    }
    arguments.extend(["-append".to_owned(), line]);
    arguments.extend(options.extra.iter().cloned());
    if let Some(state) = state {
        let from = format!("exec:cat '{}'", state.join("state").display());
        arguments.extend(["-incoming".to_owned(), from]);
    }
    Ok(arguments)
}

impl Guest {
    /// The host's end of a port of [`Options::port`].
    ///
    /// # Panics
    /// If there is no such port.
    pub fn port(&self, name: &str) -> Agent {
        Agent::connect(self.folder.join(name)).unwrap_or_else(|error| panic!("port {name}: {error}"))
    }
}
