//! Memory that another process shares with us: the guest's, and the record of requests under way.
//!
//! Everything goes through checked addresses and plain copies: nothing here gives out a reference into that memory, so a
//! guest that changes it meanwhile changes values, never what the compiler relies on.
#![allow(unsafe_code, reason = "memory that a guest changes at any time is in no safe type")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use super::message::RegionAt;

/// A shared mapping of a file.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to no thread; all access is by copies and atomics.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes of a file, which must have as many.
    pub fn new(fd: &OwnedFd, len: usize) -> io::Result<Self> {
        let stat = rustix::fs::fstat(fd)?;
        // Behind the end of the file every access would be a signal.
        if len == 0 || u64::try_from(stat.st_size).unwrap_or(0) < len as u64 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the file is shorter than what is to be mapped",
            ));
        }
        // SAFETY: a new mapping at an address that the kernel chooses; nothing of ours lies there.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                fd.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at zero"))?;
        Ok(Self { start, len })
    }

    /// Its length.
    pub fn bytes(&self) -> usize {
        self.len
    }

    fn at(&self, offset: u64, len: usize) -> Option<*mut u8> {
        let offset = usize::try_from(offset).ok()?;
        let end = offset.checked_add(len)?;
        // SAFETY: within the mapping, as just checked.
        (end <= self.len).then(|| unsafe { self.start.as_ptr().add(offset) })
    }

    /// Copies out. False: outside.
    pub fn read(&self, offset: u64, to: &mut [u8]) -> bool {
        let Some(from) = self.at(offset, to.len()) else { return false };
        // SAFETY: `from` is valid for as many bytes; the two do not overlap, `to` is ours.
        unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
        true
    }

    /// Copies in. False: outside.
    pub fn write(&self, offset: u64, from: &[u8]) -> bool {
        let Some(to) = self.at(offset, from.len()) else { return false };
        // SAFETY: as above, the other way.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
        true
    }

    /// Reads a number of two bytes, after which everything written before it is seen.
    pub fn load_u16(&self, offset: u64) -> Option<u16> {
        let at = self.at(offset, 2).filter(|at| at.addr().is_multiple_of(2))?;
        // SAFETY: aligned and within the mapping; atomics may be shared with other processes.
        Some(unsafe { AtomicU16::from_ptr(at.cast()) }.load(Ordering::Acquire))
    }

    /// Writes a number of two bytes, before which everything written is seen.
    pub fn store_u16(&self, offset: u64, value: u16) -> bool {
        let Some(at) = self.at(offset, 2).filter(|at| at.addr().is_multiple_of(2)) else { return false };
        // SAFETY: as above.
        unsafe { AtomicU16::from_ptr(at.cast()) }.store(value, Ordering::Release);
        true
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by us with this length, and nothing points into it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// A mapped region of the guest's memory.
#[derive(Debug)]
struct Region {
    at: RegionAt,
    mapping: Mapping,
}

/// All of the guest's memory.
#[derive(Debug, Default)]
pub struct GuestMemory(Vec<Region>);

impl GuestMemory {
    /// Maps what was announced.
    pub fn new(regions: Vec<RegionAt>, fds: Vec<OwnedFd>) -> io::Result<Self> {
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
        if regions.len() != fds.len() {
            return Err(invalid("as many descriptors as regions"));
        }
        let mut mapped = Vec::with_capacity(regions.len());
        for (at, fd) in regions.into_iter().zip(fds) {
            let end = at.offset.checked_add(at.bytes).and_then(|end| usize::try_from(end).ok());
            let end = end.ok_or_else(|| invalid("a region does not fit the address space"))?;
            if at.guest.checked_add(at.bytes).is_none() || at.user.checked_add(at.bytes).is_none() {
                return Err(invalid("a region does not fit the address space"));
            }
            mapped.push(Region { at, mapping: Mapping::new(&fd, end)? });
        }
        Ok(Self(mapped))
    }

    /// The address in the guest that QEMU knows by this one of its own.
    pub fn guest_of(&self, user: u64) -> Option<u64> {
        let region = self.0.iter().find(|r| user >= r.at.user && user - r.at.user < r.at.bytes)?;
        Some(user - region.at.user + region.at.guest)
    }

    fn find(&self, guest: u64, len: usize) -> Option<(&Mapping, u64)> {
        let region = self.0.iter().find(|r| guest >= r.at.guest && guest - r.at.guest < r.at.bytes)?;
        let within = guest - region.at.guest;
        (region.at.bytes - within >= len as u64).then_some((&region.mapping, region.at.offset + within))
    }

    /// Whether all of this is the guest's.
    pub fn has(&self, guest: u64, len: usize) -> bool {
        self.find(guest, len).is_some()
    }

    /// Copies out. False: not the guest's.
    pub fn read(&self, guest: u64, to: &mut [u8]) -> bool {
        self.find(guest, to.len()).is_some_and(|(mapping, at)| mapping.read(at, to))
    }

    /// Copies in. False: not the guest's.
    pub fn write(&self, guest: u64, from: &[u8]) -> bool {
        self.find(guest, from.len()).is_some_and(|(mapping, at)| mapping.write(at, from))
    }

    /// Reads a number of two bytes.
    pub fn load_u16(&self, guest: u64) -> Option<u16> {
        let (mapping, at) = self.find(guest, 2)?;
        mapping.load_u16(at)
    }

    /// Writes a number of two bytes.
    pub fn store_u16(&self, guest: u64, value: u16) -> bool {
        self.find(guest, 2).is_some_and(|(mapping, at)| mapping.store_u16(at, value))
    }
}
