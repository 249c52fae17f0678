//! Memory for direct I/O: aligned to a page, and reused. Knows nothing of what is in it.
//!
//! What is given up goes to the thread that gave it up, if that thread keeps any ([`keep`]), and is the first to be taken there:
//! a block on its way from a guest to a disk costs no call of the allocator, and lies in the processor's cache. A buffer becomes
//! [`Data`] without a copy, and comes back when the last who carries it is done.
#![allow(unsafe_code, reason = "memory at an aligned address is in no safe type")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use sheaf_block_core::disk::Data;

/// What direct I/O of any disk is content with.
pub const ALIGN: usize = 4096;

/// Bytes at an aligned address.
#[derive(Debug)]
pub struct Buffer {
    start: NonNull<u8>,
    len: usize,
    capacity: usize,
}

// SAFETY: it owns its bytes alone, as a `Vec<u8>` does.
unsafe impl Send for Buffer {}
// SAFETY: shared, it only gives out `&[u8]`.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// With anything in it.
    pub fn any(len: usize) -> Self {
        let capacity = len.next_power_of_two().max(ALIGN);
        if let Some(start) = KEPT.with_borrow_mut(|kept| kept.take(capacity)) {
            return Self { start, len, capacity };
        }
        let layout = Self::layout(capacity);
        // SAFETY: the layout has a size above zero.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, len, capacity }
    }

    /// Zeros.
    pub fn zeroed(len: usize) -> Self {
        let mut this = Self::any(len);
        this.fill(0);
        this
    }

    /// A copy.
    pub fn from_slice(bytes: &[u8]) -> Self {
        let mut this = Self::any(bytes.len());
        this.copy_from_slice(bytes);
        this
    }

    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, ALIGN).unwrap_or_else(|_| unreachable!("buffers are small"))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let (start, capacity) = (self.start, self.capacity);
        // A thread that is ending keeps nothing any more.
        if KEPT.try_with(|kept| kept.borrow_mut().put(start, capacity)).unwrap_or(false) {
            return;
        }
        // SAFETY: allocated with this layout, and nobody else has it.
        unsafe { dealloc(start.as_ptr(), Self::layout(capacity)) }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` is at most `capacity`, and all of that is initialised and ours.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` says that nobody else looks.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<Buffer> for Data {
    fn from(buffer: Buffer) -> Self {
        Self::from_owner(buffer)
    }
}

/// The same content at an aligned address: itself, or a copy.
pub fn aligned(data: Data) -> Data {
    if data.as_ptr().addr().is_multiple_of(ALIGN) { data } else { Buffer::from_slice(&data).into() }
}

/// Buffers of 4 KiB to 1 MiB are kept, by powers of two.
const KINDS: usize = 9;

/// What a thread keeps.
#[derive(Debug)]
struct Kept {
    free: [Vec<NonNull<u8>>; KINDS],
    bytes: usize,
    limit: usize,
}

thread_local! {
    static KEPT: RefCell<Kept> =
        const { RefCell::new(Kept { free: [const { Vec::new() }; KINDS], bytes: 0, limit: 0 }) };
}

/// How many bytes this thread keeps of what it gives up; what is more goes back at once. Nothing, unless it is said.
pub fn keep(limit: usize) {
    KEPT.with_borrow_mut(|kept| {
        kept.limit = limit;
        kept.clear();
    });
}

impl Kept {
    fn kind(capacity: usize) -> usize {
        (capacity / ALIGN).trailing_zeros() as usize
    }

    fn take(&mut self, capacity: usize) -> Option<NonNull<u8>> {
        let start = self.free.get_mut(Self::kind(capacity))?.pop()?;
        self.bytes -= capacity;
        Some(start)
    }

    /// False: it is not wanted.
    fn put(&mut self, start: NonNull<u8>, capacity: usize) -> bool {
        let wanted = self.bytes + capacity <= self.limit;
        match self.free.get_mut(Self::kind(capacity)).filter(|_| wanted) {
            Some(free) => free.push(start),
            None => return false,
        }
        self.bytes += capacity;
        true
    }

    fn clear(&mut self) {
        for (kind, free) in self.free.iter_mut().enumerate() {
            for start in std::mem::take(free) {
                // SAFETY: allocated with this layout by who gave it up.
                unsafe { dealloc(start.as_ptr(), Buffer::layout(ALIGN << kind)) }
            }
        }
        self.bytes = 0;
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_reused_when_nobody_has_them_any_more() {
        keep(64 << 10);
        let mut buffer = Buffer::any(512);
        assert!(buffer.iter().all(|b| *b == 0) && buffer.as_ptr().addr().is_multiple_of(ALIGN));
        buffer.fill(3);
        let address = buffer.as_ptr();
        let data = Data::from(buffer);
        let other = data.slice(100..200);
        drop(data);
        assert_ne!(Buffer::any(4096).as_ptr(), address, "somebody has it");
        assert_eq!(other[..], [3; 100]);
        drop(other);
        assert_eq!(Buffer::any(4096).as_ptr(), address, "the last that was given up is the first");
        assert!(Buffer::zeroed(4096).iter().all(|b| *b == 0), "whatever was in it");
        assert_eq!(Buffer::from_slice(&[5; 5000])[..], [5; 5000]);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        keep(64 << 10);
        let all: Vec<Buffer> = (0..100).map(|_| Buffer::any(8192)).collect();
        drop((all, Buffer::any(2 << 20)));
        assert_eq!(KEPT.with_borrow(|kept| (kept.bytes, kept.free[1].len())), (64 << 10, 8));
        keep(0);
        drop(Buffer::any(4096));
        assert_eq!(KEPT.with_borrow(|kept| kept.bytes), 0);
    }

    #[test]
    fn data_is_copied_only_if_it_lies_askew() {
        let whole = Data::from(Buffer::from_slice(&[7; 8192]));
        assert_eq!(aligned(whole.clone()).as_ptr(), whole.as_ptr());
        let askew = aligned(whole.slice(512..4608));
        assert!(askew.as_ptr().addr().is_multiple_of(ALIGN) && askew[..] == [7; 4096]);
    }
}
