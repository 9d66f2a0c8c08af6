//! Importing archives: what is kept, what is refused, and that a refusal leaves nothing.

mod support;

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use support::{Archive, Home, options, root};
use testyard_images::{ImportError, ImportOptions, Ownership, Refusal};
use testyard_model::ByteSize;

fn tar(folder: &Path, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("tar").current_dir(folder).args(arguments).output().expect("GNU tar runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn a_root_is_imported_named_found_and_deleted() {
    let home = Home::new();
    let options = ImportOptions { name: Some(("mine".into(), "1".into())), ..options() };
    let archive = root().file("etc/hostname", "box\n").hard_link("etc/other", "etc/hostname").end();
    let image = home.store.import(&*archive, Some("root.tar".into()), &options).expect("import");
    assert_eq!(image.references, ["mine:1"]);
    assert!(!image.record.minimal);
    assert_eq!(std::fs::read_to_string(image.root.join("etc/hostname")).expect("read"), "box\n");
    assert_eq!(std::fs::metadata(image.root.join("etc/other")).expect("stat").nlink(), 2);
    assert_eq!(std::fs::read_link(image.root.join("bin")).expect("link").to_str(), Some("usr/bin"));
    assert_eq!(std::fs::metadata(image.root.join("usr/bin/sh")).expect("stat").mtime(), 0o14371573600);

    let found = home.store.find(&"mine:1".parse().expect("reference")).expect("find");
    assert_eq!(found, image);
    let short = format!("sha256:{}", &image.record.digest.as_str()[..12]);
    assert_eq!(home.store.find(&short.parse().expect("reference")).expect("find"), image);

    let again = home.store.import(&*archive, None, &options).expect("the same once more");
    assert_eq!(again.record.digest, image.record.digest);
    assert_eq!(home.store.list().expect("list").len(), 1);

    let used = BTreeSet::from([image.record.digest.clone()]);
    let reference = "mine:1".parse().expect("reference");
    assert!(home.store.delete(&reference, &used).is_err(), "in use");
    let hold = home.store.hold(&image.record.digest).expect("hold");
    assert!(home.store.delete(&reference, &BTreeSet::new()).is_err(), "held");
    drop(hold);
    assert!(home.store.delete(&reference, &BTreeSet::new()).expect("delete"));
    home.is_empty();
}

#[test]
fn the_digest_is_of_the_tree_and_not_of_the_archive() {
    let home = Home::new();
    let one = home.import(&root().file("a", "1").file("b", "2").end()).expect("import").record.digest;
    let other = home.import(&root().file("b", "2").file("a", "1").end()).expect("import").record.digest;
    assert_eq!(one, other, "the order does not count");
    let compressed = |program: &str| {
        let mut child = Command::new(program)
            .arg("-c")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect(program);
        child.stdin.take().expect("piped").write_all(&root().file("a", "1").file("b", "2").end()).expect("write");
        child.wait_with_output().expect("wait").stdout
    };
    assert_eq!(home.import(&compressed("gzip")).expect("import").record.digest, one);
    let zstd = zstd::encode_all(&*root().file("a", "1").file("b", "2").end(), 1).expect("zstd");
    assert_eq!(home.import(&zstd).expect("import").record.digest, one);
    let changed = home.import(&root().file("a", "1").file("b", "3").end()).expect("import").record.digest;
    assert_ne!(one, changed);
}

#[test]
fn hostile_paths_are_refused_by_name() {
    let home = Home::new();
    home.refuses(&root().file("/etc/passwd", "x").end(), "`/etc/passwd` is refused: its path is absolute");
    home.refuses(&root().file("usr/../../etc/x", "x").end(), "`usr/../../etc/x` is refused: its path contains `..`");
    home.refuses(
        &root().link("out", "/etc").file("out/x", "x").end(),
        "`out/x` is refused: its path goes through a link",
    );
    home.refuses(&root().link("out", "../..").file("out/x", "x").end(), "leads out of the image");
    home.refuses(&root().link("a", "b").link("b", "../up").file("a/x", "x").end(), "leads out of the image");
    home.refuses(&root().link("a", "a").file("a/x", "x").end(), "too many links");
    home.refuses(&root().file("usr/bin/sh/x", "x").end(), "goes through a file");
    home.refuses(&root().hard_link("x", "../../etc/shadow").end(), "not inside the image");
    home.refuses(&root().hard_link("x", "/etc/shadow").end(), "not inside the image");
    home.refuses(&root().link("l", "/etc").hard_link("x", "l/shadow").end(), "not inside the image");
    home.refuses(&root().hard_link("x", "nothing").end(), "not a file before it");
    home.refuses(&root().hard_link("x", "usr").end(), "not a file before it");
    home.refuses(&root().file("usr", "x").end(), "would replace a directory");
    home.refuses(&root().file(".", "x").end(), "would replace a directory");
    home.refuses(&root().pax(&[("path", b"a\0b")]).file("x", "").end(), "invalid path");
    home.refuses(&root().pax(&[("path", &[b'n'; 300])]).file("x", "").end(), "300 bytes long");
    home.refuses(&root().pax(&[("path", &b"abc/".repeat(1100))]).file("x", "").end(), "at most 4095");
    home.refuses(&root().pax(&[("linkpath", &[b'n'; 5000])]).link("x", "y").end(), "target is 5000 bytes");
    home.refuses(&root().file("usr/.wh.bin", "").end(), "whiteout");
    home.refuses(&root().pax(&[("SCHILY.xattr.user.overlay.redirect", b"/etc/shadow")]).file("x", "").end(), "overlay");
    let mut whiteout = root();
    whiteout.header(b'3', b"usr/gone", b"", 0, 0);
    home.refuses(&whiteout.end(), "whiteout");
}

#[test]
fn links_inside_the_tree_are_followed() {
    let home = Home::new();
    let image =
        home.import(&root().file("bin/true", "x").link("up", "usr/bin/..").file("up/f", "y").end()).expect("import");
    assert!(image.root.join("usr/bin/true").is_file());
    assert!(image.root.join("usr/f").is_file());
    assert!(std::fs::symlink_metadata(image.root.join("bin")).expect("stat").is_symlink());
}

#[test]
fn damaged_archives_are_refused_at_every_length() {
    let home = Home::new();
    let whole = root().file("etc/hostname", &"x".repeat(700)).0;
    for length in [0, 1, 100, 511, 512, 513, 1024, 3000, whole.len() - 512, whole.len() - 1, whole.len()] {
        let error = home.import(&whole[..length]).expect_err("truncated").to_string();
        assert!(error.contains("truncated") || error.contains("not a tar archive"), "{length}: {error}");
    }
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("in memory")
    };
    let archive = gzip(&root().end());
    home.refuses(&archive[..archive.len() - 9], "truncated");
    let mut damaged = archive.clone();
    let place = damaged.len() - 6;
    damaged[place] ^= 0xff;
    home.refuses(&damaged, "cannot read the archive");
    home.refuses(b"", "not a tar archive");
    home.refuses(&[7; 4096], "not a tar archive");
    home.refuses(b"\xfd7zXZ\0rest", "compressed with xz");
    home.refuses(&Archive::default().end(), "holds no files");
    let mut broken = root().0;
    let at = broken.len();
    broken.extend(root().end());
    broken[at + 3] ^= 1;
    home.refuses(&broken, "wrong checksum");
}

#[test]
fn bombs_are_refused() {
    let home = Home::new();
    let small = ImportOptions { limit: ByteSize::mebibytes(1), ..options() };
    let bomb = zstd::encode_all(&*root().file("zeros", &"\0".repeat(2 << 20)).end(), 1).expect("zstd");
    let error = home.store.import(&*bomb, None, &small).expect_err("too large");
    assert!(matches!(error, ImportError::TooLarge { .. }), "{error}");
    home.is_empty();
    let few = ImportOptions { entry_limit: 3, ..options() };
    assert!(matches!(home.store.import(&*root().end(), None, &few), Err(ImportError::TooMany { limit: 3 })));
    let almost = ImportOptions { reserve: ByteSize(1 << 60), ..options() };
    assert!(matches!(home.store.import(&*root().end(), None, &almost), Err(ImportError::NoSpace { .. })));
    let full = ImportOptions { reserve: ByteSize(u64::MAX), ..options() };
    assert!(matches!(home.store.import(&*root().end(), None, &full), Err(ImportError::NoSpace { .. })));
    home.is_empty();
    // A name of gigabytes, claimed in one block.
    let mut long = root();
    long.header(b'L', b"././@LongLink", b"", 7 << 30, 0);
    home.refuses(&long.end(), "at most 1048576 are read");
    // Eight exabytes of hole.
    let holes = root().pax(&[
        ("GNU.sparse.major", b"0"),
        ("GNU.sparse.minor", b"1"),
        ("GNU.sparse.size", b"9223372036854775807"),
        ("GNU.sparse.map", b"0,1"),
    ]);
    home.refuses(&holes.file("hole", "x").end(), "unpacks to more than");
}

#[test]
fn later_entries_win_and_devices_are_noted() {
    let home = Home::new();
    let mut archive = root()
        .file("etc/a", "one")
        .link("etc/b", "/etc/shadow")
        .directory("etc/", 0o700)
        .file("etc/a", "two")
        .file("etc/b", "in");
    archive.header(b'4', b"dev/sda", b"", 0, 0o600);
    let image = home.import(&archive.end()).expect("import");
    assert_eq!(std::fs::read_to_string(image.root.join("etc/a")).expect("read"), "two");
    assert!(std::fs::symlink_metadata(image.root.join("etc/b")).expect("stat").is_file());
    assert_eq!(std::fs::metadata(image.root.join("etc")).expect("stat").permissions().mode() & 0o7777, 0o700);
    assert!(!image.root.join("dev/sda").exists());
    assert_eq!(
        image.record.warnings,
        ["device nodes were left out: `dev/sda`", "entries that a later one replaced: `etc/a` and 1 more"]
    );
}

#[test]
fn an_archive_without_a_root_is_minimal() {
    let home = Home::new();
    let image = home.import(&Archive::default().file("hello", "x").end()).expect("import");
    assert!(image.record.minimal);
    assert!(image.record.warnings[0].contains("/bin/sh"));
}

#[test]
fn what_gnu_tar_writes_comes_back() {
    let home = Home::new();
    let source = home.folder.path().join("source");
    let long = "n".repeat(200);
    std::fs::create_dir_all(source.join("usr").join(&long)).expect("make");
    std::fs::write(source.join("usr").join(&long).join("ünïcode \u{1f600}\n"), "deep").expect("write");
    std::os::unix::fs::symlink("t".repeat(180), source.join("usr/link")).expect("link");
    let sparse = std::fs::File::create(source.join("usr/sparse")).expect("create");
    sparse.set_len(3 << 20).expect("grow");
    for (offset, text) in [(0, "begin"), (1 << 20, "middle"), ((3 << 20) - 3, "end")] {
        std::os::unix::fs::FileExt::write_all_at(&sparse, text.as_bytes(), offset).expect("write");
    }
    std::fs::set_permissions(source.join("usr"), PermissionsExt::from_mode(0o2755)).expect("mode");
    let mut digests = BTreeSet::new();
    for arguments in [
        ["-cS", "--format=gnu", "--sort=name", "."],
        ["-cS", "--format=pax", "--sparse-version=0.0", "."],
        ["-cS", "--format=pax", "--sparse-version=0.1", "."],
        ["-cS", "--format=pax", "--sparse-version=1.0", "."],
        ["-c", "--format=pax", "--sort=none", "."],
        ["-c", "--format=gnu", "--sort=name", "."],
    ] {
        let archive = tar(&source, &arguments);
        let image = home.import(&archive).unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
        digests.insert(image.record.digest.clone());
        let file = std::fs::read(image.root.join("usr/sparse")).expect("read");
        assert_eq!((file.len(), &file[1 << 20..(1 << 20) + 6]), (3 << 20, b"middle".as_slice()));
    }
    assert_eq!(digests.len(), 1, "every format gives one image");
    let image = &home.store.list().expect("list")[0];
    assert!(home.store.disk_usage(&image.record.digest).expect("usage") < 2 << 20, "the file stayed sparse");
    assert!(image.root.join("usr").join(&long).join("ünïcode \u{1f600}\n").is_file());
    assert_eq!(std::fs::metadata(image.root.join("usr")).expect("stat").permissions().mode() & 0o7777, 0o2755);
}

#[test]
fn ids_modes_and_capabilities_are_kept_by_root() {
    let home = Home::new();
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut archive = root().pax(&[
        ("uid", b"1234"),
        ("gid", b"70000"),
        ("SCHILY.xattr.security.capability", &capability),
        ("SCHILY.xattr.user.note", b"hi"),
        ("SCHILY.xattr.security.selinux", b"x"),
    ]);
    archive.header(b'0', b"usr/bin/ping", b"", 0, 0o4755);
    let image = home.import(&archive.end()).expect("import");
    let facts = std::fs::metadata(image.root.join("usr/bin/ping")).expect("stat");
    assert_eq!(facts.permissions().mode() & 0o7777, 0o4755);
    assert!(image.record.warnings.iter().any(|warning| warning.starts_with("extended attributes were left out")));
    let mut value = [0; 64];
    let read = rustix::fs::getxattr(image.root.join("usr/bin/ping"), "user.note", &mut value).expect("xattr");
    assert_eq!(&value[..read], b"hi");
    if testkit::user::is_host_root() {
        assert_eq!(image.record.ownership, Ownership::Kept);
        assert_eq!((facts.uid(), facts.gid()), (1234, 70_000));
        let read = rustix::fs::getxattr(image.root.join("usr/bin/ping"), "security.capability", &mut value);
        assert_eq!(&value[..read.expect("capability")], capability);
        assert!(image.record.warnings.iter().any(|warning| warning.starts_with("ids above 65535")));
    } else {
        assert_eq!(image.record.ownership, Ownership::SingleOwner);
    }
    let store = std::fs::metadata(home.store.path()).expect("stat");
    assert_eq!(store.permissions().mode() & 0o777, 0o700, "a setuid file must be out of reach");
}

#[test]
fn the_dead_leave_only_what_prune_can_prove() {
    let home = Home::new();
    let temporary = home.store.path().join("temporary");
    std::fs::create_dir_all(temporary.join("dead/root/closed")).expect("make");
    std::fs::write(temporary.join("dead.lock"), "").expect("write");
    std::fs::create_dir(temporary.join("foreign")).expect("make");
    std::fs::write(temporary.join("lonely.lock"), "").expect("write");
    let unnamed = home.import(&root().end()).expect("import");
    let used = BTreeSet::from([unnamed.record.digest.clone()]);
    let pruned = home.store.prune(&used).expect("prune");
    assert_eq!((pruned.temporary, pruned.images.len()), (1, 0));
    assert_eq!(pruned.unknown, [temporary.join("foreign")]);
    assert!(!temporary.join("dead").exists() && !temporary.join("lonely.lock").exists());
    let pruned = home.store.prune(&BTreeSet::new()).expect("prune");
    assert_eq!(pruned.images, [unnamed.record.digest]);
    assert!(pruned.bytes > 0);
    for folder in ["references", "builds", "locks"] {
        assert_eq!(std::fs::read_dir(home.store.path().join(folder)).expect("list").count(), 0, "{folder}");
    }
}

#[test]
fn a_damaged_record_is_pruned_and_not_listed() {
    let home = Home::new();
    let image = home.import(&root().end()).expect("import");
    std::fs::write(home.store.path().join(image.record.digest.as_str()).join("image.json"), "{").expect("write");
    assert!(home.store.list().expect("list").is_empty());
    assert_eq!(home.store.prune(&BTreeSet::new()).expect("prune").images.len(), 1);
}

#[test]
fn errors_have_hints() {
    let home = Home::new();
    let missing = home.store.find(&"nothing:1".parse().expect("reference")).expect_err("missing");
    assert_eq!(missing.problem().message, "there is no image nothing:1");
    assert!(!missing.problem().hints.is_empty());
    let xz = home.import(b"\xfd7zXZ\0").expect_err("xz");
    assert!(xz.problem().hints[0].contains("xz -d"));
    let refused = home.import(&root().file("../x", "").end()).expect_err("refused");
    assert!(matches!(refused, ImportError::Refused { reason: Refusal::Parent, .. }));
}

#[test]
fn every_import_test_passes_for_an_ordinary_user() {
    if rustix::process::geteuid().is_root() {
        support::as_ordinary_user(&["--skip", "every_import_test"], None);
    }
}
