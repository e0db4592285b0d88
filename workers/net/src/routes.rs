//! `guest-network-get-route`, from two files of /proc/net, and Phoenix's `get-route-list`, from a dump.
//!
//! Runs in the net worker. The files are opened before the jail is shut and read anew for each request.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use nix::errno::Errno;
use proto::Failed;
use proto::net::{PhoenixNetwork, PhoenixRoute, Route};

use crate::address;
use crate::interfaces::{bounded, links};
use crate::netlink::{Attributes, Netlink, attributes, number};

/// The most that is read of one file: some 80,000 routes, more than a reply may have.
const FILE_MAX: usize = 12 * 1024 * 1024;

/// /proc/net/route and /proc/net/ipv6_route of the network namespace in which they were opened.
pub(crate) struct RouteFiles {
    ipv4: Option<File>,
    ipv6: Option<File>,
}

impl RouteFiles {
    /// Opens what is there: a kernel without IPv6, or booted with `ipv6.disable=1`, lacks the second.
    pub(crate) fn open() -> Self {
        RouteFiles {
            ipv4: File::open("/proc/self/net/route").ok(),
            ipv6: File::open("/proc/self/net/ipv6_route").ok(),
        }
    }

    /// `guest-network-get-route`: IPv4 of the main table, then IPv6 of all tables.
    ///
    /// # Errors
    /// When a file cannot be read, in qemu-ga's words as far as it has any.
    pub(crate) fn read(&self) -> Result<Vec<Route>, Failed> {
        let mut routes = Vec::new();
        if let Some(file) = &self.ipv4 {
            let text = content(file).map_err(|error| unreadable("route", &error))?;
            routes.extend(text.split(|byte| *byte == b'\n').skip(1).filter_map(ipv4));
        }
        if let Some(file) = &self.ipv6 {
            let text = content(file).map_err(|error| unreadable("ipv6_route", &error))?;
            routes.extend(text.split(|byte| *byte == b'\n').filter_map(ipv6));
        }
        bounded(routes.len())?;
        Ok(routes)
    }
}

fn unreadable(name: &str, error: &io::Error) -> Failed {
    Failed::system(format_args!("read(\"/proc/net/{name}\")"), error.raw_os_error().unwrap_or(libc::EFBIG))
}

/// The whole file from its beginning; the kernel makes it anew for that.
fn content(file: &File) -> io::Result<Vec<u8>> {
    const STEP: usize = 16 * 1024;
    let mut content = vec![0; STEP];
    let mut length: usize = 0;
    loop {
        let room = content.get_mut(length..).unwrap_or_default();
        match file.read_at(room, length as u64) {
            Ok(0) => break,
            Ok(count) => length = length.saturating_add(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if length >= FILE_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        if content.len().saturating_sub(length) < STEP / 4 {
            content.resize(content.len().saturating_mul(2), 0);
        }
    }
    content.truncate(length);
    Ok(content)
}

fn fields<const N: usize>(line: &[u8]) -> Option<[&str; N]> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let mut fields = [""; N];
    for field in &mut fields {
        *field = words.next()?;
    }
    Some(fields)
}

fn hex(field: &str) -> Option<u32> {
    u32::from_str_radix(field, 16).ok()
}

/// A line of /proc/net/route (net/ipv4/fib_trie.c, fib_route_seq_show). Addresses are big-endian numbers printed
/// as this machine's.
fn ipv4(line: &[u8]) -> Option<Route> {
    let [iface, destination, gateway, flags, refcnt, r#use, metric, mask, mtu, window, irtt] = fields(line)?;
    let address = |field| hex(field).and_then(|number| address::text(&number.to_ne_bytes()));
    let decimal = |field: &str| field.parse::<i64>().ok();
    Some(Route {
        iface: iface.to_owned(),
        destination: address(destination)?,
        metric: decimal(metric)?,
        gateway: Some(address(gateway)?),
        mask: Some(address(mask)?),
        irtt: Some(decimal(irtt)?),
        flags: Some(hex(flags)?.into()),
        refcnt: Some(decimal(refcnt)?),
        r#use: Some(decimal(r#use)?),
        window: Some(decimal(window)?),
        mtu: Some(decimal(mtu)?),
        version: 4,
        ..Route::default()
    })
}

/// A line of /proc/net/ipv6_route (net/ipv6/ip6_fib.c, ipv6_route_native_seq_show): all numbers are hexadecimal.
fn ipv6(line: &[u8]) -> Option<Route> {
    let [destination, destination_bits, source, source_bits, next_hop, metric, refcnt, r#use, flags, iface] =
        fields(line)?;
    let address = |field: &str| {
        let bytes = u128::from_str_radix(field, 16).ok().filter(|_| field.len() == 32)?.to_be_bytes();
        address::text(&bytes)
    };
    Some(Route {
        iface: iface.to_owned(),
        destination: address(destination)?,
        metric: hex(metric)?.into(),
        flags: Some(hex(flags)?.into()),
        refcnt: Some(hex(refcnt)?.into()),
        r#use: Some(hex(r#use)?.into()),
        desprefixlen: Some(hex(destination_bits)?.to_string()),
        source: Some(address(source)?),
        srcprefixlen: Some(hex(source_bits)?.to_string()),
        nexthop: Some(address(next_hop)?),
        version: 6,
        ..Route::default()
    })
}

/// `struct rtmsg`.
const HEADER: usize = 12;

/// A route before its interface has a name: one for each next hop.
#[derive(Debug, PartialEq)]
struct Hop {
    interface: Option<u32>,
    route: PhoenixRoute,
}

/// Phoenix's `get-route-list`. `family`: 2 for IPv4, 10 for IPv6, anything else for both.
///
/// # Errors
/// `rtnetlink: …`, in the words of the netlink library of Phoenix's agent.
pub(crate) fn phoenix(netlink: &mut Netlink, family: i64) -> Result<Vec<PhoenixRoute>, Failed> {
    let failed = |errno: Errno| Failed::rtnetlink(proto::go_errno_text(errno as i32));
    let mut request = [0; HEADER];
    let [asked, ..] = &mut request;
    *asked = match family {
        2 => 2,
        10 => 10,
        _ => 0,
    };
    let hops = netlink
        .dump(libc::RTM_GETROUTE, &request, |hops: &mut Vec<Hop>, kind, body| {
            if kind == libc::RTM_NEWROUTE {
                hops.extend(route(body).unwrap_or_default());
            }
        })
        .map_err(failed)?;
    bounded(hops.len())?;
    if hops.is_empty() {
        return Ok(Vec::new());
    }
    let names: HashMap<u32, String> = links(netlink, false)
        .map_err(failed)?
        .into_iter()
        .map(|link| (link.index.unsigned_abs(), link.name))
        .collect();
    let named = |Hop { interface, mut route }| {
        route.ifname = interface.and_then(|number| names.get(&number).cloned()).unwrap_or_default();
        route
    };
    Ok(hops.into_iter().map(named).collect())
}

/// The hops of one route; nothing for one that is not shown.
fn route(body: &[u8]) -> Option<Vec<Hop>> {
    let [family, prefix, _, _, table, _, scope, _, f0, f1, f2, f3] = *body.first_chunk::<HEADER>()?;
    let ipv6 = match i32::from(family) {
        libc::AF_INET => false,
        libc::AF_INET6 => true,
        _ => return None,
    };
    let cached = u32::from_ne_bytes([f0, f1, f2, f3]) & libc::RTM_F_CLONED != 0;
    if table != libc::RT_TABLE_MAIN || cached {
        return None;
    }
    let mut route = PhoenixRoute { scope, ..PhoenixRoute::default() };
    let (mut interface, mut hops) = (None, None);
    for (attribute, value) in attributes(body, HEADER) {
        match attribute {
            libc::RTA_DST => {
                let ip = address::text(value).unwrap_or_default();
                route.dst = PhoenixNetwork { ip, mask: address::mask(prefix, ipv6) };
            }
            libc::RTA_PREFSRC => route.src = address::text(value).unwrap_or_default(),
            libc::RTA_OIF => interface = number(value),
            libc::RTA_MULTIPATH => hops = Some(value),
            _ => {}
        }
    }
    route.gateway = gateway(attributes(body, HEADER)).unwrap_or_default();
    let Some(hops) = hops else { return Some(vec![Hop { interface, route }]) };
    Some(
        NextHops(hops)
            .map(|(interface, attributes)| {
                let gateway = gateway(attributes).unwrap_or_default();
                Hop { interface: Some(interface), route: PhoenixRoute { gateway, ..route.clone() } }
            })
            .collect(),
    )
}

/// RTA_GATEWAY, or RTA_VIA, which carries a next hop of the other family behind its number (`struct rtvia`).
fn gateway(mut attributes: Attributes<'_>) -> Option<String> {
    attributes.find_map(|(attribute, value)| match attribute {
        libc::RTA_GATEWAY => address::text(value),
        libc::RTA_VIA => value.get(2..).and_then(address::text),
        _ => None,
    })
}

/// An iterator over `struct rtnexthop`: interface number and attributes.
struct NextHops<'a>(&'a [u8]);

impl<'a> Iterator for NextHops<'a> {
    type Item = (u32, Attributes<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        const HEADER: usize = 8;
        let [l0, l1, _, _, i0, i1, i2, i3] = *self.0.first_chunk::<HEADER>()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let hop = self.0.get(..length).filter(|hop| hop.len() >= HEADER)?;
        self.0 = self.0.get(length.saturating_add(3) & !3..).unwrap_or_default();
        Some((u32::from_ne_bytes([i0, i1, i2, i3]), attributes(hop, HEADER)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_ipv4_table_becomes_a_route() {
        // As a little-endian machine prints 192.0.2.1.
        let gateway = format!("{:08X}", u32::from_ne_bytes([192, 0, 2, 1]));
        let line = format!("eth0\t00000000\t{gateway}\t0003\t0\t0\t100\t00000000\t0\t0\t0    ");
        assert_eq!(
            serde_json::to_string(&ipv4(line.as_bytes()).unwrap()).unwrap(),
            "{\"iface\":\"eth0\",\"destination\":\"0.0.0.0\",\"metric\":100,\"gateway\":\"192.0.2.1\",\"mask\":\"0.0.0.0\",\
             \"irtt\":0,\"flags\":3,\"refcnt\":0,\"use\":0,\"window\":0,\"mtu\":0,\"version\":4}"
        );
    }

    #[test]
    fn numbers_of_the_ipv6_table_are_hexadecimal_and_unsigned() {
        let line = b"20010db8000000000000000000000000 40 00000000000000000000000000000000 00 \
                     fe800000000000000000000000000001 ffffffff 0000001f 00000000 80200001      eth0";
        assert_eq!(
            serde_json::to_string(&ipv6(line).unwrap()).unwrap(),
            "{\"iface\":\"eth0\",\"destination\":\"2001:db8::\",\"metric\":4294967295,\"flags\":2149580801,\"refcnt\":31,\
             \"use\":0,\"desprefixlen\":\"64\",\"source\":\"::\",\"srcprefixlen\":\"0\",\"nexthop\":\"fe80::1\",\"version\":6}"
        );
    }

    #[test]
    fn a_line_with_fields_missing_is_left_out() {
        assert_eq!(ipv4(b"eth0\t00000000\t00000000\t0003\t0\t0\t100"), None);
        assert_eq!(ipv6(b"20010db8 40 0 00"), None);
        assert_eq!(ipv4(b""), None);
    }

    fn attribute(number: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len() + 4).unwrap();
        [&length.to_ne_bytes(), &number.to_ne_bytes(), value].concat()
    }

    fn message(table: u8, flags: u32, attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut body = vec![2, 24, 0, 0, table, 3, 0, 1];
        body.extend(flags.to_ne_bytes());
        body.extend(attributes.concat());
        body
    }

    #[test]
    fn a_blackhole_has_no_interface() {
        let hops = route(&message(254, 0, &[attribute(libc::RTA_DST, &[203, 0, 113, 0])])).unwrap();
        let dst = PhoenixNetwork { ip: "203.0.113.0".to_owned(), mask: "255.255.255.0".to_owned() };
        assert_eq!(hops, [Hop { interface: None, route: PhoenixRoute { dst, ..PhoenixRoute::default() } }]);
    }

    #[test]
    fn a_multipath_route_is_one_entry_for_each_next_hop() {
        let hop = |interface: u32, last: u8| {
            let gateway = attribute(libc::RTA_GATEWAY, &[192, 0, 2, last]);
            [&16_u16.to_ne_bytes()[..], &[0, 0], &interface.to_ne_bytes(), &gateway].concat()
        };
        let multipath = attribute(libc::RTA_MULTIPATH, &[hop(2, 1), hop(3, 9)].concat());
        let hops = route(&message(254, 0, &[multipath])).unwrap();
        let found: Vec<_> = hops.iter().map(|hop| (hop.interface, hop.route.gateway.as_str())).collect();
        assert_eq!(found, [(Some(2), "192.0.2.1"), (Some(3), "192.0.2.9")]);
    }

    #[test]
    fn other_tables_and_cached_routes_are_not_shown() {
        assert_eq!(route(&message(255, 0, &[])), None);
        assert_eq!(route(&message(254, libc::RTM_F_CLONED, &[])), None);
        assert!(route(&message(254, 0, &[])).is_some());
    }

    #[test]
    fn a_next_hop_that_does_not_fit_ends_the_list() {
        assert_eq!(NextHops(&[7, 0, 0, 0, 1, 0, 0, 0]).count(), 0);
        assert_eq!(NextHops(&[16, 0, 0, 0, 1, 0, 0, 0]).count(), 0);
    }
}
