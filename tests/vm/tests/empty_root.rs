//! The root of processes that name no file, in a guest that lives in its initial ramfs, which cannot be left by pivot_root(2).
#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

use vm::{Guest, Options};

#[test]
fn in_an_initial_ramfs_the_empty_root_is_empty_all_the_same() {
    let Some(mut guest) = Guest::with(Options::default()) else { return };
    guest.start_portreeve(&[]);
    guest.agent.call("guest-network-get-interfaces", ()).unwrap();
    // "/" itself and what is laid over it.
    assert!(guest.output("grep ' / / ' /proc/1/mountinfo").contains(" - rootfs "));
    for process in ["broker", "frontend", "net"] {
        let seen = guest.output(&format!("ls -A /proc/$(pidof portreeve-{process})/root/ | wc -l"));
        assert_eq!(seen, "0", "{process}");
    }
}
