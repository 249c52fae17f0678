//! The roles and bindings that every cluster has: those of Kubernetes, and those of the kinds that this server brings.
//!
//! Pure data. [`super::reconcile`] makes them, and adds again what was taken from them.

use serde_json::{Value, json};

use super::rules::PolicyRule;

/// A role, named as its namespace (empty for the cluster) and name.
pub(crate) struct RoleSpec {
    pub(crate) namespace: &'static str,
    pub(crate) name: &'static str,
    /// `admin`, `edit`, `view`: which of the aggregated roles collect it.
    pub(crate) to: &'static [&'static str],
    /// Collects the roles that say so.
    pub(crate) collects: &'static str,
    pub(crate) rules: Vec<PolicyRule>,
}

/// A binding.
pub(crate) struct BindingSpec {
    pub(crate) namespace: &'static str,
    pub(crate) name: &'static str,
    /// Kind and name.
    pub(crate) role: (&'static str, &'static str),
    /// `User`, `Group`, and the name.
    pub(crate) subjects: &'static [(&'static str, &'static str)],
}

const READ: &str = "get list watch";
const WRITE: &str = "create delete deletecollection patch update";
const BOTH: &str = "create delete deletecollection get list patch update watch";

const EVERYBODY: &[(&str, &str)] = &[("Group", "system:authenticated"), ("Group", "system:unauthenticated")];
const AUTHENTICATED: &[(&str, &str)] = &[("Group", "system:authenticated")];

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(|w| if w == "core" { String::new() } else { w.into() }).collect()
}

/// A rule over resources; the core group is called `core`.
pub(crate) fn rule(verbs: &str, groups: &str, resources: &str) -> PolicyRule {
    PolicyRule {
        verbs: words(verbs),
        groups: words(groups),
        resources: words(resources),
        ..PolicyRule::default()
    }
}

fn named(verbs: &str, groups: &str, resources: &str, names: &str) -> PolicyRule {
    PolicyRule { names: words(names), ..rule(verbs, groups, resources) }
}

fn paths(verbs: &str, urls: &str) -> PolicyRule {
    PolicyRule { verbs: words(verbs), urls: words(urls), ..PolicyRule::default() }
}

fn role(name: &'static str, rules: Vec<PolicyRule>) -> RoleSpec {
    RoleSpec { namespace: "", name, to: &[], collects: "", rules }
}

fn part(name: &'static str, to: &'static [&'static str], rules: Vec<PolicyRule>) -> RoleSpec {
    RoleSpec { namespace: "", name, to, collects: "", rules }
}

/// All roles.
pub(crate) fn roles() -> Vec<RoleSpec> {
    let mut all = kubernetes();
    all.extend(for_users());
    all.extend(certificates());
    all.extend(machines());
    all.extend(harvester());
    all
}

fn kubernetes() -> Vec<RoleSpec> {
    let health = "/healthz /livez /readyz /version /version/";
    vec![
        role("cluster-admin", vec![rule("*", "*", "*"), paths("*", "*")]),
        role(
            "system:discovery",
            vec![paths("get", &format!("/api /api/* /apis /apis/* /openapi /openapi/* {health}"))],
        ),
        role("system:public-info-viewer", vec![paths("get", health)]),
        // A machine that is to join asks for the CA before it can prove anything; its token says which CA is right.
        role("sheaf.io:ca-viewer", vec![paths("get", "/cacerts")]),
        role(
            "system:monitoring",
            vec![paths(
                "get",
                "/healthz /healthz/* /livez /livez/* /metrics /metrics/slis /readyz /readyz/*",
            )],
        ),
        role(
            "system:basic-user",
            vec![
                rule("create", "authorization.k8s.io", "selfsubjectaccessreviews selfsubjectrulesreviews"),
                rule("create", "authentication.k8s.io", "selfsubjectreviews"),
            ],
        ),
        role(
            "system:auth-delegator",
            vec![
                rule("create", "authentication.k8s.io", "tokenreviews"),
                rule("create", "authorization.k8s.io", "subjectaccessreviews"),
            ],
        ),
        role(
            "system:service-account-issuer-discovery",
            vec![paths(
                "get",
                "/.well-known/openid-configuration /.well-known/openid-configuration/ /openid/v1/jwks /openid/v1/jwks/",
            )],
        ),
        role(
            "system:kubelet-api-admin",
            vec![
                rule(READ, "core", "nodes"),
                rule("proxy", "core", "nodes"),
                rule("*", "core", "nodes/log nodes/metrics nodes/proxy nodes/stats"),
            ],
        ),
        role("system:node", super::node::rules()),
        role(
            "system:controller:sheaf",
            vec![
                rule(BOTH, "*", "*"),
                named("approve sign", "certificates.k8s.io", "signers", "kubernetes.io/*"),
                paths("get", &format!("/api /api/* /apis /apis/* /openapi /openapi/* {health}")),
            ],
        ),
        role(
            "system:persistent-volume-provisioner",
            vec![
                rule("create delete get list watch", "core", "persistentvolumes"),
                rule("get list update watch", "core", "persistentvolumeclaims"),
                rule(READ, "storage.k8s.io", "storageclasses"),
                rule(READ, "core", "events"),
                rule("create patch update", "core events.k8s.io", "events"),
            ],
        ),
        RoleSpec {
            namespace: "kube-system",
            ..role(
                "extension-apiserver-authentication-reader",
                vec![named(READ, "core", "configmaps", "extension-apiserver-authentication")],
            )
        },
    ]
}

/// `admin`, `edit` and `view`, and what Kubernetes' own kinds give to them.
fn for_users() -> Vec<RoleSpec> {
    let aggregated = |name: &'static str, to: &'static [&'static str]| RoleSpec {
        collects: name,
        to,
        ..role(name, Vec::new())
    };
    let apps = "daemonsets deployments deployments/scale replicasets replicasets/scale statefulsets statefulsets/scale";
    let seen = |also: &str| rule(READ, "apps", &format!("controllerrevisions {apps} {also}"));
    let pods = "pods pods/attach pods/exec pods/portforward pods/proxy";
    let things = "configmaps events persistentvolumeclaims replicationcontrollers replicationcontrollers/scale \
        secrets serviceaccounts services services/proxy";
    vec![
        aggregated("admin", &[]),
        aggregated("edit", &["admin"]),
        aggregated("view", &["edit"]),
        part(
            "system:aggregate-to-admin",
            &["admin"],
            vec![
                rule("create", "authorization.k8s.io", "localsubjectaccessreviews"),
                rule(BOTH, "rbac.authorization.k8s.io", "rolebindings roles"),
            ],
        ),
        part(
            "system:aggregate-to-edit",
            &["edit"],
            vec![
                rule(
                    READ,
                    "core",
                    "pods/attach pods/exec pods/portforward pods/proxy secrets services/proxy",
                ),
                rule("impersonate", "core", "serviceaccounts"),
                rule(WRITE, "core", pods),
                rule("create", "core", "pods/eviction"),
                rule(WRITE, "core", things),
                rule("create", "core", "serviceaccounts/token"),
                rule(WRITE, "apps", &format!("{apps} deployments/rollback")),
                rule(WRITE, "autoscaling", "horizontalpodautoscalers"),
                rule(WRITE, "batch", "cronjobs jobs"),
                rule(WRITE, "policy", "poddisruptionbudgets"),
                rule(WRITE, "networking.k8s.io", "ingresses networkpolicies"),
                rule(BOTH, "coordination.k8s.io", "leases"),
                rule(WRITE, "resource.k8s.io", "resourceclaims resourceclaimtemplates"),
            ],
        ),
        part(
            "system:aggregate-to-view",
            &["view"],
            vec![
                rule(
                    READ,
                    "core",
                    "configmaps endpoints persistentvolumeclaims persistentvolumeclaims/status pods \
                    replicationcontrollers replicationcontrollers/scale serviceaccounts services services/status",
                ),
                rule(
                    READ,
                    "core",
                    "bindings events limitranges namespaces/status pods/log pods/status \
                    replicationcontrollers/status resourcequotas resourcequotas/status",
                ),
                rule(READ, "core", "namespaces"),
                rule(READ, "discovery.k8s.io", "endpointslices"),
                seen("daemonsets/status deployments/status replicasets/status statefulsets/status"),
                rule(READ, "autoscaling", "horizontalpodautoscalers horizontalpodautoscalers/status"),
                rule(READ, "batch", "cronjobs cronjobs/status jobs jobs/status"),
                rule(READ, "policy", "poddisruptionbudgets poddisruptionbudgets/status"),
                rule(READ, "networking.k8s.io", "ingresses ingresses/status networkpolicies"),
                rule(READ, "resource.k8s.io", "resourceclaims resourceclaims/status resourceclaimtemplates"),
            ],
        ),
    ]
}

fn certificates() -> Vec<RoleSpec> {
    const GROUP: &str = "certificates.k8s.io";
    let approver = |name, signer| role(name, vec![named("approve", GROUP, "signers", signer)]);
    vec![
        role(
            "system:node-bootstrapper",
            vec![rule("create get list watch", GROUP, "certificatesigningrequests")],
        ),
        role(
            "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
            vec![rule("create", GROUP, "certificatesigningrequests/nodeclient")],
        ),
        role(
            "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
            vec![rule("create", GROUP, "certificatesigningrequests/selfnodeclient")],
        ),
        approver(
            "system:certificates.k8s.io:kube-apiserver-client-approver",
            "kubernetes.io/kube-apiserver-client",
        ),
        approver(
            "system:certificates.k8s.io:kube-apiserver-client-kubelet-approver",
            "kubernetes.io/kube-apiserver-client-kubelet",
        ),
        approver("system:certificates.k8s.io:kubelet-serving-approver", "kubernetes.io/kubelet-serving"),
        approver("system:certificates.k8s.io:legacy-unknown-approver", "kubernetes.io/legacy-unknown"),
    ]
}

/// KubeVirt's and CDI's.
fn machines() -> Vec<RoleSpec> {
    const SUB: &str = "subresources.kubevirt.io";
    let kinds = "virtualmachineinstancepresets virtualmachineinstancereplicasets virtualmachineinstances virtualmachines";
    let seen = || {
        vec![
            rule(READ, "kubevirt.io", &format!("{kinds} virtualmachineinstancemigrations")),
            rule(
                READ,
                "snapshot.kubevirt.io",
                "virtualmachinesnapshots virtualmachinesnapshotcontents virtualmachinerestores",
            ),
            rule(READ, "export.kubevirt.io", "virtualmachineexports"),
            rule(READ, "clone.kubevirt.io", "virtualmachineclones"),
            rule(
                READ,
                "instancetype.kubevirt.io",
                "virtualmachineclusterinstancetypes virtualmachineclusterpreferences virtualmachineinstancetypes virtualmachinepreferences",
            ),
            rule(READ, "pool.kubevirt.io", "virtualmachinepools"),
            rule(READ, "migrations.kubevirt.io", "migrationpolicies"),
            rule(READ, "backup.kubevirt.io", "virtualmachinebackups virtualmachinebackuptrackers"),
            rule(
                "get",
                SUB,
                "virtualmachines/expand-spec virtualmachineinstances/filesystemlist \
                virtualmachineinstances/guestosinfo virtualmachineinstances/userlist",
            ),
            rule("update", SUB, "expand-vm-spec"),
        ]
    };
    let used = |verbs: &str, more: &str| {
        let mut rules = seen();
        rules.extend([
            rule(verbs, "kubevirt.io", kinds),
            rule(verbs, "snapshot.kubevirt.io", "virtualmachinesnapshots virtualmachinesnapshotcontents virtualmachinerestores"),
            rule(verbs, "export.kubevirt.io", "virtualmachineexports"),
            rule(verbs, "clone.kubevirt.io", "virtualmachineclones"),
            rule(verbs, "instancetype.kubevirt.io", "virtualmachineinstancetypes virtualmachinepreferences"),
            rule(verbs, "pool.kubevirt.io", "virtualmachinepools"),
            rule(verbs, "backup.kubevirt.io", "virtualmachinebackups virtualmachinebackuptrackers"),
            rule("get", SUB, &format!("virtualmachineinstances/console virtualmachineinstances/usbredir \
                virtualmachineinstances/vnc {more} virtualmachines/portforward virtualmachineinstances/portforward \
                virtualmachineinstances/vsock")),
            rule("update", SUB, "virtualmachineinstances/addvolume virtualmachineinstances/backup \
                virtualmachineinstances/evacuate/cancel virtualmachineinstances/freeze virtualmachineinstances/pause \
                virtualmachineinstances/removevolume virtualmachineinstances/reset \
                virtualmachineinstances/sev/setupsession virtualmachineinstances/sev/injectlaunchsecret \
                virtualmachineinstances/softreboot virtualmachineinstances/unfreeze virtualmachineinstances/unpause \
                virtualmachines/addvolume virtualmachines/evacuate/cancel virtualmachines/memorydump \
                virtualmachines/objectgraph virtualmachines/removememorydump virtualmachines/removevolume \
                virtualmachines/restart virtualmachines/start virtualmachines/stop"),
            rule("get", SUB, "virtualmachineinstances/objectgraph virtualmachineinstances/sev/fetchcertchain \
                virtualmachineinstances/sev/querylaunchmeasurement virtualmachines/objectgraph"),
        ]);
        rules
    };
    let cdi =
        "datavolumes dataimportcrons datasources volumeclonesources volumeimportsources volumeuploadsources";
    let cdi_used = || {
        vec![
            rule("*", "cdi.kubevirt.io", cdi),
            rule("create", "cdi.kubevirt.io", "datavolumes/source"),
            rule("*", "upload.cdi.kubevirt.io", "uploadtokenrequests"),
        ]
    };
    vec![
        role(
            "kubevirt.io:default",
            vec![rule("get list", "kubevirt.io", "kubevirts"), rule("get list", SUB, "version guestfs")],
        ),
        part("kubevirt.io:admin", &["admin"], used(BOTH, "virtualmachineinstances/vnc/screenshot")),
        part("kubevirt.io:edit", &["edit"], used("create delete get list patch update watch", "")),
        part("kubevirt.io:view", &["view"], seen()),
        role(
            "kubevirt.io:migrate",
            vec![
                rule("update", SUB, "virtualmachines/migrate"),
                rule(BOTH, "kubevirt.io", "virtualmachineinstancemigrations"),
            ],
        ),
        role(
            "instancetype.kubevirt.io:view",
            vec![rule(
                READ,
                "instancetype.kubevirt.io",
                "virtualmachineclusterinstancetypes virtualmachineclusterpreferences",
            )],
        ),
        part("cdi.kubevirt.io:admin", &["admin"], cdi_used()),
        part("cdi.kubevirt.io:edit", &["edit"], cdi_used()),
        part(
            "cdi.kubevirt.io:view",
            &["view"],
            vec![rule(READ, "cdi.kubevirt.io", &format!("{cdi} cdiconfigs cdis storageprofiles"))],
        ),
        role("cdi.kubevirt.io:clone-sourcer", vec![rule("create", "cdi.kubevirt.io", "datavolumes/source")]),
        role(
            "cdi.kubevirt.io:config-reader",
            vec![rule(READ, "cdi.kubevirt.io", "cdiconfigs storageprofiles")],
        ),
    ]
}

/// Harvester's.
fn harvester() -> Vec<RoleSpec> {
    let of_group = "keypairs virtualmachinebackups virtualmachineimages virtualmachinerestores \
        virtualmachinetemplates virtualmachinetemplateversions";
    let on = |verbs: &str| {
        vec![
            rule(verbs, "harvesterhci.io", of_group),
            rule(verbs, "k8s.cni.cncf.io", "network-attachment-definitions"),
            rule(verbs, "snapshot.storage.k8s.io", "volumesnapshotcontents volumesnapshots"),
        ]
    };
    let mut view = on(READ);
    view.push(rule(READ, "core", "secrets"));
    vec![
        part("harvesterhci.io:edit", &["admin", "edit"], on("*")),
        part("harvesterhci.io:view", &["view"], view),
        role(
            "harvesterhci.io:cloudprovider",
            vec![
                rule("create delete get list update watch", "loadbalancer.harvesterhci.io", "loadbalancers"),
                rule(
                    "get update",
                    "subresources.kubevirt.io",
                    "virtualmachineinstances/addvolume \
                    virtualmachineinstances/guestosinfo virtualmachineinstances/removevolume \
                    virtualmachines/addvolume virtualmachines/removevolume",
                ),
                rule(READ, "kubevirt.io", "virtualmachineinstances virtualmachines"),
                rule(READ, "core", "pods"),
                rule("*", "core", "persistentvolumeclaims persistentvolumeclaims/status"),
            ],
        ),
        role(
            "harvesterhci.io:csi-driver",
            vec![
                rule(READ, "storage.k8s.io", "storageclasses volumeattachments"),
                rule(
                    "*",
                    "harvesterhci.io",
                    "networkfilesystems networkfilesystems/status \
                    volumeremotebackups volumeremoterestores",
                ),
                named(
                    "get list",
                    "harvesterhci.io",
                    "settings",
                    "csi-driver-config csi-online-expand-validation",
                ),
                rule("get list", "longhorn.io", "volumes"),
                rule(
                    "*",
                    "snapshot.storage.k8s.io",
                    "volumesnapshotclasses volumesnapshotcontents volumesnapshots",
                ),
                rule("patch", "kubevirt.io", "virtualmachines"),
            ],
        ),
        role(
            "harvester-authenticated",
            vec![
                named(
                    "get watch",
                    "harvesterhci.io",
                    "settings",
                    "cluster-registration-url csi-driver-config csi-online-expand-validation default-vm-termination-grace-period-seconds \
                    harvester-csi-ccm-versions max-hotplug-ratio overcommit-config server-version support-bundle-image \
                    ui-index ui-path ui-plugin-index ui-pl ui-source vm-force-reset-policy",
                ),
                rule(READ, "network.harvesterhci.io", "clusternetworks"),
                named("get watch", "core", "namespaces", "harvester-public"),
                named("get watch", "management.cattle.io", "settings", "system-namespaces"),
            ],
        ),
    ]
}

/// All bindings.
pub(crate) fn bindings() -> Vec<BindingSpec> {
    let cluster =
        |name, role, subjects| BindingSpec { namespace: "", name, role: ("ClusterRole", role), subjects };
    vec![
        cluster("cluster-admin", "cluster-admin", &[("Group", "system:masters")]),
        cluster("system:discovery", "system:discovery", AUTHENTICATED),
        cluster("system:basic-user", "system:basic-user", AUTHENTICATED),
        cluster("system:public-info-viewer", "system:public-info-viewer", EVERYBODY),
        cluster("sheaf.io:ca-viewer", "sheaf.io:ca-viewer", EVERYBODY),
        cluster("system:monitoring", "system:monitoring", &[("Group", "system:monitoring")]),
        cluster(
            "system:service-account-issuer-discovery",
            "system:service-account-issuer-discovery",
            &[("Group", "system:serviceaccounts")],
        ),
        // What nodes may is decided for each by itself (see the module `node`); the role says what that is.
        cluster("system:node", "system:node", &[]),
        cluster("system:node-bootstrapper", "system:node-bootstrapper", &[("Group", "system:bootstrappers")]),
        cluster(
            "system:node-autoapprove-bootstrap",
            "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
            &[("Group", "system:bootstrappers")],
        ),
        cluster(
            "system:node-autoapprove-certificate-rotation",
            "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
            &[("Group", "system:nodes")],
        ),
        cluster(
            "system:controller:sheaf",
            "system:controller:sheaf",
            &[("User", "system:sheaf-controllers")],
        ),
        cluster("kubevirt.io:default", "kubevirt.io:default", AUTHENTICATED),
        cluster("instancetype.kubevirt.io:view", "instancetype.kubevirt.io:view", AUTHENTICATED),
        cluster("cdi.kubevirt.io:config-reader", "cdi.kubevirt.io:config-reader", AUTHENTICATED),
        cluster("harvester-authenticated", "harvester-authenticated", AUTHENTICATED),
        BindingSpec {
            namespace: "harvester-public",
            name: "harvester-public",
            role: ("ClusterRole", "view"),
            subjects: AUTHENTICATED,
        },
        BindingSpec {
            namespace: "kube-system",
            name: "system::extension-apiserver-authentication-reader",
            role: ("Role", "extension-apiserver-authentication-reader"),
            subjects: &[("User", "system:kube-controller-manager"), ("User", "system:kube-scheduler")],
        },
    ]
}

/// Says that [`super::reconcile`] looks after an object.
pub(crate) const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

fn metadata(namespace: &str, name: &str, labels: Value) -> Value {
    let mut metadata = json!({"name": name, "annotations": {AUTOUPDATE: "true"}, "labels": labels});
    metadata["labels"]["kubernetes.io/bootstrapping"] = json!("rbac-defaults");
    if !namespace.is_empty() {
        metadata["namespace"] = json!(namespace);
    }
    metadata
}

fn aggregate_label(to: &str) -> String {
    format!("rbac.authorization.k8s.io/aggregate-to-{to}")
}

const API_VERSION: &str = "rbac.authorization.k8s.io/v1";

impl RoleSpec {
    /// The object.
    pub(crate) fn object(&self) -> Value {
        let mut labels = json!({});
        for to in self.to {
            labels[aggregate_label(to)] = json!("true");
        }
        let kind = if self.namespace.is_empty() { "ClusterRole" } else { "Role" };
        let rules: Vec<Value> = self.rules.iter().map(PolicyRule::to_json).collect();
        let mut object = json!({
            "apiVersion": API_VERSION, "kind": kind, "metadata": metadata(self.namespace, self.name, labels),
            "rules": rules,
        });
        if !self.collects.is_empty() {
            let selector = json!({"matchLabels": {aggregate_label(self.collects): "true"}});
            object["aggregationRule"] = json!({"clusterRoleSelectors": [selector]});
        }
        object
    }
}

impl BindingSpec {
    /// The object.
    pub(crate) fn object(&self) -> Value {
        let kind = if self.namespace.is_empty() { "ClusterRoleBinding" } else { "RoleBinding" };
        let group = "rbac.authorization.k8s.io";
        let subjects: Vec<Value> = self
            .subjects
            .iter()
            .map(|(kind, name)| json!({"kind": kind, "apiGroup": group, "name": name}))
            .collect();
        let mut object = json!({
            "apiVersion": API_VERSION, "kind": kind, "metadata": metadata(self.namespace, self.name, json!({})),
            "roleRef": {"apiGroup": group, "kind": self.role.0, "name": self.role.1},
        });
        if !subjects.is_empty() {
            object["subjects"] = json!(subjects);
        }
        object
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_binding_names_a_role_that_is_there_and_none_comes_twice() {
        let mut seen = BTreeSet::new();
        for role in roles() {
            assert!(seen.insert((role.namespace, role.name)), "{}", role.name);
        }
        for binding in bindings() {
            let place = if binding.role.0 == "Role" { binding.namespace } else { "" };
            assert!(seen.contains(&(place, binding.role.1)), "{}", binding.name);
        }
    }

    #[test]
    fn all_of_them_are_valid() {
        let kinds = sheaf_api::kinds();
        for object in roles().iter().map(RoleSpec::object).chain(bindings().iter().map(BindingSpec::object)) {
            let kind = kinds
                .iter()
                .find(|k| object["kind"] == k.kind.as_str() && k.group == super::super::GROUP)
                .unwrap();
            assert_eq!(kind.rules.validate(&object, None), [], "{object}");
        }
    }
}
