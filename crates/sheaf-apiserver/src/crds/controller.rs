//! The loop that keeps what is served in step with the definitions that are stored.
//!
//! Level-triggered: each turn looks at all definitions, installs their rows, and then writes the conditions that say so;
//! whoever sees `Established` is served. A definition that is being deleted is held until its objects are gone.
//!
//! Reads the store and not the watch cache: definitions are large, and a few fields of each are enough. Owns what it
//! made of them; on a restart it begins anew from the store.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};
use sheaf_meta::{kind::KindInfo, status::Status};
use sheaf_store::{Change, Revision, StoreError, Watch};
use tokio::time::{Instant, sleep_until};

use super::{
    CLEANUP, COLLECTION, PREFIX,
    definition::{Definition, Form, Names},
    naming::{self, Taken, Verdict, plan_names},
};
use crate::{core::Core, handler, internal, registry::Row};

/// Definitions read at once at the start.
const PAGE: u64 = 32;
/// Between two looks at a definition whose objects do not go, at first and at most.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Watches on a kind that is gone have ended by then.
const FORGET_AFTER: Duration = Duration::from_secs(30);
/// Requests that began before a definition changed have ended by then.
const SETTLING: Duration = Duration::from_secs(65);
/// A failed watch or write is tried again after this long.
const TRY_AGAIN: Duration = Duration::from_millis(500);

/// A definition and what was made of it.
struct Known {
    definition: Definition,
    /// From this revision on objects were written through the definition's schemas; shared with the rows.
    settled: Arc<AtomicU64>,
    /// When that will be so, where requests may be under way that have the rows from before.
    settles: Option<Instant>,
    form: Option<Form>,
    rows: Vec<(bool, Arc<Row>)>,
    /// Shared with the rows.
    terminating: Arc<AtomicBool>,
    /// How long to wait before the objects are looked at again.
    patience: Duration,
}

/// The loop's state.
pub(crate) struct Controller {
    core: Arc<Core>,
    /// Names of definitions that the program brings along.
    own: HashSet<String>,
    known: BTreeMap<String, Known>,
    watch: Box<dyn Watch>,
}

impl Controller {
    /// Reads all definitions and serves their kinds. When this returns, a restarted server serves what it served.
    pub(crate) async fn load(core: &Arc<Core>) -> Result<Self, StoreError> {
        let own = core.registry.built_in().iter().filter(|r| r.info.is_crd).map(|r| own_name(&r.info));
        let own = own.collect();
        let (known, at) = read_all(core, &own).await?;
        let watch = core.store.watch(PREFIX, at).await?;
        let mut controller = Self { core: core.clone(), own, known, watch };
        controller.install(Timestamp::now());
        Ok(controller)
    }

    /// Works until it is dropped.
    pub(crate) async fn run(mut self) {
        loop {
            let again = self.turn().await;
            let until = again.map(|wait| Instant::now() + wait);
            let pause = async {
                match until {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let changes = tokio::select! {
                changes = self.watch.next() => changes,
                () = pause => continue,
            };
            match changes {
                Ok(changes) => {
                    for change in changes {
                        self.take(change).await;
                    }
                }
                Err(StoreError::Closed) => return,
                Err(error) => {
                    tracing::warn!(error = %error, "the watch of definitions ended; they are read anew");
                    self.read_again().await;
                }
            }
        }
    }

    async fn read_again(&mut self) {
        loop {
            let read = async {
                let (known, at) = read_all(&self.core, &self.own).await?;
                Ok::<_, StoreError>((known, self.core.store.watch(PREFIX, at).await?))
            };
            match read.await {
                Ok((mut known, watch)) => {
                    // What is as it was keeps its rows, and with them its watches.
                    for (name, now) in &mut known {
                        if let Some(before) = self.known.remove(name) {
                            now.follow(before);
                        }
                    }
                    self.known = known;
                    self.watch = watch;
                    self.install(Timestamp::now());
                    return;
                }
                Err(error) => {
                    tracing::warn!(error = %error, "the definitions cannot be read");
                    tokio::time::sleep(TRY_AGAIN).await;
                }
            }
        }
    }

    async fn take(&mut self, change: Change) {
        let name = change.key().trim_start_matches(PREFIX).to_string();
        if self.own.contains(&name) {
            return;
        }
        match change {
            Change::Put { entry, .. } => {
                let Some(definition) = parse(&entry.key, &entry.value, entry.modified) else { return };
                let mut known = Known::new(definition, entry.modified);
                if let Some(before) = self.known.remove(&name) {
                    known.follow(before);
                }
                self.known.insert(name, known);
            }
            Change::Delete { at, .. } => {
                let Some(known) = self.known.remove(&name) else { return };
                // Only what was served has objects; the prefix may be another's otherwise.
                if let Some((_, row)) = known.rows.first() {
                    if let Err(error) = handler::purge(&self.core, row, at).await {
                        tracing::warn!(name, error = %error, "objects of a kind that is gone may be left");
                    }
                    // Watches hear of the last deletion before they end.
                    if let Ok(kind) = self.core.kind(row).await {
                        let _ = kind.wait(at).await;
                    }
                    tokio::spawn(forget_later(self.core.clone(), row.prefix.clone()));
                }
                self.install(Timestamp::now());
            }
        }
    }

    /// Installs rows, then writes what is to be said. Gives the time after which to look again.
    async fn turn(&mut self) -> Option<Duration> {
        let now = Timestamp::now();
        let verdicts = self.install(now);
        let mut again: Option<Duration> = None;
        let mut sooner = |wait: Duration| again = Some(again.map_or(wait, |a: Duration| a.min(wait)));
        for known in self.known.values_mut() {
            let Some(at) = known.settles else { continue };
            match (at.checked_duration_since(Instant::now()), self.core.store.revision().await) {
                (None | Some(Duration::ZERO), Ok(revision)) => {
                    known.settled.store(revision.0, Ordering::Relaxed);
                    known.settles = None;
                }
                (wait, _) => sooner(wait.unwrap_or(TRY_AGAIN)),
            }
        }
        for (name, verdict) in verdicts {
            let Some(known) = self.known.get_mut(&name) else { continue };
            let result = if known.definition.owes_cleanup() {
                clean_up(&self.core, known, verdict, now).await
            } else {
                tell(&self.core, &known.definition, &verdict).await.map(|()| None)
            };
            match result {
                Ok(None) => {}
                Ok(Some(wait)) => sooner(wait),
                // Somebody else wrote: the watch brings the news.
                Err(status) if matches!(status.code, 404 | 409) => {}
                // Trying again would not help; a change of the definition may.
                Err(status) if status.code == 422 => {
                    tracing::error!(name, message = %status.message, "the status of a definition is refused");
                }
                Err(status) => {
                    tracing::warn!(name, message = %status.message, "the status of a definition cannot be written");
                    sooner(TRY_AGAIN);
                }
            }
        }
        again
    }

    /// Decides on names and makes the registry serve what is established.
    fn install(&mut self, now: Timestamp) -> Vec<(String, Verdict)> {
        let verdicts = self.decide(now);
        let mut rows = Vec::new();
        let mut changed = false;
        for (name, verdict) in &verdicts {
            let Some(known) = self.known.get_mut(name) else { continue };
            known.terminating.store(known.definition.deleting, Ordering::Relaxed);
            let form = verdict.established.then(|| known.definition.form(&verdict.accepted));
            if known.form != form {
                changed = true;
                known.rows = match &form {
                    Some(_) => {
                        let terminating = &known.terminating;
                        known.definition.rows(&verdict.accepted, &known.settled, terminating)
                    }
                    None => Vec::new(),
                };
                known.form = form;
            }
            rows.extend(known.rows.iter().filter(|(served, _)| *served).map(|(_, row)| row.clone()));
        }
        let served = self.core.registry.snapshot().rows().len() - self.core.registry.built_in().len();
        if changed || served != rows.len() {
            self.core.registry.set_custom(rows);
        }
        verdicts
    }

    fn decide(&self, now: Timestamp) -> Vec<(String, Verdict)> {
        let mut taken: HashMap<&str, Taken> = HashMap::new();
        for row in self.core.registry.built_in() {
            taken.entry(&row.info.group).or_default().add(&names_of(&row.info));
        }
        // Who has been served longest comes first; then who was there first.
        let mut order: Vec<(&String, &Known)> = self.known.iter().collect();
        order.sort_by_key(|(name, k)| (!k.definition.is("Established"), &k.definition.created, *name));
        let mut verdicts = Vec::new();
        for (name, known) in order {
            let taken = taken.entry(&known.definition.group).or_default();
            let verdict = plan_names(&known.definition, taken, now);
            taken.add(&verdict.accepted);
            verdicts.push((name.clone(), verdict));
        }
        verdicts
    }
}

impl Known {
    fn new(definition: Definition, since: Revision) -> Self {
        let (terminating, patience) = (Arc::default(), LOOK_AGAIN.0);
        let settled = Arc::new(AtomicU64::new(since.0));
        Self { definition, settled, settles: None, form: None, rows: Vec::new(), terminating, patience }
    }

    /// Takes over what was made of the definition as it was before.
    fn follow(&mut self, before: Known) {
        if before.definition.form(&Names::default()) == self.definition.form(&Names::default()) {
            (self.settled, self.settles) = (before.settled, before.settles);
        } else {
            self.settled = Arc::new(AtomicU64::new(u64::MAX));
            self.settles = Some(Instant::now() + SETTLING);
        }
        (self.form, self.rows, self.terminating) = (before.form, before.rows, before.terminating);
    }
}

async fn read_all(
    core: &Arc<Core>,
    own: &HashSet<String>,
) -> Result<(BTreeMap<String, Known>, Revision), StoreError> {
    let (mut known, mut after, mut at) = (BTreeMap::new(), String::new(), Revision(0));
    loop {
        let page = core.store.list(PREFIX, &after, at, PAGE).await?;
        at = page.at;
        for entry in &page.entries {
            let name = entry.key.trim_start_matches(PREFIX);
            if !own.contains(name)
                && let Some(definition) = parse(&entry.key, &entry.value, entry.modified)
            {
                known.insert(name.to_string(), Known::new(definition, entry.modified));
            }
        }
        match page.entries.last() {
            Some(last) if page.more => after.clone_from(&last.key),
            _ => return Ok((known, at)),
        }
    }
}

fn parse(key: &str, bytes: &[u8], revision: Revision) -> Option<Definition> {
    match serde_json::from_slice::<Value>(bytes) {
        Ok(crd) => Some(Definition::read(&crd, revision)),
        Err(error) => {
            tracing::error!(key, error = %error, "a stored definition cannot be read");
            None
        }
    }
}

/// Drops a kind from the watch cache, unless it has come back by then.
async fn forget_later(core: Arc<Core>, prefix: String) {
    if core.stop.run_until_cancelled(tokio::time::sleep(FORGET_AFTER)).await.is_some()
        && !core.registry.snapshot().rows().iter().any(|row| row.prefix == prefix)
    {
        core.forget(&prefix);
    }
}

/// The name of the definition of a kind.
pub(super) fn own_name(info: &KindInfo) -> String {
    format!("{}.{}", info.plural, info.group)
}

fn names_of(info: &KindInfo) -> Names {
    Names {
        plural: info.plural.clone(),
        singular: info.singular.clone(),
        short_names: info.short_names.clone(),
        kind: info.kind.clone(),
        list_kind: format!("{}List", info.kind),
        categories: Vec::new(),
    }
}

/// Writes the status, if it does not say so already.
async fn tell(core: &Arc<Core>, definition: &Definition, verdict: &Verdict) -> Result<(), Status> {
    if definition.conditions == verdict.conditions && definition.accepted == verdict.accepted {
        return Ok(());
    }
    let patch = json!({
        "metadata": {"resourceVersion": definition.resource_version},
        "status": {"conditions": verdict.conditions, "acceptedNames": complete(&verdict.accepted)},
    });
    internal::merge(core, &format!("{COLLECTION}/{}/status", definition.name), &patch).await.map(drop)
}

/// For a merge patch: names that are there no longer have to be taken away.
fn complete(names: &Names) -> Value {
    let mut out = json!(names);
    for field in ["singular", "shortNames", "listKind", "categories"] {
        if out.get(field).is_none() {
            out[field] = Value::Null;
        }
    }
    out
}

/// One step of removing a definition's objects. Gives the time after which to take the next one.
async fn clean_up(
    core: &Arc<Core>,
    known: &mut Known,
    mut verdict: Verdict,
    now: Timestamp,
) -> Result<Option<Duration>, Status> {
    // One that was never served has no objects, and its name may be another's.
    let left = match known.rows.first() {
        Some((_, row)) => handler::sweep(core, row).await?,
        None => handler::Left::default(),
    };
    let conditions = &mut verdict.conditions;
    if left.count > 0 {
        let why = format!("CustomResource deletion is in progress: {left}");
        naming::set(conditions, "Terminating", true, "InstanceDeletionInProgress", &why, now);
        tell(core, &known.definition, &verdict).await?;
        let wait = known.patience;
        known.patience = (wait * 2).min(LOOK_AGAIN.1);
        return Ok(Some(if left.more { Duration::ZERO } else { wait }));
    }
    let finalizers: Vec<&String> = known.definition.finalizers.iter().filter(|f| *f != CLEANUP).collect();
    if !finalizers.is_empty() {
        // It stays for others: then it says that nothing is owed here.
        naming::set(
            conditions,
            "Terminating",
            false,
            "InstanceDeletionCompleted",
            "removed all instances",
            now,
        );
        let patch = json!({
            "metadata": {"resourceVersion": known.definition.resource_version},
            "status": {"conditions": conditions},
        });
        let path = format!("{COLLECTION}/{}/status", known.definition.name);
        let written = internal::merge(core, &path, &patch).await?;
        known.definition.resource_version = sheaf_meta::object::resource_version(&written).into();
    }
    let patch = json!({"metadata": {
        "resourceVersion": known.definition.resource_version, "finalizers": finalizers,
    }});
    let path = format!("{COLLECTION}/{}", known.definition.name);
    internal::call(core, Method::PATCH, &path, "application/merge-patch+json", Some(&patch)).await?;
    Ok(None)
}
