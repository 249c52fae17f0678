//! One module per kind: gather, plan, one step, status.
