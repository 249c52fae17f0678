//! `sheaf-qemu` against golden files and against real QEMU.

mod golden;
mod live;
mod real;
mod sample;
