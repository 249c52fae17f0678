//! CustomResourceDefinitions: whatever they say, they are refused or accepted; an accepted one can be used.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&[u8], &[u8])| {
    let Ok(mut definition) = serde_json::from_slice(input.0) else { return };
    sheaf_crd::default_crd(&mut definition);
    let old = serde_json::from_slice(input.1).ok();
    let _ = sheaf_crd::validate_crd(&definition, old.as_ref());
});
