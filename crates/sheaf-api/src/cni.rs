//! `k8s.cni.cncf.io/v1`: network attachment definitions, and the CNI configuration inside them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::object::{objects, resource};

objects! {
    /// A network that machines can be attached to.
    NetworkAttachmentDefinition {
        api_version: String,
        kind: String,
        metadata: ObjectMeta,
        spec: NetworkAttachmentDefinitionSpec,
    }
    /// How to attach.
    NetworkAttachmentDefinitionSpec {
        /// CNI configuration, as JSON text.
        config: String,
    }
}

resource!(
    NetworkAttachmentDefinition,
    "k8s.cni.cncf.io",
    "v1",
    "network-attachment-definitions",
    NamespaceResourceScope
);

/// The parts of a CNI configuration that Sheaf acts on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NetConf {
    /// Version of the CNI contract, as `0.3.1`.
    pub cni_version: String,
    /// Name of the network.
    pub name: String,
    /// Plugin: `bridge` is the one that machines can use.
    #[serde(rename = "type")]
    pub plugin: String,
    /// Bridge of the node that the port belongs to; by Harvester's convention `CLUSTERNETWORK-br`.
    pub bridge: String,
    /// Whether the bridge's own port is promiscuous.
    pub promisc_mode: bool,
    /// VLAN of the port; absent or 0 is untagged.
    pub vlan: Option<u16>,
    /// VLANs of a trunk.
    pub vlan_trunk: Vec<VlanTrunk>,
    /// Greatest packet, in bytes.
    pub mtu: Option<u32>,
    /// Address management; machines get none from it, so `{}` is usual.
    pub ipam: Option<Value>,
}

/// VLANs that a trunk lets through: one id, or a range.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VlanTrunk {
    /// A single VLAN.
    pub id: Option<u16>,
    /// First VLAN of a range.
    #[serde(rename = "minID")]
    pub min: Option<u16>,
    /// Last VLAN of a range.
    #[serde(rename = "maxID")]
    pub max: Option<u16>,
}

/// Why a CNI configuration was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// Not JSON. The position counts from 1.
    #[error("not valid JSON at line {line} column {column}: {what}")]
    Json {
        /// Line of the mistake.
        line: usize,
        /// Column of the mistake.
        column: usize,
        /// What is wrong there.
        what: String,
    },
    /// JSON of the wrong shape; position as above.
    #[error("at line {line} column {column}: {what}")]
    Shape {
        /// Line of the value.
        line: usize,
        /// Column of the value.
        column: usize,
        /// What is wrong with it.
        what: String,
    },
    /// A value that breaks a rule.
    #[error("{field}: {what}")]
    Value {
        /// Path inside the configuration.
        field: &'static str,
        /// The rule.
        what: String,
    },
}

impl NetConf {
    /// Reads `spec.config`.
    pub fn parse(config: &str) -> Result<Self, ConfigError> {
        let conf: Self = serde_json::from_str(config).map_err(|e| {
            let (line, column) = (e.line(), e.column());
            let text = e.to_string();
            let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what).to_string();
            if e.is_data() {
                ConfigError::Shape { line, column, what }
            } else {
                ConfigError::Json { line, column, what }
            }
        })?;
        conf.check()?;
        Ok(conf)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let bad = |field, what: String| Err(ConfigError::Value { field, what });
        if self.plugin.is_empty() {
            return bad("type", "is required: it names the CNI plugin, for example \"bridge\"".into());
        }
        if self.plugin == "bridge" && self.bridge.is_empty() {
            return bad(
                "bridge",
                "is required for type \"bridge\": the bridge of the node, as \"mgmt-br\"".into(),
            );
        }
        if let Some(vlan) = self.vlan.filter(|v| *v > 4094) {
            return bad("vlan", format!("{vlan} is no VLAN: it must be between 0 (untagged) and 4094"));
        }
        for trunk in &self.vlan_trunk {
            let ids = [trunk.id, trunk.min, trunk.max];
            if let Some(id) = ids.into_iter().flatten().find(|id| !(1..=4094).contains(id)) {
                return bad("vlanTrunk", format!("{id} is no VLAN: it must be between 1 and 4094"));
            }
            if let (Some(min), Some(max)) = (trunk.min, trunk.max)
                && min > max
            {
                return bad("vlanTrunk", format!("minID {min} is greater than maxID {max}"));
            }
        }
        Ok(())
    }
}
