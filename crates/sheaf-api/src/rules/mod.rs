//! What the server does with an object before it stores it, beyond the schema: defaults, rules, warnings.
//!
//! Pure: no clock, no randomness, no other objects. What needs another object (a claim that must exist) is no rule
//! but a condition that a controller writes.

use std::sync::Arc;

use sheaf_meta::kind::{NoRules, Rules};

macro_rules! none {
    ($($name:ident),*) => {$( pub(crate) fn $name() -> Arc<dyn Rules> { Arc::new(NoRules) } )*};
}
none!(
    virtual_machine,
    virtual_machine_instance,
    image,
    key_pair,
    setting,
    attachment,
    namespace,
    secret,
    config_map,
    event,
    claim,
    volume,
    lease,
    signing_request,
    storage_class
);
