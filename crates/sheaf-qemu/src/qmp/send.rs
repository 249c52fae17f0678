//! Sending a line, and with it an open descriptor if the connection is a unix socket.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::unix::OwnedWriteHalf;

/// The half of a connection that is written to.
pub(super) trait Sender {
    /// Sends a whole line.
    fn send(&mut self, line: &[u8], fd: Option<OwnedFd>) -> impl Future<Output = std::io::Result<()>> + Send;
}

impl Sender for OwnedWriteHalf {
    async fn send(&mut self, line: &[u8], fd: Option<OwnedFd>) -> std::io::Result<()> {
        let Some(fd) = fd else { return self.write_all(line).await };
        let sent = loop {
            self.writable().await?;
            // The descriptor travels with the first byte.
            let attempt = self.as_ref().try_io(Interest::WRITABLE, || {
                let fds = [fd.as_fd()];
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                control.push(SendAncillaryMessage::ScmRights(&fds));
                let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                Ok(sendmsg(self.as_ref(), &[IoSlice::new(line)], &mut control, flags)?)
            });
            match attempt {
                Ok(n) => break n,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        };
        self.write_all(line.get(sent..).unwrap_or_default()).await
    }
}

#[cfg(test)]
impl Sender for tokio::io::WriteHalf<tokio::io::DuplexStream> {
    async fn send(&mut self, line: &[u8], _fd: Option<OwnedFd>) -> std::io::Result<()> {
        self.write_all(line).await
    }
}
