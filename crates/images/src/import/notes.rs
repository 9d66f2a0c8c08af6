//! What an import tells of its archive beside the image.

use std::collections::BTreeMap;

use crate::archive::shown;

/// What is worth a warning: how often, and the first by name.
#[derive(Default)]
pub(super) struct Notes(BTreeMap<&'static str, (u64, String)>);

impl Notes {
    pub(super) fn add(&mut self, what: &'static str, entry: &[u8]) {
        self.0.entry(what).or_insert_with(|| (0, shown(entry))).0 += 1;
    }

    pub(super) fn sentences(&self) -> Vec<String> {
        let sentence = |(what, (count, first)): (&&str, &(u64, String))| match count {
            1 => format!("{what}: {first}"),
            _ => format!("{what}: {first} and {} more", count - 1),
        };
        self.0.iter().map(sentence).collect()
    }
}
