//! Repository chores: `tidy` holds the floors, the file headers and the length of files.

fn main() {}
