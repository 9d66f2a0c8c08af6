//! What makes a new hash and what does not, and that the cache never hides a change.

use std::fs;
use std::path::Path;

use testyard_sync::{Remembered, Tree, TreeHash, TreeOptions};

use crate::support::{Yard, paths, set_old, shown};

#[test]
fn content_mode_link_and_path_count_and_nothing_else() {
    let yard = Yard::new();
    yard.write("a", "one");
    yard.write("b/c", "two");
    let first = yard.scan().hash;
    fs::create_dir(yard.root().join("empty")).expect("a folder");
    set_old(&yard.root().join("a"));
    yard.set_mode("a", 0o600);
    assert_eq!(yard.scan().hash, first, "an empty folder, times and other modes do not count");

    let mut seen = vec![first];
    let mut differs = |what: &str| {
        let hash = yard.scan().hash;
        assert!(!seen.contains(&hash), "{what}");
        assert_eq!(hash, yard.scan_afresh().hash, "{what}");
        seen.push(hash);
    };
    yard.write("a", "One");
    differs("content");
    yard.set_mode("a", 0o700);
    differs("executable bit");
    yard.link("l", "a");
    differs("a link");
    fs::remove_file(yard.root().join("l")).expect("the link");
    yard.link("l", "b");
    differs("a link's target");
    yard.settle();
    fs::remove_file(yard.root().join("l")).expect("the link");
    yard.link("l", "b/");
    differs("a slash behind a link's target");
    fs::rename(yard.root().join("b/c"), yard.root().join("b/d")).expect("a rename");
    differs("a name");
    fs::remove_file(yard.root().join("a")).expect("the file");
    differs("a removal");
    assert_eq!(first.to_string().parse::<TreeHash>(), Ok(first));
}

#[test]
fn a_file_written_with_its_old_size_and_time_is_noticed() {
    let yard = Yard::new();
    let path = yard.write("a", "one");
    set_old(&path);
    let first = yard.settle();
    fs::write(&path, "two").expect("the file");
    set_old(&path);
    assert_ne!(yard.scan().hash, first.hash);
}

#[test]
fn writes_within_one_tick_are_noticed() {
    let yard = Yard::new();
    for round in 0..200 {
        let content = format!("{round:04}");
        yard.write("a", &content);
        let hash = yard.scan().hash;
        yard.write("a", &content.replace('0', "x"));
        assert_ne!(yard.scan().hash, hash, "{round}");
    }
}

#[test]
fn warm_scans_read_only_what_changed() {
    let yard = Yard::with_git();
    for n in 0..300 {
        yard.write(&format!("d{}/f{n}", n % 7), &n.to_string());
    }
    let cold = yard.scan();
    assert_eq!((cold.cost.files, cold.cost.read, cold.cost.listed), (300, 300, 8));
    yard.settle();
    yard.write("d3/f3", "else");
    let warm = yard.scan();
    assert_eq!((warm.cost.read, warm.cost.listed), (1, 0));
    yard.settle();
    yard.write("d3/new", "x");
    let warm = yard.scan();
    assert_eq!((warm.cost.read, warm.cost.listed), (1, 1));
    assert_eq!(warm.hash, yard.scan_afresh().hash);
}

#[test]
fn files_that_are_saved_beside_and_renamed_are_noticed_where_no_name_changed() {
    let yard = Yard::with_git();
    yard.write(".gitignore", "*.o\n");
    for n in 0..300 {
        yard.write(&format!("d{}/f{n}", n % 7), &n.to_string());
    }
    let save = |path: &str, content: &str| {
        let fresh = yard.write(&format!("{path}.tmp"), content);
        fs::rename(fresh, yard.root().join(path)).expect("a rename");
    };
    let mut last = yard.settle();
    let steps: [(&str, &dyn Fn()); 6] = [
        ("another content", &|| save("d3/f3", "else")),
        ("a link", &|| {
            yard.link("d3/new", "f3");
            fs::rename(yard.root().join("d3/new"), yard.root().join("d3/f10")).expect("a rename");
        }),
        ("other rules", &|| save(".gitignore", "*.o\nf4\n")),
        ("a folder in a file's place", &|| {
            fs::remove_file(yard.root().join("d5/f5")).expect("the file");
            yard.write("d5/f5/inner", "x");
        }),
        ("a repository of its own", &|| {
            yard.write("d6/.gitignore", "!f6\nf13\n");
            yard.git_in(&yard.root().join("d6"), &["init", "--quiet"]);
        }),
        ("one taken for another", &|| {
            fs::remove_file(yard.root().join("d1/f1")).expect("the file");
            yard.write("d1/f0", "x");
        }),
    ];
    for (what, step) in steps {
        step();
        let scan = yard.scan();
        assert_ne!(scan.hash, last.hash, "{what}");
        let afresh = yard.scan_afresh();
        assert_eq!((scan.hash, &scan.unhashed), (afresh.hash, &afresh.unhashed), "{what}");
        last = yard.settle();
        assert_eq!(last.hash, scan.hash, "{what}");
    }
}

#[test]
fn a_damaged_cache_is_as_none() {
    let yard = Yard::new();
    yard.write("a", "one");
    let hash = yard.settle().hash;
    let file = fs::read_dir(yard.cache()).expect("the cache").next().expect("one file").expect("an entry").path();
    let whole = fs::read(&file).expect("the cache's file");
    for length in [0, 7, 40, whole.len() / 2, whole.len() - 1] {
        fs::write(&file, &whole[..length]).expect("the cache's file");
        let scan = yard.scan();
        assert_eq!((scan.hash, scan.cost.read), (hash, 1), "{length}");
    }
    fs::remove_file(&file).expect("the cache's file");
    fs::remove_dir(yard.cache()).expect("the cache");
    let scan = yard.tree().scan().expect("a readable tree");
    assert_eq!(scan.hash, hash);
    assert!(scan.cache_failure.is_some());
}

#[test]
fn a_saved_file_is_added_to_the_cache_and_does_not_write_it_again() {
    let yard = Yard::new();
    for number in 0..200 {
        yard.write(&format!("d/{number}"), "x");
    }
    yard.settle();
    let file = fs::read_dir(yard.cache()).expect("the cache").next().expect("one file").expect("an entry").path();
    // Without what was added while it settled.
    fs::remove_file(&file).expect("the cache's file");
    let mut last = yard.scan();
    let before = fs::read(&file).expect("the cache's file");
    for text in ["one", "two", "three"] {
        // As editors do: a new file takes its name.
        fs::rename(yard.write("new", text), yard.root().join("d/7")).expect("a rename");
        let scan = yard.scan();
        assert_ne!(scan.hash, last.hash, "{text}");
        assert_eq!(scan.hash, yard.scan_afresh().hash, "{text}");
        last = yard.settle();
        assert_eq!((last.hash, last.cost.read), (scan.hash, 0), "{text}");
    }
    let after = fs::read(&file).expect("the cache's file");
    assert!(after.starts_with(&before));
    assert!(after.len() < before.len() + before.len() / 4, "{} and then {}", before.len(), after.len());
    // What was cut in it is looked for again, and no more.
    fs::write(&file, &after[..after.len() - 1]).expect("the cache's file");
    let scan = yard.scan();
    assert_eq!(scan.hash, last.hash);
    assert!(scan.cost.read <= 1, "{:?}", scan.cost);
}

#[test]
fn what_is_remembered_may_be_read_ahead() {
    let yard = Yard::new();
    yard.write("a", "one");
    yard.write("secret", "two");
    let last = yard.settle();
    let ahead = |root: &Path| Remembered::read(&yard.cache(), root);
    let root = yard.root().canonicalize().expect("the tree");
    let scan = yard.tree().with_remembered(ahead(&root).expect("the cache")).look().expect("a readable tree");
    assert_eq!((scan.hash, scan.cost.read), (last.hash, 0));
    // Of a tree that is looked at in another way, it is of no use.
    let options = TreeOptions { exclude: vec![root.join("secret")], ..yard.options() };
    let other = Tree::open(&root, options).expect("the tree is there");
    let scan = other.with_remembered(ahead(&root).expect("the cache")).look().expect("a readable tree");
    assert_eq!(paths(&scan), ["a"]);
    assert_eq!(scan.cost.read, 1);
    assert!(ahead(&root.join("none")).is_none());
}

#[test]
fn who_adds_to_the_cache_at_the_same_time_misleads_nobody() {
    let yard = Yard::new();
    for name in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        yard.write(name, "x");
    }
    yard.settle();
    let (one, other) = (yard.tree(), yard.tree());
    fs::write(yard.root().join("a"), "one").expect("a file");
    let first = one.look().expect("a readable tree");
    fs::write(yard.root().join("b"), "two").expect("a file");
    let second = other.look().expect("a readable tree");
    fs::write(yard.root().join("c"), "three").expect("a file");
    // Each knows nothing of what the other added.
    one.remember(&first).expect("the cache");
    other.remember(&second).expect("the cache");
    let third = yard.tree().look().expect("a readable tree");
    yard.tree().remember(&third).expect("the cache");
    // An earlier one, in the file that was written since.
    one.remember(&first).expect("the cache");
    let hash = yard.scan_afresh().hash;
    assert_eq!(third.hash, hash);
    assert_eq!(yard.scan().hash, hash);
    assert_eq!(yard.settle().hash, hash);
}

#[test]
fn rules_that_change_are_obeyed_everywhere_below() {
    let yard = Yard::with_git();
    for path in ["a.log", "x/b.log", "x/y/c.log", "x/y/d.txt"] {
        yard.write(path, path);
    }
    assert_eq!(yard.settle().cost.files, 4);
    yard.write("x/.gitignore", "*.log\n");
    assert_eq!(paths(&yard.scan()), ["a.log", "x/.gitignore", "x/y/d.txt"]);
    yard.settle();
    yard.write("x/.gitignore", "*.txt\n");
    assert_eq!(paths(&yard.scan()), ["a.log", "x/.gitignore", "x/b.log", "x/y/c.log"]);
    yard.settle();
    fs::remove_file(yard.root().join("x/.gitignore")).expect("the rules");
    assert_eq!(yard.scan().cost.files, 4);
    yard.settle();
    yard.write(".git/info/exclude", "x/\n");
    let scan = yard.scan();
    assert_eq!(paths(&scan), ["a.log"]);
    assert_eq!(shown(&scan.unhashed), ["x"]);
}

#[test]
fn what_git_tracks_is_never_ignored() {
    let yard = Yard::with_git();
    yard.write(".gitignore", "build/\n*.o\n");
    yard.write("build/keep", "k");
    yard.write("build/sub/drop", "d");
    yard.write("a.o", "a");
    let scan = yard.settle();
    assert_eq!(paths(&scan), [".gitignore"]);
    assert_eq!(shown(&scan.unhashed), ["a.o", "build"]);
    // No folder changes; only the index does.
    yard.git(&["add", "-f", "build/keep", "a.o"]);
    let scan = yard.scan();
    assert_eq!(paths(&scan), [".gitignore", "a.o", "build/keep"]);
    assert_eq!(shown(&scan.unhashed), ["build/sub"]);
    yard.settle();
    yard.git(&["rm", "--quiet", "--cached", "build/keep"]);
    assert_eq!(paths(&yard.scan()), [".gitignore", "a.o"]);
}

#[test]
fn changes_since_a_scan_are_told_apart() {
    let yard = Yard::with_git();
    yard.write(".gitignore", "out/\n");
    for path in ["same", "modified", "removed", "rewritten", "chmod"] {
        yard.write(path, path);
    }
    let tree = yard.tree();
    let before = tree.scan().expect("a readable tree");
    let again = || tree.scan_again(&before).expect("a readable tree");
    assert!(before.changes_to(&again()).is_empty());
    yard.write("modified", "MODIFIED");
    yard.write("added", "a");
    yard.write("out/ignored", "i");
    fs::remove_file(yard.root().join("removed")).expect("the file");
    set_old(&yard.root().join("rewritten"));
    yard.set_mode("chmod", 0o600);
    let changes = before.changes_to(&again());
    assert_eq!(shown(&changes.added), ["added"]);
    assert_eq!(shown(&changes.removed), ["removed"]);
    assert_eq!(shown(&changes.modified), ["modified"]);
    assert_eq!(shown(&changes.rewritten), ["rewritten"]);
}

#[test]
fn special_unreadable_and_excluded_files() {
    let yard = Yard::new();
    yard.write("a", "a");
    yard.write("state/registry", "r");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        yard.root().join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .expect("a pipe");
    let state = fs::canonicalize(yard.root()).expect("the root").join("state");
    let options = TreeOptions { exclude: vec![state], ..yard.options() };
    let scan = Tree::open(&yard.root(), options).expect("the tree").scan().expect("a readable tree");
    assert_eq!(paths(&scan), ["a"]);
    assert_eq!(shown(&scan.unhashed), ["pipe"]);
    assert_eq!(paths(&yard.scan()), ["a", "state/registry"], "other options do not share what they remember");
}

#[test]
fn a_root_that_is_no_folder_is_named() {
    let yard = Yard::new();
    let file = yard.write("a", "a");
    for path in [file, yard.root().join("absent")] {
        let error = Tree::open(&path, TreeOptions::default()).expect_err("no folder");
        assert!(error.to_string().contains(path.to_str().expect("text")));
        assert!(!error.problem().hints.is_empty());
    }
}

#[test]
fn what_this_user_may_not_read_is_said() {
    let yard = Yard::new();
    yard.write("a", "a");
    yard.write("secret", "s");
    yard.write("closed/b", "b");
    yard.set_mode("secret", 0);
    yard.set_mode("closed", 0);
    let scan = yard.scan();
    if rustix::process::geteuid().is_root() {
        // Root may read everything.
        assert_eq!(paths(&scan), ["a", "closed/b", "secret"]);
    } else {
        assert_eq!(paths(&scan), ["a"]);
        assert_eq!(shown(&scan.unhashed), ["closed", "secret"]);
    }
    yard.set_mode("secret", 0o600);
    yard.set_mode("closed", 0o700);
    let scan = yard.scan();
    assert_eq!((paths(&scan).len(), scan.unhashed.len()), (3, 0));
    assert_eq!(scan.hash, yard.scan_afresh().hash);
}
