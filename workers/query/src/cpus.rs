//! CPUs: which there are and whether they are online (sysfs), and what they did (`/proc/stat`).

use std::fmt::Write as _;
use std::os::fd::OwnedFd;

use proto::Failed;
use proto::query::{CpuStats, LogicalProcessor};
use rustix::fs::FileType;
use rustix::io::Errno;

use crate::failed;
use crate::root::{Folder, Root, number_after, read_at_start};

const FOLDER: &str = "/sys/devices/system/cpu";

/// Milliseconds in a tick of `/proc/stat`: USER_HZ is 100 on every architecture that we build for
/// (include/asm-generic/param.h).
const TICK: u64 = 10;

/// What is known of the CPUs from one request to the next, since hosts ask often.
///
/// Which there are and which can be taken out of use changes only when the kernel's `present` mask does; both masks are
/// read anew for each request, from files that stay open.
#[derive(Default)]
pub(crate) struct Processors {
    masks: Option<Masks>,
    /// The `present` mask, and what was found while it was so.
    known: Option<(Vec<u8>, Vec<Known>)>,
}

/// A CPU's number, and whether it can be taken out of use.
type Known = (i64, bool);

/// The kernel's lists of CPUs, as `0-3,8` (Documentation/admin-guide/cputopology.rst).
struct Masks {
    present: Mask,
    online: Mask,
}

/// One of them.
struct Mask {
    file: OwnedFd,
    /// Room for its content.
    buffer: Vec<u8>,
}

impl Processors {
    /// Every CPU that the kernel knows, in the kernel's order.
    ///
    /// # Errors
    /// As [`logical_processors`].
    pub(crate) fn all(&mut self, root: &Root) -> Result<Vec<LogicalProcessor>, Failed> {
        if self.masks.is_none() {
            self.masks = Masks::open(root).ok();
        }
        // A kernel without these masks is asked CPU by CPU.
        let Some(masks) = &mut self.masks else { return logical_processors(root) };
        let (Ok(present), Ok(online)) = (masks.present.read(), masks.online.read()) else {
            self.masks = None;
            return logical_processors(root);
        };
        match &self.known {
            Some((then, cpus)) if then == present => {
                let processor = |&(logical_id, can_offline): &Known| {
                    let online = !can_offline || is_in(online, logical_id);
                    LogicalProcessor { logical_id, online, can_offline: Some(can_offline) }
                };
                Ok(cpus.iter().map(processor).collect())
            }
            _ => {
                let present = present.to_vec();
                let processors = logical_processors(root)?;
                let can_offline = |cpu: &LogicalProcessor| (cpu.logical_id, cpu.can_offline == Some(true));
                self.known = Some((present, processors.iter().map(can_offline).collect()));
                Ok(processors)
            }
        }
    }
}

/// Longer than the list of any machine: a list of single CPUs takes five bytes for each.
const MASK: usize = 4096;

impl Masks {
    fn open(root: &Root) -> rustix::io::Result<Self> {
        Ok(Masks { present: Mask::open(root, "present")?, online: Mask::open(root, "online")? })
    }
}

impl Mask {
    fn open(root: &Root, name: &str) -> rustix::io::Result<Self> {
        Ok(Mask { file: root.open(&format!("{FOLDER}/{name}"))?, buffer: vec![0; MASK] })
    }

    fn read(&mut self) -> rustix::io::Result<&[u8]> {
        read_at_start(&self.file, &mut self.buffer)
    }
}

/// Whether a list such as `0-3,8` holds a number.
fn is_in(list: &[u8], number: i64) -> bool {
    let number_of = |text: &[u8]| std::str::from_utf8(text).ok()?.trim().parse::<i64>().ok();
    list.split(|&byte| byte == b',').any(|range| {
        let mut ends = range.splitn(2, |&byte| byte == b'-').map(number_of);
        match (ends.next().flatten(), ends.next()) {
            (Some(first), None) => first == number,
            (Some(first), Some(Some(last))) => (first..=last).contains(&number),
            _ => false,
        }
    })
}

/// Every CPU that the kernel knows, in the kernel's order, from its own folder.
///
/// # Errors
/// sysfs is not there, or an `online` file cannot be read.
pub(crate) fn logical_processors(root: &Root) -> Result<Vec<LogicalProcessor>, Failed> {
    let unlisted = |errno| failed(format_args!("failed to list entries: {FOLDER}"), errno);
    let folder = root.folder(FOLDER).map_err(unlisted)?;
    let numbers = folder
        .entries(|name, kind| (kind == FileType::Directory).then(|| number_after(name, "cpu")).flatten())
        .map_err(unlisted)?;
    let mut processors = Vec::with_capacity(numbers.len());
    let mut path = String::new();
    for number in numbers {
        path.clear();
        write!(path, "cpu{number}/online").expect("a string grows");
        processors.extend(logical_processor(&folder, number, &path)?);
    }
    Ok(processors)
}

/// None if it was unplugged meanwhile.
fn logical_processor(folder: &Folder, number: i64, path: &str) -> Result<Option<LogicalProcessor>, Failed> {
    let (online, can_offline) = match folder.read(path, &mut [0; 8]) {
        Ok([first, ..]) => (*first != b'0', true),
        Ok([]) => {
            let text = format!("pread(\"{FOLDER}/cpu{number}//online\"): unexpected EOF");
            return Err(Failed::new(text));
        }
        // Without the file it cannot be taken out of use; without the folder it is gone.
        Err(Errno::NOENT) if folder.folder(&format!("cpu{number}")).is_err() => return Ok(None),
        Err(Errno::NOENT) => (true, false),
        Err(errno) => return Err(failed(format_args!("open(\"{FOLDER}/cpu{number}//online\")"), errno)),
    };
    Ok(Some(LogicalProcessor { logical_id: number, online, can_offline: Some(can_offline) }))
}

/// Times of every CPU that is online.
///
/// # Errors
/// `/proc/stat` cannot be read.
pub(crate) fn statistics(root: &Root) -> Result<Vec<CpuStats>, Failed> {
    let content = root.read_whole("/proc/stat").map_err(|errno| failed("open(\"/proc/stat\")", errno))?;
    Ok(parse_statistics(&String::from_utf8_lossy(&content)))
}

/// The lines `cpuN` of `/proc/stat`; columns that a kernel does not have are not there.
fn parse_statistics(stat: &str) -> Vec<CpuStats> {
    stat.lines().take_while(|line| line.starts_with("cpu")).filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<CpuStats> {
    let mut columns = line.split_ascii_whitespace();
    let cpu = number_after(columns.next()?, "cpu")?;
    let mut time = || columns.next()?.parse::<u64>().ok().map(|ticks| ticks.saturating_mul(TICK));
    Some(CpuStats {
        cpu,
        user: time()?,
        nice: time()?,
        system: time()?,
        idle: time()?,
        iowait: time(),
        irq: time(),
        softirq: time(),
        steal: time(),
        guest: time(),
        guestnice: time(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Tree;

    fn processor(logical_id: i64, online: bool, can_offline: bool) -> LogicalProcessor {
        LogicalProcessor { logical_id, online, can_offline: Some(can_offline) }
    }

    #[test]
    fn a_list_of_cpus_holds_its_numbers_and_ranges() {
        let held: Vec<i64> = (0..12).filter(|number| is_in(b"0-2,5,8-9\n", *number)).collect();
        assert_eq!(held, [0, 1, 2, 5, 8, 9]);
        assert!(!is_in(b"\n", 0));
    }

    #[test]
    fn what_is_remembered_of_cpus_follows_the_masks() {
        let tree = Tree::new()
            .folder("/sys/devices/system/cpu/cpu0")
            .file("/sys/devices/system/cpu/cpu1/online", "1\n")
            .file("/sys/devices/system/cpu/present", "0-1\n")
            .file("/sys/devices/system/cpu/online", "0-1\n");
        let root = tree.root();
        let mut processors = Processors::default();
        let mut ask = |root: &Root| {
            let mut all = processors.all(root).unwrap();
            all.sort_by_key(|processor| processor.logical_id);
            all
        };
        assert_eq!(ask(&root), [processor(0, true, false), processor(1, true, true)]);
        let tree = tree
            .file("/sys/devices/system/cpu/online", "0\n")
            .file("/sys/devices/system/cpu/cpu1/online", "0\n");
        assert_eq!(ask(&root), [processor(0, true, false), processor(1, false, true)]);
        let tree = tree
            .file("/sys/devices/system/cpu/cpu2/online", "0\n")
            .file("/sys/devices/system/cpu/present", "0-2\n");
        assert_eq!(ask(&root).len(), 3);
        drop(tree);
    }

    #[test]
    fn a_cpu_without_an_online_file_is_online_and_stays_so() {
        let tree = Tree::new()
            .folder("/sys/devices/system/cpu/cpu0/topology")
            .file("/sys/devices/system/cpu/cpu1/online", "1\n")
            .file("/sys/devices/system/cpu/cpu10/online", "0\n")
            .folder("/sys/devices/system/cpu/cpufreq")
            .folder("/sys/devices/system/cpu/cpuidle")
            .file("/sys/devices/system/cpu/online", "0-1\n")
            .file("/sys/devices/system/cpu/cpu7", "no folder");
        let mut processors = logical_processors(&tree.root()).unwrap();
        processors.sort_by_key(|processor| processor.logical_id);
        assert_eq!(
            processors,
            [processor(0, true, false), processor(1, true, true), processor(10, false, true)]
        );
    }

    #[test]
    fn failures_read_as_from_qemu_ga() {
        let none = logical_processors(&Tree::new().root()).unwrap_err();
        assert_eq!(none.text, "failed to list entries: /sys/devices/system/cpu: No such file or directory");
        let empty = Tree::new().file("/sys/devices/system/cpu/cpu1/online", "");
        assert_eq!(
            logical_processors(&empty.root()).unwrap_err().text,
            "pread(\"/sys/devices/system/cpu/cpu1//online\"): unexpected EOF"
        );
        let no_stat = statistics(&Tree::new().root()).unwrap_err();
        assert_eq!(
            (no_stat.text.as_str(), no_stat.errno),
            ("open(\"/proc/stat\"): No such file or directory", Some(2))
        );
    }

    /// proc(5), `/proc/stat`: the unit is USER_HZ.
    #[test]
    fn ticks_become_milliseconds_for_each_cpu() {
        let stat = "cpu  25187 8 4450 503528 916 0 68 12 0 0\n\
                    cpu0 8605 3 1964 253160 131 0 8 4 7 1\n\
                    intr 1234 0 0\nctxt 99\nbtime 1795170000\n";
        let expected = CpuStats {
            cpu: 0,
            user: 86050,
            nice: 30,
            system: 19640,
            idle: 2_531_600,
            iowait: Some(1310),
            irq: Some(0),
            softirq: Some(80),
            steal: Some(40),
            guest: Some(70),
            guestnice: Some(10),
        };
        assert_eq!(parse_statistics(stat), [expected]);
    }

    #[test]
    fn an_old_kernel_has_fewer_columns() {
        let [cpu] = parse_statistics("cpu 1 2 3 4\ncpu3 1 2 3 4 5\n").try_into().unwrap();
        assert_eq!((cpu.cpu, cpu.idle, cpu.iowait, cpu.irq, cpu.guestnice), (3, 40, Some(50), None, None));
        assert_eq!(parse_statistics("cpu0 1 2 3\n"), []);
    }
}
