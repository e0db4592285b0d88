//! `/proc/self/mountinfo` and `/proc/self/mounts`, see proc(5).
//!
//! Used by the query worker, which lists filesystems, and the fsfreeze worker, which freezes them: both must mean the same ones.
//! Pure: the content comes from the kernel, though names in it are the administrator's and users' own.

use std::borrow::Cow;

/// A block device's number, or that of a filesystem that has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// Major number; 0 for a filesystem without a block device.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl Device {
    /// Reads `254:0`.
    pub fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once(':')?;
        Some(Device { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}:{}", self.major, self.minor)
    }
}

/// One mount; texts are as in the file, with blanks as octal escapes.
#[derive(Debug, PartialEq, Eq)]
pub struct Mount<'a> {
    /// Its number in this list.
    pub id: &'a [u8],
    /// The mount that it is mounted on.
    pub parent: &'a [u8],
    /// The filesystem's.
    pub device: Device,
    /// What of the filesystem is mounted.
    pub root: &'a [u8],
    /// Where.
    pub point: &'a [u8],
    /// The filesystem's type.
    pub kind: &'a [u8],
    /// What was mounted: usually a device's path.
    pub source: &'a [u8],
    /// Options of the filesystem.
    pub options: &'a [u8],
}

impl<'a> Mount<'a> {
    /// The value of one of the filesystem's options.
    pub fn option(&self, name: &str) -> Option<&'a [u8]> {
        self.options
            .split(|byte| *byte == b',')
            .find_map(|option| option.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
    }
}

/// Every line of mountinfo, in order; what is no such line is passed over.
pub fn mounts(mountinfo: &[u8]) -> impl Iterator<Item = Mount<'_>> {
    mountinfo.split(|byte| *byte == b'\n').filter_map(mount)
}

fn mount(line: &[u8]) -> Option<Mount<'_>> {
    let mut fields = line.split(|byte| *byte == b' ');
    let (id, parent) = (fields.next()?, fields.next()?);
    let device = Device::parse(std::str::from_utf8(fields.next()?).ok()?)?;
    let (root, point, _own_options) = (fields.next()?, fields.next()?, fields.next()?);
    // Zero or more optional fields end with a dash.
    fields.find(|field| *field == b"-")?;
    let (kind, source, options) = (fields.next()?, fields.next()?, fields.next().unwrap_or_default());
    Some(Mount { id, parent, device, root, point, kind, source, options })
}

/// Source and mount point of every line of `/proc/self/mounts`.
pub fn sources(mounts: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    mounts.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        Some((fields.next()?, fields.next()?))
    })
}

/// The text without its escapes: a backslash and three octal digits are one byte.
pub fn unescape(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'\\') {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        if *first == b'\\'
            && let [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', behind @ ..] = after
        {
            out.push((a & 3) << 6 | (b & 7) << 3 | (c & 7));
            rest = behind;
        } else {
            out.push(*first);
            rest = after;
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_cut_at_the_dash_whatever_stands_before_it() {
        let text = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 propagate_from:2 - ext3 /dev/root rw,errors=continue\n\
                     nonsense\n\
                     22 27 0:21 / /proc rw - proc proc rw\n\
                     23 27 0:22 / /x rw - tmpfs  rw\n";
        let [disk, proc, nameless] = mounts(text).collect::<Vec<_>>().try_into().unwrap();
        assert_eq!((disk.id, disk.parent), (&b"36"[..], &b"35"[..]));
        assert_eq!(disk.device, Device { major: 98, minor: 0 });
        assert_eq!((disk.root, disk.point), (&b"/mnt1"[..], &b"/mnt2"[..]));
        assert_eq!((disk.kind, disk.source), (&b"ext3"[..], &b"/dev/root"[..]));
        assert_eq!(disk.option("errors"), Some(&b"continue"[..]));
        assert_eq!(disk.option("error"), None);
        assert_eq!((proc.kind, proc.device.major), (&b"proc"[..], 0));
        assert_eq!((nameless.source, nameless.options), (&b""[..], &b"rw"[..]));
    }

    #[test]
    fn octal_escapes_are_bytes_and_other_backslashes_are_not() {
        assert_eq!(&*unescape(br"/mnt/a\040b\011c\012d\134e"), b"/mnt/a b\tc\nd\\e");
        assert_eq!(&*unescape(br"/x\04"), br"/x\04");
        assert_eq!(&*unescape(br"/x\800\400\777"), br"/x\800\400\777");
        assert_eq!(&*unescape(br"\303\244"), "\u{e4}".as_bytes());
        assert!(matches!(unescape(b"/plain"), Cow::Borrowed(_)));
    }
}
