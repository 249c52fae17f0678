//! Custom objects: schema, stored object and new object may be anything.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sheaf_crd::CustomSchema;

fuzz_target!(|input: (&[u8], &[u8], &[u8])| {
    let (Ok(schema), Ok(mut new)) = (serde_json::from_slice(input.0), serde_json::from_slice(input.1)) else { return };
    let old = serde_json::from_slice(input.2).ok();
    let schema = CustomSchema::compile(&schema);
    let first = schema.prepare(&mut new, old.as_ref());
    // What was prepared once stays as it is.
    let before = new.clone();
    let again = schema.prepare(&mut new, old.as_ref());
    assert_eq!(new, before, "prepared twice");
    assert!(again.pruned.is_empty(), "pruned twice: {:?} after {:?}", again.pruned, first.pruned);
});
