//! The node's huge pages: whether there are enough of them for a guest, which is said before its QEMU begins. [`enough`] is
//! pure. State: none; the kernel counts them, and QEMU takes all of its guest's at its start.
//!
//! Reserving pages is the administrator's: memory that is set aside for them is nobody else's any more.

use std::path::Path;

/// Where the kernel shows its pools: a directory for each size of page.
const POOLS: &str = "/sys/kernel/mm/hugepages";

/// The pages of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pool {
    /// Bytes of a page.
    page: u64,
    /// How many there are.
    total: u64,
    /// How many of them nobody has, and nobody has been promised.
    free: u64,
}

/// The pools of this node.
pub(super) fn pools() -> Vec<Pool> {
    pools_in(Path::new(POOLS))
}

fn pools_in(dir: &Path) -> Vec<Pool> {
    let mut out: Vec<Pool> =
        std::fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|e| pool(&e.path())).collect();
    out.sort_by_key(|p| p.page);
    out
}

fn pool(dir: &Path) -> Option<Pool> {
    let kib: u64 = dir.file_name()?.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
    let number =
        |file: &str| -> Option<u64> { std::fs::read_to_string(dir.join(file)).ok()?.trim().parse().ok() };
    let free = number("free_hugepages")?.saturating_sub(number("resv_hugepages")?);
    Some(Pool { page: kib.checked_mul(1024)?, total: number("nr_hugepages")?, free })
}

/// A size as people write it.
fn size(bytes: u64) -> String {
    let units = [(30, "Gi"), (20, "Mi"), (10, "Ki")];
    let unit = units.iter().find(|(shift, _)| bytes.is_multiple_of(1 << shift));
    unit.map_or_else(|| bytes.to_string(), |(shift, name)| format!("{}{name}", bytes >> shift))
}

/// Whether a guest of `bytes` finds room in pages of this size; the text says why not.
pub(super) fn enough(page: u64, bytes: u64, pools: &[Pool]) -> Result<(), String> {
    let field = "spec.domain.memory.hugepages.pageSize";
    let Some(pool) = pools.iter().find(|p| p.page == page) else {
        let known: Vec<String> = pools.iter().map(|p| size(p.page)).collect();
        let known = if known.is_empty() { "none at all".into() } else { known.join(", ") };
        return Err(format!("{field}: this node has no huge pages of {}; it has {known}", size(page)));
    };
    let needed = bytes.div_ceil(page);
    if needed <= pool.free {
        return Ok(());
    }
    Err(format!(
        "{field}: the machine needs {needed} huge pages of {}, and this node has {} free of {}; set more aside there (for \
         pages of 2Mi: sysctl vm.nr_hugepages), or use a smaller machine, or none of them",
        size(page),
        pool.free,
        pool.total
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_cannot_be_met_is_said() {
        let pools =
            [Pool { page: 2 * MIB, total: 64, free: 40 }, Pool { page: 1024 * MIB, total: 0, free: 0 }];
        assert_eq!(enough(2 * MIB, 80 * MIB, &pools), Ok(()));
        let why = enough(2 * MIB, 82 * MIB, &pools).expect_err("one too many");
        assert!(why.contains("needs 41 huge pages of 2Mi, and this node has 40 free of 64"), "{why}");
        let why = enough(1024 * MIB, MIB, &pools).expect_err("none");
        assert!(why.contains("needs 1 huge pages of 1Gi, and this node has 0 free of 0"), "{why}");
        let why = enough(16 * MIB, MIB, &pools).expect_err("no such pages");
        assert!(why.ends_with("no huge pages of 16Mi; it has 2Mi, 1Gi"), "{why}");
        assert!(enough(2 * MIB, MIB, &[]).expect_err("none").ends_with("it has none at all"));
    }

    #[test]
    fn the_kernels_pools_are_read() {
        let dir = tempfile::tempdir().expect("dir");
        for (name, total, free, promised) in [("hugepages-2048kB", "8", "5", "2\n"), ("other", "1", "1", "1")]
        {
            let pool = dir.path().join(name);
            std::fs::create_dir(&pool).expect("dir");
            for (file, text) in
                [("nr_hugepages", total), ("free_hugepages", free), ("resv_hugepages", promised)]
            {
                std::fs::write(pool.join(file), text).expect("file");
            }
        }
        assert_eq!(pools_in(dir.path()), [Pool { page: 2 * MIB, total: 8, free: 3 }]);
        assert_eq!(pools_in(&dir.path().join("nowhere")), []);
    }
}
