//! Where a Service is to be reached from here: one of its endpoints, else its cluster IP.

use std::net::{IpAddr, SocketAddr};

use serde_json::Value;
use sheaf_store::cache::At;

use crate::admission::read;
use crate::core::Core;

/// An address for a port of a Service, or why there is none.
pub(super) async fn resolve(
    core: &Core,
    namespace: &str,
    name: &str,
    port: u16,
) -> Result<SocketAddr, String> {
    let service = read::get(core, "", "services", namespace, name, At::Any).await?;
    let service =
        service.ok_or_else(|| format!("service \"{name}\" not found in namespace \"{namespace}\""))?;
    let endpoints = read::get(core, "", "endpoints", namespace, name, At::Any).await?;
    let slices = read::list(core, "discovery.k8s.io", "endpointslices", namespace).await?;
    let of_service =
        |s: &&Value| s.pointer("/metadata/labels/kubernetes.io~1service-name") == Some(&Value::from(name));
    let slices: Vec<&Value> = slices.iter().filter(of_service).collect();
    pick(&service, endpoints.as_ref(), &slices, port).ok_or_else(|| {
        format!(
            "service \"{namespace}/{name}\" has no address for port {port}: it needs ready endpoints (EndpointSlice or Endpoints) or a clusterIP"
        )
    })
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn number(value: &Value, key: &str) -> Option<u16> {
    value.get(key).and_then(Value::as_u64).and_then(|n| u16::try_from(n).ok())
}

/// The choice. Pure.
fn pick(service: &Value, endpoints: Option<&Value>, slices: &[&Value], port: u16) -> Option<SocketAddr> {
    let spec = service.get("spec").unwrap_or(&Value::Null);
    let port_name = list(spec, "ports").find(|p| number(p, "port") == Some(port)).map(|p| text(p, "name"))?;
    let of_port = |p: &Value| (text(p, "name") == port_name).then(|| number(p, "port")).flatten();
    for slice in slices {
        let Some(target) = list(slice, "ports").find_map(of_port) else { continue };
        let ready = |e: &&Value| e.pointer("/conditions/ready") != Some(&Value::Bool(false));
        let addresses = list(slice, "endpoints").filter(ready).flat_map(|e| list(e, "addresses"));
        if let Some(ip) = addresses.filter_map(|a| a.as_str()?.parse::<IpAddr>().ok()).next() {
            return Some(SocketAddr::new(ip, target));
        }
    }
    for subset in endpoints.iter().flat_map(|e| list(e, "subsets")) {
        let Some(target) = list(subset, "ports").find_map(of_port) else { continue };
        if let Some(ip) =
            list(subset, "addresses").filter_map(|a| text(a, "ip").parse::<IpAddr>().ok()).next()
        {
            return Some(SocketAddr::new(ip, target));
        }
    }
    let ip: IpAddr = text(spec, "clusterIP").parse().ok()?;
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn endpoints_come_first_and_the_cluster_ip_last() {
        let service = json!({"spec": {"clusterIP": "10.0.0.1", "ports": [{"name": "h", "port": 443}]}});
        let endpoints =
            json!({"subsets": [{"addresses": [{"ip": "10.1.0.2"}], "ports": [{"name": "h", "port": 9443}]}]});
        let slice = |ready: bool| {
            json!({"ports": [{"name": "h", "port": 8443}],
                "endpoints": [{"addresses": ["10.1.0.3"], "conditions": {"ready": ready}}]})
        };
        let at = |text: &str| text.parse::<SocketAddr>().ok();
        assert_eq!(pick(&service, Some(&endpoints), &[&slice(true)], 443), at("10.1.0.3:8443"));
        assert_eq!(pick(&service, Some(&endpoints), &[&slice(false)], 443), at("10.1.0.2:9443"));
        assert_eq!(pick(&service, None, &[], 443), at("10.0.0.1:443"));
        assert_eq!(pick(&service, None, &[], 80), None, "no such port");
        let headless = json!({"spec": {"clusterIP": "None", "ports": [{"port": 443}]}});
        assert_eq!(pick(&headless, None, &[], 443), None);
    }
}
