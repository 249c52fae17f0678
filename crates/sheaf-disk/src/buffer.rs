//! Memory for direct I/O: aligned to a page, zeroed, and reused. Knows nothing of what is in it.
#![allow(unsafe_code, reason = "memory at an aligned address is in no safe type")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

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
    /// Zeros.
    pub fn new(len: usize) -> Self {
        let capacity = len.next_multiple_of(ALIGN).max(ALIGN);
        let layout = Self::layout(capacity);
        // SAFETY: the layout has a size above zero.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, len, capacity }
    }

    /// A copy.
    pub fn from_slice(bytes: &[u8]) -> Self {
        let mut this = Self::new(bytes.len());
        this.copy_from_slice(bytes);
        this
    }

    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, ALIGN).unwrap_or_else(|_| unreachable!("buffers are small"))
    }

    /// What it can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Makes it shorter, or longer within its capacity; what was in it may still be there.
    pub fn resize(&mut self, len: usize) {
        assert!(len <= self.capacity, "a buffer does not grow");
        self.len = len;
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and nobody else has it.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.capacity)) }
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

/// Buffers that wait to be used again; bounded.
#[derive(Debug, Default)]
pub struct Pool {
    small: Vec<Buffer>,
    large: Vec<Buffer>,
}

/// Capacity of a large buffer, and how many of each kind are kept.
const LARGE: usize = 1 << 20;
const SMALL_KEPT: usize = 64;
const LARGE_KEPT: usize = 8;

impl Pool {
    /// A buffer of this length, with anything in it.
    pub fn take(&mut self, len: usize) -> Buffer {
        let (kept, capacity) = match len {
            0..=ALIGN => (&mut self.small, ALIGN),
            65_537..=LARGE => (&mut self.large, LARGE),
            _ => return Buffer::new(len),
        };
        let mut buffer = kept.pop().unwrap_or_else(|| Buffer::new(capacity));
        buffer.resize(len);
        buffer
    }

    /// Takes back what is no longer needed.
    pub fn put(&mut self, buffer: Buffer) {
        match buffer.capacity() {
            ALIGN if self.small.len() < SMALL_KEPT => self.small.push(buffer),
            LARGE if self.large.len() < LARGE_KEPT => self.large.push(buffer),
            _ => {}
        }
    }

    /// Gives everything back to the system.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_zeroed_and_reused() {
        let mut pool = Pool::default();
        let mut buffer = pool.take(512);
        assert!(buffer.iter().all(|b| *b == 0) && buffer.as_ptr().addr().is_multiple_of(ALIGN));
        buffer.fill(3);
        let address = buffer.as_ptr();
        pool.put(buffer);
        assert_eq!(pool.take(4096).as_ptr(), address);
        assert_eq!(Buffer::from_slice(&[5; 5000]).len(), 5000);
        for _ in 0..100 {
            pool.put(Buffer::new(LARGE));
        }
        assert_eq!(pool.large.len(), LARGE_KEPT);
    }
}
