//! Garbage collection by owner references: who owns whom, and what has to go. Pure: [`Graph`] is fed with what the
//! watches say and asked what one object needs.
//!
//! Rules, as Kubernetes has them: an object all of whose owners are gone is deleted; one of whose owners some are gone
//! loses the references to those; an owner that is deleted in the foreground waits for the dependents that block it,
//! which are deleted; one that is deleted with orphaning has its references removed first. Circles end, since each
//! object is judged by its own owners only.
//!
//! The graph may be behind: before anything is deleted the caller asks the API whether the owner is really gone.

use std::collections::{BTreeMap, BTreeSet};

/// Finalizer of an object that waits for its dependents.
pub const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of an object whose dependents are to stay.
pub const ORPHAN: &str = "orphan";

/// Identity of an object over its whole life.
pub type Uid = String;

/// One owner reference.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct OwnerRef {
    /// `v1`, `kubevirt.io/v1`.
    pub api_version: String,
    /// Kind of the owner.
    pub kind: String,
    /// Name of the owner, in the dependent's namespace or cluster-wide.
    pub name: String,
    /// UID of the owner.
    pub uid: Uid,
    /// Whether the owner's deletion in the foreground waits for this dependent.
    pub blocks: bool,
}

/// What the graph knows of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Which kind, as an index that the caller understands.
    pub resource: usize,
    /// Empty for cluster-wide kinds.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Its owners.
    pub owners: Vec<OwnerRef>,
    /// Whether deletion was asked for.
    pub deleting: bool,
    /// Its finalizers.
    pub finalizers: Vec<String>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Graph {
    objects: BTreeMap<Uid, Object>,
    /// Owner to dependents.
    dependents: BTreeMap<Uid, BTreeSet<Uid>>,
}

/// What one object needs now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GcStep {
    /// Nothing.
    Nothing,
    /// Ask the API whether these owners are really gone. If all of an object's owners are: delete it. Else: drop the
    /// references to those that are gone.
    CheckOwners {
        /// References whose owners the graph does not know.
        missing: Vec<OwnerRef>,
        /// Whether an owner remains for certain.
        owned: bool,
    },
    /// Delete it: an owner waits for it in the foreground.
    DeleteForOwner,
    /// Remove this owner's references from these dependents, then the finalizer `orphan`.
    OrphanDependents(Vec<Uid>),
    /// Remove the finalizer `foregroundDeletion`: nothing blocks any more.
    FinishForeground,
}

impl Graph {
    /// Takes in the present state of an object; gives the UIDs that have to be looked at.
    pub fn upsert(&mut self, uid: &Uid, object: Object) -> Vec<Uid> {
        let mut touched = vec![uid.clone()];
        let before = self.objects.get(uid).map(|old| old.owners.as_slice()).unwrap_or_default();
        let left: Vec<Uid> = before
            .iter()
            .filter(|old| !object.owners.iter().any(|o| o.uid == old.uid))
            .map(|old| old.uid.clone())
            .collect();
        for owner in left {
            self.unlink(&owner, uid);
            touched.push(owner);
        }
        for owner in &object.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
            if self.objects.get(&owner.uid).is_some_and(|o| o.deleting) {
                touched.push(owner.uid.clone());
            }
        }
        if object.deleting {
            touched.extend(self.dependents_of(uid));
        }
        self.objects.insert(uid.clone(), object);
        touched
    }

    /// An object is gone; gives the UIDs that have to be looked at.
    pub fn remove(&mut self, uid: &Uid) -> Vec<Uid> {
        let Some(old) = self.objects.remove(uid) else { return Vec::new() };
        let mut touched = self.dependents_of(uid);
        for owner in &old.owners {
            self.unlink(&owner.uid, uid);
            touched.push(owner.uid.clone());
        }
        touched
    }

    /// What is known of an object.
    pub fn get(&self, uid: &Uid) -> Option<&Object> {
        self.objects.get(uid)
    }

    /// UIDs of all objects of a kind, for a caller that has to find out which have vanished.
    pub fn of_resource(&self, resource: usize) -> Vec<Uid> {
        self.objects.iter().filter(|(_, o)| o.resource == resource).map(|(uid, _)| uid.clone()).collect()
    }

    /// What an object needs now.
    pub fn plan(&self, uid: &Uid) -> GcStep {
        let Some(object) = self.objects.get(uid) else { return GcStep::Nothing };
        if object.deleting {
            return self.plan_deleting(uid, object);
        }
        if object.owners.is_empty() {
            return GcStep::Nothing;
        }
        let known = |o: &&OwnerRef| self.objects.contains_key(&o.uid);
        let missing: Vec<OwnerRef> = object.owners.iter().filter(|o| !known(o)).cloned().collect();
        let waited_for = object.owners.iter().any(|o| {
            let owner = self.objects.get(&o.uid);
            owner.is_some_and(|owner| owner.deleting && owner.finalizers.iter().any(|f| f == FOREGROUND))
        });
        let kept = object
            .owners
            .iter()
            .filter(known)
            .any(|o| self.objects.get(&o.uid).is_some_and(|owner| !owner.deleting));
        if waited_for && !kept {
            return GcStep::DeleteForOwner;
        }
        if missing.is_empty() {
            return GcStep::Nothing;
        }
        GcStep::CheckOwners { owned: missing.len() < object.owners.len(), missing }
    }

    fn plan_deleting(&self, uid: &Uid, object: &Object) -> GcStep {
        let has = |finalizer: &str| object.finalizers.iter().any(|f| f == finalizer);
        if has(ORPHAN) {
            return GcStep::OrphanDependents(self.dependents_of(uid));
        }
        if !has(FOREGROUND) {
            return GcStep::Nothing;
        }
        let blocking = self.dependents_of(uid).iter().any(|d| self.blocks(d, uid));
        if blocking { GcStep::Nothing } else { GcStep::FinishForeground }
    }

    /// Whether a dependent blocks its owner. One that waits in the foreground for that same owner, as in a circle,
    /// does not: else neither would ever go.
    fn blocks(&self, dependent: &Uid, owner: &Uid) -> bool {
        let Some(object) = self.objects.get(dependent) else { return false };
        let waits = object.deleting
            && object.finalizers.iter().all(|f| f == FOREGROUND)
            && self.dependents_of(dependent).contains(owner);
        !waits && object.owners.iter().any(|o| o.uid == *owner && o.blocks)
    }

    fn dependents_of(&self, uid: &Uid) -> Vec<Uid> {
        self.dependents.get(uid).into_iter().flatten().cloned().collect()
    }

    fn unlink(&mut self, owner: &Uid, dependent: &Uid) {
        if let Some(set) = self.dependents.get_mut(owner) {
            set.remove(dependent);
            if set.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(owners: &[(&str, bool)]) -> Object {
        let owners = owners.iter().map(|(uid, blocks)| OwnerRef {
            api_version: "v1".into(),
            kind: "ConfigMap".into(),
            name: format!("name-of-{uid}"),
            uid: (*uid).into(),
            blocks: *blocks,
        });
        Object {
            resource: 0,
            namespace: "default".into(),
            name: String::new(),
            owners: owners.collect(),
            deleting: false,
            finalizers: Vec::new(),
        }
    }

    fn deleting(mut object: Object, finalizer: &str) -> Object {
        object.deleting = true;
        object.finalizers = vec![finalizer.into()];
        object
    }

    fn id(s: &str) -> Uid {
        s.to_owned()
    }

    #[test]
    fn an_object_whose_owners_are_gone_is_checked_and_its_dependents_are_looked_at() {
        let mut g = Graph::default();
        g.upsert(&id("a"), object(&[]));
        g.upsert(&id("b"), object(&[("a", true)]));
        assert_eq!(g.plan(&id("b")), GcStep::Nothing);
        assert_eq!(g.remove(&id("a")), [id("b")]);
        assert!(matches!(g.plan(&id("b")), GcStep::CheckOwners { owned: false, .. }));
    }

    #[test]
    fn one_of_two_owners_is_enough() {
        let mut g = Graph::default();
        g.upsert(&id("a"), object(&[]));
        g.upsert(&id("c"), object(&[("a", false), ("b", false)]));
        let GcStep::CheckOwners { missing, owned } = g.plan(&id("c")) else { panic!("b is missing") };
        assert!(owned && missing.len() == 1 && missing[0].uid == "b");
    }

    #[test]
    fn a_foreground_deletion_waits_for_what_blocks_it_and_deletes_it() {
        let mut g = Graph::default();
        g.upsert(&id("a"), deleting(object(&[]), FOREGROUND));
        g.upsert(&id("b"), object(&[("a", true)]));
        g.upsert(&id("c"), object(&[("a", false)]));
        assert_eq!(g.plan(&id("a")), GcStep::Nothing);
        assert_eq!(g.plan(&id("b")), GcStep::DeleteForOwner);
        assert_eq!(g.plan(&id("c")), GcStep::DeleteForOwner);
        assert!(g.remove(&id("b")).contains(&id("a")));
        assert_eq!(g.plan(&id("a")), GcStep::FinishForeground, "c does not block");
    }

    #[test]
    fn orphans_stay() {
        let mut g = Graph::default();
        g.upsert(&id("b"), object(&[("a", true)]));
        g.upsert(&id("a"), deleting(object(&[]), ORPHAN));
        assert_eq!(g.plan(&id("a")), GcStep::OrphanDependents(vec![id("b")]));
        assert_eq!(g.plan(&id("b")), GcStep::Nothing);
    }

    #[test]
    fn circles_end() {
        let mut g = Graph::default();
        g.upsert(&id("a"), deleting(object(&[("b", true)]), FOREGROUND));
        g.upsert(&id("b"), object(&[("a", true)]));
        assert_eq!(g.plan(&id("b")), GcStep::DeleteForOwner);
        g.upsert(&id("b"), deleting(object(&[("a", true)]), FOREGROUND));
        assert_eq!(g.plan(&id("a")), GcStep::FinishForeground);
    }

    #[test]
    fn a_reference_that_is_dropped_frees_the_owner() {
        let mut g = Graph::default();
        g.upsert(&id("a"), deleting(object(&[]), FOREGROUND));
        g.upsert(&id("b"), object(&[("a", true)]));
        assert!(g.upsert(&id("b"), object(&[])).contains(&id("a")));
        assert_eq!(g.plan(&id("a")), GcStep::FinishForeground);
    }
}
