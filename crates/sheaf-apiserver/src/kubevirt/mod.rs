//! The subresources of virtual machines (`subresources.kubevirt.io`), and the upload of images.
//!
//! Apart from the generic server: it is reached through [`Extension`] only, and changes objects through the ordinary
//! path. [`vm`] and [`vmi`] write desired state; [`streams`] finds the node and relays to its agent; [`usage`] owns the history
//! of what nodes and machines use.

mod admit;
mod dump;
mod evacuate;
mod expand;
mod metrics;
#[cfg(test)]
mod queue_tests;
mod streams;
mod usage;
mod vm;
mod vmi;
mod volumes;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use sheaf_meta::{
    path::ResourcePath,
    status::{ResourceRef, Status},
};
use tokio_util::sync::CancellationToken;

pub use admit::Machines;
pub(crate) use evacuate::intercept_eviction;

use crate::{
    authz::Attributes,
    body,
    core::{Core, Cx},
    extension::{Extension, VirtualGroup, VirtualResource},
    http::{Outcome, Request, bare, json as answer_json},
    internal,
    pki::{Ca, PkiError},
    relay::Relay,
};

const GROUP: &str = "subresources.kubevirt.io";
const VERSIONS: &[&str] = &["v1", "v1alpha3"];
const UPLOADS: &str = "/v1/harvester/harvesterhci.io.virtualmachineimages/";
/// As errors name them upstream.
const VM: ResourceRef<'static> = ResourceRef { group: "kubevirt.io", plural: "virtualmachine" };
const VMI: ResourceRef<'static> = ResourceRef { group: "kubevirt.io", plural: "virtualmachineinstance" };
/// A change that lost a race is decided again at most this often.
const RETRIES: usize = 8;

/// The extension.
pub struct Kubevirt {
    relay: Relay,
    usage: usage::Usage,
}

impl Kubevirt {
    /// Prepares the client certificate for relaying to nodes.
    pub fn new(ca: &Arc<Ca>, stop: CancellationToken) -> Result<Self, PkiError> {
        Ok(Self { relay: Relay::new(ca.clone(), stop)?, usage: usage::Usage::default() })
    }

    /// Keeps the history of what nodes and machines use, until it is dropped.
    pub(crate) async fn keep_usage(self: Arc<Self>, core: Arc<Core>) {
        self.usage.keep(&core, &self.relay).await;
    }
}

/// Subresources, by resource: name and verb.
const SUBRESOURCES: &[(&str, &[(&str, &str)])] = &[
    (
        "virtualmachines",
        &[
            ("start", "update"),
            ("stop", "update"),
            ("restart", "update"),
            ("migrate", "update"),
            ("addvolume", "update"),
            ("removevolume", "update"),
            ("memorydump", "update"),
            ("removememorydump", "update"),
            ("evacuate/cancel", "update"),
            ("expand-spec", "get"),
            ("portforward", "get"),
        ],
    ),
    (
        "virtualmachineinstances",
        &[
            ("pause", "update"),
            ("unpause", "update"),
            ("softreboot", "update"),
            ("reset", "update"),
            ("freeze", "update"),
            ("unfreeze", "update"),
            ("addvolume", "update"),
            ("removevolume", "update"),
            ("evacuate/cancel", "update"),
            ("sev/setupsession", "update"),
            ("sev/injectlaunchsecret", "update"),
            ("sev/fetchcertchain", "get"),
            ("sev/querylaunchmeasurement", "get"),
            ("console", "get"),
            ("vnc", "get"),
            ("vnc/screenshot", "get"),
            ("portforward", "get"),
            ("usbredir", "get"),
            ("vsock", "get"),
            ("guestosinfo", "get"),
            ("userlist", "get"),
            ("filesystemlist", "get"),
        ],
    ),
];
/// Where a VM is expanded that is not stored.
const EXPAND: &str = "expand-vm-spec";

/// Whether a subresource needs a body that says something.
fn needs_body(sub: &str) -> bool {
    matches!(sub, "addvolume" | "removevolume" | "memorydump" | "freeze")
}

impl Extension for Kubevirt {
    fn groups(&self) -> Vec<VirtualGroup> {
        let resources = SUBRESOURCES.iter().flat_map(|(resource, subs)| {
            subs.iter().map(move |(sub, verb)| VirtualResource {
                name: format!("{resource}/{sub}"),
                kind: if *resource == "virtualmachines" {
                    "VirtualMachine"
                } else {
                    "VirtualMachineInstance"
                }
                .into(),
                namespaced: true,
                verbs: vec![(*verb).into()],
            })
        });
        let mut resources: Vec<VirtualResource> = resources.collect();
        resources.push(VirtualResource {
            name: EXPAND.into(),
            kind: "VirtualMachine".into(),
            namespaced: true,
            verbs: vec!["update".into()],
        });
        let group = |version: &&str| VirtualGroup {
            group: GROUP.into(),
            version: (*version).into(),
            resources: resources.clone(),
        };
        VERSIONS.iter().map(group).collect()
    }

    fn resource<'a>(
        &'a self,
        core: &'a Arc<Core>,
        cx: &'a mut Cx,
        request: Request,
    ) -> BoxFuture<'a, Outcome> {
        Box::pin(self.subresource(core, cx, request))
    }

    fn claims(&self, path: &str) -> bool {
        path == metrics::PATH
            || path.starts_with(usage::PATH)
            || path.starts_with(UPLOADS)
            || path.starts_with("/v1/harvesterhci.io.virtualmachineimages/")
            || open_path(path).is_some()
    }

    fn path<'a>(&'a self, core: &'a Arc<Core>, cx: &'a mut Cx, request: Request) -> BoxFuture<'a, Outcome> {
        Box::pin(async move {
            if request.uri().path().trim_end_matches('/') == metrics::PATH {
                if *request.method() != Method::GET {
                    return Err(Status::method_not_allowed());
                }
                return metrics::answer(core, &self.relay, cx).await;
            }
            if let Some(of) = request.uri().path().strip_prefix(usage::PATH) {
                if *request.method() != Method::GET {
                    return Err(Status::method_not_allowed());
                }
                return self.usage.answer(core, cx, of).await;
            }
            match open_path(request.uri().path()) {
                Some(value) if *request.method() == Method::GET => Ok(answer_json(StatusCode::OK, &value)),
                Some(_) => Err(Status::method_not_allowed()),
                None => self.upload(core, cx, request).await,
            }
        })
    }

    fn authorization_subresource(&self, path: &ResourcePath) -> String {
        subresource(path)
    }
}

/// `portforward` for `portforward/22/tcp`; two-part names keep their slash.
fn subresource(path: &ResourcePath) -> String {
    match (path.subresource.as_str(), path.rest.first()) {
        ("portforward", _) | (_, None) => path.subresource.clone(),
        (sub, Some(_)) => format!("{sub}/{}", path.rest.join("/")),
    }
}

/// Paths that are open to everybody, as upstream has them.
fn open_path(path: &str) -> Option<Value> {
    let rest = path.strip_prefix("/apis/subresources.kubevirt.io/")?;
    let (version, rest) = rest.split_once('/')?;
    if !VERSIONS.contains(&version) {
        return None;
    }
    match rest.trim_end_matches('/') {
        "version" => {
            let ours = crate::health::version();
            Some(json!({
                "gitVersion": format!("v1.7.0+sheaf-{}", env!("CARGO_PKG_VERSION")),
                "gitCommit": "$Format:%H$", "gitTreeState": "clean", "buildDate": ours["buildDate"],
                "goVersion": ours["goVersion"], "compiler": ours["compiler"], "platform": ours["platform"],
            }))
        }
        "guestfs" => Some(json!({"registry": "", "tag": "", "imagePrefix": "", "gsImage": ""})),
        "healthz" => Some(json!({"apiserver": {"connectivity": "ok"}})),
        _ => None,
    }
}

impl Kubevirt {
    async fn subresource(&self, core: &Arc<Core>, cx: &mut Cx, mut request: Request) -> Outcome {
        let (namespace, name) = (cx.path.namespace.clone(), cx.path.name.clone());
        if cx.path.resource == EXPAND && !namespace.is_empty() && name.is_empty() {
            if *request.method() != Method::PUT {
                return Err(Status::method_not_allowed());
            }
            let vm = options(&mut request).await?.ok_or_else(|| {
                Status::bad_request("Request with no body, a VirtualMachine is expected as the request body")
            })?;
            return expand::given(core, &namespace, vm).await;
        }
        if namespace.is_empty() || name.is_empty() || cx.path.subresource.is_empty() {
            return Err(Status::no_such_path());
        }
        let sub = subresource(&cx.path);
        let resource = cx.path.resource.clone();
        let known = SUBRESOURCES
            .iter()
            .find(|(r, _)| *r == resource)
            .and_then(|(_, subs)| subs.iter().find(|(s, _)| *s == sub))
            .ok_or_else(Status::no_such_path)?;
        let method = if known.1 == "update" { Method::PUT } else { Method::GET };
        if *request.method() != method {
            return Err(Status::method_not_allowed());
        }
        let of_vm = resource == "virtualmachines";
        if sub == "expand-spec" {
            return expand::stored(core, &namespace, &name).await;
        }
        if sub.starts_with("sev/") {
            return Err(evacuate::no_sev(core, &namespace, &name).await);
        }
        if method == Method::GET || matches!(sub.as_str(), "reset" | "freeze" | "unfreeze") {
            return streams::relay(core, &self.relay, cx, &sub, request).await;
        }
        let given = options(&mut request).await?;
        if given.is_none() && needs_body(&sub) {
            let text = "Request with no body, a new name is expected as the request body";
            return Err(Status::bad_request(text));
        }
        let options = given.unwrap_or_else(|| json!({}));
        match (of_vm, sub.as_str()) {
            (_, "addvolume" | "removevolume") => {
                volumes::change(core, &resource, &namespace, &name, &sub, &options).await?;
            }
            (true, "memorydump") => {
                dump::change(core, &namespace, &name, &options, false).await?;
            }
            (true, "removememorydump") => {
                dump::change(core, &namespace, &name, &options, true).await?;
            }
            (_, "evacuate/cancel") => {
                evacuate::cancel(core, &resource, &namespace, &name, &options).await?;
                return Ok(bare(StatusCode::OK));
            }
            (true, "migrate") => evacuate::migrate(core, &namespace, &name, &options).await?,
            (true, _) => vm::change(core, &namespace, &name, &sub, &options, cx.now).await?,
            (false, _) => {
                vmi::change(core, &namespace, &name, &sub, &options, cx.now).await?;
                return Ok(bare(StatusCode::OK));
            }
        }
        Ok(bare(StatusCode::ACCEPTED))
    }

    async fn upload(&self, core: &Arc<Core>, cx: &mut Cx, request: Request) -> Outcome {
        let path = request.uri().path().to_string();
        let rest = path
            .strip_prefix(UPLOADS)
            .or_else(|| path.strip_prefix("/v1/harvesterhci.io.virtualmachineimages/"))
            .unwrap_or_default();
        let Some((namespace, name)) = rest.trim_end_matches('/').split_once('/') else {
            return Err(Status::no_such_path());
        };
        if *request.method() != Method::POST || cx.query.get("action") != Some("upload") {
            return Err(Status::no_such_path());
        }
        let what = Attributes {
            verb: "update",
            group: "harvesterhci.io",
            resource: "virtualmachineimages",
            namespace,
            name,
            ..Attributes::default()
        };
        core.check(&cx.user, what)?;
        streams::upload(core, &self.relay, namespace, name, request).await
    }
}

/// The body of a request, JSON or YAML; `None` if it has none.
async fn options(request: &mut Request) -> Result<Option<Value>, Status> {
    let bytes = body::read(std::mem::replace(request.body_mut(), crate::http::full(""))).await?;
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    let value = body::yaml(&bytes).map_err(|status| {
        let text = format!("Can not unmarshal Request body to struct, error: {}", status.message);
        Status::bad_request(text)
    })?;
    if !value.is_object() && !value.is_null() {
        let text = format!("Can not unmarshal Request body to struct, error: it is no object but {value}");
        return Err(Status::bad_request(text));
    }
    Ok(value.is_object().then_some(value))
}

fn object_path(plural: &str, namespace: &str, name: &str) -> String {
    format!("/apis/kubevirt.io/v1/namespaces/{namespace}/{plural}/{name}")
}

/// Decides about an object and writes what was decided, again when somebody wrote in between. `round` reads, decides and
/// writes once; its conflicts are the store's.
async fn until_written<'r>(
    kind: ResourceRef<'static>,
    name: &str,
    round: impl Fn() -> BoxFuture<'r, Result<(), Round>>,
) -> Result<(), Status> {
    for _ in 0..RETRIES {
        match round().await {
            Err(Round::Overtaken(status)) if status.reason == "Conflict" => {}
            Err(Round::Overtaken(status) | Round::Refused(status)) => return Err(status),
            Ok(()) => return Ok(()),
        }
    }
    Err(Status::conflict(kind, name, Status::STALE))
}

/// How a round of [`until_written`] failed.
enum Round {
    /// The decision was no; a conflict is an answer.
    Refused(Status),
    /// The write failed; a conflict means that somebody was faster.
    Overtaken(Status),
}

impl From<Status> for Round {
    fn from(status: Status) -> Self {
        Self::Refused(status)
    }
}

async fn get_vmi(core: &Arc<Core>, namespace: &str, name: &str) -> Result<Option<Value>, Status> {
    internal::get(core, &object_path("virtualmachineinstances", namespace, name)).await
}

/// `dryRun: ["All"]` of the options object.
fn dry_run(options: &Value) -> Result<&'static str, Status> {
    let values = options.get("dryRun").and_then(Value::as_array).into_iter().flatten();
    let mut query = "";
    for value in values {
        if value != "All" {
            return Err(Status::bad_request(format!(
                "dryRun: Unsupported value: {value}: supported values: \"All\""
            )));
        }
        query = "?dryRun=All";
    }
    Ok(query)
}

/// Whether a condition of an object is `True`.
fn condition(object: &Value, kind: &str) -> bool {
    let all = object.pointer("/status/conditions").and_then(Value::as_array);
    all.into_iter().flatten().any(|c| c["type"] == kind && c["status"] == "True")
}

fn phase(vmi: &Value) -> &str {
    vmi.pointer("/status/phase").and_then(Value::as_str).unwrap_or_default()
}

fn is_final(vmi: &Value) -> bool {
    matches!(phase(vmi), "Succeeded" | "Failed")
}
