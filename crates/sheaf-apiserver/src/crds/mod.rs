//! Kinds that users define: CustomResourceDefinitions become rows of the registry while the server runs.
//!
//! [`definition`] reads a definition and makes its rows; [`naming`] decides which names it gets; both are pure.
//! [`controller`] is the loop that keeps registry and status in step with what is stored; [`protect`] is the admission
//! of definitions. [`own`] writes the definitions of kinds that are rows of the program.
//!
//! Not here: whether a definition or a custom object is well formed, which are pure rules of lower floors. Who owns the
//! state: definitions and objects are in the store; the controller holds only what it made of them.

pub(crate) mod controller;
mod definition;
mod naming;
mod own;
mod protect;

pub(crate) use controller::Controller;
pub(crate) use own::ensure;
pub(crate) use protect::{Definitions, may_delete, on_delete};

use crate::registry::Row;

/// API group of definitions.
const GROUP: &str = "apiextensions.k8s.io";
/// Their plural.
const PLURAL: &str = "customresourcedefinitions";
/// Where they are served.
const COLLECTION: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
/// Where they are stored.
const PREFIX: &str = "/registry/apiextensions.k8s.io/customresourcedefinitions/";
/// Holds a definition that is being deleted until its objects are gone.
const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

/// Whether a row is the kind CustomResourceDefinition.
fn is_definition(row: &Row) -> bool {
    row.info.group == GROUP && row.info.plural == PLURAL
}
