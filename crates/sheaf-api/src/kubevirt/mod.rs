//! `kubevirt.io/v1`: virtual machines, their running instances and migrations, field by field as clients of
//! KubeVirt write and read them.

mod devices;
mod domain;
mod instancetype;
mod limits;
mod migration;
mod snapshot;
mod vm;
mod vmi;
mod volumes;

pub use devices::*;
pub use domain::*;
pub use instancetype::*;
pub use limits::*;
pub use migration::*;
pub use snapshot::*;
pub use vm::*;
pub use vmi::*;
pub use volumes::*;
