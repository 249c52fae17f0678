//! Selectors, quantities, JSON paths and network configurations, as clients send them.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = sheaf_meta::selector::LabelSelector::parse(text);
    let _ = sheaf_meta::selector::FieldSelector::parse(text);
    let _ = sheaf_meta::quantity::Quantity::parse(text);
    let _ = sheaf_meta::jsonpath::JsonPath::parse(text);
    let _ = sheaf_api::cni::NetConf::parse(text);
});
