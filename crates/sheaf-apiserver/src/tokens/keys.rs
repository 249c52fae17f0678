//! The keys that sign tokens of service accounts.
//!
//! Owns `<data>/pki/service-accounts/`: one P-256 key a file (`*.key`, PKCS#8 as PEM, mode 0600). The last by name signs,
//! all verify; so a key is changed by putting one beside the old ones, and its tokens end when its file goes. A key is known by
//! the hash of its public half, which every token names.

use std::{fs, path::Path};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
    },
};
use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::pki::{PkiError, write_file};

/// What comes before the point in a public key's DER form (SubjectPublicKeyInfo of P-256).
const SPKI_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// One key.
struct Key {
    id: String,
    pair: EcdsaKeyPair,
}

/// All keys. Never empty.
pub(crate) struct Keys {
    all: Vec<Key>,
    random: SystemRandom,
}

impl Keys {
    /// Reads the keys in `dir`, or makes the first one.
    pub(crate) fn load_or_create(dir: &Path) -> Result<Self, PkiError> {
        let failed = |source| PkiError::File { path: dir.into(), source };
        fs::create_dir_all(dir).map_err(failed)?;
        let mut files: Vec<_> = fs::read_dir(dir)
            .and_then(|entries| entries.map(|e| e.map(|e| e.path())).collect::<Result<Vec<_>, _>>())
            .map_err(failed)?;
        files.retain(|path| path.extension().is_some_and(|e| e == "key"));
        files.sort();
        if files.is_empty() {
            let name = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ.key").to_string();
            let made = |source| PkiError::Certificate { what: "key of service accounts".into(), source };
            let pem = rcgen::KeyPair::generate().map_err(made)?.serialize_pem();
            let path = dir.join(name);
            write_file(&path, pem.as_bytes(), 0o600)?;
            files.push(path);
        }
        let random = SystemRandom::new();
        let all: Result<Vec<Key>, PkiError> = files.iter().map(|path| Key::read(path, &random)).collect();
        Ok(Self { all: all?, random })
    }

    /// The id of the key that signs.
    pub(crate) fn id(&self) -> &str {
        self.all.last().map_or("", |key| key.id.as_str())
    }

    /// A signature by the newest key.
    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, &'static str> {
        let key = self.all.last().ok_or("there is no key for tokens")?;
        let signature = key.pair.sign(&self.random, message).map_err(|_| "the token cannot be signed")?;
        Ok(signature.as_ref().to_vec())
    }

    /// Whether one of the keys signed this; only the named one is looked at, if one is named.
    pub(crate) fn verify(&self, id: Option<&str>, message: &[u8], signature: &[u8]) -> bool {
        let candidates = self.all.iter().filter(|key| id.is_none_or(|id| id == key.id));
        let public = |key: &Key| {
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.pair.public_key().as_ref().to_vec())
        };
        candidates.map(public).any(|public| public.verify(message, signature).is_ok())
    }

    /// The public halves as a JSON Web Key Set.
    pub(crate) fn jwks(&self) -> Value {
        let one = |key: &Key| {
            // 0x04, then the two coordinates.
            let point = key.pair.public_key().as_ref();
            let part =
                |range: std::ops::Range<usize>| URL_SAFE_NO_PAD.encode(point.get(range).unwrap_or_default());
            json!({
                "use": "sig", "kty": "EC", "kid": key.id, "crv": "P-256", "alg": super::jwt::ALGORITHM,
                "x": part(1..33), "y": part(33..65),
            })
        };
        json!({"keys": self.all.iter().map(one).collect::<Vec<_>>()})
    }
}

impl Key {
    fn read(path: &Path, random: &SystemRandom) -> Result<Self, PkiError> {
        let wrong = || PkiError::Content { path: path.into(), what: "P-256 key in PKCS#8 form" };
        let pem = fs::read(path).map_err(|source| PkiError::File { path: path.into(), source })?;
        let der = PrivatePkcs8KeyDer::from_pem_slice(&pem).map_err(|_| wrong())?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der(), random);
        let pair = pair.map_err(|_| wrong())?;
        let public = [&SPKI_PREFIX[..], pair.public_key().as_ref()].concat();
        Ok(Self { id: URL_SAFE_NO_PAD.encode(Sha256::digest(&public)), pair })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_signs_and_the_old_one_still_verifies() {
        let dir = tempfile::tempdir().unwrap();
        let first = Keys::load_or_create(dir.path()).unwrap();
        let signature = first.sign(b"x").unwrap();
        let again = Keys::load_or_create(dir.path()).unwrap();
        assert_eq!(again.id(), first.id(), "keys outlive a restart");

        let pem = rcgen::KeyPair::generate().unwrap().serialize_pem();
        fs::write(dir.path().join("99991231T000000Z.key"), pem).unwrap();
        let both = Keys::load_or_create(dir.path()).unwrap();
        assert_ne!(both.id(), first.id());
        assert!(both.verify(Some(first.id()), b"x", &signature) && both.verify(None, b"x", &signature));
        assert!(!both.verify(Some(both.id()), b"x", &signature), "the named key is the one that counts");
        assert!(!both.verify(None, b"y", &signature));
        assert_eq!(both.jwks()["keys"].as_array().map(Vec::len), Some(2));

        fs::write(dir.path().join("bad.key"), "nonsense").unwrap();
        assert!(matches!(Keys::load_or_create(dir.path()), Err(PkiError::Content { .. })));
    }

    #[test]
    fn ids_are_hashes_of_the_public_key() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::load_or_create(dir.path()).unwrap();
        let file = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        let pair = rcgen::KeyPair::from_pem(&fs::read_to_string(file).unwrap()).unwrap();
        use rcgen::PublicKeyData;
        let der = pair.subject_public_key_info();
        assert_eq!(keys.id(), URL_SAFE_NO_PAD.encode(Sha256::digest(der)));
    }
}
