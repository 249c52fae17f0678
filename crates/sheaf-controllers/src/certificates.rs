//! Certificate signing requests: those of nodes are approved by rule, others when somebody has approved them; approved ones
//! are signed, if they are what their signer signs. Owns the conditions Approved (by rule), Denied (of nodes) and Failed, and
//! `status.certificate`; removes requests that are done with.
//!
//! The rule for nodes: the request names the node itself (`system:node:NAME` of `system:nodes`), comes from that node
//! or from a machine with a join token, and asks for no name that is not the node's. A token does not make one node
//! another: while a Node of that name exists, only it may renew.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use sheaf_apiserver::pki::{Ca, Grant, LEAF_DAYS, Usage};
use sheaf_runtime::{Controller, Driver, Next, ObjectKey, StepError, TaskGroup};
use tracing::{info, warn};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use crate::world::World;

const MANAGER: &str = "sheaf-certificates";
const NODE_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const NODE_SERVING: &str = "kubernetes.io/kubelet-serving";
const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
/// Requests that are settled (approved, denied, failed) are forgotten after this time.
const KEEP: SignedDuration = SignedDuration::from_hours(1);
/// And those that nobody settled after this.
const KEEP_PENDING: SignedDuration = SignedDuration::from_hours(24);
/// Clocks of machines differ: a certificate has been valid for so long when it is issued.
const BACKDATE: SignedDuration = SignedDuration::from_hours(24);
/// One that ends soon is dated back by less.
const BACKDATE_SHORT: SignedDuration = SignedDuration::from_mins(5);

struct Certificates {
    client: Client,
    world: Arc<World>,
    ca: Arc<Ca>,
}

pub(crate) fn spawn(client: &Client, world: &Arc<World>, ca: Arc<Ca>, group: &TaskGroup) {
    let controller = Certificates { client: client.clone(), world: world.clone(), ca };
    Driver::new(controller).for_each(&world.signing_requests).after(&world.nodes).spawn(group);
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    /// Approved, by rule or by somebody, and signed.
    Sign(Vec<Usage>),
    /// Refused, with the rule that refuses it.
    Deny(String),
    /// Approved by somebody, but nothing that this signer signs.
    Fail(String),
    /// Somebody has to approve it first, or somebody else signs it.
    Leave,
}

/// What a request asks for, as far as the rules look at it.
#[derive(Debug, Default)]
struct Asked {
    common_name: String,
    organizations: Vec<String>,
    dns: Vec<String>,
    addresses: Vec<IpAddr>,
    /// Names of kinds that no node needs (mail, URI).
    others: bool,
}

impl Controller for Certificates {
    const NAME: &'static str = "certificates";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, StepError> {
        let Some(request) = self.world.signing_requests.get(key) else { return Ok(Next::Done) };
        let api: Api<CertificateSigningRequest> = Api::all(self.client.clone());
        let now = Timestamp::now();
        let left = time_left(&request, now);
        if !left.is_positive() {
            return forget(&api, &request).await;
        }
        let later = Next::After(std::time::Duration::try_from(left).unwrap_or_default());
        if finished(&request) {
            return Ok(later);
        }
        let exists = |node: &str| self.world.nodes.get(&ObjectKey::new("", node)).is_some();
        let pem = String::from_utf8_lossy(&request.spec.request.0).into_owned();
        let verdict = match parse(&pem) {
            Ok(asked) => judge(&request.spec, &asked, approved(&request), exists),
            Err(why) if approved(&request) => Verdict::Fail(format!("unable to parse csr: {why}")),
            Err(_) => Verdict::Leave,
        };
        let mut conditions =
            serde_json::to_value(request.status.as_ref().and_then(|s| s.conditions.as_ref()))
                .unwrap_or_default();
        if conditions.is_null() {
            conditions = json!([]);
        }
        let status = match verdict {
            Verdict::Leave => return Ok(later),
            Verdict::Deny(why) => {
                warn!(user = request.spec.username, "certificate request denied: {why}");
                return self.settle(&api, &request, conditions, ("Denied", "NotAllowed", &why), later).await;
            }
            Verdict::Fail(why) => {
                add(&mut conditions, "Failed", "SignerValidationFailure", &why);
                json!({"conditions": conditions})
            }
            Verdict::Sign(_) if !approved(&request) => {
                let why = "Auto approving kubelet client certificate after SubjectAccessReview.";
                return self
                    .settle(&api, &request, conditions, ("Approved", "AutoApproved", why), later)
                    .await;
            }
            Verdict::Sign(usages) => match self.ca.sign_csr(&pem, &grant(&request.spec, usages, now)) {
                Ok(certificate) => {
                    info!(
                        signer = request.spec.signer_name,
                        user = request.spec.username,
                        "certificate signed"
                    );
                    let bytes = k8s_openapi::ByteString(certificate.into_bytes());
                    json!({"conditions": conditions, "certificate": bytes})
                }
                Err(error) => {
                    add(&mut conditions, "Failed", "SigningFailed", &error.to_string());
                    json!({"conditions": conditions})
                }
            },
        };
        let patch = json!({
            "metadata": {"resourceVersion": request.metadata.resource_version}, "status": status,
        });
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        api.patch_status(&key.name, &params, &Patch::Merge(patch))
            .await
            .map_err(StepError::api("answering a certificate request"))?;
        Ok(later)
    }
}

impl Certificates {
    /// Approves or denies; what follows from it is another step.
    async fn settle(
        &self,
        api: &Api<CertificateSigningRequest>,
        request: &CertificateSigningRequest,
        mut conditions: Value,
        (kind, reason, why): (&str, &str, &str),
        later: Next,
    ) -> Result<Next, StepError> {
        add(&mut conditions, kind, reason, why);
        let patch = json!({
            "metadata": {"resourceVersion": request.metadata.resource_version},
            "status": {"conditions": conditions},
        });
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        let name = request.metadata.name.as_deref().unwrap_or_default();
        api.patch_subresource("approval", name, &params, &Patch::Merge(patch))
            .await
            .map_err(StepError::api("settling a certificate request"))?;
        Ok(later)
    }
}

/// For how long, and for what.
fn grant(spec: &CertificateSigningRequestSpec, usages: Vec<Usage>, now: Timestamp) -> Grant {
    let whole = SignedDuration::from_hours(24 * i64::from(LEAF_DAYS));
    let (backdate, life) = match spec.expiration_seconds {
        Some(seconds) => (BACKDATE_SHORT, SignedDuration::from_secs(seconds.into()).min(whole)),
        None => (BACKDATE, whole),
    };
    let to = now.saturating_add(life).unwrap_or(Timestamp::MAX);
    Grant { usages, from: now.saturating_sub(backdate).unwrap_or(Timestamp::MIN), to }
}

/// How long a request is still kept. What was settled counts from then, what was not from its beginning; a certificate that
/// has ended makes its request useless at once, which the shorter of these times covers.
fn time_left(request: &CertificateSigningRequest, now: Timestamp) -> SignedDuration {
    let conditions = request.status.iter().filter_map(|s| s.conditions.as_ref()).flatten();
    let settled = conditions
        .filter(|c| matches!(c.type_.as_str(), "Approved" | "Denied" | "Failed") && c.status == "True")
        .filter_map(|c| c.last_update_time.as_ref().map(|t| t.0))
        .max();
    let made = request.metadata.creation_timestamp.as_ref().map_or(now, |t| t.0);
    let end = match settled {
        Some(at) => at.saturating_add(KEEP),
        None => made.saturating_add(KEEP_PENDING),
    };
    end.unwrap_or(Timestamp::MAX).duration_since(now)
}

fn has(request: &CertificateSigningRequest, kind: &str) -> bool {
    let conditions = request.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.is_some_and(|list| list.iter().any(|c| c.type_ == kind && c.status == "True"))
}

fn approved(request: &CertificateSigningRequest) -> bool {
    has(request, "Approved")
}

fn finished(request: &CertificateSigningRequest) -> bool {
    let signed = request.status.as_ref().is_some_and(|s| s.certificate.is_some());
    signed || has(request, "Denied") || has(request, "Failed")
}

async fn forget(
    api: &Api<CertificateSigningRequest>,
    request: &CertificateSigningRequest,
) -> Result<Next, StepError> {
    let name = request.metadata.name.as_deref().unwrap_or_default();
    match api.delete(name, &DeleteParams::default()).await {
        Ok(_) => Ok(Next::Done),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Next::Done),
        Err(error) => Err(StepError::api("forgetting a certificate request")(error)),
    }
}

fn add(conditions: &mut Value, kind: &str, reason: &str, message: &str) {
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    if let Some(list) = conditions.as_array_mut() {
        list.push(json!({
            "type": kind, "status": "True", "reason": reason, "message": message,
            "lastUpdateTime": now, "lastTransitionTime": now,
        }));
    }
}

fn judge(
    spec: &CertificateSigningRequestSpec,
    asked: &Asked,
    approved: bool,
    node_exists: impl Fn(&str) -> bool,
) -> Verdict {
    let signer = spec.signer_name.as_str();
    let wrong = match signer {
        NODE_CLIENT | NODE_SERVING => of_node(spec, asked),
        CLIENT => usages(spec, &["client auth"], &["digital signature", "key encipherment"]),
        _ => return Verdict::Leave,
    };
    let user = spec.username.as_deref().unwrap_or_default();
    let in_group = |group: &str| spec.groups.iter().flatten().any(|g| g == group);
    if approved {
        return wrong.map_or_else(Verdict::Fail, Verdict::Sign);
    }
    let itself = user == asked.common_name && in_group("system:nodes");
    let joins = in_group("system:bootstrappers");
    if signer == CLIENT || !(itself || joins || user.starts_with("system:node:") && in_group("system:nodes"))
    {
        // Somebody else's: whoever may approve it will look at it.
        return Verdict::Leave;
    }
    let usages = match wrong {
        Ok(usages) => usages,
        Err(why) => return Verdict::Deny(why),
    };
    let node = asked.common_name.strip_prefix("system:node:").unwrap_or_default();
    if !itself && !joins {
        return Verdict::Deny(format!("user {user} is neither the node {node} nor holds a join token"));
    }
    if !itself && node_exists(node) {
        return Verdict::Deny(format!(
            "a node named {node} exists already; choose another --node-name, or delete that Node if its machine is gone"
        ));
    }
    Verdict::Sign(usages)
}

/// The usages of a request, if it asks for all that are needed and none beyond those that may be.
fn usages(
    spec: &CertificateSigningRequestSpec,
    needed: &[&str],
    allowed: &[&str],
) -> Result<Vec<Usage>, String> {
    let asked: Vec<&str> = spec.usages.iter().flatten().map(String::as_str).collect();
    let fits = needed.iter().all(|n| asked.contains(n))
        && asked.iter().all(|a| needed.contains(a) || allowed.contains(a));
    match fits {
        true => Ok(asked.iter().filter_map(|a| Usage::parse(a)).collect()),
        false => Err(format!("usages did not match {needed:?} and optionally {allowed:?}")),
    }
}

/// Whether this is a certificate of a node; for what, or which rule it breaks.
fn of_node(spec: &CertificateSigningRequestSpec, asked: &Asked) -> Result<Vec<Usage>, String> {
    let deny = |why: &str| Err(why.to_owned());
    let Some(node) = asked.common_name.strip_prefix("system:node:").filter(|n| !n.is_empty()) else {
        return deny("the common name of a node's certificate is system:node:NAME");
    };
    if asked.organizations != ["system:nodes"] {
        return deny("the organization of a node's certificate is system:nodes, and no other");
    }
    if spec.signer_name == NODE_CLIENT {
        if !asked.dns.is_empty() || !asked.addresses.is_empty() || asked.others {
            return deny("a node's client certificate has no further names");
        }
        return usages(spec, &["client auth"], &["digital signature", "key encipherment"]);
    }
    if asked.others || asked.dns.iter().any(|name| name != node) {
        return deny("a node's serving certificate may name the node and its addresses only");
    }
    if asked.addresses.iter().any(IpAddr::is_unspecified) {
        return deny("a node's serving certificate may not name an unspecified address");
    }
    usages(spec, &["server auth"], &["digital signature", "key encipherment"])
}

fn parse(pem: &str) -> Result<Asked, String> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(|e| e.to_string())?;
    let (_, request) = X509CertificationRequest::from_der(&pem.contents).map_err(|e| e.to_string())?;
    let subject = &request.certification_request_info.subject;
    let texts = |values: Vec<&x509_parser::x509::AttributeTypeAndValue<'_>>| -> Vec<String> {
        values.iter().map(|v| v.as_str().unwrap_or("?").to_owned()).collect()
    };
    let mut asked = Asked {
        common_name: texts(subject.iter_common_name().collect()).join(","),
        organizations: texts(subject.iter_organization().collect()),
        ..Asked::default()
    };
    for extension in request.requested_extensions().into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(names) = extension else { continue };
        for name in &names.general_names {
            match name {
                GeneralName::DNSName(dns) => asked.dns.push((*dns).to_owned()),
                GeneralName::IPAddress(bytes) => {
                    match (<[u8; 4]>::try_from(*bytes), <[u8; 16]>::try_from(*bytes)) {
                        (Ok(v4), _) => asked.addresses.push(v4.into()),
                        (_, Ok(v6)) => asked.addresses.push(v6.into()),
                        _ => asked.others = true,
                    }
                }
                _ => asked.others = true,
            }
        }
    }
    Ok(asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(signer: &str, user: &str, group: &str) -> CertificateSigningRequestSpec {
        let usage = if signer == NODE_SERVING { "server auth" } else { "client auth" };
        CertificateSigningRequestSpec {
            signer_name: signer.into(),
            username: Some(user.into()),
            groups: Some(vec![group.into()]),
            usages: Some(vec!["digital signature".into(), usage.into()]),
            ..Default::default()
        }
    }

    fn asked(cn: &str, org: &str, dns: &[&str]) -> Asked {
        Asked {
            common_name: cn.into(),
            organizations: vec![org.into()],
            dns: dns.iter().map(|d| (*d).to_owned()).collect(),
            ..Asked::default()
        }
    }

    #[test]
    fn who_gets_a_certificate() {
        /// What becomes of a request, in short.
        #[derive(Debug, PartialEq)]
        enum Is {
            Signed,
            Denied,
            Failed,
            Left,
        }
        use Is::{Denied, Failed, Left, Signed};
        let token = |signer| spec(signer, "system:bootstrap:abcdef", "system:bootstrappers");
        let node = |signer| spec(signer, "system:node:old", "system:nodes");
        let bob = |signer| spec(signer, "bob", "users");
        let with = |mut spec: CertificateSigningRequestSpec, usages: &[&str]| {
            spec.usages = Some(usages.iter().map(ToString::to_string).collect());
            spec
        };
        let (new, old) = ("system:node:new", "system:node:old");
        // The Node `old` exists. Requests: spec, subject, whether somebody approved it; what becomes of it.
        let cases = [
            (token(NODE_CLIENT), asked(new, "system:nodes", &[]), false, Signed),
            (token(NODE_SERVING), asked(new, "system:nodes", &["new"]), false, Signed),
            (token(NODE_CLIENT), asked(old, "system:nodes", &[]), false, Denied),
            (node(NODE_CLIENT), asked(old, "system:nodes", &[]), false, Signed),
            (node(NODE_CLIENT), asked("system:node:other", "system:nodes", &[]), false, Denied),
            (token(NODE_CLIENT), asked(new, "system:masters", &[]), false, Denied),
            (token(NODE_CLIENT), asked("admin", "system:nodes", &[]), false, Denied),
            (token(NODE_SERVING), asked(new, "system:nodes", &["kubernetes"]), false, Denied),
            (token(NODE_CLIENT), asked(new, "system:nodes", &["new"]), false, Denied),
            (
                with(token(NODE_CLIENT), &["client auth", "cert sign"]),
                asked(new, "system:nodes", &[]),
                false,
                Denied,
            ),
            (bob(NODE_CLIENT), asked(new, "system:nodes", &[]), false, Left),
            (bob(NODE_CLIENT), asked(new, "system:nodes", &[]), true, Signed),
            (bob(NODE_CLIENT), asked(new, "system:masters", &[]), true, Failed),
            (bob(NODE_SERVING), asked(new, "system:nodes", &["kubernetes"]), true, Failed),
            (bob(CLIENT), asked("bob", "users", &[]), false, Left),
            (bob(CLIENT), asked("bob", "users", &[]), true, Signed),
            (with(bob(CLIENT), &["client auth"]), asked("bob", "users", &[]), true, Signed),
            (with(bob(CLIENT), &["server auth"]), asked("bob", "users", &[]), true, Failed),
            (node(CLIENT), asked("bob", "users", &[]), false, Left),
            (bob("example.com/other"), asked("bob", "users", &[]), true, Left),
        ];
        for (spec, asked, approved, want) in cases {
            let is = match judge(&spec, &asked, approved, |n| n == "old") {
                Verdict::Sign(_) => Signed,
                Verdict::Deny(_) => Denied,
                Verdict::Fail(_) => Failed,
                Verdict::Leave => Left,
            };
            assert_eq!(is, want, "{spec:?} {asked:?} {approved}");
        }
    }

    #[test]
    fn requests_are_forgotten_in_their_time() {
        let at = |s: i64| Timestamp::from_second(s).expect("a time");
        let made = |conditions: &Value| -> CertificateSigningRequest {
            serde_json::from_value(json!({
                "metadata": {"creationTimestamp": at(0).to_string()},
                "spec": {"request": "", "signerName": "a.b/c"}, "status": {"conditions": conditions},
            }))
            .expect("a request")
        };
        let settled = |ty: &str| {
            made(&json!([{"type": ty, "status": "True", "lastUpdateTime": at(50_000).to_string()}]))
        };
        let hours = SignedDuration::from_hours;
        assert_eq!(time_left(&made(&json!([])), at(0)), hours(24));
        for ty in ["Approved", "Denied", "Failed"] {
            assert_eq!(time_left(&settled(ty), at(50_000)), hours(1), "{ty}");
        }
        assert_eq!(time_left(&settled("Custom"), at(0)), hours(24));
    }

    #[test]
    fn the_life_of_a_certificate_is_what_was_asked_within_a_year() {
        let now = Timestamp::from_second(1_000_000_000).expect("a time");
        let life = |seconds: Option<i32>| {
            let spec = CertificateSigningRequestSpec { expiration_seconds: seconds, ..Default::default() };
            let grant = grant(&spec, Vec::new(), now);
            grant.to.duration_since(now).as_secs()
        };
        let year = 365 * 86_400;
        assert_eq!((life(None), life(Some(600)), life(Some(i32::MAX))), (year, 600, year));
    }

    #[test]
    fn a_request_is_read() {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params =
            rcgen::CertificateParams::new(vec!["n".into(), "10.0.0.1".into()]).expect("parameters");
        let mut subject = rcgen::DistinguishedName::new();
        subject.push(rcgen::DnType::OrganizationName, "system:nodes");
        subject.push(rcgen::DnType::CommonName, "system:node:n");
        params.distinguished_name = subject;
        let pem = params.serialize_request(&key).and_then(|r| r.pem()).expect("a request");
        let asked = parse(&pem).expect("readable");
        assert_eq!(
            (asked.common_name.as_str(), &asked.organizations[..]),
            ("system:node:n", &["system:nodes".to_owned()][..])
        );
        assert_eq!(
            (&asked.dns[..], &asked.addresses[..]),
            (&["n".to_owned()][..], &["10.0.0.1".parse().expect("an address")][..])
        );
        assert!(parse("garbage").is_err());
    }
}
