//! Rows over the `orbctl` surface: what its clients ask hundreds of times, and what they wait for.

use std::time::Duration;

use testyard_measure::Times;

use crate::Options;
use crate::environments::PAYLOAD;
use crate::programs::{Testyard, against_true, or_skip};
use crate::report::{Goal, Row};

/// What a machine is made of.
const IMAGE: &str = "debian:12";

/// The calls that ask, and a command, over a machine named `bench` that is there.
pub(crate) fn asking(options: &Options, testyard: &Testyard, row: &mut dyn FnMut(Row)) {
    for (name, line, goal) in [
        ("orbctl status", "orbctl status", 4.0),
        ("orbctl list", "orbctl list -f json", 4.0),
        ("orbctl info", "orbctl info bench -f json", 4.0),
        ("orbctl run … true", &format!("orbctl run -m bench {PAYLOAD}"), 6.0),
    ] {
        let name = format!("{name}, whole process, against /bin/true");
        or_skip(&name, Goal::AtMost(goal), "×", row, against_true(options, testyard, line));
    }
}

/// A machine with its user, names and `sudo`, from an image that is stored. The image is built first, which takes half a
/// minute.
pub(crate) fn creating(options: &Options, testyard: &Testyard, row: &mut dyn FnMut(Row)) {
    let created = testyard.run(&format!("image build {IMAGE}")).and_then(|_| {
        let mut creations: Vec<Duration> = Vec::new();
        for number in 0..options.rounds(20) {
            creations.push(testyard.run(&format!("orbctl create {IMAGE} orb-{number} --user dev"))?);
            testyard.run(&format!("orbctl delete -f orb-{number}"))?;
        }
        let times = Times::new("creations", creations);
        let detail = format!("median of {}, whole processes, with a user, names and sudo", times.count());
        Ok((times.median().as_secs_f64() * 1e3, detail))
    });
    or_skip("orbctl create, image there", Goal::AtMost(60.0), "ms", row, created);
}
