//! `guest-set-vcpus`, as `qga/commands-linux.c` has it (`transfer_vcpu`).
//!
//! Runs in the hotplug worker.

use proto::Failed;
use proto::hotplug::Vcpu;
use rustix::io::Errno;

use crate::tree::{Tree, content, file, store};

/// Takes CPUs online and offline, one after the other; returns how many until the first that failed.
///
/// # Errors
/// The first of all failed: only then the client learns why. libvirt asks again with the rest of its list.
pub(crate) fn set(tree: &Tree, wanted: &[Vcpu]) -> Result<i64, Failed> {
    let mut done = 0;
    for cpu in wanted {
        match set_one(tree, cpu) {
            Ok(()) => done += 1,
            Err(failed) if done == 0 => return Err(failed),
            Err(_) => break,
        }
    }
    Ok(done)
}

fn set_one(tree: &Tree, cpu: &Vcpu) -> Result<(), Failed> {
    let folder = format!("/sys/devices/system/cpu/cpu{}/", cpu.logical_id);
    let failed = |what: &str, name: &str, errno: Errno| {
        Failed::system(format_args!("{what}(\"{folder}{name}\")"), errno.raw_os_error())
    };
    let opened = tree.folder(&folder).map_err(|errno| failed("open", "", errno))?;
    let online = match file(&opened, "online") {
        Ok(online) => online,
        // A CPU without this file is always online.
        Err(Errno::NOENT) if cpu.online => return Ok(()),
        Err(Errno::NOENT) => {
            return Err(Failed::new(format!("logical processor #{} can't be offlined", cpu.logical_id)));
        }
        Err(errno) => return Err(failed("open", "/online", errno)),
    };
    let now = content(&online).map_err(|errno| failed("pread", "/online", errno))?;
    let is_online = now.first().is_some_and(|first| *first != b'0');
    if is_online == cpu.online {
        return Ok(());
    }
    store(&online, if cpu.online { b"1" } else { b"0" }).map_err(|errno| failed("pwrite", "/online", errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(cpus: &[(u32, Option<&str>)]) -> (tempfile::TempDir, Tree) {
        let root = tempfile::tempdir().unwrap();
        for (number, online) in cpus {
            let folder = root.path().join(format!("sys/devices/system/cpu/cpu{number}"));
            std::fs::create_dir_all(&folder).unwrap();
            if let Some(online) = online {
                std::fs::write(folder.join("online"), online).unwrap();
            }
        }
        let tree = Tree::at(root.path());
        (root, tree)
    }

    fn cpu(logical_id: i64, online: bool) -> Vcpu {
        Vcpu { logical_id, online, can_offline: None }
    }

    fn state(root: &tempfile::TempDir, number: u32) -> u8 {
        let path = root.path().join(format!("sys/devices/system/cpu/cpu{number}/online"));
        *std::fs::read(path).unwrap().last().unwrap()
    }

    #[test]
    fn what_can_be_done_before_the_first_failure_is_done_and_counted() {
        let (root, tree) = tree(&[(0, None), (1, Some("1")), (2, Some("1"))]);
        assert_eq!(set(&tree, &[cpu(1, false), cpu(0, false), cpu(2, false)]), Ok(1));
        assert_eq!((state(&root, 1), state(&root, 2)), (b'0', b'1'));
    }

    #[test]
    fn a_failure_of_the_first_is_told() {
        let (_root, tree) = tree(&[(0, None)]);
        let text = |cpu| set(&tree, &[cpu]).unwrap_err().text;
        assert_eq!(text(cpu(0, false)), "logical processor #0 can't be offlined");
        assert_eq!(text(cpu(7, true)), "open(\"/sys/devices/system/cpu/cpu7/\"): No such file or directory");
        assert_eq!(
            text(cpu(-1, true)),
            "open(\"/sys/devices/system/cpu/cpu-1/\"): No such file or directory"
        );
    }

    #[test]
    fn a_cpu_that_cannot_go_offline_is_online_when_asked_to_be() {
        let (_root, tree) = tree(&[(0, None)]);
        assert_eq!(set(&tree, &[cpu(0, true)]), Ok(1));
    }

    #[test]
    fn nothing_is_written_to_what_is_as_it_should_be_and_an_empty_list_is_nothing() {
        let (root, tree) = tree(&[(1, Some("1"))]);
        let path = root.path().join("sys/devices/system/cpu/cpu1/online");
        assert_eq!(set(&tree, &[cpu(1, true)]), Ok(1));
        assert_eq!(std::fs::read(path).unwrap(), b"1");
        assert_eq!(set(&tree, &[]), Ok(0));
    }
}
