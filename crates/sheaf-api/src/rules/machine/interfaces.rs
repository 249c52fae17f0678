//! Rules of networks, interfaces, and both together.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::{Problems, disks};
use crate::kubevirt::{DhcpOptions, Interface, Network, VirtualMachineInstanceSpec};

const MODELS: &[&str] = &["virtio", "e1000", "e1000e", "igb", "ne2k_pci", "pcnet", "rtl8139"];
const PORT_RANGES_MAX: usize = 10;
/// The address that the far end of every NAT has.
const RESERVED_MAC: &str = "02:00:00:00:00:00";

pub(super) fn validate(b: &str, spec: &VirtualMachineInstanceSpec, problems: &mut Problems) {
    networks(b, spec, problems);
    let base = format!("{b}.domain.devices.interfaces");
    let by_name: BTreeMap<&str, &Network> = spec.networks.iter().map(|n| (n.name.as_str(), n)).collect();
    let interfaces = &spec.domain.devices.interfaces;
    let mut names = BTreeSet::new();
    for (i, interface) in interfaces.iter().enumerate() {
        let field = format!("{base}[{i}]");
        let name = interface.name.as_str();
        if !names.insert(name) {
            problems.duplicate(format!("{field}.name"), name);
        }
        if name.is_empty() || !name.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_".contains(&c)) {
            problems.invalid(
                format!("{field}.name"),
                name,
                "Network interface name can only contain alphabetical characters, numbers, dashes (-) or underscores (_)",
            );
        }
        let network = by_name.get(name).copied();
        if network.is_none() {
            problems.invalid(
                format!("{field}.name"),
                name,
                format!("no network of this name in {b}.networks"),
            );
        }
        one(&field, interface, network, problems);
    }
    // Without any interface each network gets one when the instance is made; with some, a missing one is a slip.
    if !interfaces.is_empty() {
        for (i, network) in spec.networks.iter().enumerate() {
            if !names.contains(network.name.as_str()) {
                let field = format!("{b}.networks[{i}].name");
                problems.required(field, &format!("no interface named '{}' in {base}", network.name));
            }
        }
    }
    let macs = interfaces.iter().enumerate().filter(|(_, n)| !n.mac_address.is_empty());
    let mut seen = BTreeSet::new();
    for (i, interface) in macs {
        if !seen.insert(interface.mac_address.to_ascii_lowercase().replace('-', ":")) {
            problems.duplicate(format!("{base}[{i}].macAddress"), interface.mac_address.as_str());
        }
    }
}

fn networks(b: &str, spec: &VirtualMachineInstanceSpec, problems: &mut Problems) {
    let mut names = BTreeSet::new();
    for (i, network) in spec.networks.iter().enumerate() {
        let field = format!("{b}.networks[{i}]");
        if network.name.is_empty() {
            problems.required(format!("{field}.name"), "");
        } else if !names.insert(network.name.as_str()) {
            problems.duplicate(format!("{field}.name"), network.name.as_str());
        }
        let types = [network.pod.is_some(), network.multus.is_some(), network.resource_claim.is_some()];
        match types.iter().filter(|t| **t).count() {
            0 => problems.required(field.clone(), "should have a network type: pod or multus"),
            1 => {}
            _ => problems.forbidden(&field, "should have only one network type"),
        }
        if let Some(multus) = &network.multus {
            let path = format!("{field}.multus.networkName");
            match multus.network_name.split('/').collect::<Vec<_>>().as_slice() {
                [""] => problems.required(path, "NAMESPACE/NAME of a NetworkAttachmentDefinition"),
                [name] | [_, name] if !name.is_empty() => {}
                _ => problems.invalid(path, multus.network_name.as_str(), "must be NAME or NAMESPACE/NAME"),
            }
        }
    }
    let pods = spec.networks.iter().filter(|n| n.pod.is_some()).count();
    if pods > 1 {
        problems.invalid(
            format!("{b}.interfaces"),
            pods,
            "more than one interface is connected to a pod network",
        );
    }
    let defaults =
        spec.networks.iter().filter(|n| n.multus.as_ref().is_some_and(|m| m.default == Some(true)));
    let defaults = defaults.count();
    if defaults > 1 || (defaults == 1 && pods > 0) {
        problems.invalid(
            format!("{b}.networks"),
            defaults,
            "may have one default network: the pod network, or one of multus with default: true",
        );
    }
}

fn one(field: &str, n: &Interface, network: Option<&Network>, problems: &mut Problems) {
    for (name, given) in
        [("slirp", n.slirp.is_some()), ("passt", n.passt.is_some()), ("macvtap", n.macvtap.is_some())]
    {
        if given {
            problems.invalid(format!("{field}.{name}"), name, "is discontinued; use bridge or masquerade");
        }
    }
    let bindings = [
        n.bridge.is_some(),
        n.masquerade.is_some(),
        n.sriov.is_some(),
        n.passt_binding.is_some(),
        n.binding.is_some(),
    ];
    if bindings.iter().filter(|given| **given).count() > 1 {
        problems.invalid(
            format!("{field}.name"),
            n.name.as_str(),
            "must have only one binding of bridge, masquerade, sriov, passtBinding and binding",
        );
    }
    let on_pod = network.is_none_or(|n| n.pod.is_some());
    if n.masquerade.is_some() && !on_pod {
        problems.invalid(
            format!("{field}.name"),
            n.name.as_str(),
            "Masquerade interface only implemented with pod network; use bridge here",
        );
    }
    if n.passt_binding.is_some() && !on_pod {
        problems.invalid(
            format!("{field}.name"),
            n.name.as_str(),
            "passtBinding is only for the pod network",
        );
    }
    problems.one_of(format!("{field}.model"), &n.model, MODELS);
    mac(field, n, problems);
    if !n.pci_address.is_empty() && !disks::is_pci_address(&n.pci_address) {
        problems.invalid(
            format!("{field}.pciAddress"),
            n.pci_address.as_str(),
            "must look like 0000:81:01.0",
        );
    }
    if let Some(index) = n.acpi_index.filter(|i| !(1..=16383).contains(i)) {
        problems.invalid(format!("{field}.acpiIndex"), index, "must be from 1 to 16383");
    }
    ports(field, n, problems);
    if let Some(options) = &n.dhcp_options {
        dhcp(&format!("{field}.dhcpOptions"), options, problems);
    }
    problems.one_of(format!("{field}.state"), &n.state, &["up", "down", "absent"]);
    let fixed = n.sriov.is_some() || n.masquerade.is_some();
    if n.state == "absent" && fixed {
        problems.invalid(
            format!("{field}.state"),
            "absent",
            "only an interface with a bridge can be unplugged",
        );
    }
}

fn mac(field: &str, n: &Interface, problems: &mut Problems) {
    if n.mac_address.is_empty() {
        return;
    }
    let path = format!("{field}.macAddress");
    let plain = n.mac_address.replace('-', ":").to_ascii_lowercase();
    let octets: Option<Vec<u8>> =
        plain.split(':').map(|o| if o.len() == 2 { u8::from_str_radix(o, 16).ok() } else { None }).collect();
    match octets.as_deref() {
        Some(&[first, _, _, _, _, _]) if first & 1 == 1 => {
            problems.invalid(
                path,
                n.mac_address.as_str(),
                "is an address of many stations (its first octet is odd)",
            );
        }
        Some([_, _, _, _, _, _]) if plain == RESERVED_MAC => {
            problems.invalid(path, n.mac_address.as_str(), "is reserved");
        }
        Some([_, _, _, _, _, _]) => {}
        _ => problems.invalid(
            path,
            n.mac_address.as_str(),
            "is malformed: six pairs of hexadecimal digits, as 02:11:22:33:44:55",
        ),
    }
}

fn ports(field: &str, n: &Interface, problems: &mut Problems) {
    let mut names = BTreeSet::new();
    for (i, port) in n.ports.iter().enumerate() {
        let path = format!("{field}.ports[{i}]");
        if !(1..=65535).contains(&port.port) {
            problems.invalid(format!("{path}.port"), port.port, "must be between 1 and 65535, inclusive");
        }
        problems.one_of(format!("{path}.protocol"), &port.protocol, &["TCP", "UDP"]);
        if !port.name.is_empty() && !names.insert(port.name.as_str()) {
            problems.duplicate(format!("{path}.name"), port.name.as_str());
        }
    }
    if n.port_ranges.is_empty() {
        return;
    }
    if !n.ports.is_empty() || n.masquerade.is_none() || n.port_ranges.len() > PORT_RANGES_MAX {
        problems.invalid(
            format!("{field}.name"),
            n.name.as_str(),
            format!(
                "portRanges need masquerade, no ports beside them, and have at most {PORT_RANGES_MAX} entries"
            ),
        );
    }
    for (i, range) in n.port_ranges.iter().enumerate() {
        let path = format!("{field}.portRanges[{i}]");
        for (name, port) in [("start", range.start), ("end", range.end)] {
            if !(1..=65535).contains(&port) {
                problems.invalid(format!("{path}.{name}"), port, "must be between 1 and 65535, inclusive");
            }
        }
        if range.start > range.end {
            problems.invalid(format!("{path}.end"), range.end, "must not be less than start");
        }
        problems.one_of(format!("{path}.protocol"), &range.protocol, &["TCP", "UDP"]);
    }
}

fn dhcp(field: &str, options: &DhcpOptions, problems: &mut Problems) {
    let mut seen = BTreeSet::new();
    for option in &options.private_options {
        let path = format!("{field}.privateOptions");
        if !(224..=254).contains(&option.option) {
            problems.invalid(path.clone(), option.option, "must be from 224 to 254");
        }
        if !seen.insert(option.option) {
            problems.duplicate(path, option.option);
        }
    }
    for (i, server) in options.ntp_servers.iter().enumerate() {
        // Leading zeros are taken as decimal, as they always were.
        let plain: Vec<&str> = server.split('.').map(|o| o.trim_start_matches('0')).collect();
        let plain = plain.iter().map(|o| if o.is_empty() { "0" } else { o }).collect::<Vec<_>>().join(".");
        if plain.parse::<Ipv4Addr>().is_err() {
            problems.invalid(
                format!("{field}.ntpServers[{i}]"),
                server.as_str(),
                "must be a valid IPv4 address",
            );
        }
    }
}
