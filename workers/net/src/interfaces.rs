//! `guest-network-get-interfaces` and Phoenix's `get-netifaces`, from one dump of links and one of addresses.
//!
//! Runs in the net worker. The order and the peculiarities are getifaddrs(3)'s, which qemu-ga uses, and Go's
//! package net's, which Phoenix's agent used.

use std::collections::HashMap;

use nix::errno::Errno;
use proto::net::{Interface, InterfaceStatistics, IpAddress, IpVersion, PhoenixInterface};
use proto::{Failed, errno_text};

use crate::address;
use crate::netlink::{Netlink, attributes, string};

/// `struct ifinfomsg` and `struct ifaddrmsg`.
const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;

/// Entries of one reply; with more it would not fit into what clients take in one line.
const ENTRIES: usize = 16_384;

/// A link as the kernel dumps it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Link {
    /// The kernel's number, positive.
    pub(crate) index: i32,
    pub(crate) name: String,
    /// ARPHRD_ number.
    kind: u16,
    flags: u32,
    hardware: Vec<u8>,
    statistics: InterfaceStatistics,
}

/// An address of a link.
#[derive(Debug, PartialEq)]
struct Address {
    link: u32,
    version: IpVersion,
    prefix: u8,
    text: String,
    /// IPv4 only.
    label: Option<String>,
}

/// All links, with their counters or without.
pub(crate) fn links(netlink: &mut Netlink, statistics: bool) -> Result<Vec<Link>, Errno> {
    // linux/rtnetlink.h: counters are most of what a link's message holds. Virtual functions are not asked for.
    const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
    let mut request = vec![0; LINK_HEADER];
    if !statistics {
        request.extend_from_slice(&8_u16.to_ne_bytes());
        request.extend_from_slice(&libc::IFLA_EXT_MASK.to_ne_bytes());
        request.extend_from_slice(&RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
    }
    netlink.dump(libc::RTM_GETLINK, &request, |links: &mut Vec<Link>, kind, body| {
        if kind == libc::RTM_NEWLINK {
            links.extend(link(body));
        }
    })
}

fn link(body: &[u8]) -> Option<Link> {
    let [_, _, k0, k1, i0, i1, i2, i3, f0, f1, f2, f3, ..] = *body.first_chunk::<LINK_HEADER>()?;
    let mut link = Link {
        index: i32::from_ne_bytes([i0, i1, i2, i3]),
        kind: u16::from_ne_bytes([k0, k1]),
        flags: u32::from_ne_bytes([f0, f1, f2, f3]),
        ..Link::default()
    };
    for (attribute, value) in attributes(body, LINK_HEADER) {
        match attribute {
            libc::IFLA_IFNAME => link.name = string(value),
            libc::IFLA_ADDRESS => link.hardware = value.to_vec(),
            libc::IFLA_STATS64 => link.statistics = statistics(value),
            _ => {}
        }
    }
    Some(link)
}

/// `struct rtnl_link_stats64` as /proc/net/dev shows it (net/core/net-procfs.c, dev_seq_printf_stats): what the device
/// missed counts as dropped.
fn statistics(value: &[u8]) -> InterfaceStatistics {
    let (counters, _) = value.as_chunks::<8>();
    let counter = |position: usize| counters.get(position).map_or(0, |counter| u64::from_ne_bytes(*counter));
    const MISSED: usize = 15;
    InterfaceStatistics {
        rx_packets: counter(0),
        tx_packets: counter(1),
        rx_bytes: counter(2),
        tx_bytes: counter(3),
        rx_errs: counter(4),
        tx_errs: counter(5),
        rx_dropped: counter(6).wrapping_add(counter(MISSED)),
        tx_dropped: counter(7),
    }
}

/// All IPv4 addresses, then all IPv6 addresses.
fn addresses(netlink: &mut Netlink) -> Result<Vec<Address>, Errno> {
    netlink.dump(libc::RTM_GETADDR, &[0; ADDRESS_HEADER], |addresses: &mut Vec<Address>, kind, body| {
        if kind == libc::RTM_NEWADDR {
            addresses.extend(address_of(body));
        }
    })
}

fn address_of(body: &[u8]) -> Option<Address> {
    let [family, prefix, _, _, i0, i1, i2, i3] = *body.first_chunk::<ADDRESS_HEADER>()?;
    let (version, length) = match i32::from(family) {
        libc::AF_INET => (IpVersion::Ipv4, 4),
        libc::AF_INET6 => (IpVersion::Ipv6, 16),
        _ => return None,
    };
    let (mut local, mut other, mut label) = (None, None, None);
    for (attribute, value) in attributes(body, ADDRESS_HEADER) {
        match attribute {
            libc::IFA_LOCAL => local = Some(value),
            libc::IFA_ADDRESS => other = Some(value),
            libc::IFA_LABEL => label = Some(string(value)),
            _ => {}
        }
    }
    // On a point-to-point link IFA_ADDRESS is the peer's (linux/if_addr.h).
    let text = local.or(other).filter(|bytes| bytes.len() == length).and_then(address::text)?;
    Some(Address { link: u32::from_ne_bytes([i0, i1, i2, i3]), version, prefix, text, label })
}

/// `guest-network-get-interfaces`.
///
/// # Errors
/// `getifaddrs failed: …`, in qemu-ga's words.
pub(crate) fn qga(netlink: &mut Netlink) -> Result<Vec<Interface>, Failed> {
    let failed = |errno: Errno| Failed::system("getifaddrs failed", errno as i32);
    let links = links(netlink, true).map_err(failed)?;
    let addresses = addresses(netlink).map_err(failed)?;
    bounded(links.len().saturating_add(addresses.len()))?;
    Ok(qga_entries(&links, addresses))
}

/// One entry for each name, in the order of first appearance: links, then labels of IPv4 addresses.
fn qga_entries(links: &[Link], addresses: Vec<Address>) -> Vec<Interface> {
    let mut places: HashMap<String, usize> = HashMap::with_capacity(links.len());
    let mut by_number: HashMap<u32, usize> = HashMap::with_capacity(links.len());
    let mut entries: Vec<Interface> = Vec::with_capacity(links.len());
    for (position, link) in links.iter().enumerate() {
        places.insert(link.name.clone(), position);
        by_number.insert(link.index.unsigned_abs(), position);
        entries.push(Interface {
            name: link.name.clone(),
            hardware_address: Some(six_bytes(link)),
            ip_addresses: None,
            statistics: None,
        });
    }
    for address in addresses {
        // A link that came between the two dumps: getifaddrs(3) would start again; the next request shows it.
        let Some(link) = by_number.get(&address.link).and_then(|position| links.get(*position)) else {
            continue;
        };
        let name = address.label.unwrap_or_else(|| link.name.clone());
        let place = *places.entry(name).or_insert_with_key(|name| {
            entries.push(labelled(name, links));
            entries.len().saturating_sub(1)
        });
        let Some(entry) = entries.get_mut(place) else { continue };
        entry.ip_addresses.get_or_insert_default().push(IpAddress {
            ip_address: address.text,
            ip_address_type: address.version,
            prefix: address.prefix.into(),
        });
        // Looked up in /proc/net/dev by the whole name, so a label has none.
        if let Some(link) = links.get(place) {
            entry.statistics = Some(link.statistics);
        }
    }
    entries
}

/// An entry for an address label. SIOCGIFHWADDR takes the part before the colon for the device; a label
/// that names none has no hardware address (netdevice(7); net/core/dev_ioctl.c, dev_ioctl).
fn labelled(label: &str, links: &[Link]) -> Interface {
    let device = label.split(':').next().unwrap_or_default();
    let hardware_address = links.iter().find(|link| link.name == device).map(six_bytes);
    Interface { name: label.to_owned(), hardware_address, ip_addresses: None, statistics: None }
}

/// What qemu-ga prints of SIOCGIFHWADDR: six bytes, whatever the link has.
fn six_bytes(link: &Link) -> String {
    let mut bytes = [0; 6];
    for (to, from) in bytes.iter_mut().zip(&link.hardware) {
        *to = *from;
    }
    address::hardware(&bytes)
}

/// Phoenix's `get-netifaces`.
///
/// # Errors
/// `route ip+net: …`, in the words of Go's package net.
pub(crate) fn phoenix(netlink: &mut Netlink) -> Result<Vec<PhoenixInterface>, Failed> {
    let failed = |errno: Errno| Failed {
        text: format!("route ip+net: netlinkrib: {}", errno_text(errno as i32).to_lowercase()),
        errno: None,
    };
    let links = links(netlink, false).map_err(failed)?;
    let addresses = addresses(netlink).map_err(failed)?;
    bounded(links.len().saturating_add(addresses.len()))?;
    Ok(phoenix_entries(&links, addresses))
}

fn phoenix_entries(links: &[Link], addresses: Vec<Address>) -> Vec<PhoenixInterface> {
    let mut by_link: HashMap<u32, Vec<String>> = HashMap::new();
    for address in addresses {
        by_link.entry(address.link).or_default().push(format!("{}/{}", address.text, address.prefix));
    }
    links
        .iter()
        .map(|link| PhoenixInterface {
            index: link.index.into(),
            name: link.name.clone(),
            hwaddr: go_hardware(link),
            flags: go_flags(link.flags),
            ips: by_link.remove(&link.index.unsigned_abs()).unwrap_or_default(),
        })
        .collect()
}

/// Empty if all zero, or if it is the tunnel's own IP address (Go, net/interface_linux.go, newLink).
fn go_hardware(link: &Link) -> String {
    const IPV4_TUNNELS: [u16; 3] = [libc::ARPHRD_TUNNEL, libc::ARPHRD_SIT, libc::ARPHRD_IPGRE];
    const IPV6_TUNNELS: [u16; 2] = [libc::ARPHRD_TUNNEL6, ARPHRD_IP6GRE];
    /// linux/if_arp.h
    const ARPHRD_IP6GRE: u16 = 823;
    let of_tunnel = match link.hardware.len() {
        4 => IPV4_TUNNELS.contains(&link.kind),
        16 => IPV6_TUNNELS.contains(&link.kind),
        _ => false,
    };
    let nothing = of_tunnel || link.hardware.iter().all(|byte| *byte == 0);
    if nothing { String::new() } else { address::hardware(&link.hardware) }
}

fn go_flags(flags: u32) -> String {
    let names = [
        (libc::IFF_UP, "up"),
        (libc::IFF_BROADCAST, "broadcast"),
        (libc::IFF_LOOPBACK, "loopback"),
        (libc::IFF_POINTOPOINT, "pointtopoint"),
        (libc::IFF_MULTICAST, "multicast"),
    ];
    let set: Vec<&str> =
        names.iter().filter(|(flag, _)| flags & flag.unsigned_abs() != 0).map(|(_, name)| *name).collect();
    if set.is_empty() { "0".to_owned() } else { set.join("|") }
}

/// A reply that the broker could not pass on would end this worker; nobody has so many.
pub(crate) fn bounded(count: usize) -> Result<(), Failed> {
    if count <= ENTRIES {
        return Ok(());
    }
    Err(Failed::new(format!("{count} entries are more than a reply may have ({ENTRIES})")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(index: i32, name: &str, hardware: &[u8]) -> Link {
        let statistics = InterfaceStatistics { rx_bytes: 7, ..InterfaceStatistics::default() };
        Link { index, name: name.to_owned(), hardware: hardware.to_vec(), statistics, ..Link::default() }
    }

    fn ipv4(link: u32, text: &str, label: &str) -> Address {
        let label = Some(label.to_owned());
        Address { link, version: IpVersion::Ipv4, prefix: 24, text: text.to_owned(), label }
    }

    fn json(entries: Vec<Interface>) -> String {
        serde_json::to_string(&entries).unwrap()
    }

    #[test]
    fn a_label_is_an_entry_of_its_own_with_its_devices_hardware_address_and_no_counters() {
        let links = [device(1, "eth0", &[2, 0, 0, 0, 0, 1])];
        let entries = qga_entries(&links, vec![ipv4(1, "192.0.2.1", "eth0"), ipv4(1, "192.0.2.2", "eth0:1")]);
        assert_eq!(
            json(entries),
            "[{\"name\":\"eth0\",\"hardware-address\":\"02:00:00:00:00:01\",\
             \"ip-addresses\":[{\"ip-address\":\"192.0.2.1\",\"ip-address-type\":\"ipv4\",\"prefix\":24}],\
             \"statistics\":{\"rx-bytes\":7,\"rx-packets\":0,\"rx-errs\":0,\"rx-dropped\":0,\
             \"tx-bytes\":0,\"tx-packets\":0,\"tx-errs\":0,\"tx-dropped\":0}},\
             {\"name\":\"eth0:1\",\"hardware-address\":\"02:00:00:00:00:01\",\
             \"ip-addresses\":[{\"ip-address\":\"192.0.2.2\",\"ip-address-type\":\"ipv4\",\"prefix\":24}]}]"
        );
    }

    #[test]
    fn a_label_that_names_no_device_has_no_hardware_address() {
        let entries = qga_entries(&[device(1, "eth0", &[2; 6])], vec![ipv4(1, "192.0.2.2", "web")]);
        let label = entries.get(1).unwrap();
        assert_eq!((label.name.as_str(), &label.hardware_address), ("web", &None));
    }

    #[test]
    fn an_interface_without_an_address_has_neither_addresses_nor_counters() {
        let entries = qga_entries(&[device(1, "lo", &[])], Vec::new());
        assert_eq!(json(entries), "[{\"name\":\"lo\",\"hardware-address\":\"00:00:00:00:00:00\"}]");
    }

    #[test]
    fn an_infiniband_address_is_cut_to_six_bytes_for_qemus_clients_and_whole_for_phoenixs() {
        let link = device(1, "ib0", &[0x80, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(six_bytes(&link), "80:01:02:03:04:05");
        assert_eq!(go_hardware(&link), "80:01:02:03:04:05:06:07");
    }

    #[test]
    fn phoenix_leaves_out_the_hardware_address_of_loopback_and_tunnels() {
        assert_eq!(go_hardware(&device(1, "lo", &[0; 6])), "");
        let tunnel = Link { kind: libc::ARPHRD_SIT, ..device(2, "sit0", &[192, 0, 2, 1]) };
        assert_eq!(go_hardware(&tunnel), "");
    }

    #[test]
    fn phoenix_names_five_flags_in_their_order_or_zero() {
        assert_eq!(go_flags(0x0001_1043), "up|broadcast|multicast");
        assert_eq!(go_flags(0x0000_0040), "0");
    }

    /// net/core/net-procfs.c, dev_seq_printf_stats: rx_dropped + rx_missed_errors.
    #[test]
    fn what_the_device_missed_counts_as_dropped() {
        let counters: Vec<u8> = (1_u64..=24).flat_map(u64::to_ne_bytes).collect();
        let found = statistics(&counters);
        assert_eq!((found.rx_packets, found.tx_dropped, found.rx_dropped), (1, 8, 7 + 16));
    }

    #[test]
    fn an_older_kernels_shorter_counters_leave_the_rest_zero() {
        assert_eq!(statistics(&[0; 12]), InterfaceStatistics::default());
    }

    #[test]
    fn on_a_point_to_point_link_the_local_address_is_shown() {
        let mut body = vec![2, 32, 0, 0, 3, 0, 0, 0];
        body.extend([8, 0, 1, 0, 10, 1, 1, 2]); // IFA_ADDRESS: the peer's
        body.extend([8, 0, 2, 0, 10, 1, 1, 1]); // IFA_LOCAL
        let address = address_of(&body).unwrap();
        assert_eq!((address.link, address.prefix, address.text.as_str()), (3, 32, "10.1.1.1"));
    }

    #[test]
    fn an_address_of_the_wrong_length_is_left_out() {
        assert_eq!(address_of(&[10, 64, 0, 0, 3, 0, 0, 0, 8, 0, 1, 0, 10, 1, 1, 2]), None);
        assert_eq!(address_of(&[2, 32, 0]), None);
    }
}
