//! What nodes and machines used, over time: half minutes for three hours, five minutes for a week. Pure: time is given.
//!
//! A step takes twelve bytes: a machine that ran for a week takes 28 KiB, a thousand of them 28 MB. Those that are gone are
//! forgotten after a week, or when others need the room.

use std::collections::BTreeMap;

use sheaf_plan::usage::{Counters, Numbers, Told, between};

use super::ring::Ring;

/// Length of a step, in seconds, and how many are kept: while it is new, and after that.
const FINE: (i64, usize) = (30, 360);
const COARSE: (i64, usize) = (300, 2016);
/// Counters that are further apart say nothing of a step, in seconds.
const APART_MAX: f64 = 100.0;
/// Nodes and machines that are kept.
const NODES_MAX: usize = 1000;
const MACHINES_MAX: usize = 3000;
/// Points of a window; more cannot be seen.
const POINTS_MAX: i64 = 400;

/// One node's or machine's.
#[derive(Debug, Default)]
struct Series {
    uid: String,
    before: Option<(f64, Counters)>,
    fine: Ring,
    coarse: Ring,
    /// The coarse step that is not over: which, the sums, how many.
    open: (i64, [f64; 6], u32),
    seen: i64,
}

impl Series {
    fn take(&mut self, uid: &str, counters: Counters, at_s: f64) {
        if self.uid != uid {
            *self = Self { uid: uid.into(), ..Self::default() };
        }
        let now = at_s as i64;
        self.seen = now;
        let before = self.before.replace((at_s, counters));
        let Some((then, before)) = before.filter(|(then, _)| at_s - then <= APART_MAX) else { return };
        let Some(numbers) = between(&before, &counters, at_s - then) else { return };
        self.fine.push(now / FINE.0, &numbers, FINE.1);
        let step = now / COARSE.0;
        if step != self.open.0 {
            self.close();
            self.open = (step, [0.0; 6], 0);
        }
        for (sum, n) in self.open.1.iter_mut().zip(numbers) {
            *sum += f64::from(n);
        }
        self.open.2 += 1;
    }

    fn mean(&self) -> Option<Numbers> {
        let (_, sums, n) = self.open;
        (n > 0).then(|| sums.map(|sum| (sum / f64::from(n)) as f32))
    }

    /// The coarse step is over.
    fn close(&mut self) {
        if let Some(mean) = self.mean() {
            self.coarse.push(self.open.0, &mean, COARSE.1);
        }
        self.open.2 = 0;
    }

    /// Whether nothing is left of it.
    fn trim(&mut self, now: i64) -> bool {
        if now / COARSE.0 > self.open.0 {
            self.close();
        }
        self.fine.trim(now / FINE.0, FINE.1);
        self.coarse.trim(now / COARSE.0, COARSE.1);
        self.fine.is_empty() && self.coarse.is_empty() && now - self.seen > FINE.0 * 10
    }

    fn at(&self, step_s: i64, step: i64) -> Option<Numbers> {
        if step_s == FINE.0 {
            return self.fine.at(step);
        }
        self.coarse.at(step).or_else(|| self.mean().filter(|_| step == self.open.0))
    }
}

/// Whose numbers are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of<'a> {
    Nodes,
    Node(&'a str),
    Machines,
    Namespace(&'a str),
    Machine(&'a str, &'a str),
}

/// Numbers over time, from the first that is known.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Window {
    /// Length of a step in seconds.
    pub(super) step_s: i64,
    /// When the last of them ends, in seconds since the epoch.
    pub(super) end_s: i64,
    /// The steps; none where nothing is known.
    pub(super) steps: Vec<Option<Numbers>>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct History {
    nodes: BTreeMap<String, Series>,
    /// By namespace and name.
    machines: BTreeMap<(String, String), Series>,
}

/// The series of a key, if there is room for it or some can be made: whoever was not seen for longest goes, unless it is seen
/// still.
fn place<K: Ord + Clone>(
    all: &mut BTreeMap<K, Series>,
    key: K,
    now: i64,
    most: usize,
) -> Option<&mut Series> {
    if all.len() >= most && !all.contains_key(&key) {
        let oldest = all.iter().min_by_key(|(_, s)| s.seen).map(|(k, s)| (k.clone(), s.seen));
        let (gone, _) = oldest.filter(|(_, seen)| now - seen > FINE.0 * 2)?;
        all.remove(&gone);
    }
    Some(all.entry(key).or_default())
}

impl History {
    /// Takes what a node told.
    pub(super) fn take(&mut self, node: &str, uid: &str, told: Told, at_s: f64) {
        let now = at_s as i64;
        if let Some(series) = place(&mut self.nodes, node.to_owned(), now, NODES_MAX) {
            series.take(uid, told.node, at_s);
        }
        for machine in told.machines {
            let key = (machine.namespace, machine.name);
            if let Some(series) = place(&mut self.machines, key, now, MACHINES_MAX) {
                series.take(&machine.uid, machine.counters, at_s);
            }
        }
    }

    /// Forgets what is too old.
    pub(super) fn trim(&mut self, now: i64) {
        self.nodes.retain(|_, series| !series.trim(now));
        self.machines.retain(|_, series| !series.trim(now));
    }

    /// The last `seconds`, several as one where more than one is asked for.
    pub(super) fn window(&self, of: Of<'_>, seconds: i64, now: i64) -> Window {
        let seconds = seconds.clamp(FINE.0, COARSE.0 * i64::try_from(COARSE.1).unwrap_or(0));
        let (length, _) = if seconds <= FINE.0 * i64::try_from(FINE.1).unwrap_or(0) { FINE } else { COARSE };
        // So many steps are drawn as one.
        let together = (seconds / length + POINTS_MAX - 1) / POINTS_MAX;
        let step_s = length * together;
        let series = self.select(of);
        let at = |step: i64| joined(&series, length, step * together, together);
        // The step that is going on has nothing to say yet where it is a short one, and maybe where it is a long one.
        let last = now / step_s;
        let last = if length == FINE.0 || at(last).is_none() { last - 1 } else { last };
        let steps = (last + 1 - seconds / step_s..=last).map(at).skip_while(Option::is_none).collect();
        Window { step_s, end_s: (last + 1) * step_s, steps }
    }

    fn select(&self, of: Of<'_>) -> Vec<&Series> {
        let key = |namespace: &str, name: &str| (namespace.to_owned(), name.to_owned());
        match of {
            Of::Nodes => self.nodes.values().collect(),
            Of::Node(name) => self.nodes.get(name).into_iter().collect(),
            Of::Machines => self.machines.values().collect(),
            Of::Namespace(namespace) => {
                let from = self.machines.range(key(namespace, "")..);
                from.take_while(|((of, _), _)| of == namespace).map(|(_, series)| series).collect()
            }
            Of::Machine(namespace, name) => self.machines.get(&key(namespace, name)).into_iter().collect(),
        }
    }
}

/// The sum of some series in a step, and the mean of several steps.
fn joined(series: &[&Series], length: i64, from: i64, together: i64) -> Option<Numbers> {
    let (mut sums, mut known) = ([0f64; 6], 0u32);
    for step in from..from + together {
        let mut any = false;
        for numbers in series.iter().filter_map(|s| s.at(length, step)) {
            any = true;
            for (sum, n) in sums.iter_mut().zip(numbers) {
                *sum += f64::from(n);
            }
        }
        known += u32::from(any);
    }
    (known > 0).then(|| sums.map(|sum| (sum / f64::from(known)) as f32))
}

#[cfg(test)]
mod tests {
    use sheaf_plan::usage::Machine;

    use super::*;

    /// A node whose machines have all used a processor since the beginning.
    fn told(at_s: f64, machines: &[&str]) -> Told {
        let counters =
            Counters { cpu_seconds: at_s, memory: 1 << 30, read: at_s as u64 * 1000, ..Counters::default() };
        let machine =
            |name: &&str| Machine { namespace: "a".into(), name: (*name).into(), uid: "u".into(), counters };
        Told { node: counters, machines: machines.iter().map(machine).collect() }
    }

    fn cpu(window: &Window) -> Vec<Option<f32>> {
        window.steps.iter().map(|step| step.map(|n| n[0])).collect()
    }

    const BEGIN: i64 = 1_800_000_000;

    #[test]
    fn steps_come_at_once_and_stay_for_a_week() {
        let mut history = History::default();
        for n in 0..20 {
            history.take(
                "n1",
                "u1",
                told((BEGIN + n * 30 + 15) as f64, &["x", "y"]),
                (BEGIN + n * 30 + 15) as f64,
            );
        }
        let now = BEGIN + 20 * 30;
        let one = history.window(Of::Machine("a", "x"), 900, now);
        assert_eq!(
            (one.step_s, one.end_s, one.steps.len()),
            (30, now, 19),
            "the first has nothing before it"
        );
        assert!(cpu(&one).iter().all(|n| *n == Some(1.0)));
        let both = history.window(Of::Namespace("a"), 900, now);
        assert!(cpu(&both).iter().all(|n| *n == Some(2.0)));
        assert!(history.window(Of::Namespace("b"), 900, now).steps.is_empty());
        let day = history.window(Of::Node("n1"), 86_400, now);
        assert_eq!(
            (day.step_s, cpu(&day)),
            (300, vec![Some(1.0), Some(1.0)]),
            "the one that is not over too"
        );
        let week = history.window(Of::Nodes, 604_800, now);
        assert_eq!((week.step_s, week.steps.len()), (1800, 1));
        // A day without it: the week still has it, and a week later nobody does.
        history.trim(now + 86_400);
        assert!(history.window(Of::Machine("a", "x"), 900, now + 86_400).steps.is_empty());
        let week = history.window(Of::Machine("a", "x"), 604_800, now + 86_400);
        assert_eq!(week.steps.iter().flatten().count(), 1);
        history.trim(now + 8 * 86_400);
        assert!(history.nodes.is_empty() && history.machines.is_empty());
    }

    #[test]
    fn another_machine_of_the_same_name_has_a_history_of_its_own() {
        let mut history = History::default();
        for n in 0..4 {
            history.take("n1", "u1", told((BEGIN + n * 30) as f64, &["x"]), (BEGIN + n * 30) as f64);
        }
        let mut other = told((BEGIN + 120) as f64, &["x"]);
        other.machines[0].uid = "v".into();
        history.take("n1", "u1", other, (BEGIN + 120) as f64);
        assert!(history.window(Of::Machine("a", "x"), 900, BEGIN + 150).steps.is_empty());
    }

    #[test]
    fn a_process_that_began_anew_is_a_gap() {
        let mut history = History::default();
        let feed = |history: &mut History, n: i64, cpu_seconds: f64| {
            let mut told = told((BEGIN + n * 30) as f64, &["x"]);
            told.machines[0].counters.cpu_seconds = cpu_seconds;
            history.take("n1", "u1", told, (BEGIN + n * 30) as f64);
        };
        for (n, seconds) in [(0, 100.0), (1, 130.0), (2, 3.0), (3, 33.0)] {
            feed(&mut history, n, seconds);
        }
        let window = history.window(Of::Machine("a", "x"), 900, BEGIN + 120);
        assert_eq!(cpu(&window), [Some(1.0), None, Some(1.0)]);
    }

    #[test]
    fn room_is_bounded_and_what_is_gone_makes_it() {
        let mut history = History::default();
        let names: Vec<String> = (0..MACHINES_MAX + 5).map(|n| format!("m{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        history.take("n1", "u1", told(BEGIN as f64, &names), BEGIN as f64);
        assert_eq!(history.machines.len(), MACHINES_MAX);
        history.take("n1", "u1", told((BEGIN + 600) as f64, &["new"]), (BEGIN + 600) as f64);
        assert_eq!(history.machines.len(), MACHINES_MAX);
        assert!(history.machines.contains_key(&("a".to_owned(), "new".to_owned())));
    }

    #[test]
    fn what_a_week_takes() {
        let mut history = History::default();
        for n in 0..7 * 2880 {
            let at = (BEGIN + n * 30) as f64;
            history.take("n1", "u1", told(at, &["x"]), at);
        }
        let series = &history.machines[&("a".to_owned(), "x".to_owned())];
        let bytes = series.fine.bytes() + series.coarse.bytes() + size_of::<Series>();
        assert!(bytes < 30_000, "{bytes} bytes");
        assert!(history.window(Of::Nodes, 604_800, BEGIN + 604_800).steps.len() <= 400);
    }
}
