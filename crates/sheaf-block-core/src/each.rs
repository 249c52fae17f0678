//! A value for each of a few replicas: a sorted list, because every write has two of them and a tree costs more than the write's own
//! bookkeeping. At most [`MAX_REPLICAS`](crate::ids::MAX_REPLICAS) entries by the nature of what is kept; not a general map.

use crate::ids::ReplicaId;

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Each<V>(Vec<(ReplicaId, V)>);

impl<V> Default for Each<V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<V> Each<V> {
    fn place(&self, id: ReplicaId) -> Result<usize, usize> {
        self.0.binary_search_by_key(&id, |(id, _)| *id)
    }

    pub(crate) fn get(&self, id: ReplicaId) -> Option<&V> {
        self.place(id).ok().map(|at| &self.0[at].1)
    }

    pub(crate) fn get_mut(&mut self, id: ReplicaId) -> Option<&mut V> {
        self.place(id).ok().map(|at| &mut self.0[at].1)
    }

    pub(crate) fn contains(&self, id: ReplicaId) -> bool {
        self.place(id).is_ok()
    }

    pub(crate) fn insert(&mut self, id: ReplicaId, value: V) {
        match self.place(id) {
            Ok(at) => self.0[at].1 = value,
            Err(at) => self.0.insert(at, (id, value)),
        }
    }

    pub(crate) fn remove(&mut self, id: ReplicaId) {
        if let Ok(at) = self.place(id) {
            self.0.remove(at);
        }
    }

    pub(crate) fn retain(&mut self, mut keep: impl FnMut(ReplicaId) -> bool) {
        self.0.retain(|(id, _)| keep(*id));
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (ReplicaId, &V)> {
        self.0.iter().map(|(id, value)| (*id, value))
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.0.iter_mut().map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_a_sorted_map() {
        let mut each = Each::default();
        for (id, value) in [(3, 'c'), (1, 'a'), (2, 'x'), (2, 'b')] {
            each.insert(ReplicaId(id), value);
        }
        let all: Vec<_> = each.iter().map(|(id, value)| (id.0, *value)).collect();
        assert_eq!(all, [(1, 'a'), (2, 'b'), (3, 'c')]);
        each.remove(ReplicaId(2));
        each.remove(ReplicaId(7));
        assert!(each.contains(ReplicaId(3)) && !each.contains(ReplicaId(2)));
        each.retain(|id| id.0 != 3);
        assert_eq!(each.get(ReplicaId(1)), Some(&'a'));
        each.clear();
        assert_eq!(each, Each::default());
    }
}
