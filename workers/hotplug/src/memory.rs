//! `guest-set-memory-blocks`, as `qga/commands-linux.c` has it (`transfer_memory_block`).
//!
//! Runs in the hotplug worker.

use proto::hotplug::{MemoryBlock, MemoryBlockResponse, MemoryBlockResult};
use rustix::io::Errno;

use crate::tree::{Tree, content, file, store};

const FOLDER: &str = "/sys/devices/system/memory/";

/// Takes memory blocks online and offline, with a result for each.
pub(crate) fn set(tree: &Tree, wanted: &[MemoryBlock]) -> Vec<MemoryBlockResult> {
    let result = |block: &MemoryBlock| {
        let (response, error_code) = match set_one(tree, block) {
            Ok(()) => (MemoryBlockResponse::Success, None),
            Err((response, errno)) => (response, Some(errno.raw_os_error())),
        };
        MemoryBlockResult { phys_index: block.phys_index, response, error_code }
    };
    wanted.iter().map(result).collect()
}

fn set_one(tree: &Tree, block: &MemoryBlock) -> Result<(), (MemoryBlockResponse, Errno)> {
    use MemoryBlockResponse::{NotFound, OperationFailed, OperationNotSupported};
    let folder = match tree.folder(&format!("{FOLDER}memory{}", block.phys_index)) {
        Ok(folder) => folder,
        // Without the folder above, this kernel has no memory blocks at all.
        Err(Errno::NOENT) if tree.folder(FOLDER).is_ok() => return Err((NotFound, Errno::NOENT)),
        Err(Errno::NOENT) => return Err((OperationNotSupported, Errno::NOENT)),
        Err(errno) => return Err((OperationFailed, errno)),
    };
    let state = match file(&folder, "state") {
        Ok(state) => state,
        // A block without this file is always online.
        Err(Errno::NOENT) if block.online => return Ok(()),
        Err(Errno::NOENT) => return Err((OperationNotSupported, Errno::NOENT)),
        Err(errno) => return Err((OperationFailed, errno)),
    };
    let now = content(&state).map_err(|errno| (OperationFailed, errno))?;
    if now.starts_with(b"online") == block.online {
        return Ok(());
    }
    let word: &[u8] = if block.online { b"online" } else { b"offline" };
    store(&state, word).map_err(|errno| (OperationFailed, errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(phys_index: u64, online: bool) -> MemoryBlock {
        MemoryBlock { phys_index, online, can_offline: None }
    }

    #[test]
    fn every_block_has_its_own_result_and_a_failure_stops_nothing() {
        let root = tempfile::tempdir().unwrap();
        for (number, state) in [(32, Some("offline\n")), (33, Some("online\n")), (34, None)] {
            let folder = root.path().join(format!("sys/devices/system/memory/memory{number}"));
            std::fs::create_dir_all(&folder).unwrap();
            if let Some(state) = state {
                std::fs::write(folder.join("state"), state).unwrap();
            }
        }
        let tree = Tree::at(root.path());
        let results = set(
            &tree,
            &[block(99, true), block(32, true), block(33, true), block(34, false), block(34, true)],
        );
        let short: Vec<_> =
            results.iter().map(|one| (one.phys_index, one.response, one.error_code)).collect();
        assert_eq!(
            short,
            [
                (99, MemoryBlockResponse::NotFound, Some(2)),
                (32, MemoryBlockResponse::Success, None),
                (33, MemoryBlockResponse::Success, None),
                (34, MemoryBlockResponse::OperationNotSupported, Some(2)),
                (34, MemoryBlockResponse::Success, None),
            ]
        );
        let state =
            std::fs::read_to_string(root.path().join("sys/devices/system/memory/memory32/state")).unwrap();
        assert!(state.ends_with("online"), "{state}");
    }

    #[test]
    fn a_kernel_without_memory_blocks_supports_no_operation() {
        let root = tempfile::tempdir().unwrap();
        let results = set(&Tree::at(root.path()), &[block(0, false)]);
        assert_eq!(results[0].response, MemoryBlockResponse::OperationNotSupported);
    }
}
