//! The report that `testyard doctor` shows and that suites' `needs` are checked against.

use serde::{Deserialize, Serialize};

use crate::ability::abilities;
use crate::host::HostFacts;
use crate::tier::Tier;

/// The version of the report's JSON; raised when a reader could break.
pub const REPORT_VERSION: u32 = 1;

/// Everything that is known about what this host can do for this user.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`REPORT_VERSION`].
    pub version: u32,
    /// What was read, not probed; always of this moment.
    pub host: HostFacts,
    /// One for each ability, in the order of [`abilities`].
    pub probes: Vec<Probe>,
    /// What `backend = "auto"` picks.
    pub tier: Tier,
}

/// Yes or no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// It was done.
    Yes,
    /// It could not be done, or not in time.
    No,
}

/// One thing that was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// What it is, for people.
    pub name: String,
    /// What it is, for suites: the stable word that `needs` uses.
    pub ability: String,
    /// Whether it is there.
    pub answer: Answer,
    /// What was done, or what refused; a lower-case fragment.
    pub reason: String,
    /// The command that would provide it, where it is missing and there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provide: Option<String>,
    /// More about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// How long the answer took, in milliseconds.
    pub millis: u64,
}

/// A word in `needs` that names no ability.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no ability `{name}`{}", .nearest.map(|nearest| format!("; did you mean `{nearest}`?")).unwrap_or_default())]
pub struct UnknownAbility {
    /// The word.
    pub name: String,
    /// The most similar ability.
    pub nearest: Option<&'static str>,
}

impl UnknownAbility {
    pub(crate) fn new(name: &str) -> Self {
        let nearest = abilities()
            .iter()
            .map(|ability| (strsim::jaro_winkler(name, ability.name), ability.name))
            .filter(|(similarity, _)| *similarity > 0.7)
            .max_by(|left, right| left.0.total_cmp(&right.0))
            .map(|(_, name)| name);
        Self { name: name.to_owned(), nearest }
    }

    /// As it is shown to people.
    #[must_use]
    pub fn problem(&self) -> testyard_model::Problem {
        testyard_model::Problem::from_error(testyard_model::ProblemKind::Usage, self)
            .hint("see every ability: testyard doctor")
    }
}

impl Report {
    /// The probe of an ability.
    #[must_use]
    pub fn probe(&self, ability: &str) -> Option<&Probe> {
        self.probes.iter().find(|probe| probe.ability == ability)
    }

    /// Whether an ability is there; false for a word that names none.
    #[must_use]
    pub fn has(&self, ability: &str) -> bool {
        self.probe(ability).is_some_and(|probe| probe.answer == Answer::Yes)
    }

    /// Those of the needed abilities that are not there: what a skip says.
    ///
    /// # Errors
    /// [`UnknownAbility`] for a word that names none: a typing error must not become a skip.
    pub fn missing<S: AsRef<str>>(&self, needs: &[S]) -> Result<Vec<&Probe>, UnknownAbility> {
        let mut missing = Vec::new();
        for need in needs {
            let probe = self.probe(need.as_ref()).ok_or_else(|| UnknownAbility::new(need.as_ref()))?;
            if probe.answer == Answer::No {
                missing.push(probe);
            }
        }
        Ok(missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tier::tests::report;

    #[test]
    fn needs_are_found_missing_or_unknown() {
        let report = report(0, &["kvm"]);
        assert!(report.has("kvm") && !report.has("qemu") && !report.has("nonsense"));
        let missing = report.missing(&["kvm", "qemu"]).expect("both are known");
        assert_eq!(missing.iter().map(|probe| probe.ability.as_str()).collect::<Vec<_>>(), ["qemu"]);
        let error = report.missing(&["user-namespaces"]).expect_err("a typing error");
        assert_eq!(error.to_string(), "there is no ability `user-namespaces`; did you mean `user-namespace`?");
        assert_eq!(report.missing(&["zzz"]).expect_err("nothing like it").nearest, None);
    }

    #[test]
    fn a_report_survives_json() {
        let report = report(1000, &["user-namespace"]);
        let json = serde_json::to_string(&report).expect("plain data");
        assert!(json.starts_with(r#"{"version":1,"#), "{json}");
        assert_eq!(serde_json::from_str::<Report>(&json).expect("its own output"), report);
    }
}
