//! What follows for one image on the node that is to have it first: pure.
//!
//! ```text
//! download: (none) -> running -> complete          Imported Unknown -> True
//!                        |  ^
//!                        v  | after a wait          failed + 1; beyond spec.retry: RetryLimitExceeded True,
//!                      failed                       Imported False, and attempts become rare, but never end
//! upload:   (waiting) -> running -> complete
//!               ^           v
//!               +------- failed                    Imported False, reason UploadFailed; may be sent again
//! ```
//!
//! No I/O, no clock.

use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use sheaf_api::harvester::{Condition, VirtualMachineImage, VirtualMachineImageStatus};
use sheaf_image::digest::Checksum;
use sheaf_image::fetch::Progress;

use super::files::Kept;

/// Condition types.
pub const INITIALIZED: &str = "Initialized";
/// The image's data is complete on its node.
pub const IMPORTED: &str = "Imported";
/// More attempts have failed than `spec.retry` allows.
pub const RETRY_LIMIT: &str = "RetryLimitExceeded";
/// The data of an imported image has gone.
pub const MISSING: &str = "BackingImageMissing";

/// `spec.retry` where it is not set.
const DEFAULT_RETRY: i32 = 3;
/// Shortest wait after a failure, as Harvester has it.
const FIRST_WAIT: Duration = Duration::from_secs(10);
/// Longest wait, also beyond `spec.retry`.
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// How often a running transfer is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// A transfer of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transfer {
    /// Bytes come, or will.
    Running {
        /// Where from; empty for an upload.
        url: String,
        /// How far.
        progress: Progress,
    },
    /// It ended badly, and nobody has said so yet.
    Failed {
        /// Where from; empty for an upload.
        url: String,
        /// What went wrong; completes "the image ".
        why: String,
    },
}

/// What is known of an image on this node.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// The object.
    pub image: &'a VirtualMachineImage,
    /// The complete file.
    pub kept: Option<&'a Kept>,
    /// What is under way.
    pub transfer: Option<&'a Transfer>,
    /// Address and checksum (as the spec has them) of this process's last attempt.
    pub tried: Option<&'a (String, String)>,
    /// Now.
    pub now: Timestamp,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing but the status.
    Nothing,
    /// Begin a download from there.
    Start {
        /// `spec.url`.
        url: String,
        /// `spec.checksum`.
        checksum: Option<Checksum>,
    },
    /// End what is under way: it is of no use any more.
    Stop,
    /// Remove the file: it is from another address than is asked for.
    Discard,
}

/// What follows.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// What to do.
    pub step: Step,
    /// The status as it should be.
    pub status: VirtualMachineImageStatus,
    /// When to look again, if nothing happens before.
    pub again: Option<Duration>,
    /// Whether the status tells of a failed transfer, which may be forgotten once it is written.
    pub told_failure: bool,
}

/// Decides about an image whose node is this one.
pub fn plan_image(seen: &Seen<'_>) -> Plan {
    let status = seen.image.status.clone().unwrap_or_default();
    let mut plan = Plan { step: Step::Nothing, status, again: None, told_failure: false };
    let spec = &seen.image.spec;
    if seen.image.metadata.deletion_timestamp.is_some() {
        if seen.transfer.is_some() {
            plan.step = Step::Stop;
        }
        return plan;
    }
    // The class is made by the image controller; clients of Harvester find its name here.
    if let Some(uid) = &seen.image.metadata.uid {
        plan.status.storage_class_name = format!("lh-{uid}");
    }
    match spec.source_type.as_str() {
        "download" => on_download(seen, &mut plan),
        "upload" => on_upload(seen, &mut plan),
        other => {
            let message = format!("sourceType {other} is not supported yet; use download or upload");
            Conditions::of(&mut plan.status, seen.now).set(INITIALIZED, "False", "NotSupported", &message);
        }
    }
    plan
}

fn on_download(seen: &Seen<'_>, plan: &mut Plan) {
    let spec = &seen.image.spec;
    let imported = is_imported(&plan.status);
    if let Some(kept) = seen.kept {
        if imported || kept.url == spec.url {
            if seen.transfer.is_some() {
                plan.step = Step::Stop;
            }
            return on_complete(kept, seen.now, &mut plan.status);
        }
        plan.step = Step::Discard;
        return;
    }
    if imported {
        let message = "the image's file is missing on its node; it is fetched again";
        Conditions::of(&mut plan.status, seen.now).set(MISSING, "True", "FileMissing", message);
    }
    match seen.transfer {
        Some(Transfer::Running { url, .. } | Transfer::Failed { url, .. }) if *url != spec.url => {
            plan.step = Step::Stop;
        }
        Some(Transfer::Running { progress, .. }) => {
            plan.again = Some(LOOK);
            on_progress(progress, &spec.url, imported, seen.now, &mut plan.status);
        }
        Some(Transfer::Failed { why, .. }) => {
            plan.told_failure = true;
            on_failure(why, spec.retry, imported, seen.now, &mut plan.status);
        }
        None => on_idle(seen, imported, plan),
    }
}

/// Nothing is under way: is it time to begin?
fn on_idle(seen: &Seen<'_>, imported: bool, plan: &mut Plan) {
    let spec = &seen.image.spec;
    if plan.status.applied_url != spec.url {
        // A new address deserves a fresh start.
        plan.status.failed = Some(0);
        plan.status.last_failed_time.clear();
        plan.status.applied_url.clone_from(&spec.url);
        Conditions::of(&mut plan.status, seen.now).set(RETRY_LIMIT, "False", "", "");
    }
    let failed = plan.status.failed.unwrap_or(0);
    // Somebody mended the spec: that deserves an attempt at once.
    let mended = seen.tried.is_some_and(|(url, sum)| (url, sum) != (&spec.url, &spec.checksum));
    if failed > 0
        && !mended
        && let Ok(last) = plan.status.last_failed_time.parse::<Timestamp>()
    {
        let due = last + retry_wait(failed);
        if seen.now < due {
            let wait = Duration::try_from(due.duration_since(seen.now)).unwrap_or(Duration::ZERO);
            plan.again = Some(wait.clamp(Duration::from_millis(10), LONGEST_WAIT));
            return;
        }
    }
    let checksum = match spec.checksum.trim() {
        "" => Ok(None),
        text => text.parse().map(Some),
    };
    match checksum {
        Err(error) => {
            let message = format!("spec.checksum is not valid: {error}");
            let mut conditions = Conditions::of(&mut plan.status, seen.now);
            conditions.set(INITIALIZED, "False", "InvalidChecksum", &message);
            conditions.set(IMPORTED, "False", "InvalidChecksum", &message);
        }
        Ok(checksum) => {
            plan.step = Step::Start { url: spec.url.clone(), checksum };
            plan.again = Some(LOOK);
            if failed == 0 {
                on_progress(&Progress::default(), &spec.url, imported, seen.now, &mut plan.status);
            }
        }
    }
}

/// Doubled with every failure; Harvester waits 10 s at least.
fn retry_wait(failed: i32) -> SignedDuration {
    let doublings = u32::try_from(failed.saturating_sub(1)).unwrap_or(0).min(16);
    let wait = FIRST_WAIT.saturating_mul(1 << doublings).min(LONGEST_WAIT);
    SignedDuration::try_from(wait).unwrap_or(SignedDuration::from_secs(300))
}

fn on_upload(seen: &Seen<'_>, plan: &mut Plan) {
    let imported = is_imported(&plan.status);
    if let Some(kept) = seen.kept {
        return on_complete(kept, seen.now, &mut plan.status);
    }
    if imported {
        let message = "the image's file is missing on its node; make the image anew and upload it again";
        Conditions::of(&mut plan.status, seen.now).set(MISSING, "True", "FileMissing", message);
        return;
    }
    match seen.transfer {
        Some(Transfer::Running { progress, .. }) => {
            plan.again = Some(LOOK);
            plan.status.progress = Some(i32::from(progress.percent()));
            let mut conditions = Conditions::of(&mut plan.status, seen.now);
            conditions.set(INITIALIZED, "True", "Initialized", "");
            conditions.set(IMPORTED, "Unknown", "Importing", "the upload is being received");
            conditions.set(RETRY_LIMIT, "False", "", "");
        }
        Some(Transfer::Failed { why, .. }) => {
            plan.told_failure = true;
            plan.status.progress = Some(0);
            plan.status.last_failed_time = text(seen.now);
            let message = format!("the image {why}");
            let mut conditions = Conditions::of(&mut plan.status, seen.now);
            conditions.set(IMPORTED, "False", "UploadFailed", &message);
            conditions.set(RETRY_LIMIT, "True", "UploadFailed", "send the file again, or delete the image");
        }
        None if condition(&plan.status, IMPORTED).is_some_and(|c| c.reason == "UploadFailed") => {}
        None => {
            plan.status.progress = Some(0);
            let mut conditions = Conditions::of(&mut plan.status, seen.now);
            conditions.set(INITIALIZED, "True", "Initialized", "");
            conditions.set(IMPORTED, "Unknown", "Importing", "waiting for the upload");
        }
    }
}

fn on_complete(kept: &Kept, now: Timestamp, status: &mut VirtualMachineImageStatus) {
    status.progress = Some(100);
    status.size = i64::try_from(kept.stored.len).ok();
    status.virtual_size = i64::try_from(kept.stored.virtual_size).ok();
    if !kept.url.is_empty() {
        status.applied_url.clone_from(&kept.url);
    }
    let mut conditions = Conditions::of(status, now);
    conditions.set(INITIALIZED, "True", "Initialized", "");
    conditions.set(IMPORTED, "True", "Imported", "");
    conditions.set(RETRY_LIMIT, "False", "", "");
    if conditions.0.iter().any(|c| c.r#type == MISSING) {
        conditions.set(MISSING, "False", "", "");
    }
}

fn on_progress(
    progress: &Progress,
    url: &str,
    imported: bool,
    now: Timestamp,
    status: &mut VirtualMachineImageStatus,
) {
    status.applied_url = url.to_owned();
    status.progress = Some(i32::from(progress.percent()));
    let mut conditions = Conditions::of(status, now);
    if progress.connected {
        conditions.set(INITIALIZED, "True", "Initialized", "");
    } else if !conditions.is(INITIALIZED, "True") {
        conditions.set(INITIALIZED, "Unknown", "Connecting", "waiting for the server's answer");
    }
    if !imported {
        conditions.set(IMPORTED, "Unknown", "Importing", "");
    }
}

fn on_failure(
    why: &str,
    retry: Option<i32>,
    imported: bool,
    now: Timestamp,
    status: &mut VirtualMachineImageStatus,
) {
    let allowed = retry.unwrap_or(DEFAULT_RETRY);
    // Beyond the limit it counts no further, so that the numbers keep their meaning.
    let failed = status.failed.unwrap_or(0).saturating_add(1).min(allowed.saturating_add(1));
    status.failed = Some(failed);
    status.last_failed_time = text(now);
    status.progress = Some(0);
    let message = format!("the image {why}");
    let attempts = match failed {
        1 => format!("failed due to error: {message}"),
        n => format!("retry attempted {}/{allowed}, failed due to error: {message}", n - 1),
    };
    let exceeded = failed > allowed;
    let (limit, outcome) = if exceeded { ("True", "False") } else { ("False", "Unknown") };
    let mut conditions = Conditions::of(status, now);
    conditions.set(RETRY_LIMIT, limit, if exceeded { "RetryLimitExceeded" } else { "Retrying" }, &attempts);
    if imported {
        return;
    }
    if exceeded || !conditions.is(INITIALIZED, "True") {
        conditions.set(INITIALIZED, outcome, "Failed", &message);
    }
    conditions.set(IMPORTED, outcome, "Failed", &message);
}

/// Whether an image can be used.
pub fn is_imported(status: &VirtualMachineImageStatus) -> bool {
    condition(status, IMPORTED).is_some_and(|condition| condition.status == "True")
}

/// A condition by its type.
pub fn condition<'a>(status: &'a VirtualMachineImageStatus, kind: &str) -> Option<&'a Condition> {
    status.conditions.iter().find(|condition| condition.r#type == kind)
}

/// Times in conditions are text, to the second.
fn text(now: Timestamp) -> String {
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Conditions of Harvester's shape, whose times move only when something does.
struct Conditions<'a>(&'a mut Vec<Condition>, Timestamp);

impl<'a> Conditions<'a> {
    fn of(status: &'a mut VirtualMachineImageStatus, now: Timestamp) -> Self {
        Conditions(&mut status.conditions, now)
    }

    fn is(&self, kind: &str, status: &str) -> bool {
        self.0.iter().any(|condition| condition.r#type == kind && condition.status == status)
    }

    fn set(&mut self, kind: &str, status: &str, reason: &str, message: &str) {
        let now = text(self.1);
        let condition = match self.0.iter().position(|condition| condition.r#type == kind) {
            Some(at) => &mut self.0[at],
            None => {
                self.0.push(Condition { r#type: kind.to_owned(), ..Condition::default() });
                let last = self.0.len() - 1;
                &mut self.0[last]
            }
        };
        if (condition.status.as_str(), condition.reason.as_str(), condition.message.as_str())
            == (status, reason, message)
        {
            return;
        }
        if condition.status != status {
            condition.last_transition_time.clone_from(&now);
        }
        condition.last_update_time = now;
        status.clone_into(&mut condition.status);
        reason.clone_into(&mut condition.reason);
        message.clone_into(&mut condition.message);
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
