//! What a server says to somebody it does not know: the header `WWW-Authenticate`. Pure.

/// How to become known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// By name and password with each request.
    Basic,
    /// By a token that somebody else gives out.
    Bearer {
        /// Who: a URL.
        realm: String,
        /// For whom.
        service: Option<String>,
        /// For what.
        scope: Option<String>,
    },
}

/// Reads the header; none where it is of another kind or malformed.
pub(super) fn parse(header: &str) -> Option<Challenge> {
    let (kind, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
    if kind.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !kind.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service, mut scope) = (None, None, None);
    let mut rest = rest.trim_start();
    while !rest.is_empty() {
        let (key, behind) = rest.split_once('=')?;
        let (value, behind) = match behind.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => behind.split_once(',').map_or((behind, ""), |(value, _)| (value, &behind[value.len()..])),
        };
        match key.trim().to_ascii_lowercase().as_str() {
            "realm" => realm = Some(value.to_owned()),
            "service" => service = Some(value.to_owned()),
            "scope" => scope = Some(value.to_owned()),
            _ => {}
        }
        rest = behind.trim_start().strip_prefix(',').unwrap_or("").trim_start();
    }
    Some(Challenge::Bearer { realm: realm?, service, scope })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let text =
            r#"Bearer realm="https://localhost/token",service="registry.example",scope="repository:a/b:pull,push""#;
        let expected = Challenge::Bearer {
            realm: "https://localhost/token".to_owned(),
            service: Some("registry.example".to_owned()),
            scope: Some("repository:a/b:pull,push".to_owned()),
        };
        assert_eq!(parse(text), Some(expected));
        let bare =
            Challenge::Bearer { realm: "http://localhost/t".to_owned(), service: Some("s".to_owned()), scope: None };
        assert_eq!(parse("bearer service=s, realm=\"http://localhost/t\" , error=x"), Some(bare));
        assert_eq!(parse("Basic realm=\"x\""), Some(Challenge::Basic));
        for bad in ["", "Bearer", "Bearer realm", "Bearer realm=\"x", "Negotiate", "Bearer service=\"x\""] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
