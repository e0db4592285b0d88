//! Interfaces and routes, read. Link, address and route dumps of rtnetlink need no right at all.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::NoArguments;

commands! {
    privilege Net;
    /// Interfaces, their addresses and counters.
    NetQuery Qga "guest-network-get-interfaces" => Interfaces(NoArguments) -> Vec<Interface>;
    /// Routes of both families.
    NetQuery Qga "guest-network-get-route" => Routes(NoArguments) -> Vec<Route>;
    /// Interfaces and their addresses.
    NetQuery Phoenix "get-netifaces" => PhoenixInterfaces(NoArguments) -> Vec<PhoenixInterface>;
    /// Routes of the main table.
    NetQuery Phoenix "get-route-list" => PhoenixRoutes(RouteFamily) -> Vec<PhoenixRoute>;
}

/// One interface of `guest-network-get-interfaces`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Interface {
    /// Its name, or an address label such as `eth0:1`.
    pub name: String,
    /// Six bytes in lower-case hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hardware_address: Option<String>,
    /// Absent, not empty, when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_addresses: Option<Vec<IpAddress>>,
    /// Only for interfaces with an address, as qemu-ga has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statistics: Option<InterfaceStatistics>,
}

/// One address of an interface.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct IpAddress {
    /// Without prefix length or scope.
    pub ip_address: String,
    /// `ipv4` or `ipv6`.
    pub ip_address_type: IpVersion,
    /// Bits of the network part.
    pub prefix: i64,
}

/// Address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names say it")]
pub enum IpVersion {
    Ipv4,
    Ipv6,
}

/// Counters of an interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the members are /proc/net/dev's")]
pub struct InterfaceStatistics {
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errs: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errs: u64,
    pub tx_dropped: u64,
}

/// One route of `guest-network-get-route`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode, Serialize)]
#[allow(missing_docs, reason = "the members are those of /proc/net/route and /proc/net/ipv6_route")]
pub struct Route {
    pub iface: String,
    pub destination: String,
    pub metric: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub irtt: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flags: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refcnt: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#use: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<i64>,
    /// A number, as a string.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desprefixlen: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// A number, as a string.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub srcprefixlen: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nexthop: Option<String>,
    pub version: i64,
}

/// One interface of Phoenix's `get-netifaces`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct PhoenixInterface {
    /// The kernel's number.
    pub index: i64,
    /// Its name.
    pub name: String,
    /// Colon-separated lower-case hexadecimal; empty if none or all zero.
    pub hwaddr: String,
    /// `up|broadcast|loopback|pointtopoint|multicast`, those that are set; `0` if none.
    pub flags: String,
    /// `ADDRESS/PREFIXLENGTH`, IPv4 first.
    pub ips: Vec<String>,
}

/// Arguments of Phoenix's `get-route-list`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode, Deserialize, Serialize)]
pub struct RouteFamily {
    /// 2 for IPv4, 10 for IPv6, anything else for both.
    #[serde(default)]
    pub family: i64,
}

/// One route of Phoenix's `get-route-list`; what a route does not have is `""`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct PhoenixRoute {
    /// Outgoing interface.
    pub ifname: String,
    /// 0 universe, 200 site, 253 link, 254 host, 255 nowhere.
    pub scope: u8,
    /// Destination; empty for a default route.
    pub dst: PhoenixNetwork,
    /// Preferred source address.
    pub src: String,
    /// Next hop.
    pub gateway: String,
}

/// A network in Phoenix's form.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct PhoenixNetwork {
    /// Its address.
    pub ip: String,
    /// Its mask, written as an address, for IPv6 too.
    pub mask: String,
}
