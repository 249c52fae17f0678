//! Accept headers: in which form an object, a list or an event is answered. Pure.

use sheaf_meta::status::Status;

/// A form of answer. All are JSON, except [`Form::Yaml`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Whole objects.
    Json,
    /// Whole objects as YAML.
    Yaml,
    /// `meta.k8s.io/v1` (or v1beta1) Table.
    Table {
        /// Whether the older version was asked for.
        beta: bool,
    },
    /// PartialObjectMetadata and its list.
    Metadata {
        /// Whether the older version was asked for.
        beta: bool,
    },
}

/// One entry of an Accept header.
struct Range<'a> {
    kind: &'a str,
    params: Vec<(&'a str, &'a str)>,
}

impl Range<'_> {
    fn param(&self, name: &str) -> &str {
        self.params.iter().find(|(k, _)| *k == name).map_or("", |(_, v)| v)
    }
}

fn ranges(accept: &str) -> Vec<Range<'_>> {
    let mut all: Vec<(i32, Range<'_>)> = accept
        .split(',')
        .filter(|r| !r.trim().is_empty())
        .map(|entry| {
            let mut parts = entry.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default();
            let params: Vec<(&str, &str)> = parts.filter_map(|p| p.split_once('=')).collect();
            let q = params.iter().find(|(k, _)| *k == "q").and_then(|(_, v)| v.parse::<f32>().ok());
            #[allow(clippy::cast_possible_truncation)]
            let weight = (q.unwrap_or(1.0) * 1000.0) as i32;
            (weight, Range { kind, params })
        })
        .collect();
    // Stable: equal weights keep the client's order.
    all.sort_by_key(|(weight, _)| -weight);
    all.into_iter().filter(|(weight, _)| *weight > 0).map(|(_, r)| r).collect()
}

/// The first form in the client's order that can be served, or 406.
pub fn form(accept: &str) -> Result<Form, Status> {
    // What most programs ask for needs no reading.
    if accept == "application/json" {
        return Ok(Form::Json);
    }
    let wanted = ranges(accept);
    if wanted.is_empty() {
        return Ok(Form::Json);
    }
    wanted.iter().find_map(served).ok_or_else(|| {
        Status::new(
            406,
            "NotAcceptable",
            "only the following media types are accepted: application/json, application/yaml",
        )
    })
}

fn served(range: &Range<'_>) -> Option<Form> {
    let yaml = match range.kind {
        "application/json" | "application/*" | "*/*" | "text/*" | "text/html" | "text/plain" => false,
        "application/yaml" | "text/yaml" => true,
        _ => return None,
    };
    let beta = match range.param("v") {
        "v1beta1" => true,
        "v1" | "" => false,
        _ => return None,
    };
    match (range.param("as"), range.param("g")) {
        ("", _) if yaml => Some(Form::Yaml),
        ("", _) => Some(Form::Json),
        ("Table", "meta.k8s.io") if !yaml => Some(Form::Table { beta }),
        ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io") if !yaml => {
            Some(Form::Metadata { beta })
        }
        _ => None,
    }
}

/// Which form of the discovery roots is wanted: the aggregated version, or `None` for the plain lists.
pub fn discovery(accept: &str) -> Option<&'static str> {
    for range in ranges(accept) {
        if range.kind != "application/json" && range.kind != "*/*" && range.kind != "application/*" {
            continue;
        }
        match (range.param("as"), range.param("g"), range.param("v")) {
            ("", _, _) => return None,
            ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2") => return Some("v2"),
            ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2beta1") => return Some("v2beta1"),
            _ => {}
        }
    }
    None
}

/// The encodings of the whole OpenAPI document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swagger {
    /// JSON.
    Json,
    /// gnostic's protobuf.
    Protobuf,
}

/// The first encoding in the client's order, or 406.
pub fn swagger(accept: &str) -> Result<Swagger, Status> {
    let wanted = ranges(accept);
    if wanted.is_empty() {
        return Ok(Swagger::Json);
    }
    let served = |range: &Range<'_>| match range.kind {
        "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
        | "application/com.github.proto-openapi.spec.v2.v1.0+protobuf" => Some(Swagger::Protobuf),
        "application/json" | "application/*" | "*/*" | "text/html" | "text/plain" => Some(Swagger::Json),
        _ => None,
    };
    wanted.iter().find_map(served).ok_or_else(|| {
        let types = "application/json, application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
        Status::new(406, "NotAcceptable", format!("only the following media types are accepted: {types}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        for (accept, expected) in [
            ("", Some(Form::Json)),
            ("*/*", Some(Form::Json)),
            ("application/vnd.kubernetes.protobuf,application/json", Some(Form::Json)),
            (kubectl, Some(Form::Table { beta: false })),
            (
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json",
                Some(Form::Metadata { beta: false }),
            ),
            ("application/cbor;q=1,application/json;q=0.9", Some(Form::Json)),
            ("application/yaml", Some(Form::Yaml)),
            ("application/vnd.kubernetes.protobuf", None),
            ("image/png", None),
        ] {
            assert_eq!(form(accept).ok(), expected, "{accept}");
        }
    }

    #[test]
    fn discovery_forms() {
        let both = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        assert_eq!(discovery(both), Some("v2"));
        let old =
            "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        assert_eq!(discovery(old), Some("v2beta1"));
        assert_eq!(discovery("application/json, */*"), None);
    }
}
