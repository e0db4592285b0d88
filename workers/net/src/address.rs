//! Addresses as text. Runs in the net worker; pure.

use std::net::{Ipv4Addr, Ipv6Addr};

/// An IPv4 address of four bytes or an IPv6 address of sixteen, as inet_ntop(3) writes it.
pub(crate) fn text(bytes: &[u8]) -> Option<String> {
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(bytes).to_string());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|bytes| ipv6(&bytes.into()))
}

/// std writes `::102:304` where glibc (resolv/inet_ntop.c) has `::1.2.3.4`; all else is the same.
fn ipv6(address: &Ipv6Addr) -> String {
    let [zeros @ .., high, _] = address.segments();
    match (zeros, address.octets()) {
        ([0, 0, 0, 0, 0, 0], [.., a, b, c, d]) if high != 0 => format!("::{a}.{b}.{c}.{d}"),
        _ => address.to_string(),
    }
}

/// The mask of a prefix, written as an address.
pub(crate) fn mask(prefix: u8, ipv6: bool) -> String {
    let ones = u32::from(prefix);
    if ipv6 {
        let host = 128_u32.saturating_sub(ones);
        Ipv6Addr::from(u128::MAX.checked_shl(host).unwrap_or(0)).to_string()
    } else {
        let host = 32_u32.saturating_sub(ones);
        Ipv4Addr::from(u32::MAX.checked_shl(host).unwrap_or(0)).to_string()
    }
}

/// Bytes in lower-case hexadecimal with colons between.
pub(crate) fn hardware(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().saturating_mul(3));
    for byte in bytes {
        if !text.is_empty() {
            text.push(':');
        }
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(digit.into(), 16).unwrap_or('0'));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(address: &str) -> String {
        text(&address.parse::<Ipv6Addr>().unwrap().octets()).unwrap()
    }

    #[test]
    fn an_address_reads_as_the_c_library_writes_it() {
        assert_eq!(text(&[192, 0, 2, 1]).as_deref(), Some("192.0.2.1"));
        assert_eq!(of("2001:db8:0:0:1:0:0:1"), "2001:db8::1:0:0:1");
        assert_eq!(of("::ffff:192.0.2.1"), "::ffff:192.0.2.1");
        assert_eq!(of("::192.0.2.1"), "::192.0.2.1");
        assert_eq!(of("::1"), "::1");
        assert_eq!(of("::"), "::");
    }

    #[test]
    fn bytes_that_are_no_address_have_no_text() {
        assert_eq!(text(&[192, 0, 2]), None);
        assert_eq!(text(&[]), None);
    }

    #[test]
    fn a_mask_is_written_as_an_address_in_both_families() {
        assert_eq!(mask(24, false), "255.255.255.0");
        assert_eq!(mask(0, false), "0.0.0.0");
        assert_eq!(mask(32, false), "255.255.255.255");
        assert_eq!(mask(64, true), "ffff:ffff:ffff:ffff::");
        assert_eq!(mask(128, true), "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff");
        assert_eq!(mask(200, false), "255.255.255.255");
    }

    #[test]
    fn a_hardware_address_has_two_digits_for_each_byte() {
        assert_eq!(hardware(&[2, 0, 0xab, 0xcd, 0xef, 0x10]), "02:00:ab:cd:ef:10");
        assert_eq!(hardware(&[]), "");
    }
}
