//! `/metrics`: what the API knows of machines, and what each node measures of those that run on it.
//!
//! A node that does not answer in time is left out, and counted.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesOrdered};
use http::{Method, StatusCode, header, uri::PathAndQuery};
use http_body_util::BodyExt;
use serde_json::Value;
use sheaf_meta::{object, status::Status};
use sheaf_plan::metrics::{
    Families, Kind,
    cluster::{self, Objects},
};

use super::streams::agent_address;
use crate::{
    authz::Attributes,
    core::{Core, Cx},
    http::{Outcome, full},
    internal,
    relay::{Destination, Relay},
};

/// The path.
pub(super) const PATH: &str = "/metrics";
/// A node answers within this.
const NODE_DEADLINE: Duration = Duration::from_secs(5);
/// What is read of a node's answer.
const NODE_MAX: usize = 16 << 20;

/// Answers a scrape.
pub(super) async fn answer(core: &Arc<Core>, relay: &Relay, cx: &Cx) -> Outcome {
    core.authorize_request(cx, Attributes { verb: "get", path: PATH, ..Attributes::default() }).await?;
    let objects = Objects {
        vms: list(core, "/apis/kubevirt.io/v1/virtualmachines").await?,
        instances: list(core, "/apis/kubevirt.io/v1/virtualmachineinstances").await?,
        migrations: list(core, "/apis/kubevirt.io/v1/virtualmachineinstancemigrations").await?,
        snapshots: list(core, "/apis/snapshot.kubevirt.io/v1beta1/virtualmachinesnapshots").await?,
        nodes: list(core, "/api/v1/nodes").await?,
        version: env!("CARGO_PKG_VERSION").into(),
    };
    let mut out = Families::default();
    cluster::add(&mut out, &objects);
    let mut asked = FuturesOrdered::new();
    for node in &objects.nodes {
        asked.push_back(of_node(relay, node, PATH));
    }
    let texts: Vec<Option<Vec<u8>>> = asked.collect().await;
    for (node, text) in objects.nodes.iter().zip(texts) {
        let up = if text.is_some() { 1.0 } else { 0.0 };
        let labels = [("node", object::name(node))];
        out.add("sheaf_node_metrics_up", Kind::Gauge, "Whether a node has told its numbers.", &labels, up);
        out.merge(&String::from_utf8_lossy(&text.unwrap_or_default()));
    }
    let mut response = http::Response::new(full(out.render()));
    *response.status_mut() = StatusCode::OK;
    let kind = http::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

pub(super) async fn list(core: &Arc<Core>, path: &str) -> Result<Vec<Value>, Status> {
    let all = internal::call(core, Method::GET, path, "application/json", None).await?;
    Ok(all["items"].as_array().cloned().unwrap_or_default())
}

/// What a node answers at a path of its agent.
pub(super) async fn of_node(relay: &Relay, node: &Value, path: &'static str) -> Option<Vec<u8>> {
    let to = Destination { node: object::name(node).into(), address: agent_address(node)? };
    let request = http::Request::builder().method(Method::GET).uri(path).body(full("")).ok()?;
    let ask = async {
        let answer = relay.forward(&to, &PathAndQuery::from_static(path), request).await.ok()?;
        if answer.status() != StatusCode::OK {
            return None;
        }
        let (mut body, mut bytes) = (answer.into_body(), Vec::new());
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.ok()?.into_data() {
                bytes.extend_from_slice(&data);
            }
            if bytes.len() > NODE_MAX {
                return None;
            }
        }
        Some(bytes)
    };
    tokio::time::timeout(NODE_DEADLINE, ask).await.ok().flatten()
}
