//! The part of Go's templates that `--format` is used with: `json`, `{{json .}}`, `{{.Names}}`, `{{json .State.Pid}}`.

use serde_json::Value;

use crate::Failure;

/// One record as `--format` asks for it.
pub(crate) fn formatted(format: &str, record: &Value) -> Result<String, Failure> {
    let format = format.strip_prefix("table ").unwrap_or(format);
    if format == "json" {
        return Ok(record.to_string());
    }
    let (mut text, mut left) = (String::new(), format);
    while let Some((before, after)) = left.split_once("{{") {
        let Some((action, after)) = after.split_once("}}") else {
            return Err(parse_error("unclosed action"));
        };
        text.push_str(&unescaped(before));
        text.push_str(&evaluated(action.trim(), record)?);
        left = after;
    }
    text.push_str(&unescaped(left));
    Ok(text)
}

fn evaluated(action: &str, record: &Value) -> Result<String, Failure> {
    if let Some(path) = action.strip_prefix("json ") {
        return Ok(found(path.trim(), record)?.to_string());
    }
    Ok(match found(action, record)? {
        Value::String(text) => text,
        Value::Null => "<no value>".to_owned(),
        other => other.to_string(),
    })
}

fn found(path: &str, record: &Value) -> Result<Value, Failure> {
    let Some(path) = path.strip_prefix('.') else {
        return Err(parse_error(&format!("`{path}` is not served here; use {{{{.Field}}}} or {{{{json .Field}}}}")));
    };
    let mut value = record;
    for name in path.split('.').filter(|name| !name.is_empty()) {
        value = value.get(name).ok_or_else(|| parse_error(&format!("can't evaluate field {name}")))?;
    }
    Ok(value.clone())
}

fn unescaped(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

fn parse_error(what: &str) -> Failure {
    Failure::new(format!("template parsing error: {what}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_and_json_are_filled_in() {
        let record = json!({"Names": "a \"b\"", "State": {"Pid": 7}, "None": null});
        for (format, expected) in [
            ("{{.Names}}", "a \"b\""),
            ("table {{.Names}}\\t{{ .State.Pid }}", "a \"b\"\t7"),
            ("{{json .Names}}", r#""a \"b\"""#),
            ("{{json .State}}", r#"{"Pid":7}"#),
            ("x", "x"),
            ("{{.None}}", "<no value>"),
        ] {
            assert_eq!(formatted(format, &record).as_deref(), Ok(expected), "{format}");
        }
        assert_eq!(formatted("json", &record).expect("plain"), record.to_string());
        assert_eq!(formatted("{{json .}}", &record).expect("plain"), record.to_string());
        for bad in ["{{.Nope}}", "{{range .}}{{end}}", "{{"] {
            assert!(formatted(bad, &record).is_err(), "{bad}");
        }
    }
}
