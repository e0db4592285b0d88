//! Addresses as text, by the rules of Go's package net, which Phoenix's clients know. Runs in the netadmin worker; pure.

use std::net::{IpAddr, Ipv4Addr};

use proto::Failed;

/// An address and the length of its network part; host bits are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cidr {
    pub(crate) address: IpAddr,
    pub(crate) prefix: u8,
}

impl Cidr {
    /// Reads `ADDRESS/PREFIXLENGTH`. Masks, a missing length and leading zeros in IPv4 are refused (net.ParseCIDR).
    pub(crate) fn parse(text: &str) -> Result<Self, Failed> {
        let invalid = || Failed::rtnetlink(format_args!("invalid CIDR address: {text}"));
        let (address, length) = text.split_once('/').ok_or_else(invalid)?;
        let address: IpAddr = address.parse().map_err(|_| invalid())?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        // Number parsing of std takes a sign, Go's does not.
        let digits = Some(length).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        let prefix = digits.and_then(|digits| digits.parse().ok()).filter(|prefix| *prefix <= bits);
        Ok(Cidr { address, prefix: prefix.ok_or_else(invalid)? })
    }

    /// All host bits one; for IPv4 networks that have room for it.
    pub(crate) fn broadcast(self) -> Option<Ipv4Addr> {
        let IpAddr::V4(address) = self.address else { return None };
        let hosts = u32::MAX.checked_shr(self.prefix.into()).filter(|_| self.prefix < 31)?;
        Some(Ipv4Addr::from_bits(address.to_bits() | hosts))
    }
}

/// An address that may be left out. An IPv4 address in IPv6 form is IPv4, as everywhere in Go.
///
/// # Errors
/// What is no address. Phoenix's agent left it out then, and made another route than it was asked for.
pub(crate) fn optional(text: &str) -> Result<Option<IpAddr>, Failed> {
    if text.is_empty() {
        return Ok(None);
    }
    let address =
        text.parse::<IpAddr>().map_err(|_| Failed::rtnetlink(format_args!("invalid IP address: {text}")))?;
    Ok(Some(address.to_canonical()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<(String, u8), String> {
        Cidr::parse(text).map(|cidr| (cidr.address.to_string(), cidr.prefix)).map_err(|failed| failed.text)
    }

    #[test]
    fn an_address_with_a_length_keeps_its_host_bits() {
        assert_eq!(parsed("192.0.2.10/24"), Ok(("192.0.2.10".to_owned(), 24)));
        assert_eq!(parsed("2001:db8::10/64"), Ok(("2001:db8::10".to_owned(), 64)));
        assert_eq!(parsed("0.0.0.0/0"), Ok(("0.0.0.0".to_owned(), 0)));
        assert_eq!(parsed("::/128"), Ok(("::".to_owned(), 128)));
    }

    #[test]
    fn what_go_refuses_is_refused_with_gos_words() {
        let refused =
            |text: &str| assert_eq!(parsed(text), Err(format!("rtnetlink: invalid CIDR address: {text}")));
        refused("");
        refused("192.0.2.80");
        refused("10.0.0.1/33");
        refused("::1/129");
        refused("010.5.5.1/24");
        refused("10.0.0.1/255.255.255.0");
        refused("10.0.0.1/+8");
        refused("10.0.0.1/-1");
        refused("10.0.0.1/");
        refused("10.0.0.1/8/8");
        refused("fe80::1%eth0/64");
        refused("default");
        refused(" 10.0.0.1/8");
    }

    #[test]
    fn an_ipv4_network_with_room_for_it_has_a_broadcast_address() {
        let broadcast =
            |text: &str| Cidr::parse(text).unwrap().broadcast().map(|address| address.to_string());
        assert_eq!(broadcast("192.0.2.10/24").as_deref(), Some("192.0.2.255"));
        assert_eq!(broadcast("10.1.2.3/0").as_deref(), Some("255.255.255.255"));
        assert_eq!(broadcast("192.0.2.10/30").as_deref(), Some("192.0.2.11"));
        assert_eq!(broadcast("192.0.2.10/31"), None);
        assert_eq!(broadcast("192.0.2.10/32"), None);
        assert_eq!(broadcast("2001:db8::1/64"), None);
    }

    #[test]
    fn an_optional_address_may_be_empty_but_not_nonsense() {
        assert_eq!(optional("").unwrap(), None);
        assert_eq!(optional("::ffff:192.0.2.1").unwrap().unwrap().to_string(), "192.0.2.1");
        assert_eq!(optional("nonsense").unwrap_err().text, "rtnetlink: invalid IP address: nonsense");
    }
}
