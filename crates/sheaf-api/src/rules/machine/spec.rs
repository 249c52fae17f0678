//! Rules of what runs: the parts that are not hardware, and the call of those that are.

use sheaf_meta::names;

use super::{Problems, disks, domain, interfaces, volumes};
use crate::kubevirt::{AccessCredential, Probe, VirtualMachineInstanceSpec};

const EVICTION: &[&str] = &["None", "LiveMigrate", "LiveMigrateIfPossible", "External"];

/// Checks a spec; `b` is the path at which it lies. `typed` says that an instance type fills in CPU and memory.
pub(super) fn validate(b: &str, spec: &VirtualMachineInstanceSpec, typed: bool, problems: &mut Problems) {
    if !spec.hostname.is_empty() {
        problems.name(&format!("{b}.hostname"), &spec.hostname, names::dns_label);
    }
    if !spec.subdomain.is_empty() {
        problems.name(&format!("{b}.subdomain"), &spec.subdomain, names::dns_subdomain);
    }
    if let Some(seconds) = spec.termination_grace_period_seconds.filter(|s| *s < 0) {
        problems.invalid(format!("{b}.terminationGracePeriodSeconds"), seconds, "must not be negative");
    }
    if let Some(strategy) = &spec.eviction_strategy {
        problems.one_of(format!("{b}.evictionStrategy"), strategy, EVICTION);
    }
    if let Some(strategy) = &spec.start_strategy {
        problems.one_of(format!("{b}.startStrategy"), strategy, &["Paused"]);
        if strategy == "Paused" && spec.liveness_probe.is_some() {
            problems.invalid(
                format!("{b}.startStrategy"),
                strategy.as_str(),
                "cannot go together with livenessProbe, which would restart the paused guest",
            );
        }
    }
    problems.one_of(format!("{b}.architecture"), &spec.architecture, &["amd64", "arm64", "s390x"]);
    for (key, value) in &spec.node_selector {
        problems.name(&format!("{b}.nodeSelector"), key, names::label_key);
        problems.name(&format!("{b}.nodeSelector[{key}]"), value, names::label_value);
    }
    for (name, p) in [("livenessProbe", &spec.liveness_probe), ("readinessProbe", &spec.readiness_probe)] {
        if let Some(p) = p {
            probe(&format!("{b}.{name}"), p, problems);
        }
    }
    dns(b, spec, problems);
    domain::validate(b, spec, typed, problems);
    disks::validate(b, spec, problems);
    volumes::validate(b, spec, problems);
    interfaces::validate(b, spec, problems);
    for (i, credential) in spec.access_credentials.iter().enumerate() {
        access_credential(&format!("{b}.accessCredentials[{i}]"), credential, spec, problems);
    }
}

fn probe(field: &str, p: &Probe, problems: &mut Problems) {
    let handlers =
        [p.exec.is_some(), p.guest_agent_ping.is_some(), p.http_get.is_some(), p.tcp_socket.is_some()];
    match handlers.iter().filter(|h| **h).count() {
        0 => problems.required(field, "one of exec, guestAgentPing, httpGet and tcpSocket must be given"),
        1 => {}
        _ => {
            problems.forbidden(field, "only one of exec, guestAgentPing, httpGet and tcpSocket may be given")
        }
    }
}

fn dns(b: &str, spec: &VirtualMachineInstanceSpec, problems: &mut Problems) {
    let servers = spec.dns_config.as_ref().and_then(|c| c.nameservers.as_ref()).map_or(0, Vec::len);
    if spec.dns_policy == "None" && servers == 0 {
        problems.required(
            format!("{b}.dnsConfig.nameservers"),
            "must provide at least one DNS nameserver when dnsPolicy is None",
        );
    }
    if servers > 3 {
        problems.invalid(
            format!("{b}.dnsConfig.nameservers"),
            servers,
            "must not have more than 3 nameservers",
        );
    }
}

fn access_credential(
    field: &str,
    credential: &AccessCredential,
    spec: &VirtualMachineInstanceSpec,
    problems: &mut Problems,
) {
    match (&credential.ssh_public_key, &credential.user_password) {
        (None, None) => problems.required(field, "one of sshPublicKey and userPassword must be given"),
        (Some(_), Some(_)) => {
            problems.forbidden(field, "only one of sshPublicKey and userPassword may be given");
        }
        (Some(key), None) => {
            let field = format!("{field}.sshPublicKey");
            if key.source.secret.as_ref().is_none_or(|s| s.secret_name.is_empty()) {
                problems.required(format!("{field}.source"), "the secret with the keys must be named");
            }
            let method = &key.propagation_method;
            let path = format!("{field}.propagationMethod");
            let given =
                [method.config_drive.is_some(), method.no_cloud.is_some(), method.qemu_guest_agent.is_some()];
            if given.iter().filter(|g| **g).count() != 1 {
                problems
                    .required(path, "exactly one of configDrive, noCloud and qemuGuestAgent must be given");
                return;
            }
            let drive = spec.volumes.iter().any(|v| v.cloud_init_config_drive.is_some());
            let no_cloud = spec.volumes.iter().any(|v| v.cloud_init_no_cloud.is_some());
            if method.config_drive.is_some() && !drive {
                problems.required(path.clone(), "configDrive needs a cloudInitConfigDrive volume");
            }
            if method.no_cloud.is_some() && !no_cloud {
                problems.required(path.clone(), "noCloud needs a cloudInitNoCloud volume");
            }
            if method.qemu_guest_agent.as_ref().is_some_and(|a| a.users.is_empty()) {
                problems.required(format!("{path}.qemuGuestAgent.users"), "at least one user must be named");
            }
        }
        (None, Some(password)) => {
            let field = format!("{field}.userPassword");
            if password.source.secret.as_ref().is_none_or(|s| s.secret_name.is_empty()) {
                problems.required(format!("{field}.source"), "the secret with the passwords must be named");
            }
            if password.propagation_method.qemu_guest_agent.is_none() {
                problems.required(format!("{field}.propagationMethod"), "qemuGuestAgent must be given");
            }
        }
    }
}
