//! Rules of virtual machines and their instances.
//!
//! - [`defaults`]: what a machine gets when it is written, and keeps.
//! - [`instance`]: what an instance gets when it is made.
//! - [`machine`](self): rules of a machine around its template.
//! - [`domain`], [`disks`], [`volumes`], [`interfaces`]: rules of what runs, the same for both.
//!
//! Field paths and reasons are KubeVirt's, odd ones included, because clients show and match them.

mod catalog;
mod defaults;
mod disks;
mod domain;
mod instance;
mod interfaces;
mod spec;
#[cfg(test)]
mod tests;
mod vm;
mod volumes;

use std::sync::Arc;

use sheaf_meta::kind::Rules;

use super::{Functions, Problems};

pub use catalog::duration;
pub(crate) use catalog::{
    validate_clone, validate_instancetype, validate_preference, validate_restore, validate_snapshot,
};
pub use defaults::{MachineDefaults, default_virtual_machine};

/// Rules of `VirtualMachine`.
pub(crate) fn virtual_machine() -> Arc<dyn Rules> {
    Arc::new(Functions {
        default: Some(|o, old| default_virtual_machine(o, old, &MachineDefaults::default())),
        validate: Some(vm::validate),
        warnings: Some(vm::warnings),
    })
}

/// Rules of `VirtualMachineInstance`.
pub(crate) fn virtual_machine_instance() -> Arc<dyn Rules> {
    Arc::new(Functions {
        default: Some(instance::default),
        validate: Some(instance::validate),
        warnings: None,
    })
}
