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
