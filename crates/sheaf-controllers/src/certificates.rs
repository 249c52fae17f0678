//! Certificate signing requests: those of nodes are approved by rule and signed, others when somebody has approved
//! them. Owns the conditions Approved (by rule), Denied and Failed, and `status.certificate`.
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
use sheaf_apiserver::pki::{Ca, LEAF_DAYS, Purpose};
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
/// Requests that are done with are forgotten after this time.
const KEEP: SignedDuration = SignedDuration::from_hours(1);

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
    /// Approved by rule, and signed.
    Sign(Purpose),
    /// Refused, with the rule that refuses it.
    Deny(String),
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
        if finished(&request) {
            return forget(&api, &request).await;
        }
        let exists = |node: &str| self.world.nodes.get(&ObjectKey::new("", node)).is_some();
        let pem = String::from_utf8_lossy(&request.spec.request.0).into_owned();
        let verdict = match parse(&pem) {
            Ok(asked) => judge(&request.spec, &asked, approved(&request), exists),
            Err(why) => Verdict::Deny(format!("spec.request is no PEM certificate request: {why}")),
        };
        let mut conditions =
            serde_json::to_value(request.status.as_ref().and_then(|s| s.conditions.as_ref()))
                .unwrap_or_default();
        if conditions.is_null() {
            conditions = json!([]);
        }
        let status = match verdict {
            Verdict::Leave => return Ok(Next::Done),
            Verdict::Deny(why) => {
                warn!(user = request.spec.username, "certificate request denied: {why}");
                add(&mut conditions, "Denied", "NotAllowed", &why);
                json!({"conditions": conditions})
            }
            Verdict::Sign(purpose) => {
                if !approved(&request) {
                    add(&mut conditions, "Approved", "AutoApproved", "the node asks for its own certificate");
                }
                let signed = self.ca.sign_csr(&pem, purpose, LEAF_DAYS);
                match signed {
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
                }
            }
        };
        let patch = json!({
            "metadata": {"resourceVersion": request.metadata.resource_version}, "status": status,
        });
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        api.patch_status(&key.name, &params, &Patch::Merge(patch))
            .await
            .map_err(StepError::api("answering a certificate request"))?;
        Ok(Next::Done)
    }
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
    let made = request.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0);
    let left = KEEP - Timestamp::now().duration_since(made);
    if left.is_positive() {
        return Ok(Next::After(std::time::Duration::try_from(left).unwrap_or_default()));
    }
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
    let purpose = match spec.signer_name.as_str() {
        NODE_CLIENT => Purpose::Client,
        NODE_SERVING => Purpose::Server,
        CLIENT if approved => return Verdict::Sign(Purpose::Client),
        _ => return Verdict::Leave,
    };
    let deny = |why: &str| Verdict::Deny(why.to_owned());
    let Some(node) = asked.common_name.strip_prefix("system:node:").filter(|n| !n.is_empty()) else {
        return deny("the common name of a node's certificate is system:node:NAME");
    };
    if asked.organizations != ["system:nodes"] {
        return deny("the organization of a node's certificate is system:nodes, and no other");
    }
    let user = spec.username.as_deref().unwrap_or_default();
    let in_group = |group: &str| spec.groups.iter().flatten().any(|g| g == group);
    let itself = user == asked.common_name && in_group("system:nodes");
    if !itself && !in_group("system:bootstrappers") {
        return Verdict::Deny(format!("user {user} is neither the node {node} nor holds a join token"));
    }
    if !itself && node_exists(node) {
        return Verdict::Deny(format!(
            "a node named {node} exists already; choose another --node-name, or delete that Node if its machine is gone"
        ));
    }
    match purpose {
        Purpose::Client if !asked.dns.is_empty() || !asked.addresses.is_empty() || asked.others => {
            deny("a node's client certificate has no further names")
        }
        Purpose::Server if asked.others || asked.dns.iter().any(|name| name != node) => {
            deny("a node's serving certificate may name the node and its addresses only")
        }
        Purpose::Server if asked.addresses.iter().any(IpAddr::is_unspecified) => {
            deny("a node's serving certificate may not name an unspecified address")
        }
        purpose => Verdict::Sign(purpose),
    }
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
        CertificateSigningRequestSpec {
            signer_name: signer.into(),
            username: Some(user.into()),
            groups: Some(vec![group.into()]),
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
        let token = |signer| spec(signer, "system:bootstrap:abcdef", "system:bootstrappers");
        let node = |signer| spec(signer, "system:node:old", "system:nodes");
        let sign_client = Verdict::Sign(Purpose::Client);
        let sign_server = Verdict::Sign(Purpose::Server);
        // The Node `old` exists. Requests: spec, subject, whether somebody approved it; `None` stands for a denial.
        let cases = [
            (token(NODE_CLIENT), asked("system:node:new", "system:nodes", &[]), false, Some(&sign_client)),
            (
                token(NODE_SERVING),
                asked("system:node:new", "system:nodes", &["new"]),
                false,
                Some(&sign_server),
            ),
            (token(NODE_CLIENT), asked("system:node:old", "system:nodes", &[]), false, None),
            (node(NODE_CLIENT), asked("system:node:old", "system:nodes", &[]), false, Some(&sign_client)),
            (node(NODE_CLIENT), asked("system:node:other", "system:nodes", &[]), false, None),
            (token(NODE_CLIENT), asked("system:node:new", "system:masters", &[]), false, None),
            (token(NODE_CLIENT), asked("admin", "system:nodes", &[]), false, None),
            (token(NODE_SERVING), asked("system:node:new", "system:nodes", &["kubernetes"]), false, None),
            (token(NODE_CLIENT), asked("system:node:new", "system:nodes", &["new"]), false, None),
            (spec(NODE_CLIENT, "bob", "users"), asked("system:node:new", "system:nodes", &[]), true, None),
            (spec(CLIENT, "bob", "users"), asked("bob", "users", &[]), false, Some(&Verdict::Leave)),
            (spec(CLIENT, "bob", "users"), asked("bob", "users", &[]), true, Some(&sign_client)),
            (
                spec("example.com/other", "bob", "users"),
                asked("bob", "users", &[]),
                true,
                Some(&Verdict::Leave),
            ),
        ];
        for (spec, asked, approved, want) in cases {
            let verdict = judge(&spec, &asked, approved, |n| n == "old");
            match want {
                Some(want) => assert_eq!(verdict, *want, "{spec:?} {asked:?}"),
                None => assert!(matches!(verdict, Verdict::Deny(_)), "{spec:?} {asked:?} gave {verdict:?}"),
            }
        }
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
