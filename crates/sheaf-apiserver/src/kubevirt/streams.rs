//! Streams of an instance, and uploads of images: finding the node that has it, and relaying to its agent.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::uri::PathAndQuery;
use serde_json::Value;
use sheaf_meta::{
    object,
    status::{ResourceRef, Status},
};

use super::{UPLOADS, VMI, condition, get_vmi, phase, vmi::PAUSE};
use crate::{
    core::{Core, Cx},
    http::{Outcome, Request},
    internal,
    relay::{Destination, Relay},
};

const IMAGES: ResourceRef<'static> = ResourceRef { group: "harvesterhci.io", plural: "virtualmachineimages" };
/// Where an image is put first; written by the image controller.
const IMAGE_NODE: &str = "sheaf.io/image-node";
/// How long an upload waits until its image has a node, as the original waits for its data source.
const UPLOAD_WAIT: Duration = Duration::from_secs(60);
/// Port of agents that publish none.
const AGENT_PORT: u16 = 10250;

/// Relays a subresource of an instance (or of the VM of the same name).
pub(super) async fn relay(core: &Arc<Core>, relay: &Relay, cx: &Cx, sub: &str, request: Request) -> Outcome {
    let name = &cx.path.name;
    if sub == "portforward" {
        check_port(&cx.path.rest)?;
    }
    let vmi = get_vmi(core, &cx.path.namespace, name).await?.ok_or_else(|| Status::not_found(VMI, name))?;
    let node = ready(&vmi, sub)?;
    let to = destination(core, node).await?;
    // A stream of a VM is one of its instance: that is the only form the agent knows.
    let path = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
    let path = path.replacen("/virtualmachines/", "/virtualmachineinstances/", 1);
    let path = path.replacen("/subresources.kubevirt.io/v1alpha3/", "/subresources.kubevirt.io/v1/", 1);
    let path = PathAndQuery::try_from(path).map_err(Status::internal)?;
    relay.forward(&to, &path, request).await
}

/// `PORT` or `PORT/PROTOCOL`.
fn check_port(rest: &[String]) -> Result<(), Status> {
    let port = rest.first().and_then(|p| p.parse::<u16>().ok()).filter(|p| *p > 0);
    let protocol = rest.get(1).map_or("tcp", String::as_str);
    if port.is_none() || rest.len() > 2 {
        return Err(Status::bad_request("the port to be forwarded has to be a number from 1 to 65535"));
    }
    if !matches!(protocol, "tcp" | "udp") {
        return Err(Status::bad_request(format!(
            "the protocol \"{protocol}\" is not supported; use tcp or udp"
        )));
    }
    Ok(())
}

/// The node of an instance that can be reached, or why it cannot. virtctl waits on 400 and gives up on anything else.
fn ready<'a>(vmi: &'a Value, sub: &str) -> Result<&'a str, Status> {
    let name = object::name(vmi);
    let device = |field: &str| vmi.pointer(&format!("/spec/domain/devices/{field}"));
    match (phase(vmi), sub) {
        ("Running", _) => {}
        (other, "guestosinfo" | "userlist" | "filesystemlist" | "reset" | "vnc/screenshot") => {
            // Upstream wraps these, and clients look at the text.
            let what = if sub == "reset" {
                "Failed to reset non-running VMI with phase"
            } else {
                "VMI is not running: phase"
            };
            return Err(Status::new(
                500,
                "InternalError",
                format!("Internal error occurred: {what} {other}"),
            ));
        }
        (_, "freeze") => return Err(Status::conflict(VMI, name, "VM is not running")),
        (_, "unfreeze") => return Err(Status::conflict(VMI, name, "VMI is not running")),
        (_, "usbredir") if device("clientPassthrough").is_none() => {}
        (final_phase @ ("Succeeded" | "Failed"), _) => {
            return Err(Status::conflict(VMI, name, &format!("VMI is in the final phase {final_phase}")));
        }
        (other, _) => {
            let is = if other.is_empty() { "Pending" } else { other };
            return Err(Status::bad_request(format!(
                "VirtualMachineInstance {name} is not running: it is {is}"
            )));
        }
    }
    let off = |field: &str| device(field) == Some(&Value::Bool(false));
    if sub == "console" && off("autoattachSerialConsole") {
        return Err(Status::bad_request(format!("VirtualMachineInstance {name} has no serial console")));
    }
    if sub.starts_with("vnc") && off("autoattachGraphicsDevice") {
        return Err(Status::bad_request(format!("VirtualMachineInstance {name} has no graphics device")));
    }
    if sub == "usbredir" && device("clientPassthrough").is_none() {
        return Err(Status::conflict(VMI, name, "Not configured with USB Redirection"));
    }
    if sub == "vsock" && device("autoattachVSOCK") != Some(&Value::Bool(true)) {
        return Err(Status::bad_request("VSOCK is not attached."));
    }
    let paused = condition(vmi, "Paused") || object::annotation(vmi, PAUSE) == Some("true");
    if sub == "portforward" && paused {
        return Err(Status::conflict(VMI, name, "VMI is paused"));
    }
    match object::str_at(vmi, &["status", "nodeName"]) {
        "" => Err(Status::bad_request(format!("VirtualMachineInstance {name} has no node yet"))),
        node => Ok(node),
    }
}

/// Where the agent of a node listens.
async fn destination(core: &Arc<Core>, node: &str) -> Result<Destination, Status> {
    let unavailable = |why: &str| Status::new(503, "ServiceUnavailable", format!("node {node} {why}"));
    let object = internal::get(core, &format!("/api/v1/nodes/{node}")).await?;
    let object = object.ok_or_else(|| unavailable("is not known"))?;
    let address =
        agent_address(&object).ok_or_else(|| unavailable("has published no address of its agent"))?;
    Ok(Destination { node: node.into(), address })
}

pub(super) fn agent_address(node: &Value) -> Option<SocketAddr> {
    let addresses = node.pointer("/status/addresses")?.as_array()?;
    let ip = addresses
        .iter()
        .filter(|a| a["type"] == "InternalIP")
        .find_map(|a| a["address"].as_str()?.parse().ok())?;
    let port = node
        .pointer("/status/daemonEndpoints/kubeletEndpoint/Port")
        .and_then(Value::as_u64)
        .and_then(|p| u16::try_from(p).ok());
    Some(SocketAddr::new(ip, port.unwrap_or(AGENT_PORT)))
}

/// Relays the body of an image to the node that is to keep it.
pub(super) async fn upload(
    core: &Arc<Core>,
    relay: &Relay,
    namespace: &str,
    name: &str,
    request: Request,
) -> Outcome {
    let deadline = tokio::time::Instant::now() + UPLOAD_WAIT;
    let node = loop {
        let path =
            format!("/apis/harvesterhci.io/v1beta1/namespaces/{namespace}/virtualmachineimages/{name}");
        let image = internal::get(core, &path).await?.ok_or_else(|| Status::not_found(IMAGES, name))?;
        if object::str_at(&image, &["spec", "sourceType"]) != "upload" {
            let why = "only an image with spec.sourceType \"upload\" takes an upload";
            return Err(Status::conflict(IMAGES, name, why));
        }
        if let Some(node) = object::annotation(&image, IMAGE_NODE).filter(|n| !n.is_empty()) {
            break node.to_string();
        }
        if tokio::time::Instant::now() >= deadline {
            let text =
                format!("no node has been chosen for the image {namespace}/{name} yet; is any node ready?");
            return Err(Status::new(503, "ServiceUnavailable", text));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let to = destination(core, &node).await?;
    let query = request.uri().query().unwrap_or_default();
    let path =
        PathAndQuery::try_from(format!("{UPLOADS}{namespace}/{name}?{query}")).map_err(Status::internal)?;
    relay.forward(&to, &path, request).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_streams_need() {
        let code = |vmi: &Value, sub: &str| ready(vmi, sub).map_or_else(|s| s.code.to_string(), String::from);
        let running = json!({"metadata": {"name": "a"}, "status": {"phase": "Running", "nodeName": "n"}});
        let mut deaf = running.clone();
        deaf["spec"] = json!({"domain": {"devices": {"autoattachSerialConsole": false}}});
        let mut paused = running.clone();
        paused["status"]["conditions"] = json!([{"type": "Paused", "status": "True"}]);
        let failed = json!({"metadata": {"name": "a"}, "status": {"phase": "Failed"}});
        for (vmi, sub, expected) in [
            (&running, "console", "n"),
            (&deaf, "console", "400"),
            (&deaf, "vnc", "n"),
            (&paused, "vnc", "n"),
            (&paused, "portforward", "409"),
            (&failed, "console", "409"),
            (&json!({"metadata": {"name": "a"}}), "console", "400"),
        ] {
            assert_eq!(code(vmi, sub), expected, "{sub} {vmi}");
        }
        assert!(check_port(&["22".into(), "tcp".into()]).is_ok());
        for bad in [vec![], vec!["0".to_string()], vec!["22".to_string(), "sctp".to_string()]] {
            assert_eq!(check_port(&bad).unwrap_err().code, 400);
        }
    }

    #[test]
    fn the_address_of_an_agent() {
        let node = json!({"status": {
            "addresses": [{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "10.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10255}},
        }});
        assert_eq!(agent_address(&node).unwrap().to_string(), "10.0.0.1:10255");
        assert!(agent_address(&json!({})).is_none());
    }
}
