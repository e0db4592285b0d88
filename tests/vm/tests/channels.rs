//! The agent on real ports of a real guest.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may end where it fails")]

use vm::{Guest, Options};

#[test]
fn a_guest_answers_a_ping_over_its_virtio_port() {
    let Some(mut guest) = Guest::with(Options::default()) else { return };
    guest.start_portreeve(&[]);
    assert_eq!(guest.agent.call("guest-ping", ()).unwrap(), serde_json::json!({}));
}
