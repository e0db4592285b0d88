//! Memory that is not needed any more goes back to the system.
//!
//! For processes that hold much for a short while. malloc keeps freed blocks below its newest one, and raises the size from
//! which blocks are given back at once to the largest that was ever freed (`mallopt(3)`, M_MMAP_THRESHOLD).

/// Gives all freed memory of this process back to the system.
///
/// Costs a walk over malloc's lists and a call of `madvise(2)` for each hole: for the time after a large transfer, not for every
/// request.
pub fn give_back() {
    // SAFETY: malloc_trim(3) takes the number of bytes to keep at the end of the heap, and may be called by any thread at any time.
    unsafe { libc::malloc_trim(0) };
}

/// Lets go of the program's code and constants as far as they are in memory for this process only because the start ran
/// through them; what is used again comes back from the page cache, one fault for sixteen pages.
///
/// Most of a small process's memory is code that ran once: entering a jail takes more of it than serving does.
pub fn let_go_of_start_code() {
    // SAFETY: dl_iterate_phdr(3) calls `visit` for each loaded object with a valid pointer, the program itself first;
    // `visit` uses no data pointer.
    unsafe { libc::dl_iterate_phdr(Some(visit), std::ptr::null_mut()) };
    give_back();
}

unsafe extern "C" fn visit(
    info: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    _data: *mut libc::c_void,
) -> libc::c_int {
    const PAGE: u64 = 4096;
    // SAFETY: the caller, dl_iterate_phdr(3), passes a valid structure whose program headers are `dlpi_phnum` long and
    // stay where they are as long as the object is loaded: the program's own, always.
    let (base, headers) = unsafe {
        let info = &*info;
        (info.dlpi_addr, std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)))
    };
    for header in headers {
        // What can be written holds relocations and data, which would be lost.
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        let start = base.saturating_add(header.p_vaddr).next_multiple_of(PAGE);
        let end = base.saturating_add(header.p_vaddr).saturating_add(header.p_memsz) / PAGE * PAGE;
        if let (Ok(address), Ok(length)) =
            (usize::try_from(start), usize::try_from(end.saturating_sub(start)))
            && length > 0
        {
            // SAFETY: the range is whole pages inside one segment of the program's file, mapped privately and never written to:
            // dropped pages are read again from the file, with the same content. What runs meanwhile faults and goes on.
            unsafe {
                libc::madvise(std::ptr::without_provenance_mut(address), length, libc::MADV_DONTNEED);
            }
        }
    }
    // The first object is the program; libraries are shared with others.
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_goes_on_after_its_code_was_let_go() {
        let text = "constants are still what they were";
        let_go_of_start_code();
        assert_eq!(text.split(' ').rev().collect::<Vec<_>>().join(" "), "were they what still are constants");
    }
}
