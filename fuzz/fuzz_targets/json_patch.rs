//! JSON patches: the first half of the input is the document, the second the patch.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&[u8], &[u8])| {
    let (Ok(document), Ok(patch)) = (serde_json::from_slice(input.0), serde_json::from_slice(input.1)) else {
        return;
    };
    let _ = sheaf_meta::patch::json_patch(&document, &patch);
});
