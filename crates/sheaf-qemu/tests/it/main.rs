//! `sheaf-qemu` against golden files and against real QEMU.

mod golden;
mod real;
mod sample;
