//! What a taken-over process would try to get out, and what came of it, one line each.

use std::ffi::CString;
use std::fmt::Write as _;
use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;

use jail::Role;

use crate::Probe;
use crate::raw::{Call, call, describe};

/// fchmodat2 and others newer than some tables of the libc crate; the numbers are the same on all architectures.
const OPEN_TREE: i64 = 428;
const FSOPEN: i64 = 430;
const PIDFD_GETFD: i64 = 438;
const FCHMODAT2: i64 = 452;

const HERE: u64 = libc::AT_FDCWD.cast_unsigned() as u64;
const O_TMPFILE: u64 = libc::O_TMPFILE as u64;

/// linux/openat2.h, `struct open_how`.
#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

/// Tries everything. `pids` are those of another role's process and of the spawner.
///
/// In a jail with its filter, `filter` means that the filter has refused it, as its list says; `HOLE` would be a call that the
/// list does not have and that reached the kernel.
pub(crate) fn try_all(probe: &Probe, pids: &str) -> String {
    let (other, spawner) = pids.split_once(' ').unwrap();
    let (other_pid, spawner_pid): (u64, u64) = (other.parse().unwrap(), spawner.parse().unwrap());
    let mut table = Table { probe, text: String::new() };
    let folder = |name: &str| CString::new(probe.folder.join(name).as_os_str().as_bytes()).unwrap();
    let outside = folder("outside/file");
    let inside = folder("allowed/file");
    let listener = folder("listener");
    let of_other = |name: &str| CString::new(format!("/proc/{other}/{name}")).unwrap();
    let memory = of_other("mem");
    let descriptors = of_other("fd/3");

    // Files by path.
    let files = [
        ("read /etc/shadow", c"/etc/shadow".to_owned(), libc::O_RDONLY),
        ("read a file outside", outside.clone(), libc::O_RDONLY),
        ("write a file outside", outside.clone(), libc::O_WRONLY),
        ("truncate a file outside", outside.clone(), libc::O_WRONLY | libc::O_TRUNC),
        (
            "create a file in /",
            c"/portreeve-escape".to_owned(),
            libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL,
        ),
        ("write core_pattern", c"/proc/sys/kernel/core_pattern".to_owned(), libc::O_WRONLY),
        ("write /dev/kmsg", c"/dev/kmsg".to_owned(), libc::O_WRONLY),
        ("read another role's memory", memory.clone(), libc::O_RDONLY),
        ("write another role's memory", memory, libc::O_RDWR),
        ("open another role's descriptor 3", descriptors, libc::O_RDWR),
    ];
    for (name, path, flags) in &files {
        let flags = u64::from((flags | libc::O_CLOEXEC).unsigned_abs());
        let how =
            OpenHow { flags, mode: if flags & libc::O_CREAT as u64 == 0 { 0 } else { 0o600 }, resolve: 0 };
        table.attempt(&format!("{name} (openat)"), libc::SYS_openat, [HERE, text(path), flags, 0o600]);
        table.attempt(
            &format!("{name} (openat2)"),
            libc::SYS_openat2,
            [HERE, text(path), address(&how), size_of::<OpenHow>() as u64],
        );
    }
    table.attempt(
        "make a file without a name in / (openat)",
        libc::SYS_openat,
        [HERE, text(c"/"), O_TMPFILE | libc::O_WRONLY as u64, 0o600],
    );

    // Metadata and names by path, which Landlock does not see or sees only in part.
    table.attempt("chmod by path", libc::SYS_fchmodat, [HERE, text(&outside), 0o644]);
    table.attempt("chmod by an empty path", FCHMODAT2, [0, text(c""), 0o666, libc::AT_EMPTY_PATH as u64]);
    table.attempt("chown by path", libc::SYS_fchownat, [HERE, text(&outside), 0, 0, 0]);
    let nobody = u64::from(u32::MAX);
    table.attempt(
        "chown by an empty path",
        libc::SYS_fchownat,
        [0, text(c""), nobody, nobody, libc::AT_EMPTY_PATH as u64],
    );
    table.attempt("utimes by path", libc::SYS_utimensat, [HERE, text(&outside), 0, 0]);
    table.attempt(
        "setxattr by path",
        libc::SYS_setxattr,
        [text(&outside), text(c"user.portreeve"), text(c"x"), 1, 0],
    );
    table.attempt("truncate by path", libc::SYS_truncate, [text(&outside), 0]);
    let target = folder("outside/new");
    table.attempt("mkdir outside", libc::SYS_mkdirat, [HERE, text(&target), 0o700]);
    table.attempt("unlink outside", libc::SYS_unlinkat, [HERE, text(&outside), 0]);
    table.attempt("symlink outside", libc::SYS_symlinkat, [text(c"/etc/shadow"), HERE, text(&target)]);
    table.attempt(
        "link inside to a file outside",
        libc::SYS_linkat,
        [HERE, text(&outside), HERE, text(&folder("allowed/link")), 0],
    );
    table.attempt("rename out", libc::SYS_renameat2, [HERE, text(&inside), HERE, text(&target), 0]);
    let device = u64::from(libc::S_IFCHR) | 0o600;
    table.attempt("make a device", libc::SYS_mknodat, [HERE, text(&folder("allowed/device")), device, 0x103]);
    let mut handle = Handle { bytes: 128, kind: 0, content: [0; 128] };
    let mut mount = 0_i32;
    table.attempt(
        "name a file by handle",
        libc::SYS_name_to_handle_at,
        [HERE, text(&outside), address_mut(&mut handle), address_mut(&mut mount), 0],
    );
    table.attempt("open a file by handle", libc::SYS_open_by_handle_at, [HERE, address(&handle), 0]);

    // Mounts and namespaces.
    let tmpfs = c"tmpfs";
    table.attempt("mount", libc::SYS_mount, [text(tmpfs), text(c"/"), text(tmpfs), 0, 0]);
    table.attempt("bind mount", libc::SYS_mount, [text(c"/"), text(c"/"), 0, libc::MS_BIND, 0]);
    table.attempt("umount", libc::SYS_umount2, [text(c"/"), 0]);
    table.attempt("open_tree", OPEN_TREE, [HERE, text(c"/"), 1]);
    table.attempt("fsopen", FSOPEN, [text(tmpfs), 0]);
    table.attempt("pivot_root", libc::SYS_pivot_root, [text(c"/"), text(c"/")]);
    table.attempt("chroot", libc::SYS_chroot, [text(c"/")]);
    table.attempt("setns", libc::SYS_setns, [0, 0]);
    table.attempt("unshare the network", libc::SYS_unshare, [libc::CLONE_NEWNET as u64]);

    // Other processes.
    table.attempt("signal another role", libc::SYS_kill, [other_pid, 0]);
    table.attempt("signal the spawner", libc::SYS_kill, [spawner_pid, 0]);
    table.attempt("tgkill another role", libc::SYS_tgkill, [other_pid, other_pid, 0]);
    let pidfd = table.attempt("pidfd of another role", libc::SYS_pidfd_open, [other_pid, 0]);
    let pidfd = pidfd.map_or(u64::MAX, |number| number as u64);
    table.attempt("signal another role by pidfd", libc::SYS_pidfd_send_signal, [pidfd, 0, 0, 0]);
    table.attempt("take another role's descriptor", PIDFD_GETFD, [pidfd, 3, 0]);
    table.attempt("ptrace another role", libc::SYS_ptrace, [u64::from(libc::PTRACE_ATTACH), other_pid, 0, 0]);
    let mut byte = 0_u8;
    let local = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let remote = libc::iovec { iov_base: 0x40_0000 as *mut _, iov_len: 1 };
    for (name, number) in [
        ("read another role's memory by process_vm_readv", libc::SYS_process_vm_readv),
        ("write another role's memory by process_vm_writev", libc::SYS_process_vm_writev),
    ] {
        table.attempt(name, number, [other_pid, address(&local), 1, address(&remote), 1, 0]);
    }
    let mut limit = [0_u64; 2];
    table.attempt(
        "look at another role's limits",
        libc::SYS_prlimit64,
        [other_pid, u64::from(libc::RLIMIT_NOFILE), 0, address_mut(&mut limit)],
    );
    table.attempt("make a process (clone)", libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0, 0, 0]);
    table.attempt(
        "make a process (clone3)",
        libc::SYS_clone3,
        [address(&[0_u64, 0, 0, 0, libc::SIGCHLD as u64, 0, 0, 0]), 64],
    );
    table.attempt("wait for a process", libc::SYS_wait4, [u64::MAX, 0, libc::WNOHANG as u64, 0]);

    // Programs and code.
    let list = [0_u64];
    table.attempt("exec a program", libc::SYS_execve, [text(c"/bin/true"), address(&list), address(&list)]);
    let image = table.attempt("make a memory file", libc::SYS_memfd_create, [text(c"x"), 0]);
    let image = image.map_or(u64::MAX, |number| number as u64);
    table.attempt(
        "exec a memory file",
        libc::SYS_execveat,
        [image, text(c""), address(&list), address(&list), libc::AT_EMPTY_PATH as u64],
    );
    let private = u64::from((libc::MAP_PRIVATE | libc::MAP_ANONYMOUS).unsigned_abs());
    let all = u64::from((libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC).unsigned_abs());
    table.attempt("map writable code", libc::SYS_mmap, [0, 4096, all, private, u64::MAX, 0]);
    let page = call(Call { number: libc::SYS_mmap as u64, arguments: [0, 4096, 3, private, u64::MAX, 0] });
    let page = page.map_or(0, |place| place as u64);
    let code = u64::from((libc::PROT_READ | libc::PROT_EXEC).unsigned_abs());
    table.attempt("make data code", libc::SYS_mprotect, [page, 4096, code]);
    table.attempt("map code", libc::SYS_mmap, [0, 4096, code, private, u64::MAX, 0]);

    // Sockets.
    let unix = table.attempt(
        "make a unix socket",
        libc::SYS_socket,
        [libc::AF_UNIX as u64, libc::SOCK_STREAM as u64, 0],
    );
    let unix = unix.map_or(u64::MAX, |number| number as u64);
    table.connect_to("connect to a socket in a folder", unix, listener.as_bytes());
    let hidden = format!("\0portreeve-test-{other}");
    table.bind_to("bind an abstract socket", unix, hidden.as_bytes());
    let second = call(Call { number: libc::SYS_socket as u64, arguments: [1, 1, 0, 0, 0, 0] });
    // The test listens there. Where the network is another, the name is as well.
    let name = [b"\0", probe.folder.file_name().unwrap_or_default().as_bytes()].concat();
    table.connect_to("connect to an abstract socket", second.map_or(u64::MAX, |number| number as u64), &name);
    let inet = table.attempt(
        "make an internet socket",
        libc::SYS_socket,
        [libc::AF_INET as u64, libc::SOCK_STREAM as u64, 0],
    );
    let inet = inet.map_or(u64::MAX, |number| number as u64);
    // 127.0.0.1, port 9.
    let local = libc::sockaddr_in {
        sin_family: 2,
        sin_port: 9_u16.to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes([127, 0, 0, 1]) },
        sin_zero: [0; 8],
    };
    table.attempt("bind a port", libc::SYS_bind, [inet, address(&local), 16]);
    table.attempt("connect to a port", libc::SYS_connect, [inet, address(&local), 16]);
    table.attempt("make a raw socket", libc::SYS_socket, [libc::AF_INET as u64, libc::SOCK_RAW as u64, 1]);
    table.attempt(
        "make a packet socket",
        libc::SYS_socket,
        [libc::AF_PACKET as u64, libc::SOCK_RAW as u64, 0],
    );
    if let Some(netlink) = &probe.netlink {
        table.netlink_change("change a link that is not there", netlink.as_raw_fd());
    }

    // The kernel as a whole.
    let time = [0_u64, 0];
    // Whose work it is could do it.
    if probe.role != Role::Clock {
        table.attempt("set the clock", libc::SYS_clock_settime, [0, address(&time)]);
    }
    table.attempt("step the clock", libc::SYS_settimeofday, [address(&time), 0]);
    table.attempt("set the host name", libc::SYS_sethostname, [text(c"escaped"), 7]);
    table.attempt("reboot", libc::SYS_reboot, [0, 0, 0, 0]);
    table.forbidden("load a module", libc::SYS_finit_module, [u64::MAX, text(c""), 0]);
    table.forbidden("load a kernel", libc::SYS_kexec_load, [0, 0, 0, 0xffff_0000]);
    table.forbidden("swap", libc::SYS_swapon, [text(c"/nowhere"), 0]);
    table.forbidden("bpf", libc::SYS_bpf, [0, 0, 0]);
    table.forbidden("perf", libc::SYS_perf_event_open, [0, 0, 0, 0, 0]);
    table.forbidden("io_uring", libc::SYS_io_uring_setup, [0, 0]);
    table.forbidden("userfaultfd", libc::SYS_userfaultfd, [u64::MAX]);
    table.forbidden("add a key", libc::SYS_add_key, [0, 0, 0, 0, 0]);
    table.forbidden("read the kernel's log", libc::SYS_syslog, [3, address_mut(&mut byte), 1]);

    // Its own jail.
    table.attempt("become root", libc::SYS_setresuid, [0, 0, 0]);
    table.attempt("join root's group", libc::SYS_setgroups, [1, address(&[0_u32])]);
    let header: [u32; 2] = [0x2008_0522, 0];
    let all_sets = [u32::MAX; 6];
    table.attempt("take all capabilities", libc::SYS_capset, [address(&header), address(&all_sets)]);
    let nothing = [0_u64; 3];
    let ambient = [libc::PR_CAP_AMBIENT as u64, libc::PR_CAP_AMBIENT_RAISE as u64, 21, 0, 0];
    table.attempt("raise an ambient capability", libc::SYS_prctl, ambient);
    table.attempt("unlock the securebits", libc::SYS_prctl, [libc::PR_SET_SECUREBITS as u64, 0]);
    table.attempt("take back no_new_privs", libc::SYS_prctl, [libc::PR_SET_NO_NEW_PRIVS as u64, 0, 0, 0, 0]);
    table.attempt(
        "take back memory-deny-write-execute",
        libc::SYS_prctl,
        [libc::PR_SET_MDWE as u64, 0, nothing[0], nothing[1], nothing[2]],
    );
    table.attempt(
        "raise a limit",
        libc::SYS_prlimit64,
        [0, u64::from(libc::RLIMIT_NPROC), address(&[100_u64, 100]), 0],
    );
    table.forbidden("unshare the users", libc::SYS_unshare, [libc::CLONE_NEWUSER as u64]);
    table.text
}

struct Table<'a> {
    probe: &'a Probe,
    text: String,
}

impl Table<'_> {
    /// Makes a call and writes down what came of it.
    fn attempt<const COUNT: usize>(&mut self, name: &str, number: i64, given: [u64; COUNT]) -> Option<usize> {
        let mut arguments = [0; 6];
        for (place, argument) in arguments.iter_mut().zip(given) {
            *place = argument;
        }
        let result = call(Call { number: number.cast_unsigned(), arguments });
        if matches!(result, Ok(0)) && matches!(number, libc::SYS_clone | libc::SYS_clone3) {
            // The new process.
            jail::exit_now(0);
        }
        let outcome = self.judge(number, arguments, &result);
        writeln!(self.text, "{name}: {outcome}").unwrap();
        result.ok()
    }

    /// Where only the filter counts: without it the answer depends on how the kernel was built.
    fn forbidden<const COUNT: usize>(&mut self, name: &str, number: i64, given: [u64; COUNT]) {
        if self.probe.filtered {
            self.attempt(name, number, given);
        } else {
            writeln!(self.text, "{name}: (not tried)").unwrap();
        }
    }

    fn judge(&self, number: i64, arguments: [u64; 6], result: &io::Result<usize>) -> String {
        let came = describe(result);
        let listed = jail::probe::rules(self.probe.role).iter().any(|rule| {
            let holds = |condition: &jail::seccomp::Condition| {
                condition.holds(arguments[usize::from(condition.argument)])
            };
            rule.number == number && rule.conditions.iter().all(holds)
        });
        match (self.probe.filtered, listed, came.as_str()) {
            (true, false, "EPERM") => "filter".to_owned(),
            (true, false, _) => format!("HOLE, {came}"),
            // As far as the filesystem: it has no attributes of users.
            (_, _, "EOPNOTSUPP") => "ok".to_owned(),
            _ => came,
        }
    }

    fn connect_to(&mut self, name: &str, socket: u64, path: &[u8]) {
        let (address_of, length) = unix_address(path);
        self.attempt(name, libc::SYS_connect, [socket, address(&address_of), length]);
    }

    fn bind_to(&mut self, name: &str, socket: u64, path: &[u8]) {
        let (address_of, length) = unix_address(path);
        self.attempt(name, libc::SYS_bind, [socket, address(&address_of), length]);
    }

    /// RTM_SETLINK for an interface that does not exist: EPERM without CAP_NET_ADMIN, ENODEV with it. The kernel's own answer is
    /// what counts, not that of sendto.
    fn netlink_change(&mut self, name: &str, socket: i32) {
        // nlmsghdr: length, type RTM_SETLINK, flags REQUEST|ACK, sequence, port; ifinfomsg: family, index, flags, change.
        let mut message = [0_u8; 32];
        message[0] = 32;
        message[4] = 19;
        message[6] = 5;
        message[20..24].copy_from_slice(&0x7fff_fff0_u32.to_ne_bytes());
        let sent = [u64::from(socket.cast_unsigned()), address(&message), 32, 0, 0, 0];
        let result = call(Call { number: libc::SYS_sendto as u64, arguments: sent });
        let mut answer = [0_u8; 256];
        let receive = [u64::from(socket.cast_unsigned()), address_mut(&mut answer), 256, 0, 0, 0];
        let received = call(Call { number: libc::SYS_recvfrom as u64, arguments: receive });
        let outcome = match (result, received) {
            (Ok(32), Ok(length)) if length >= 20 => {
                let code = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
                if code == 0 {
                    "ok".to_owned()
                } else {
                    format!("the kernel answers {:?}", nix::errno::Errno::from_raw(-code))
                }
            }
            (result, received) => format!("{}, {}", describe(&result), describe(&received)),
        };
        writeln!(self.text, "{name}: {outcome}").unwrap();
    }
}

/// linux/fs.h, `struct file_handle` with room for 128 bytes.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    content: [u8; 128],
}

fn unix_address(path: &[u8]) -> (libc::sockaddr_un, u64) {
    let mut filled = libc::sockaddr_un { sun_family: 1, sun_path: [0; 108] };
    for (place, byte) in filled.sun_path.iter_mut().zip(path) {
        *place = byte.cast_signed();
    }
    (filled, 2 + path.len() as u64)
}

fn text(path: &std::ffi::CStr) -> u64 {
    path.as_ptr() as u64
}

fn address<T>(value: &T) -> u64 {
    std::ptr::from_ref(value) as u64
}

fn address_mut<T>(value: &mut T) -> u64 {
    std::ptr::from_mut(value) as u64
}
