//! A guest in miniature: an NBD client that verifies what it reads, and, like QEMU's, connects again and repeats what was
//! not answered.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const ZEROES: u16 = 6;

pub(crate) struct Client {
    path: PathBuf,
    stream: UnixStream,
    pub(crate) bytes: u64,
    cookie: u64,
    pub(crate) reconnects: u32,
}

fn connect(path: &Path) -> io::Result<(UnixStream, u64)> {
    open(path, b"vol")
}

fn open(path: &Path, name: &[u8]) -> io::Result<(UnixStream, u64)> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(Duration::from_secs(90)))?;
    let mut hello = [0; 18];
    stream.read_exact(&mut hello)?;
    assert_eq!(&hello[..16], b"NBDMAGICIHAVEOPT");
    let mut ask = 3u32.to_be_bytes().to_vec();
    ask.extend(b"IHAVEOPT");
    ask.extend(1u32.to_be_bytes());
    ask.extend((name.len() as u32).to_be_bytes());
    ask.extend(name);
    stream.write_all(&ask)?;
    let mut export = [0; 10];
    stream.read_exact(&mut export)?;
    Ok((stream, u64::from_be_bytes(export[..8].try_into().expect("eight bytes"))))
}

impl Client {
    pub(crate) fn connect(path: &Path) -> Self {
        let (stream, bytes) = connect(path).expect("connects");
        Self { path: path.to_path_buf(), stream, bytes, cookie: 0, reconnects: 0 }
    }

    /// A connection to whatever is exported there; for the bench.
    #[allow(dead_code, reason = "the bench shares this file")]
    pub(crate) fn connect_any(path: &Path) -> io::Result<(UnixStream, u64)> {
        open(path, b"")
    }

    pub(crate) fn send(
        &mut self,
        flags: u16,
        kind: u16,
        offset: u64,
        len: u32,
        data: &[u8],
    ) -> io::Result<u64> {
        self.cookie += 1;
        let mut ask = 0x2560_9513u32.to_be_bytes().to_vec();
        ask.extend(flags.to_be_bytes());
        ask.extend(kind.to_be_bytes());
        ask.extend(self.cookie.to_be_bytes());
        ask.extend(offset.to_be_bytes());
        ask.extend(len.to_be_bytes());
        ask.extend(data);
        self.stream.write_all(&ask)?;
        Ok(self.cookie)
    }

    fn once(
        &mut self,
        flags: u16,
        kind: u16,
        offset: u64,
        len: u32,
        data: &[u8],
    ) -> io::Result<Result<Vec<u8>, u32>> {
        let cookie = self.send(flags, kind, offset, len, data)?;
        let mut head = [0; 16];
        self.stream.read_exact(&mut head)?;
        assert_eq!(head[..4], 0x6744_6698u32.to_be_bytes());
        assert_eq!(head[8..], cookie.to_be_bytes());
        let error = u32::from_be_bytes(head[4..8].try_into().expect("four bytes"));
        if error != 0 {
            return Ok(Err(error));
        }
        let mut read = vec![0; if kind == READ { len as usize } else { 0 }];
        self.stream.read_exact(&mut read)?;
        Ok(Ok(read))
    }

    /// One request, repeated over as many connections as it takes.
    pub(crate) fn ask(
        &mut self,
        flags: u16,
        kind: u16,
        offset: u64,
        len: u32,
        data: &[u8],
    ) -> Result<Vec<u8>, u32> {
        let end = Instant::now() + Duration::from_secs(120);
        loop {
            match self.once(flags, kind, offset, len, data) {
                Ok(result) => return result,
                Err(error) => {
                    assert!(Instant::now() < end, "no answer from {}: {error}", self.path.display())
                }
            }
            while let Err(error) = connect(&self.path).map(|(stream, _)| self.stream = stream) {
                assert!(Instant::now() < end, "cannot connect to {}: {error}", self.path.display());
                std::thread::park_timeout(Duration::from_millis(10));
            }
            self.reconnects += 1;
        }
    }

    pub(crate) fn read(&mut self, offset: u64, len: u32) -> Vec<u8> {
        self.ask(0, READ, offset, len, &[]).expect("reads")
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        self.ask(0, WRITE, offset, data.len() as u32, data).expect("writes");
    }

    pub(crate) fn flush(&mut self) {
        self.ask(0, FLUSH, 0, 0, &[]).expect("flushes");
    }
}

/// Writes what it can tell again, in sectors, and checks everything that it reads.
pub(crate) struct Verifier {
    pub(crate) client: Client,
    /// What each sector was told to be last; absent: zeros.
    written: BTreeMap<u64, u64>,
    next: u64,
    seed: u64,
    pub(crate) operations: u64,
}

const SECTOR: u64 = 512;

fn sector(number: u64, value: u64) -> Vec<u8> {
    if value == 0 {
        return vec![0; SECTOR as usize];
    }
    [number.to_le_bytes(), value.to_le_bytes()].concat().repeat(SECTOR as usize / 16)
}

impl Verifier {
    pub(crate) fn new(path: &Path, seed: u64) -> Self {
        let client = Client::connect(path);
        Self { client, written: BTreeMap::new(), next: 0, seed: seed * 2 + 1, operations: 0 }
    }

    fn dice(&mut self, below: u64) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed.wrapping_mul(0x2545_f491_4f6c_dd1d) % below
    }

    fn range(&mut self) -> (u64, u64) {
        let sectors = self.client.bytes / SECTOR;
        let start = self.dice(sectors);
        let most = (sectors - start).min(match self.dice(6) {
            0 => 4096,
            1 => 1,
            2..=3 => 8,
            _ => 64,
        });
        (start, 1 + self.dice(most))
    }

    /// One operation of any kind, checked.
    pub(crate) fn step(&mut self) {
        self.operations += 1;
        let (start, count) = self.range();
        let (offset, len) = (start * SECTOR, (count * SECTOR) as u32);
        match self.dice(20) {
            0..=8 => {
                self.next += 1;
                let value = self.next;
                let data: Vec<u8> = (start..start + count).flat_map(|number| sector(number, value)).collect();
                let flags = u16::from(self.dice(10) == 0);
                self.client.ask(flags, WRITE, offset, len, &data).expect("writes");
                self.written.extend((start..start + count).map(|number| (number, value)));
            }
            9 => {
                self.client.ask(0, ZEROES, offset, len, &[]).expect("zeroes");
                self.written.extend((start..start + count).map(|number| (number, 0)));
            }
            10 => {
                // Whole blocks become zero, the rest stays: as this device defines it.
                self.client.ask(0, TRIM, offset, len, &[]).expect("trims");
                let blocks = start.div_ceil(8) * 8..(start + count) / 8 * 8;
                self.written.extend(blocks.map(|number| (number, 0)));
            }
            11 => self.client.flush(),
            _ => self.check(start, count),
        }
    }

    pub(crate) fn check(&mut self, start: u64, count: u64) {
        let read = self.client.read(start * SECTOR, (count * SECTOR) as u32);
        for (at, found) in (start..).zip(read.chunks(SECTOR as usize)) {
            let value = self.written.get(&at).copied().unwrap_or(0);
            if found != sector(at, value) {
                let is = u64::from_le_bytes(found[8..16].try_into().expect("eight bytes"));
                panic!("sector {at} after {} operations is {is}, was written as {value}", self.operations);
            }
        }
    }

    pub(crate) fn check_all(&mut self) {
        let sectors = self.client.bytes / SECTOR;
        for start in (0..sectors).step_by(2048) {
            self.check(start, 2048.min(sectors - start));
        }
    }
}
