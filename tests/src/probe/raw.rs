//! System calls by number, with any arguments.

use std::io;

/// A number, which may have bit 30 set (x32), and six arguments.
#[derive(Clone, Copy)]
pub(crate) struct Call {
    pub(crate) number: u64,
    pub(crate) arguments: [u64; 6],
}

/// Makes a call.
pub(crate) fn call(wanted: Call) -> io::Result<usize> {
    let [a, b, c, d, e, f] = wanted.arguments;
    // SAFETY: none by itself, and that is the point of this program: the caller's number and arguments are those of a taken-over
    // process. What tests send is −1 for each pointer, length and descriptor, for which no call reads or writes memory of ours;
    // `escapes` and `landlock` pass pointers to live values of the right layout.
    let result = unsafe { libc::syscall(wanted.number.cast_signed(), a, b, c, d, e, f) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// `ok` or the errno's name.
pub(crate) fn describe(result: &io::Result<usize>) -> String {
    match result {
        Ok(_) => "ok".to_owned(),
        Err(error) => format!("{:?}", nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or_default())),
    }
}

/// getpid, number 20 of the i386 table, by its own gate. A filter sees another architecture there.
#[cfg(target_arch = "x86_64")]
pub(crate) fn i386_getpid() -> i64 {
    let result: i64;
    // SAFETY: getpid takes nothing and changes nothing. The i386 gate keeps rbx, rbp, rsi and rdi; it may change r8 to r11, which
    // are declared as lost.
    unsafe {
        std::arch::asm!("int 0x80", inlateout("rax") 20_i64 => result, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
    }
    result
}

/// There is no second table on this architecture.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn i386_getpid() -> i64 {
    panic!("only x86_64 has the i386 gate")
}

/// The newest Landlock ABI that the kernel knows, 0 if none; `landlock_create_ruleset(2)`.
pub(crate) fn landlock_abi() -> usize {
    const VERSION: u64 = 1;
    call(Call {
        number: libc::SYS_landlock_create_ruleset.cast_unsigned(),
        arguments: [0, 0, VERSION, 0, 0, 0],
    })
    .unwrap_or(0)
}
