//! The storage process.
