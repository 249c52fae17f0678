//! Which layer of the chain has a block: found when first asked for, kept in bounded memory.
//!
//! Pages of 2 MiB, each either one layer or a byte per block, at most [`PAGES`] of them, the oldest let go first: 8 MiB
//! for a volume of any size, and nothing for one without snapshots. The owner is one [`crate::replica::ReplicaDir`].

use std::collections::{HashMap, VecDeque};

use crate::fs::Extent;

/// Blocks of a page.
pub const PAGE_BLOCKS: u64 = 512;
/// Pages kept.
pub const PAGES: usize = 16_384;
const BLOCK: u64 = 4096;

#[derive(Debug)]
enum Page {
    Uniform(u8),
    Mixed(Box<[u8; PAGE_BLOCKS as usize]>),
}

impl Page {
    fn at(&self, block: u64) -> u8 {
        match self {
            Self::Uniform(layer) => *layer,
            Self::Mixed(layers) => layers[(block % PAGE_BLOCKS) as usize],
        }
    }
}

/// The map of one chain.
#[derive(Debug, Default)]
pub struct ChainMap {
    pages: HashMap<u64, Page>,
    order: VecDeque<u64>,
}

impl ChainMap {
    /// Forgets everything: the chain has changed.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Forgets one block's page: it was changed by another way than the head's writes.
    pub fn forget(&mut self, block: u64) {
        let page = block / PAGE_BLOCKS;
        if self.pages.remove(&page).is_some() {
            self.order.retain(|other| *other != page);
        }
    }

    /// Pages in memory.
    pub fn pages(&self) -> usize {
        self.pages.len()
    }

    /// Whether the page of this block is known.
    pub fn knows(&self, block: u64) -> bool {
        self.pages.contains_key(&(block / PAGE_BLOCKS))
    }

    /// Takes in a page: extents of the layers above the lowest, the topmost first, with their index.
    pub fn load(&mut self, page: u64, layers: impl IntoIterator<Item = (u8, Vec<Extent>)>) {
        let base = page * PAGE_BLOCKS;
        let mut found = Box::new([0u8; PAGE_BLOCKS as usize]);
        for (layer, extents) in layers {
            for extent in extents {
                let first = (extent.start / BLOCK).max(base);
                let end = (extent.start + extent.len).div_ceil(BLOCK).min(base + PAGE_BLOCKS);
                for block in first..end {
                    let slot = &mut found[(block - base) as usize];
                    if *slot == 0 {
                        *slot = layer;
                    }
                }
            }
        }
        let first = found[0];
        let page_is =
            if found.iter().all(|layer| *layer == first) { Page::Uniform(first) } else { Page::Mixed(found) };
        if self.pages.insert(page, page_is).is_none() {
            self.order.push_back(page);
        }
        if self.order.len() > PAGES
            && let Some(oldest) = self.order.pop_front()
        {
            self.pages.remove(&oldest);
        }
    }

    /// The layer of a known block, and for how many blocks (at most `limit`, within the page) it is the same.
    pub fn run(&self, block: u64, limit: u64) -> Option<(u8, u64)> {
        let page = self.pages.get(&(block / PAGE_BLOCKS))?;
        let limit = limit.min(PAGE_BLOCKS - block % PAGE_BLOCKS);
        let layer = page.at(block);
        let run = match page {
            Page::Uniform(_) => limit,
            Page::Mixed(_) => (1..limit).find(|more| page.at(block + more) != layer).unwrap_or(limit),
        };
        Some((layer, run))
    }

    /// Blocks have a new topmost layer. Pages that are not known stay so.
    pub fn set(&mut self, start: u64, count: u64, layer: u8) {
        let mut block = start;
        let end = start + count;
        while block < end {
            let stop = end.min((block / PAGE_BLOCKS + 1) * PAGE_BLOCKS);
            if let Some(page) = self.pages.get_mut(&(block / PAGE_BLOCKS)) {
                if stop - block == PAGE_BLOCKS {
                    *page = Page::Uniform(layer);
                } else if let Page::Uniform(old) = page
                    && *old != layer
                {
                    *page = Page::Mixed(Box::new([*old; PAGE_BLOCKS as usize]));
                }
                if let Page::Mixed(layers) = page {
                    let from = (block % PAGE_BLOCKS) as usize;
                    layers[from..from + (stop - block) as usize].fill(layer);
                }
            }
            block = stop;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn memory_is_bounded() {
        let mut map = ChainMap::default();
        for page in 0..PAGES as u64 + 100 {
            map.load(
                page,
                [(1, vec![Extent { start: page * PAGE_BLOCKS * BLOCK, len: BLOCK, unwritten: false }])],
            );
        }
        assert_eq!((map.pages(), map.order.len()), (PAGES, PAGES));
        assert!(!map.knows(0) && map.knows((PAGES as u64 + 50) * PAGE_BLOCKS));
    }

    proptest! {
        #[test]
        fn agrees_with_an_array(steps in prop::collection::vec((0u64..1500, 1u64..700, 0u8..4), 1..40)) {
            let mut map = ChainMap::default();
            let mut plain = [0u8; 2048];
            (0..4).for_each(|page| map.load(page, []));
            for (start, count, layer) in steps {
                let count = count.min(2048 - start);
                map.set(start, count, layer);
                plain[start as usize..(start + count) as usize].fill(layer);
            }
            let mut block = 0;
            while block < 2048 {
                let (layer, run) = map.run(block, 2048 - block).expect("known");
                prop_assert!(plain[block as usize..(block + run) as usize].iter().all(|at| *at == layer));
                block += run;
            }
        }
    }
}
