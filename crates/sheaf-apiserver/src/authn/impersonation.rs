//! Impersonation: what the headers `Impersonate-*` ask to be, what has to be allowed for it, and who results.
//!
//! Pure. Each part of another identity is a resource of its own for the authorizer, with the verb `impersonate`.

use std::collections::BTreeMap;

use http::HeaderMap;
use sheaf_meta::status::Status;

use super::{
    ANONYMOUS, AUTHENTICATED, UNAUTHENTICATED, UserInfo, service_account_groups, split_service_account,
};
use crate::{authz::Attributes, query};

const EXTRA: &str = "impersonate-extra-";
const GROUP: &str = "authentication.k8s.io";

/// What a request asks to be instead of who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Impersonation {
    username: String,
    uid: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

impl Impersonation {
    /// Reads the headers; `None` if there are none. 400 for groups, extra fields or a uid without a user.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Option<Self>, Status> {
        if !headers.keys().any(|key| key.as_str().starts_with("impersonate-")) {
            return Ok(None);
        }
        let all = |name: &str| -> Vec<String> {
            let values = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
            values.map(String::from).collect()
        };
        let first = |name: &str| all(name).into_iter().next().unwrap_or_default();
        let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for key in headers.keys() {
            if let Some(field) = key.as_str().strip_prefix(EXTRA) {
                // Keys have characters that headers may not, so clients percent-encode them.
                let field = query::decode(field, false).to_lowercase();
                extra.entry(field).or_default().extend(all(key.as_str()));
            }
        }
        let (username, uid, groups) =
            (first("impersonate-user"), first("impersonate-uid"), all("impersonate-group"));
        if username.is_empty() && (!uid.is_empty() || !groups.is_empty() || !extra.is_empty()) {
            return Err(Status::bad_request(
                "requested impersonation of groups, extra fields or a uid without impersonating a user",
            ));
        }
        Ok((!username.is_empty()).then_some(Self { username, uid, groups, extra }))
    }

    /// What the requester has to be allowed, one by one.
    pub(crate) fn parts(&self) -> Vec<Attributes<'_>> {
        let base = Attributes { verb: "impersonate", ..Attributes::default() };
        let user = match split_service_account(&self.username) {
            Some((namespace, name)) => Attributes { resource: "serviceaccounts", namespace, name, ..base },
            None => Attributes { resource: "users", name: &self.username, ..base },
        };
        let groups = self.groups.iter().map(|g| Attributes { resource: "groups", name: g, ..base });
        let extra = self.extra.iter().flat_map(|(key, values)| {
            values.iter().map(move |value| Attributes {
                group: GROUP,
                resource: "userextras",
                subresource: key,
                name: value,
                ..base
            })
        });
        let uid = (!self.uid.is_empty()).then_some(Attributes {
            group: GROUP,
            resource: "uids",
            name: &self.uid,
            ..base
        });
        std::iter::once(user).chain(groups).chain(extra).chain(uid).collect()
    }

    /// The user that the request becomes.
    pub(crate) fn into_user(self) -> UserInfo {
        let mut groups = self.groups;
        if groups.is_empty()
            && let Some((namespace, _)) = split_service_account(&self.username)
        {
            groups.extend(service_account_groups(namespace));
        }
        let known = |groups: &[String]| groups.iter().any(|g| g == AUTHENTICATED || g == UNAUTHENTICATED);
        if !known(&groups) {
            let anonymous = self.username == ANONYMOUS;
            groups.push(if anonymous { UNAUTHENTICATED } else { AUTHENTICATED }.into());
        }
        UserInfo { username: self.username, uid: self.uid, groups, extra: self.extra }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn each_part_is_asked_for_by_itself() {
        let asked = headers(&[
            ("impersonate-user", "joe"),
            ("impersonate-group", "staff"),
            ("impersonate-group", "dev"),
            ("impersonate-uid", "u-1"),
            ("impersonate-extra-example.com%2fscopes", "view"),
        ]);
        let asked = Impersonation::of(&asked).unwrap().unwrap();
        let parts: Vec<_> =
            asked.parts().iter().map(|p| (p.group, p.resource, p.subresource, p.name)).collect();
        assert_eq!(
            parts,
            [
                ("", "users", "", "joe"),
                ("", "groups", "", "staff"),
                ("", "groups", "", "dev"),
                (GROUP, "userextras", "example.com/scopes", "view"),
                (GROUP, "uids", "", "u-1"),
            ]
        );
        let user = asked.into_user();
        assert_eq!(user.groups, ["staff", "dev", "system:authenticated"]);
        assert_eq!(
            (user.uid.as_str(), &user.extra["example.com/scopes"][..]),
            ("u-1", &["view".to_owned()][..])
        );
    }

    #[test]
    fn who_results() {
        for (name, groups, expected) in [
            ("joe", &[][..], &["system:authenticated"][..]),
            ("system:anonymous", &[], &["system:unauthenticated"]),
            ("joe", &["system:authenticated"], &["system:authenticated"]),
            (
                "system:serviceaccount:ns:a",
                &[],
                &["system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"],
            ),
            ("system:serviceaccount:ns:a", &["own"], &["own", "system:authenticated"]),
        ] {
            let mut asked = headers(&[("impersonate-user", name)]);
            for group in groups {
                asked.append("impersonate-group", group.parse().unwrap());
            }
            let asked = Impersonation::of(&asked).unwrap().unwrap();
            assert_eq!(asked.parts()[0].resource == "serviceaccounts", name.contains("serviceaccount"));
            assert_eq!(asked.into_user().groups, expected, "{name} {groups:?}");
        }
        assert_eq!(Impersonation::of(&headers(&[])).unwrap(), None);
        for alone in ["impersonate-group", "impersonate-uid", "impersonate-extra-a"] {
            assert_eq!(Impersonation::of(&headers(&[(alone, "x")])).unwrap_err().code, 400, "{alone}");
        }
    }
}
