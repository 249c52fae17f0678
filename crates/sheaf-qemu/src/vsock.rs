//! Connections to a guest by vsock: without a network, by the number of the machine and a port.
#![allow(unsafe_code)]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Connects to a port of the machine with this context id. Blocks, for two seconds at most unless the system says otherwise.
/// What comes back is a stream socket: it is read and written as one of unix.
pub fn connect(cid: u32, port: u32) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    // SAFETY: a system call without pointers.
    let raw = unsafe { libc::socket(libc::AF_VSOCK, kind, 0) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    // SAFETY: an address is made of integers; zero is a value of each.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::sa_family_t::try_from(libc::AF_VSOCK).unwrap_or_default();
    (address.svm_cid, address.svm_port) = (cid, port);
    let len = libc::socklen_t::try_from(size_of::<libc::sockaddr_vm>()).unwrap_or_default();
    // SAFETY: the descriptor is open; the address lives on this stack frame, and its length is right.
    let result = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_at_the_other_end_is_an_error() {
        // No machine has this number; without the driver the system says so, too.
        let err = connect(0xffff_fff0, 1).expect_err("nobody");
        assert!(err.raw_os_error().is_some(), "{err}");
    }
}
