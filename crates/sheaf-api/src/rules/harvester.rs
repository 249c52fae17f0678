//! Rules of images, key pairs, settings and network attachment definitions.

use serde_json::{Value, json};
use sheaf_meta::names;
use sheaf_meta::object::find;

use super::ssh::PublicKey;
use super::{Problems, at, changed, fill, text};
use crate::cni::NetConf;

/// Label by which images are found by the name that people see.
const DISPLAY_NAME: &str = "harvesterhci.io/imageDisplayName";

pub(super) fn default_image(o: &mut Value, old: Option<&Value>) {
    let shown = text(o, "/spec/displayName").to_string();
    if let Some(spec) = at(o, &["spec"]) {
        fill(spec, "backend", "backingimage");
    }
    // Names that are no label value are refused below; the label follows the name only then.
    if old.is_none()
        && !shown.is_empty()
        && names::label_value(&shown).is_empty()
        && let Some(labels) = at(o, &["metadata", "labels"])
    {
        labels.insert(DISPLAY_NAME.into(), json!(shown));
    }
}

pub(super) fn validate_image(o: &Value, old: Option<&Value>, problems: &mut Problems) {
    let Some(old) = old else {
        new_image(o, problems);
        return;
    };
    let fixed = [
        "displayName",
        "url",
        "sourceType",
        "pvcName",
        "pvcNamespace",
        "storageClassParameters",
        "securityParameters",
    ];
    for field in fixed {
        if changed(o, old, &format!("/spec/{field}")) {
            problems.invalid(
                format!("spec.{field}"),
                o["spec"][field].clone(),
                "field is immutable: make another image",
            );
        }
    }
}

fn new_image(o: &Value, problems: &mut Problems) {
    let shown = text(o, "/spec/displayName");
    if shown.is_empty() {
        problems.required("spec.displayName", "the name that people see");
    } else {
        problems.name("spec.displayName", shown, names::label_value);
    }
    let (source, url) = (text(o, "/spec/sourceType"), text(o, "/spec/url"));
    match source {
        "download" | "restore" if url.is_empty() => {
            problems.required("spec.url", &format!("sourceType {source} needs the address of the file"));
        }
        "download" if !(url.starts_with("http://") || url.starts_with("https://")) => {
            problems.invalid("spec.url", url, "must begin with http:// or https://");
        }
        "download" | "restore" => {}
        _ if !url.is_empty() => {
            problems.invalid("spec.url", url, format!("must be empty for sourceType {source}"))
        }
        "export-from-volume" => {
            for field in ["pvcName", "pvcNamespace"] {
                if text(o, &format!("/spec/{field}")).is_empty() {
                    problems
                        .required(format!("spec.{field}"), "sourceType export-from-volume needs the claim");
                }
            }
        }
        "clone" if find(o, "/spec/securityParameters").is_none() => {
            problems.required("spec.securityParameters", "sourceType clone needs the source image");
        }
        _ => {}
    }
    let checksum = text(o, "/spec/checksum");
    let good = checksum.len() == 128 && checksum.bytes().all(|b| b.is_ascii_hexdigit());
    if !checksum.is_empty() && !good {
        problems.invalid("spec.checksum", checksum, "must be SHA-512: 128 hexadecimal digits");
    }
}

/// Reads the key and says so in the status, which in this kind is no subresource.
pub(super) fn default_key_pair(o: &mut Value, _: Option<&Value>) {
    let Ok(key) = PublicKey::parse(text(o, "/spec/publicKey")) else { return };
    let (fingerprint, at_time) = (key.fingerprint(), text(o, "/metadata/creationTimestamp").to_string());
    if text(o, "/status/fingerPrint") == fingerprint {
        return;
    }
    if let Some(status) = at(o, &["status"]) {
        status.insert("fingerPrint".into(), json!(fingerprint));
        let mut condition = json!({"type": "validated", "status": "True"});
        if !at_time.is_empty() {
            condition["lastUpdateTime"] = json!(at_time);
        }
        status.insert("conditions".into(), json!([condition]));
    }
}

pub(super) fn validate_key_pair(o: &Value, _: Option<&Value>, problems: &mut Problems) {
    if let Err(e) = PublicKey::parse(text(o, "/spec/publicKey")) {
        let shown: String = text(o, "/spec/publicKey").chars().take(40).collect();
        // A private key that somebody pasted is not repeated.
        let shown = if shown.contains("PRIVATE") { String::new() } else { shown };
        problems.invalid("spec.publicKey", shown, e);
    }
}

pub(super) fn validate_attachment(o: &Value, _: Option<&Value>, problems: &mut Problems) {
    let config = text(o, "/spec/config");
    if config.is_empty() {
        problems.required("spec.config", "the CNI configuration, as JSON text");
    } else if let Err(e) = NetConf::parse(config) {
        problems.invalid("spec.config", config, e);
    }
}

/// What the value of a setting must be. Settings that are not listed take any text.
enum Form {
    Integer(i64, i64),
    Boolean,
    OneOf(&'static [&'static str]),
    /// Zero or within the bounds.
    Ratio(f64, f64),
    Json,
    Label,
    Overcommit,
    ResetPolicy,
}

const SETTINGS: &[(&str, Form)] = &[
    ("additional-guest-memory-overhead-ratio", Form::Ratio(1.0, 10.0)),
    ("auto-rotate-rke2-certs", Form::Json),
    ("backup-target", Form::Json),
    ("cluster-pod-security-standard", Form::Json),
    ("containerd-registry", Form::Json),
    ("csi-driver-config", Form::Json),
    ("csi-online-expand-validation", Form::Json),
    ("default-vm-termination-grace-period-seconds", Form::Integer(0, i64::MAX)),
    ("harvester-csi-ccm-versions", Form::Json),
    ("http-proxy", Form::Json),
    ("instance-manager-resources", Form::Json),
    ("kubeconfig-default-token-ttl-minutes", Form::Integer(0, 52_560_000)),
    ("kubevirt-migration", Form::Json),
    ("log-level", Form::OneOf(&["info", "debug", "trace"])),
    ("longhorn-v2-data-engine-enabled", Form::Boolean),
    ("max-hotplug-ratio", Form::Integer(1, 20)),
    ("ntp-servers", Form::Json),
    ("overcommit-config", Form::Overcommit),
    ("rancher-cluster", Form::Json),
    ("rwx-network", Form::Json),
    ("ssl-certificates", Form::Json),
    ("ssl-parameters", Form::Json),
    ("storage-network", Form::Json),
    ("support-bundle-expiration", Form::Integer(0, i64::MAX)),
    ("support-bundle-file-name", Form::Label),
    ("support-bundle-node-collection-timeout", Form::Integer(0, i64::MAX)),
    ("support-bundle-timeout", Form::Integer(0, i64::MAX)),
    ("traefik-default-tls-options", Form::Json),
    ("ui-source", Form::OneOf(&["auto", "external", "bundled"])),
    ("upgrade-checker-enabled", Form::Boolean),
    ("upgrade-config", Form::Json),
    ("vip-pools", Form::Json),
    ("vm-force-reset-policy", Form::ResetPolicy),
    ("vm-migration-network", Form::Json),
];

pub(super) fn validate_setting(o: &Value, _: Option<&Value>, problems: &mut Problems) {
    let name = text(o, "/metadata/name");
    let Some((_, form)) = SETTINGS.iter().find(|(n, _)| *n == name) else { return };
    // The default is in force where there is no value, so it has to be right as well.
    for field in ["value", "default"] {
        let value = text(o, &format!("/{field}"));
        if let Some(why) = (!value.is_empty()).then(|| form.broken(value)).flatten() {
            problems.invalid(field, value, why);
        }
    }
}

impl Form {
    /// Why a value is not of this form.
    fn broken(&self, value: &str) -> Option<String> {
        let number = || value.parse::<i64>().ok();
        match self {
            Form::Integer(min, i64::MAX) => {
                number().is_none_or(|n| n < *min).then(|| format!("must be an integer of at least {min}"))
            }
            Form::Integer(min, max) => (!number().is_some_and(|n| (*min..=*max).contains(&n)))
                .then(|| format!("must be an integer from {min} to {max}")),
            Form::Boolean => (!matches!(value, "true" | "false")).then(|| "must be true or false".into()),
            Form::OneOf(words) => {
                (!words.contains(&value)).then(|| format!("must be one of {}", words.join(", ")))
            }
            Form::Ratio(min, max) => {
                let good = value.parse::<f64>().is_ok_and(|r| r == 0.0 || (*min..=*max).contains(&r));
                (!good).then(|| format!("must be 0 or a number from {min:.1} to {max:.1}"))
            }
            Form::Label => names::dns_label(value).into_iter().next(),
            Form::Json => serde_json::from_str::<Value>(value).err().map(|e| format!("is no JSON: {e}")),
            Form::Overcommit => parts(value, &["cpu", "memory", "storage"], 100),
            Form::ResetPolicy => {
                parts(value, &["period"], 1).or_else(|| parts(value, &["vmMigrationTimeout"], 0))
            }
        }
    }
}

/// Checks that parts of a JSON object, if they are there, are integers of at least `min`.
fn parts(value: &str, names: &[&str], min: i64) -> Option<String> {
    let value: Value = match serde_json::from_str(value) {
        Ok(value) => value,
        Err(e) => return Some(format!("is no JSON: {e}")),
    };
    if !value.is_object() {
        return Some("must be a JSON object".into());
    }
    let bad = names.iter().find(|n| value.get(**n).is_some_and(|v| v.as_i64().is_none_or(|v| v < min)));
    bad.map(|name| format!("{name} must be an integer of at least {min}"))
}
