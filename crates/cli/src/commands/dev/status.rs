//! `testyard dev status`

use std::time::SystemTime;

use serde_json::{Value, json};
use testyard_machine::supervisor::socket_of;
use testyard_model::{MachineInfo, Problem};

use super::{Outcome, Whose, containers};
use crate::commands::DONE;
use crate::output::Output;
use crate::yard;

/// The developer's machine and what runs on it.
///
/// Example:
///     testyard dev status --json
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Status {
    #[command(flatten)]
    whose: Whose,
}

impl Status {
    pub(super) fn run(self, output: Output) -> Outcome {
        let yard = yard::open()?;
        let Some(info) = self.whose.running(&yard)? else {
            return told(output, &Value::Null, &[]);
        };
        let mut found = containers::running(&yard, &info);
        found.extend(containers::of_docker(&mut yard.connect(&info.name)?)?);
        let vm = json!({
            "name": info.name,
            "id": info.id,
            "instance_type": containers::instance_type(&yard, &info),
            "status": "running",
            "uptime_hours": uptime_hours(&info),
        });
        told(output, &vm, &found)
    }
}

/// Since its socket was made, which every start does.
fn uptime_hours(info: &MachineInfo) -> f64 {
    let socket = yard::options().map(|options| socket_of(options.home.runtime(), &info.name));
    let made = socket.ok().and_then(|socket| std::fs::metadata(socket).ok()?.modified().ok());
    let up = made.and_then(|made| SystemTime::now().duration_since(made).ok()).unwrap_or_default();
    (up.as_secs_f64() / 36.0).round() / 100.0
}

fn told(output: Output, vm: &Value, found: &[Value]) -> Outcome {
    if output.json {
        output.json_object(json!({ "vm": vm, "active_containers": found.len(), "containers": found }))?;
        return DONE;
    }
    output.data(&described(vm, found)?)?;
    DONE
}

fn described(vm: &Value, found: &[Value]) -> Result<String, Problem> {
    let Some(name) = vm["name"].as_str() else {
        return Ok("no developer's machine is running\n".to_owned());
    };
    let mut text = format!(
        "{name} ({}) runs for {} hours; containers: {}\n",
        vm["instance_type"].as_str().unwrap_or_default(),
        vm["uptime_hours"],
        found.len()
    );
    for one in found {
        let field = |name: &str| one[name].as_str().unwrap_or_default().to_owned();
        text.push_str(&format!("  {}  {}  {}\n", field("Names"), field("Image"), field("Command")));
    }
    Ok(text)
}
