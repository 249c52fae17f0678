//! The command line against a real `sheaf server`, which runs in a network namespace and a directory of the test's own.
//! Needs root; says so loudly and tests nothing without it.

mod cluster;
mod objects;
mod running;
mod ways;
