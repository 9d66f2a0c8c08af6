//! A suite's matrix applied to its tests, and which of them are quarantined.

use globset::GlobBuilder;

use super::PlannedTest;
use super::error::PlanError;
use crate::suite::{ConfigFault, SuiteFile, nearest};

/// Each test once for each variant of the suite, in the order of the tests.
pub(super) fn expand(file: &SuiteFile, tests: Vec<PlannedTest>) -> Vec<PlannedTest> {
    if file.variants.is_empty() {
        return tests;
    }
    let mut all = Vec::with_capacity(tests.len() * file.variants.len());
    for test in tests {
        for variant in &file.variants {
            let mut test = test.clone();
            let label = variant.to_string();
            test.name = format!("{}[{label}]", test.name);
            test.variant = Some(label);
            test.backend = variant.backend.clone().filter(|name| name.as_str() != "auto").or(test.backend);
            test.image = variant.image.clone().or(test.image);
            test.env.extend(variant.env.clone());
            all.push(test);
        }
    }
    all
}

/// Notes each test's quarantine. An entry that means no test at all is refused: it has outlived its test.
pub(super) fn quarantine(file: &SuiteFile, tests: &mut [PlannedTest]) -> Result<(), PlanError> {
    for (place, entry) in file.quarantine.iter().enumerate() {
        let pattern = &entry.test.value;
        // The parser has refused patterns that cannot be read.
        let glob = GlobBuilder::new(pattern).literal_separator(false).build().ok().map(|glob| glob.compile_matcher());
        let mut meant = false;
        for test in tests.iter_mut() {
            // Brackets are a pattern's own; a name with a variant in them is also meant word for word, and without it.
            let whole = test.name == *pattern || glob.as_ref().is_some_and(|glob| glob.is_match(&test.name));
            if whole || glob.as_ref().is_some_and(|glob| glob.is_match(test.plain_name())) {
                meant = true;
                test.quarantine.get_or_insert(place);
            }
        }
        if !meant {
            let fault = ConfigFault::NoSuchTest {
                pattern: pattern.clone(),
                nearest: nearest(pattern, tests.iter().map(|test| test.name.as_str())).map(str::to_owned),
            };
            return Err(file.source.fault(entry.test.span.clone(), fault).into());
        }
    }
    Ok(())
}
