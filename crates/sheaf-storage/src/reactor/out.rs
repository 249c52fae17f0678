//! Bytes on their way out of a socket: small pieces together, large ones as they are, without copying.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};
use std::ops::Range;

use sheaf_block_core::wire::Data;

/// Pieces given to the kernel at a time.
const SLICES: usize = 64;
/// Own bytes are gathered in pieces of this size.
const OWN: usize = 64 << 10;
/// Of what was used so many small pieces are kept.
const SPARES: usize = 32;
const SPARE_BYTES: usize = 1024;

#[derive(Debug)]
enum Chunk {
    Own(Vec<u8>),
    Shared(Data, Range<usize>),
}

impl Chunk {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Own(bytes) => bytes,
            Self::Shared(data, range) => &data[range.clone()],
        }
    }
}

/// See the module. The owner bounds its length.
#[derive(Debug, Default)]
pub(crate) struct OutQueue {
    chunks: VecDeque<Chunk>,
    /// Bytes of the first chunk that are gone.
    done: usize,
    len: usize,
    /// Room that was used, for the next.
    spare: Vec<Vec<u8>>,
}

impl OutQueue {
    /// Bytes that wait.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Appends a few bytes.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.append(|to| to.extend_from_slice(bytes));
    }

    /// Appends what the closure appends.
    pub(crate) fn append<T>(&mut self, with: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        if !matches!(self.chunks.back(), Some(Chunk::Own(last)) if last.len() < OWN) {
            self.chunks.push_back(Chunk::Own(self.spare.pop().unwrap_or_default()));
        }
        let Some(Chunk::Own(last)) = self.chunks.back_mut() else { unreachable!("just made") };
        let before = last.len();
        let value = with(last);
        self.len += last.len() - before;
        value
    }

    /// Appends part of shared bytes.
    pub(crate) fn push_shared(&mut self, data: Data, range: Range<usize>) {
        if range.len() < 1024 {
            return self.push(&data[range]);
        }
        self.len += range.len();
        self.chunks.push_back(Chunk::Shared(data, range));
    }

    /// Writes what the other side takes. True when nothing is left.
    pub(crate) fn write_to(&mut self, to: &mut impl Write) -> io::Result<bool> {
        while !self.chunks.is_empty() {
            let mut slices: [IoSlice<'_>; SLICES] = [IoSlice::new(&[]); SLICES];
            let mut count = 0;
            for (slice, chunk) in slices.iter_mut().zip(&self.chunks) {
                let from = if count == 0 { self.done } else { 0 };
                *slice = IoSlice::new(&chunk.bytes()[from..]);
                count += 1;
            }
            match to.write_vectored(&slices[..count]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.consume(written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn consume(&mut self, mut written: usize) {
        self.len -= written;
        while let Some(first) = self.chunks.front() {
            let left = first.bytes().len() - self.done;
            if written < left {
                self.done += written;
                return;
            }
            written -= left;
            self.done = 0;
            if let Some(Chunk::Own(mut bytes)) = self.chunks.pop_front()
                && bytes.capacity() <= SPARE_BYTES
                && self.spare.len() < SPARES
            {
                bytes.clear();
                self.spare.push(bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes a few bytes at a time.
    struct Slow(Vec<u8>, usize);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.1 == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let count = bytes.len().min(self.1);
            self.1 -= count;
            self.0.extend(&bytes[..count]);
            Ok(count)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn bytes_come_out_in_order_whatever_is_taken_at_a_time() {
        let mut expected: Vec<u8> = vec![];
        let mut queue = OutQueue::default();
        for at in 0..200u8 {
            let bytes = vec![at; usize::from(at) * 17];
            expected.extend(&bytes);
            match at % 3 {
                0 => queue.push(&bytes),
                1 => queue.append(|to| to.extend(&bytes)),
                _ => {
                    let len = bytes.len();
                    queue.push_shared(bytes.into(), 0..len);
                }
            }
        }
        let mut slow = Slow(vec![], 0);
        let mut rounds = 0;
        while !queue.write_to(&mut slow).expect("writes") {
            slow.1 = 1 + rounds % 1777;
            rounds += 1;
        }
        assert_eq!(slow.0, expected);
        assert_eq!(queue.len(), 0);
    }
}
