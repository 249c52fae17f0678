//! Discovery: which groups, versions and resources there are, plain and aggregated.
//!
//! Made from the registry's rows and the extensions' virtual groups on each request; cheap enough, and never stale.
//! The core group comes first, then groups in the order in which they were registered.

use std::sync::Arc;

use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use sheaf_meta::{path::Target, status::Status};

use crate::{
    core::Core,
    http::{Outcome, Response, answer, bare, json as answer_json},
    negotiate,
    pki::hex,
    registry::Row,
};

/// One resource of a group-version, ready to be rendered in either form.
#[derive(Default)]
struct Resource {
    name: String,
    singular: String,
    kind: String,
    namespaced: bool,
    verbs: Vec<String>,
    short_names: Vec<String>,
    categories: Vec<String>,
    subresources: Vec<Resource>,
}

impl Resource {
    /// Group and version of the answered kind, where they are not those of the resource.
    fn foreign(&self) -> Option<(&'static str, &'static str)> {
        HOMES.iter().find(|(kind, ..)| *kind == self.kind).map(|(_, group, version)| (*group, *version))
    }
}

/// Kinds that subresources of other groups answer, and where they are at home.
const HOMES: &[(&str, &str, &str)] = &[
    ("Scale", "autoscaling", "v1"),
    ("Eviction", "policy", "v1"),
    ("TokenRequest", "authentication.k8s.io", "v1"),
];

struct Version {
    version: String,
    resources: Vec<Resource>,
}

struct Group {
    name: String,
    versions: Vec<Version>,
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

fn of_row(row: &Row) -> Resource {
    let sub = |name: &str| Resource {
        name: name.into(),
        kind: match name {
            "scale" => "Scale".into(),
            "binding" => "Binding".into(),
            "eviction" => "Eviction".into(),
            _ => row.info.kind.clone(),
        },
        namespaced: row.namespaced(),
        verbs: strings(row.verbs_of(name)),
        ..Resource::default()
    };
    Resource {
        name: row.info.plural.clone(),
        singular: row.info.singular.clone(),
        kind: row.info.kind.clone(),
        namespaced: row.namespaced(),
        verbs: strings(row.verbs()),
        short_names: row.info.short_names.clone(),
        categories: row.info.categories.clone(),
        subresources: row.subresources().into_iter().map(sub).collect(),
    }
}

/// All groups, the core group (empty name) first.
fn groups(core: &Core) -> Vec<Group> {
    let mut all = vec![Group { name: String::new(), versions: Vec::new() }];
    for row in core.registry.snapshot().rows() {
        let resource = of_row(row);
        version_of(&mut all, &row.info.group, &row.info.version).resources.push(resource);
    }
    for group in core.extensions.iter().flat_map(|e| e.groups()) {
        let version = version_of(&mut all, &group.group, &group.version);
        for given in group.resources {
            let mut resource = Resource {
                name: given.name,
                kind: given.kind,
                namespaced: given.namespaced,
                verbs: given.verbs,
                ..Resource::default()
            };
            let parent = resource.name.split_once('/').map(|(p, s)| (p.to_string(), s.to_string()));
            match parent {
                Some((parent, sub)) => {
                    resource.name = sub;
                    let exists = version.resources.iter().position(|r| r.name == parent);
                    let at = exists.unwrap_or_else(|| {
                        let namespaced = resource.namespaced;
                        version.resources.push(Resource { name: parent, namespaced, ..Resource::default() });
                        version.resources.len() - 1
                    });
                    let siblings = &mut version.resources[at].subresources;
                    siblings.retain(|s| s.name != resource.name);
                    siblings.push(resource);
                }
                None => {
                    resource.singular = resource.kind.to_ascii_lowercase();
                    version.resources.push(resource);
                }
            }
        }
    }
    for group in &mut all {
        group.versions.sort_by(|a, b| sheaf_meta::gvk::compare_versions(&a.version, &b.version));
        // By name, as clients are used to see them.
        for version in &mut group.versions {
            version.resources.sort_by(|a, b| a.name.cmp(&b.name));
            for resource in &mut version.resources {
                resource.subresources.sort_by(|a, b| a.name.cmp(&b.name));
            }
        }
    }
    all
}

fn version_of<'a>(all: &'a mut Vec<Group>, group: &str, version: &str) -> &'a mut Version {
    let g = all.iter().position(|g| g.name == group).unwrap_or_else(|| {
        all.push(Group { name: group.into(), versions: Vec::new() });
        all.len() - 1
    });
    let versions = &mut all[g].versions;
    let v = versions.iter().position(|v| v.version == version).unwrap_or_else(|| {
        versions.push(Version { version: version.into(), resources: Vec::new() });
        versions.len() - 1
    });
    &mut versions[v]
}

fn group_version_string(group: &str, version: &str) -> String {
    if group.is_empty() { version.into() } else { format!("{group}/{version}") }
}

/// `/api` and `/apis`. The aggregated form has a tag, so that who has it already is not sent it again.
pub(crate) fn root(core: &Arc<Core>, route: &Target, accept: &str, if_none_match: &str) -> Response {
    let core_group = matches!(route, Target::CoreVersions);
    let all: Vec<Group> = groups(core).into_iter().filter(|g| g.name.is_empty() == core_group).collect();
    let mut response = match negotiate::discovery(accept) {
        Some(version) => {
            let body = json!({
                "kind": "APIGroupDiscoveryList",
                "apiVersion": format!("apidiscovery.k8s.io/{version}"),
                "metadata": {},
                "items": all.iter().map(aggregated).collect::<Vec<_>>(),
            });
            // Clients recognise the aggregated form by exactly these parameters.
            let content_type = match version {
                "v2" => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
                _ => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
            };
            let body = body.to_string();
            let tag = format!("\"{}\"", hex(&Sha256::digest(&body)).to_ascii_uppercase());
            let known = if_none_match.split(',').any(|t| t.trim() == tag || t.trim() == "*");
            let mut response = if known {
                bare(StatusCode::NOT_MODIFIED)
            } else {
                answer(StatusCode::OK, HeaderValue::from_static(content_type), body)
            };
            if let Ok(tag) = HeaderValue::from_str(&tag) {
                response.headers_mut().insert(header::ETAG, tag);
            }
            let revalidate = HeaderValue::from_static("public");
            response.headers_mut().insert(header::CACHE_CONTROL, revalidate);
            response
        }
        None if core_group => {
            let versions: Vec<&String> = all.iter().flat_map(|g| &g.versions).map(|v| &v.version).collect();
            answer_json(
                StatusCode::OK,
                &json!({"kind": "APIVersions", "versions": versions, "serverAddressByClientCIDRs": []}),
            )
        }
        None => {
            let list: Vec<Value> = all.iter().map(plain_group).collect();
            answer_json(StatusCode::OK, &json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": list}))
        }
    };
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}

fn plain_group(group: &Group) -> Value {
    let version = |v: &Version| {
        json!({
            "groupVersion": group_version_string(&group.name, &v.version), "version": v.version,
        })
    };
    json!({
        "name": group.name,
        "versions": group.versions.iter().map(version).collect::<Vec<_>>(),
        "preferredVersion": group.versions.first().map(version),
    })
}

fn aggregated(group: &Group) -> Value {
    let kind_of = |r: &Resource, v: &Version| {
        let (g, version) = r.foreign().unwrap_or((&group.name, &v.version));
        json!({"group": g, "version": version, "kind": r.kind})
    };
    let scope = |namespaced: bool| if namespaced { "Namespaced" } else { "Cluster" };
    let resource = |r: &Resource, v: &Version| {
        let mut out = json!({
            "resource": r.name, "scope": scope(r.namespaced), "singularResource": r.singular, "verbs": r.verbs,
        });
        // A resource that exists only through its subresources answers no kind of its own; clients want one.
        let kind = if r.kind.is_empty() {
            r.subresources.first().map(|s| kind_of(s, v))
        } else {
            Some(kind_of(r, v))
        };
        out["responseKind"] = json!(kind);
        if !r.short_names.is_empty() {
            out["shortNames"] = json!(r.short_names);
        }
        if !r.categories.is_empty() {
            out["categories"] = json!(r.categories);
        }
        if !r.subresources.is_empty() {
            let subs: Vec<Value> = r
                .subresources
                .iter()
                .map(|s| json!({"subresource": s.name, "responseKind": kind_of(s, v), "verbs": s.verbs}))
                .collect();
            out["subresources"] = json!(subs);
        }
        out
    };
    let versions: Vec<Value> = group
        .versions
        .iter()
        .map(|v| {
            let resources: Vec<Value> = v.resources.iter().map(|r| resource(r, v)).collect();
            json!({"version": v.version, "resources": resources, "freshness": "Current"})
        })
        .collect();
    let mut metadata = json!({"creationTimestamp": null});
    if !group.name.is_empty() {
        metadata["name"] = json!(group.name);
    }
    json!({"metadata": metadata, "versions": versions})
}

/// `/apis/GROUP`.
pub(crate) fn group(core: &Arc<Core>, name: &str) -> Outcome {
    let all = groups(core);
    let group = all.iter().find(|g| g.name == name && !name.is_empty()).ok_or_else(Status::no_such_path)?;
    let mut body = plain_group(group);
    body["kind"] = json!("APIGroup");
    body["apiVersion"] = json!("v1");
    Ok(answer_json(StatusCode::OK, &body))
}

/// `/api/v1` and `/apis/GROUP/VERSION`.
pub(crate) fn group_version(core: &Arc<Core>, group: &str, version: &str) -> Outcome {
    let all = groups(core);
    let found = all
        .iter()
        .find(|g| g.name == group)
        .and_then(|g| g.versions.iter().find(|v| v.version == version))
        .ok_or_else(Status::no_such_path)?;
    let mut list = Vec::new();
    for r in &found.resources {
        if !r.kind.is_empty() {
            list.push(plain_resource(r, None));
        }
        list.extend(r.subresources.iter().map(|s| plain_resource(s, Some(&r.name))));
    }
    Ok(answer_json(
        StatusCode::OK,
        &json!({
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": group_version_string(group, version),
            "resources": list,
        }),
    ))
}

fn plain_resource(r: &Resource, parent: Option<&str>) -> Value {
    let name = parent.map_or_else(|| r.name.clone(), |p| format!("{p}/{}", r.name));
    let mut out = json!({
        "name": name, "singularName": r.singular, "namespaced": r.namespaced, "kind": r.kind, "verbs": r.verbs,
    });
    if let Some((group, version)) = r.foreign() {
        out["group"] = json!(group);
        out["version"] = json!(version);
    }
    if !r.short_names.is_empty() {
        out["shortNames"] = json!(r.short_names);
    }
    if !r.categories.is_empty() {
        out["categories"] = json!(r.categories);
    }
    out
}

/// `/`.
pub(crate) fn paths(core: &Arc<Core>) -> Response {
    let mut all: Vec<String> = vec!["/api".into(), "/api/v1".into(), "/apis".into()];
    for group in groups(core).iter().filter(|g| !g.name.is_empty()) {
        all.push(format!("/apis/{}", group.name));
        all.extend(group.versions.iter().map(|v| format!("/apis/{}/{}", group.name, v.version)));
    }
    all.extend(["/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/version"].map(String::from));
    answer_json(StatusCode::OK, &json!({"paths": all}))
}
