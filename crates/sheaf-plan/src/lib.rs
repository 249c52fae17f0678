//! Decisions as pure functions, each of which explains itself.
