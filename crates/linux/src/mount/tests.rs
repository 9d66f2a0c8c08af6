//! Real mounts, in mount namespaces that end with their forked child.

use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use rustix::fs::{XattrFlags, setxattr};
use rustix::io::Errno;

use super::*;
use crate::namespace::{IdMap, enter, new_user_namespace, unshare};
use crate::process::{CloneFlags, Credentials, become_user};
use crate::trial::{become_ordinary, folders, fork, in_child, need_root, skip, stage, stage_here, succeeds};

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).expect("the file can be read")
}

fn write(path: impl AsRef<Path>, text: &str) {
    fs::write(path, text).expect("the file can be written");
}

/// Root of an own user and mount namespace that an ordinary user made.
fn become_root_of_own_namespace() {
    become_ordinary();
    let uid = [IdMap::single(0, rustix::process::getuid().as_raw())];
    let gid = [IdMap::single(0, rustix::process::getgid().as_raw())];
    let Ok(namespace) = new_user_namespace(&uid, &gid, true) else { skip("user namespaces for ordinary users") };
    enter(namespace.as_fd(), CloneFlags::NEWUSER).expect("its owner may join it");
    unshare(CloneFlags::NEWNS).expect("root of the namespace may");
    make_all_private().expect("the namespace is ours");
}

#[test]
fn a_tmpfs_is_nowhere_until_attached_and_full_at_its_size() {
    in_child(|| {
        need_root();
        let base = stage();
        let before = mount_table(None).expect("the table can be read").len();
        let options = TmpfsOptions { size: Some(1 << 20), inodes: Some(10), mode: 0o711 };
        let mount = tmpfs(&options).expect("a tmpfs can be made");
        assert_eq!(mount_table(None).expect("the table can be read").len(), before);
        let [at] = folders(&base, ["odd name\\"]);
        attach(mount.as_fd(), &*at).expect("it can be attached");
        let table = mount_table(None).expect("the table can be read");
        let entry = table.iter().find(|entry| entry.point == at).expect("it is in the table now");
        assert_eq!((entry.fs_type.as_str(), entry.source.to_str()), ("tmpfs", Some("testyard")));
        assert!(entry.has_option("nosuid") && entry.has_option("nodev") && entry.has_option("size=1024k"));
        assert_eq!(fs::metadata(&at).expect("it is there").mode() & 0o7777, 0o711);
        let full = fs::write(at.join("big"), vec![1; 2 << 20]).expect_err("it is too small");
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        detach(&at).expect("it is a mount point");
        assert_eq!(mount_table(None).expect("the table can be read").len(), before);
        assert_eq!(detach(&at).expect_err("it no longer is").errno(), Errno::INVAL);
    });
}

/// An overlay of two layers, by path and by descriptor, whose folder below the stage has names that need escaping.
#[test]
fn an_overlay_shows_its_layers_and_keeps_changes_in_the_upper_one() {
    in_child(|| {
        need_root();
        let base = stage();
        let [top, bottom, upper, work, at] = folders(&base, ["a,b:c\\d", "bottom", "upper", "work", "at"]);
        write(top.join("both"), "top");
        write(bottom.join("both"), "bottom");
        write(bottom.join("deep"), "deep");
        let descriptor = fs::File::open(&bottom).expect("it is there");
        let spec = OverlaySpec {
            lower: vec![Layer::Path(&top), Layer::Descriptor(descriptor.as_fd())],
            upper: Some((Layer::Path(&upper), Layer::Path(&work))),
            volatile: true,
            metacopy: true,
            ..OverlaySpec::default()
        };
        let mount = overlay(&spec).expect("an overlay can be made");
        attach(mount.as_fd(), &*at).expect("it can be attached");
        assert_eq!((read(at.join("both")), read(at.join("deep"))), ("top".into(), "deep".into()));
        write(at.join("both"), "changed");
        fs::remove_file(at.join("deep")).expect("it can be removed");
        assert_eq!(read(top.join("both")), "top");
        assert_eq!(read(upper.join("both")), "changed");
        let whiteout = fs::symlink_metadata(upper.join("deep")).expect("the removal is recorded");
        assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
        assert_eq!(read(bottom.join("deep")), "deep");
    });
}

#[test]
fn layers_and_uppers_may_be_detached_mounts() {
    in_child(|| {
        need_root();
        let base = stage();
        let [lower, at, hold] = folders(&base, ["lower", "at", "hold"]);
        write(lower.join("x"), "lower");
        let lower = clone_tree(&*lower, false).expect("a copy can be made");
        let upper = tmpfs(&TmpfsOptions::default()).expect("a tmpfs can be made");
        // Folders in it are needed, so it is attached, used, and let go of: the overlay keeps it.
        attach(upper.as_fd(), &*hold).expect("it can be attached");
        let [upper, work] = folders(&hold, ["upper", "work"]);
        let upper_folder = fs::File::open(&upper).expect("it is there");
        let work_folder = fs::File::open(&work).expect("it is there");
        let spec = OverlaySpec {
            lower: vec![Layer::from(&lower)],
            upper: Some((upper_folder.as_fd().into(), work_folder.as_fd().into())),
            ..OverlaySpec::default()
        };
        let mount = match overlay(&spec) {
            Err(error) if error.errno() == Errno::INVAL => skip("overlays over detached mounts (Linux 6.15)"),
            other => other.expect("an overlay can be made"),
        };
        detach(&hold).expect("it is a mount point");
        attach(mount.as_fd(), &*at).expect("it can be attached");
        write(at.join("y"), "new");
        assert_eq!(read(at.join("x")), "lower");
    });
}

#[test]
fn a_refused_overlay_says_why() {
    in_child(|| {
        need_root();
        let base = stage();
        let [upper, work] = folders(&base, ["both", "both/work"]);
        let absent = base.join("absent");
        let error = overlay(&OverlaySpec { lower: vec![Layer::Path(&absent)], ..OverlaySpec::default() });
        let error = error.expect_err("a layer is missing");
        assert_eq!((error.errno(), error.is_absent()), (Errno::NOENT, true));
        assert!(error.to_string().contains("/tmp/absent"), "{error}");
        let spec = OverlaySpec {
            lower: vec![Layer::Path(&base)],
            upper: Some((Layer::Path(&upper), Layer::Path(&work))),
            ..OverlaySpec::default()
        };
        let error = overlay(&spec).expect_err("the work folder is in the upper one");
        // The reason is in the kernel's own log only, so everything that it was about is named.
        assert_eq!(error.to_string(), "cannot mount overlay of /tmp under /tmp/both");
        let error = cgroup_v1(&["nonsense"]).expect_err("there is no such controller");
        assert!(error.to_string().contains("(the kernel says: "), "{error}");
        assert!(error.to_string().contains("'nonsense'"), "{error}");
    });
}

#[test]
fn an_ordinary_user_removes_what_is_in_a_lower_layer() {
    in_child(|| {
        become_root_of_own_namespace();
        let base = stage_here();
        let [lower, upper, work, at] = folders(&base, ["lower/folder", "upper", "work", "at"]);
        write(lower.join("file"), "x");
        let lower = base.join("lower");
        let spec = OverlaySpec {
            lower: vec![Layer::Path(&lower)],
            upper: Some((Layer::Path(&upper), Layer::Path(&work))),
            user_xattr: true,
            ..OverlaySpec::default()
        };
        let mount = overlay(&spec).expect("an overlay can be made in a user namespace");
        attach(mount.as_fd(), &*at).expect("it can be attached");
        #[expect(clippy::disallowed_methods, reason = "as a program inside would; nothing is mounted below")]
        fs::remove_dir_all(at.join("folder")).expect("it can be removed");
        fs::create_dir(at.join("folder")).expect("and made anew");
        assert_eq!(fs::read_dir(at.join("folder")).expect("it is there").count(), 0);
        assert!(lower.join("folder/file").exists());
    });
}

#[test]
fn metadata_of_one_layer_finds_its_data_in_another() {
    in_child(|| {
        become_root_of_own_namespace();
        let base = stage_here();
        let [meta, data, other, upper, work, at] = folders(&base, ["meta", "data/sub", "other", "upper", "work", "at"]);
        let data = data.parent().expect("it has one").to_owned();
        write(data.join("sub/real"), "the data");
        let file = meta.join("shown");
        let sparse = fs::File::create(&file).expect("a file can be made");
        sparse.set_len(8).expect("it can be sparse");
        for (name, value) in [("user.overlay.metacopy", &b""[..]), ("user.overlay.redirect", b"/sub/real")] {
            setxattr(&file, name, value, XattrFlags::empty()).expect("tmpfs has user attributes");
        }
        let spec = OverlaySpec {
            lower: vec![Layer::Path(&meta)],
            data_only: vec![Layer::Path(&other), Layer::Path(&data)],
            upper: Some((Layer::Path(&upper), Layer::Path(&work))),
            user_xattr: true,
            ..OverlaySpec::default()
        };
        let mount = match overlay(&spec) {
            Err(error) if error.errno() == Errno::INVAL => skip("data-only layers in a user namespace (Linux 6.16)"),
            other => other.expect("an overlay can be made"),
        };
        attach(mount.as_fd(), &*at).expect("it can be attached");
        assert_eq!(read(at.join("shown")), "the data");
        assert!(!at.join("sub").exists());
        fs::set_permissions(at.join("shown"), fs::Permissions::from_mode(0o600)).expect("it is ours");
        write(at.join("shown"), "changed");
        assert_eq!(read(data.join("sub/real")), "the data");
    });
}

#[test]
fn an_idmapped_copy_shows_other_owners() {
    in_child(|| {
        need_root();
        let base = stage();
        let [shown, at] = folders(&base, ["shown", "at"]);
        write(shown.join("root's"), "");
        write(shown.join("seven's"), "");
        chown(shown.join("seven's"), Some(7), Some(8)).expect("root may");
        let range = [IdMap { inside: 0, outside: 100_000, count: 65_536 }];
        let users = new_user_namespace(&range, &range, false).expect("root may");
        let copy = clone_tree(&*shown, false).expect("a copy can be made");
        let attributes = Attributes { idmap: Some(users.as_fd()), ..Attributes::default() };
        set_attributes(copy.as_fd(), &attributes, false).expect("tmpfs can be idmapped");
        attach(copy.as_fd(), &*at).expect("it can be attached");
        let owner = |name: &str| {
            let data = fs::metadata(at.join(name)).expect("it is there");
            (data.uid(), data.gid())
        };
        assert_eq!((owner("root's"), owner("seven's")), ((100_000, 100_000), (100_007, 100_008)));
        // In the namespace of the map, root can be root of these files.
        enter(users.as_fd(), CloneFlags::NEWUSER).expect("root may join it");
        become_user(&Credentials::default(), true).expect("root of the namespace exists");
        assert_eq!(owner("seven's"), (7, 8));
        write(at.join("seven's"), "changed");
    });
}

/// A namespace machine in small: the host's root, idmapped, below an overlay whose upper belongs to the machine's root.
#[test]
fn the_hosts_own_root_can_be_changed_in_a_user_namespace() {
    in_child(|| {
        need_root();
        let base = stage();
        let [upper, work, lower, at] = folders(&base, ["machine/upper", "machine/work", "machine/lower", "machine/at"]);
        for owned in [&upper, &work] {
            chown(owned, Some(100_000), Some(100_000)).expect("root may");
        }
        let range = [IdMap { inside: 0, outside: 100_000, count: 65_536 }];
        let users = new_user_namespace(&range, &range, false).expect("root may");
        let layer = clone_tree(Path::new("/"), false).expect("a copy can be made");
        let attributes = Attributes { idmap: Some(users.as_fd()), read_only: true, ..Attributes::default() };
        match set_attributes(layer.as_fd(), &attributes, false) {
            Err(error) if error.errno() == Errno::INVAL => skip("a root file system that can be idmapped"),
            other => other.expect("the root can be idmapped"),
        }
        attach(layer.as_fd(), &*lower).expect("it can be attached");
        let spec = OverlaySpec {
            lower: vec![Layer::Path(&lower)],
            upper: Some((Layer::Path(&upper), Layer::Path(&work))),
            ..OverlaySpec::default()
        };
        attach(overlay(&spec).expect("an overlay can be made").as_fd(), &*at).expect("it can be attached");
        enter(users.as_fd(), CloneFlags::NEWUSER).expect("root may join it");
        become_user(&Credentials::default(), true).expect("root of the namespace exists");
        let child = fork(CloneFlags::NEWNS | CloneFlags::NEWPID, || {
            attach(proc().expect("a fresh proc").as_fd(), &*at.join("proc")).expect("it can be attached");
            pivot_into(&at, RootMount::BindOntoItself).expect("the root can be exchanged");
            assert_eq!(fs::metadata("/etc/passwd").expect("it is there").uid(), 0);
            let before = read("/etc/passwd");
            write("/etc/passwd", &format!("{before}trial:x:4:4::/:/bin/sh\n"));
            chown("/etc/passwd", Some(42), Some(42)).expect("root may");
            fs::write("/proc/sys/kernel/core_pattern", "x").expect_err("this is the host's");
            fs::metadata("/tmp/machine").expect_err("the old root is gone");
            0
        });
        succeeds(&child);
        assert!(!read("/etc/passwd").contains("trial:x:4:4"));
    });
}

#[test]
fn a_new_root_of_an_ordinary_user_has_proc_terminals_and_queues() {
    in_child(|| {
        become_root_of_own_namespace();
        let base = stage_here();
        let flags = CloneFlags::NEWPID | CloneFlags::NEWIPC | CloneFlags::NEWNET | CloneFlags::NEWCGROUP;
        let child = fork(flags, || {
            let [proc_at, sys, pts, queues] = folders(&base, ["root/proc", "root/sys", "root/pts", "root/mqueue"]);
            attach(proc().expect("a fresh proc").as_fd(), &*proc_at).expect("it can be attached");
            attach(sysfs(true).expect("a sysfs").as_fd(), &*sys).expect("it can be attached");
            attach(devpts().expect("terminals").as_fd(), &*pts).expect("it can be attached");
            attach(message_queues().expect("queues").as_fd(), &*queues).expect("it can be attached");
            pivot_into(&base.join("root"), RootMount::BindOntoItself).expect("the root can be exchanged");
            assert_eq!(fs::read_link("/proc/self").expect("it is a link"), Path::new("1"));
            assert!(fs::metadata("/pts/ptmx").expect("it is there").permissions().mode() & 0o666 == 0o666);
            let links: Vec<_> = fs::read_dir("/sys/class/net").expect("it is there").flatten().collect();
            assert_eq!(links.len(), 1, "only the loopback interface");
            let read_only = fs::create_dir("/sys/x").expect_err("it is read-only");
            assert_eq!(read_only.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
            // Nothing of the old root is left: the new one, itself below, and the four.
            let table = mount_table(None).expect("the table can be read");
            assert!(table.len() <= 6, "{table:#?}");
            0
        });
        succeeds(&child);
    });
}

#[test]
fn attributes_hold_for_the_whole_tree_or_one_mount() {
    in_child(|| {
        need_root();
        let base = stage();
        let [tree, below, at] = folders(&base, ["tree", "tree/below", "at"]);
        attach(tmpfs(&TmpfsOptions::default()).expect("a tmpfs").as_fd(), &*below).expect("it can be attached");
        let writable = |path: &Path| fs::write(path.join("x"), "").is_ok();
        for (recursive, inner) in [(false, true), (true, false)] {
            let copy = clone_tree(&*tree, true).expect("a copy can be made");
            let attributes = Attributes {
                read_only: true,
                no_suid: true,
                no_exec: true,
                propagation_private: true,
                ..Attributes::default()
            };
            set_attributes(copy.as_fd(), &attributes, recursive).expect("attributes can be changed");
            attach(copy.as_fd(), &*at).expect("it can be attached");
            assert_eq!((writable(&at), writable(&at.join("below"))), (false, inner));
            detach(&at).expect("it is a mount point");
        }
        assert!(writable(&tree) && writable(&below));
    });
}

#[test]
fn a_file_is_attached_onto_a_file_and_a_link_is_not_followed() {
    in_child(|| {
        need_root();
        let base = stage();
        let [folder] = folders(&base, ["folder"]);
        write(base.join("source"), "source");
        write(folder.join("target"), "target");
        let file = clone_tree(&*base.join("source"), false).expect("a copy can be made");
        let at = fs::File::open(&folder).expect("it is there");
        attach(file.as_fd(), Target::Below(at.as_fd(), Path::new("target"))).expect("it can be attached");
        let mut text = String::new();
        fs::File::open(folder.join("target")).expect("it is there").read_to_string(&mut text).expect("it can be read");
        assert_eq!(text, "source");
        symlink("target", folder.join("link")).expect("a link can be made");
        let file = clone_tree(&*base.join("source"), false).expect("a copy can be made");
        attach(file.as_fd(), Target::Below(at.as_fd(), Path::new("link"))).expect("the link itself is covered");
        detach(&folder.join("target")).expect("it is a mount point");
        assert_eq!((read(folder.join("target")), read(folder.join("link"))), ("target".into(), "source".into()));
    });
}

#[test]
fn cgroups_are_mounted_in_a_cgroup_namespace() {
    in_child(|| {
        need_root();
        let hierarchy = crate::cgroup::Hierarchy::detect().expect("the tables can be read");
        let base = stage();
        unshare(CloneFlags::NEWCGROUP).expect("root may");
        let [at] = folders(&base, ["cgroup"]);
        match hierarchy {
            crate::cgroup::Hierarchy::V1(mounts) => {
                let names: Vec<&str> = mounts[0].names.iter().map(String::as_str).collect();
                attach(cgroup_v1(&names).expect("v1 is mounted").as_fd(), &*at).expect("it can be attached");
                assert!(at.join("tasks").exists());
                let named = cgroup_v1(&["name=systemd"]);
                assert!(named.is_ok() || !Path::new("/sys/fs/cgroup/systemd").exists(), "{named:?}");
            }
            crate::cgroup::Hierarchy::V2(_) => {
                attach(cgroup_v2().expect("v2 is mounted").as_fd(), &*at).expect("it can be attached");
                assert!(at.join("cgroup.procs").exists());
            }
            crate::cgroup::Hierarchy::None => skip("control groups"),
        }
    });
}

/// What an environment is: a user namespace in the machine's, and an overlay of its own over the same idmapped layer.
#[test]
fn an_environment_in_a_machine_changes_whatever_it_likes() {
    in_child(|| {
        need_root();
        let base = stage();
        let [layer_at, top] = folders(&base, ["layer", "top"]);
        let range = [IdMap { inside: 0, outside: 100_000, count: 65_536 }];
        let machine = new_user_namespace(&range, &range, false).expect("root may");
        let layer = clone_tree(Path::new("/"), false).expect("a copy can be made");
        let attributes = Attributes { idmap: Some(machine.as_fd()), read_only: true, ..Attributes::default() };
        match set_attributes(layer.as_fd(), &attributes, false) {
            Err(error) if error.errno() == Errno::INVAL => skip("a root file system that can be idmapped"),
            other => other.expect("the root can be idmapped"),
        }
        attach(layer.as_fd(), &*layer_at).expect("it can be attached");
        enter(machine.as_fd(), CloneFlags::NEWUSER).expect("root may join it");
        become_user(&Credentials::default(), true).expect("root of the machine exists");
        let (mut told, tell) = std::io::pipe().expect("a pipe can be made");
        let (mut visible, show) = std::io::pipe().expect("a pipe can be made");
        let environment = fork(CloneFlags::ALL, || {
            // The machine's root became another user, so that its /proc files, and those of its children, belong to
            // the host's root: its maps could not be written.
            crate::process::set_dumpable(true).expect("a process may be dumpable");
            std::io::Write::write_all(&mut { show }, b"!").expect("the machine reads");
            told.read_exact(&mut [0]).expect("the machine says when the maps are written");
            let disk = tmpfs(&TmpfsOptions { size: Some(64 << 20), ..TmpfsOptions::default() }).expect("a tmpfs");
            attach(disk.as_fd(), &*top).expect("it can be attached");
            let [upper, work, at] = folders(&top, ["upper", "work", "at"]);
            let spec = OverlaySpec {
                lower: vec![Layer::Path(&layer_at)],
                upper: Some((Layer::Path(&upper), Layer::Path(&work))),
                user_xattr: true,
                ..OverlaySpec::default()
            };
            attach(overlay(&spec).expect("an overlay can be made").as_fd(), &*at).expect("it can be attached");
            attach(proc().expect("a fresh proc").as_fd(), &*at.join("proc")).expect("it can be attached");
            pivot_into(&at, RootMount::Mounted).expect("the root can be exchanged");
            write("/etc/passwd", "changed");
            chown("/etc/passwd", Some(42), Some(42)).expect("its root may");
            #[expect(clippy::disallowed_methods, reason = "as a program inside would; nothing is mounted below")]
            fs::remove_dir_all("/usr/bin").expect("it can be removed");
            fs::create_dir("/usr/bin").expect("and made anew");
            assert_eq!(fs::read_dir("/usr/bin").expect("it is there").count(), 0);
            fs::rename("/usr/bin", "/usr/moved").expect("and moved");
            let inherited = detach(Path::new("/")).expect_err("the root stays");
            assert!(matches!(inherited.errno(), Errno::INVAL | Errno::BUSY), "{inherited}");
            0
        });
        visible.read_exact(&mut [0]).expect("the child says that its maps can be written");
        let identity = [IdMap { inside: 0, outside: 0, count: 65_536 }];
        crate::namespace::write_id_maps(environment.pid, &identity, &identity, false).expect("the machine's root may");
        std::io::Write::write_all(&mut { tell }, b"!").expect("the child reads");
        succeeds(&environment);
        assert!(Path::new("/usr/bin/env").exists());
    });
}

#[test]
fn a_detached_layer_serves_only_who_owns_its_users() {
    in_child(|| {
        need_root();
        let base = stage();
        let [shown, at, other] = folders(&base, ["shown", "at", "other"]);
        let layer = clone_tree(&*shown, false).expect("a copy can be made");
        let range = [IdMap { inside: 0, outside: 100_000, count: 65_536 }];
        let users = new_user_namespace(&range, &range, false).expect("root may");
        enter(users.as_fd(), CloneFlags::NEWUSER).expect("root may join it");
        become_user(&Credentials::default(), true).expect("root of the namespace exists");
        unshare(CloneFlags::NEWNS).expect("root of the namespace may");
        let spec = OverlaySpec { lower: vec![Layer::from(&layer), Layer::Path(&other)], ..OverlaySpec::default() };
        overlay(&spec).expect_err("the layer belongs to the host's users");
        // Why layers are attached before overlays stand on them.
        attach(layer.as_fd(), &*at).expect("root of the namespace may");
        let spec = OverlaySpec { lower: vec![Layer::Path(&at), Layer::Path(&other)], ..OverlaySpec::default() };
        overlay(&spec).expect("the layer belongs to this mount namespace now");
    });
}
