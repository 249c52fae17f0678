//! Who is owned by whom, and what follows when an owner is deleted. Pure.
//!
//! The graph knows what the watches have told of all objects. It may be behind: whether an owner that it does not know
//! is really gone, the shell asks the API ([`GcStep::Ask`]), and asks for the decision again with the answers.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Finalizer of an object whose dependents have to go first.
pub const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of an object whose dependents are to stay.
pub const ORPHAN: &str = "orphan";
/// Most objects that are looked at to find out whether a circle holds itself.
const CIRCLE_MAX: usize = 1000;

/// Identity of an object over its whole life.
pub type Uid = String;

/// Group and kind: versions do not matter here.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct GroupKind {
    /// Empty for the core group.
    pub group: String,
    /// `Deployment`.
    pub kind: String,
}

impl GroupKind {
    /// From an `apiVersion` and a kind.
    pub fn of(api_version: &str, kind: &str) -> Self {
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        Self { group: group.into(), kind: kind.into() }
    }
}

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
    /// Which kind, as [`Graph::kind`] numbers them.
    pub kind: usize,
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

impl Object {
    fn has(&self, finalizer: &str) -> bool {
        self.finalizers.iter().any(|f| f == finalizer)
    }
    /// Whether it waits in the foreground for its dependents.
    fn waits(&self) -> bool {
        self.deleting && self.has(FOREGROUND)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Graph {
    kinds: Vec<GroupKind>,
    /// Every object of the cluster, looked up with each write: no order.
    objects: HashMap<Uid, Object>,
    /// Owner to dependents.
    dependents: BTreeMap<Uid, BTreeSet<Uid>>,
}

/// What the API said of an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// There is none of that name and UID where the dependent may have an owner.
    Gone,
    /// It is there, or cannot be judged: its kind is not served, or lives in namespaces while the dependent does not.
    There,
    /// It is there and waits in the foreground.
    Waiting,
}

/// The API's answers for one object's owners, by UID.
pub type Answers = BTreeMap<Uid, Found>;

/// How an object is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// At once; dependents later.
    Background,
    /// Dependents first.
    Foreground,
    /// Dependents stay.
    Orphan,
}

/// What one object needs now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GcStep {
    /// Nothing.
    Nothing,
    /// Ask the API about these owners, and plan again with the answers.
    Ask(Vec<OwnerRef>),
    /// Remove the references to these owners: they are gone or go, and others stay.
    DropOwners(Vec<Uid>),
    /// Delete it: no owner is left that stays.
    Delete(Policy),
    /// Remove this owner's references from all dependents, these and those that the API knows, then the finalizer
    /// `orphan`.
    OrphanDependents(Vec<Uid>),
    /// Remove the finalizer `foregroundDeletion`, unless the API knows a dependent that blocks and that is not here: these
    /// are known to be no obstacle.
    FinishForeground(BTreeSet<Uid>),
}

impl Graph {
    /// The number of a kind.
    pub fn kind(&mut self, kind: GroupKind) -> usize {
        self.kinds.iter().position(|k| *k == kind).unwrap_or_else(|| {
            self.kinds.push(kind);
            self.kinds.len() - 1
        })
    }

    /// The kind of a number.
    pub fn kind_of(&self, number: usize) -> Option<&GroupKind> {
        self.kinds.get(number)
    }

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
        let mut touched = self.dependents_of(uid);
        let Some(old) = self.objects.remove(uid) else { return touched };
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

    /// Objects that name an owner of which nothing is known. A watch that begins anew tells of what is there, and not of
    /// what went meanwhile.
    pub fn strays(&self) -> Vec<Uid> {
        let unknown = self.dependents.iter().filter(|(owner, _)| !self.objects.contains_key(*owner));
        unknown.flat_map(|(_, dependents)| dependents.iter().cloned()).collect()
    }

    /// UIDs of all objects of a kind, for a caller that has to find out which have vanished.
    pub fn of_kind(&self, kind: usize) -> Vec<Uid> {
        let mut found: Vec<Uid> =
            self.objects.iter().filter(|(_, o)| o.kind == kind).map(|(uid, _)| uid.clone()).collect();
        found.sort_unstable();
        found
    }

    /// What an object needs now, as far as the graph knows and the API has answered.
    pub fn plan(&self, uid: &Uid, answers: &Answers) -> GcStep {
        let Some(object) = self.objects.get(uid) else { return GcStep::Nothing };
        if object.deleting {
            return self.plan_deleting(uid, object);
        }
        let (mut stay, mut gone, mut waiting, mut ask) = (false, Vec::new(), Vec::new(), Vec::new());
        for owner in &object.owners {
            let found = self.known(object, owner).or_else(|| answers.get(&owner.uid).copied());
            match found {
                Some(Found::There) => stay = true,
                Some(Found::Gone) => gone.push(owner.uid.clone()),
                Some(Found::Waiting) => waiting.push(owner.uid.clone()),
                None => ask.push(owner.clone()),
            }
        }
        if !ask.is_empty() {
            return GcStep::Ask(ask);
        }
        if object.owners.is_empty() || (stay && gone.is_empty() && waiting.is_empty()) {
            return GcStep::Nothing;
        }
        if stay {
            gone.extend(waiting);
            return GcStep::DropOwners(gone);
        }
        let policy = match () {
            () if !waiting.is_empty() && self.dependents.contains_key(uid) => Policy::Foreground,
            () if object.has(ORPHAN) => Policy::Orphan,
            () if object.has(FOREGROUND) => Policy::Foreground,
            () => Policy::Background,
        };
        GcStep::Delete(policy)
    }

    /// What the graph itself knows of an owner: only one that is what the reference says it is, and where the dependent
    /// may have it.
    fn known(&self, dependent: &Object, owner: &OwnerRef) -> Option<Found> {
        let object = self.objects.get(&owner.uid)?;
        let kind = self.kinds.get(object.kind)?;
        let placed = object.namespace.is_empty() || object.namespace == dependent.namespace;
        let same = *kind == GroupKind::of(&owner.api_version, &owner.kind) && object.name == owner.name;
        (placed && same).then(|| if object.waits() { Found::Waiting } else { Found::There })
    }

    /// Where an owner of this UID is, if it is in another namespace than its dependent: such a reference leads nowhere.
    pub fn misplaced(&self, dependent: &Object, owner: &OwnerRef) -> bool {
        let there = self.objects.get(&owner.uid).map(|o| o.namespace.as_str());
        there.is_some_and(|namespace| !namespace.is_empty() && namespace != dependent.namespace)
    }

    fn plan_deleting(&self, uid: &Uid, object: &Object) -> GcStep {
        if object.has(ORPHAN) {
            return GcStep::OrphanDependents(self.dependents_of(uid));
        }
        if !object.has(FOREGROUND) {
            return GcStep::Nothing;
        }
        if self.blockers(uid).is_empty() {
            return GcStep::FinishForeground(BTreeSet::new());
        }
        self.circle(uid).map_or(GcStep::Nothing, GcStep::FinishForeground)
    }

    /// Dependents that block an owner.
    fn blockers(&self, owner: &Uid) -> Vec<&Uid> {
        let blocks = |dependent: &&Uid| {
            let object = self.objects.get(*dependent);
            object.is_some_and(|o| o.owners.iter().any(|r| r.uid == *owner && r.blocks))
        };
        self.dependents.get(owner).into_iter().flatten().filter(blocks).collect()
    }

    /// The objects that wait for one another together with this one, if nothing else holds any of them: none would ever
    /// go.
    fn circle(&self, uid: &Uid) -> Option<BTreeSet<Uid>> {
        let reached = self.reach(uid)?;
        let held = |member: &Uid| {
            let object = self.objects.get(member);
            object.is_some_and(|o| o.waits() && o.finalizers.iter().all(|f| f == FOREGROUND))
        };
        if !reached.contains(uid) || !reached.iter().all(held) {
            return None;
        }
        // What this one merely waits for, without being waited for by it, goes first by itself.
        let mutual = |member: &Uid| self.reach(member).is_some_and(|back| back.contains(uid));
        reached.iter().all(mutual).then_some(reached)
    }

    /// Everything that blocks an object, directly or by what blocks it. `None` where that is too much.
    fn reach(&self, uid: &Uid) -> Option<BTreeSet<Uid>> {
        let (mut reached, mut todo) = (BTreeSet::new(), vec![uid]);
        while let Some(next) = todo.pop() {
            for blocker in self.blockers(next) {
                if reached.insert(blocker.clone()) {
                    todo.push(blocker);
                }
            }
            if reached.len() > CIRCLE_MAX {
                return None;
            }
        }
        Some(reached)
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
            kind: 0,
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

    /// A graph of config maps in `default`.
    struct World(Graph);

    impl World {
        fn new() -> Self {
            let mut graph = Graph::default();
            graph.kind(GroupKind::of("v1", "ConfigMap"));
            Self(graph)
        }
        fn put(&mut self, uid: &str, mut object: Object) -> Vec<Uid> {
            object.name = format!("name-of-{uid}");
            self.0.upsert(&id(uid), object)
        }
        fn plan(&self, uid: &str) -> GcStep {
            self.0.plan(&id(uid), &Answers::new())
        }
        fn told(&self, uid: &str, answers: &[(&str, Found)]) -> GcStep {
            self.0.plan(&id(uid), &answers.iter().map(|(u, f)| (id(u), *f)).collect())
        }
    }

    #[test]
    fn an_object_whose_owners_are_gone_is_deleted_after_asking() {
        let mut w = World::new();
        w.put("a", object(&[]));
        w.put("b", object(&[("a", true)]));
        assert_eq!(w.plan("b"), GcStep::Nothing);
        assert_eq!(w.0.remove(&id("a")), [id("b")]);
        assert!(matches!(w.plan("b"), GcStep::Ask(owners) if owners[0].uid == "a"));
        assert_eq!(w.told("b", &[("a", Found::Gone)]), GcStep::Delete(Policy::Background));
        assert_eq!(w.told("b", &[("a", Found::There)]), GcStep::Nothing, "the watch is behind");
    }

    #[test]
    fn one_owner_that_stays_is_enough_and_the_others_are_dropped() {
        let mut w = World::new();
        w.put("a", object(&[]));
        w.put("c", object(&[("a", false), ("b", false)]));
        assert_eq!(w.told("c", &[("b", Found::Gone)]), GcStep::DropOwners(vec![id("b")]));
        w.put("b", deleting(object(&[]), FOREGROUND));
        assert_eq!(w.plan("c"), GcStep::DropOwners(vec![id("b")]), "one that waits would wait for ever");
        w.put("b", deleting(object(&[]), "x.io/other"));
        assert_eq!(w.plan("c"), GcStep::Nothing, "one that is merely deleted is there until it is gone");
    }

    #[test]
    fn a_reference_has_to_fit_what_it_refers_to() {
        let mut w = World::new();
        w.put("a", object(&[]));
        let mut far = object(&[("a", false)]);
        far.namespace = "elsewhere".into();
        w.put("b", far.clone());
        assert!(matches!(w.plan("b"), GcStep::Ask(_)), "owners are in the same namespace");
        assert!(w.0.misplaced(&far, &far.owners[0]));
        let mut other = object(&[("a", false)]);
        other.owners[0].name = "x".into();
        w.put("c", other);
        assert!(matches!(w.plan("c"), GcStep::Ask(_)), "names count");
        let mut everywhere = object(&[]);
        everywhere.namespace = String::new();
        w.put("a", everywhere);
        assert_eq!(w.plan("b"), GcStep::Nothing, "an owner of the whole cluster is everywhere");
    }

    #[test]
    fn a_foreground_deletion_waits_for_what_blocks_it_and_deletes_it() {
        let mut w = World::new();
        w.put("a", deleting(object(&[]), FOREGROUND));
        w.put("b", object(&[("a", true)]));
        w.put("c", object(&[("a", false)]));
        w.put("d", object(&[("c", true)]));
        assert_eq!(w.plan("a"), GcStep::Nothing);
        assert_eq!(w.plan("b"), GcStep::Delete(Policy::Background), "it has no dependents");
        assert_eq!(w.plan("c"), GcStep::Delete(Policy::Foreground), "its own go first");
        assert!(w.0.remove(&id("b")).contains(&id("a")));
        assert_eq!(w.plan("a"), GcStep::FinishForeground(BTreeSet::new()), "c does not block");
    }

    #[test]
    fn orphans_stay() {
        let mut w = World::new();
        w.put("b", object(&[("a", true)]));
        w.put("a", deleting(object(&[]), ORPHAN));
        assert_eq!(w.plan("a"), GcStep::OrphanDependents(vec![id("b")]));
        assert_eq!(w.plan("b"), GcStep::Nothing);
    }

    #[test]
    fn an_object_goes_as_its_finalizers_say() {
        let mut w = World::new();
        let mut kept = object(&[("a", true)]);
        kept.finalizers = vec![ORPHAN.into()];
        w.put("b", kept);
        assert_eq!(w.told("b", &[("a", Found::Gone)]), GcStep::Delete(Policy::Orphan));
    }

    #[test]
    fn circles_end() {
        for size in 1..5_u8 {
            let mut w = World::new();
            let name = |i: u8| format!("o{}", i % size);
            let ring = |i: u8| object(&[(name(i + 1).as_str(), true)]);
            for i in 0..size {
                w.put(&name(i), ring(i));
            }
            w.put("o0", deleting(ring(0), FOREGROUND));
            // Each one's only owner waits in the foreground by now: it goes the same way.
            for i in (1..size).rev() {
                assert_eq!(w.plan(&name(i)), GcStep::Delete(Policy::Foreground), "{size} {i}");
                assert_eq!(w.plan("o0"), GcStep::Nothing, "not yet all of them wait");
                w.put(&name(i), deleting(ring(i), FOREGROUND));
            }
            assert!(matches!(w.plan("o0"), GcStep::FinishForeground(_)), "{size}");
        }
    }

    #[test]
    fn a_circle_waits_for_what_is_no_part_of_it() {
        let mut w = World::new();
        w.put("a", deleting(object(&[("b", true)]), FOREGROUND));
        w.put("b", deleting(object(&[("a", true)]), FOREGROUND));
        w.put("c", deleting(object(&[("b", true)]), "x.io/busy"));
        assert_eq!((w.plan("a"), w.plan("b")), (GcStep::Nothing, GcStep::Nothing));
        w.0.remove(&id("c"));
        assert!(matches!(w.plan("a"), GcStep::FinishForeground(_)));
    }

    #[test]
    fn a_reference_that_is_dropped_frees_the_owner() {
        let mut w = World::new();
        w.put("a", deleting(object(&[]), FOREGROUND));
        w.put("b", object(&[("a", true)]));
        assert!(w.put("b", object(&[])).contains(&id("a")));
        assert!(matches!(w.plan("a"), GcStep::FinishForeground(_)));
    }
}
