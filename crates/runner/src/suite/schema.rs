//! The suite file's JSON schema, for editors. A test holds it against the keys that the parser knows.

use serde_json::{Map, Value, json};
use testyard_model::{Isolation, Network};

use super::services::SIGNALS;
use super::{FORMAT, keys};
use crate::cluster::SuiteCluster;

/// The schema, in draft 7, which editors' TOML plugins read.
#[must_use]
pub fn schema() -> Value {
    let suite = object(
        [
            (
                "name",
                described(
                    json!({ "type": "string", "minLength": 1, "maxLength": 255 }),
                    "the suite's name; else the folder's",
                ),
            ),
            ("backend", described(json!({ "type": "string" }), "what makes its machines: auto, host, namespace")),
            ("image", described(json!({ "type": "string" }), "what they start from: host, debian:12, sha256:…")),
            ("matrix", matrix()),
            ("prepare", described(command(), "run once, and its files kept for every test, until `inputs` change")),
            ("restore", described(command(), "run in what was prepared, after the suite's tests")),
            ("inputs", described(words(), "patterns of files that what is prepared depends on")),
            ("prepare-timeout", span("how long prepare and restore may take each")),
            ("defaults", described(object(settings(), &[]), "what each test gets unless it says otherwise")),
        ],
        &[],
    );
    let mut schema = object(
        [
            ("format", described(json!({ "const": FORMAT }), "the version of this format")),
            ("suite", suite),
            ("run", described(run(), "how to run this suite unless the command line says otherwise")),
            ("sync", described(sync(), "what machines have of the working tree")),
            ("cluster", described(cluster(), "what tests that ask for it can reach")),
            ("service", array_of(service(), "what tests can have running beside them")),
            ("test", array_of(test(), "tests, one by one")),
            ("tests", array_of(glob(), "a test for each file that matches")),
            ("quarantine", array_of(quarantine(), "known failures that do not fail the run, until a day")),
        ],
        &["format"],
    );
    schema["$schema"] = "http://json-schema.org/draft-07/schema#".into();
    schema["title"] = "testyard.toml".into();
    schema
}

fn sync() -> Value {
    let git =
        described(json!({ "enum": ["none", "history"] }), "history: objects and references, without configuration");
    let always = described(json!({ "type": "boolean" }), "a copy also where the machine is on this host");
    object([("always", always), ("git", git)], &[])
}

fn test() -> Value {
    let own = [
        ("name", described(json!({ "type": "string", "minLength": 1, "maxLength": 255 }), "unique in the suite")),
        ("command", described(command(), "arguments, verbatim; a string goes to /bin/sh -c")),
    ];
    object(own.into_iter().chain(settings()), &["name", "command"])
}

fn glob() -> Value {
    let own = [
        ("glob", described(words(), "patterns below the suite's folder")),
        ("exclude", described(words(), "patterns of files to leave out")),
        ("command", described(command(), "with {file}, {name} or {stem}; without it the file itself is executed")),
    ];
    object(own.into_iter().chain(settings()), &["glob"])
}

fn service() -> Value {
    let ready = object(
        [
            ("port", described(whole(1, 65_535), "something accepts connections on this port of the loopback")),
            (
                "log",
                described(json!({ "type": "string" }), "it has written a line that matches this regular expression"),
            ),
            ("command", described(command(), "this, run over and over beside it, exits with 0")),
            ("timeout", span("how long it may take")),
        ],
        &[],
    );
    let stop = object(
        [
            ("signal", json!({ "enum": SIGNALS.map(|(name, _)| name) })),
            ("timeout", span("how long it may take to end after the signal")),
        ],
        &[],
    );
    let text = |what| described(json!({ "type": "string", "minLength": 1 }), what);
    object(
        [
            ("name", text("one word, unique in the suite")),
            ("command", described(command(), "arguments, verbatim; a string goes to /bin/sh -c")),
            ("env", described(variables(), "variables it gets")),
            ("cwd", text("where it runs, below the suite's folder or absolute")),
            ("user", text("caller, root, or a user of the image")),
            ("ready", described(ready, "when it is ready; else once it runs")),
            ("scope", described(json!({ "enum": ["environment", "suite"] }), "each test's own, or one for the suite")),
            ("after", described(words(), "services that are ready before it starts")),
            ("stop", described(stop, "how it is asked to end")),
            ("may-end", described(json!({ "type": "boolean" }), "its end before the test's is no failure")),
        ],
        &["name", "command"],
    )
}

fn cluster() -> Value {
    let text = |what| described(json!({ "type": "string", "minLength": 1 }), what);
    let flag = |what| described(json!({ "type": "boolean" }), what);
    object(
        [
            ("kind", described(json!({ "const": "slurm" }), "what runs it")),
            ("nodes", described(whole(1, SuiteCluster::MOST_NODES.into()), "how many nodes it has")),
            ("cpus", described(whole(1, SuiteCluster::MOST_CPUS.into()), "processors that each node declares")),
            ("memory", size("memory that each node declares")),
            ("partitions", described(words(), "its partitions: debug, or long:1-2 for some nodes only")),
            ("accounting", flag("jobs are accounted for")),
            ("outbound", flag("its nodes reach what this host reaches")),
            ("user", text("who logs in")),
            ("password", text("what opens it")),
            ("image", text("what its nodes start from")),
            ("source", flag("every node sees the working tree, read-only; else true")),
        ],
        &[],
    )
}

fn quarantine() -> Value {
    let text = |what| described(json!({ "type": "string", "minLength": 1 }), what);
    object(
        [
            ("test", text("a pattern over the names of tests")),
            ("owner", text("who cares about it")),
            ("reason", text("why failures are borne")),
            ("until", text("the last day (UTC) on which they are: 2027-03-31")),
        ],
        keys::QUARANTINE,
    )
}

fn matrix() -> Value {
    let variants = |what| described(json!({ "type": "array", "items": object(variant(), &[]) }), what);
    let matrix = object(
        [
            ("image", described(words(), "images")),
            ("backend", described(words(), "backends")),
            ("env", described(json!({ "type": "array", "items": variables() }), "sets of variables")),
            ("exclude", variants("combinations to leave out")),
            ("include", variants("variants beside the combinations")),
        ],
        &[],
    );
    described(matrix, "each test runs once for every combination")
}

fn variant() -> [(&'static str, Value); 3] {
    [("image", json!({ "type": "string" })), ("backend", json!({ "type": "string" })), ("env", variables())]
}

fn run() -> Value {
    object(
        [
            ("jobs", described(whole(1, 4_096), "tests at once")),
            ("fail-fast", described(json!({ "type": "boolean" }), "start no more tests after the first failure")),
            ("no-skip", described(json!({ "type": "boolean" }), "a skipped test counts as failed")),
        ],
        &[],
    )
}

/// What tests, globs and defaults share.
fn settings() -> Vec<(&'static str, Value)> {
    let word = |words: Value, what| described(json!({ "enum": words }), what);
    vec![
        ("needs", described(words(), "abilities that it cannot do without (testyard doctor lists them)")),
        ("isolation", word(json!(Isolation::ALL.map(Isolation::as_str)), "the least it accepts")),
        ("network", word(json!(Network::ALL.map(Network::as_str)), "its network")),
        ("timeout", span("how long its command may take")),
        ("env", described(variables(), "variables it gets")),
        ("resources", described(resources(), "limits, and what the scheduler sets aside")),
        ("user", word(json!(["caller", "root"]), "whom it runs as")),
        ("cwd", described(json!({ "type": "string" }), "where it runs, below the suite's folder or absolute")),
        ("tags", described(words(), "words to select it by")),
        ("owner", described(json!({ "type": "string" }), "whom to ask about it")),
        ("retries", described(whole(0, 100), "how often a failure is tried again")),
        ("outputs", described(words(), "patterns of files that come back to the working tree")),
        ("artifacts", described(words(), "patterns of files that are kept with the result")),
        ("inputs", described(words(), "patterns of files that it depends on, for --changed-since and --watch")),
        ("slow-after", span("after how long it is called slow")),
        ("services", described(words(), "the services that run beside it")),
        ("cluster", described(json!({ "type": "boolean" }), "whether it uses the suite's cluster")),
    ]
}

fn size(what: &str) -> Value {
    let text = json!({ "type": "string", "examples": ["512M", "2G"] });
    described(json!({ "anyOf": [text, { "type": "integer", "minimum": 1 }] }), what)
}

fn resources() -> Value {
    let cpus = json!({ "type": "number", "exclusiveMinimum": 0 });
    object(
        [
            ("cpus", described(cpus, "processor time, in cores")),
            ("memory", size("memory")),
            ("pids", described(whole(1, 4_194_304), "processes and threads")),
            ("disk", size("bytes it may write over its root")),
            ("exclusive", described(words(), "names that it shares with no other test while it runs")),
        ],
        &[],
    )
}

/// A table with just these keys.
fn object(properties: impl IntoIterator<Item = (&'static str, Value)>, required: &[&str]) -> Value {
    let properties: Map<String, Value> = properties.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let mut object = json!({ "type": "object", "additionalProperties": false, "properties": properties });
    if !required.is_empty() {
        object["required"] = json!(required);
    }
    object
}

fn array_of(items: Value, what: &str) -> Value {
    described(json!({ "type": "array", "items": items }), what)
}

fn described(mut schema: Value, what: &str) -> Value {
    schema["description"] = what.into();
    schema
}

fn words() -> Value {
    json!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }] })
}

fn command() -> Value {
    let arguments = json!({ "type": "array", "items": { "type": "string" }, "minItems": 1 });
    json!({ "anyOf": [{ "type": "string", "minLength": 1 }, arguments] })
}

fn span(what: &str) -> Value {
    described(json!({ "type": "string", "examples": ["500ms", "90s", "1h30m"] }), what)
}

fn variables() -> Value {
    json!({ "type": "object", "additionalProperties": { "type": "string" } })
}

fn whole(least: u32, most: u32) -> Value {
    json!({ "type": "integer", "minimum": least, "maximum": most })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys of a table of the schema, found by the way there.
    fn keys_at(schema: &Value, way: &str) -> Vec<String> {
        let table = way.split('.').filter(|step| !step.is_empty()).fold(schema, |at, key| {
            let found = &at["properties"][key];
            if found["items"].is_object() { &found["items"] } else { found }
        });
        assert_eq!(table["additionalProperties"], false, "{way} takes unknown keys");
        table["properties"].as_object().expect(way).keys().cloned().collect()
    }

    #[test]
    fn the_schema_has_exactly_the_keys_that_the_parser_takes() {
        let schema = schema();
        let tables = [
            ("", keys::TOP),
            ("suite", keys::SUITE),
            ("suite.defaults", keys::DEFAULTS),
            ("suite.defaults.resources", keys::RESOURCES),
            ("suite.matrix", keys::MATRIX),
            ("suite.matrix.exclude", keys::VARIANT),
            ("suite.matrix.include", keys::VARIANT),
            ("run", keys::RUN),
            ("test", keys::TEST),
            ("test.resources", keys::RESOURCES),
            ("tests", keys::GLOB),
            ("quarantine", keys::QUARANTINE),
            ("cluster", keys::CLUSTER),
            ("service", keys::SERVICE),
            ("service.ready", keys::READY),
            ("service.stop", keys::STOP),
        ];
        for (way, known) in tables {
            let mut known: Vec<String> = known.iter().map(|key| (*key).to_owned()).collect();
            let mut found = keys_at(&schema, way);
            known.sort();
            found.sort();
            assert_eq!(found, known, "[{way}]");
        }
    }

    #[test]
    fn the_schema_in_the_documentation_is_this_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/suite.schema.json");
        let text = format!("{}\n", serde_json::to_string_pretty(&schema()).expect("plain data"));
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, &text).expect("docs can be written");
        }
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(written == text, "docs/suite.schema.json is old: UPDATE=1 cargo test -p testyard-runner schema");
    }
}
