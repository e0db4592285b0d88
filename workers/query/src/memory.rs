//! Memory: blocks that can be plugged (sysfs), and how much is free (`/proc/meminfo`).

use std::fmt::Write as _;

use proto::Failed;
use proto::query::{MemoryBlock, MemoryBlockInfo};
use rustix::fs::FileType;
use rustix::io::Errno;

use crate::failed;
use crate::root::{Folder, Root, number_after};

// The slash at the end is in the texts of failures.
const FOLDER: &str = "/sys/devices/system/memory/";

/// Every block of memory, in the kernel's order; none where the kernel has no memory hotplug.
///
/// # Errors
/// sysfs refuses, or has not a single block.
pub(crate) fn blocks(root: &Root) -> Result<Vec<MemoryBlock>, Failed> {
    // qemu-ga has no space before the quotation mark.
    let unlisted = |errno| failed(format_args!("Can't open directory\"{FOLDER}\""), errno);
    let folder = match root.folder(FOLDER) {
        Ok(folder) => folder,
        Err(Errno::NOENT) => return Ok(Vec::new()),
        Err(errno) => return Err(unlisted(errno)),
    };
    let numbers = folder
        .entries(|name, kind| (kind == FileType::Directory).then(|| number_after(name, "memory")).flatten())
        .map_err(unlisted)?;
    if numbers.is_empty() {
        return Err(Failed::new("guest reported zero memory blocks!"));
    }
    let mut path = String::new();
    numbers.into_iter().map(|number| block(&folder, number, &mut path)).collect()
}

fn block(folder: &Folder, number: u64, path: &mut String) -> Result<MemoryBlock, Failed> {
    let block =
        |online, can_offline| MemoryBlock { phys_index: number, online, can_offline: Some(can_offline) };
    path.clear();
    write!(path, "memory{number}/state").expect("a string grows");
    let mut state = [0; 16];
    let online = match folder.read(path, &mut state) {
        Ok(state) => state.starts_with(b"online"),
        Err(Errno::NOENT) => return Ok(block(true, false)),
        Err(errno) => return Err(failed("open sysfs file \"state\"", errno)),
    };
    path.clear();
    write!(path, "memory{number}/removable").expect("a string grows");
    let can_offline = match folder.read(path, &mut [0; 8]) {
        Ok([first, ..]) => *first != b'0',
        Ok([]) | Err(_) => false,
    };
    Ok(block(online, can_offline))
}

/// The size of a block.
///
/// # Errors
/// The kernel has no memory hotplug.
pub(crate) fn block_info(root: &Root) -> Result<MemoryBlockInfo, Failed> {
    let mut buffer = [0; 32];
    let size = match root.read("/sys/devices/system/memory/block_size_bytes", &mut buffer) {
        Ok(size) => size,
        Err(errno) => {
            root.folder(FOLDER).map_err(|errno| failed(format_args!("open(\"{FOLDER}\")"), errno))?;
            return Err(failed("open sysfs file \"block_size_bytes\"", errno));
        }
    };
    let size = std::str::from_utf8(size).ok().and_then(|size| u64::from_str_radix(size.trim(), 16).ok());
    // strtoul(3) answers 0 as well.
    Ok(MemoryBlockInfo { size: size.unwrap_or(0) })
}

/// Lines of `/proc/meminfo`, kB; 0 if not there.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct MemInfo {
    pub(crate) total: u64,
    pub(crate) free: u64,
    pub(crate) buffers: u64,
    pub(crate) cached: u64,
}

/// Reads `/proc/meminfo`; see proc(5).
pub(crate) fn parse_meminfo(meminfo: &str) -> MemInfo {
    let mut found = MemInfo::default();
    for line in meminfo.lines() {
        let Some((name, value)) = line.split_once(':') else { continue };
        let place = match name {
            "MemTotal" => &mut found.total,
            "MemFree" => &mut found.free,
            "Buffers" => &mut found.buffers,
            "Cached" => &mut found.cached,
            _ => continue,
        };
        let number = value.split_ascii_whitespace().next();
        *place = number.and_then(|number| number.parse().ok()).unwrap_or(0);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Tree;

    fn memory(phys_index: u64, online: bool, can_offline: bool) -> MemoryBlock {
        MemoryBlock { phys_index, online, can_offline: Some(can_offline) }
    }

    #[test]
    fn each_block_says_whether_it_is_online_and_may_go() {
        let tree = Tree::new()
            .file("/sys/devices/system/memory/memory0/state", "online\n")
            .file("/sys/devices/system/memory/memory0/removable", "1\n")
            .file("/sys/devices/system/memory/memory32/state", "offline\n")
            .file("/sys/devices/system/memory/memory32/removable", "0\n")
            .file("/sys/devices/system/memory/memory33/state", "going-offline\n")
            .folder("/sys/devices/system/memory/memory34")
            .folder("/sys/devices/system/memory/power")
            .file("/sys/devices/system/memory/block_size_bytes", "8000000\n");
        let mut blocks = blocks(&tree.root()).unwrap();
        blocks.sort_by_key(|block| block.phys_index);
        let expected = [
            memory(0, true, true),
            memory(32, false, false),
            memory(33, false, false),
            memory(34, true, false),
        ];
        assert_eq!(blocks, expected);
        assert_eq!(block_info(&tree.root()).unwrap().size, 128 << 20);
    }

    #[test]
    fn a_kernel_without_memory_hotplug_has_no_blocks_and_no_block_size() {
        let root = Tree::new().root();
        assert_eq!(blocks(&root), Ok(Vec::new()));
        assert_eq!(
            block_info(&root).unwrap_err().text,
            "open(\"/sys/devices/system/memory/\"): No such file or directory"
        );
    }

    #[test]
    fn an_empty_folder_is_a_failure_as_in_qemu_ga() {
        let tree = Tree::new().folder("/sys/devices/system/memory/power");
        assert_eq!(blocks(&tree.root()).unwrap_err().text, "guest reported zero memory blocks!");
        assert_eq!(
            block_info(&tree.root()).unwrap_err().text,
            "open sysfs file \"block_size_bytes\": No such file or directory"
        );
        let file = Tree::new().file("/sys/devices/system/memory", "");
        assert_eq!(
            blocks(&file.root()).unwrap_err().text,
            "Can't open directory\"/sys/devices/system/memory/\": Not a directory"
        );
    }

    #[test]
    fn meminfo_is_read_by_name_whatever_the_order() {
        let meminfo = "MemTotal:       24684084 kB\nMemFree:        20566152 kB\nMemAvailable:   23000000 kB\n\
                       Cached:          2664376 kB\nSwapCached:            7 kB\nBuffers:           21920 kB\n";
        let expected = MemInfo { total: 24_684_084, free: 20_566_152, buffers: 21920, cached: 2_664_376 };
        assert_eq!(parse_meminfo(meminfo), expected);
    }
}
