//! Rules of services, ingresses, network policies and endpoints. Words as Kubernetes' own validation has them.

use std::net::IpAddr;

use serde_json::{Value, json};
use sheaf_meta::names;

use super::super::Problems;
use super::At;

pub(super) fn service(at: &At<'_>, problems: &mut Problems) {
    let (ty, ip) = (at.text("/spec/type"), at.text("/spec/clusterIP"));
    let ports = at.list("/spec/ports");
    if ports.is_empty() && ty != "ExternalName" && ip != "None" {
        problems.required("spec.ports", "");
    }
    for (i, port) in ports.iter().enumerate() {
        if ports.len() > 1 && port["name"].as_str().unwrap_or("").is_empty() {
            problems.required(format!("spec.ports[{i}].name"), "");
        }
        if port["nodePort"].as_i64().is_some_and(|p| p > 0) && matches!(ty, "ClusterIP" | "ExternalName") {
            problems
                .forbidden(format!("spec.ports[{i}].nodePort"), "may not be used when `type` is 'ClusterIP'");
        }
    }
    match ty {
        "ExternalName" => {
            let name = at.text("/spec/externalName").trim_end_matches('.');
            if name.is_empty() {
                problems.required("spec.externalName", "");
            } else {
                problems.name("spec.externalName", name, names::dns_subdomain);
            }
        }
        "LoadBalancer" | "NodePort" if ip == "None" => {
            problems.invalid("spec.clusterIPs[0]", ip, format!("may not be set to 'None' for {ty} services"))
        }
        _ => {}
    }
    for (i, ip) in at.list("/spec/clusterIPs").iter().enumerate() {
        address(ip, &format!("spec.clusterIPs[{i}]"), &["None"], problems);
    }
    if let Some(first) = at.list("/spec/clusterIPs").first()
        && *first != ip
    {
        problems.invalid(
            "spec.clusterIPs",
            at.get("/spec/clusterIPs").cloned().unwrap_or_default(),
            "first value must match `clusterIP`",
        );
    }
    for (i, ip) in at.list("/spec/externalIPs").iter().enumerate() {
        reachable_address(ip, &format!("spec.externalIPs[{i}]"), problems);
    }
    let class = at.text("/spec/loadBalancerClass");
    if !class.is_empty() && ty != "LoadBalancer" {
        problems.forbidden("spec.loadBalancerClass", "may only be used when `type` is 'LoadBalancer'");
    }
    const INGRESS: &str = "/status/loadBalancer/ingress";
    if ty != "LoadBalancer" && at.changed(INGRESS) && !at.list(INGRESS).is_empty() {
        let why = "may only be used when `spec.type` is \"LoadBalancer\"";
        problems.forbidden("status.loadBalancer.ingress", why);
    }
    let Some(old) = at.old else { return };
    let before = super::find(old, "/spec/clusterIP").and_then(Value::as_str).unwrap_or("");
    let was = super::find(old, "/spec/type").and_then(Value::as_str).unwrap_or("");
    if !before.is_empty() && before != ip && ty != "ExternalName" && was != "ExternalName" {
        let given = at.get("/spec/clusterIPs").cloned().unwrap_or(json!([]));
        problems.invalid("spec.clusterIPs[0]", given, "may not change once set");
    }
}

fn address(value: &Value, field: &str, words: &[&str], problems: &mut Problems) {
    let text = value.as_str().unwrap_or("");
    if !words.contains(&text) {
        problems.name(field, text, names::ip_address);
    }
}

/// An address of either family that is [`reachable`].
fn reachable_address(value: &Value, field: &str, problems: &mut Problems) {
    let text = value.as_str().unwrap_or("");
    match text.parse() {
        Ok(ip) => reachable(ip, field, text, problems),
        Err(_) => address(value, field, &[], problems),
    }
}

/// An address that means one thing wherever it is used. Kubernetes refuses loopback addresses too; here they lead to what runs on the
/// server's own machine.
fn reachable(ip: IpAddr, field: &str, text: &str, problems: &mut Problems) {
    if ip.is_unspecified() {
        problems.invalid(field, text, format!("may not be unspecified ({text})"));
    }
    let (local, cast) = match ip.to_canonical() {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => (v6.is_unicast_link_local(), v6.segments()[0] & 0xff0f == 0xff02),
    };
    if local {
        problems.invalid(field, text, "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    if cast {
        problems.invalid(
            field,
            text,
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)",
        );
    }
}

pub(super) fn ingress(at: &At<'_>, problems: &mut Problems) {
    let rules = at.list("/spec/rules");
    if rules.is_empty() && at.get("/spec/defaultBackend").is_none() {
        problems.invalid(
            "spec",
            at.get("/spec").cloned().unwrap_or_default(),
            "either `defaultBackend` or `rules` must be specified",
        );
    }
    for (i, rule) in rules.iter().enumerate() {
        let field = format!("spec.rules[{i}].host");
        let host = rule["host"].as_str().unwrap_or("");
        if host.parse::<IpAddr>().is_ok() {
            problems.invalid(field, host, "must be a DNS name, not an IP address");
        } else if let Some(rest) = host.strip_prefix("*.") {
            problems.name(&field, rest, names::dns_subdomain);
        } else if !host.is_empty() {
            problems.name(&field, host, names::dns_subdomain);
        }
    }
    let class = at.text("/spec/ingressClassName");
    if !class.is_empty() {
        problems.name("spec.ingressClassName", class, names::dns_subdomain);
    }
}

pub(super) fn path(at: &At<'_>, problems: &mut Problems) {
    let (path, ty) = (at.text("/path"), at.text("/pathType"));
    if (ty == "ImplementationSpecific" && path.is_empty()) || ty.is_empty() {
        return;
    }
    if !path.starts_with('/') {
        problems.invalid(at.field("path"), path, "must be an absolute path");
    }
    for part in ["//", "/./", "/../", "%2f", "%2F"] {
        if ty != "ImplementationSpecific" && path.contains(part) {
            problems.invalid(at.field("path"), path, format!("must not contain '{part}'"));
        }
    }
}

pub(super) fn backend(at: &At<'_>, problems: &mut Problems) {
    let (service, resource) = (at.get("/service"), at.get("/resource"));
    match (service, resource) {
        (Some(_), Some(_)) => {
            problems.invalid(at.path, "", "cannot set both resource and service backends");
        }
        (None, None) => problems.required(at.path, "must specify either `service` or `resource`"),
        (Some(service), None) => {
            let port = &service["port"];
            let (name, number) = (port["name"].as_str().unwrap_or(""), port["number"].as_i64().unwrap_or(0));
            if !name.is_empty() && number != 0 {
                problems.invalid(
                    at.field("service.port"),
                    port.clone(),
                    "cannot set both port name & port number",
                );
            } else if name.is_empty() && number == 0 {
                problems.required(at.field("service.port"), "port name or number is required");
            }
        }
        (None, Some(_)) => {}
    }
}

pub(super) fn ip_block(at: &At<'_>, problems: &mut Problems) {
    let cidr = at.text("/cidr");
    if !cidr.is_empty() && !is_cidr(cidr) {
        problems.invalid(at.field("cidr"), cidr, CIDR);
    }
    for (i, except) in at.list("/except").iter().filter_map(Value::as_str).enumerate() {
        if !is_cidr(except) {
            problems.invalid(at.field(&format!("except[{i}]")), except, CIDR);
        }
    }
}

const CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

fn is_cidr(text: &str) -> bool {
    let Some((ip, bits)) = text.split_once('/') else { return false };
    let Ok(ip) = ip.parse::<IpAddr>() else { return false };
    bits.parse::<u8>().is_ok_and(|bits| bits <= if ip.is_ipv4() { 32 } else { 128 })
}

/// The ranges of services' addresses: at most one of each family. A second may be added; nothing else changes.
pub(super) fn cidrs(at: &At<'_>, problems: &mut Problems) {
    let list = at.list("/cidrs");
    let field = at.field("cidrs");
    if let Some(old) = at.old {
        let before = super::find(old, "/cidrs").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        if list.len() < before.len() || list[..before.len()] != *before {
            let given = at.get("/cidrs").cloned().unwrap_or_default();
            return problems.invalid(field, given, super::IMMUTABLE);
        }
    }
    if list.is_empty() {
        return problems.required(field, "at least one CIDR required");
    }
    let spec = || Value::Object(at.map.clone());
    if list.len() > 2 {
        return problems.invalid(field, spec(), "may only hold up to 2 values");
    }
    let six = |cidr: &Value| cidr.as_str().is_some_and(|c| c.contains(':'));
    if list.len() == 2 && six(&list[0]) == six(&list[1]) {
        let why = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
        return problems.invalid(field, spec(), why);
    }
    for (i, cidr) in list.iter().enumerate() {
        let text = cidr.as_str().unwrap_or("");
        if !is_cidr(text) {
            problems.invalid(format!("{field}[{i}]"), text, CIDR);
        }
    }
}

pub(super) fn endpoints(at: &At<'_>, problems: &mut Problems) {
    for (i, subset) in at.list("/subsets").iter().enumerate() {
        let both =
            ["addresses", "notReadyAddresses"].map(|l| subset[l].as_array().map_or(&[][..], Vec::as_slice));
        if both.iter().all(|l| l.is_empty()) {
            problems.required(format!("subsets[{i}]"), "must specify `addresses` or `notReadyAddresses`");
        }
        for (list, name) in both.iter().zip(["addresses", "notReadyAddresses"]) {
            for (j, entry) in list.iter().enumerate() {
                reachable_address(&entry["ip"], &format!("subsets[{i}].{name}[{j}].ip"), problems);
            }
        }
    }
}

/// Most endpoints and ports of one slice.
const ENDPOINTS_MAX: usize = 1000;
const PORTS_MAX: usize = 20_000;

pub(super) fn slice(at: &At<'_>, problems: &mut Problems) {
    let family = at.text("/addressType");
    for (field, count, most) in [
        ("endpoints", at.list("/endpoints").len(), ENDPOINTS_MAX),
        ("ports", at.list("/ports").len(), PORTS_MAX),
    ] {
        if count > most {
            problems.list.push(sheaf_meta::status::FieldError {
                field: field.into(),
                reason: "FieldValueTooMany".into(),
                message: format!("Too many: {count}: must have at most {most} items"),
            });
        }
    }
    for (i, endpoint) in at.list("/endpoints").iter().enumerate() {
        for (j, entry) in endpoint["addresses"].as_array().into_iter().flatten().enumerate() {
            let (field, text) = (format!("endpoints[{i}].addresses[{j}]"), entry.as_str().unwrap_or(""));
            match (family, text.parse::<IpAddr>()) {
                ("FQDN", _) => problems.name(&field, text, names::dns_subdomain),
                ("IPv4", Ok(ip @ IpAddr::V4(_))) | ("IPv6", Ok(ip @ IpAddr::V6(_))) => {
                    reachable(ip, &field, text, problems);
                }
                ("IPv4", _) => problems.invalid(field, text, "must be a valid IPv4 address"),
                ("IPv6", _) => problems.invalid(field, text, "must be a valid IPv6 address"),
                _ => {}
            }
        }
    }
}
