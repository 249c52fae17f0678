//! What every reconcile loop shares, over the crate `kube`: cache, queue, driver, events, patches, task groups.
//!
//! A controller's file holds only its domain: it says which objects it looks at ([`Informer`]), which keys a change
//! concerns ([`Driver::on`]), and what one look at one key does ([`Controller::reconcile`]). Dedupe, exclusion of two
//! runs for one key, back-off and the periodic full pass are here, once.
//!
//! Not here: anything that knows a kind. Who owns the state: an [`Informer`] its cache, an [`Index`] its maps, a [`Driver`] its queue.

mod driver;
mod events;
mod group;
mod index;
mod informer;
mod key;
pub mod patch;
pub mod queue;

pub use driver::{Controller, Driver, Next, StepError, Waker};
pub use events::{EventRecorder, Severity};
pub use group::TaskGroup;
pub use index::Index;
pub use informer::{Informer, Selection};
pub use key::ObjectKey;
