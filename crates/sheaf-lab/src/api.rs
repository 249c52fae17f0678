//! Looking at objects through the API: as JSON, as any client sees them.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::run::Lab;
use crate::wait::{Deadline, wait_for};

impl Lab {
    /// GET of a path; `None` if there is no such object.
    pub async fn get(&self, path: &str) -> Result<Option<Value>> {
        let request = http::Request::get(path).body(Vec::new()).context("a request")?;
        match self.client().await?.request::<Value>(request).await {
            Ok(value) => Ok(Some(value)),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(error).with_context(|| format!("GET {path}")),
        }
    }

    /// A VirtualMachine of the namespace `default`.
    pub async fn vm(&self, name: &str) -> Result<Option<Value>> {
        self.get(&format!("/apis/kubevirt.io/v1/namespaces/default/virtualmachines/{name}")).await
    }

    /// A VirtualMachineInstance of the namespace `default`.
    pub async fn vmi(&self, name: &str) -> Result<Option<Value>> {
        self.get(&format!("/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances/{name}")).await
    }

    /// Waits until an object satisfies `holds`, and returns it. A missing object is `null`.
    pub async fn wait_object(
        &self,
        what: &str,
        path: &str,
        deadline: Deadline,
        holds: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        wait_for(what, deadline, async || {
            let object = self.get(path).await.map_err(|e| format!("{e:#}"))?.unwrap_or(Value::Null);
            if holds(&object) { Ok(object) } else { Err(state(&object)) }
        })
        .await
    }

    /// Waits until a VM of `default` says this `printableStatus`.
    pub async fn wait_vm(&self, name: &str, status: &str, deadline: Deadline) -> Result<Value> {
        let path = format!("/apis/kubevirt.io/v1/namespaces/default/virtualmachines/{name}");
        let holds = |vm: &Value| vm["status"]["printableStatus"] == status;
        self.wait_object(&format!("VM {name} to be {status}"), &path, deadline, holds).await
    }

    /// Waits until a VMI of `default` has an address, and returns it without its prefix length.
    pub async fn wait_address(&self, name: &str) -> Result<String> {
        let path = format!("/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances/{name}");
        let address = |vmi: &Value| {
            let ip = vmi["status"]["interfaces"][0]["ipAddress"].as_str().unwrap_or_default();
            ip.split('/').next().unwrap_or_default().to_owned()
        };
        let holds = |vmi: &Value| !address(vmi).is_empty();
        let vmi = self
            .wait_object(&format!("VMI {name} to have an address"), &path, Deadline::GUEST, holds)
            .await?;
        Ok(address(&vmi))
    }

    /// Waits until there is no such object.
    pub async fn wait_gone(&self, path: &str, deadline: Deadline) -> Result<()> {
        self.wait_object(&format!("{path} to be gone"), path, deadline, Value::is_null).await.map(drop)
    }
}

/// What matters of an object when a wait fails: deletion, finalizers and status.
fn state(object: &Value) -> String {
    if object.is_null() {
        return "there is no such object".to_owned();
    }
    let meta = &object["metadata"];
    let mut text = String::new();
    for field in ["deletionTimestamp", "finalizers"] {
        if !meta[field].is_null() {
            text.push_str(&format!("{field}: {} ", meta[field]));
        }
    }
    text.push_str("status: ");
    text.push_str(&serde_json::to_string_pretty(&object["status"]).unwrap_or_default());
    text
}
