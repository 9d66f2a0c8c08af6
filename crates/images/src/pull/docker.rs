//! What `docker login` and its kin left: names and passwords by server, in a file. Pure.
//!
//! Passwords that a helper program keeps are not asked for: what that program does, and for how long, is nobody's to
//! bound. It is told by name instead.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::client::SHORT;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Config {
    auths: BTreeMap<String, Entry>,
    #[serde(rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(rename = "credsStore")]
    store: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    #[serde(rename = "identitytoken")]
    token: Option<String>,
}

/// Why the file gives no name and password for a server that it knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unusable {
    #[error("it is not what `docker login` writes: {0}")]
    Document(String),
    #[error("its entry for {0} is not a name and a password in base64")]
    Entry(String),
    #[error("it has a token for {0} instead of a name and a password")]
    Token(String),
    #[error("the password for {server} is kept by docker-credential-{helper}, which is not asked")]
    Helper { server: String, helper: String },
}

/// The name and the password for a server; none where the file does not know it.
pub(super) fn credentials(text: &str, server: &str) -> Result<Option<(String, String)>, Unusable> {
    let config: Config = serde_json::from_str(text).map_err(|error| Unusable::Document(error.to_string()))?;
    if let Some((_, helper)) = config.helpers.iter().find(|(key, _)| is_for(key, server)) {
        return Err(Unusable::Helper { server: server.to_owned(), helper: helper.clone() });
    }
    let Some((_, entry)) = config.auths.iter().find(|(key, _)| is_for(key, server)) else { return Ok(None) };
    let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    if filled(&entry.token).is_some() {
        return Err(Unusable::Token(server.to_owned()));
    }
    if let (Some(name), Some(password)) = (filled(&entry.username), filled(&entry.password)) {
        return Ok(Some((name, password)));
    }
    match (filled(&entry.auth), config.store) {
        (Some(auth), _) => pair(&auth).map(Some).ok_or_else(|| Unusable::Entry(server.to_owned())),
        (None, Some(helper)) => Err(Unusable::Helper { server: server.to_owned(), helper }),
        (None, None) => Ok(None),
    }
}

/// Whether a key of the file, a server or a URL, means this server.
fn is_for(key: &str, server: &str) -> bool {
    let host = key.split_once("://").map_or(key, |(_, host)| host);
    let (host, path) = host.split_once('/').unwrap_or((host, ""));
    if !matches!(path.trim_end_matches('/'), "" | "v1" | "v2") {
        return false;
    }
    // The one whose short names everybody writes is known by another name there.
    let alias = server == SHORT.0 && host.strip_prefix("index.").or(host.strip_prefix(SHORT.1)) == Some(server);
    host.eq_ignore_ascii_case(server) || alias
}

/// A name and a password, joined by a colon, in base64.
fn pair(text: &str) -> Option<(String, String)> {
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0_u32, 0);
    for letter in text.trim_end_matches('=').bytes() {
        let digit = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(digit)) & 0xff_ffff;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    let text = String::from_utf8(bytes).ok()?;
    let (name, password) = text.split_once(':')?;
    // Some writers end it with a NUL.
    let password = password.trim_end_matches('\0');
    (!name.is_empty()).then(|| (name.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, server: &str) -> Result<Option<(String, String)>, String> {
        credentials(text, server).map_err(|error| error.to_string())
    }

    fn known(name: &str, password: &str) -> Result<Option<(String, String)>, String> {
        Ok(Some((name.to_owned(), password.to_owned())))
    }

    #[test]
    fn names_and_passwords_are_found_by_server() {
        // get:this, and a:b:c with a NUL behind it
        let text = r#"{"auths": {"registry.example": {"auth": "Z2V0OnRoaXM="}, "https://localhost:5000/v2/": {"auth": "YTpiOmMA"},
            "plain.example": {"username": "me", "password": "p"}, "team.example/team": {"auth": "Z2V0OnRoaXM="},
            "empty.example": {}}, "HttpHeaders": {"User-Agent": "x"}}"#;
        assert_eq!(check(text, "registry.example"), known("get", "this"));
        assert_eq!(check(text, "localhost:5000"), known("a", "b:c"));
        assert_eq!(check(text, "plain.example"), known("me", "p"));
        for other in ["localhost", "localhost:5001", "example", "team.example", "empty.example", "index.plain.example"]
        {
            assert_eq!(check(text, other), Ok(None), "{other}");
        }
        let key = format!("index.{}/v1/", SHORT.0);
        let short = format!(r#"{{"auths": {{"{key}": {{"auth": "Z2V0OnRoaXM="}}}}}}"#);
        assert_eq!(check(&short, SHORT.0), known("get", "this"));
        assert_eq!(check("{}", "registry.example"), Ok(None));
    }

    #[test]
    fn what_cannot_be_used_is_told() {
        let refused = |text: &str, says: &str| {
            let error = check(text, "registry.example").expect_err(text);
            assert!(error.contains(says), "{text}: {error}");
        };
        refused("", "is not what `docker login` writes");
        refused(r#"{"auths": []}"#, "is not what `docker login` writes");
        for auth in ["*", "Z2V0", "OnRoaXM=", "/w=="] {
            refused(&format!(r#"{{"auths": {{"registry.example": {{"auth": "{auth}"}}}}}}"#), "in base64");
        }
        refused(r#"{"auths": {"registry.example": {"identitytoken": "x"}}}"#, "it has a token");
        refused(r#"{"credHelpers": {"registry.example": "vault"}}"#, "docker-credential-vault");
        let kept = r#"{"auths": {"registry.example": {}}, "credsStore": "desktop"}"#;
        refused(kept, "docker-credential-desktop");
        assert_eq!(check(kept, "other.example"), Ok(None));
    }
}
