//! Changes of the network: Phoenix only. They need CAP_NET_ADMIN, so a worker of its own makes them, which
//! cannot be started unless the policy permits a change.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

commands! {
    privilege NetAdmin;
    /// Gives an interface an address.
    NetChange Phoenix "ipaddr-add" | "linux-ipaddr-add" => AddAddress(Address) -> bool;
    /// Takes an address away.
    NetChange Phoenix "ipaddr-del" | "linux-ipaddr-del" => DeleteAddress(Address) -> bool;
    /// Sets a link up.
    NetChange Phoenix "net-iface-up" => LinkUp(Link) -> bool;
    /// Sets a link down.
    NetChange Phoenix "net-iface-down" => LinkDown(Link) -> bool;
    /// Adds a route to the main table.
    NetChange Phoenix "route-add" => AddRoute(Route) -> bool;
    /// Removes one.
    NetChange Phoenix "route-del" => DeleteRoute(Route) -> bool;
}

/// Arguments of `ipaddr-add` and `ipaddr-del`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode, Deserialize, Serialize)]
pub struct Address {
    /// `ADDRESS/PREFIXLENGTH`, and for IPv4 possibly a space and a label.
    #[serde(default)]
    pub ip: String,
    /// The interface.
    #[serde(default)]
    pub ifname: String,
}

/// Arguments of `net-iface-up` and `net-iface-down`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode, Deserialize, Serialize)]
pub struct Link {
    /// The interface.
    #[serde(default)]
    pub ifname: String,
}

/// Arguments of `route-add` and `route-del`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode, Deserialize, Serialize)]
pub struct Route {
    /// Outgoing interface.
    #[serde(default)]
    pub ifname: String,
    /// `ADDRESS/PREFIXLENGTH`; `0.0.0.0/0` or `::/0` for the default route.
    #[serde(default)]
    pub dst: String,
    /// Preferred source address, or empty.
    #[serde(default)]
    pub src: String,
    /// Next hop, or empty.
    #[serde(default)]
    pub gateway: String,
    /// 0 to 255; on delete, 255 matches any.
    #[serde(default)]
    pub scope: Option<i64>,
}
