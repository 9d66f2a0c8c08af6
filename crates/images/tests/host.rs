//! The host's view as machines would mount it, as root and as an ordinary user.

mod support;

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use testyard_images::{HostOptions, HostView, MaskEffect, MaskEntry, TreeCache, TreeOptions, write_mask_layer};

/// A folder of the test's own, on tmpfs. Overlays leave closed folders in it, which `tempfile` cannot remove.
struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Self {
        Self(tempfile::tempdir_in("/dev/shm").expect("a temporary folder"))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let parent = fs::File::open("/dev/shm").expect("open");
        let name = self.path().file_name().expect("a name");
        let removed = testyard_linux::files::remove_tree(parent.as_fd(), name).expect("remove");
        assert!(removed.is_complete() || std::thread::panicking(), "{removed:?}");
    }
}

/// Runs a script in a mount namespace of its own, in which it may mount.
fn in_namespace(script: &str, arguments: &[&Path]) -> Result<String, String> {
    let flags = if rustix::process::geteuid().is_root() { "-m" } else { "-Urm" };
    let output = Command::new("unshare")
        .args([flags, "--", "sh", "-euc", script, "sh"])
        .args(arguments)
        .env("LC_ALL", "C")
        .output()
        .expect("unshare runs");
    let told = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(told(&output.stdout))
    } else {
        Err(format!("{}{}", told(&output.stdout), told(&output.stderr)))
    }
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("a parent")).expect("make");
    fs::write(path, text).expect("write");
}

fn mask(path: &Path, effect: MaskEffect) -> MaskEntry {
    MaskEntry { path: path.to_owned(), effect }
}

#[test]
fn a_mask_layer_hides_empties_and_replaces() {
    let folder = Scratch::new();
    let host = folder.path().join("host");
    for name in ["root/secret", "etc/passwd", "etc/shadow", "etc/ssh/ssh_host_key", "home/ann/.ssh/id", "home/ann/data"]
    {
        write(&host.join(name), "real");
    }
    fs::set_permissions(host.join("etc"), PermissionsExt::from_mode(0o751)).expect("mode");
    let masks = [
        mask(&host.join("etc/shadow"), MaskEffect::Replaced { content: b"locked".to_vec(), mode: 0o640 }),
        mask(&host.join("etc/ssh/ssh_host_key"), MaskEffect::Hidden),
        mask(&host.join("home/ann/.ssh"), MaskEffect::Hidden),
        mask(&host.join("home/bob/work"), MaskEffect::MountPoint),
        mask(&host.join("root"), MaskEffect::Empty { mode: 0o700 }),
        mask(&host.join("root/way/tree"), MaskEffect::MountPoint),
    ];
    let layer = folder.path().join("mask");
    for name in ["mask", "upper", "work", "merged"] {
        fs::create_dir(folder.path().join(name)).expect("make");
    }
    let written = write_mask_layer(&masks, &host, &layer).expect("write the layer");
    assert_eq!((written.entries, written.whole), (masks.len(), false));
    let other = folder.path().join("other");
    fs::create_dir(&other).expect("make");
    let written = write_mask_layer(&masks, &host.join("root"), &other).expect("write another layer");
    assert_eq!((written.entries, written.whole), (1, true), "the root of a layer cannot be masked by a layer");
    let script = r#"
        cd "$1"
        mount -t overlay overlay -o lowerdir=mask:host,upperdir=upper,workdir=work,userxattr merged
        cd merged
        find . -mindepth 1 | sort
        cat etc/shadow etc/passwd home/ann/data
        stat -c ' %a' etc root
    "#;
    let seen = in_namespace(script, &[folder.path()]).expect("the overlay mounts");
    assert_eq!(
        seen,
        "./etc\n./etc/passwd\n./etc/shadow\n./etc/ssh\n./home\n./home/ann\n./home/ann/data\n./home/bob\n\
         ./home/bob/work\n./root\n./root/way\n./root/way/tree\nlockedrealreal 751\n 700\n"
    );
}

#[test]
fn the_hosts_secrets_are_masked() {
    let view = HostView::load(&HostOptions::default()).expect("a view");
    assert_eq!(view.layers[0].path, Path::new("/"));
    assert_eq!(view.identity.len(), 64);
    assert_eq!(HostView::load(&HostOptions::default()).expect("again").identity, view.identity);
    let effect = |path: &str| view.masks().find(|mask| mask.path == Path::new(path)).map(|mask| &mask.effect);
    assert!(matches!(effect("/tmp"), Some(MaskEffect::Empty { mode: 0o1777 })));
    assert!(matches!(effect("/run"), Some(MaskEffect::Empty { .. })));
    assert!(matches!(effect("/root"), Some(MaskEffect::Empty { .. })));
    assert!(matches!(effect("/etc/shadow"), Some(MaskEffect::Replaced { .. })));
    assert!(effect("/usr").is_none() && effect("/etc/sudoers").is_none());
    let relative = HostOptions { expose: vec!["data".into()], ..HostOptions::default() };
    assert!(HostView::load(&relative).expect_err("relative").to_string().contains("not an absolute path"));
    let kernel = HostOptions { expose: vec!["/proc/1".into()], ..HostOptions::default() };
    assert!(HostView::load(&kernel).expect_err("kernel").to_string().contains("cannot be exposed"));
}

#[test]
fn root_mounts_the_masked_host() {
    testkit::require!(testkit::Ability::Root);
    let folder = Scratch::new();
    let tree = PathBuf::from("/root/somewhere/tree");
    let options = HostOptions { mount_points: vec![tree], ..HostOptions::default() };
    let view = HostView::load(&options).expect("a view");
    for name in ["mask", "upper", "work", "merged"] {
        fs::create_dir(folder.path().join(name)).expect("make");
    }
    write_mask_layer(&view.layers[0].masks, Path::new("/"), &folder.path().join("mask")).expect("write the layer");
    let script = r#"
        cd "$1"
        mount -t overlay overlay -o lowerdir=mask:/,upperdir=upper,workdir=work,userxattr merged
        cd merged
        find root tmp run
        head -1 etc/shadow
        test -x usr/bin/env
    "#;
    let seen = in_namespace(script, &[folder.path()]).expect("the overlay mounts");
    assert_eq!(seen, "root\nroot/somewhere\nroot/somewhere/tree\ntmp\nrun\nroot:*:19000:0:99999:7:::\n");
}

#[test]
fn an_ordinary_user_can_change_the_hosts_root() {
    if rustix::process::geteuid().is_root() {
        support::as_ordinary_user(&["--exact", "an_ordinary_user_can_change_the_hosts_root"], Some(1));
        return;
    }
    let folder = Scratch::new();
    let cache = TreeCache::new(vec![folder.path().join("trees")]);
    // What is not the system's own, such as other people's builds, would only make the test slow.
    let system = ["usr", "etc", "var", "root", "tmp", "run", "home", "opt"];
    let others = fs::read_dir("/").expect("list").map(|entry| entry.expect("entry").path());
    let own =
        others.filter(|path| path.is_dir() && !path.is_symlink() && !system.iter().any(|name| path.ends_with(name)));
    let view = HostView::load(&HostOptions { own: own.collect(), ..HostOptions::default() }).expect("a view");
    let tree = cache.find_or_build(&view, &TreeOptions::default()).expect("a tree");
    assert!(tree.built && tree.report.redirected > 1000, "{:?}", tree.report);
    let again = cache.find_or_build(&view, &TreeOptions::default()).expect("the same tree");
    assert!(!again.built && again.path == tree.path);
    assert_eq!(cache.prune().expect("prune").trees, 0, "leased");

    for name in ["upper", "work", "merged"] {
        fs::create_dir(folder.path().join(name)).expect("make");
    }
    let layers: String = tree.data_layers.iter().map(|layer| format!("::{}", layer.display())).collect();
    let options =
        PathBuf::from(format!("lowerdir={}{layers},upperdir=upper,workdir=work,userxattr", tree.path.display()));
    let script = r#"
        cd "$1"
        mount -t overlay overlay -o "$2" merged || { echo refused; exit 0; }
        cd merged
        (cd /usr && find . -xdev -type f -readable -size -200k 2>/dev/null | awk 'NR % 499 == 0') | while read -r file; do
            cmp "/usr/$file" "usr/$file"
        done
        (cd /etc && find . -xdev -type f -readable ! -path './ssh/*' ! -name '*shadow*' 2>/dev/null || true) | while read -r file; do
            cmp "/etc/$file" "etc/$file"
        done
        head -1 etc/shadow
        find root tmp run
        echo 'new:x:7:7::/:/bin/sh' >> etc/passwd
        tail -1 etc/passwd
        ln usr/bin/env usr/env2
        stat -c '%h %u' usr/env2
        mv etc/default etc/moved
        test -d etc/moved -a ! -e etc/default
        mkdir usr/made && mv usr/made usr/renamed && test -d usr/renamed
        rm -r usr/bin
        test ! -e usr/bin && usr/env2 echo gone
    "#;
    let seen = in_namespace(script, &[folder.path(), &options]).expect("the root can be changed");
    if seen == "refused\n" {
        // A kernel before data-only layers in user namespaces: the backend composes a root there.
        return;
    }
    assert_eq!(seen, "root:*:19000:0:99999:7:::\nroot\ntmp\nrun\nnew:x:7:7::/:/bin/sh\n2 0\ngone\n");
    drop((tree, again));
    assert_eq!(cache.prune().expect("prune").trees, 1);
    assert!(!folder.path().join("trees").exists(), "nothing is left of an empty cache");
}
