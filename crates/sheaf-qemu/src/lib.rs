//! Machine specification to arguments, the QMP dialogue, adoption of running machines.
//!
//! One QEMU process per machine, driven over QMP without libvirt. This package knows QEMU and nothing of KubeVirt's
//! types: the agent turns an API object into a [`spec::MachineSpec`], [`args::argv`] turns that into an argument
//! vector, [`process`] starts it and finds it again after a restart, [`qmp`] and [`qga`] talk to it.
//!
//! It keeps no state of its own: what must outlive the agent is the [`process::Record`] in the machine's directory.
//! Start reading at [`spec`], then [`args`].

pub mod accel;
pub mod args;
pub mod chain;
pub mod pci;
pub mod process;
pub mod qga;
pub mod qmp;
pub mod spec;
pub mod version;
pub mod vsock;
