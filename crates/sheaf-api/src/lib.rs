//! Typed views of every kind, with defaulting and validation as pure functions.
