//! What every reconcile loop shares, over kube: cache, queue, lease, status patches, task groups.
