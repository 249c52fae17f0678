//! Opens tap devices. State: the descriptor that is returned is what keeps the device alive.
#![allow(unsafe_code, reason = "the ioctl TUNSETIFF is in no safe crate that we use")]

use std::ffi::c_short;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Why a tap could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The kernel has no TUN/TAP driver, or we may not use it.
    #[error("opening /dev/net/tun failed")]
    Device(#[source] io::Error),
    /// A process has it open already; a tap of one queue has one holder.
    #[error("tap {name} is held by another process")]
    Held {
        /// Name of the tap.
        name: String,
    },
    /// The name does not fit.
    #[error("{name:?} is no name for a network interface: 1 to 15 characters are expected")]
    Name {
        /// The name.
        name: String,
    },
    /// The kernel refused.
    #[error("making tap {name} failed")]
    Make {
        /// Name of the tap.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Makes the tap, or opens it if nobody holds it: Ethernet frames, each with a `virtio_net_hdr` before it (offloads); a
/// descriptor for each queue. The device lives until the last copy of the last descriptor is closed. They are closed on
/// exec: whoever hands them to a child has to say so. Device is made in the network namespace of the calling thread.
pub fn open(name: &str, queues: u32) -> Result<Vec<OwnedFd>, TapError> {
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let flags = if queues > 1 { flags | libc::IFF_MULTI_QUEUE } else { flags };
    let opened = (0..queues.max(1)).map(|_| open_queue(name, flags)).collect::<Result<Vec<_>, _>>()?;
    // The device is the guest's end of a bridge: this machine has no business there, and no address. (`IN6_ADDR_GEN_MODE_NONE`; without
    // IPv6 in the kernel there is nothing to be said.)
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/addr_gen_mode"), "1");
    Ok(opened)
}

fn open_queue(name: &str, flags: libc::c_int) -> Result<OwnedFd, TapError> {
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags as c_short },
    };
    let bytes = name.as_bytes();
    // '%' would make the kernel choose a number.
    if bytes.is_empty() || bytes.len() >= libc::IFNAMSIZ || bytes.iter().any(|b| matches!(b, 0 | b'/' | b'%'))
    {
        return Err(TapError::Name { name: name.to_owned() });
    }
    for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun").map_err(TapError::Device)?;
    // SAFETY: the descriptor is open (owned by `file`), TUNSETIFF reads and writes one `ifreq`, and `request` is one,
    // fully initialised, with a terminated name, and lives on this stack frame for the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    if result < 0 {
        let source = io::Error::last_os_error();
        let name = name.to_owned();
        return Err(match source.raw_os_error() {
            Some(libc::EBUSY) => TapError::Held { name },
            _ => TapError::Make { name, source },
        });
    }
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfit_names_never_reach_the_kernel() {
        for bad in ["", "0123456789abcdef", "tap%d", "a/b", "a\0b"] {
            assert!(matches!(open(bad, 1), Err(TapError::Name { .. })), "{bad:?}");
        }
    }
}
