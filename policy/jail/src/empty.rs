//! Namespaces that hold nothing, made once by the spawner for all that shall have nothing.
//!
//! Runs in the spawner, as root, single-threaded. Trusts nobody. Whoever is in them shares them with others who cannot use
//! them either: the root is empty and read-only, and a filter without socket(2), shmget(2) or mount(2) comes after. Making them
//! for each process anew costs the kernel 90 KiB and as much time as two execs.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{chdir, chroot, fchdir, pivot_root};

/// The descriptors that [`Empty::root`] has in a process that is born with it; [`enter`](crate::enter) goes there and closes them.
pub const BORN_WITH: [i32; 3] = [12, 13, 14];

/// What [`Empty::root`] holds, in its order.
pub(crate) const KINDS: [CloneFlags; 3] =
    [CloneFlags::CLONE_NEWNS, CloneFlags::CLONE_NEWIPC, CloneFlags::CLONE_NEWUTS];

/// Namespaces with nothing in them. They live as long as these descriptors or a process in them.
#[derive(Debug)]
pub struct Empty {
    /// A network without an interface that is up.
    pub network: OwnedFd,
    /// Mounts: one empty read-only tmpfs. System V IPC and POSIX message queues: none. Names: a copy of the system's.
    pub root: [OwnedFd; 3],
}

impl Empty {
    /// Makes them and comes back: root, working directory and network of the caller are then what they were.
    ///
    /// # Errors
    /// What the kernel refuses, with the caller where it was: without CAP_SYS_ADMIN nobody makes a namespace.
    ///
    /// # Panics
    /// If there is no way back: a channel that is opened in the wrong network would listen where nobody is.
    pub fn make() -> io::Result<Self> {
        let of = |name: &str| File::open(format!("/proc/self/ns/{name}")).map(OwnedFd::from);
        let all = || -> io::Result<[OwnedFd; 4]> { Ok([of("net")?, of("mnt")?, of("ipc")?, of("uts")?]) };
        let place =
            |path: &str| open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
        let (own, root, folder) = (all()?, place("/")?, place(".")?);
        unshare(KINDS.into_iter().fold(CloneFlags::CLONE_NEWNET, |all, kind| all | kind))?;
        let made = all().and_then(|made| {
            empty_root()?;
            Ok(made)
        });
        let back = || -> nix::Result<()> {
            for (namespace, kind) in own.iter().zip([CloneFlags::CLONE_NEWNET].into_iter().chain(KINDS)) {
                setns(namespace, kind)?;
            }
            // Into another mount namespace one comes at its very root, setns(2), which is not where one was after a chroot(2).
            fchdir(&root)?;
            chroot(".")?;
            fchdir(&folder)
        };
        let back = back();
        assert!(back.is_ok(), "cannot go back to the host's namespaces: {back:?}");
        let [network, mnt, ipc, uts] = made?;
        Ok(Self { network, root: [mnt, ipc, uts] })
    }
}

/// Makes an empty read-only tmpfs the root and lets go of everything else; `pivot_root(2)`, "pivot_root(".", ".")".
pub(crate) fn empty_root() -> nix::Result<()> {
    const NONE: Option<&str> = None;
    let locked = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    // /proc is the one directory that is there for sure: who comes here has just read it.
    mount(Some("empty"), "/proc", Some("tmpfs"), locked, Some("size=4k,nr_inodes=2,mode=0555"))?;
    chdir("/proc")?;
    match pivot_root(".", ".") {
        Ok(()) => umount2(".", MntFlags::MNT_DETACH)?,
        // The initial ramfs cannot be left, `pivot_root(2)`; a guest may live in it. Laid over it, the empty root hides it for
        // good: there is no right to change roots or mounts any more when this process hears its first byte.
        Err(nix::errno::Errno::EINVAL) => {
            mount(Some("."), "/", NONE, MsFlags::MS_MOVE, NONE)?;
            chroot(".")?;
        }
        Err(errno) => return Err(errno),
    }
    chdir("/")?;
    mount(NONE, "/", NONE, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | locked, NONE)
}
