//! Building a Debian release for real: about half a minute, where the archive can be reached.

use testkit::Ability;
use testyard_images::{BuildOptions, BuildProgress, ImportOptions, Store};

#[test]
fn debian_12_is_built_once() {
    testkit::require!(Ability::Program("mmdebstrap"));
    testkit::require!(Ability::DebianArchive);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = Store::open(&folder.path().join("images")).expect("a new store");
    let import = ImportOptions { flush: false, ..ImportOptions::new(0) };
    let options = BuildOptions { refresh: false, import };
    let reference = "debian:12".parse().expect("reference");
    let build = || {
        let mut told = Vec::new();
        let image = store.build(&reference, &options, &mut |progress| told.push(progress)).expect("a build");
        (image, told)
    };
    // Two at once make one.
    let ((one, told_one), (other, told_other)) = std::thread::scope(|scope| {
        let other = scope.spawn(build);
        (build(), other.join().expect("no panic"))
    });
    assert_eq!(one, other);
    let found = [told_one, told_other].into_iter().filter(|told| *told == [BuildProgress::Found]).count();
    assert_eq!(found, 1, "one build, one find");
    assert_eq!(one.references, ["debian:12"]);
    assert!(one.root.join("usr/bin/dash").is_file() && !one.record.minimal);
    assert_eq!(one.record.arch.as_deref(), Some(std::env::consts::ARCH));
    let by_name = store.build(&"debian:bookworm".parse().expect("reference"), &options, &mut |_| {});
    assert_eq!(by_name.expect("found").references, ["debian:12", "debian:bookworm"]);
}

#[test]
fn what_the_archive_lacks_is_told_with_the_end_of_the_log() {
    testkit::require!(Ability::Program("mmdebstrap"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = Store::open(&folder.path().join("images")).expect("a new store");
    let options = BuildOptions { refresh: false, import: ImportOptions::new(0) };
    let error = store.build(&"ubuntu:20.04".parse().expect("reference"), &options, &mut |_| {});
    let Err(error) = error else {
        testkit::skip!("what_the_archive_lacks_is_told_with_the_end_of_the_log", host: "Ubuntu's archive answers here");
    };
    let told = error.to_string();
    let known = ["mmdebstrap could not build focal", "the keys of Ubuntu's archive are not installed"];
    assert!(known.iter().any(|known| told.starts_with(known)), "{told}");
    assert!(!error.problem().hints.is_empty());
    assert!(store.list().expect("list").is_empty());
    let left: Vec<_> = std::fs::read_dir(store.path().join("temporary")).expect("temporary").collect();
    assert!(left.is_empty(), "{left:?}");
}
