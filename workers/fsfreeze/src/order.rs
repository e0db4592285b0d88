//! Which filesystems there are to freeze, and in which order. Pure: mounts and what carries what in, a list out.
//!
//! A filesystem must not be frozen before those that lie on it, or they wait for it for ever: first what was mounted
//! last, as qemu-ga has it, but never a loop device's file before the filesystem that is in it.

use std::path::{Component, Path};

use runtime::mountinfo::{Device, Mount, mounts, unescape};

/// A filesystem that can be asked to freeze.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Filesystem {
    /// Same number, same filesystem: subvolumes of btrfs and bind mounts have one.
    pub(crate) device: Device,
    /// Where it is mounted, the first first.
    pub(crate) places: Vec<Place>,
    kind: Vec<u8>,
}

/// One mount of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The mount's number in mountinfo.
    pub(crate) id: u64,
    /// Without escapes.
    pub(crate) point: Vec<u8>,
}

/// What a block device lies on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Base {
    /// Another device: of a logical volume, an array, an encrypted disk, a partition.
    Device(Device),
    /// A file: of a loop device. Its path as the kernel gives it.
    File(Vec<u8>),
}

/// Deeper stacks are not followed; the kernel itself gives up long before.
const DEPTH: usize = 16;

/// Every filesystem on a block device, in the order of its first mount.
pub(crate) fn filesystems(mountinfo: &[u8]) -> Vec<Filesystem> {
    let mut all: Vec<Filesystem> = Vec::new();
    for mount in mounts(mountinfo).filter(is_on_a_device) {
        let Some(id) = std::str::from_utf8(mount.id).ok().and_then(|id| id.parse().ok()) else { continue };
        let place = Place { id, point: unescape(mount.point).into_owned() };
        match all.iter_mut().find(|known| known.device == mount.device) {
            Some(known) => known.places.push(place),
            None => {
                all.push(Filesystem { device: mount.device, places: vec![place], kind: mount.kind.to_vec() })
            }
        }
    }
    all
}

/// btrfs gives its mounts numbers of no device; it lies on some all the same.
fn is_on_a_device(mount: &Mount<'_>) -> bool {
    mount.device.major != 0 || (mount.kind == b"btrfs" && mount.source.starts_with(b"/"))
}

/// Those of `all` that are mounted at one of `points`; all, without.
pub(crate) fn chosen<T: AsRef<[u8]>>(all: Vec<Filesystem>, points: Option<&[T]>) -> Vec<Filesystem> {
    let Some(points) = points else { return all };
    let named = |place: &Place| points.iter().any(|point| point.as_ref() == place.point);
    all.into_iter().filter(|filesystem| filesystem.places.iter().any(named)).collect()
}

/// Sorts `chosen` so that each comes before what it lies on, and else the last mounted first. `all` is where files can lie;
/// `bases` says what a device lies on.
pub(crate) fn deepest_first(
    chosen: &[Filesystem],
    all: &[Filesystem],
    bases: impl Fn(Device) -> Vec<Base>,
) -> Vec<Filesystem> {
    let below: Vec<Vec<Device>> =
        chosen.iter().map(|filesystem| carriers(filesystem.device, all, &bases)).collect();
    let mut sorted: Vec<Filesystem> = Vec::with_capacity(chosen.len());
    let mut left: Vec<(&Filesystem, &Vec<Device>)> = chosen.iter().zip(&below).collect();
    while !left.is_empty() {
        // The last mounted that carries none of the others; in a circle, which the kernel does not permit, the last mounted.
        let carries_none = |(filesystem, _): &(&Filesystem, &Vec<Device>)| {
            !left
                .iter()
                .any(|(other, below)| other.device != filesystem.device && below.contains(&filesystem.device))
        };
        let next = left.iter().rposition(carries_none).unwrap_or(left.len() - 1);
        sorted.push(left.remove(next).0.clone());
    }
    sorted
}

/// The filesystems that `device` lies on through files, directly or through others.
fn carriers(device: Device, all: &[Filesystem], bases: &impl Fn(Device) -> Vec<Base>) -> Vec<Device> {
    let mut found = Vec::new();
    let mut seen = vec![device];
    let mut next = vec![device];
    for _ in 0..DEPTH {
        let mut deeper = Vec::new();
        for device in std::mem::take(&mut next) {
            for base in bases(device) {
                let device = match base {
                    Base::Device(device) => device,
                    Base::File(path) => match holder(&path, all) {
                        Some(holder) => {
                            found.push(holder);
                            holder
                        }
                        None => continue,
                    },
                };
                if !seen.contains(&device) {
                    seen.push(device);
                    deeper.push(device);
                }
            }
        }
        next = deeper;
    }
    found
}

/// The filesystem that a path lies on: the one mounted nearest to it, and of several at one place the last.
fn holder(path: &[u8], all: &[Filesystem]) -> Option<Device> {
    let path = as_path(path);
    let places = all.iter().flat_map(|filesystem| {
        filesystem.places.iter().map(move |place| (as_path(&place.point), place.id, filesystem.device))
    });
    places
        .filter(|(point, ..)| path.starts_with(point))
        .max_by_key(|(point, id, _)| {
            (point.components().filter(|part| matches!(part, Component::Normal(_))).count(), *id)
        })
        .map(|(.., device)| device)
}

fn as_path(bytes: &[u8]) -> &Path {
    use std::os::unix::ffi::OsStrExt as _;
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn device(major: u32, minor: u32) -> Device {
        Device { major, minor }
    }

    fn points(filesystems: &[Filesystem]) -> Vec<String> {
        filesystems.iter().map(|one| String::from_utf8_lossy(&one.places[0].point).into_owned()).collect()
    }

    const PLAIN: &[u8] = b"21 1 254:1 / / rw - ext4 /dev/vda1 rw\n\
        22 21 0:20 / /proc rw - proc proc rw\n\
        23 21 0:25 / /run rw - tmpfs tmpfs rw\n\
        30 21 254:2 / /var rw - xfs /dev/vda2 rw\n\
        31 21 254:1 /srv /export\\040here rw - ext4 /dev/vda1 rw\n\
        32 30 7:0 / /var/image rw - ext4 /dev/loop0 rw\n\
        40 21 0:40 /@ /data rw - btrfs /dev/vdb rw,subvolid=256\n\
        41 21 0:40 /@home /home rw - btrfs /dev/vdb rw,subvolid=257\n\
        42 21 0:41 / /nfs rw - nfs4 server:/x rw\n";

    #[test]
    fn one_filesystem_is_one_entry_however_often_it_is_mounted() {
        let all = filesystems(PLAIN);
        assert_eq!(points(&all), ["/", "/var", "/var/image", "/data"]);
        assert_eq!(all[0].places[1].point, b"/export here");
        assert_eq!(all[3].places.len(), 2);
    }

    #[test]
    fn without_stacks_the_last_mounted_comes_first() {
        let all = filesystems(PLAIN);
        assert_eq!(points(&deepest_first(&all, &all, |_| vec![])), ["/data", "/var/image", "/var", "/"]);
    }

    #[test]
    fn what_lies_in_a_file_comes_before_the_filesystem_of_that_file_even_if_mounted_earlier() {
        let mountinfo = b"21 1 254:1 / / rw - ext4 /dev/vda1 rw\n\
            22 21 7:0 / /early rw - ext4 /dev/loop0 rw\n\
            30 21 254:2 / /late rw - xfs /dev/vdb rw\n";
        let all = filesystems(mountinfo);
        let bases = |of: Device| {
            if of == device(7, 0) { vec![Base::File(b"/late/disk.img".to_vec())] } else { vec![] }
        };
        assert_eq!(points(&deepest_first(&all, &all, bases)), ["/early", "/late", "/"]);
    }

    #[test]
    fn a_volume_on_a_loop_device_on_a_volume_is_followed_to_the_ground() {
        let mountinfo = b"21 1 254:1 / / rw - ext4 /dev/vda1 rw\n\
            22 21 253:1 / /inner rw - ext4 /dev/mapper/inner rw\n\
            30 21 253:0 / /outer rw - ext4 /dev/mapper/outer rw\n";
        let all = filesystems(mountinfo);
        let bases = |of: Device| match (of.major, of.minor) {
            (253, 1) => vec![Base::Device(device(7, 3))],
            (7, 3) => vec![Base::File(b"/outer/pool/disk".to_vec())],
            (253, 0) => vec![Base::Device(device(254, 16))],
            _ => vec![],
        };
        assert_eq!(points(&deepest_first(&all, &all, bases)), ["/inner", "/outer", "/"]);
    }

    #[test]
    fn whatever_the_stack_nothing_comes_after_what_carries_it() {
        // Each of eight filesystems lies in a file on one that has a smaller number in a shuffled order of mounting.
        let mut state = 1_u32;
        for _ in 0..500 {
            let mut mounted: Vec<u32> = (1..=8).collect();
            for position in (1..mounted.len()).rev() {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                mounted.swap(position, state as usize % (position + 1));
            }
            let lines: String = mounted
                .iter()
                .zip(30..)
                .map(|(number, id)| format!("{id} 1 7:{number} / /m{number} rw - ext4 /dev/loop rw\n"))
                .collect();
            let all = filesystems(lines.as_bytes());
            let seed = state;
            let below = |number: u32| (number > 1).then(|| 1 + (seed >> number) % (number - 1));
            let bases = |of: Device| {
                below(of.minor)
                    .map(|number| Base::File(format!("/m{number}/x").into_bytes()))
                    .into_iter()
                    .collect()
            };
            let sorted: Vec<u32> =
                deepest_first(&all, &all, bases).iter().map(|one| one.device.minor).collect();
            for (position, number) in sorted.iter().enumerate() {
                if let Some(carrier) = below(*number) {
                    let carrier = sorted.iter().position(|other| *other == carrier).unwrap();
                    assert!(position < carrier, "{number} of {sorted:?}, mounted {mounted:?}");
                }
            }
        }
    }

    #[test]
    fn a_list_names_filesystems_by_any_of_their_mount_points() {
        let named = |points: &[&[u8]]| self::points(&chosen(filesystems(PLAIN), Some(points)));
        assert_eq!(named(&[b"/home", b"/var"]), ["/var", "/data"]);
        assert_eq!(named(&[b"/export here"]), ["/"]);
        assert_eq!(named(&[b"/nowhere", b"/proc"]), [""; 0]);
    }

    #[test]
    fn a_file_lies_on_what_is_mounted_nearest() {
        let all = filesystems(PLAIN);
        assert_eq!(holder(b"/var/image/x", &all), Some(device(7, 0)));
        assert_eq!(holder(b"/variable/x", &all), Some(device(254, 1)));
    }
}
