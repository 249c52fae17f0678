//! Integration tests of the store: the suite against SQLite, the property tests, crashes, files.

#![allow(clippy::unwrap_used)]

mod conformance;
mod files;
