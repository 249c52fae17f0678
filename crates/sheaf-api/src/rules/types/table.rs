//! Reads `table.txt`, whose head says how it is written.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::Value;
use sheaf_meta::names;

use super::{CheckFn, DefaultFn, access, cluster, defaults, networks, pods, policies, workloads};

const TEXT: &str = include_str!("table.txt");

/// What is known of a type.
#[derive(Debug, Clone, Default)]
pub(super) struct TypeRule {
    pub(super) fields: BTreeMap<&'static str, FieldRule>,
    pub(super) defaults: Vec<DefaultFn>,
    pub(super) checks: Vec<CheckFn>,
}

/// What is known of a field.
#[derive(Debug, Clone, Default)]
pub(super) struct FieldRule {
    pub(super) default: Option<Value>,
    /// Whether an explicit zero counts as not given.
    pub(super) zero_is_unset: bool,
    pub(super) checks: Vec<Check>,
}

impl FieldRule {
    pub(super) fn is_empty(&self) -> bool {
        self.default.is_none() && self.checks.is_empty()
    }
}

/// One rule of one field.
#[derive(Debug, Clone)]
pub(super) enum Check {
    Required,
    Fixed,
    Least(i64),
    Most(i64),
    /// A number or, where a text is allowed, a name.
    Port,
    OneOf(Vec<Box<str>>),
    Name(fn(&str) -> Vec<String>),
    Labels,
    /// Elements differ in this field; in themselves if it is empty.
    Unique(Box<str>),
    NotNegative,
}

/// Rules by the short name of the type.
pub(super) static TABLE: LazyLock<BTreeMap<&'static str, TypeRule>> = LazyLock::new(|| parse(TEXT));

/// `core.v1.Pod` for `io.k8s.api.core.v1.Pod`.
pub(super) fn short(definition: &str) -> &str {
    ["io.k8s.api.", "io.k8s.apimachinery.pkg.apis.", "io.k8s.kube-aggregator.pkg.apis."]
        .iter()
        .find_map(|prefix| definition.strip_prefix(prefix))
        .unwrap_or(definition)
}

fn parse(text: &'static str) -> BTreeMap<&'static str, TypeRule> {
    let mut table: BTreeMap<&'static str, TypeRule> = BTreeMap::new();
    let mut current = "";
    for line in text.lines().filter(|l| !l.trim().is_empty() && !l.starts_with('#')) {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        if !line.starts_with(' ') {
            current = first;
            let rule = table.entry(first).or_default();
            for word in words {
                functions(word, rule);
            }
        } else if let Some(rule) = table.get_mut(current) {
            let field = rule.fields.entry(first).or_default();
            for word in words {
                read(word, field);
            }
        }
    }
    table
}

fn read(word: &str, field: &mut FieldRule) {
    let inside = |name: &str| word.strip_prefix(name)?.strip_prefix('(')?.strip_suffix(')');
    if let Some(json) = word.strip_prefix(":=").or_else(|| word.strip_prefix('=')) {
        field.zero_is_unset = word.starts_with(':');
        field.default = serde_json::from_str(json).ok();
        debug_assert!(field.default.is_some(), "{word} is no default");
        return;
    }
    let number = |text: &str| text.parse().unwrap_or_default();
    let check = match word {
        "!" => Check::Required,
        "fixed" => Check::Fixed,
        "port" => Check::Port,
        "label" => Check::Name(names::dns_label),
        "subdomain" => Check::Name(names::dns_subdomain),
        "segment" => Check::Name(names::path_segment),
        "qualified" => Check::Name(names::qualified_name),
        "labelkey" => Check::Name(names::label_key),
        "datakey" => Check::Name(names::config_map_key),
        "labels" => Check::Labels,
        "amount" => Check::NotNegative,
        "unique" => Check::Unique("".into()),
        _ if word.starts_with(">=") => Check::Least(number(&word[2..])),
        _ if word.starts_with("<=") => Check::Most(number(&word[2..])),
        _ => match (inside("in"), inside("unique")) {
            (Some(words), _) => Check::OneOf(words.split(',').map(Into::into).collect()),
            (_, Some(key)) => Check::Unique(key.into()),
            _ => unreachable!("the table has the word {word}"),
        },
    };
    field.checks.push(check);
}

/// Functions that a type names: of one word, what completes it and what judges it.
fn functions(word: &str, rule: &mut TypeRule) {
    let (default, check): (Option<DefaultFn>, Option<CheckFn>) = match word {
        "@pod" => (Some(defaults::pod), Some(pods::pod)),
        "@nodespec" => (Some(defaults::node_spec), None),
        "@podspec" => (Some(defaults::pod_spec), Some(pods::spec)),
        "@container" => (Some(defaults::container), Some(pods::container)),
        "@ephemeral" => (Some(defaults::container), None),
        "@resources" => (None, Some(pods::resources)),
        "@probe" => (None, Some(pods::probe)),
        "@envvar" => (None, Some(pods::env)),
        "@volume" => (Some(defaults::volume), Some(pods::volume)),
        "@toleration" => (None, Some(pods::toleration)),
        "@template" => (None, Some(pods::template)),
        "@requirement" => (None, Some(pods::requirement)),
        "@selector" => (None, Some(pods::selector)),
        "@service" => (Some(defaults::service), Some(networks::service)),
        "@serviceport" => (Some(defaults::service_port), None),
        "@ingress" => (None, Some(networks::ingress)),
        "@ingresspath" => (None, Some(networks::path)),
        "@backend" => (None, Some(networks::backend)),
        "@netpolicy" => (Some(defaults::network_policy), None),
        "@ipblock" => (None, Some(networks::ip_block)),
        "@cidrs" => (None, Some(networks::cidrs)),
        "@endpoints" => (None, Some(networks::endpoints)),
        "@slice" => (None, Some(networks::slice)),
        "@rc" => (Some(defaults::replication_controller), Some(workloads::replication_controller)),
        "@deployment" => (Some(defaults::deployment), Some(workloads::deployment)),
        "@replicaset" => (None, Some(workloads::replica_set)),
        "@daemonset" => (Some(defaults::daemon_set), Some(workloads::daemon_set)),
        "@statefulset" => (Some(defaults::stateful_set), Some(workloads::stateful_set)),
        "@job" => (Some(defaults::job), Some(workloads::job)),
        "@cronjob" => (None, Some(workloads::cron_job)),
        "@revision" => (None, Some(workloads::revision)),
        "@hpa" => (Some(defaults::autoscaler), Some(workloads::autoscaler)),
        "@hpaold" => (Some(defaults::old_autoscaler), Some(workloads::autoscaler)),
        "@pdb" => (None, Some(workloads::disruption_budget)),
        "@limititem" => (Some(defaults::limit_item), Some(cluster::limit_item)),
        "@quota" => (None, Some(cluster::quota)),
        "@role" => (None, Some(access::role)),
        "@roleref" => (Some(defaults::role_ref), None),
        "@subject" => (Some(defaults::subject), None),
        "@binding" => (None, Some(access::binding)),
        "@priority" => (None, Some(cluster::priority_class)),
        "@csidriver" => (None, Some(cluster::csi_driver)),
        "@csinode" => (None, Some(cluster::csi_node)),
        "@capacity" => (None, Some(cluster::storage_capacity)),
        "@fixedspec" => (None, Some(cluster::fixed_spec)),
        "@policyspec" => (None, Some(policies::spec)),
        "@validation" => (None, Some(policies::validation)),
        "@bindingspec" => (None, Some(policies::binding_spec)),
        "@paramref" => (None, Some(policies::param_ref)),
        _ => unreachable!("the table names {word}"),
    };
    rule.defaults.extend(default);
    rule.checks.extend(check);
}
