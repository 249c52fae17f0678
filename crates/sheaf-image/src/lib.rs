//! Image formats in and out: raw, qcow2, iso; sparse, checked, resumable.
