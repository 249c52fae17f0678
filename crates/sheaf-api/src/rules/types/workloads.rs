//! Rules of what makes pods, scales them or guards them. Words as Kubernetes' own validation has them.

use serde_json::{Value, json};

use super::super::Problems;
use super::{At, pods};

pub(super) fn replication_controller(at: &At<'_>, problems: &mut Problems) {
    pods::restarts_always(at, problems);
    let selector = at.get("/spec/selector").and_then(Value::as_object);
    let labels = at.get("/spec/template/metadata/labels").cloned().unwrap_or(json!({}));
    if selector.is_some_and(|s| s.iter().any(|(key, value)| labels.get(key) != Some(value))) {
        problems.invalid(
            "spec.template.metadata.labels",
            labels,
            "`selector` does not match template `labels`",
        );
    }
}

pub(super) fn deployment(at: &At<'_>, problems: &mut Problems) {
    at.fixed(&["spec.selector"], problems);
    pods::selected(at, "deployment", problems);
    pods::restarts_always(at, problems);
    match at.text("/spec/strategy/type") {
        "Recreate" if at.get("/spec/strategy/rollingUpdate").is_some() => problems.forbidden(
            "spec.strategy.rollingUpdate",
            "may not be specified when strategy `type` is 'Recreate'",
        ),
        "RollingUpdate" => rolling(at, "spec.strategy.rollingUpdate", problems),
        _ => {}
    }
    let (ready, deadline) =
        (at.int("/spec/minReadySeconds").unwrap_or(0), at.int("/spec/progressDeadlineSeconds"));
    if let Some(deadline) = deadline.filter(|d| *d <= ready) {
        problems.invalid("spec.progressDeadlineSeconds", deadline, "must be greater than minReadySeconds");
    }
}

/// Shares of a rolling update: numbers or percentages, not both nothing.
fn rolling(at: &At<'_>, field: &str, problems: &mut Problems) {
    let pointer = format!("/{}", field.replace('.', "/"));
    let share = |name: &str, problems: &mut Problems| -> Option<i64> {
        let value = at.get(&format!("{pointer}/{name}"))?;
        let field = format!("{field}.{name}");
        let share = int_or_percent(value, &field, problems)?;
        if name == "maxUnavailable" && value.is_string() && share > 100 {
            problems.invalid(field, value.clone(), "must not be greater than 100%");
        }
        Some(share)
    };
    let (unavailable, surge) = (share("maxUnavailable", problems), share("maxSurge", problems));
    if unavailable == Some(0) && surge == Some(0) {
        let value = at.get(&format!("{pointer}/maxUnavailable")).cloned().unwrap_or_default();
        problems.invalid(format!("{field}.maxUnavailable"), value, "may not be 0 when `maxSurge` is 0");
    }
}

/// A count or a percentage; `None` if it is neither, which is said.
fn int_or_percent(value: &Value, field: &str, problems: &mut Problems) -> Option<i64> {
    match value {
        Value::Number(n) => {
            let n = n.as_i64().unwrap_or(-1);
            if n < 0 {
                problems.invalid(field, value.clone(), "must be greater than or equal to 0");
                return None;
            }
            Some(n)
        }
        Value::String(text) => {
            let percent = text.strip_suffix('%').and_then(|n| n.parse().ok());
            if percent.is_none() {
                problems.invalid(
                    field,
                    value.clone(),
                    "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', \
                     regex used for validation is '[0-9]+%')",
                );
            }
            percent
        }
        _ => None,
    }
}

pub(super) fn replica_set(at: &At<'_>, problems: &mut Problems) {
    at.fixed(&["spec.selector"], problems);
    pods::selected(at, "deployment", problems);
    pods::restarts_always(at, problems);
}

pub(super) fn daemon_set(at: &At<'_>, problems: &mut Problems) {
    at.fixed(&["spec.selector"], problems);
    pods::selected(at, "daemonset", problems);
    pods::restarts_always(at, problems);
    if at.text("/spec/updateStrategy/type") == "RollingUpdate" {
        rolling(at, "spec.updateStrategy.rollingUpdate", problems);
    }
}

/// Fields of a stateful set that may change.
const STATEFUL: &[&str] = &[
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

pub(super) fn stateful_set(at: &At<'_>, problems: &mut Problems) {
    pods::selected(at, "statefulset", problems);
    pods::restarts_always(at, problems);
    let Some(old) = at.old.and_then(|old| old.get("spec")).and_then(Value::as_object) else { return };
    let Some(new) = at.get("/spec").and_then(Value::as_object) else { return };
    let differs = |key: &String| !STATEFUL.contains(&key.as_str()) && old.get(key) != new.get(key);
    if new.keys().chain(old.keys()).any(differs) {
        problems.forbidden(
            "spec",
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', \
             'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        );
    }
}

pub(super) fn job(at: &At<'_>, problems: &mut Problems) {
    job_template(at, "/spec", problems);
    let (manual, selector) = (at.get("/spec/manualSelector") == Some(&json!(true)), at.get("/spec/selector"));
    if manual && selector.is_none() {
        problems.required("spec.selector", "");
    }
    if !manual
        && at.old.is_none()
        && let (Some(selector), Some(uid)) = (selector, at.get("/metadata/uid"))
        && !selector.to_string().contains(uid.as_str().unwrap_or_default())
    {
        problems.invalid("spec.selector", selector.clone(), "`selector` not auto-generated");
    }
    if at.old.is_none() {
        return;
    }
    at.fixed(
        &[
            "spec.selector",
            "spec.podFailurePolicy",
            "spec.completionMode",
            "spec.backoffLimitPerIndex",
            "spec.managedBy",
            "spec.successPolicy",
        ],
        problems,
    );
    let indexed = at.text("/spec/completionMode") == "Indexed";
    if !indexed {
        at.fixed(&["spec.completions"], problems);
    }
    // Where its pods are placed may change while the job waits.
    let waits = super::find(at.old.unwrap_or(at.map), "/spec/suspend") == Some(&json!(true))
        && super::find(at.old.unwrap_or(at.map), "/status/startTime").is_none();
    if waits {
        let part = |map| {
            let mut template = super::find(map, "/spec/template").cloned().unwrap_or_default();
            for field in ["labels", "annotations"] {
                template["metadata"].as_object_mut().map(|m| m.remove(field));
            }
            for field in ["nodeSelector", "tolerations", "affinity", "schedulingGates"] {
                template["spec"].as_object_mut().map(|s| s.remove(field));
            }
            template
        };
        if at.old.is_some_and(|old| part(old) != part(at.map)) {
            let value = at.get("/spec/template").cloned().unwrap_or_default();
            problems.invalid("spec.template", value, super::IMMUTABLE);
        }
    } else {
        at.fixed(&["spec.template"], problems);
    }
}

/// Pods of jobs end.
fn job_template(at: &At<'_>, spec: &str, problems: &mut Problems) {
    let field = spec[1..].replace('/', ".");
    let policy = at.text(&format!("{spec}/template/spec/restartPolicy"));
    if at.get(&format!("{spec}/template/spec")).is_some() && !matches!(policy, "OnFailure" | "Never") {
        problems.required(
            format!("{field}.template.spec.restartPolicy"),
            "valid values: \"OnFailure\", \"Never\"",
        );
    }
}

/// Longest name of a cron job: those of its jobs are 11 longer.
const CRON_NAME_MAX: usize = 52;

pub(super) fn cron_job(at: &At<'_>, problems: &mut Problems) {
    job_template(at, "/spec/jobTemplate/spec", problems);
    let name = at.text("/metadata/name");
    if at.old.is_none() && name.len() > CRON_NAME_MAX {
        problems.invalid("metadata.name", name, "must be no more than 52 characters");
    }
    let schedule = at.text("/spec/schedule");
    if schedule.is_empty() {
        return;
    }
    if let Err(why) = cron(schedule) {
        problems.invalid("spec.schedule", schedule, why);
    }
    if schedule.contains("TZ") {
        problems.invalid(
            "spec.schedule",
            schedule,
            "cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
        );
    }
    let zone = at.text("/spec/timeZone");
    if at.get("/spec/timeZone").is_some()
        && (zone.is_empty()
            || zone.eq_ignore_ascii_case("local")
            || zone.contains("..")
            || zone.starts_with('/'))
    {
        problems.invalid("spec.timeZone", zone, format!("unknown time zone {zone}"));
    }
}

/// Whether a schedule can be read; what is wrong with it otherwise.
fn cron(schedule: &str) -> Result<(), String> {
    const WORDS: &[&str] = &["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];
    if let Some(every) = schedule.strip_prefix("@every ") {
        let fits = every.chars().next().is_some_and(|c| c.is_ascii_digit())
            && every.ends_with(|c: char| c.is_ascii_alphabetic());
        return if fits { Ok(()) } else { Err(format!("failed to parse duration {schedule}")) };
    }
    if schedule.starts_with('@') {
        return if WORDS.contains(&schedule) {
            Ok(())
        } else {
            Err(format!("unrecognized descriptor: {schedule}"))
        };
    }
    let schedule = match schedule.strip_prefix("TZ=").or_else(|| schedule.strip_prefix("CRON_TZ=")) {
        Some(rest) => rest.split_once(' ').map_or("", |(_, rest)| rest),
        None => schedule,
    };
    let fields: Vec<&str> = schedule.split_whitespace().collect();
    if fields.len() != 5 {
        return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
    }
    let months = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
    let days = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
    let bounds: [(u32, u32, &[&str]); 5] =
        [(0, 59, &[]), (0, 23, &[]), (1, 31, &[]), (1, 12, &months), (0, 6, &days)];
    for (field, (least, most, words)) in fields.iter().zip(bounds) {
        let number = |text: &str| -> Result<u32, String> {
            let word = words.iter().position(|w| text.eq_ignore_ascii_case(w));
            let found = word.map(|i| u32::try_from(i).unwrap_or(0) + least).or_else(|| text.parse().ok());
            let found = found.ok_or_else(|| {
                format!("failed to parse int from {text}: strconv.Atoi: parsing \"{text}\": invalid syntax")
            })?;
            match found {
                n if n < least => Err(format!("beginning of range ({n}) below minimum ({least}): {field}")),
                n if n > most => Err(format!("end of range ({n}) above maximum ({most}): {field}")),
                n => Ok(n),
            }
        };
        for part in field.split(',') {
            let (range, step) = part.split_once('/').map_or((part, None), |(r, s)| (r, Some(s)));
            if let Some(step) = step
                && !step.parse::<u32>().is_ok_and(|s| s > 0)
            {
                return Err(format!("step of range should be a positive number: {part}"));
            }
            match range.split_once('-') {
                _ if range == "*" || range == "?" => {}
                Some((from, to)) => {
                    let (from, to) = (number(from)?, number(to)?);
                    if from > to {
                        return Err(format!(
                            "beginning of range ({from}) beyond end of range ({to}): {part}"
                        ));
                    }
                }
                None => drop(number(range)?),
            }
        }
    }
    Ok(())
}

pub(super) fn revision(at: &At<'_>, problems: &mut Problems) {
    if at.get("/data").is_none() {
        problems.required("data", "data is mandatory");
    }
    at.fixed(&["data"], problems);
}

pub(super) fn autoscaler(at: &At<'_>, problems: &mut Problems) {
    let (least, most) = (at.int("/spec/minReplicas").unwrap_or(1), at.int("/spec/maxReplicas").unwrap_or(0));
    if least < 1 {
        problems.invalid("spec.minReplicas", least, "must be greater than or equal to 1");
    }
    if most > 0 && most < least {
        problems.invalid("spec.maxReplicas", most, "must be greater than or equal to `minReplicas`");
    }
    for (i, metric) in at.list("/spec/metrics").iter().enumerate() {
        let source = match metric["type"].as_str().unwrap_or_default() {
            "Resource" => "resource",
            "ContainerResource" => "containerResource",
            "Pods" => "pods",
            "Object" => "object",
            "External" => "external",
            _ => continue,
        };
        if metric.get(source).is_none() {
            let why = format!(
                "must populate information for the given metric source (only allowed if type is {})",
                metric["type"]
            );
            problems.required(format!("spec.metrics[{i}].{source}"), &why);
        }
    }
}

pub(super) fn disruption_budget(at: &At<'_>, problems: &mut Problems) {
    let both = [at.get("/spec/minAvailable"), at.get("/spec/maxUnavailable")];
    for (name, value) in ["minAvailable", "maxUnavailable"].iter().zip(both) {
        let field = format!("spec.{name}");
        if let Some(value) = value
            && let Some(share) = int_or_percent(value, &field, problems)
            && value.is_string()
            && share > 100
        {
            problems.invalid(field, value.clone(), "must not be greater than 100%");
        }
    }
    if both.iter().all(Option::is_some) {
        let spec = at.get("/spec").cloned().unwrap_or_default();
        problems.invalid("spec", spec, "minAvailable and maxUnavailable cannot be both set");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules() {
        for good in ["*/5 * * * *", "0 0 1,15 * mon-fri", "@daily", "@every 1h30m", "0-30/10 4 ? jan *"] {
            assert_eq!(cron(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "* * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "*/0 * * * *",
            "a * * * *",
            "5-1 * * * *",
            "@soon",
        ] {
            assert!(cron(bad).is_err(), "{bad}");
        }
    }
}
