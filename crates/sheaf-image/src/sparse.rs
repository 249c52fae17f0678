//! Writing a file from front to back so that its runs of zeroes take no space.
//!
//! The file must be empty behind the position at which writing begins: what is not written reads as zero because it is
//! a hole. Not for rewriting.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Zeroes are looked for in pieces of this many bytes, at multiples of it: what file systems allocate.
const PIECE: usize = 4096;
static ZEROES: [u8; PIECE] = [0; PIECE];

/// Appends to a file, leaving holes. Owns the position, not the file's contents before it.
#[derive(Debug)]
pub struct SparseWriter {
    file: File,
    position: u64,
}

impl SparseWriter {
    /// Continues at `position`; what the file has behind it is cut off.
    pub fn new(file: File, position: u64) -> io::Result<Self> {
        file.set_len(position)?;
        Ok(SparseWriter { file, position })
    }

    /// Bytes written so far, those before the beginning included.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Appends `bytes`.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let start = self.position;
        let mut run: Option<usize> = None;
        let mut at = 0;
        while at < bytes.len() {
            // Pieces end at multiples of PIECE of the file, however the chunks come.
            let into = ((start + at as u64) % PIECE as u64) as usize;
            let end = bytes.len().min(at + PIECE - into);
            if bytes[at..end] == ZEROES[..end - at] {
                if let Some(from) = run.take() {
                    self.file.write_all_at(&bytes[from..at], start + from as u64)?;
                }
            } else if run.is_none() {
                run = Some(at);
            }
            at = end;
        }
        if let Some(from) = run {
            self.file.write_all_at(&bytes[from..], start + from as u64)?;
        }
        self.position = start + bytes.len() as u64;
        Ok(())
    }

    /// Makes what was written durable, the length included (a hole at the end has no other trace).
    pub fn sync(&mut self) -> io::Result<()> {
        self.file.set_len(self.position)?;
        self.file.sync_all()
    }

    /// Starts over with an empty file.
    pub fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.position = 0;
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::MetadataExt;

    fn write_in_chunks(chunks: &[Vec<u8>]) -> (Vec<u8>, u64) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut writer = SparseWriter::new(file.reopen().unwrap(), 0).unwrap();
        for chunk in chunks {
            writer.write(chunk).unwrap();
        }
        writer.sync().unwrap();
        (std::fs::read(file.path()).unwrap(), file.as_file().metadata().unwrap().blocks() * 512)
    }

    #[test]
    fn zeroes_take_no_space() {
        let (bytes, allocated) = write_in_chunks(&[vec![0; 8 << 20], vec![1; 4096], vec![0; 8 << 20]]);
        assert_eq!(bytes.len(), (16 << 20) + 4096);
        assert!(allocated <= 128 << 10, "{allocated} bytes are allocated");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_written_is_read(
            chunks in proptest::collection::vec((0usize..10_000, 0u8..3, any::<u8>()), 0..12)
        ) {
            let chunks: Vec<Vec<u8>> = chunks
                .into_iter()
                .map(|(len, kind, byte)| match kind {
                    0 => vec![0; len],
                    1 => vec![byte; len],
                    _ => (0..len).map(|i| if i % 5000 == 0 { byte } else { 0 }).collect(),
                })
                .collect();
            prop_assert_eq!(write_in_chunks(&chunks).0, chunks.concat());
        }
    }
}
