//! Sealed memory files: how settings and policy reach every process without anybody being able to change them.
//!
//! Made by `portreeve`, read by all others. A reader trusts the content only after the kernel has said that all four seals
//! are on: then neither the size nor a byte can change under it.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

/// Nobody may write, grow or shrink it, nor add or remove a seal; `memfd_create(2)`, `fcntl(2)`.
const SEALS: libc::c_int = libc::F_SEAL_WRITE | libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;

/// linux/memfd.h; kernels before 6.3 answer EINVAL.
const MFD_NOEXEC_SEAL: libc::c_uint = 0x0008;

/// Makes an empty memory file that can be sealed later. The caller owns it; close-on-exec.
///
/// `name` appears in `/proc/PID/maps` only.
///
/// # Errors
/// The errno of `memfd_create(2)`.
pub fn create(name: &std::ffi::CStr) -> io::Result<OwnedFd> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    for flags in [flags | MFD_NOEXEC_SEAL, flags] {
        // SAFETY: name is a C string that lives across the call; the kernel copies it.
        let number = unsafe { libc::memfd_create(name.as_ptr(), flags) };
        if number >= 0 {
            // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
            return Ok(unsafe { OwnedFd::from_raw_fd(number) });
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINVAL) {
            return Err(error);
        }
    }
    Err(io::Error::from_raw_os_error(libc::EINVAL))
}

/// Puts all four seals on. From then on the content is what it is.
///
/// # Errors
/// EBUSY while somebody has it mapped for writing, EPERM if it was not made by [`create`].
pub fn seal(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: F_ADD_SEALS takes an int; the descriptor is open for as long as it is borrowed.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, SEALS) } < 0 {
        return Err(io::Error::last_os_error());
    }
    verify(file)
}

/// Makes a sealed memory file with `content`. The caller owns it; close-on-exec.
///
/// # Errors
/// Those of [`create`], of writing and of [`seal`].
pub fn from_bytes(name: &std::ffi::CStr, content: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(create(name)?);
    file.write_all(content)?;
    let file = OwnedFd::from(file);
    seal(std::os::fd::AsFd::as_fd(&file))?;
    Ok(file)
}

/// Checks that all four seals are on.
///
/// # Errors
/// EPERM if one is missing, EINVAL if it is not a memory file.
pub fn verify(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: F_GET_SEALS takes no third argument; the descriptor is open for as long as it is borrowed.
    let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
    if seals < 0 {
        return Err(io::Error::last_os_error());
    }
    if seals & SEALS == SEALS { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) }
}

/// Reads all of a sealed memory file of at most `limit` bytes.
///
/// All processes share one file position, so it is read by offset and the position stays where it is.
///
/// # Errors
/// Those of [`verify`], EFBIG if it is larger than `limit`, and those of reading.
pub fn read(file: BorrowedFd<'_>, limit: usize) -> io::Result<Vec<u8>> {
    verify(file)?;
    contents(file, limit)
}

/// As [`read`], for a file whose seals somebody trusted has looked at: the broker's filter lets it ask for none.
///
/// # Errors
/// EFBIG if it is larger than `limit`, and those of reading.
pub fn contents(file: BorrowedFd<'_>, limit: usize) -> io::Result<Vec<u8>> {
    // Most files fit into the first part; memory that is asked for is cleared page by page, and each page costs a fault.
    const PART: usize = 4 * 1024;
    let mut content = Vec::new();
    loop {
        let length = content.len();
        content.resize(length.saturating_add(length.max(PART)), 0);
        let rest = content.get_mut(length..).unwrap_or_default();
        let offset = libc::off_t::try_from(length).map_err(io::Error::other)?;
        // SAFETY: pread writes at most as many bytes as `rest` has, which nobody else uses.
        let read = unsafe { libc::pread(file.as_raw_fd(), rest.as_mut_ptr().cast(), rest.len(), offset) };
        let Ok(read) = usize::try_from(read) else { return Err(io::Error::last_os_error()) };
        content.truncate(length.saturating_add(read));
        if content.len() > limit {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        if read == 0 {
            return Ok(content);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn sealed_content_reads_back_and_refuses_to_change() {
        let file = from_bytes(c"test", b"policy").expect("makes it");
        assert_eq!(read(file.as_fd(), 6).expect("reads"), b"policy");
        assert_eq!(read(file.as_fd(), 6).expect("reads again: the position did not move"), b"policy");
        let mut writer = File::from(file);
        assert_eq!(writer.write_all(b"x").expect_err("sealed").raw_os_error(), Some(libc::EPERM));
        assert_eq!(writer.set_len(0).expect_err("sealed").raw_os_error(), Some(libc::EPERM));
    }

    #[test]
    fn content_without_all_seals_is_not_read() {
        let mut file = File::from(create(c"test").expect("makes it"));
        file.write_all(b"policy").expect("writes");
        assert_eq!(read(file.as_fd(), 100).expect_err("no seal").raw_os_error(), Some(libc::EPERM));
        let three = SEALS & !libc::F_SEAL_GROW;
        // SAFETY: F_ADD_SEALS takes an int; `file` is open.
        let sealed = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, three) };
        assert_eq!(sealed, 0);
        assert_eq!(read(file.as_fd(), 100).expect_err("one is missing").raw_os_error(), Some(libc::EPERM));
    }

    #[test]
    fn content_larger_than_the_limit_is_not_read() {
        let file = from_bytes(c"test", b"policy").expect("makes it");
        assert_eq!(read(file.as_fd(), 5).expect_err("too large").raw_os_error(), Some(libc::EFBIG));
    }

    #[test]
    fn an_ordinary_file_is_not_taken_for_a_sealed_one() {
        let file = File::open("/proc/self/exe").expect("opens");
        assert_eq!(read(file.as_fd(), 100).expect_err("no memory file").raw_os_error(), Some(libc::EINVAL));
    }
}
