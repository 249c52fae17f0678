//! Kinds that are not Kubernetes' own, listed among the CustomResourceDefinitions.

use super::Row;
use super::twins::OlderVersion;
use crate::rules;

const INSTANCETYPE: &str = "instancetype.kubevirt.io/v1beta1";
const SNAPSHOT: &str = "snapshot.kubevirt.io/v1beta1";
const LONGHORN: &str = "longhorn.io/v1beta2";
const VOLUME_SNAPSHOT: &str = "snapshot.storage.k8s.io/v1";

// Kinds that are served in two versions.
const VM: Row = Row::new("kubevirt.io/v1", "VirtualMachine", "virtualmachines")
    .short("vm vms")
    .flags("ns status all")
    .columns(
        r#"Age=.metadata.creationTimestamp; Status=.status.printableStatus;
            Ready=.status.conditions[?(@.type=='Ready')].status"#,
    )
    .rules(rules::virtual_machine);
const INSTANCE: Row = Row::new("kubevirt.io/v1", "VirtualMachineInstance", "virtualmachineinstances")
    .short("vmi vmis")
    .flags("ns all")
    .columns(
        r#"Age=.metadata.creationTimestamp; Phase=.status.phase; IP=.status.interfaces[0].ipAddress;
            NodeName=.status.nodeName; Ready=.status.conditions[?(@.type=='Ready')].status;
            +Live-Migratable=.status.conditions[?(@.type=='LiveMigratable')].status;
            +Paused=.status.conditions[?(@.type=='Paused')].status"#,
    )
    .rules(rules::virtual_machine_instance);
const MIGRATION: Row =
    Row::new("kubevirt.io/v1", "VirtualMachineInstanceMigration", "virtualmachineinstancemigrations")
        .short("vmim vmims")
        .flags("ns status all")
        .columns("Phase=.status.phase; VMI=.spec.vmiName")
        .select("spec.vmiName");
const KEPT: Row = Row::new(SNAPSHOT, "VirtualMachineSnapshot", "virtualmachinesnapshots")
        .short("vmsnapshot vmsnapshots")
        .flags("ns status all")
        .columns(
            "SourceKind=.spec.source.kind; SourceName=.spec.source.name; Phase=.status.phase;
            ReadyToUse=.status.readyToUse:boolean; CreationTime=.status.creationTime:date; Error=.status.error.message",
        )
        .rules(rules::snapshot);
const CONTENT: Row = Row::new(SNAPSHOT, "VirtualMachineSnapshotContent", "virtualmachinesnapshotcontents")
        .short("vmsnapshotcontent vmsnapshotcontents")
        .flags("ns status all")
        .columns(
            "ReadyToUse=.status.readyToUse:boolean; CreationTime=.status.creationTime:date; Error=.status.error.message",
        );
const RESTORE: Row = Row::new(SNAPSHOT, "VirtualMachineRestore", "virtualmachinerestores")
    .short("vmrestore vmrestores")
    .flags("ns status all")
    .columns(
        "TargetKind=.spec.target.kind; TargetName=.spec.target.name; Complete=.status.complete:boolean;
            RestoreTime=.status.restoreTime:date; Error=.status.conditions[?(@.type=='Failure')].reason",
    )
    .rules(rules::restore);
const CLONE: Row = Row::new("clone.kubevirt.io/v1beta1", "VirtualMachineClone", "virtualmachineclones")
    .short("vmclone vmclones")
    .flags("ns status all")
    .columns(
        "Phase=.status.phase; SourceVirtualMachine=.spec.source.name; TargetVirtualMachine=.spec.target.name",
    )
    .rules(rules::clone);

/// The table.
pub(super) const ROWS: &[Row] = &[
    VM,
    // No status subresource: whoever writes a status writes the object.
    INSTANCE,
    MIGRATION,
    Row::new(INSTANCETYPE, "VirtualMachineInstancetype", "virtualmachineinstancetypes")
        .short("vminstancetype vminstancetypes vmf vmfs")
        .flags("ns all")
        .rules(rules::instancetype),
    Row::new(INSTANCETYPE, "VirtualMachineClusterInstancetype", "virtualmachineclusterinstancetypes")
        .short("vmclusterinstancetype vmclusterinstancetypes vmcf vmcfs")
        .rules(rules::instancetype),
    Row::new(INSTANCETYPE, "VirtualMachinePreference", "virtualmachinepreferences")
        .short("vmpref vmprefs vmp vmps")
        .flags("ns all")
        .rules(rules::preference),
    Row::new(INSTANCETYPE, "VirtualMachineClusterPreference", "virtualmachineclusterpreferences")
        .short("vmcp vmcps")
        .rules(rules::preference),
    KEPT,
    CONTENT,
    RESTORE,
    CLONE,
    Row::new("harvesterhci.io/v1beta1", "VirtualMachineImage", "virtualmachineimages")
        .short("vmimage vmimages")
        .flags("ns")
        .columns(
            "BACKEND=.spec.backend; DISPLAY-NAME=.spec.displayName; SIZE=.status.size:integer;
            VIRTUALSIZE=.status.virtualSize:integer; AGE=.metadata.creationTimestamp",
        )
        .rules(rules::image),
    Row::new("harvesterhci.io/v1beta1", "KeyPair", "keypairs")
        .short("kp kps")
        .flags("ns")
        .columns("FINGER_PRINT=.status.fingerPrint; AGE=.metadata.creationTimestamp")
        .rules(rules::key_pair),
    Row::new("harvesterhci.io/v1beta1", "Setting", "settings").columns("VALUE=.value").rules(rules::setting),
    Row::new(LONGHORN, "Volume", "volumes")
        .short("lhv")
        .flags("ns status")
        .columns(
            r#"Data Engine=.spec.dataEngine; State=.status.state; Robustness=.status.robustness;
            Scheduled=.status.conditions[?(@.type=='Schedulable')].status; Size=.spec.size; Node=.status.currentNodeID;
            Age=.metadata.creationTimestamp"#,
        )
        .rules(rules::replicated_volume),
    Row::new(LONGHORN, "Engine", "engines").short("lhe").flags("ns status").columns(
        "Data Engine=.spec.dataEngine; State=.status.currentState; Node=.spec.nodeID;
        InstanceManager=.status.instanceManagerName; Image=.status.currentImage; Age=.metadata.creationTimestamp",
    ),
    Row::new(LONGHORN, "Replica", "replicas").short("lhr").flags("ns status").columns(
        "Data Engine=.spec.dataEngine; State=.status.currentState; Node=.spec.nodeID; Disk=.spec.diskID;
        InstanceManager=.status.instanceManagerName; Image=.status.currentImage; Age=.metadata.creationTimestamp",
    ),
    Row::new(LONGHORN, "Node", "nodes").short("lhn").flags("ns status").columns(
        r#"Ready=.status.conditions[?(@.type=='Ready')].status; AllowScheduling=.spec.allowScheduling:boolean;
        Schedulable=.status.conditions[?(@.type=='Schedulable')].status; Age=.metadata.creationTimestamp"#,
    ),
    Row::new(LONGHORN, "Snapshot", "snapshots").short("lhsnap").flags("ns status").columns(
        "Volume=.spec.volume; CreationTime=.status.creationTime; ReadyToUse=.status.readyToUse:boolean;
        RestoreSize=.status.restoreSize:integer; Size=.status.size:integer; Age=.metadata.creationTimestamp",
    ),
    Row::new(LONGHORN, "Setting", "settings")
        .short("lhs")
        .flags("ns status")
        .columns("Value=.value; Applied=.status.applied:boolean; Age=.metadata.creationTimestamp"),
    Row::new(VOLUME_SNAPSHOT, "VolumeSnapshot", "volumesnapshots")
        .short("vs")
        .flags("ns status")
        .columns(
            "ReadyToUse=.status.readyToUse:boolean; SourcePVC=.spec.source.persistentVolumeClaimName;
            SourceSnapshotContent=.spec.source.volumeSnapshotContentName; RestoreSize=.status.restoreSize;
            SnapshotClass=.spec.volumeSnapshotClassName; SnapshotContent=.status.boundVolumeSnapshotContentName;
            CreationTime=.status.creationTime:date; Age=.metadata.creationTimestamp",
        )
        .rules(rules::volume_snapshot),
    Row::new(VOLUME_SNAPSHOT, "VolumeSnapshotContent", "volumesnapshotcontents")
        .short("vsc vscs")
        .flags("status")
        .columns(
            "ReadyToUse=.status.readyToUse:boolean; RestoreSize=.status.restoreSize:integer;
            DeletionPolicy=.spec.deletionPolicy; Driver=.spec.driver; VolumeSnapshotClass=.spec.volumeSnapshotClassName;
            VolumeSnapshot=.spec.volumeSnapshotRef.name; VolumeSnapshotNamespace=.spec.volumeSnapshotRef.namespace;
            Age=.metadata.creationTimestamp",
        ),
    Row::new(VOLUME_SNAPSHOT, "VolumeSnapshotClass", "volumesnapshotclasses")
        .short("vsclass vsclasses")
        .columns("Driver=.driver; DeletionPolicy=.deletionPolicy; Age=.metadata.creationTimestamp"),
    Row::new("k8s.cni.cncf.io/v1", "NetworkAttachmentDefinition", "network-attachment-definitions")
        .short("net-attach-def")
        .flags("ns")
        .rules(rules::attachment),
    // Versions that older clients ask for, after those that are stored.
    VM.older(&OlderVersion {
        prefix: "/registry/kubevirt.io/virtualmachines/",
        kind: "VirtualMachine",
        stored: "kubevirt.io/v1",
        shown: "kubevirt.io/v1alpha3",
    }),
    INSTANCE.older(&OlderVersion {
        prefix: "/registry/kubevirt.io/virtualmachineinstances/",
        kind: "VirtualMachineInstance",
        stored: "kubevirt.io/v1",
        shown: "kubevirt.io/v1alpha3",
    }),
    MIGRATION.older(&OlderVersion {
        prefix: "/registry/kubevirt.io/virtualmachineinstancemigrations/",
        kind: "VirtualMachineInstanceMigration",
        stored: "kubevirt.io/v1",
        shown: "kubevirt.io/v1alpha3",
    }),
    KEPT.older(&OlderVersion {
        prefix: "/registry/snapshot.kubevirt.io/virtualmachinesnapshots/",
        kind: "VirtualMachineSnapshot",
        stored: "snapshot.kubevirt.io/v1beta1",
        shown: "snapshot.kubevirt.io/v1alpha1",
    }),
    CONTENT.older(&OlderVersion {
        prefix: "/registry/snapshot.kubevirt.io/virtualmachinesnapshotcontents/",
        kind: "VirtualMachineSnapshotContent",
        stored: "snapshot.kubevirt.io/v1beta1",
        shown: "snapshot.kubevirt.io/v1alpha1",
    }),
    RESTORE.older(&OlderVersion {
        prefix: "/registry/snapshot.kubevirt.io/virtualmachinerestores/",
        kind: "VirtualMachineRestore",
        stored: "snapshot.kubevirt.io/v1beta1",
        shown: "snapshot.kubevirt.io/v1alpha1",
    }),
    CLONE.older(&OlderVersion {
        prefix: "/registry/clone.kubevirt.io/virtualmachineclones/",
        kind: "VirtualMachineClone",
        stored: "clone.kubevirt.io/v1beta1",
        shown: "clone.kubevirt.io/v1alpha1",
    }),
];
