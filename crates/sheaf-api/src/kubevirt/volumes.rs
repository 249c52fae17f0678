//! Where an instance's data, networks and credentials come from.

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, LocalObjectReference};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::object::{Empty, objects};

objects! {
    /// Data under a name; exactly one source.
    Volume {
        cloud_init_config_drive: Option<CloudInit>,
        cloud_init_no_cloud: Option<CloudInit>,
        config_map: Option<ConfigMapVolume>,
        container_disk: Option<ContainerDisk>,
        container_path: Option<ContainerPath>,
        /// A DataVolume, once it is filled.
        data_volume: Option<DataVolumeName>,
        downward_api as "downwardAPI": Option<DownwardApiVolume>,
        downward_metrics: Option<Empty>,
        /// A new disk at each start.
        empty_disk: Option<EmptyDisk>,
        /// A claim of which writes are forgotten at each stop.
        ephemeral: Option<EphemeralVolume>,
        host_disk: Option<HostDisk>,
        memory_dump: Option<PersistentVolumeClaimName>,
        name: String [required],
        persistent_volume_claim: Option<PersistentVolumeClaimName>,
        secret: Option<SecretVolume>,
        service_account: Option<ServiceAccountVolume>,
        sysprep: Option<Sysprep>,
    }
    /// Seed of cloud-init. Each of the two data is given once: as text, as base64, or in a secret.
    CloudInit {
        network_data: String,
        network_data_base64: String,
        /// Secret with the key networkdata.
        network_data_secret_ref: Option<LocalObjectReference>,
        /// Secret with the key userdata.
        secret_ref: Option<LocalObjectReference>,
        user_data: String,
        user_data_base64: String,
    }
    /// Files from a ConfigMap.
    ConfigMapVolume {
        name: String,
        optional: Option<bool>,
        volume_label: String,
    }
    /// A disk image inside a container image.
    ContainerDisk {
        image: String [required],
        image_pull_policy: String [one_of "Always" "IfNotPresent" "Never"],
        image_pull_secret: String,
        path: String,
    }
    /// A directory of the process that runs the guest.
    ContainerPath {
        path: String [required],
        read_only: Option<bool>,
    }
    /// Names a DataVolume.
    DataVolumeName {
        /// Whether the disk came while the guest ran, and can go so.
        hotpluggable: Option<bool>,
        name: String [required],
    }
    /// Files about the object itself.
    DownwardApiVolume {
        fields: Vec<DownwardAPIVolumeFile>,
        volume_label: String,
    }
    /// A new disk at each start.
    EmptyDisk {
        capacity: Quantity [required],
    }
    /// A claim of which writes are forgotten at each stop.
    EphemeralVolume {
        persistent_volume_claim: Option<PersistentVolumeClaimName>,
    }
    /// A file of the node.
    HostDisk {
        /// Size of a file that is made.
        capacity: Option<Quantity>,
        path: String [required],
        shared: Option<bool>,
        /// Disk for one that exists, DiskOrCreate otherwise.
        r#type: String [required],
    }
    /// Names a claim.
    PersistentVolumeClaimName {
        claim_name: String [required],
        /// Whether the disk came while the guest ran, and can go so.
        hotpluggable: Option<bool>,
        read_only: Option<bool>,
    }
    /// Files from a Secret.
    SecretVolume {
        optional: Option<bool>,
        secret_name: String,
        volume_label: String,
    }
    /// Files of a service account.
    ServiceAccountVolume {
        service_account_name: String,
    }
    /// Answers for the set-up of Windows.
    Sysprep {
        config_map: Option<LocalObjectReference>,
        secret: Option<LocalObjectReference>,
    }
    /// A claim that is there for the process that runs the guest, not for the guest.
    UtilityVolume {
        claim_name: String [required],
        name: String [required],
        read_only: Option<bool>,
        r#type: Option<String>,
    }
    /// What an interface is connected to; exactly one.
    Network {
        /// A network attachment definition.
        multus: Option<MultusNetwork>,
        name: String [required],
        /// The management network.
        pod: Option<PodNetwork>,
        resource_claim: Option<ClaimRequest>,
    }
    /// Names a network attachment definition.
    MultusNetwork {
        default: Option<bool>,
        /// NAME or NAMESPACE/NAME.
        network_name: String [required],
    }
    /// The management network.
    PodNetwork {
        vm_ipv6_network_cidr as "vmIPv6NetworkCIDR": String,
        /// Addresses behind masquerade.
        vm_network_cidr as "vmNetworkCIDR": String,
    }
    /// A request within a resource claim.
    ClaimRequest {
        claim_name: Option<String>,
        request_name: Option<String>,
    }
    /// A credential to be put into the guest.
    AccessCredential {
        ssh_public_key: Option<SshPublicKeyCredential>,
        user_password: Option<UserPasswordCredential>,
    }
    /// SSH keys, by a secret whose values are public keys.
    SshPublicKeyCredential {
        propagation_method: SshKeyPropagation [required],
        source: CredentialSource [required],
    }
    /// The way into the guest; exactly one.
    SshKeyPropagation {
        config_drive: Option<Empty>,
        no_cloud: Option<Empty>,
        qemu_guest_agent: Option<GuestAgentUsers>,
    }
    /// Users whose keys are written by the guest agent.
    GuestAgentUsers {
        users: Vec<String> [required; set],
    }
    /// Passwords, by a secret of user to password.
    UserPasswordCredential {
        propagation_method: PasswordPropagation [required],
        source: CredentialSource [required],
    }
    /// The way into the guest.
    PasswordPropagation {
        qemu_guest_agent: Option<Empty>,
    }
    /// Where credentials are.
    CredentialSource {
        secret: Option<CredentialSecret>,
    }
    /// A secret in the namespace of the instance.
    CredentialSecret {
        secret_name: String [required],
    }
}
