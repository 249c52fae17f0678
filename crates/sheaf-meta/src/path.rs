//! What a request's path asks for: group, version, namespace, resource, name, subresource.
//!
//! Pure: nothing here knows which resources exist. Percent-decoding is done on each segment after the split, so an
//! encoded slash never splits.

use std::borrow::Cow;

/// Longest path that is looked at, in bytes.
pub const MAX_PATH: usize = 16 * 1024;

/// A path below `/api` or `/apis`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResourcePath {
    /// API group, empty for the core group.
    pub group: String,
    /// Version.
    pub version: String,
    /// Namespace, empty for cluster-scoped requests and for lists over all namespaces. A request for a Namespace
    /// object itself has its own name here, as upstream's RequestInfo has.
    pub namespace: String,
    /// Plural name of the resource.
    pub resource: String,
    /// Name of the object, empty for collections.
    pub name: String,
    /// First segment after the name (`status`, `scale`, `log`), or empty.
    pub subresource: String,
    /// Everything after the subresource (`portforward/22/tcp` has `["22", "tcp"]`).
    pub rest: Vec<String>,
    /// Whether the path is of the old form `/watch/...`.
    pub watch_prefix: bool,
}

/// What a path is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// `/api`.
    CoreVersions,
    /// `/apis`.
    Groups,
    /// `/apis/G`.
    Group(String),
    /// `/api/V` or `/apis/G/V`.
    Resources {
        /// API group, empty for the core group.
        group: String,
        /// Version.
        version: String,
    },
    /// Objects.
    Resource(ResourcePath),
    /// Anything else (`/healthz`, `/openapi/v3`, `/v1/harvester/...`): the decoded segments.
    Other(Vec<String>),
}

/// Reads a path. A slash at the end, and empty segments, do not matter. `None` if it is too long or its encoding is
/// broken.
pub fn parse(path: &str) -> Option<Target> {
    if path.len() > MAX_PATH {
        return None;
    }
    let path = path.split(['?', '#']).next().unwrap_or("");
    let mut segments: Vec<Cow<'_, str>> = Vec::with_capacity(8);
    for segment in path.split('/').filter(|s| !s.is_empty()) {
        segments.push(decode(segment)?);
    }
    let parts: Vec<&str> = segments.iter().map(|s| &**s).collect();
    let (group, version, rest) = match parts[..] {
        ["api"] => return Some(Target::CoreVersions),
        ["apis"] => return Some(Target::Groups),
        ["apis", group] => return Some(Target::Group(group.into())),
        ["api", version, ref rest @ ..] => ("", version, rest),
        ["apis", group, version, ref rest @ ..] => (group, version, rest),
        _ => return Some(Target::Other(segments.into_iter().map(Cow::into_owned).collect())),
    };
    if rest.is_empty() {
        return Some(Target::Resources { group: group.into(), version: version.into() });
    }
    let mut out = ResourcePath { group: group.into(), version: version.into(), ..Default::default() };
    let mut rest = rest;
    // `/watch/namespaces/NS/pods`: the prefix of old clients. A kind named `watch` cannot exist (it has no such
    // plural), so this is unambiguous.
    if let ["watch", after @ ..] = rest
        && !after.is_empty()
    {
        out.watch_prefix = true;
        rest = after;
    }
    if let ["namespaces", namespace, after @ ..] = rest {
        let own = matches!(after, [] | ["status" | "finalize", ..]);
        if own && group.is_empty() {
            out.namespace = (*namespace).into();
        } else if !after.is_empty() {
            out.namespace = (*namespace).into();
            rest = after;
        }
    }
    let mut rest = rest.iter().map(|s| (*s).to_owned());
    out.resource = rest.next().unwrap_or_default();
    out.name = rest.next().unwrap_or_default();
    out.subresource = rest.next().unwrap_or_default();
    out.rest = rest.collect();
    Some(Target::Resource(out))
}

fn decode(segment: &str) -> Option<Cow<'_, str>> {
    if !segment.contains('%') {
        return Some(Cow::Borrowed(segment));
    }
    let bytes = segment.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        if bytes[i] == b'%' {
            let hex = |b: u8| char::from(b).to_digit(16);
            let (high, low) = (hex(*bytes.get(i + 1)?)?, hex(*bytes.get(i + 2)?)?);
            out.push((high * 16 + low) as u8);
            i += 3;
        } else {
            out.push(bytes[i]);
            i += 1;
        }
    }
    String::from_utf8(out).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `group version namespace resource name subresource rest`, `-` for empty.
    fn show(path: &str) -> String {
        match parse(path) {
            Some(Target::Resource(r)) => {
                let dash = |s: &str| if s.is_empty() { "-".to_owned() } else { s.to_owned() };
                let mut all = [&r.group, &r.version, &r.namespace, &r.resource, &r.name, &r.subresource]
                    .map(|s| dash(s))
                    .join(" ");
                for s in &r.rest {
                    all.push_str(&format!(" {s}"));
                }
                if r.watch_prefix { format!("watch {all}") } else { all }
            }
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn paths() {
        for (path, expected) in [
            ("/api/v1/pods", "- v1 - pods - -"),
            ("/api/v1/namespaces", "- v1 - namespaces - -"),
            ("/api/v1/namespaces/", "- v1 - namespaces - -"),
            ("/api/v1/namespaces/a", "- v1 a namespaces a -"),
            ("/api/v1/namespaces/a/status", "- v1 a namespaces a status"),
            ("/api/v1/namespaces/a/finalize", "- v1 a namespaces a finalize"),
            ("/api/v1/namespaces/a/pods", "- v1 a pods - -"),
            ("/api/v1/namespaces/a/pods/b", "- v1 a pods b -"),
            ("/api/v1/namespaces/a/pods/b/log", "- v1 a pods b log"),
            ("/api/v1/watch/namespaces/a/pods", "watch - v1 a pods - -"),
            ("/apis/kubevirt.io/v1/virtualmachines", "kubevirt.io v1 - virtualmachines - -"),
            ("/apis/x.io/v1/namespaces/a/status", "x.io v1 a status - -"),
            (
                "/apis/subresources.kubevirt.io/v1/namespaces/a/virtualmachineinstances/b/portforward/22/tcp",
                "subresources.kubevirt.io v1 a virtualmachineinstances b portforward 22 tcp",
            ),
            (
                "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode",
                "rbac.authorization.k8s.io v1 - clusterroles system:node -",
            ),
            ("/api", "Some(CoreVersions)"),
            ("/apis/", "Some(Groups)"),
            ("/apis/apps/", "Some(Group(\"apps\"))"),
            ("/apis/apps/v1", "Some(Resources { group: \"apps\", version: \"v1\" })"),
            ("/healthz", "Some(Other([\"healthz\"]))"),
            ("/", "Some(Other([]))"),
            ("/a%2", "None"),
            ("/a%ff", "None"),
        ] {
            assert_eq!(show(path), expected, "{path}");
        }
    }
}
