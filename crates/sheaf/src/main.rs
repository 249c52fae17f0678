//! The program: roles, configuration, command line.

fn main() {}
