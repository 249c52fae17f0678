//! Uploads by form: the same bytes in one piece and in two give the same file.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&[u8], usize)| {
    let (body, at) = input;
    let (first, second) = body.split_at(at.min(body.len()));
    let mut whole = sheaf_image::multipart::Multipart::new("b");
    let mut parts = sheaf_image::multipart::Multipart::new("b");
    let once = whole.push(body);
    let twice = parts.push(first).and_then(|mut out| {
        out.extend(parts.push(second)?);
        Ok(out)
    });
    assert_eq!(once.is_ok(), twice.is_ok());
    if let (Ok(once), Ok(twice)) = (once, twice) {
        let ends = (whole.finish().is_ok(), parts.finish().is_ok());
        if ends == (true, true) {
            assert_eq!(once, twice);
        }
    }
});
