//! The local time zone: from `$TZ` as the agent was started with, or from `/etc/localtime`, read anew at each call.

use std::time::{SystemTime, UNIX_EPOCH};

use proto::query::TimeZone as Answer;
use tz::{TimeZone, TimeZoneSettings};

use crate::root::Root;

/// Where zones are looked for by name.
const FOLDERS: [&str; 2] = ["/usr/share/zoneinfo", "/etc/zoneinfo"];
const LOCAL: &str = "/etc/localtime";

/// Name and offset now. Whatever is wrong with the zone: UTC, as GLib does for qemu-ga.
pub(crate) fn now(root: &Root, configured: Option<&str>) -> Answer {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    at(root, configured, i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// At `time`, in seconds since the epoch.
fn at(root: &Root, configured: Option<&str>, time: i64) -> Answer {
    find(root, configured, time).unwrap_or_else(|| Answer { zone: Some("UTC".to_owned()), offset: 0 })
}

fn find(root: &Root, configured: Option<&str>, time: i64) -> Option<Answer> {
    let Some(configured) = configured else { return in_file(root, LOCAL, time) };
    let name = configured.strip_prefix(':').unwrap_or(configured);
    if name.is_empty() {
        return None;
    }
    if let Some(answer) = fixed(name) {
        return Some(answer);
    }
    if name.starts_with('/') {
        return in_file(root, name, time);
    }
    FOLDERS
        .into_iter()
        .find_map(|folder| in_file(root, &format!("{folder}/{name}"), time))
        .or_else(|| in_rule(name, time))
}

fn in_file(root: &Root, path: &str, time: i64) -> Option<Answer> {
    let zone = TimeZone::from_tz_data(&root.read_whole(path).ok()?).ok()?;
    answer(&zone, time)
}

/// `CET-1CEST,M3.5.0,M10.5.0/3` and the like.
fn in_rule(rule: &str, time: i64) -> Option<Answer> {
    let without_files = TimeZoneSettings::new(&[], |_| Err("a rule is no file".into()));
    let answer = answer(&without_files.parse_posix_tz(rule).ok()?, time)?;
    // POSIX, "TZ": a name has no fewer than three characters.
    answer.zone.as_ref().is_some_and(|name| name.len() >= 3).then_some(answer)
}

fn answer(zone: &TimeZone, time: i64) -> Option<Answer> {
    let local = match zone.find_local_time_type(time) {
        Ok(local) => local,
        // A file of version 1, or one whose zone has no rule: what was last goes on, as in the C library.
        Err(_) => {
            let zone = zone.as_ref();
            let last = zone.transitions().last().filter(|last| last.unix_leap_time() <= time)?;
            zone.local_time_types().get(last.local_time_type_index())?
        }
    };
    let zone = Some(local.time_zone_designation()).filter(|name| !name.is_empty()).map(str::to_owned);
    Some(Answer { zone, offset: local.ut_offset().into() })
}

/// `Z`, and `[+-]hh[[:]mm[[:]ss]]`, east of UTC: what GLib takes beside what POSIX knows. The text is the zone's name.
fn fixed(text: &str) -> Option<Answer> {
    let answer = |offset| Some(Answer { zone: Some(text.to_owned()), offset });
    if text == "Z" {
        return answer(0);
    }
    let (sign, digits) = match text.split_at_checked(1)? {
        ("+", rest) => (1, rest),
        ("-", rest) => (-1, rest),
        _ => (1, text),
    };
    let parts: Vec<&str> = match digits.split(':').collect::<Vec<_>>().as_slice() {
        [one] => {
            let (hours, rest) = one.split_at_checked(2).unwrap_or((one, ""));
            let (minutes, seconds) = rest.split_at_checked(2).unwrap_or((rest, ""));
            [hours, minutes, seconds].into_iter().filter(|part| !part.is_empty()).collect()
        }
        parts => parts.to_vec(),
    };
    let number = |part: Option<&&str>, width: std::ops::RangeInclusive<usize>, limit: i64| match part {
        None => Some(0),
        Some(part) if width.contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit()) => {
            part.parse::<i64>().ok().filter(|number| *number < limit)
        }
        Some(_) => None,
    };
    let hours = number(Some(parts.first()?), 1..=2, 25)?;
    let minutes = number(parts.get(1), 2..=2, 60)?;
    let seconds = number(parts.get(2), 2..=2, 60)?;
    if parts.len() > 3 {
        return None;
    }
    answer(sign * (hours * 3600 + minutes * 60 + seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Tree;

    const WINTER: i64 = 1_768_000_000; // 2026-01-09
    const SUMMER: i64 = 1_783_000_000; // 2026-07-02
    const RULE: &str = "CET-1CEST,M3.5.0,M10.5.0/3";

    fn zone(name: &str, offset: i64) -> Answer {
        Answer { zone: Some(name.to_owned()), offset }
    }

    fn with(configured: &str, time: i64) -> Answer {
        at(&Tree::new().root(), Some(configured), time)
    }

    /// A TZif file (RFC 9636) without transitions before 2000-01-01 01:00 UTC, when `CET` begins.
    fn tzif(version: u8, footer: Option<&str>) -> Vec<u8> {
        let block = |width: usize| {
            let mut block = [b"TZif".as_slice(), &[version], &[0; 15]].concat();
            for count in [0_u32, 0, 0, 1, 2, 8] {
                block.extend(count.to_be_bytes());
            }
            block.extend(&946_688_400_i64.to_be_bytes()[8 - width..]);
            block.push(1);
            block.extend([0, 0, 0, 0, 0, 0]);
            block.extend(3600_i32.to_be_bytes());
            block.extend([0, 4]);
            block.extend(b"UTC\0CET\0");
            block
        };
        match footer {
            None => block(4),
            Some(footer) => [block(4), block(8), format!("\n{footer}\n").into_bytes()].concat(),
        }
    }

    #[test]
    fn the_footer_of_a_zone_file_knows_summer_from_winter() {
        let tree = Tree::new().file("/etc/localtime", tzif(b'2', Some(RULE)));
        assert_eq!(at(&tree.root(), None, WINTER), zone("CET", 3600));
        assert_eq!(at(&tree.root(), None, SUMMER), zone("CEST", 7200));
        assert_eq!(at(&tree.root(), None, 0), zone("UTC", 0));
    }

    #[test]
    fn a_zone_file_without_a_rule_goes_on_with_its_last_offset() {
        let old = Tree::new().file("/etc/localtime", tzif(0, None));
        assert_eq!(at(&old.root(), None, WINTER), zone("CET", 3600));
        assert_eq!(at(&old.root(), None, 0), zone("UTC", 0));
        let empty = Tree::new().file("/etc/localtime", tzif(b'3', Some("")));
        assert_eq!(at(&empty.root(), None, SUMMER), zone("CET", 3600));
    }

    #[test]
    fn a_zone_is_found_by_name_by_path_and_with_a_colon() {
        let tree = Tree::new()
            .file("/usr/share/zoneinfo/Europe/Berlin", tzif(b'2', Some(RULE)))
            .file("/srv/zone", tzif(b'2', Some("JST-9")));
        // The last transition must agree with the rule, RFC 9636 3.3; this one does not, so the file is refused.
        assert_eq!(at(&tree.root(), Some("/srv/zone"), SUMMER), zone("UTC", 0));
        for name in ["Europe/Berlin", ":Europe/Berlin", ":/usr/share/zoneinfo/Europe/Berlin"] {
            assert_eq!(at(&tree.root(), Some(name), SUMMER), zone("CEST", 7200), "{name}");
        }
    }

    #[test]
    fn a_posix_rule_needs_no_file() {
        assert_eq!(with(RULE, WINTER), zone("CET", 3600));
        assert_eq!(with(RULE, SUMMER), zone("CEST", 7200));
        assert_eq!(with("<+03>-3", WINTER), zone("+03", 10800));
        assert_eq!(with("UTC+3", WINTER), zone("UTC", -10800));
        assert_eq!(with("EST5", SUMMER), zone("EST", -18000));
        assert_eq!(with("CET-1CEST,J60,J300", SUMMER), zone("CEST", 7200));
    }

    /// The names and offsets are qemu-ga 7.2's.
    #[test]
    fn a_fixed_offset_is_named_by_its_text() {
        assert_eq!(with("Z", WINTER), zone("Z", 0));
        assert_eq!(with("+05:30", WINTER), zone("+05:30", 19800));
        assert_eq!(with("05:30", WINTER), zone("05:30", 19800));
        assert_eq!(with("-0330", WINTER), zone("-0330", -12600));
        assert_eq!(with("+5", WINTER), zone("+5", 18000));
        assert_eq!(with("+25:00", WINTER), zone("UTC", 0));
        assert_eq!(with("+05:3x", WINTER), zone("UTC", 0));
        assert_eq!(with("\u{e4}", WINTER), zone("UTC", 0));
    }

    #[test]
    fn whatever_is_wrong_is_utc() {
        for name in ["", ":", "Foo", "Foo/Bar", "AB3", "/nonexistent", "CET-1CEST", ":CET-1CEST,M3"] {
            assert_eq!(with(name, SUMMER), zone("UTC", 0), "{name}");
        }
        let damaged = Tree::new().file("/etc/localtime", &tzif(b'2', Some(RULE))[..60]);
        assert_eq!(at(&damaged.root(), None, SUMMER), zone("UTC", 0));
        assert_eq!(at(&Tree::new().root(), None, SUMMER), zone("UTC", 0));
    }
}
