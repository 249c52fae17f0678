//! Clusters of real processes in network namespaces, guests, fault injection, level-triggered waits.
