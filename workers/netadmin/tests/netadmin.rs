//! The netadmin worker in its jail, replaying what Phoenix's agent 0.7.2 answered, in a network namespace made for it.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

#[path = "../../net/tests/worker/mod.rs"]
mod worker;

use std::process::Command;

use proto::netadmin::{Address, Link, Request, Route};
use serde_json::Value;
use worker::{Worker, ip, own_network};

const EXECUTABLE: &str = env!("CARGO_BIN_EXE_portreeve-netadmin");

/// One exchange: the command, its arguments, and `true` or the error's text.
type Exchange = (&'static str, &'static str, &'static str);

fn request(command: &str, arguments: &str) -> Request {
    let arguments: Value = serde_json::from_str(arguments).unwrap();
    let link = || serde_json::from_value::<Link>(arguments.clone()).unwrap();
    let address = || serde_json::from_value::<Address>(arguments.clone()).unwrap();
    let route = || serde_json::from_value::<Route>(arguments.clone()).unwrap();
    match command {
        "net-iface-up" => Request::LinkUp(link()),
        "net-iface-down" => Request::LinkDown(link()),
        "ipaddr-add" => Request::AddAddress(address()),
        "ipaddr-del" => Request::DeleteAddress(address()),
        "route-add" => Request::AddRoute(route()),
        "route-del" => Request::DeleteRoute(route()),
        other => panic!("no command: {other}"),
    }
}

fn replay(worker: &mut Worker, exchanges: &[Exchange]) {
    for (command, arguments, expected) in exchanges {
        let answer = match worker.ask(request(command, arguments)) {
            Ok(reply) => serde_json::to_string(&reply).unwrap(),
            Err(failed) => {
                assert_eq!(failed.errno, None, "the code of every network failure is -1");
                failed.text
            }
        };
        assert_eq!(&answer, expected, "{command} {arguments}");
    }
}

/// What `ip` shows.
fn shown(words: &str) -> String {
    let output = Command::new("ip").args(words.split_whitespace()).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn start() -> Worker {
    ip("link add v1 type veth peer name v0 address 02:00:00:00:00:10");
    ip("link set v1 up");
    Worker::start(EXECUTABLE, &[])
}

const NO_DEVICE: &str = "rtnetlink: no such device";
const NO_LINK: &str = "rtnetlink: Link not found";
const EXISTS: &str = "rtnetlink: file exists";
const NOT_THERE: &str = "rtnetlink: cannot assign requested address";
const NO_ROUTE: &str = "rtnetlink: no such process";
const INVALID: &str = "rtnetlink: invalid argument";

const LINKS: &[Exchange] = &[
    ("net-iface-up", r#"{"ifname": "v0"}"#, "true"),
    ("net-iface-up", r#"{"ifname": "nosuch"}"#, NO_DEVICE),
    ("net-iface-down", r#"{"ifname": "nosuch"}"#, NO_DEVICE),
    ("net-iface-up", "{}", NO_DEVICE),
    ("net-iface-up", r#"{"ifname": "averyveryverylongname"}"#, NO_DEVICE),
    ("net-iface-up", r#"{"ifname": "v0"}"#, "true"),
];

const ADDRESSES: &[Exchange] = &[
    ("ipaddr-add", r#"{"ip": "192.0.2.10/24", "ifname": "v0"}"#, "true"),
    ("ipaddr-add", r#"{"ip": "192.0.2.10/24", "ifname": "v0"}"#, EXISTS),
    ("ipaddr-add", r#"{"ip": "192.0.2.77/32", "ifname": "v0"}"#, "true"),
    ("ipaddr-add", r#"{"ip": "2001:db8::10/64", "ifname": "v0"}"#, "true"),
    ("ipaddr-add", r#"{"ip": "192.0.2.78/32 v0:lab", "ifname": "v0"}"#, "true"),
    (
        "ipaddr-add",
        r#"{"ip": "192.0.2.79/32 bad", "ifname": "v0"}"#,
        "rtnetlink: label must begin with interface name",
    ),
    (
        "ipaddr-add",
        r#"{"ip": "192.0.2.79/32 v0:averyverylonglabel", "ifname": "v0"}"#,
        "rtnetlink: numerical result out of range",
    ),
    ("ipaddr-add", r#"{"ip": "192.0.2.80", "ifname": "v0"}"#, "rtnetlink: invalid CIDR address: 192.0.2.80"),
    ("ipaddr-add", r#"{"ip": "", "ifname": "v0"}"#, "rtnetlink: invalid CIDR address: "),
    ("ipaddr-add", r#"{"ip": "10.0.0.1/24", "ifname": "nosuch"}"#, NO_LINK),
    ("ipaddr-add", r#"{"ip": "nonsense", "ifname": "nosuch"}"#, NO_LINK),
    (
        "ipaddr-add",
        r#"{"ip": "10.0.0.1/33", "ifname": "v0"}"#,
        "rtnetlink: invalid CIDR address: 10.0.0.1/33",
    ),
    ("ipaddr-add", "{}", NO_LINK),
    (
        "ipaddr-add",
        r#"{"ip": "10.0.0.1/24", "ifname": "averyveryverylongname"}"#,
        "rtnetlink: numerical result out of range",
    ),
    ("ipaddr-add", r#"{"ip": "224.0.0.1/24", "ifname": "v0"}"#, "true"),
    ("ipaddr-add", r#"{"ip": "::/64", "ifname": "v0"}"#, NOT_THERE),
    ("ipaddr-add", r#"{"ip": "10.5.5.0/24", "ifname": "v0"}"#, "true"),
    (
        "ipaddr-add",
        r#"{"ip": "010.5.5.1/24", "ifname": "v0"}"#,
        "rtnetlink: invalid CIDR address: 010.5.5.1/24",
    ),
];

const ADDRESSES_GONE: &[Exchange] = &[
    ("ipaddr-del", r#"{"ip": "192.0.2.77/32", "ifname": "v0"}"#, "true"),
    ("ipaddr-del", r#"{"ip": "192.0.2.77/32", "ifname": "v0"}"#, NOT_THERE),
    ("ipaddr-del", r#"{"ip": "192.0.2.78/32", "ifname": "v0"}"#, "true"),
    ("ipaddr-del", r#"{"ip": "192.0.2.10/32", "ifname": "v0"}"#, NOT_THERE),
    ("ipaddr-del", r#"{"ip": "192.0.2.10", "ifname": "v0"}"#, "rtnetlink: invalid CIDR address: 192.0.2.10"),
    ("ipaddr-del", r#"{"ip": "10.5.5.0/24", "ifname": "v0"}"#, "true"),
    ("ipaddr-del", r#"{"ip": "192.0.2.10/24", "ifname": "nosuch"}"#, NO_LINK),
    ("ipaddr-del", r#"{"ip": "192.0.2.1", "ifname": "lo"}"#, "rtnetlink: invalid CIDR address: 192.0.2.1"),
    ("ipaddr-del", r#"{"ip": "224.0.0.1/24", "ifname": "v0"}"#, "true"),
];

const ROUTES: &[Exchange] = &[
    ("route-add", r#"{"ifname": "v0", "dst": "198.51.100.0/24", "src": "", "gateway": "192.0.2.1"}"#, "true"),
    ("route-add", r#"{"ifname": "v0", "dst": "198.51.100.0/24", "src": "", "gateway": "192.0.2.1"}"#, EXISTS),
    ("route-add", r#"{"ifname": "v0", "dst": "203.0.113.5/32"}"#, "true"),
    ("route-add", r#"{"ifname": "v0", "dst": "203.0.113.6/32", "scope": 253}"#, "true"),
    ("route-add", r#"{"ifname": "v0", "dst": "203.0.113.7/32", "scope": 254}"#, "true"),
    ("route-add", r#"{"ifname": "v0", "dst": "203.0.113.8/32", "scope": 255}"#, INVALID),
    ("route-add", r#"{"ifname": "v0", "dst": "203.0.113.11/32", "src": "192.0.2.10"}"#, "true"),
    ("route-add", r#"{"ifname": "v0", "dst": "203.0.113.12/32", "src": "192.0.2.99"}"#, INVALID),
    ("route-add", r#"{"ifname": "v0", "dst": "0.0.0.0/0", "gateway": "192.0.2.1"}"#, "true"),
    (
        "route-add",
        r#"{"ifname": "v0", "dst": "default", "gateway": "192.0.2.1"}"#,
        "rtnetlink: invalid CIDR address: default",
    ),
    (
        "route-add",
        r#"{"ifname": "v0", "dst": "", "gateway": "192.0.2.1"}"#,
        "rtnetlink: invalid CIDR address: ",
    ),
    (
        "route-add",
        r#"{"ifname": "v0", "dst": "8.8.8.8", "gateway": "192.0.2.1"}"#,
        "rtnetlink: invalid CIDR address: 8.8.8.8",
    ),
    ("route-add", r#"{"ifname": "v0", "dst": "172.16.1.0/22", "gateway": "192.0.2.1"}"#, INVALID),
    ("route-del", r#"{"ifname": "v0", "dst": "172.16.1.0/22", "gateway": "192.0.2.1"}"#, INVALID),
    (
        "route-add",
        r#"{"ifname": "v0", "dst": "198.51.101.0/24", "gateway": "10.99.0.1"}"#,
        "rtnetlink: network is unreachable",
    ),
    (
        "route-add",
        r#"{"ifname": "v0", "dst": "198.51.103.0/24", "gateway": "2001:db8::1"}"#,
        "rtnetlink: gateway, source, and destination ip are not the same IP family",
    ),
    (
        "route-add",
        r#"{"ifname": "v0", "dst": "198.51.103.0/24", "src": "2001:db8::10"}"#,
        "rtnetlink: source and destination ip are not the same IP family",
    ),
    ("route-add", r#"{"ifname": "nosuch", "dst": "198.51.104.0/24"}"#, NO_LINK),
    ("route-add", "{}", NO_LINK),
    ("route-add", r#"{"ifname": "v0", "dst": "2001:db8:1::/64", "gateway": "2001:db8::1"}"#, "true"),
    ("route-add", r#"{"ifname": "v0", "dst": "::/0", "gateway": "2001:db8::1"}"#, "true"),
    ("route-add", r#"{"ifname": "v0", "dst": "2001:db8:2::1/64", "gateway": "2001:db8::1"}"#, "true"),
];

/// Phoenix's agent made another route than it was asked for in each of these cases.
const ROUTES_MISUNDERSTOOD: &[Exchange] = &[
    (
        "route-add",
        r#"{"ifname": "v0", "dst": "203.0.113.9/32", "scope": 300}"#,
        "rtnetlink: scope is not between 0 and 255: 300",
    ),
    (
        "route-add",
        r#"{"ifname": "v0", "dst": "203.0.113.9/32", "scope": -1}"#,
        "rtnetlink: scope is not between 0 and 255: -1",
    ),
    (
        "route-add",
        r#"{"ifname": "v0", "dst": "198.51.102.0/24", "gateway": "nonsense"}"#,
        "rtnetlink: invalid IP address: nonsense",
    ),
    (
        "route-add",
        r#"{"ifname": "v0", "dst": "198.51.102.0/24", "src": "192.0.2.10/24"}"#,
        "rtnetlink: invalid IP address: 192.0.2.10/24",
    ),
];

const ROUTES_GONE: &[Exchange] = &[
    ("route-del", r#"{"ifname": "v0", "dst": "198.51.100.0/24", "src": "", "gateway": "192.0.2.1"}"#, "true"),
    (
        "route-del",
        r#"{"ifname": "v0", "dst": "198.51.100.0/24", "src": "", "gateway": "192.0.2.1"}"#,
        NO_ROUTE,
    ),
    ("route-del", r#"{"ifname": "v0", "dst": "203.0.113.6/32"}"#, NO_ROUTE),
    ("route-del", r#"{"ifname": "v0", "dst": "203.0.113.6/32", "scope": 253}"#, "true"),
    ("route-del", r#"{"ifname": "v0", "dst": "203.0.113.5/32", "scope": 255}"#, "true"),
    ("route-del", r#"{"ifname": "v1", "dst": "0.0.0.0/0", "gateway": "192.0.2.1"}"#, NO_ROUTE),
    ("route-del", r#"{"ifname": "v0", "dst": "0.0.0.0/0"}"#, "true"),
    ("route-del", r#"{"ifname": "v0", "dst": "192.0.2.0/24"}"#, NO_ROUTE),
    ("route-del", r#"{"ifname": "nosuch", "dst": "192.0.2.0/24"}"#, NO_LINK),
    ("net-iface-down", r#"{"ifname": "v0"}"#, "true"),
    ("route-add", r#"{"ifname": "v0", "dst": "203.0.113.200/32"}"#, "rtnetlink: network is down"),
    ("net-iface-up", r#"{"ifname": "v0"}"#, "true"),
];

#[test]
fn the_recorded_exchanges_of_phoenix_are_answered_word_for_word() {
    if !own_network() {
        return;
    }
    let mut worker = start();
    replay(&mut worker, LINKS);
    replay(&mut worker, ADDRESSES);
    let addresses = shown("-4 -brief address show dev v0");
    let addresses: Vec<&str> = addresses.split_whitespace().skip(2).collect();
    assert_eq!(addresses, ["192.0.2.10/24", "192.0.2.77/32", "192.0.2.78/32", "224.0.0.1/24", "10.5.5.0/24"]);
    assert!(shown("-4 address show dev v0").contains("inet 192.0.2.78/32 scope global v0:lab\n"));
    assert!(shown("-4 address show dev v0").contains("inet 192.0.2.10/24 brd 192.0.2.255 scope global v0\n"));
    replay(&mut worker, ADDRESSES_GONE);
    replay(&mut worker, ROUTES);
    let before = shown("route show");
    replay(&mut worker, ROUTES_MISUNDERSTOOD);
    assert_eq!(shown("route show"), before);
    assert_eq!(
        before.lines().map(str::trim).collect::<Vec<_>>(),
        [
            "default via 192.0.2.1 dev v0 proto boot",
            "192.0.2.0/24 dev v0 proto kernel scope link src 192.0.2.10",
            "198.51.100.0/24 via 192.0.2.1 dev v0 proto boot",
            "203.0.113.5 dev v0 proto boot",
            "203.0.113.6 dev v0 proto boot scope link",
            "203.0.113.7 dev v0 proto boot scope host",
            "203.0.113.11 dev v0 proto boot src 192.0.2.10",
        ]
        .map(|line| line.replace(" proto boot", ""))
    );
    assert!(shown("-6 route show").contains("2001:db8:2::/64 via 2001:db8::1 dev v0 metric 1024"));
    replay(&mut worker, ROUTES_GONE);
}

#[test]
fn the_worker_has_one_capability_and_a_filter() {
    if !own_network() {
        return;
    }
    let worker = start();
    // CAP_NET_ADMIN is number 12.
    assert!(worker.confinement.contains(&("capabilities".to_owned(), "0000000000001000".to_owned())));
    assert!(worker.confinement.contains(&("seccomp".to_owned(), "filter".to_owned())));
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.pid())).unwrap();
    assert!(status.contains("CapBnd:\t0000000000001000\n"), "{status}");
}
