//! Bootstrap tokens: Secrets `kube-system/bootstrap-token-ID`, with which machines join. Pure: who reads the Secret
//! is [`crate::tokens`].

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::Value;

use super::{BOOTSTRAPPERS, UserInfo, same_secret};

/// Type of the Secrets.
const TYPE: &str = "bootstrap.kubernetes.io/token";

/// Id and secret of a token of the form `ID.SECRET`.
pub(crate) fn split(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let plain = |s: &str| s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    (id.len() == 6 && secret.len() == 16 && plain(id) && plain(secret)).then_some((id, secret))
}

/// Name of the Secret that holds the token of an id.
pub(crate) fn secret_name(id: &str) -> String {
    format!("bootstrap-token-{id}")
}

/// Who comes with a token, if its Secret says that it may authenticate now.
pub(crate) fn identity(object: &Value, id: &str, secret: &str, now: Timestamp) -> Option<UserInfo> {
    let field = |name: &str| -> Option<String> {
        let encoded = object.get("data")?.get(name)?.as_str()?;
        String::from_utf8(STANDARD.decode(encoded).ok()?).ok()
    };
    let same = |a: &str, b: &str| same_secret(a.as_bytes(), b.as_bytes());
    if object.get("type")?.as_str()? != TYPE
        || object.pointer("/metadata/deletionTimestamp").is_some()
        || !same(&field("token-id")?, id)
        || !same(&field("token-secret")?, secret)
        || field("usage-bootstrap-authentication")?.trim() != "true"
    {
        return None;
    }
    if let Some(expiration) = field("expiration")
        && expiration.trim().parse::<Timestamp>().ok()? <= now
    {
        return None;
    }
    let extra = field("auth-extra-groups").unwrap_or_default();
    // Only groups that say what they are: a token never makes a master.
    let extra = extra.split(',').map(str::trim).filter(|g| g.starts_with("system:bootstrappers:"));
    Some(UserInfo::new(&format!("system:bootstrap:{id}"), std::iter::once(BOOTSTRAPPERS).chain(extra)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn secret(extra: &[(&str, &str)]) -> Value {
        let mut data = json!({});
        let base = [
            ("token-id", "abcdef"),
            ("token-secret", "0123456789abcdef"),
            ("usage-bootstrap-authentication", "true"),
        ];
        for (k, v) in base.iter().chain(extra) {
            data[*k] = json!(STANDARD.encode(v));
        }
        json!({"type": TYPE, "data": data})
    }

    #[test]
    fn the_secret_says_whether_a_token_holds() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let check = |s: &Value, secret: &str| identity(s, "abcdef", secret, now);
        let right = "0123456789abcdef";
        let user =
            check(&secret(&[("auth-extra-groups", "system:masters,system:bootstrappers:w")]), right).unwrap();
        assert_eq!(user.username, "system:bootstrap:abcdef");
        assert_eq!(user.groups, ["system:bootstrappers", "system:bootstrappers:w", "system:authenticated"]);
        assert!(check(&secret(&[]), "0123456789abcdeX").is_none(), "wrong secret");
        assert!(check(&secret(&[("expiration", "2025-12-31T00:00:00Z")]), right).is_none(), "ran out");
        assert!(
            check(&secret(&[("usage-bootstrap-authentication", "false")]), right).is_none(),
            "not for this"
        );
        assert!(check(&secret(&[("expiration", "2026-12-31T00:00:00Z")]), right).is_some());
    }

    #[test]
    fn tokens_have_six_and_sixteen_characters() {
        assert_eq!(split("abcdef.0123456789abcdef"), Some(("abcdef", "0123456789abcdef")));
        for bad in
            ["", "abcdef", "abcde.0123456789abcdef", "ABCDEF.0123456789abcdef", "abcdef.0123456789abcde/"]
        {
            assert_eq!(split(bad), None, "{bad}");
        }
    }
}
