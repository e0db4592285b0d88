//! The changes, each one request to the kernel after one lookup of the interface.
//!
//! Runs in the netadmin worker. Messages, order of checks and error texts are those of Phoenix's agent 0.7.2 and
//! of the Go netlink library it used; what the kernel refuses, it refuses in the kernel's words.

use std::net::IpAddr;

use futures_util::StreamExt as _;
use proto::netadmin::{Address, Link, Route};
use proto::{Failed, go_errno_text};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{LinkExtentMask, LinkMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{Error, Handle, LinkUnspec};

use crate::cidr::{Cidr, optional};

/// IFNAMSIZ without the final NUL, for names and labels alike.
const NAME: usize = 15;

/// The way to the kernel.
pub(crate) struct Changes(Handle);

impl Changes {
    pub(crate) fn new(handle: Handle) -> Self {
        Changes(handle)
    }

    pub(crate) async fn add_address(&self, address: &Address) -> Result<bool, Failed> {
        let message = self.address(address).await?;
        // The library makes another message of a multicast address.
        let mut request = self.0.address().add(0, IpAddr::from([0; 4]), 0);
        *request.message_mut() = message;
        done(request.execute().await)
    }

    pub(crate) async fn delete_address(&self, address: &Address) -> Result<bool, Failed> {
        let message = self.address(address).await?;
        done(self.0.address().del(message).execute().await)
    }

    /// The interface first, then the address, then the label: a request with several faults names the first.
    async fn address(&self, Address { ip, ifname }: &Address) -> Result<AddressMessage, Failed> {
        let index = self.find(ifname).await.map_err(link_not_found)?;
        let mut words = ip.split(' ');
        let cidr = Cidr::parse(words.next().unwrap_or_default())?;
        let label = words.next().unwrap_or_default();
        if !label.starts_with(ifname.as_str()) && !label.is_empty() {
            return Err(Failed::rtnetlink("label must begin with interface name"));
        }
        let mut message = AddressMessage::default();
        message.header.index = index;
        message.header.prefix_len = cidr.prefix;
        message.header.family = family(cidr.address);
        message.attributes =
            vec![AddressAttribute::Local(cidr.address), AddressAttribute::Address(cidr.address)];
        message.attributes.extend(cidr.broadcast().map(AddressAttribute::Broadcast));
        if cidr.address.is_ipv4() && !label.is_empty() {
            if label.len() > NAME {
                return Err(refused(libc::ERANGE));
            }
            message.attributes.push(AddressAttribute::Label(label.to_owned()));
        }
        Ok(message)
    }

    pub(crate) async fn set_link(&self, Link { ifname }: &Link, up: bool) -> Result<bool, Failed> {
        // Phoenix's agent went on without the number of an unknown interface, whatever the reason.
        let index = self.find(ifname).await.map_err(|_| refused(libc::ENODEV))?;
        let link = LinkUnspec::new_with_index(index);
        let link: LinkMessage = if up { link.up().build() } else { link.down().build() };
        done(self.0.link().set(link).execute().await)
    }

    pub(crate) async fn add_route(&self, route: &Route) -> Result<bool, Failed> {
        let mut message = self.route(route).await?;
        message.header.protocol = RouteProtocol::Boot;
        message.header.kind = RouteType::Unicast;
        done(self.0.route().add(message).execute().await)
    }

    pub(crate) async fn delete_route(&self, route: &Route) -> Result<bool, Failed> {
        // Protocol and type 0 match any.
        let message = self.route(route).await?;
        done(self.0.route().del(message).execute().await)
    }

    async fn route(
        &self,
        Route { ifname, dst, src, gateway, scope }: &Route,
    ) -> Result<RouteMessage, Failed> {
        let index = self.find(ifname).await.map_err(link_not_found)?;
        let dst = Cidr::parse(dst)?;
        let (src, gateway) = (optional(src)?, optional(gateway)?);
        let scope = scope.unwrap_or_default();
        let scope = u8::try_from(scope)
            .map_err(|_| Failed::rtnetlink(format_args!("scope is not between 0 and 255: {scope}")))?;
        if src.is_some_and(|src| src.is_ipv4() != dst.address.is_ipv4()) {
            return Err(Failed::rtnetlink("source and destination ip are not the same IP family"));
        }
        if gateway.is_some_and(|gateway| gateway.is_ipv4() != dst.address.is_ipv4()) {
            let text = "gateway, source, and destination ip are not the same IP family";
            return Err(Failed::rtnetlink(text));
        }
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: family(dst.address),
            destination_prefix_length: dst.prefix,
            table: RouteHeader::RT_TABLE_MAIN,
            protocol: RouteProtocol::Unspec,
            scope: RouteScope::from(scope),
            kind: RouteType::Unspec,
            ..RouteHeader::default()
        };
        message.attributes.push(RouteAttribute::Destination(address(dst.address)));
        message.attributes.extend(src.map(|src| RouteAttribute::PrefSource(address(src))));
        message.attributes.extend(gateway.map(|gateway| RouteAttribute::Gateway(address(gateway))));
        message.attributes.push(RouteAttribute::Oif(index));
        Ok(message)
    }

    /// The kernel's number of the interface called `name`; else an errno.
    async fn find(&self, name: &str) -> Result<u32, i32> {
        // The kernel says so too, but a longer one might not even fit into an attribute.
        if name.len() > NAME {
            return Err(libc::ERANGE);
        }
        let request = self.0.link().get().match_name(name);
        let request = request.set_filter_mask(AddressFamily::Unspec, vec![LinkExtentMask::SkipStats]);
        let mut links = std::pin::pin!(request.execute());
        match links.next().await {
            Some(Ok(link)) => Ok(link.header.index),
            Some(Err(Error::NetlinkError(error))) => Err(error.raw_code().saturating_neg()),
            Some(Err(_)) | None => Err(libc::ENODEV),
        }
    }
}

/// Addresses and routes have another text for an unknown interface than links.
fn link_not_found(errno: i32) -> Failed {
    if errno == libc::ENODEV { Failed::rtnetlink("Link not found") } else { refused(errno) }
}

/// Without the number: Phoenix's code of every network failure is -1.
fn refused(errno: i32) -> Failed {
    Failed::rtnetlink(go_errno_text(errno))
}

fn done(result: Result<(), Error>) -> Result<bool, Failed> {
    match result {
        Ok(()) => Ok(true),
        Err(Error::NetlinkError(error)) => Err(refused(error.raw_code().saturating_neg())),
        Err(error) => Err(Failed::rtnetlink(error)),
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    }
}
