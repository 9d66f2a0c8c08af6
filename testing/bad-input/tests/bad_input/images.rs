//! Archives that are none, end early, or try to write elsewhere.

use std::path::Path;

use testkit::TestHome;

use crate::{USAGE, make, refused};

/// One entry of an archive that a careful program would not write.
fn entry(builder: &mut tar::Builder<Vec<u8>>, name: &str, kind: tar::EntryType, link: &str, content: &[u8]) {
    let mut header = tar::Header::new_ustar();
    // Not through `set_path`, which refuses what is tested here.
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    builder.append(&header, content).expect("memory");
}

fn archive(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind, link) in entries {
        let content: &[u8] = if *kind == tar::EntryType::Regular { b"abc" } else { b"" };
        entry(&mut builder, name, *kind, link, content);
    }
    builder.into_inner().expect("memory")
}

/// The store's own folders; what is in them is looked at, but for locks.
const OWN: [&str; 6] = ["temporary", "builds", "references", "layers", "downloads", "locks"];

/// Everything below the store's folder that is not one of its own.
fn stored(home: &TestHome) -> Vec<String> {
    let images = home.state().join("images");
    let mut found = Vec::new();
    for folder in OWN.into_iter().filter(|folder| *folder != "locks").chain(["."]) {
        for entry in std::fs::read_dir(images.join(folder)).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !OWN.contains(&name.as_str()) {
                found.push(format!("{folder}/{name}"));
            }
        }
    }
    found
}

#[track_caller]
fn is_refused(home: &TestHome, name: &str, content: &[u8], words: &[&str]) {
    let path = home.work().join(name);
    std::fs::write(&path, content).expect("the home is ours");
    let words = [&[name][..], words].concat();
    refused(home, &["image", "import", "x:1", path.to_str().expect("text")], USAGE, &words);
    assert_eq!(stored(home), [""; 0], "{name}");
}

#[test]
fn what_is_no_archive_is_refused_by_its_name() {
    let home = TestHome::new();
    let hint = "hint: make it of a root file system: tar -C ROOTFS";
    is_refused(&home, "junk.tar", &[0x5a; 100_000], &["not a tar archive", hint]);
    is_refused(&home, "nothing.tar", b"", &["not a tar archive", hint]);
    let good = archive(&[("etc", tar::EntryType::Directory, ""), ("etc/passwd", tar::EntryType::Regular, "")]);
    is_refused(&home, "cut.tar", &good[..1030], &["truncated", "hint: fetch or write the archive again"]);
    let devices = archive(&[("sda", tar::EntryType::Block, "")]);
    is_refused(&home, "devices.tar", &devices, &["`sda`", "a device node outside of `dev`"]);
    let missing = home.work().join("missing.tar").display().to_string();
    refused(&home, &["image", "import", "x:1", &missing], USAGE, &["cannot open the archive", &missing, "hint: "]);
    let folder = home.work().display().to_string();
    refused(&home, &["image", "import", "x:1", &folder], USAGE, &["is a directory", &folder, "hint: make an archive"]);
    home.finish();
}

#[test]
fn an_archive_cannot_write_outside_of_its_image() {
    let home = TestHome::new();
    let (file, symlink, hard) = (tar::EntryType::Regular, tar::EntryType::Symlink, tar::EntryType::Link);
    let outside = home.work().join("outside");
    std::fs::create_dir(&outside).expect("the home is ours");
    let target = outside.join("escaped").display().to_string();
    let through = outside.display().to_string();
    is_refused(&home, "dots.tar", &archive(&[("../../escaped", file, "")]), &["`../../escaped`", "contains `..`"]);
    is_refused(&home, "absolute.tar", &archive(&[(&target, file, "")]), &["escaped", "its path is absolute"]);
    is_refused(
        &home,
        "link.tar",
        &archive(&[("l", symlink, &through), ("l/escaped", file, "")]),
        &["`l/escaped`", "leads out of the image"],
    );
    is_refused(&home, "hard.tar", &archive(&[("h", hard, "/etc/shadow")]), &["`h`", "hard link to `/etc/shadow`"]);
    is_refused(&home, "up.tar", &archive(&[("h", hard, "../../../etc/shadow")]), &["hard link"]);
    assert!(std::fs::read_dir(&outside).expect("ours").next().is_none());
    home.finish();
}

#[test]
fn an_unreadable_archive_is_told() {
    if testkit::user::is_root() {
        testkit::skip!("an_unreadable_archive_is_told", host: "root reads every file");
    }
    let home = TestHome::new();
    if Path::new("/etc/shadow").exists() {
        let words = ["/etc/shadow", "Permission denied", "hint: "];
        refused(&home, &["image", "import", "x:1", "/etc/shadow"], crate::INFRASTRUCTURE, &words);
    }
    home.finish();
}

#[test]
fn an_image_in_use_stays_and_one_that_is_not_there_is_told() {
    let home = TestHome::new();
    refused(&home, &["image", "delete", "no:1"], USAGE, &["there is no image no:1", "hint: "]);
    refused(&home, &["image", "build", "no:1"], USAGE, &["no:1 cannot be built", "hint: "]);
    refused(&home, &["image", "build", "debian:99"], USAGE, &["debian:99", "known are"]);
    testkit::require!(testkit::Ability::Root);
    let path = home.work().join("good.tar");
    let entries = [("etc", tar::EntryType::Directory, ""), ("etc/passwd", tar::EntryType::Regular, "")];
    std::fs::write(&path, archive(&entries)).expect("the home is ours");
    home.must_run(&["image", "import", "x:1", path.to_str().expect("text")]);
    home.must_run(&["create", "m", "--image", "x:1"]);
    refused(&home, &["image", "delete", "x:1"], USAGE, &["x:1 is in use", "hint: "]);
    home.must_run(&["delete", "m"]);
    home.must_run(&["image", "delete", "x:1"]);
    make(&home, "n");
    home.finish();
}
