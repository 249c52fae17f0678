//! Kinds of Kubernetes itself. A kind is a line; its schema is found by its name, its computed columns are in
//! [`crate::cells`].

use super::{Row, twins};
use crate::{cells, rules};

/// The table.
#[rustfmt::skip]
pub(super) const ROWS: &[Row] = &[
    // core
    Row::new("v1", "Namespace", "namespaces").short("ns").flags("status")
        .columns("Status=.status.phase; Age=.metadata.creationTimestamp").select("status.phase").rules(rules::namespace),
    Row::new("v1", "Node", "nodes").short("no").flags("status").columns("Status; Roles; Age; Version; +Internal-IP; \
        +External-IP; +OS-Image; +Kernel-Version; +Container-Runtime").select("spec.unschedulable").cells(cells::node)
        .rules(rules::node),
    Row::new("v1", "Secret", "secrets").flags("ns").columns("Type=.type; Data:integer; Age").select("type")
        .cells(cells::secret).rules(rules::secret),
    Row::new("v1", "ConfigMap", "configmaps").short("cm").flags("ns").columns("Data:integer; Age")
        .cells(cells::config_map).rules(rules::config_map),
    Row::new("v1", "Event", "events").short("ev").flags("ns").columns(EVENT).select(EVENT_FIELDS).cells(cells::event)
        .rules(rules::event),
    Row::new("v1", "ServiceAccount", "serviceaccounts").short("sa").flags("ns").columns("Secrets:integer; Age")
        .cells(cells::service_account),
    Row::new("v1", "Service", "services").short("svc").flags("ns status all").select("spec.clusterIP spec.type")
        .columns("Type; Cluster-IP; External-IP; Port(s); Age; +Selector").cells(cells::service),
    Row::new("v1", "Endpoints", "endpoints").short("ep").flags("ns").columns("Endpoints; Age").cells(cells::endpoints)
        .rules(rules::endpoints),
    Row::new("v1", "Pod", "pods").short("po").flags("ns status gen all").columns("Ready; Status; Restarts; Age; +IP; \
        +Node; +Nominated Node; +Readiness Gates").cells(cells::pod).select("spec.nodeName spec.restartPolicy \
        spec.schedulerName spec.serviceAccountName spec.hostNetwork status.phase status.podIP status.nominatedNodeName"),
    Row::new("v1", "PodTemplate", "podtemplates").flags("ns gen").columns("Containers; Images; Pod Labels")
        .cells(cells::pod_template),
    Row::new("v1", "ReplicationController", "replicationcontrollers").short("rc").flags("ns status gen all")
        .columns(REPLICAS).select("status.replicas").cells(cells::replicas),
    Row::new("v1", "PersistentVolumeClaim", "persistentvolumeclaims").short("pvc").flags("ns status")
        .columns("Status; Volume; Capacity; Access Modes; StorageClass; VolumeAttributesClass; Age; +VolumeMode")
        .cells(cells::claim).rules(rules::claim),
    Row::new("v1", "PersistentVolume", "persistentvolumes").short("pv").flags("status").cells(cells::volume)
        .columns("Capacity; Access Modes; Reclaim Policy; Status; Claim; StorageClass; VolumeAttributesClass; Reason; \
        Age; +VolumeMode").rules(rules::volume),
    Row::new("v1", "ResourceQuota", "resourcequotas").short("quota").flags("ns status")
        .columns("Request; Limit; Age").cells(cells::quota),
    Row::new("v1", "LimitRange", "limitranges").short("limits").flags("ns")
        .columns("Created At=.metadata.creationTimestamp:string"),
    // coordination, events, certificates
    Row::new("coordination.k8s.io/v1", "Lease", "leases").flags("ns")
        .columns("Holder=.spec.holderIdentity; Age=.metadata.creationTimestamp"),
    Row::new("events.k8s.io/v1", "Event", "events").short("ev").flags("ns").columns(EVENT).select("reason reportingController \
        regarding.kind regarding.namespace regarding.name regarding.uid type").cells(cells::event).rules(rules::event)
        .twin(&twins::Events),
    Row::new("certificates.k8s.io/v1", "CertificateSigningRequest", "certificatesigningrequests").short("csr")
        .flags("status").select("spec.signerName").columns("Age; SignerName; Requestor; RequestedDuration; Condition")
        .cells(cells::signing_request).rules(rules::signing_request),
    // storage
    Row::new("storage.k8s.io/v1", "StorageClass", "storageclasses").short("sc").rules(rules::storage_class)
        .columns("Name; Provisioner; ReclaimPolicy; VolumeBindingMode; AllowVolumeExpansion:boolean; Age")
        .cells(cells::storage_class),
    Row::new("storage.k8s.io/v1", "VolumeAttributesClass", "volumeattributesclasses").short("vac")
        .columns("DriverName=.driverName; Age=.metadata.creationTimestamp"),
    Row::new("storage.k8s.io/v1", "VolumeAttachment", "volumeattachments").flags("status").columns("Attacher=.spec.attacher; \
        PV=.spec.source.persistentVolumeName; Node=.spec.nodeName; Attached=.status.attached:boolean; \
        Age=.metadata.creationTimestamp"),
    Row::new("storage.k8s.io/v1", "CSIDriver", "csidrivers").columns("AttachRequired:boolean; PodInfoOnMount:boolean; \
        StorageCapacity:boolean; TokenRequests; RequiresRepublish:boolean; Modes; Age").flags("gen").cells(cells::csi_driver),
    Row::new("storage.k8s.io/v1", "CSINode", "csinodes").columns("Drivers:integer; Age").cells(cells::csi_node),
    Row::new("storage.k8s.io/v1", "CSIStorageCapacity", "csistoragecapacities").flags("ns")
        .columns("StorageClassName=.storageClassName; Capacity=.capacity"),
    // workloads
    Row::new("apps/v1", "Deployment", "deployments").short("deploy").flags("ns status gen all")
        .columns("Ready; Up-to-date:integer; Available:integer; Age; +Containers; +Images; +Selector").cells(cells::deployment),
    Row::new("apps/v1", "ReplicaSet", "replicasets").short("rs").flags("ns status gen all").columns(REPLICAS)
        .cells(cells::replicas).select("status.replicas"),
    Row::new("apps/v1", "StatefulSet", "statefulsets").short("sts").flags("ns status gen all")
        .columns("Ready; Age; +Containers; +Images").cells(cells::stateful_set),
    Row::new("apps/v1", "DaemonSet", "daemonsets").short("ds").flags("ns status gen all").columns("Desired:integer; \
        Current:integer; Ready:integer; Up-to-date:integer; Available:integer; Node Selector; Age; +Containers; +Images; \
        +Selector").cells(cells::daemon_set),
    Row::new("apps/v1", "ControllerRevision", "controllerrevisions").flags("ns").columns("Controller; Revision:integer; Age")
        .cells(cells::controller_revision),
    Row::new("batch/v1", "Job", "jobs").flags("ns status gen all").select("status.successful").cells(cells::job)
        .columns("Status; Completions; Duration; Age; +Containers; +Images; +Selector"),
    Row::new("batch/v1", "CronJob", "cronjobs").short("cj").flags("ns status gen all").columns("Schedule; Timezone; Suspend; \
        Active:integer; Last Schedule; Age; +Containers; +Images; +Selector").cells(cells::cron_job),
    Row::new("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets").short("pdb").flags("ns status gen")
        .columns("Min Available; Max Unavailable; Allowed Disruptions:integer; Age").cells(cells::disruption_budget),
    Row::new("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers").short("hpa").flags("ns status gen all")
        .columns(SCALER).cells(cells::autoscaler),
    Row::new("autoscaling/v1", "HorizontalPodAutoscaler", "horizontalpodautoscalers").short("hpa").flags("ns status gen all")
        .columns(SCALER).cells(cells::autoscaler).twin(&twins::Autoscalers),
    Row::new("scheduling.k8s.io/v1", "PriorityClass", "priorityclasses").short("pc").columns("Value=.value:integer; \
        Global-Default=.globalDefault:boolean; Age=.metadata.creationTimestamp; PreemptionPolicy=.preemptionPolicy")
        .cells(cells::priority_class),
    Row::new("node.k8s.io/v1", "RuntimeClass", "runtimeclasses").columns("Handler=.handler; Age=.metadata.creationTimestamp"),
    // networks
    Row::new("networking.k8s.io/v1", "Ingress", "ingresses").short("ing").flags("ns status gen")
        .columns("Class; Hosts; Address; Ports; Age").cells(cells::ingress),
    Row::new("networking.k8s.io/v1", "IngressClass", "ingressclasses").flags("gen")
        .columns("Controller; Parameters; Age").cells(cells::ingress_class),
    Row::new("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies").short("netpol").flags("ns gen")
        .columns("Pod-Selector; Age").cells(cells::network_policy),
    Row::new("networking.k8s.io/v1", "IPAddress", "ipaddresses").short("ip").columns("ParentRef; Age").cells(cells::ip_address),
    Row::new("networking.k8s.io/v1", "ServiceCIDR", "servicecidrs").flags("status").columns("CIDRs; Age")
        .cells(cells::service_cidr),
    Row::new("discovery.k8s.io/v1", "EndpointSlice", "endpointslices").flags("ns gen")
        .columns("AddressType; Ports; Endpoints; Age").cells(cells::endpoint_slice),
    // access
    Row::new("rbac.authorization.k8s.io/v1", "Role", "roles").flags("ns").columns(CREATED),
    Row::new("rbac.authorization.k8s.io/v1", "ClusterRole", "clusterroles").columns(CREATED),
    Row::new("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings").flags("ns").columns(BINDING).cells(cells::binding),
    Row::new("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", "clusterrolebindings").columns(BINDING)
        .cells(cells::binding),
    // extension of the API
    Row::new("apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions").short("crd crds")
        .flags("status gen").columns(CREATED),
    Row::new("apiregistration.k8s.io/v1", "APIService", "apiservices").flags("status").columns("Service; Available; Age")
        .select("spec.service.name spec.service.namespace").cells(cells::api_service),
    Row::new("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration", "mutatingwebhookconfigurations").flags("gen")
        .columns("Webhooks:integer; Age").cells(cells::webhooks).rules(rules::webhooks),
    Row::new("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration", "validatingwebhookconfigurations")
        .flags("gen").columns("Webhooks:integer; Age").cells(cells::webhooks).rules(rules::webhooks),
    Row::new("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy", "validatingadmissionpolicies")
        .flags("status gen").columns("Validations:integer; ParamKind; Age").cells(cells::admission_policy),
    Row::new("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings")
        .flags("gen").columns("PolicyName; ParamRef; Age").cells(cells::policy_binding),
    Row::new("admissionregistration.k8s.io/v1", "MutatingAdmissionPolicy", "mutatingadmissionpolicies")
        .flags("gen").columns("Mutations:integer; ParamKind; Age").cells(cells::admission_policy),
    Row::new("admissionregistration.k8s.io/v1", "MutatingAdmissionPolicyBinding", "mutatingadmissionpolicybindings")
        .flags("gen").columns("PolicyName; ParamRef; Age").cells(cells::policy_binding),
    Row::new("flowcontrol.apiserver.k8s.io/v1", "FlowSchema", "flowschemas").flags("status gen").rules(rules::flow)
        .columns("PriorityLevel=.spec.priorityLevelConfiguration.name; MatchingPrecedence=.spec.matchingPrecedence:integer; \
        DistinguisherMethod=.spec.distinguisherMethod.type; Age=.metadata.creationTimestamp"),
    Row::new("flowcontrol.apiserver.k8s.io/v1", "PriorityLevelConfiguration", "prioritylevelconfigurations")
        .flags("status gen").rules(rules::flow).columns("Type=.spec.type; \
        NominalConcurrencyShares=.spec.limited.nominalConcurrencyShares:integer; \
        Queues=.spec.limited.limitResponse.queuing.queues:integer; Age=.metadata.creationTimestamp"),
];

/// Kinds that are asked and answered and never stored. Their rows are for the documents only.
#[rustfmt::skip]
pub(super) const REVIEWS: &[Row] = &[
    Row::new("authentication.k8s.io/v1", "TokenReview", "tokenreviews"),
    Row::new("authentication.k8s.io/v1", "SelfSubjectReview", "selfsubjectreviews"),
    Row::new("authorization.k8s.io/v1", "LocalSubjectAccessReview", "localsubjectaccessreviews").flags("ns"),
    Row::new("authorization.k8s.io/v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews"),
    Row::new("authorization.k8s.io/v1", "SelfSubjectRulesReview", "selfsubjectrulesreviews"),
    Row::new("authorization.k8s.io/v1", "SubjectAccessReview", "subjectaccessreviews"),
];

const SCALER: &str = "Reference; Targets; MinPods; MaxPods:integer; Replicas:integer; Age";
const EVENT: &str =
    "Last Seen; Type; Reason; Object; +Subobject; +Source; Message; +First Seen; +Count:integer; +Name";
const EVENT_FIELDS: &str = "involvedObject.kind involvedObject.namespace involvedObject.name involvedObject.uid \
    involvedObject.apiVersion involvedObject.resourceVersion involvedObject.fieldPath reason reportingComponent source type";
const REPLICAS: &str =
    "Desired:integer; Current:integer; Ready:integer; Age; +Containers; +Images; +Selector";
const CREATED: &str = "Created At=.metadata.creationTimestamp:string";
const BINDING: &str = "Role; Age; +Users; +Groups; +ServiceAccounts";
