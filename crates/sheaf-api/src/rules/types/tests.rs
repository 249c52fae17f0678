//! What Kubernetes' API server makes of objects, as tables: manifests as users write them, with what is filled in and
//! what is said against them.

use serde_json::{Value, json};

use super::*;

fn rules(kind: &str) -> Arc<dyn Rules> {
    let kinds = crate::kinds();
    let Some(found) = kinds.into_iter().find(|k| k.kind == kind) else { panic!("{kind} is not served") };
    found.rules
}

fn defaulted(kind: &str, mut object: Value) -> Value {
    rules(kind).default(&mut object, None);
    object
}

/// Reads YAML, which tables are easier to read in.
fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// `field: message` of each problem, without the value that is quoted in it.
fn problems(kind: &str, object: &Value, old: Option<&Value>) -> Vec<String> {
    rules(kind).validate(object, old).iter().map(|e| format!("{}: {}", e.field, e.message)).collect()
}

#[test]
fn each_line_of_the_table_is_about_a_type_and_field_that_there_is() {
    for (name, rule) in table::TABLE.iter() {
        let long = ["io.k8s.api.", "io.k8s.apimachinery.pkg.apis.", "io.k8s.kube-aggregator.pkg.apis."];
        let shape = long.iter().find_map(|prefix| crate::kinds::shape_of(&format!("{prefix}{name}")));
        let Some(shape) = shape else { panic!("{name} is no type") };
        for field in rule.fields.keys() {
            assert!(shape["properties"].get(*field).is_some(), "{name} has no field {field}");
        }
    }
}

#[test]
fn filled_in() {
    const POD: &str =
        "{terminationMessagePath: /dev/termination-log, terminationMessagePolicy: File, resources: {}";
    let pod_spec = "restartPolicy: Always, dnsPolicy: ClusterFirst, schedulerName: default-scheduler, \
        terminationGracePeriodSeconds: 30, securityContext: {}";
    let template = format!(
        "{{metadata: {{labels: {{a: b}}}}, spec: {{{pod_spec}, containers: [{POD}, name: c, image: 'i:1', imagePullPolicy: IfNotPresent}}]}}}}"
    );
    let given = "{metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: 'i:1'}]}}";
    let table = [
        (
            "Deployment",
            format!("{{spec: {{selector: {{matchLabels: {{a: b}}}}, template: {given}}}}}"),
            format!(
                "{{spec: {{selector: {{matchLabels: {{a: b}}}}, template: {template}, replicas: 1,
                strategy: {{type: RollingUpdate, rollingUpdate: {{maxSurge: 25%, maxUnavailable: 25%}}}},
                revisionHistoryLimit: 10, progressDeadlineSeconds: 600}}, status: {{}}}}"
            ),
        ),
        (
            "StatefulSet",
            format!("{{spec: {{template: {given}, volumeClaimTemplates: [{{metadata: {{name: d}}, spec: {{}}}}]}}}}"),
            format!(
                "{{spec: {{template: {template}, replicas: 1, podManagementPolicy: OrderedReady, revisionHistoryLimit: 10,
                updateStrategy: {{type: RollingUpdate, rollingUpdate: {{partition: 0}}}},
                persistentVolumeClaimRetentionPolicy: {{whenDeleted: Retain, whenScaled: Retain}},
                volumeClaimTemplates: [{{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {{name: d}},
                spec: {{volumeMode: Filesystem, resources: {{}}}}, status: {{phase: Pending}}}}]}},
                status: {{replicas: 0, availableReplicas: 0}}}}"
            ),
        ),
        (
            "DaemonSet",
            format!("{{spec: {{template: {given}}}}}"),
            format!(
                "{{spec: {{template: {template}, revisionHistoryLimit: 10,
                updateStrategy: {{type: RollingUpdate, rollingUpdate: {{maxUnavailable: 1, maxSurge: 0}}}}}},
                status: {{currentNumberScheduled: 0, desiredNumberScheduled: 0, numberMisscheduled: 0, numberReady: 0}}}}"
            ),
        ),
        (
            "ReplicationController",
            format!("{{spec: {{template: {given}}}}}"),
            format!(
                "{{metadata: {{labels: {{a: b}}}}, spec: {{selector: {{a: b}}, replicas: 1, template: {template}}}, status: {{replicas: 0}}}}"
            ),
        ),
        (
            "Job",
            "{metadata: {name: j, uid: u}, spec: {template: {spec: {restartPolicy: Never}}}}".into(),
            format!(
                "{{metadata: {{name: j, uid: u, labels: {{controller-uid: u, job-name: j, batch.kubernetes.io/controller-uid: u,
                batch.kubernetes.io/job-name: j}}}}, status: {{}}, spec: {{parallelism: 1, completions: 1, backoffLimit: 6,
                completionMode: NonIndexed, suspend: false, podReplacementPolicy: TerminatingOrFailed, manualSelector: false,
                selector: {{matchLabels: {{batch.kubernetes.io/controller-uid: u}}}},
                template: {{metadata: {{labels: {{controller-uid: u, job-name: j, batch.kubernetes.io/controller-uid: u,
                batch.kubernetes.io/job-name: j}}}}, spec: {{{}}}}}}}}}",
                pod_spec.replace("Always", "Never")
            ),
        ),
        (
            "CronJob",
            "{spec: {schedule: '@daily', jobTemplate: {spec: {template: {spec: {}}}}}}".into(),
            format!(
                "{{spec: {{schedule: '@daily', concurrencyPolicy: Allow, suspend: false, successfulJobsHistoryLimit: 3,
                failedJobsHistoryLimit: 1, jobTemplate: {{spec: {{template: {{spec: {{{pod_spec}}}}}}}}}}}, status: {{}}}}"
            ),
        ),
        (
            "Service",
            "{spec: {ports: [{port: 80}], selector: {a: b}}}".into(),
            "{spec: {type: ClusterIP, sessionAffinity: None, internalTrafficPolicy: Cluster, ipFamilies: [IPv4],
              ipFamilyPolicy: SingleStack, selector: {a: b}, ports: [{port: 80, targetPort: 80, protocol: TCP}]},
              status: {loadBalancer: {}}}".into(),
        ),
        (
            "Service",
            "{spec: {type: LoadBalancer, clusterIP: None, sessionAffinity: ClientIP, ports: []}}".into(),
            "{spec: {type: LoadBalancer, clusterIP: None, clusterIPs: [None], sessionAffinity: ClientIP,
              sessionAffinityConfig: {clientIP: {timeoutSeconds: 10800}}, internalTrafficPolicy: Cluster,
              externalTrafficPolicy: Cluster, allocateLoadBalancerNodePorts: true, ipFamilies: [IPv4],
              ipFamilyPolicy: SingleStack, ports: []}, status: {loadBalancer: {}}}".into(),
        ),
        (
            "Service",
            "{spec: {type: ExternalName, externalName: a.b}}".into(),
            "{spec: {type: ExternalName, externalName: a.b, sessionAffinity: None}, status: {loadBalancer: {}}}".into(),
        ),
        (
            "NetworkPolicy",
            "{spec: {podSelector: {}, egress: [{ports: [{port: 53}]}]}}".into(),
            "{spec: {podSelector: {}, policyTypes: [Ingress, Egress], egress: [{ports: [{port: 53, protocol: TCP}]}]}}".into(),
        ),
        (
            "HorizontalPodAutoscaler",
            "{spec: {maxReplicas: 3, scaleTargetRef: {kind: Deployment, name: d}, behavior: {scaleDown: {}}}}".into(),
            "{spec: {maxReplicas: 3, minReplicas: 1, scaleTargetRef: {kind: Deployment, name: d},
              metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 80}}}],
              behavior: {scaleUp: {selectPolicy: Max, stabilizationWindowSeconds: 0,
                policies: [{type: Pods, value: 4, periodSeconds: 15}, {type: Percent, value: 100, periodSeconds: 15}]},
                scaleDown: {selectPolicy: Max, policies: [{type: Percent, value: 100, periodSeconds: 15}]}}},
              status: {desiredReplicas: 0}}".into(),
        ),
        (
            "LimitRange",
            "{spec: {limits: [{type: Container, max: {cpu: '2'}, min: {memory: 1Mi}}]}}".into(),
            "{spec: {limits: [{type: Container, max: {cpu: '2'}, min: {memory: 1Mi}, default: {cpu: '2'},
              defaultRequest: {cpu: '2', memory: 1Mi}}]}}".into(),
        ),
        (
            "RoleBinding",
            "{roleRef: {kind: Role, name: r}, subjects: [{kind: User, name: u}, {kind: ServiceAccount, name: s, namespace: n}]}".into(),
            "{roleRef: {kind: Role, name: r, apiGroup: rbac.authorization.k8s.io},
              subjects: [{kind: User, name: u, apiGroup: rbac.authorization.k8s.io}, {kind: ServiceAccount, name: s, namespace: n}]}".into(),
        ),
        (
            "ValidatingWebhookConfiguration",
            "{webhooks: [{name: a.b.c, rules: [{}], clientConfig: {service: {name: s, namespace: n}}}]}".into(),
            "{webhooks: [{name: a.b.c, failurePolicy: Fail, matchPolicy: Equivalent, namespaceSelector: {}, objectSelector: {},
              timeoutSeconds: 10, rules: [{scope: '*'}], clientConfig: {service: {name: s, namespace: n, port: 443}}}]}".into(),
        ),
        (
            "CSIDriver",
            "{spec: {}}".into(),
            "{spec: {attachRequired: true, podInfoOnMount: false, storageCapacity: false, requiresRepublish: false,
              seLinuxMount: false, fsGroupPolicy: ReadWriteOnceWithFSType, volumeLifecycleModes: [Persistent]}}".into(),
        ),
        (
            "PersistentVolumeClaim",
            "{spec: {resources: {requests: {storage: 1024Mi}}}}".into(),
            "{spec: {volumeMode: Filesystem, resources: {requests: {storage: 1Gi}}}, status: {phase: Pending}}".into(),
        ),
    ];
    for (kind, given, want) in &table {
        let got = defaulted(kind, yaml(given));
        assert_eq!(got, yaml(want), "{kind} {given}\n{got:#}");
        assert_eq!(defaulted(kind, got.clone()), got, "{kind}: defaults are filled in once");
    }
}

#[test]
fn a_pod_is_completed() {
    let pod = defaulted(
        "Pod",
        yaml(
            "{spec: {hostNetwork: true, serviceAccountName: s, containers: [{name: c, image: 'r.io:5000/i', ports: [{containerPort: 80}],
              livenessProbe: {httpGet: {port: 80}, timeoutSeconds: 0}, env: [{name: E, valueFrom: {fieldRef: {fieldPath: p}}}],
              resources: {limits: {cpu: 1000m, memory: 0.5Gi}, requests: {memory: 1048576}}}],
              volumes: [{name: e}, {name: m, configMap: {name: m}}, {name: p, projected: {sources: [{serviceAccountToken: {path: t}}]}}]}}",
        ),
    );
    let spec = &pod["spec"];
    let container = &spec["containers"][0];
    assert_eq!(container["imagePullPolicy"], "Always", "a port is no tag");
    assert_eq!(container["ports"][0], json!({"containerPort": 80, "hostPort": 80, "protocol": "TCP"}));
    assert_eq!(
        container["livenessProbe"],
        json!({"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10,
            "successThreshold": 1, "failureThreshold": 3})
    );
    assert_eq!(container["env"][0]["valueFrom"]["fieldRef"]["apiVersion"], "v1");
    assert_eq!(
        container["resources"],
        json!({"limits": {"cpu": "1", "memory": "512Mi"}, "requests": {"cpu": "1", "memory": "1048576"}}),
        "limits stand for requests, and quantities are canonical"
    );
    assert_eq!(spec["volumes"][0]["emptyDir"], json!({}));
    assert_eq!(spec["volumes"][1]["configMap"]["defaultMode"], 420);
    assert_eq!(
        spec["volumes"][2]["projected"]["sources"][0]["serviceAccountToken"]["expirationSeconds"],
        3600
    );
    assert_eq!((&spec["enableServiceLinks"], &spec["serviceAccount"]), (&json!(true), &json!("s")));
    for (image, policy) in
        [("i", "Always"), ("i:latest", "Always"), ("i:1", "IfNotPresent"), ("i@sha256:0", "IfNotPresent")]
    {
        let pod = defaulted("Pod", json!({"spec": {"containers": [{"name": "c", "image": image}]}}));
        assert_eq!(pod["spec"]["containers"][0]["imagePullPolicy"], policy, "{image}");
    }
}

/// Kind, manifest, what is said; a manifest is defaulted first.
#[test]
fn refused() {
    let table: &[(&str, &str, &[&str])] = &[
        ("Pod", "{spec: {containers: []}}", &["spec.containers: Required value"]),
        (
            "Pod",
            "{spec: {containers: [{name: A_b, image: i}, {name: c, image: i, ports: [{containerPort: 0}]}, {name: c}]}}",
            &[
                "spec.containers[2].name: Duplicate value: \"c\"",
                "spec.containers[0].name: Invalid value: \"A_b\": a lowercase RFC 1123 label must consist of",
                "spec.containers[1].ports[0].containerPort: Invalid value: 0: must be between 1 and 65535, inclusive",
                "spec.containers[2].image: Required value",
            ],
        ),
        (
            "Pod",
            "{spec: {restartPolicy: Sometimes, containers: [{name: c, image: i, volumeMounts: [{name: v, mountPath: /v}]}]}}",
            &[
                "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"Never\", \"OnFailure\"",
                "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
            ],
        ),
        (
            "Pod",
            "{spec: {containers: [{name: c, image: i, resources: {limits: {cpu: 1}, requests: {cpu: 2, memory: x}}}]}}",
            &[
                "spec.containers[0].resources.requests[memory]: Invalid value: \"x\"",
                "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
            ],
        ),
        (
            "Deployment",
            "{spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: c}}, spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}}",
            &[
                "spec.template.metadata.labels: Invalid value: {\"a\":\"c\"}: `selector` does not match template `labels`",
                "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
            ],
        ),
        (
            "Deployment",
            "{spec: {selector: {}, template: {spec: {containers: [{name: c, image: i}]}}}}",
            &["spec.selector: Invalid value: {}: empty selector is invalid for deployment"],
        ),
        (
            "DaemonSet",
            "{spec: {selector: {matchExpressions: [{key: a, operator: In}, {key: b, operator: Equals}]},
              updateStrategy: {rollingUpdate: {maxUnavailable: 0}}, template: {spec: {containers: [{name: c, image: i}]}}}}",
            &[
                "spec.selector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'",
                "spec.selector.matchExpressions[1].operator: Invalid value: \"Equals\": not a valid selector operator",
                "spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
            ],
        ),
        (
            "Job",
            "{metadata: {name: j, uid: u}, spec: {template: {spec: {containers: [{name: c, image: i}]}}}}",
            &["spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""],
        ),
        (
            "CronJob",
            "{metadata: {name: c}, spec: {schedule: '61 * * * *', jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}}}}",
            &["spec.schedule: Invalid value: \"61 * * * *\": end of range (61) above maximum (59): 61"],
        ),
        (
            "Service",
            "{spec: {ports: [{port: 80}, {port: 70000, name: a}], clusterIP: 1.2.3}}",
            &[
                "spec.ports[1].port: Invalid value: 70000: must be between 1 and 65535, inclusive",
                "spec.ports[1].targetPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
                "spec.ports[0].name: Required value",
                "spec.clusterIPs[0]: Invalid value: \"1.2.3\": must be a valid IP address",
            ],
        ),
        ("Service", "{spec: {}}", &["spec.ports: Required value"]),
        (
            "Ingress",
            "{spec: {rules: [{host: 1.2.3.4, http: {paths: [{path: x, pathType: Prefix, backend: {service: {name: s}}}]}}]}}",
            &[
                "spec.rules[0].http.paths[0].backend.service.port: Required value: port name or number is required",
                "spec.rules[0].http.paths[0].path: Invalid value: \"x\": must be an absolute path",
                "spec.rules[0].host: Invalid value: \"1.2.3.4\": must be a DNS name, not an IP address",
            ],
        ),
        ("NetworkPolicy", "{spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0}}]}]}}", &[
            "spec.ingress[0].from[0].ipBlock.cidr: Invalid value: \"10.0.0.0\": must be a valid CIDR value",
        ]),
        (
            "Endpoints",
            "{subsets: [{addresses: [{ip: 169.254.169.254}, {ip: x}, {ip: 10.0.0.24}]}]}",
            &[
                "subsets[0].addresses[0].ip: Invalid value: \"169.254.169.254\": may not be in the link-local range (169.254.0.0/16, fe80::/10)",
                "subsets[0].addresses[1].ip: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ],
        ),
        ("EndpointSlice", "{addressType: IPv6, endpoints: [{addresses: ['fe80::1']}]}", &[
            "endpoints[0].addresses[0]: Invalid value: \"fe80::1\": may not be in the link-local range (169.254.0.0/16, fe80::/10)",
        ]),
        ("IPAddress", "{spec: {parentRef: {name: a/b}}}", &[
            "spec.parentRef.name: Invalid value: \"a/b\": may not contain '/'",
            "spec.parentRef.resource: Required value",
        ]),
        ("ServiceCIDR", "{spec: {}}", &["spec.cidrs: Required value: at least one CIDR required"]),
        ("ServiceCIDR", "{spec: {cidrs: [10.0.0.0/8, 'fd00::/200']}}", &[
            "spec.cidrs[1]: Invalid value: \"fd00::/200\": must be a valid CIDR value",
        ]),
        ("ServiceCIDR", "{spec: {cidrs: [10.0.0.0/8, 11.0.0.0/8]}}", &[
            "spec.cidrs: Invalid value: {\"cidrs\":[\"10.0.0.0/8\",\"11.0.0.0/8\"]}: may specify no more than one IP for each IP family",
        ]),
        (
            "PodDisruptionBudget",
            "{spec: {minAvailable: 1, maxUnavailable: 150%}}",
            &[
                "spec.maxUnavailable: Invalid value: \"150%\": must not be greater than 100%",
                "spec: Invalid value: {\"maxUnavailable\":\"150%\",\"minAvailable\":1}: minAvailable and maxUnavailable cannot be both set",
            ],
        ),
        ("HorizontalPodAutoscaler", "{spec: {maxReplicas: 1, minReplicas: 2, scaleTargetRef: {kind: D, name: d}}}", &[
            "spec.maxReplicas: Invalid value: 1: must be greater than or equal to `minReplicas`",
        ]),
        ("PriorityClass", "{metadata: {name: p}, value: 1000000001}", &[
            "value: Forbidden: maximum allowed value of a user defined priority is 1000000000",
        ]),
        ("Role", "{metadata: {namespace: n}, rules: [{apiGroups: ['']}]}", &[
            "rules[0].verbs: Required value: verbs must contain at least one value",
            "rules[0].resources: Required value: resource rules must supply at least one resource",
        ]),
        (
            "LimitRange",
            "{spec: {limits: [{type: Container, max: {cpu: 1}, min: {cpu: 2}}]}}",
            &[
                "spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1",
                "spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than default request value 1",
                "spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than default value 1",
            ],
        ),
        ("ResourceQuota", "{spec: {hard: {cpu: -1, nonsense: 1}, scopes: [BestEffort, NotBestEffort]}}", &[
            "spec.hard[cpu]: Invalid value: \"-1\": must be greater than or equal to 0",
            "spec.hard: Invalid value: \"nonsense\": must be a standard resource type or fully qualified",
            "spec.hard: Invalid value: \"nonsense\": must be a standard resource for quota",
            "spec.scopes: Invalid value: [\"BestEffort\",\"NotBestEffort\"]: unsupported scope applied to resource",
            "spec.scopes: Invalid value: [\"BestEffort\",\"NotBestEffort\"]: conflicting scopes",
        ]),
        ("ValidatingAdmissionPolicy", "{spec: {matchConstraints: {}, paramKind: {kind: X}, variables: [{name: a b, expression: '1'}],
            validations: [{expression: 'true', reason: Foo, message: \"a\\nb\"}, {expression: 'true', message: ' '}]}}", &[
            "spec.matchConstraints.resourceRules: Required value",
            "spec.variables[0].name: Invalid value: \"a b\": name is not a valid CEL identifier",
            "spec.paramKind.apiVersion: Required value",
            "spec.validations[0].message: Invalid value: \"a\\nb\": message must not contain line breaks",
            "spec.validations[0].reason: Unsupported value: \"Foo\": supported values: \"Forbidden\", \"Invalid\", \"RequestEntityTooLarge\", \"Unauthorized\"",
            "spec.validations[1].message: Invalid value: \" \": message must be non-empty if specified",
        ]),
        ("ValidatingAdmissionPolicyBinding", "{spec: {policyName: p, validationActions: [Deny, Warn], paramRef: {}}}", &[
            "spec.validationActions: Invalid value: [\"Deny\",\"Warn\"]: must not contain both \"Deny\" and \"Warn\" (repeating the same validation failure information in the API response and headers serves no purpose)",
            "spec.paramRef: Required value: one of name or selector must be specified",
            "spec.paramRef.parameterNotFoundAction: Required value",
        ]),
        ("ValidatingAdmissionPolicyBinding", "{spec: {policyName: p, validationActions: [Deny],
            paramRef: {name: a, selector: {}, parameterNotFoundAction: Deny}}}", &[
            "spec.paramRef.name: Forbidden: name and selector are mutually exclusive",
            "spec.paramRef.selector: Forbidden: name and selector are mutually exclusive",
        ]),
        ("Lease", "{spec: {leaseDurationSeconds: 0}}", &["spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0"]),
        ("EndpointSlice", "{addressType: IPv4, endpoints: [{addresses: ['::1']}]}", &[
            "endpoints[0].addresses[0]: Invalid value: \"::1\": must be a valid IPv4 address",
        ]),
        ("RuntimeClass", "{handler: ''}", &["handler: Required value"]),
    ];
    for (kind, given, want) in table {
        let object = defaulted(kind, yaml(given));
        let got = problems(kind, &object, None);
        let fits = got.len() == want.len() && want.iter().all(|w| got.iter().any(|g| g.starts_with(w)));
        assert!(fits, "{kind} {given}\n got {got:#?}\nwant {want:#?}");
    }
}

/// Kind, what is stored, a change to it, what is said.
#[test]
fn unchangeable() {
    const TEMPLATE: &str = "{metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}";
    let workload = format!("{{spec: {{selector: {{matchLabels: {{a: b}}}}, template: {TEMPLATE}}}}}");
    let more = json!({"spec": {"selector": {"matchLabels": {"x": "y"}}, "template": {"metadata": {"labels": {"x": "y"}}}}});
    const SELECTOR: &str =
        "spec.selector: Invalid value: {\"matchLabels\":{\"a\":\"b\",\"x\":\"y\"}}: field is immutable";
    let job = "{metadata: {name: j, uid: u}, spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}}";
    let table: Vec<(&str, &str, Value, &[&str])> = vec![
        ("Deployment", &workload, more.clone(), &[SELECTOR]),
        ("ReplicaSet", &workload, more.clone(), &[SELECTOR]),
        ("DaemonSet", &workload, more.clone(), &[SELECTOR]),
        (
            "StatefulSet",
            &workload,
            more,
            &["spec: Forbidden: updates to statefulset spec for fields other than"],
        ),
        ("StatefulSet", &workload, json!({"spec": {"replicas": 3}}), &[]),
        (
            "Job",
            job,
            json!({"spec": {"template": {"spec": {"schedulerName": "x"}}}}),
            &["spec.template: Invalid value:"],
        ),
        ("Job", job, json!({"spec": {"parallelism": 4, "suspend": true}}), &[]),
        (
            "Job",
            job,
            json!({"spec": {"completions": 2}}),
            &["spec.completions: Invalid value: 2: field is immutable"],
        ),
        (
            "Pod",
            "{spec: {containers: [{name: c, image: i}]}}",
            json!({"spec": {"hostname": "x"}}),
            &["spec: Forbidden: pod updates may not change fields other than"],
        ),
        (
            "Pod",
            "{spec: {containers: [{name: c, image: i}]}}",
            json!({"spec": {"activeDeadlineSeconds": 5}}),
            &[],
        ),
        (
            "ControllerRevision",
            "{data: {a: 1}, revision: 1}",
            json!({"data": {"a": 2}}),
            &["data: Invalid value: {\"a\":2}: field is immutable"],
        ),
        ("ControllerRevision", "{data: {a: 1}, revision: 1}", json!({"revision": 2}), &[]),
        (
            "PriorityClass",
            "{metadata: {name: p}, value: 1}",
            json!({"value": 2}),
            &["value: Forbidden: may not be changed in an update."],
        ),
        (
            "RoleBinding",
            "{metadata: {namespace: n}, roleRef: {kind: Role, name: a}}",
            json!({"roleRef": {"name": "b"}}),
            &["roleRef: Invalid value:"],
        ),
        (
            "Service",
            "{spec: {clusterIP: 10.0.0.1, ports: [{port: 1}]}}",
            json!({"spec": {"clusterIP": "10.0.0.2", "clusterIPs": ["10.0.0.2"]}}),
            &["spec.clusterIPs[0]: Invalid value: [\"10.0.0.2\"]: may not change once set"],
        ),
        (
            "Service",
            "{spec: {ports: [{port: 1}]}}",
            json!({"status": {"loadBalancer": {"ingress": [{"ip": "10.0.0.2"}]}}}),
            &[
                "status.loadBalancer.ingress: Forbidden: may only be used when `spec.type` is \"LoadBalancer\"",
            ],
        ),
        (
            "ServiceCIDR",
            "{spec: {cidrs: [10.0.0.0/8]}}",
            json!({"spec": {"cidrs": ["10.0.0.0/8", "fd00::/112"]}}),
            &[],
        ),
        (
            "ServiceCIDR",
            "{spec: {cidrs: [10.0.0.0/8]}}",
            json!({"spec": {"cidrs": ["fd00::/112"]}}),
            &["spec.cidrs: Invalid value: [\"fd00::/112\"]: field is immutable"],
        ),
        (
            "IPAddress",
            "{spec: {parentRef: {resource: services, name: a}}}",
            json!({"spec": {"parentRef": {"name": "b"}}}),
            &[
                "spec.parentRef: Invalid value: {\"name\":\"b\",\"resource\":\"services\"}: field is immutable",
            ],
        ),
        (
            "IngressClass",
            "{spec: {controller: a/b}}",
            json!({"spec": {"controller": "a/c"}}),
            &["spec.controller: Invalid value: \"a/c\": field is immutable"],
        ),
        (
            "RuntimeClass",
            "{handler: a}",
            json!({"handler": "b"}),
            &["handler: Invalid value: \"b\": field is immutable"],
        ),
        (
            "EndpointSlice",
            "{addressType: IPv4}",
            json!({"addressType": "IPv6"}),
            &["addressType: Invalid value: \"IPv6\": field is immutable"],
        ),
        (
            "VolumeAttachment",
            "{spec: {attacher: a, nodeName: n, source: {}}}",
            json!({"spec": {"nodeName": "m"}}),
            &["spec: Invalid value:"],
        ),
        (
            "CSIDriver",
            "{spec: {}}",
            json!({"spec": {"attachRequired": false}}),
            &["spec.attachRequired: Invalid value: false: field is immutable"],
        ),
        (
            "ResourceQuota",
            "{spec: {scopes: [BestEffort]}}",
            json!({"spec": {"scopes": []}}),
            &["spec.scopes: Invalid value: []: field is immutable"],
        ),
        (
            "Secret",
            "{type: Opaque}",
            json!({"type": "x"}),
            &["type: Invalid value: \"x\": field is immutable"],
        ),
        (
            "ConfigMap",
            "{immutable: true, data: {a: '1'}}",
            json!({"data": {"a": "2"}}),
            &["data: Forbidden: field is immutable when `immutable` is set"],
        ),
        (
            "ConfigMap",
            "{immutable: true, data: {a: '1'}}",
            json!({"immutable": false}),
            &["immutable: Forbidden: field is immutable when `immutable` is set"],
        ),
    ];
    for (kind, stored, change, want) in &table {
        let old = defaulted(kind, yaml(stored));
        assert_eq!(problems(kind, &old, Some(&old)), [""; 0], "{kind} unchanged");
        let mut new = sheaf_meta::patch::merge_patch(&old, change);
        rules(kind).default(&mut new, Some(&old));
        let got = problems(kind, &new, Some(&old));
        let fits = got.len() == want.len() && want.iter().zip(&got).all(|(w, g)| g.starts_with(w));
        assert!(fits, "{kind} {change}\n got {got:#?}\nwant {want:#?}");
    }
}
