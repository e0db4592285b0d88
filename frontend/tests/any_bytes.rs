//! Whatever the host writes: no panic, bounded output, and how it is cut makes no difference.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may end where it fails")]

mod fake;

use fake::Fake;
use proptest::prelude::*;
use proto::Dialect::{Phoenix, Qga};
use proto::message::FromFrontend;

fn fragments() -> impl Strategy<Value = Vec<u8>> {
    const PARTS: &[&str] = &[
        "{\"execute\":\"guest-ping\"}",
        "{'execute':'guest-sync','arguments':{'id':5}}",
        "{\"execute\":\"guest-file-flush\",\"arguments\":{\"handle\":1}}",
        "{\"execute\":\"guest-file-write\",\"arguments\":{\"handle\":1,\"buf-b64\":\"aGk=\"}}",
        "{\"execute\":\"ping\",\"tag\":\"é\"}",
        "{\"execute\":\"file-stat\",\"arguments\":{\"path\":5},\"tag\":\"t\"}",
        "{\"execute\":\"file-stat\",\"tag\":\"t\"}",
        "{\"execute\":",
        "\"id\":",
        "[[[",
        "]]",
        "}",
        "\n",
        " 1e5 ",
        "\"\\u00",
        "'",
    ];
    let part = prop_oneof![
        4 => proptest::sample::select(PARTS).prop_map(|part| part.as_bytes().to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 1..5),
    ];
    proptest::collection::vec(part, 0..20).prop_map(|parts| parts.concat())
}

/// Everything heard and asked when `input` comes in pieces that end at `cuts`.
fn outcome(dialects: &[proto::Dialect], input: &[u8], cuts: &[usize]) -> (String, Vec<String>) {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (input.len() + 1)).collect();
    ends.extend([0, input.len()]);
    ends.sort_unstable();
    let mut fake = Fake::new(dialects);
    let mut heard = String::new();
    for piece in ends.windows(2) {
        heard += &fake.say(&input[piece[0]..piece[1]]);
    }
    let is_request = |message: &FromFrontend| matches!(message, FromFrontend::Request { .. });
    fake.broker.sent.retain(|(_, message, _)| is_request(message));
    let asked = fake.asked();
    // How many were counted until then, and which dialect's request goes first, depends on what came together.
    let name = |text: &String| {
        text.split(" counts").next().and_then(|text| text.split_once(' ')).map(|(_, name)| name.to_owned())
    };
    let (mut of_qga, of_phoenix): (Vec<_>, Vec<_>) =
        asked.iter().filter_map(name).partition(|name| name.starts_with("guest-"));
    of_qga.extend(of_phoenix);
    fake.leave();
    (heard, of_qga)
}

proptest! {
    #[test]
    fn how_the_bytes_are_cut_makes_no_difference(
        input in fragments(),
        cuts in proptest::collection::vec(any::<usize>(), 0..6),
    ) {
        for dialects in [&[Qga][..], &[Phoenix], &[Qga, Phoenix]] {
            prop_assert_eq!(outcome(dialects, &input, &cuts), outcome(dialects, &input, &[]));
        }
    }

    #[test]
    fn what_is_answered_is_lines_and_not_much_longer_than_what_was_asked(
        input in proptest::collection::vec(any::<u8>(), 0..400),
    ) {
        for dialects in [&[Qga][..], &[Phoenix], &[Qga, Phoenix]] {
            let (heard, _) = outcome(dialects, &input, &[]);
            prop_assert!(heard.is_empty() || heard.ends_with('\n'));
            // One error for each byte; the rest of its text is what was sent, escaped.
            prop_assert!(heard.len() <= 200 * (input.len() + 1));
        }
    }
}
