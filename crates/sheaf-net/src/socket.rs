//! Sockets with the options that the DHCP and DNS servers need before they bind. No state.
#![allow(unsafe_code, reason = "SO_BINDTODEVICE is in no safe crate that we use")]

use std::ffi::c_void;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::net::UdpSocket;

/// A UDP socket on `0.0.0.0:port` that sees and sends packets of one device only, broadcasts included.
///
/// It stops working when the device is deleted, even if one of the same name takes its place: make a new one then.
pub fn udp_on_device(device: &str, port: u16) -> io::Result<UdpSocket> {
    let fd = new_udp()?;
    sockopt::set_socket_broadcast(&fd, true)?;
    bind_to_device(&fd, device)?;
    bind(fd, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port))
}

/// A UDP socket on one address. Shares the port with sockets on the same port of other addresses, as resolvers of the
/// host may have.
pub fn udp_on_address(address: Ipv4Addr, port: u16) -> io::Result<UdpSocket> {
    bind(new_udp()?, SocketAddrV4::new(address, port))
}

fn new_udp() -> io::Result<OwnedFd> {
    let fd = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    sockopt::set_socket_reuseaddr(&fd, true)?;
    Ok(fd)
}

fn bind(fd: OwnedFd, address: SocketAddrV4) -> io::Result<UdpSocket> {
    rustix::net::bind(&fd, &SocketAddr::V4(address))?;
    UdpSocket::from_std(fd.into())
}

fn bind_to_device(fd: &impl AsFd, device: &str) -> io::Result<()> {
    let raw = fd.as_fd().as_raw_fd();
    let len = libc::socklen_t::try_from(device.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: `raw` is open for the call's duration (borrowed from `fd`), and the pointer and length describe the
    // bytes of `device`, which outlives the call; the kernel only reads them.
    let result = unsafe {
        libc::setsockopt(raw, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, device.as_ptr().cast::<c_void>(), len)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
