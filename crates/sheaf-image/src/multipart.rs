//! `multipart/form-data` (RFC 7578), as far as an upload of one file needs it: finds the file's bytes in a stream.
//!
//! Fed with whatever pieces the network gives; holds back no more than a boundary's length. No I/O.

/// The longest headers of a part.
const MAX_HEADERS: usize = 16 << 10;
/// RFC 2046: at most 70 characters.
const MAX_BOUNDARY: usize = 70;

/// Why a body is not what its Content-Type says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MultipartError {
    /// The Content-Type names no (valid) boundary.
    #[error("the Content-Type multipart/form-data has no valid boundary")]
    Boundary,
    /// A part's headers do not end.
    #[error("the headers of a form part are longer than {MAX_HEADERS} bytes")]
    Headers,
    /// Nothing of the sort was in the body.
    #[error("the form has no file part (name \"chunk\")")]
    NoFile,
    /// The body ended within the file.
    #[error("the form ended before its closing boundary")]
    Unfinished,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the first boundary, or in a field that does not matter.
    Skip,
    /// Right behind a boundary.
    Boundary,
    Headers,
    File,
    /// The file is complete; the rest does not matter.
    Done,
}

/// Takes the form apart.
#[derive(Debug)]
pub struct Multipart {
    /// `\r\n--boundary`
    delimiter: Vec<u8>,
    buffer: Vec<u8>,
    state: State,
}

/// The boundary in a Content-Type header, if it is one of a form; `None` for every other type.
pub fn boundary(content_type: &str) -> Option<Result<String, MultipartError>> {
    let mut parts = content_type.split(';');
    if !parts.next()?.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let value = parts.find_map(|part| {
        let (key, value) = part.split_once('=')?;
        key.trim().eq_ignore_ascii_case("boundary").then(|| value.trim().trim_matches('"').to_owned())
    });
    Some(value.filter(|v| (1..=MAX_BOUNDARY).contains(&v.len())).ok_or(MultipartError::Boundary))
}

impl Multipart {
    /// Expects parts divided by `boundary`.
    pub fn new(boundary: &str) -> Self {
        // The first boundary has no line break before it; one is put in front of the body for it.
        Multipart {
            delimiter: format!("\r\n--{boundary}").into_bytes(),
            buffer: b"\r\n".to_vec(),
            state: State::Skip,
        }
    }

    /// Takes the next piece of the body; returns the bytes of the file that are certain by now.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<u8>, MultipartError> {
        self.buffer.extend_from_slice(bytes);
        let mut file = Vec::new();
        while self.step(&mut file)? {}
        Ok(file)
    }

    /// Whether it went on.
    fn step(&mut self, file: &mut Vec<u8>) -> Result<bool, MultipartError> {
        match self.state {
            State::Skip | State::File => {
                let (end, found) = match find(&self.buffer, &self.delimiter) {
                    Some(at) => (at, true),
                    // The end of the buffer may be the beginning of a boundary.
                    None => (self.buffer.len().saturating_sub(self.delimiter.len() - 1), false),
                };
                if self.state == State::File {
                    file.extend_from_slice(&self.buffer[..end]);
                }
                self.buffer.drain(..if found { end + self.delimiter.len() } else { end });
                if found {
                    self.state = if self.state == State::File { State::Done } else { State::Boundary };
                }
                Ok(found)
            }
            State::Boundary => {
                let Some(next) = self.buffer.get(..2) else { return Ok(false) };
                // Two dashes end the form.
                if next == b"--" {
                    return Err(MultipartError::NoFile);
                }
                self.state = State::Headers;
                Ok(true)
            }
            State::Headers => {
                let Some(end) = find(&self.buffer, b"\r\n\r\n") else {
                    if self.buffer.len() > MAX_HEADERS {
                        return Err(MultipartError::Headers);
                    }
                    return Ok(false);
                };
                let is_file = is_file_part(&String::from_utf8_lossy(&self.buffer[..end]));
                self.buffer.drain(..end + 4);
                self.state = if is_file { State::File } else { State::Skip };
                Ok(true)
            }
            State::Done => {
                self.buffer.clear();
                Ok(false)
            }
        }
    }

    /// The body has ended.
    pub fn finish(&self) -> Result<(), MultipartError> {
        match self.state {
            State::Done => Ok(()),
            State::File => Err(MultipartError::Unfinished),
            _ => Err(MultipartError::NoFile),
        }
    }
}

/// Harvester's clients call the part `chunk`; others give it at least a file name.
fn is_file_part(headers: &str) -> bool {
    headers.lines().filter_map(|line| line.split_once(':')).any(|(name, value)| {
        name.trim().eq_ignore_ascii_case("content-disposition")
            && value.split(';').filter_map(|p| p.split_once('=')).any(|(key, value)| {
                let (key, value) = (key.trim(), value.trim().trim_matches('"'));
                key.eq_ignore_ascii_case("filename") || (key.eq_ignore_ascii_case("name") && value == "chunk")
            })
    })
}

/// The first place of `needle`, which begins with a carriage return (rare in a disk image, and quick to look for).
fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = haystack[from..].iter().position(|byte| *byte == b'\r') {
        if haystack[from + at..].starts_with(needle) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn form(file: &[u8]) -> Vec<u8> {
        let mut body = b"--xyz\r\nContent-Disposition: form-data; name=\"note\"\r\n\r\nnothing\r\n--xyz\r\n\
            Content-Disposition: form-data; name=\"chunk\"; filename=\"a.img\"\r\n\
            Content-Type: application/octet-stream\r\n\r\n"
            .to_vec();
        body.extend(file);
        body.extend(b"\r\n--xyz--\r\n");
        body
    }

    fn read(body: &[u8], cuts: &[usize]) -> Result<Vec<u8>, MultipartError> {
        let mut parser = Multipart::new("xyz");
        let (mut file, mut rest) = (Vec::new(), body);
        for cut in cuts {
            let (now, later) = rest.split_at((*cut).min(rest.len()));
            file.extend(parser.push(now)?);
            rest = later;
        }
        file.extend(parser.push(rest)?);
        parser.finish()?;
        Ok(file)
    }

    #[test]
    fn boundaries_are_found() {
        assert_eq!(boundary("application/octet-stream"), None);
        assert_eq!(boundary("multipart/form-data; boundary=----Web7"), Some(Ok("----Web7".to_owned())));
        assert_eq!(boundary("Multipart/Form-Data; charset=x; Boundary=\"a b\""), Some(Ok("a b".to_owned())));
        assert_eq!(boundary("multipart/form-data"), Some(Err(MultipartError::Boundary)));
    }

    #[test]
    fn bad_forms_are_refused() {
        assert_eq!(read(b"", &[]), Err(MultipartError::NoFile));
        assert_eq!(read(b"--xyz--\r\n", &[]), Err(MultipartError::NoFile));
        let body = form(b"data");
        assert_eq!(read(&body[..body.len() - 8], &[]), Err(MultipartError::Unfinished));
        let long = [b"--xyz\r\nX: ".as_slice(), &[b'x'; MAX_HEADERS + 1]].concat();
        assert_eq!(read(&long, &[]), Err(MultipartError::Headers));
    }

    proptest! {
        #[test]
        fn the_file_comes_out_however_it_is_cut(
            file in proptest::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'-'), any::<u8>()], 0..200),
            cuts in proptest::collection::vec(0usize..40, 0..20),
        ) {
            prop_assert_eq!(read(&form(&file), &cuts), Ok(file));
        }

        #[test]
        fn arbitrary_bytes_never_panic(
            body in proptest::collection::vec(any::<u8>(), 0..300), cuts in proptest::collection::vec(0usize..40, 0..20)
        ) {
            let _ = read(&body, &cuts);
        }
    }
}
