//! Request bodies: strict JSON, with duplicate keys found and depth bounded.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    if let Ok(parsed) = sheaf_meta::strict::parse(body) {
        // What was accepted can be written and read again.
        let text = parsed.value.to_string();
        assert!(sheaf_meta::strict::parse(text.as_bytes()).is_ok(), "{text}");
    }
});
