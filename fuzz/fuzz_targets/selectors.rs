//! Label and field selectors: read, matched, and written so that they read the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sheaf_meta::selector::{FieldSelector, LabelSelector};

fuzz_target!(|text: &str| {
    if let Ok(selector) = LabelSelector::parse(text) {
        let again = LabelSelector::parse(&selector.to_string());
        assert_eq!(again.ok(), Some(selector), "written and read again");
    }
    if let Ok(selector) = FieldSelector::parse(text) {
        let _ = selector.matches(&serde_json::json!({"metadata": {"name": "a"}}));
    }
});
