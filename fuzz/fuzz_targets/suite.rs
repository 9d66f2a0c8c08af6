//! Whatever the text, the suite parser reads it or refuses it with an error that can be shown.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Err(error) = testyard_runner::suite::parse(text, Path::new("testyard.toml")) {
        let shown = error.render(true);
        assert!(!shown.is_empty());
        let (line, column) = error.place();
        assert!(line >= 1 && column >= 1);
        let _problem = error.problem();
    }
    let _filter = testyard_runner::filter::Filter::parse(text);
});
