//! Git itself says which files are in the tree.

use std::fs;

use proptest::prelude::*;

use crate::support::{Yard, paths};

/// What git would commit with `git add -A`, as far as it is there.
fn listed_by_git(yard: &Yard) -> Vec<String> {
    let text = yard.git(&["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let mut paths: Vec<String> = text
        .split_terminator('\0')
        .filter(|path| fs::symlink_metadata(yard.root().join(path)).is_ok())
        .map(str::to_owned)
        .collect();
    paths.sort();
    paths.dedup();
    paths
}

#[test]
fn a_tree_below_its_repository_obeys_the_rules_above() {
    let yard = Yard::with_git();
    yard.write(".gitignore", "*.log\n/sub/top\nignored/\n");
    yard.write("sub/.gitignore", "!keep.log\n");
    for path in ["sub/a.log", "sub/keep.log", "sub/top", "sub/in/top", "ignored/x.log", "ignored/y"] {
        yard.write(path, path);
    }
    let tree = |path: &str| {
        let tree = testyard_sync::Tree::open(&yard.root().join(path), yard.options()).expect("the tree");
        paths(&tree.scan().expect("a readable tree"))
    };
    assert_eq!(tree("sub"), [".gitignore", "in/top", "keep.log"]);
    assert_eq!(tree("sub/in"), ["top"]);
    // Asked for by name, an ignored folder is a tree of its own.
    assert_eq!(tree("ignored"), ["x.log", "y"]);
}

#[test]
fn submodules_and_nested_repositories_obey_their_own_rules() {
    let yard = Yard::with_git();
    let library = Yard::with_git();
    library.write("lib.c", "c");
    library.write("forced.o", "o");
    library.write(".gitignore", "*.o\n");
    library.git(&["add", "-f", "."]);
    library.git(&["commit", "--quiet", "-m", "x"]);
    let url = library.root().display().to_string();
    yard.git(&["submodule", "--quiet", "add", &url, "vendor/lib"]);
    yard.write(".gitignore", "*.c\n");
    yard.write("main.c", "ignored here");
    yard.write("vendor/lib/new.o", "ignored there");
    yard.write("nested/x.c", "x");
    yard.git_in(&yard.root().join("nested"), &["init", "--quiet"]);
    let expected =
        [".gitignore", ".gitmodules", "nested/x.c", "vendor/lib/.gitignore", "vendor/lib/forced.o", "vendor/lib/lib.c"];
    assert_eq!(paths(&yard.scan()), expected);
    assert_eq!(paths(&yard.settle()), expected);
    // A linked working tree keeps its index elsewhere.
    library.git(&["worktree", "add", "--quiet", yard.root().join("linked").to_str().expect("text")]);
    let scan = yard.scan();
    assert!(scan.manifest().find("linked/forced.o".as_ref()).is_some(), "{:?}", paths(&scan));
}

#[test]
fn every_form_of_the_index_is_read() {
    for arrange in [
        &["update-index", "--index-version", "4"][..],
        &["update-index", "--index-version", "2"],
        &["update-index", "--split-index"],
        &["update-index", "--add", "--chmod=+x", "a/forced.o"],
    ] {
        let yard = Yard::with_git();
        yard.write(".gitignore", "*.o\n");
        for path in ["a/forced.o", "a/b/forced.o", "a/c/plain", "z.o"] {
            yard.write(path, path);
        }
        yard.git(&["add", "-f", "a"]);
        yard.git(arrange);
        yard.git(&["add", "-f", "z.o"]);
        yard.git(&["rm", "--quiet", "--cached", "a/b/forced.o"]);
        let scan = yard.scan();
        for path in ["a/forced.o", "z.o", "a/c/plain"] {
            assert!(scan.manifest().find(path.as_ref()).is_some(), "{arrange:?}: {path}");
        }
    }
    let yard = Yard::new();
    yard.git(&["init", "--quiet", "--object-format=sha256"]);
    yard.write(".gitignore", "*\n");
    yard.write("a", "a");
    yard.git(&["add", "-f", "a"]);
    assert_eq!(paths(&yard.scan()), ["a"]);
}

fn name() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "c.log", "d.txt", ".e", "f g", "build"]).prop_map(str::to_owned)
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(name(), 1..4).prop_map(|names| names.join("/"))
}

fn rule() -> impl Strategy<Value = String> {
    (prop::sample::select(vec!["", "!", "/", "!/"]), path(), prop::sample::select(vec!["", "/", "/*", "/**"]))
        .prop_flat_map(|(before, path, after)| {
            prop::sample::select(vec![
                format!("{before}{path}{after}"),
                format!("*.log{after}"),
                format!("**/{path}"),
                "!*.txt".to_owned(),
            ])
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_same_files_as_git(
        files in prop::collection::vec(path(), 1..24),
        rules in prop::collection::vec((prop::option::of(path()), prop::collection::vec(rule(), 1..4)), 0..4),
        forced in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        later in prop::collection::vec(path(), 0..3),
    ) {
        let yard = Yard::with_git();
        let put = |path: &str, content: &str| {
            let path = yard.root().join(path);
            // A name may be a file here and a folder there; the first one wins.
            let made = fs::create_dir_all(path.parent().expect("a folder")).and_then(|()| fs::write(&path, content));
            made.is_ok()
        };
        let made: Vec<&String> = files.iter().filter(|path| put(path, path)).collect();
        for (folder, rules) in &rules {
            let folder = folder.as_ref().map_or(String::new(), |folder| format!("{folder}/"));
            put(&format!("{folder}.gitignore"), &rules.join("\n"));
        }
        for index in forced.iter().filter(|_| !made.is_empty()) {
            yard.git(&["add", "-f", index.get(made.as_slice()).as_str()]);
        }
        prop_assert_eq!(paths(&yard.scan()), listed_by_git(&yard));
        for path in &later {
            put(path, "later");
        }
        let warm = yard.scan();
        prop_assert_eq!(paths(&warm), listed_by_git(&yard));
        let afresh = yard.scan_afresh();
        prop_assert_eq!(warm.hash, afresh.hash);
        prop_assert_eq!(warm.unhashed, afresh.unhashed);
    }
}
