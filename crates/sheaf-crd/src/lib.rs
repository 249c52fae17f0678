//! CustomResourceDefinitions and custom objects, without I/O.
