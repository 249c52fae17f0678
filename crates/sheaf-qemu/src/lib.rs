//! Machine specification to arguments, the QMP dialogue, adoption of running machines.
