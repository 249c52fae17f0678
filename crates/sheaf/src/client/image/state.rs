//! What an image's conditions say in one word. Pure; the conditions are the agent's (harvester.md 5.1).

use serde_json::Value;
use sheaf_meta::object;

/// Where an image is between nothing and ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// For its upload, or for a node.
    Waiting,
    /// Bytes come.
    Importing,
    /// Disks can be made of it.
    Ready,
    /// It has ended badly; nothing happens soon without help.
    Failed,
    /// It is being removed.
    Deleting,
}

impl Stage {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Waiting => "Waiting",
            Self::Importing => "Importing",
            Self::Ready => "Ready",
            Self::Failed => "Failed",
            Self::Deleting => "Deleting",
        }
    }
}

/// The state of an image.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ImageState {
    pub(crate) stage: Stage,
    /// Per cent.
    pub(crate) progress: u64,
    /// What its conditions say, where that helps.
    pub(crate) why: String,
}

/// Reads an image's conditions.
pub(crate) fn image_state(image: &Value) -> ImageState {
    let conditions = image.pointer("/status/conditions").and_then(Value::as_array);
    let field = |kind: &str, field: &str| {
        let condition = conditions.into_iter().flatten().find(|c| c["type"] == kind);
        condition.and_then(|c| c[field].as_str()).unwrap_or_default().to_owned()
    };
    let upload = object::str_at(image, &["spec", "sourceType"]) == "upload";
    let progress = image.pointer("/status/progress").and_then(Value::as_u64).unwrap_or(0);
    let message = [field("Imported", "message"), field("Initialized", "message")]
        .into_iter()
        .find(|text| !text.is_empty())
        .unwrap_or_default();
    let imported = field("Imported", "status");
    let (stage, why) = if object::is_deleting(image) {
        (Stage::Deleting, String::new())
    } else if field("BackingImageMissing", "status") == "True" {
        (Stage::Failed, field("BackingImageMissing", "message"))
    } else if imported == "True" {
        (Stage::Ready, String::new())
    } else if field("RetryLimitExceeded", "status") == "True" {
        let limit = field("RetryLimitExceeded", "message");
        (Stage::Failed, if message.is_empty() { limit } else { message })
    } else if upload && field("Imported", "reason") == "UploadFailed" {
        (Stage::Failed, message)
    } else if imported == "Unknown" && (!upload || progress > 0) {
        (Stage::Importing, message)
    } else if imported == "False" && !message.is_empty() {
        // A failed attempt; the next one is due.
        (Stage::Waiting, message)
    } else {
        let why = match (message.is_empty(), upload) {
            (false, _) => message,
            (true, true) => "for its upload".into(),
            (true, false) => "for a node that takes it".into(),
        };
        (Stage::Waiting, why)
    };
    ImageState { stage, progress, why }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn stages() {
        let condition = |kind: &str, status: &str, message: &str| json!({"type": kind, "status": status, "message": message});
        let table = [
            (json!({"spec": {"sourceType": "upload"}}), Stage::Waiting, "for its upload"),
            (json!({"spec": {"sourceType": "download"}}), Stage::Waiting, "for a node that takes it"),
            (json!({"status": {"conditions": [condition("Imported", "Unknown", "")]}}), Stage::Importing, ""),
            (json!({"status": {"conditions": [condition("Imported", "True", "x")]}}), Stage::Ready, ""),
            (
                json!({"status": {"conditions": [condition("Imported", "False", "404 Not Found")]}}),
                Stage::Waiting,
                "404 Not Found",
            ),
            (
                json!({"status": {"conditions": [
                    condition("Imported", "False", "404 Not Found"), condition("RetryLimitExceeded", "True", "")
                ]}}),
                Stage::Failed,
                "404 Not Found",
            ),
            (
                json!({"spec": {"sourceType": "upload"}, "status": {"conditions": [
                    {"type": "Imported", "status": "False", "reason": "UploadFailed", "message": "no image"}
                ]}}),
                Stage::Failed,
                "no image",
            ),
            (
                json!({"status": {"conditions": [
                    condition("Imported", "True", ""), condition("BackingImageMissing", "True", "gone")
                ]}}),
                Stage::Failed,
                "gone",
            ),
            (json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}), Stage::Deleting, ""),
        ];
        for (image, stage, why) in table {
            let state = image_state(&image);
            assert_eq!((state.stage, state.why.as_str()), (stage, why), "{image}");
        }
    }
}
