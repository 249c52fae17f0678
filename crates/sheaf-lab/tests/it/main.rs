//! End-to-end tests: real processes, real guests, real kubectl. Each test is a lab of its own; see `sheaf_lab::run`.
//!
//! They need root, the binary (`cargo build -p sheaf`) and the small guest (`make guest`); `make test` sees to all three.

mod claims;
mod debian;
mod failures;
mod faults;
mod firmware;
mod full;
mod hardware;
mod keep;
mod kubectl;
mod kvm;
mod life;
mod manifests;
mod mind;
mod nodes;
mod plug;
mod protocols;
mod refusals;
mod small;
mod strategies;
mod volumes;
mod wires;
