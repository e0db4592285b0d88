//! Patterns of names and paths, and networks.
//!
//! Runs in the broker and the workers. Patterns come from the policy and are trusted; what they are held against comes from
//! the host. Matching takes time in proportion to both lengths, whatever the pattern: nothing backtracks into itself.

use std::fmt;
use std::net::IpAddr;

use bincode::{Decode, Encode};

/// A name or path with `?`, `*` and `**` in it.
///
/// `?` is one byte and `*` any number of them, neither of them a `/`; `**` is any number of any bytes. `/dir/**` matches what is
/// below `/dir` and `/dir` itself. Everything else stands for itself; there is no way to quote.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Pattern {
    text: Vec<u8>,
}

/// Longest pattern in bytes.
const LONGEST: usize = 1024;

/// Why a text is no pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPattern {
    /// It would match nothing.
    #[error("an empty pattern matches nothing")]
    Empty,
    /// More than 1024 bytes.
    #[error("a pattern has at most 1024 bytes")]
    Long,
    /// Three stars or more in a row.
    #[error("`***` means nothing; `**` matches across `/`, `*` does not")]
    Stars,
    /// A path that is not absolute, or has parts that the kernel never shows.
    #[error(
        "a path pattern begins with `/` and has no empty part, `.` or `..`: it is held against the path of what was really opened"
    )]
    Path,
}

impl Pattern {
    /// A pattern of names.
    ///
    /// # Errors
    /// [`BadPattern`].
    pub fn name(text: &str) -> Result<Self, BadPattern> {
        if text.is_empty() {
            Err(BadPattern::Empty)
        } else if text.len() > LONGEST {
            Err(BadPattern::Long)
        } else if text.contains("***") {
            Err(BadPattern::Stars)
        } else {
            Ok(Pattern { text: text.as_bytes().to_vec() })
        }
    }

    /// A pattern of absolute paths.
    ///
    /// # Errors
    /// [`BadPattern`].
    pub fn path(text: &str) -> Result<Self, BadPattern> {
        let mut parts = text.split('/');
        let absolute = parts.next() == Some("");
        if !absolute || (text != "/" && parts.any(|part| matches!(part, "" | "." | ".."))) {
            return Err(BadPattern::Path);
        }
        Pattern::name(text)
    }

    /// As it was written.
    pub fn text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.text)
    }

    /// Whether it stands for one name only.
    pub fn is_literal(&self) -> bool {
        !self.text.iter().any(|byte| matches!(byte, b'*' | b'?'))
    }

    /// The deepest directory that everything it matches lies in or is: for `/var/log/**` and for `/var/log/*.gz` it is `/var/log`, for
    /// `/etc/hostname` that path itself.
    pub fn anchor(&self) -> &[u8] {
        let Some(wild) = self.text.iter().position(|byte| matches!(byte, b'*' | b'?')) else {
            return &self.text;
        };
        let before = self.text.get(..wild).unwrap_or_default();
        match before.iter().rposition(|byte| *byte == b'/') {
            None | Some(0) => b"/",
            Some(slash) => before.get(..slash).unwrap_or_default(),
        }
    }

    /// Whether it certainly matches all that `other` matches. Not every pattern that does is recognised.
    pub fn covers(&self, other: &Pattern) -> bool {
        if self.text == other.text || (other.is_literal() && self.matches(&other.text)) {
            return true;
        }
        let Some(beginning) = self.text.strip_suffix(b"*") else { return false };
        let (beginning, across) = match beginning.strip_suffix(b"*") {
            Some(beginning) => (beginning, true),
            None => (beginning, false),
        };
        if beginning.iter().any(|byte| matches!(byte, b'*' | b'?')) {
            return false;
        }
        // `BEGINNING**` matches all that begins so, `BEGINNING*` all of it without a further slash.
        let Some(rest) = other.text.strip_prefix(beginning) else { return false };
        across || !(rest.contains(&b'/') || rest.windows(2).any(|pair| pair == b"**"))
    }

    /// Whether there is a name that both match.
    pub fn overlaps(&self, other: &Pattern) -> bool {
        let forms = |pattern: &Pattern| -> Vec<Vec<Token>> {
            // `/dir/**` matches `/dir`, too.
            let itself = pattern.text.strip_suffix(b"/**").filter(|dir| !dir.is_empty());
            [Some(pattern.text.as_slice()), itself].into_iter().flatten().map(tokens).collect()
        };
        let others = forms(other);
        forms(self).iter().any(|own| others.iter().any(|other| meet(own, other)))
    }

    /// Whether it matches the whole of `name`.
    pub fn matches(&self, name: &[u8]) -> bool {
        // The one exception: `/dir/**` matches `/dir`.
        let itself = self.text.strip_suffix(b"/**").is_some_and(|dir| !dir.is_empty() && matches(dir, name));
        itself || matches(&self.text, name)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text())
    }
}

/// Two places to come back to: the last `**` and, behind it, the last `*`. An earlier star never has to take more again, since the
/// later one can take whatever it could; a `*` that meets a `/` falls back to the `**`.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut read) = (0_usize, 0_usize);
    let (mut star, mut globstar) = (None::<(usize, usize)>, None::<(usize, usize)>);
    loop {
        let rest = pattern.get(at..).unwrap_or_default();
        let byte = name.get(read).copied();
        if rest.starts_with(b"**") {
            at = at.saturating_add(2);
            (globstar, star) = (Some((at, read)), None);
            continue;
        }
        match (rest.first(), byte) {
            (Some(b'*'), _) => {
                at = at.saturating_add(1);
                star = Some((at, read));
                continue;
            }
            (None, None) => return true,
            (Some(b'?'), Some(byte)) if byte != b'/' => {
                (at, read) = (at.saturating_add(1), read.saturating_add(1));
                continue;
            }
            (Some(wanted), Some(byte)) if *wanted == byte && *wanted != b'?' => {
                (at, read) = (at.saturating_add(1), read.saturating_add(1));
                continue;
            }
            _ => {}
        }
        let taken = |place: &Option<(usize, usize)>| place.and_then(|(_, from)| name.get(from).copied());
        if let (Some((after, from)), Some(byte)) = (star, taken(&star))
            && byte != b'/'
        {
            (at, read) = (after, from.saturating_add(1));
            star = Some((after, read));
        } else if let (Some((after, from)), Some(_)) = (globstar, taken(&globstar)) {
            (at, read) = (after, from.saturating_add(1));
            (globstar, star) = (Some((after, read)), None);
        } else {
            return false;
        }
    }
}

/// What a pattern is made of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Token {
    Byte(u8),
    /// `?`
    One,
    /// `*`
    Many,
    /// `**`
    All,
}

fn tokens(mut text: &[u8]) -> Vec<Token> {
    let mut tokens = Vec::with_capacity(text.len());
    while let [first, rest @ ..] = text {
        (tokens, text) = match (first, rest) {
            (b'*', [b'*', rest @ ..]) => (push(tokens, Token::All), rest),
            (b'*', rest) => (push(tokens, Token::Many), rest),
            (b'?', rest) => (push(tokens, Token::One), rest),
            (byte, rest) => (push(tokens, Token::Byte(*byte)), rest),
        };
    }
    tokens
}

fn push(mut tokens: Vec<Token>, token: Token) -> Vec<Token> {
    tokens.push(token);
    tokens
}

/// Whether there is a name that both spell: which pairs of places can be reached with the same bytes. Takes time in proportion to
/// the product of both lengths.
fn meet(left: &[Token], right: &[Token]) -> bool {
    let is_star = |token: Option<&Token>| matches!(token, Some(Token::Many | Token::All));
    let width = right.len().saturating_add(1);
    let mut row = vec![false; width];
    if let Some(first) = row.first_mut() {
        *first = true;
    }
    for at in 0..=left.len() {
        let mut below = vec![false; width];
        let of_left = left.get(at);
        for (place, of_right) in right.iter().map(Some).chain([None]).enumerate() {
            if !row.get(place).copied().unwrap_or_default() {
                continue;
            }
            if of_left.is_none() && of_right.is_none() {
                return true;
            }
            let (stay_left, stay_right) = (is_star(of_left), is_star(of_right));
            let mut reach = |down: bool, along: bool| {
                let row = if down { &mut below } else { &mut row };
                if let Some(reached) = row.get_mut(place.saturating_add(usize::from(along))) {
                    *reached = true;
                }
            };
            // A star stands for nothing ...
            if stay_left {
                reach(true, false);
            }
            if stay_right {
                reach(false, true);
            }
            // ... or both take the same byte.
            let slash = |token: &Token| matches!(token, Token::All | Token::Byte(b'/'));
            let same = match (of_left, of_right) {
                (Some(Token::Byte(left)), Some(Token::Byte(right))) => left == right,
                (Some(Token::Byte(b'/')), Some(other)) | (Some(other), Some(Token::Byte(b'/'))) => {
                    slash(other)
                }
                (Some(_), Some(_)) => true,
                _ => false,
            };
            if same {
                reach(!stay_left, !stay_right);
            }
        }
        row = below;
    }
    false
}

/// An address with a prefix, as in `10.0.0.0/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Network {
    address: u128,
    prefix: u8,
    is_ipv4: bool,
}

impl Network {
    /// Reads `ADDRESS` or `ADDRESS/PREFIX`. None if it is neither, or the prefix is longer than the address.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            Some(prefix) if !prefix.starts_with('+') => {
                prefix.parse().ok().filter(|prefix| *prefix <= bits)?
            }
            Some(_) => return None,
            None => bits,
        };
        let (address, is_ipv4) = match address {
            IpAddr::V4(address) => (u128::from(u32::from(address)), true),
            IpAddr::V6(address) => (u128::from(address), false),
        };
        Some(Network { address, prefix, is_ipv4 })
    }

    /// Whether bits behind the prefix are set: an address in a network, not a network.
    pub fn has_host_bits(&self) -> bool {
        self.network(self.prefix) != self.address
    }

    /// Whether all of `other` lies in it.
    pub fn contains(&self, other: &Network) -> bool {
        self.is_ipv4 == other.is_ipv4
            && self.prefix <= other.prefix
            && self.network(self.prefix) == other.network(self.prefix)
    }

    /// The network that it lies in, with no bits behind the prefix.
    pub fn masked(&self) -> Network {
        Network { address: self.network(self.prefix), ..*self }
    }

    fn network(&self, prefix: u8) -> u128 {
        let bits: u32 = if self.is_ipv4 { 32 } else { 128 };
        let host = bits.saturating_sub(u32::from(prefix));
        // Shifting by all 128 bits is no shift.
        self.address.checked_shr(host).unwrap_or(0).checked_shl(host).unwrap_or(0)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = match (self.is_ipv4, u32::try_from(self.address)) {
            (true, Ok(address)) => IpAddr::V4(address.into()),
            _ => IpAddr::V6(self.address.into()),
        };
        write!(formatter, "{address}/{}", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::name(text).unwrap()
    }

    #[test]
    fn stars_stop_at_slashes_and_double_stars_do_not() {
        for (text, yes, no) in [
            ("/etc/hostname", &["/etc/hostname"][..], &["/etc/hostname2", "/etc", ""][..]),
            (
                "/var/log/*.log",
                &["/var/log/a.log", "/var/log/.log"],
                &["/var/log/a/b.log", "/var/log/a.logx"],
            ),
            ("/var/log/**", &["/var/log", "/var/log/a", "/var/log/a/b"], &["/var/logs", "/var/lo", "/var"]),
            ("/**/x", &["/a/x", "/a/b/x"], &["/x", "/a/xy"]),
            ("/srv/*/data/**", &["/srv/a/data", "/srv/a/data/b/c"], &["/srv/a/b/data/c", "/srv/data"]),
            ("/a?c", &["/abc"], &["/a/c", "/ac"]),
            ("eth*", &["eth", "eth0", "eth0.1"], &["veth0"]),
            ("*", &["", "a"], &["a/b"]),
            ("**", &["", "a/b"], &[]),
        ] {
            for name in yes {
                assert!(pattern(text).matches(name.as_bytes()), "{text} matches {name}");
            }
            for name in no {
                assert!(!pattern(text).matches(name.as_bytes()), "{text} does not match {name}");
            }
        }
    }

    #[test]
    fn a_pattern_made_to_be_slow_is_not() {
        let text = "*a".repeat(500);
        let name = "a".repeat(100_000) + "b";
        // Two hundred thousand comparisons for each star at most; a matcher that backtracks would never end.
        assert!(!pattern(&text).matches(name.as_bytes()));
        let text = "**a*b".repeat(200);
        assert!(!pattern(&text).matches("ab".repeat(100).as_bytes()));
    }

    #[test]
    fn paths_that_the_kernel_never_shows_are_no_patterns() {
        for text in ["etc/hostname", "/etc//hostname", "/etc/../shadow", "/./etc", "/etc/"] {
            assert_eq!(Pattern::path(text), Err(BadPattern::Path), "{text}");
        }
        assert!(Pattern::path("/").is_ok() && Pattern::path("/**").is_ok());
        assert_eq!(Pattern::name(""), Err(BadPattern::Empty));
        assert_eq!(Pattern::name("a***"), Err(BadPattern::Stars));
        assert_eq!(Pattern::name(&"x".repeat(1025)), Err(BadPattern::Long));
    }

    #[test]
    fn patterns_overlap_when_a_name_matches_both() {
        for (left, right, overlap) in [
            ("/etc/**", "/**/passwd", true),
            ("/etc/cron.d/backup", "/etc/cron.*/**", true),
            ("/srv/**", "/etc/**", false),
            ("/srv/*", "/srv/a/b", false),
            ("/etc/**", "/etc", true),
            ("/home/*/.ssh/**", "/home/anna/**", true),
            ("a?", "a/", false),
            ("*", "a/b", false),
            ("a*c", "ab*", true),
        ] {
            assert_eq!(pattern(left).overlaps(&pattern(right)), overlap, "{left} {right}");
            assert_eq!(pattern(right).overlaps(&pattern(left)), overlap, "{right} {left}");
        }
        let slow = "*a".repeat(500);
        assert!(pattern(&slow).overlaps(&pattern(&"**a".repeat(300))));
    }

    #[test]
    fn a_wider_pattern_covers() {
        for (wide, narrow, covers) in [
            ("/**", "/etc/*.conf", true),
            ("/etc/**", "/etc", true),
            ("/etc/*", "/etc/a*.conf", true),
            ("/etc/*", "/etc/**", false),
            ("/etc/*", "/etc/a/b", false),
            ("eth*", "eth0", true),
            ("/etc/**", "/etcetera/**", false),
        ] {
            assert_eq!(pattern(wide).covers(&pattern(narrow)), covers, "{wide} {narrow}");
        }
    }

    #[test]
    fn an_anchor_is_where_everything_that_matches_lies() {
        for (text, anchor) in [
            ("/var/log/**", "/var/log"),
            ("/var/log/*.gz", "/var/log"),
            ("/etc/hostname", "/etc/hostname"),
            ("/**", "/"),
            ("/et?/x", "/"),
            ("/", "/"),
        ] {
            assert_eq!(Pattern::path(text).unwrap().anchor(), anchor.as_bytes(), "{text}");
        }
    }

    /// The obvious matcher, which takes as long as it likes.
    fn plain(pattern: &[u8], name: &[u8]) -> bool {
        match pattern {
            [] => name.is_empty(),
            [b'*', b'*', rest @ ..] => (0..=name.len()).any(|skip| plain(rest, &name[skip..])),
            [b'*', rest @ ..] => {
                let most = name.iter().position(|byte| *byte == b'/').unwrap_or(name.len());
                (0..=most).any(|skip| plain(rest, &name[skip..]))
            }
            [b'?', rest @ ..] => name.first().is_some_and(|byte| *byte != b'/') && plain(rest, &name[1..]),
            [byte, rest @ ..] => name.first() == Some(byte) && plain(rest, &name[1..]),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn matching_is_what_the_obvious_matcher_says(text in "[a/*?]{1,9}", name in "[a/b]{0,9}") {
            prop_assume!(!text.contains("***"));
            prop_assert_eq!(matches(text.as_bytes(), name.as_bytes()), plain(text.as_bytes(), name.as_bytes()));
        }

        #[test]
        fn what_is_covered_matches_no_more(wide in "[a/*?]{1,6}", narrow in "[a/*?]{1,6}", name in "[a/b]{0,7}") {
            prop_assume!(!wide.contains("***") && !narrow.contains("***"));
            let (wide, narrow) = (pattern(&wide), pattern(&narrow));
            if wide.covers(&narrow) && narrow.matches(name.as_bytes()) {
                prop_assert!(wide.matches(name.as_bytes()));
            }
        }

        #[test]
        fn patterns_that_match_the_same_name_overlap(left in "[a/*?]{1,6}", right in "[a/*?]{1,6}", name in "[a/b]{0,7}") {
            prop_assume!(!left.contains("***") && !right.contains("***"));
            let (left, right) = (pattern(&left), pattern(&right));
            if left.matches(name.as_bytes()) && right.matches(name.as_bytes()) {
                prop_assert!(left.overlaps(&right));
            }
        }

        #[test]
        fn what_matches_lies_under_the_anchor(text in "(/[a*?]{1,3}){1,4}", name in "(/[a]{1,3}){1,4}") {
            if let Ok(pattern) = Pattern::path(&text) && pattern.matches(name.as_bytes()) {
                let anchor = String::from_utf8(pattern.anchor().to_vec()).unwrap();
                let below = anchor.clone() + "/";
                prop_assert!(name == anchor || anchor == "/" || name.starts_with(&below));
            }
        }
    }

    #[test]
    fn networks_contain_what_lies_in_them() {
        let network = |text| Network::parse(text).unwrap();
        assert!(network("10.0.0.0/8").contains(&network("10.1.2.3")));
        assert!(network("10.0.0.0/8").contains(&network("10.1.2.3/24")));
        assert!(!network("10.0.0.0/8").contains(&network("0.0.0.0/0")));
        assert!(!network("10.0.0.0/8").contains(&network("11.0.0.1")));
        assert!(network("::/0").contains(&network("fe80::1/64")));
        assert!(!network("::/0").contains(&network("10.0.0.1")));
        assert_eq!(network("10.1.2.3/8").masked().to_string(), "10.0.0.0/8");
        assert_eq!(network("fd00::1/8").masked().to_string(), "fd00::/8");
        assert!(network("10.0.0.1/8").has_host_bits() && !network("0.0.0.0/0").has_host_bits());
        for text in ["", "10.0.0.0/33", "10.0.0.0/", "10.0.0/8", "::/129", "10.0.0.0/+8", "eth0"] {
            assert_eq!(Network::parse(text), None, "{text}");
        }
    }
}
