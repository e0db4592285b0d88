//! The net worker in its jail, in network namespaces made for it.

mod worker;

use proto::NoArguments;
use proto::net::{Request, RouteFamily};
use serde_json::{Value, json};
use worker::{Stock, Worker, ip, own_network};

const EXECUTABLE: &str = env!("CARGO_BIN_EXE_portreeve-net");

fn start() -> Worker {
    Worker::start(EXECUTABLE, &[])
}

/// v0, up, with address 02:00:00:00:00:10, and v1, up.
fn veth_pair() {
    ip("link add v1 type veth peer name v0 address 02:00:00:00:00:10");
    ip("link set v1 up");
    ip("link set v0 up");
}

fn routes(worker: &mut Worker, family: i64) -> Value {
    worker.json(Request::PhoenixRoutes(RouteFamily { family }))
}

#[test]
fn the_jail_is_whole_and_still_answers() {
    let mut worker = start();
    assert!(
        worker.confinement.contains(&("seccomp".to_owned(), "filter".to_owned())),
        "{:?}",
        worker.confinement
    );
    let interfaces = worker.json(Request::Interfaces(NoArguments {}));
    assert_eq!(interfaces[0]["name"], "lo");
    assert!(worker.json(Request::Routes(NoArguments {})).is_array());
    assert!(worker.json(Request::PhoenixInterfaces(NoArguments {})).is_array());
    assert!(routes(&mut worker, 0).is_array());
}

#[test]
fn interfaces_are_what_qemu_ga_says_label_by_label_and_counter_by_counter() {
    if !own_network() {
        return;
    }
    veth_pair();
    ip("address add 192.0.2.10/24 dev v0");
    ip("address add 192.0.2.78/32 dev v0 label v0:lab");
    ip("address add 10.1.1.1/32 peer 10.1.1.2 dev v0");
    ip("address add 2001:db8::10/64 dev v0 nodad");
    ip("address add 2001:db8:1::1 peer 2001:db8:1::2/128 dev v0 nodad");
    ip("address add ::192.0.2.9/128 dev v1 nodad");
    ip("link add sleeping type veth peer name other");
    ip("tuntap add tunnel mode tun");
    ip("address add 10.8.0.1/24 dev tunnel");
    let Some(mut stock) = Stock::start("net") else { return };
    let mut worker = start();
    let ours = |worker: &mut Worker| worker.json(Request::Interfaces(NoArguments {}));
    let mut theirs = || stock.json("guest-network-get-interfaces", &json!({}));
    // Neighbour discovery goes on meanwhile, so a counter may move between the two answers.
    let mut pair = || (ours(&mut worker), theirs());
    let equal = (0..50).map(|_| pair()).find(|(ours, theirs)| ours == theirs);
    let (ours, theirs) = equal.unwrap_or_else(pair);
    assert_eq!(ours, theirs);
    let names: Vec<&str> =
        ours.as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"v0:lab") && names.contains(&"sleeping"), "{names:?}");
}

#[test]
fn routes_of_both_families_have_qemus_members() {
    if !own_network() {
        return;
    }
    veth_pair();
    ip("address add 192.0.2.10/24 dev v0");
    ip("address add 2001:db8::10/64 dev v0 nodad");
    ip("route add default via 192.0.2.1 dev v0 metric 7");
    ip("-6 route add 2001:db8:1::/48 via 2001:db8::1 dev v0 metric 4294967295");
    ip("route add blackhole 203.0.113.0/24");
    let mut worker = start();
    let routes = worker.json(Request::Routes(NoArguments {}));
    let with = |destination: &str| {
        let found = routes.as_array().unwrap().iter().find(|route| route["destination"] == destination);
        found.unwrap_or_else(|| panic!("{destination} is not in {routes}")).clone()
    };
    assert_eq!(
        with("0.0.0.0"),
        json!({"iface": "v0", "destination": "0.0.0.0", "gateway": "192.0.2.1", "mask": "0.0.0.0", "metric": 7,
               "flags": 3, "irtt": 0, "window": 0, "mtu": 0, "refcnt": 0, "use": 0, "version": 4})
    );
    assert_eq!(with("203.0.113.0")["iface"], "*");
    let ipv6 = with("2001:db8:1::");
    assert_eq!(ipv6["metric"], 4_294_967_295_u32);
    assert_eq!(ipv6["nexthop"], "2001:db8::1");
    assert_eq!(ipv6["desprefixlen"], "48");
    assert_eq!(ipv6["version"], 6);
    assert!(with("::1")["flags"].as_i64().unwrap() > 0x8000_0000, "as an unsigned number: {}", with("::1"));
}

#[test]
fn a_route_file_is_read_anew_for_each_request_and_to_its_end() {
    if !own_network() {
        return;
    }
    veth_pair();
    ip("address add 192.0.2.10/24 dev v0");
    let mut worker = start();
    let mut count = || worker.json(Request::Routes(NoArguments {})).as_array().unwrap().len();
    let before = count();
    for block in 0..4 {
        for number in 0..100 {
            ip(&format!("route add 10.{block}.{number}.0/24 dev v0"));
        }
    }
    // 400 lines of 128 bytes: more than one page of the kernel's file.
    assert_eq!(count(), before + 400);
}

/// Recorded exchanges with Phoenix's agent 0.7.2.
#[test]
fn phoenix_sees_flags_addresses_and_hardware_addresses_in_its_own_form() {
    if !own_network() {
        return;
    }
    ip("link add v1 type veth peer name v0 address 02:00:00:00:00:10");
    ip("link set v1 up");
    let mut worker = start();
    let find = |answer: &Value, name: &str| {
        answer.as_array().unwrap().iter().find(|entry| entry["name"] == name).unwrap().clone()
    };
    let answer = worker.json(Request::PhoenixInterfaces(NoArguments {}));
    let lo = json!({"index": 1, "name": "lo", "hwaddr": "", "flags": "up|loopback", "ips": ["127.0.0.1/8", "::1/128"]});
    assert_eq!(find(&answer, "lo"), lo);
    let v0 = find(&answer, "v0");
    assert_eq!(v0["hwaddr"], "02:00:00:00:00:10");
    assert_eq!((&v0["flags"], &v0["ips"]), (&json!("broadcast|multicast"), &json!([])));
    ip("link set v0 up");
    for address in ["192.0.2.10/24", "192.0.2.77/32", "2001:db8::10/64"] {
        ip(&format!("address add {address} dev v0"));
    }
    ip("address add 192.0.2.78/32 dev v0 label v0:lab");
    let v0 = find(&worker.json(Request::PhoenixInterfaces(NoArguments {})), "v0");
    assert_eq!(v0["flags"], "up|broadcast|multicast");
    let ips: Vec<&str> = v0["ips"].as_array().unwrap().iter().map(|ip| ip.as_str().unwrap()).collect();
    assert_eq!(ips[..3], ["192.0.2.10/24", "192.0.2.77/32", "192.0.2.78/32"]);
    assert!(ips[3..].contains(&"2001:db8::10/64"), "{ips:?}");
}

#[test]
fn phoenix_sees_the_main_table_with_scopes_and_sources_and_nothing_else() {
    if !own_network() {
        return;
    }
    veth_pair();
    ip("address add 192.0.2.10/24 dev v0");
    ip("address add 198.18.0.1/24 dev v1");
    ip("route add 10.79.0.0/16 via 192.0.2.1 dev v0 src 192.0.2.10 metric 5");
    ip("route add 203.0.113.7 dev v0 scope host");
    ip("route add default via 192.0.2.1 dev v0");
    ip("route add 10.100.0.0/16 dev v0 table 100");
    let mut worker = start();
    assert_eq!(
        routes(&mut worker, 2),
        json!([
            {"ifname": "v0", "scope": 0, "dst": {"ip": "", "mask": ""}, "src": "", "gateway": "192.0.2.1"},
            {"ifname": "v0", "scope": 0, "dst": {"ip": "10.79.0.0", "mask": "255.255.0.0"}, "src": "192.0.2.10", "gateway": "192.0.2.1"},
            {"ifname": "v0", "scope": 253, "dst": {"ip": "192.0.2.0", "mask": "255.255.255.0"}, "src": "192.0.2.10", "gateway": ""},
            {"ifname": "v1", "scope": 253, "dst": {"ip": "198.18.0.0", "mask": "255.255.255.0"}, "src": "198.18.0.1", "gateway": ""},
            {"ifname": "v0", "scope": 254, "dst": {"ip": "203.0.113.7", "mask": "255.255.255.255"}, "src": "", "gateway": ""},
        ])
    );
}

/// Phoenix's agent died of both.
#[test]
fn blackholes_and_multipath_routes_are_shown() {
    if !own_network() {
        return;
    }
    veth_pair();
    ip("address add 192.0.2.10/24 dev v0");
    ip("address add 198.18.0.1/24 dev v1");
    ip("route add blackhole 203.0.113.0/24");
    ip("route add 10.0.0.0/8 nexthop via 192.0.2.1 dev v0 nexthop via 198.18.0.9 dev v1");
    let mut worker = start();
    let answer = routes(&mut worker, 2);
    let found: Vec<&Value> = answer.as_array().unwrap().iter().filter(|route| route["scope"] == 0).collect();
    let many = json!({"ip": "10.0.0.0", "mask": "255.0.0.0"});
    let none = json!({"ip": "203.0.113.0", "mask": "255.255.255.0"});
    assert_eq!(
        found,
        [
            &json!({"ifname": "v0", "scope": 0, "dst": many, "src": "", "gateway": "192.0.2.1"}),
            &json!({"ifname": "v1", "scope": 0, "dst": many, "src": "", "gateway": "198.18.0.9"}),
            &json!({"ifname": "", "scope": 0, "dst": none, "src": "", "gateway": ""}),
        ]
    );
}

#[test]
fn an_ipv6_unreachable_route_is_loopbacks_and_family_zero_means_both() {
    if !own_network() {
        return;
    }
    veth_pair();
    ip("address add 192.0.2.10/24 dev v0");
    ip("-6 route add unreachable 2001:db8:66::/48");
    let mut worker = start();
    let ipv6 = routes(&mut worker, 10);
    let unreachable = json!({"ifname": "lo", "scope": 0, "dst": {"ip": "2001:db8:66::", "mask": "ffff:ffff:ffff::"}, "src": "", "gateway": ""});
    assert!(ipv6.as_array().unwrap().contains(&unreachable), "{ipv6}");
    let (ipv4, both) = (routes(&mut worker, 2), routes(&mut worker, 0));
    let joined = [ipv4.as_array().unwrap().clone(), ipv6.as_array().unwrap().clone()].concat();
    assert_eq!(both, Value::Array(joined));
    assert_eq!(routes(&mut worker, 99), both);
}

#[test]
fn many_interfaces_fit_into_one_answer() {
    if !own_network() {
        return;
    }
    for number in 0..150 {
        ip(&format!("link add a{number} type veth peer name b{number}"));
    }
    let mut worker = start();
    assert_eq!(worker.json(Request::Interfaces(NoArguments {})).as_array().unwrap().len(), 301);
    assert_eq!(worker.json(Request::PhoenixInterfaces(NoArguments {})).as_array().unwrap().len(), 301);
}
