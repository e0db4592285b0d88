//! Facts of the guest. The query worker reads them from `/proc`, `/sys` and a few files, with no right at all.
//!
//! Reply members and their meaning: QEMU's `qga/qapi-schema.json`; Phoenix's `sysinfo`.

use bincode::{Decode, Encode};
use serde::{Serialize, Serializer};

use crate::NoArguments;

commands! {
    privilege Query;
    /// Nanoseconds since the epoch, UTC.
    Query Qga "guest-get-time" => Time(NoArguments) -> i64;
    /// The kernel's name for this host.
    Query Qga "guest-get-host-name" => HostName(NoArguments) -> HostName;
    /// Who is logged in, once each.
    Query Qga "guest-get-users" => Users(NoArguments) -> Vec<User>;
    /// The local time zone now.
    Query Qga "guest-get-timezone" => TimeZone(NoArguments) -> TimeZone;
    /// Kernel and distribution.
    Query Qga "guest-get-osinfo" => OsInfo(NoArguments) -> Box<OsInfo>;
    /// Load averages.
    Query Qga "guest-get-load" => Load(NoArguments) -> Load;
    /// PCI devices and their drivers.
    Query Qga "guest-get-devices" => Devices(NoArguments) -> Vec<Device>, extension true;
    /// Time each CPU spent, in milliseconds.
    Query Qga "guest-get-cpustats" => CpuStats(NoArguments) -> Vec<CpuStats>;
    /// Counters of each block device.
    Query Qga "guest-get-diskstats" => DiskStats(NoArguments) -> Vec<DiskStatsInfo>;
    /// Disks and partitions.
    Query Qga "guest-get-disks" => Disks(NoArguments) -> Vec<DiskInfo>;
    /// Mounted filesystems that lie on block devices, last mounted first.
    Query Qga "guest-get-fsinfo" => FsInfo(NoArguments) -> Vec<FilesystemInfo>;
    /// CPUs and whether they are online.
    Query Qga "guest-get-vcpus" => Vcpus(NoArguments) -> Vec<LogicalProcessor>;
    /// Blocks of memory and whether they are online.
    Query Qga "guest-get-memory-blocks" => MemoryBlocks(NoArguments) -> Vec<MemoryBlock>;
    /// The size of a block of memory.
    Query Qga "guest-get-memory-block-info" => MemoryBlockInfo(NoArguments) -> MemoryBlockInfo;
    /// One object with everything about the system.
    Query Phoenix "sysinfo" => SysInfo(NoArguments) -> Box<SysInfo>;
}

/// `guest-get-host-name`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct HostName {
    /// As uname(2) gives it, up to 64 bytes.
    pub host_name: String,
}

/// One user of `guest-get-users`.
#[derive(Debug, Clone, PartialEq, Encode, Decode, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct User {
    /// Login name.
    pub user: String,
    /// Seconds since the epoch, of the earliest session.
    pub login_time: f64,
}

/// `guest-get-timezone`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct TimeZone {
    /// Abbreviation, such as `CET` or `+03`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Seconds east of UTC.
    pub offset: i64,
}

/// `guest-get-osinfo`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the members are uname(2)'s and os-release(5)'s")]
pub struct OsInfo {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_release: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pretty_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant_id: Option<String>,
}

/// `guest-get-load`.
#[derive(Debug, Clone, Copy, PartialEq, Encode, Decode, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Load {
    pub load1m: f64,
    pub load5m: f64,
    pub load15m: f64,
}

/// One CPU of `guest-get-cpustats`; times in milliseconds. See proc(5), `/proc/stat`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
#[serde(tag = "type", rename = "linux")]
#[allow(missing_docs, reason = "the members are proc(5)'s")]
pub struct CpuStats {
    pub cpu: i64,
    pub user: u64,
    pub nice: u64,
    pub system: u64,
    pub idle: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iowait: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub irq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub softirq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steal: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guestnice: Option<u64>,
}

/// One device of `guest-get-diskstats`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct DiskStatsInfo {
    pub name: String,
    pub major: u64,
    pub minor: u64,
    pub stats: DiskStats,
}

/// Counters of a block device: sectors of 512 bytes, ticks of a millisecond.
/// Source: the kernel's Documentation/admin-guide/iostats.rst.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the members are iostats.rst's")]
pub struct DiskStats {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_sectors: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_ios: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_merges: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_sectors: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_ios: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_merges: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discard_sectors: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discard_ios: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discard_merges: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flush_ios: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_ticks: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_ticks: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discard_ticks: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flush_ticks: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ios_pgr: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_ticks: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_ticks: Option<u64>,
}

/// How a disk is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the names are the schema's")]
pub enum BusType {
    Ide,
    Fdc,
    Scsi,
    Virtio,
    Xen,
    Usb,
    Uml,
    Sata,
    Sd,
    Unknown,
    Ieee1394,
    Ssa,
    Fibre,
    Raid,
    Iscsi,
    Sas,
    Mmc,
    Virtual,
    FileBackedVirtual,
    Nvme,
}

/// Where on the PCI bus; -1 in each member if unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Serialize)]
#[allow(missing_docs, reason = "the names are PCI's")]
pub struct PciAddress {
    pub domain: i64,
    pub bus: i64,
    pub slot: i64,
    pub function: i64,
}

/// Where on the channel subsystem (s390x).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Serialize)]
#[allow(missing_docs, reason = "the names are s390x's")]
pub struct CcwAddress {
    pub cssid: i64,
    pub ssid: i64,
    pub subchno: i64,
    pub devno: i64,
}

/// Hardware below a disk or filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct DiskAddress {
    /// Its controller.
    pub pci_controller: PciAddress,
    /// How it is attached.
    pub bus_type: BusType,
    /// Bus number, 0 if unknown.
    pub bus: i64,
    /// Target number, 0 if unknown.
    pub target: i64,
    /// Unit number, 0 if unknown.
    pub unit: i64,
    /// udev's `ID_SERIAL`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// The device node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dev: Option<String>,
    /// On s390x.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ccw_address: Option<CcwAddress>,
}

/// One disk or partition of `guest-get-disks`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct DiskInfo {
    /// The device node.
    pub name: String,
    /// A part of another one.
    pub partition: bool,
    /// What it is made of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dependencies: Option<Vec<String>>,
    /// Its hardware; not for virtual devices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<DiskAddress>,
    /// The device mapper's name for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
}

/// One filesystem of `guest-get-fsinfo`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct FilesystemInfo {
    /// The block device's kernel name, or `<major>:<minor>` where sysfs does not know it.
    pub name: String,
    /// Where it is mounted.
    pub mountpoint: String,
    /// Its type, as mount(8) has it.
    pub r#type: String,
    /// Bytes in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<u64>,
    /// Bytes that an ordinary user can use, used ones included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    /// Bytes that root can use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_bytes_privileged: Option<u64>,
    /// Hardware below.
    pub disk: Vec<DiskAddress>,
}

/// One CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct LogicalProcessor {
    /// The kernel's number.
    pub logical_id: i64,
    /// In use.
    pub online: bool,
    /// May be taken out of use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub can_offline: Option<bool>,
}

/// One block of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct MemoryBlock {
    /// The kernel's number.
    pub phys_index: u64,
    /// In use.
    pub online: bool,
    /// May be taken out of use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub can_offline: Option<bool>,
}

/// `guest-get-memory-block-info`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct MemoryBlockInfo {
    /// Bytes.
    pub size: u64,
}

/// Phoenix's `sysinfo`; sizes in kB.
#[derive(Debug, Clone, PartialEq, Encode, Decode, Serialize)]
pub struct SysInfo {
    /// uname(2).
    pub uname: Uname,
    /// Bits of a C long.
    pub long_bit: i64,
    /// Seconds.
    pub uptime: i64,
    /// Load averages.
    pub loadavg: LoadAverage,
    /// Memory.
    pub ram: Ram,
    /// Swap space.
    pub swap: Swap,
    /// Sessions that came over the network.
    pub users: Vec<Session>,
    /// Whole disks.
    pub disks: Vec<Disk>,
}

/// uname(2) in Phoenix's `sysinfo`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
#[allow(missing_docs, reason = "the members are uname(2)'s")]
pub struct Uname {
    pub sysname: String,
    pub nodename: String,
    pub release: String,
    pub version: String,
    pub machine: String,
    pub domain: String,
}

/// Load averages in Phoenix's `sysinfo`.
#[derive(Debug, Clone, Copy, PartialEq, Encode, Decode)]
#[allow(missing_docs, reason = "the names say it")]
pub struct LoadAverage {
    pub one: f64,
    pub five: f64,
    pub fifteen: f64,
}

impl Serialize for LoadAverage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry("1m", &self.one)?;
        map.serialize_entry("5m", &self.five)?;
        map.serialize_entry("15m", &self.fifteen)?;
        map.end()
    }
}

/// Memory in Phoenix's `sysinfo`, kB: the union of what 0.7, 0.7.1 and 0.7.2 call it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Serialize)]
#[allow(missing_docs, reason = "the members are meminfo's")]
pub struct Ram {
    pub total: u64,
    pub free: u64,
    pub buffer: u64,
    pub buffers: u64,
    pub cached: u64,
    pub free_total: u64,
}

/// Swap space in Phoenix's `sysinfo`, kB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Swap {
    pub total: u64,
    pub free: u64,
}

/// A session in Phoenix's `sysinfo`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Session {
    /// Login name.
    pub name: String,
    /// Terminal.
    pub device: String,
    /// Where it came from.
    pub host: String,
    /// Seconds since the epoch.
    pub login_time: i64,
}

/// A whole disk in Phoenix's `sysinfo`; sizes in kB, 0 when not mounted.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Disk {
    /// The device node.
    pub name: String,
    /// A filesystem lies directly on it and is mounted.
    pub is_mounted: bool,
    /// Where, or empty.
    pub mountpoint: String,
    /// Size of the filesystem.
    pub size_total: u64,
    /// In use.
    pub size_used: u64,
    /// Left for ordinary users.
    pub size_avail: u64,
}

/// One device of `guest-get-devices`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Device {
    /// Its driver.
    pub driver_name: String,
    /// The driver's version, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver_version: Option<String>,
    /// What it is.
    pub id: DeviceId,
}

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct DeviceId {
    /// How it is connected.
    pub r#type: DeviceIdType,
    /// Who made it.
    pub vendor_id: u16,
    /// Which of the vendor's.
    pub device_id: u16,
}

/// How a device is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceIdType {
    /// By PCI.
    Pci,
}
