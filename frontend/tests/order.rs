//! Order, abandonment, pieces: what the session does between a host and a broker. docs/design.md, "The way of a request".
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may end where it fails")]

mod fake;

use fake::{Fake, nothing, read_done};
use proto::message::ToFrontend;
use proto::{Answer, Denied, Dialect, Failed, Reply, exec, file, fsfreeze, limits, power};

const PING: &str = r#"{"execute":"guest-ping"}"#;
const FLUSH: &str = r#"{"execute":"guest-file-flush","arguments":{"handle":1}}"#;
const TIME: &str = r#"{"execute":"guest-get-time"}"#;
const READ: &str = r#"{"execute":"guest-file-read","arguments":{"handle":1,"count":1000000}}"#;
const SYNC: &str = r#"{"execute":"guest-sync","arguments":{"id":7}}"#;

fn given_up(name: &str, milliseconds: u32) -> String {
    format!(
        "{{\"error\": {{\"class\": \"GenericError\", \"desc\": \"Command {name} has not finished after {milliseconds} ms and other requests wait: given up\"}}}}\n"
    )
}

#[test]
fn replies_leave_in_the_order_of_the_requests() {
    let mut fake = Fake::qga();
    assert_eq!(fake.say(format!("{FLUSH}{PING}{TIME}{PING}")), "");
    assert_eq!(
        fake.asked(),
        ["1 guest-file-flush lane 1 counts 2 bytes 0", "2 guest-get-time lane 1 counts 0 bytes 0"]
    );
    fake.answer(1, nothing());
    assert_eq!(fake.heard(), "{\"return\": {}}\n{\"return\": {}}\n");
    fake.answer(2, Reply::File(file::Reply::Open(5)));
    assert_eq!(fake.heard(), "{\"return\": 5}\n{\"return\": {}}\n");
    assert!(fake.session.is_idle());
}

/// A client that reads of a failure believes that the guest is not frozen.
#[test]
fn a_freeze_is_not_given_up_because_others_wait_only_because_of_a_sync() {
    let freeze = r#"{"execute":"guest-fsfreeze-freeze"}"#;
    let mut fake = Fake::qga();
    fake.say(format!("{freeze}{PING}"));
    assert_eq!(fake.session.deadline(), None);
    fake.answer(1, Reply::Fsfreeze(fsfreeze::Reply::Freeze(2)));
    assert_eq!(fake.heard(), "{\"return\": 2}\n{\"return\": {}}\n");
    fake.say(format!("{freeze}{PING}{SYNC}"));
    assert!(fake.session.deadline().is_some());
}

/// libvirt and others wait for the machine, and take a line for a failure.
#[test]
fn a_shutdown_that_succeeds_is_not_answered() {
    let mut fake = Fake::qga();
    fake.say(r#"{"execute":"guest-shutdown"}"#);
    fake.answer(1, Reply::Power(power::Reply::Shutdown(proto::agent::Nothing {})));
    assert_eq!(fake.heard(), "");
    assert_eq!(fake.say(PING), "{\"return\": {}}\n");
}

#[test]
fn an_answer_that_comes_before_its_turn_waits_for_it() {
    let mut fake = Fake::qga();
    fake.say(format!("{FLUSH}{READ}"));
    fake.broker_says(2, ToFrontend::Piece(0), b"abc");
    fake.broker_says(2, ToFrontend::Answer(Answer::Done(read_done(6, true))), b"def");
    assert_eq!(fake.heard(), "");
    fake.answer(1, nothing());
    assert_eq!(
        fake.heard(),
        "{\"return\": {}}\n{\"return\": {\"buf-b64\": \"YWJjZGVm\", \"count\": 6, \"eof\": true}}\n"
    );
}

#[test]
fn the_broker_has_at_most_sixteen_requests() {
    let mut fake = Fake::qga();
    fake.say(FLUSH.repeat(20));
    assert_eq!(fake.asked().len(), limits::REQUESTS_IN_FLIGHT);
    fake.answer(1, nothing());
    assert_eq!(fake.asked(), ["17 guest-file-flush lane 1 counts 0 bytes 0"]);
}

#[test]
fn a_refusal_and_a_failure_of_the_broker_have_their_classes() {
    let mut fake = Fake::qga();
    fake.say(format!("{FLUSH}{FLUSH}{FLUSH}"));
    let denied = Denied::Command("guest-file-flush".to_owned());
    fake.broker_says(1, ToFrontend::Answer(Answer::Denied(denied)), b"");
    let denied = Denied::Arguments("Permission denied".to_owned());
    fake.broker_says(2, ToFrontend::Answer(Answer::Denied(denied)), b"");
    fake.broker_says(
        3,
        ToFrontend::Answer(Answer::Failed(Failed::new("handle '1' has not been found"))),
        b"",
    );
    assert_eq!(
        fake.heard(),
        "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"Command guest-file-flush has been disabled: the command is not allowed\"}}\n\
         {\"error\": {\"class\": \"GenericError\", \"desc\": \"Permission denied\"}}\n\
         {\"error\": {\"class\": \"GenericError\", \"desc\": \"handle '1' has not been found\"}}\n"
    );
}

/// A client that writes a command and a sync in one go gets both answers, as from qemu-ga.
#[test]
fn a_sync_behind_a_quick_command_abandons_nothing() {
    let mut fake = Fake::qga();
    fake.say(format!("{FLUSH}{SYNC}"));
    fake.after(99);
    fake.answer(1, nothing());
    assert_eq!(fake.heard(), "{\"return\": {}}\n{\"return\": 7}\n");
    assert_eq!(fake.session.deadline(), None);
}

/// W1: when a later sync is answered first, the earlier reply must never be sent.
#[test]
fn a_sync_drops_everything_before_it_once_that_is_stuck() {
    let mut fake = Fake::qga();
    fake.say(format!("{FLUSH}{PING}{TIME}"));
    fake.after(90);
    assert_eq!(fake.say(SYNC), "");
    fake.asked();
    fake.after(24);
    assert_eq!(
        (fake.heard(), fake.asked()),
        (given_up("guest-file-flush", 114) + "{\"return\": {}}\n", vec!["1 abandon cancel=true".to_owned()])
    );
    fake.after(100);
    assert_eq!(
        (fake.heard(), fake.asked()),
        ("{\"return\": 7}\n".to_owned(), vec!["2 abandon cancel=true".to_owned()])
    );
    // What comes afterwards is of nobody.
    fake.answer(2, Reply::File(file::Reply::Open(5)));
    assert_eq!(fake.heard(), "");
    fake.say(FLUSH);
    assert_eq!(fake.asked(), ["3 guest-file-flush lane 2 counts 1 bytes 0"]);
}

#[test]
fn a_sync_alone_behind_a_stuck_command_is_answered_after_the_patience() {
    let mut fake = Fake::qga();
    fake.say(FLUSH);
    fake.after(5000);
    assert_eq!(fake.say(format!("{SYNC}{PING}")), "");
    assert_eq!(fake.session.deadline(), Some(fake.now + limits::GRACE));
    fake.after(24);
    assert_eq!(fake.heard(), "");
    fake.after(1);
    assert_eq!(fake.heard(), "{\"return\": 7}\n{\"return\": {}}\n");
}

#[test]
fn a_stuck_command_is_given_up_in_its_turn_when_something_else_waits() {
    let mut fake = Fake::qga();
    fake.say(FLUSH);
    fake.after(10_000);
    assert_eq!(fake.heard(), "");
    assert_eq!(fake.say(PING), "");
    fake.after(25);
    assert_eq!(fake.heard(), given_up("guest-file-flush", 10_025) + "{\"return\": {}}\n");
}

/// Nobody is woken up for a command that takes its time.
#[test]
fn there_is_no_deadline_while_nothing_waits() {
    let mut fake = Fake::qga();
    fake.say(FLUSH);
    assert_eq!(fake.session.deadline(), None);
}

#[test]
fn the_time_in_which_its_worker_starts_is_not_held_against_a_command() {
    let mut fake = Fake::qga();
    fake.say(format!("{FLUSH}{PING}"));
    fake.broker_says(1, ToFrontend::Starting(true), b"");
    fake.after(1_900);
    assert_eq!(fake.heard(), "");
    fake.broker_says(1, ToFrontend::Starting(false), b"");
    fake.after(99);
    assert_eq!(fake.heard(), "");
    fake.after(1);
    assert_eq!(fake.heard(), given_up("guest-file-flush", 2_000) + "{\"return\": {}}\n");
}

#[test]
fn a_command_whose_worker_does_not_start_is_given_up() {
    let mut fake = Fake::qga();
    fake.say(format!("{FLUSH}{PING}"));
    fake.broker_says(1, ToFrontend::Starting(true), b"");
    fake.after(2_099);
    assert_eq!(fake.heard(), "");
    fake.after(1);
    assert_eq!(fake.heard(), given_up("guest-file-flush", 2_100) + "{\"return\": {}}\n");
}

#[test]
fn a_read_that_moves_is_not_given_up() {
    let mut fake = Fake::qga();
    fake.say(format!("{READ}{PING}"));
    for _ in 0..10 {
        fake.after(99);
        fake.broker_says(1, ToFrontend::Piece(0), b"abc");
    }
    fake.broker_says(1, ToFrontend::Answer(Answer::Done(read_done(30, true))), b"");
    assert!(fake.heard().ends_with("\", \"count\": 30, \"eof\": true}}\n{\"return\": {}}\n"));
}

/// What was written cannot be taken back: it is a short read, and the next one goes on.
#[test]
fn a_read_that_is_stuck_half_way_ends_short() {
    let mut fake = Fake::qga();
    fake.say(format!("{READ}{SYNC}"));
    fake.broker_says(1, ToFrontend::Piece(0), b"hello");
    fake.after(100);
    assert_eq!(
        fake.heard(),
        "{\"return\": {\"buf-b64\": \"aGVsbG8=\", \"count\": 5, \"eof\": false}}\n{\"return\": 7}\n"
    );
}

#[test]
fn a_program_that_is_stuck_half_way_has_not_ended() {
    let mut fake = Fake::qga();
    fake.say(format!(r#"{{"execute":"guest-exec-status","arguments":{{"pid":3}}}}{PING}"#));
    fake.broker_says(1, ToFrontend::Piece(0), b"out");
    fake.after(100);
    assert_eq!(fake.heard(), "{\"return\": {\"out-data\": \"b3V0\", \"exited\": false}}\n{\"return\": {}}\n");
}

#[test]
fn pieces_of_a_reply_are_asked_for_while_the_host_reads() {
    let mut fake = Fake::qga();
    fake.say(READ);
    fake.asked();
    let piece = vec![b'x'; limits::PIECE];
    fake.broker_says(1, ToFrontend::Piece(0), &piece);
    assert_eq!(fake.asked(), ["1 more 1"]);
    // The host does not read: 256 KiB wait for it.
    fake.broker_says(1, ToFrontend::Piece(0), &piece);
    assert_eq!(fake.asked(), [""; 0]);
    assert!(!fake.session.wants_input());
    fake.session.sent(200_000, fake.now, &mut fake.broker);
    assert_eq!(fake.asked(), ["1 more 1"]);
    assert!(fake.session.wants_input());
}

/// It is the host that does not read who holds things up.
#[test]
fn a_read_is_not_given_up_while_the_host_does_not_read() {
    let mut fake = Fake::qga();
    fake.say(format!("{READ}{PING}"));
    let piece = vec![b'x'; limits::PIECE];
    fake.broker_says(1, ToFrontend::Piece(0), &piece);
    fake.broker_says(1, ToFrontend::Piece(0), &piece);
    assert_eq!(fake.session.deadline(), None);
    fake.after(10_000);
    fake.session.sent(200_000, fake.now, &mut fake.broker);
    assert_eq!(fake.session.deadline(), Some(fake.now + limits::PATIENCE));
}

#[test]
fn a_payload_goes_out_in_pieces_as_the_broker_asks() {
    let mut fake = Fake::qga();
    let text = "QUJD".repeat((3 * limits::PIECE + 6) / 3);
    fake.say(format!(r#"{{"execute":"guest-file-write","arguments":{{"handle":1,"buf-b64":"{text}"}}}}"#));
    assert_eq!(fake::request(&fake, 1).payload().unwrap().length, 3 * limits::PIECE as u64 + 6);
    assert_eq!(fake.asked(), ["1 guest-file-write lane 1 counts 0 bytes 98304", "1 piece 98304"]);
    fake.broker_says(1, ToFrontend::More(1), b"");
    assert_eq!(fake.asked(), ["1 piece 98304"]);
    fake.broker_says(1, ToFrontend::More(1), b"");
    assert_eq!(fake.asked(), ["1 piece 6"]);
    fake.broker_says(1, ToFrontend::More(1), b"");
    assert_eq!(fake.asked(), [""; 0]);
    fake.answer(1, Reply::File(file::Reply::Write(file::Written { count: 5, eof: false })));
    assert_eq!(fake.heard(), "{\"return\": {\"count\": 5, \"eof\": false}}\n");
}

/// W5, and qemu-ga: a guest-exec that is sent just before close runs.
#[test]
fn what_a_client_asked_for_is_done_after_it_has_left_and_answered_to_nobody() {
    let mut fake = Fake::qga();
    fake.say(FLUSH.repeat(18));
    fake.asked();
    fake.leave();
    assert_eq!(fake.say(PING), "{\"return\": {}}\n");
    fake.answer(1, nothing());
    assert_eq!(fake.asked(), ["17 guest-file-flush lane 1 counts 1 bytes 0"]);
    fake.answer(2, nothing());
    assert_eq!(fake.asked(), ["18 guest-file-flush lane 1 counts 0 bytes 0"]);
    for id in 3..=18 {
        fake.answer(id, nothing());
    }
    fake.say(TIME);
    assert_eq!(
        (fake.heard(), fake.asked()),
        (String::new(), vec!["19 guest-get-time lane 2 counts 0 bytes 0".to_owned()])
    );
    fake.answer(19, Reply::File(file::Reply::Open(5)));
    assert_eq!(fake.heard(), "{\"return\": 5}\n");
}

#[test]
fn stuck_requests_of_a_client_that_has_left_do_not_keep_the_next_one_waiting() {
    let mut fake = Fake::qga();
    fake.say(FLUSH.repeat(20));
    fake.leave();
    fake.asked();
    fake.say(TIME);
    assert_eq!(fake.asked(), ["1 abandon cancel=false", "17 guest-get-time lane 2 counts 0 bytes 0"]);
    // Four of its own wait as well: one is let go each time that nothing has moved for 100 ms.
    fake.after(100);
    assert_eq!(fake.asked(), ["2 abandon cancel=false", "18 guest-file-flush lane 1 counts 0 bytes 0"]);
}

#[test]
fn a_payload_that_was_read_is_delivered_after_the_client_has_left() {
    let mut fake = Fake::qga();
    let text = "QUJD".repeat(3 * limits::PIECE / 3);
    fake.say(format!(r#"{{"execute":"guest-file-write","arguments":{{"handle":1,"buf-b64":"{text}"}}}}"#));
    fake.leave();
    fake.asked();
    fake.broker_says(1, ToFrontend::More(1), b"");
    assert_eq!(fake.asked(), ["1 piece 98304"]);
}

#[test]
fn half_a_request_is_not_completed_by_the_next_client() {
    let mut fake = Fake::qga();
    fake.say(r#"{"execute":"guest-sy"#);
    fake.leave();
    assert_eq!(fake.say(PING), "{\"return\": {}}\n");
}

#[test]
fn requests_answered_in_front_are_counted_for_the_broker() {
    let mut fake = Fake::qga();
    fake.say(PING.repeat(5000));
    assert_eq!(fake.asked(), ["counts 5000"]);
    fake.say(format!("{PING}{SYNC}"));
    fake.leave();
    assert_eq!(fake.asked(), ["counts 2"]);
}

#[test]
fn a_new_welcome_replaces_the_verdicts() {
    let mut fake = Fake::qga();
    assert!(fake.say(r#"{"execute":"guest-info"}"#).contains("\"guest-exec\", \"enabled\": true"));
    let welcome = fake::welcome(&[Dialect::Qga], &["guest-exec"]);
    fake.broker_says(0, ToFrontend::Welcome(welcome), b"");
    assert!(fake.say(r#"{"execute":"guest-info"}"#).contains("\"guest-exec\", \"enabled\": false"));
}

#[test]
fn no_more_is_read_when_too_much_waits() {
    let mut fake = Fake::qga();
    fake.say(FLUSH.repeat(4096));
    assert!(!fake.session.wants_input());
    fake.answer(1, nothing());
    assert!(fake.session.wants_input());
}

/// A sync is heard even so.
#[test]
fn behind_a_large_write_two_more_requests_are_read() {
    let mut fake = Fake::qga();
    let write = |size: usize| {
        format!(
            r#"{{"execute":"guest-file-write","arguments":{{"handle":1,"buf-b64":"{}"}}}}"#,
            "QUJD".repeat(size)
        )
    };
    fake.say(write(2_000_000));
    assert!(fake.session.wants_input());
    fake.say(write(2_000_000));
    assert!(fake.session.wants_input());
    fake.say(SYNC);
    assert!(!fake.session.wants_input());
    fake.after(100);
    assert_eq!(fake.heard(), "{\"return\": 7}\n");
    assert!(fake.session.wants_input());
}

#[test]
fn phoenix_is_answered_as_the_work_ends() {
    let mut fake = Fake::new(&[Dialect::Phoenix]);
    let stat = |tag: &str| {
        format!("{{\"execute\":\"get-file-md5sum\",\"arguments\":{{\"path\":\"/x\"}},\"tag\":\"{tag}\"}}\n")
    };
    fake.say(stat("a") + &stat("b"));
    assert_eq!(
        fake.asked(),
        ["1 get-file-md5sum lane 0 counts 0 bytes 0", "2 get-file-md5sum lane 0 counts 0 bytes 0"]
    );
    fake.answer(2, Reply::File(file::Reply::Md5Sum("d41d".to_owned())));
    assert_eq!(fake.heard(), "{\"return\":\"d41d\",\"tag\":\"b\"}\n");
    let failed = Answer::Failed(Failed::go_path("open", "/x", 2));
    fake.broker_says(1, ToFrontend::Answer(failed), b"");
    assert_eq!(
        fake.heard(),
        "{\"error\": {\"bufb64\": \"b3BlbiAveDogbm8gc3VjaCBmaWxlIG9yIGRpcmVjdG9yeQ==\", \"code\": 2}, \"tag\": \"a\"}\n"
    );
}

#[test]
fn a_read_of_phoenixs_leaves_whole() {
    let mut fake = Fake::new(&[Dialect::Phoenix]);
    fake.say("{\"execute\":\"file-read\",\"arguments\":{\"handle_id\":1},\"tag\":\"t\"}\n");
    fake.broker_says(1, ToFrontend::Piece(0), b"7.");
    assert_eq!(fake.heard(), "");
    let done = Reply::File(file::Reply::PhoenixRead(file::PhoenixReadDone { eof: false }));
    fake.broker_says(1, ToFrontend::Answer(Answer::Done(done)), b"2\n");
    assert_eq!(fake.heard(), "{\"return\":{\"bufb64\":\"Ny4yCg==\",\"eof\":false},\"tag\":\"t\"}\n");
}

#[test]
fn a_line_of_phoenixs_does_not_get_into_a_line_of_qemus() {
    let mut fake = Fake::new(&[Dialect::Qga, Dialect::Phoenix]);
    fake.say(READ);
    fake.broker_says(1, ToFrontend::Piece(0), b"abc");
    assert_eq!(fake.say("{\"execute\":\"ping\",\"tag\":\"p\"}"), "{\"return\": {\"buf-b64\": \"YWJj");
    fake.broker_says(1, ToFrontend::Answer(Answer::Done(read_done(3, true))), b"");
    assert_eq!(fake.heard(), "\", \"count\": 3, \"eof\": true}}\n{\"return\":\"0.7.2\",\"tag\":\"p\"}\n");
}

#[test]
fn a_broker_that_breaks_the_protocol_is_found_out() {
    let fault = |id: u64, message: ToFrontend, payload: &[u8]| {
        let mut fake = Fake::qga();
        fake.say(FLUSH);
        let outcome = fake.session.from_broker(id, message, payload, fake.now, &mut fake.broker);
        outcome.unwrap_err().to_string()
    };
    assert_eq!(fault(2, ToFrontend::More(1), b""), "the broker broke the protocol: the id of no request");
    assert_eq!(
        fault(1, ToFrontend::Piece(0), b"x"),
        "the broker broke the protocol: a piece that the reply has no place for"
    );
    let done = Reply::Exec(exec::Reply::Status(exec::StatusDone::default()));
    assert_eq!(
        fault(1, ToFrontend::Answer(Answer::Done(done)), b"x"),
        "the broker broke the protocol: bytes that the reply has no place for"
    );
}

/// A socket to the broker that is full must not make messages pile up here.
#[test]
fn nothing_is_sent_to_a_broker_that_does_not_read() {
    let mut fake = Fake::qga();
    fake.broker.congested = true;
    fake.say(FLUSH);
    assert_eq!(fake.asked(), [""; 0]);
    fake.broker.congested = false;
    fake.after(0);
    assert_eq!(fake.asked(), ["1 guest-file-flush lane 1 counts 0 bytes 0"]);
}

/// More than Linux takes as arguments of a program does not have to travel.
#[test]
fn a_request_with_more_than_six_mebibytes_beside_its_payload_is_refused_in_front() {
    let mut fake = Fake::qga();
    let exec =
        |size: usize| format!(r#"{{"execute":"guest-exec","arguments":{{"path":"{}"}}}}"#, "x".repeat(size));
    assert_eq!(
        fake.say(exec(6 << 20)),
        "{\"error\": {\"class\": \"GenericError\", \"desc\": \"the request is too large\"}}\n"
    );
    assert_eq!(fake.say(exec(5 << 20)), "");
}
