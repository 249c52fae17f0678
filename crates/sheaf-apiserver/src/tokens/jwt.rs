//! JSON Web Tokens in the compact form: taken apart, put together. Pure; signatures are [`Keys`]' work.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::keys::Keys;

/// The only algorithm: a token that names another one (`none` among them) was not signed here.
pub(crate) const ALGORITHM: &str = "ES256";
/// Longest token that is looked at.
const MAX: usize = 64 * 1024;

/// A token whose signature is yet to be checked.
#[derive(Debug)]
pub(crate) struct Unverified<'a> {
    header: Value,
    /// What it claims.
    pub(crate) claims: Value,
    signed: &'a str,
    signature: Vec<u8>,
}

/// Takes a token apart; `None` for what is no JWT.
pub(crate) fn parse(token: &str) -> Option<Unverified<'_>> {
    if token.len() > MAX {
        return None;
    }
    let (signed, signature) = token.rsplit_once('.')?;
    let (header, claims) = signed.split_once('.')?;
    let read = |part: &str| -> Option<Value> {
        let value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()?;
        Some(value).filter(Value::is_object)
    };
    Some(Unverified {
        header: read(header)?,
        claims: read(claims)?,
        signed,
        signature: URL_SAFE_NO_PAD.decode(signature).ok()?,
    })
}

impl Unverified<'_> {
    /// Whether one of our keys signed it.
    pub(crate) fn verify(&self, keys: &Keys) -> bool {
        let id = self.header.get("kid").and_then(Value::as_str);
        self.header.get("alg").and_then(Value::as_str) == Some(ALGORITHM)
            // Extensions that must be understood are not.
            && self.header.get("crit").is_none()
            && keys.verify(id, self.signed.as_bytes(), &self.signature)
    }
}

/// Signs claims.
pub(crate) fn sign(keys: &Keys, claims: &Value) -> Result<String, &'static str> {
    let header = json!({"alg": ALGORITHM, "kid": keys.id()});
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", encode(&header), encode(claims));
    let signature = keys.sign(signed.as_bytes())?;
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_signed_is_read_and_what_is_forged_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let keys = Keys::load_or_create(dir.path()).unwrap();
        let others = Keys::load_or_create(elsewhere.path()).unwrap();
        let claims = json!({"sub": "a"});
        let token = sign(&keys, &claims).unwrap();
        let parsed = parse(&token).unwrap();
        assert!(parsed.verify(&keys) && parsed.claims == claims);
        assert!(!parsed.verify(&others));

        let encode = |v: Value| URL_SAFE_NO_PAD.encode(v.to_string());
        let parts: Vec<&str> = token.split('.').collect();
        let with = |header: Value, claims: &Value, signature: &str| {
            format!("{}.{}.{signature}", encode(header), encode(claims.clone()))
        };
        let good = json!({"alg": "ES256", "kid": keys.id()});
        for (what, forged) in [
            ("no algorithm", with(json!({"alg": "none"}), &claims, "")),
            ("a symmetric algorithm", with(json!({"alg": "HS256", "kid": keys.id()}), &claims, parts[2])),
            ("other claims", with(good.clone(), &json!({"sub": "b"}), parts[2])),
            ("no signature", with(good.clone(), &claims, "")),
            ("another's key id", with(json!({"alg": "ES256", "kid": others.id()}), &claims, parts[2])),
            ("a critical extension", with(json!({"alg": "ES256", "crit": ["x"]}), &claims, parts[2])),
            ("half a signature", format!("{}.{}.{}", parts[0], parts[1], &parts[2][..40])),
        ] {
            assert!(parse(&forged).is_none_or(|t| !t.verify(&keys)), "{what}");
        }
        for nonsense in ["", "a", "a.b", "a.b.c", "....", &"x".repeat(MAX + 1)] {
            assert!(parse(nonsense).is_none());
        }
    }
}
