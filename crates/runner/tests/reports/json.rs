//! JSON lines against their published schema, and back to what they were made from.

use serde_json::Value;
use testyard_runner::report::{ReportKind, RunRecord};

use crate::{rendered, sample};

const SCHEMA: &str = include_str!("../../../../docs/run.schema.json");

/// What of a schema these tests understand: the published one uses no more.
fn check(schema: &Value, root: &Value, value: &Value, place: &str) -> Result<(), String> {
    let words = schema.as_object().ok_or_else(|| format!("{place}: no schema"))?;
    for (word, says) in words {
        match word.as_str() {
            "$schema" | "$id" | "$defs" | "title" | "description" => {}
            "$ref" => {
                let name = says.as_str().and_then(|name| name.strip_prefix("#/$defs/")).expect("a local reference");
                check(&root["$defs"][name], root, value, place)?;
            }
            "type" => {
                let right = match says.as_str() {
                    Some("object") => value.is_object(),
                    Some("array") => value.is_array(),
                    Some("string") => value.is_string(),
                    Some("boolean") => value.is_boolean(),
                    Some("integer") => value.is_i64() || value.is_u64(),
                    other => return Err(format!("{place}: unknown type {other:?}")),
                };
                if !right {
                    return Err(format!("{place}: {value} is no {says}"));
                }
            }
            "const" if value == says => {}
            "enum" if says.as_array().is_some_and(|all| all.contains(value)) => {}
            "minimum" if value.as_i64() >= says.as_i64() => {}
            "const" | "enum" | "minimum" => return Err(format!("{place}: {value} is not {says}")),
            "required" => {
                for key in says.as_array().into_iter().flatten() {
                    if value.get(key.as_str().unwrap_or_default()).is_none() {
                        return Err(format!("{place}: no {key}"));
                    }
                }
            }
            "properties" => {
                for (key, inner) in says.as_object().into_iter().flatten() {
                    if let Some(found) = value.get(key) {
                        check(inner, root, found, &format!("{place}.{key}"))?;
                    }
                }
            }
            "items" => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    check(says, root, item, &format!("{place}[{index}]"))?;
                }
            }
            "allOf" => {
                for part in says.as_array().into_iter().flatten() {
                    check(part, root, value, place)?;
                }
            }
            "oneOf" => {
                let told: Vec<_> =
                    says.as_array().into_iter().flatten().map(|one| check(one, root, value, place)).collect();
                if told.iter().filter(|one| one.is_ok()).count() != 1 {
                    return Err(format!("{place}: {value}: {told:?}"));
                }
            }
            other => return Err(format!("{place}: these tests do not know `{other}`")),
        }
    }
    Ok(())
}

fn schema() -> Value {
    serde_json::from_str(SCHEMA).expect("JSON")
}

#[test]
fn lines_are_valid_against_the_published_schema() {
    let schema = schema();
    let mut record = sample::every_kind();
    record.warnings.push(testyard_model::Problem::new(testyard_model::ProblemKind::System, "odd").because("why"));
    for line in rendered(ReportKind::JsonLines, &record).lines() {
        let value: Value = serde_json::from_str(line).expect(line);
        check(&schema, &schema, &value, "line").unwrap_or_else(|error| panic!("{error}\n{line}"));
    }
    for wrong in [r#"{"version":2}"#, r#"{"version":1,"time_ms":1,"event":"test-finished","suite":"s","name":"n"}"#] {
        let value: Value = serde_json::from_str(wrong).expect("JSON");
        assert!(check(&schema, &schema, &value, "line").is_err(), "{wrong}");
    }
}

#[test]
fn a_kept_run_is_read_as_it_was() {
    let record = sample::every_kind();
    let text = rendered(ReportKind::JsonLines, &record);
    let again = RunRecord::read(text.as_bytes()).expect("our own");
    assert_eq!((&again.info, &again.ended), (&record.info, &record.ended));
    assert_eq!(again.results.len(), record.results.len());
    for (one, other) in again.results.iter().zip(&record.results) {
        assert_eq!((&one.name, &one.verdict, &one.attempts), (&other.name, &other.verdict, &other.attempts));
    }
    for kind in ReportKind::ALL.into_iter().filter(|kind| *kind != ReportKind::Html) {
        // Invalid bytes were made safe already; all else is the same.
        assert_eq!(rendered(kind, &again), rendered(kind, &record), "{kind:?}");
    }
}

#[test]
fn a_run_that_was_killed_is_read_as_far_as_it_came() {
    let text = rendered(ReportKind::JsonLines, &sample::every_kind());
    let lines: Vec<&str> = text.lines().collect();
    let started = r#"{"version":1,"time_ms":1,"event":"test-started","suite":"s","name":"open","attempt":1}"#;
    let cut = format!("{}\n{started}\n{}", lines[..4].join("\n"), &lines[4][..lines[4].len() / 2]);
    let record = RunRecord::read(cut.as_bytes()).expect("what there is");
    assert_eq!((record.results.len(), record.ended.is_none()), (3, true));
    assert_eq!(record.unfinished, ["s::open"]);
    let summary = record.summary();
    assert_eq!((summary.passed, summary.failed, summary.exit_code), (1, 2, 130));
    assert!(rendered(ReportKind::Tap, &record).ends_with("Bail out! the run was interrupted\n"));
    assert!(RunRecord::read(&b""[..]).is_err() && RunRecord::read(&b"{}\n"[..]).is_err());
    let newer = text.replace("\"version\":1", "\"version\":9");
    assert_eq!(RunRecord::read(newer.as_bytes()).expect_err("newer").to_string(), "line 1 is not a line of version 1");
}

#[test]
fn only_what_failed_can_be_told() {
    let mut record = sample::many(80);
    record.keep_failed();
    let names: Vec<&str> = record.results.iter().map(|result| &result.name[19..24]).collect();
    assert_eq!(names, ["00007", "00023", "00031", "00035", "00047", "00063", "00071", "00075"]);
}
