//! CustomResourceDefinitions and custom objects, without I/O: what a definition may say, and what becomes of an object
//! that is written.
//!
//! [`definition::default_crd`] and [`definition::validate_crd`] are for the definitions themselves;
//! [`custom::CustomSchema`] is one version of a definition made ready, and its `prepare` prunes, defaults and validates an
//! object. Both speak in the original's messages, since tools and people read them. Storing, serving and naming
//! conflicts between definitions are the server's.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that unwraps fails at its own line"))]

pub mod custom;
mod declare;
pub mod definition;
mod embedded;
mod field_path;
mod json;
mod rules;

pub use custom::{CustomSchema, Prepared, prepare};
pub use declare::declare_kind;
pub use definition::{default_crd, validate_crd};
