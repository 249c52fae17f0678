//! `harvesterhci.io/v1beta1`: images, SSH keys and settings, and the annotations of the group that others read.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::object::{objects, resource};

objects! {
    /// A disk image from which volumes are made.
    VirtualMachineImage {
        api_version: String,
        kind: String,
        metadata: ObjectMeta,
        spec: VirtualMachineImageSpec [required],
        status: Option<VirtualMachineImageStatus>,
    }
    /// Where the image comes from, and how it is kept.
    VirtualMachineImageSpec {
        /// How the image is kept: backingimage or cdi.
        backend: String [one_of "backingimage" "cdi"; default "\"backingimage\""],
        /// SHA-512 of the file, as hexadecimal digits.
        checksum: String,
        description: String,
        /// Name for people, unique within the namespace.
        display_name: String [required],
        /// Claim whose content becomes the image (sourceType export-from-volume).
        pvc_name: String,
        pvc_namespace: String,
        /// How often a failed download is tried again.
        retry: Option<i32> [min "0"; max "10"; default "3"],
        security_parameters: Option<SecurityParameters>,
        /// Where the image comes from.
        source_type: String [required; one_of "download" "upload" "export-from-volume" "restore" "clone"],
        /// Parameters of the storage class that is made for the image.
        storage_class_parameters: BTreeMap<String, String>,
        target_storage_class_name: String,
        /// Address of the file (sourceType download).
        url: String,
    }
    /// Another image that is to be encrypted or decrypted.
    SecurityParameters {
        crypto_operation: String [required; one_of "encrypt" "decrypt"],
        source_image_name: String [required],
        source_image_namespace: String [required],
    }
    /// How far the image is.
    VirtualMachineImageStatus {
        /// Address that was fetched.
        applied_url: String,
        backup_target: Option<BackupTarget>,
        conditions: Vec<Condition>,
        /// Failed attempts so far.
        failed: Option<i32> [min "0"; default "0"],
        last_failed_time: String,
        /// Per cent.
        progress: Option<i32>,
        /// Bytes that the file has.
        size: Option<i64>,
        /// Storage class that makes volumes of this image.
        storage_class_name: String,
        target_storage_class_name: String,
        /// Bytes that a disk made of it has.
        virtual_size: Option<i64>,
    }
    /// Backup store that the image came from.
    BackupTarget {
        bucket_name: String,
        bucket_region: String,
        endpoint: String,
    }
    /// A statement about an object that is true, false or unknown. Times are text.
    Condition {
        last_transition_time: String,
        last_update_time: String,
        message: String,
        reason: String,
        /// True, False or Unknown.
        status: String [required],
        r#type: String [required],
    }
    /// A public SSH key that can be given to machines.
    KeyPair {
        api_version: String,
        kind: String,
        metadata: ObjectMeta,
        spec: KeyPairSpec [required],
        status: Option<KeyPairStatus>,
    }
    /// The key.
    KeyPairSpec {
        /// One line as in authorized_keys.
        public_key: String [required],
    }
    /// What was found out about the key.
    KeyPairStatus {
        conditions: Vec<Condition>,
        /// MD5 fingerprint, pairs of hexadecimal digits parted by colons.
        finger_print: String,
    }
    /// A setting of the whole cluster. Its value is text; JSON for those that have parts.
    Setting {
        api_version: String,
        kind: String,
        metadata: ObjectMeta,
        /// What is in force while there is no value.
        default: String,
        /// What somebody chose.
        value: String,
        customized: Option<bool>,
        source: String,
        status: Option<SettingStatus>,
    }
    /// Whether a setting is in force.
    SettingStatus {
        conditions: Vec<Condition>,
    }
}

resource!(VirtualMachineImage, "harvesterhci.io", "v1beta1", "virtualmachineimages", NamespaceResourceScope);
resource!(KeyPair, "harvesterhci.io", "v1beta1", "keypairs", NamespaceResourceScope);
resource!(Setting, "harvesterhci.io", "v1beta1", "settings", ClusterResourceScope);
