//! Merge, strategic merge and apply: document, patch and schema may be anything.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sheaf_meta::apply::{self, Part, Writer};
use sheaf_meta::patch;
use sheaf_meta::schema::Schema;

fuzz_target!(|input: (&[u8], &[u8], &[u8])| {
    let (Ok(document), Ok(change)) = (serde_json::from_slice(input.0), serde_json::from_slice(input.1)) else { return };
    let schema = serde_json::from_slice(input.2).map_or_else(|_| Schema::unknown(), |s| Schema::compile(&s));
    let _ = patch::json_patch(&document, &change);
    let _ = patch::merge_patch(&document, &change);
    let _ = patch::strategic_merge_patch(&document, &change, &schema);
    let writer = Writer { manager: "m", api_version: "v1", subresource: "", now: Default::default() };
    let _ = apply::apply(Some(&document), &change, Part::Whole, true, &schema, &writer);
    let mut new = change;
    apply::update(Some(&document), &mut new, &schema, &writer);
});
