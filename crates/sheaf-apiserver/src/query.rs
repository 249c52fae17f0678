//! Query strings as Kubernetes' clients write them: unknown parameters are noise, booleans are lenient.

use sheaf_meta::status::Status;

/// A decoded query.
#[derive(Debug, Default, Clone)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Decodes what follows the question mark.
    pub fn parse(raw: Option<&str>) -> Self {
        let pairs = raw.unwrap_or_default().split('&').filter(|p| !p.is_empty()).map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key, true), decode(value, true))
        });
        Self(pairs.collect())
    }

    /// The first value of a parameter, if it is there and not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.raw(name).filter(|v| !v.is_empty())
    }

    /// The first value of a parameter, also when it is empty.
    pub fn raw(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    /// All values of a repeated parameter.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    /// Absent, `false` in any case, or `0` are false; anything else, also the empty string, is true.
    pub fn flag(&self, name: &str) -> bool {
        self.raw(name).is_some_and(|v| !v.eq_ignore_ascii_case("false") && v != "0")
    }

    /// A number, or 400. One below 0 is as good as none.
    pub fn number(&self, name: &str) -> Result<Option<u64>, Status> {
        let bad = |v: &str| {
            Status::bad_request(format!("{name}: strconv.ParseInt: parsing \"{v}\": invalid syntax"))
        };
        let given: Option<i64> = self.get(name).map(|v| v.parse().map_err(|_| bad(v))).transpose()?;
        Ok(given.and_then(|number| u64::try_from(number).ok()))
    }
}

/// Percent-decodes; `plus` says whether a plus sign is a space. What is no valid escape stays as it is.
pub fn decode(text: &str, plus: bool) -> String {
    if !text.contains(['%', '+']) {
        return text.to_string();
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while let Some(&b) = bytes.get(i) {
        let escape = bytes
            .get(i + 1..i + 3)
            .filter(|_| b == b'%')
            .and_then(|h| std::str::from_utf8(h).ok())
            .filter(|h| h.bytes().all(|c| c.is_ascii_hexdigit()))
            .and_then(|h| u8::from_str_radix(h, 16).ok());
        match escape {
            Some(byte) => {
                out.push(byte);
                i += 3;
            }
            None => {
                out.push(if b == b'+' && plus { b' ' } else { b });
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn booleans_are_as_lenient_as_upstream() {
        let q = Query::parse(Some("watch=True&a=1&b=&c=false&d=0&e=FALSE"));
        assert_eq!(
            ["watch", "a", "b", "c", "d", "e", "f"].map(|n| q.flag(n)),
            [true, true, true, false, false, false, false]
        );
    }

    #[test]
    fn escapes_are_decoded_and_broken_ones_kept() {
        let q = Query::parse(Some("labelSelector=a%3Db%2Cc+in+%28x%29&bad=%zz%4"));
        assert_eq!(q.get("labelSelector"), Some("a=b,c in (x)"));
        assert_eq!(q.get("bad"), Some("%zz%4"));
    }
}
