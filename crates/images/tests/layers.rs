//! Images of layers: what is kept, what is shared, what is refused, and that a refusal leaves nothing.

mod support;

use std::collections::BTreeSet;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use serde_json::json;
use support::layers::{Layered, Packing, descriptor, hexadecimal};
use support::{Archive, Home, options, root};
use testyard_images::{Image, ImportError, ImportOptions};
use testyard_model::ByteSize;

/// A layer that is refused, over one that is fine.
#[track_caller]
fn refuses_layer(home: &Home, layer: Archive, message: &str) {
    home.refuses(&Layered::new(&[layer], Packing::Gzip).layout(), message);
}

fn two() -> [Archive; 2] {
    let lower = root().file("etc/a", "lower").file("etc/b", "lower").directory("srv/", 0o755).file("srv/old", "x");
    let upper = Archive::default()
        .file("etc/.wh.a", "")
        .file("etc/c", "upper")
        .file("srv/.wh..wh..opq", "")
        .file("srv/new", "");
    [lower, upper]
}

fn is_whiteout(path: &Path) -> bool {
    let facts = std::fs::symlink_metadata(path).expect("stat");
    let marked = || rustix::fs::lgetxattr(path, "user.overlay.whiteout", &mut [0_u8; 1][..]).is_ok();
    facts.file_type().is_char_device() && facts.rdev() == 0 || facts.is_file() && facts.len() == 0 && marked()
}

fn opaque(path: &Path) -> bool {
    let mut value = [0_u8; 1];
    rustix::fs::lgetxattr(path, "user.overlay.opaque", &mut value[..]) == Ok(1) && value == *b"y"
}

#[test]
fn every_form_gives_the_same_image_of_shared_layers() {
    let home = Home::new();
    let image = Layered::new(&two(), Packing::Plain);
    let one = home.import(&image.saved().end()).expect("docker save");
    assert_eq!(one.record.layers.len(), 2);
    assert_eq!(home.names_in("layers").len(), 2);
    for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
        let image = Layered::new(&two(), packing);
        assert_eq!(home.import(&image.layout()).expect("layout"), one, "{packing:?}");
        let outer = support::layers::pack(&image.layout(), packing);
        assert_eq!(home.import(&outer).expect("packed layout"), one, "{packing:?}");
        let file = home.folder.path().join("image.tar");
        std::fs::write(&file, image.layout()).expect("write");
        assert_eq!(home.store.import_file(&file, &options()).expect("a file"), one, "{packing:?}");
    }
    assert_eq!((home.store.list().expect("list").len(), home.names_in("layers").len()), (1, 2));
    // Another image over the same lowest layer.
    let [lower, _] = two();
    let other = Layered::new(&[lower, Archive::default().file("etc/d", "")], Packing::Gzip);
    let other = home.import(&other.layout()).expect("another");
    assert_eq!((home.store.list().expect("list").len(), home.names_in("layers").len()), (2, 3));
    let reference = |image: &Image| image.record.digest.to_string().parse().expect("reference");
    assert!(home.store.delete(&reference(&one), &BTreeSet::new()).expect("delete"));
    assert_eq!(home.names_in("layers").len(), 2, "the shared one stays");
    assert!(home.store.delete(&reference(&other), &BTreeSet::new()).expect("delete"));
    home.is_empty();
}

#[test]
fn a_folder_is_imported_as_its_archive_is() {
    let home = Home::new();
    let image = Layered::new(&two(), Packing::Gzip);
    let one = home.import(&image.layout()).expect("layout");
    let folder = home.folder.path().join("layout");
    std::fs::create_dir(&folder).expect("make");
    let unpack = |archive: &[u8]| {
        use std::io::Write as _;
        let mut command = std::process::Command::new("tar");
        let mut child = command.arg("-xC").arg(&folder).stdin(std::process::Stdio::piped()).spawn().expect("tar");
        child.stdin.take().expect("piped").write_all(archive).expect("write");
        assert!(child.wait().expect("wait").success());
    };
    unpack(&image.layout());
    assert_eq!(home.store.import_file(&folder, &options()).expect("a folder"), one);
    // What leads out of the folder is not followed.
    let (_, packed) = &image.layers[0];
    let blob = folder.join("blobs/sha256").join(hexadecimal(packed));
    std::fs::rename(&blob, home.folder.path().join("outside")).expect("rename");
    std::os::unix::fs::symlink("../../../outside", &blob).expect("link");
    let fresh = Home::new();
    let error = fresh.store.import_file(&folder, &options()).expect_err("leads out").to_string();
    assert!(error.contains("leads out"), "{error}");
    let empty = home.folder.path().join("empty");
    std::fs::create_dir(&empty).expect("make");
    let error = fresh.store.import_file(&empty, &options()).expect_err("no layout");
    assert!(matches!(error, ImportError::Open { .. }), "{error}");
}

#[test]
fn whiteouts_become_overlays_own() {
    let home = Home::new();
    let image = home.import(&Layered::new(&two(), Packing::Gzip).layout()).expect("import");
    // An own layer on top, as the upper one does not name `etc` and `srv`.
    assert_eq!(image.layers.len(), 3);
    let upper = &image.layers[1];
    assert!(is_whiteout(&upper.join("etc/a")));
    assert!(opaque(&upper.join("srv")) && !opaque(&upper.join("etc")));
    assert!(upper.join("srv/new").is_file() && !upper.join("srv/.wh..wh..opq").exists());
}

#[test]
fn whiteouts_speak_of_the_layers_below_wherever_they_stand() {
    let home = Home::new();
    let layer = Archive::default()
        .file("kept", "own")
        .file(".wh.kept", "")
        .file(".wh.later", "")
        .file(".wh.later", "")
        .file("later", "own")
        .directory("dir/", 0o755)
        .file("dir/x", "")
        .file(".wh.dir", "")
        .file(".wh.other", "")
        .directory("other/", 0o700)
        .directory("other/", 0o750)
        .file(".wh..wh.plnk", "")
        .hard_link("kept2", "kept");
    let image = home.import(&Layered::new(&[root(), layer], Packing::Plain).layout()).expect("import");
    let upper = image.layers.iter().find(|layer| layer.join("kept").exists()).expect("the layer");
    assert_eq!(std::fs::read_to_string(upper.join("later")).expect("read"), "own");
    assert_eq!(std::fs::metadata(upper.join("kept2")).expect("stat").nlink(), 2);
    assert!(opaque(&upper.join("dir")) && upper.join("dir/x").is_file());
    assert!(opaque(&upper.join("other")));
    assert_eq!(std::fs::metadata(upper.join("other")).expect("stat").permissions().mode() & 0o7777, 0o750);
    assert!(image.record.warnings.iter().any(|warning| warning.contains("bookkeeping")), "{:?}", image.record.warnings);
}

#[test]
fn folders_that_a_layer_does_not_name_stay_as_they_were() {
    let home = Home::new();
    let lower = root().directory("tmp/", 0o1777).directory("opt/", 0o700).directory("opt/in/", 0o711);
    let upper = Archive::default().file("tmp/x", "").file("opt/in/y", "").file("new/z", "");
    let top = Archive::default().directory("opt/", 0o750).file("tmp/w", "");
    let image = home.import(&Layered::new(&[lower, upper, top], Packing::Plain).layout()).expect("import");
    let mode = |path: &str| {
        let layer = image.layers.iter().find(|layer| layer.join(path).exists()).expect("somewhere");
        std::fs::metadata(layer.join(path)).expect("stat").permissions().mode() & 0o7777
    };
    assert_eq!((mode("tmp"), mode("opt"), mode("opt/in"), mode("new")), (0o1777, 0o750, 0o711, 0o755));
    assert!(!image.layers[0].join("new").exists() && !image.layers[0].join("tmp/x").exists());
    // What a layer above makes of something else is left to it.
    let gone = Archive::default().file(".wh.tmp", "").file("opt", "a file now");
    let upper = Archive::default().file("tmp/x", "").file("opt/y", "");
    let lower = root().directory("tmp/", 0o1777);
    let image = home.import(&Layered::new(&[lower, upper, gone], Packing::Plain).layout()).expect("import");
    assert!(is_whiteout(
        &image
            .layers
            .iter()
            .find(|layer| std::fs::symlink_metadata(layer.join("tmp")).is_ok())
            .expect("a layer")
            .join("tmp")
    ));
}

#[test]
fn a_layer_that_hides_all_is_the_lowest_and_one_twice_is_once() {
    let home = Home::new();
    let [lower, upper] = two();
    let all = root().file(".wh..wh..opq", "");
    let image = home.import(&Layered::new(&[lower.clone(), all], Packing::Plain).layout()).expect("import");
    assert_eq!((image.record.layers.len(), image.layers.len()), (1, 1));
    let twice = Layered::new(&[lower.clone(), upper, lower], Packing::Plain);
    let image = home.import(&twice.layout()).expect("import");
    assert_eq!(image.record.layers.len(), 3);
    let distinct: BTreeSet<_> = image.layers.iter().collect();
    assert_eq!(distinct.len(), image.layers.len(), "overlay refuses a folder twice");
}

#[test]
fn what_the_image_says_of_commands_is_kept() {
    let home = Home::new();
    let mut image = Layered::new(&two(), Packing::Plain);
    image.config["config"] = json!({
        "Env": ["PATH=/bin", "A=b=c", "nothing", "=x"],
        "User": "app:staff",
        "WorkingDir": "/srv",
        "Entrypoint": ["/bin/sh"],
        "Cmd": null,
    });
    let image = home.import(&image.layout()).expect("import");
    let config = image.record.config.expect("a configuration");
    assert_eq!(config.env, ["PATH=/bin", "A=b=c"]);
    assert_eq!((config.user.as_deref(), config.working_directory.as_deref()), (Some("app:staff"), Some("/srv")));
    assert_eq!((config.entrypoint, config.command), (vec!["/bin/sh".to_owned()], vec![]));
    assert!(image.record.warnings.iter().any(|warning| warning.contains("2 of its variables")));
}

#[test]
fn hostile_layers_are_refused_by_entry() {
    let home = Home::new();
    refuses_layer(
        &home,
        root().file("/etc/passwd", "x"),
        "the archive's entry `/etc/passwd` is refused: its path is absolute",
    );
    refuses_layer(&home, root().file("usr/../../x", "x"), "`usr/../../x` is refused: its path contains `..`");
    refuses_layer(
        &home,
        root().link("out", "/etc").file("out/x", ""),
        "`out/x` is refused: its path goes through a link",
    );
    refuses_layer(&home, root().link("out", "..").file("out/.wh.x", ""), "goes through a link that leads out");
    refuses_layer(&home, root().link("a", "b").link("b", "a").file("a/.wh.x", ""), "too many links");
    refuses_layer(&home, root().hard_link("x", "../../etc/shadow"), "not inside the image");
    refuses_layer(&home, root().hard_link("x", "in/another/layer"), "not a file before it");
    refuses_layer(&home, root().file(".wh.gone", "").hard_link("x", "gone"), "not a file before it");
    refuses_layer(&home, root().file("usr/.wh.", ""), "`.wh.` is no whiteout");
    refuses_layer(&home, root().file("usr/.wh...", ""), "`.wh...` is no whiteout");
    refuses_layer(&home, root().file("usr/.wh..", ""), "`.wh..` is no whiteout");
    refuses_layer(&home, root().directory("usr/.wh.x/", 0o755), "`.wh.x` is no whiteout");
    refuses_layer(&home, root().file("usr/.wh.x/y", ""), "`.wh.x` is no whiteout");
    refuses_layer(&home, root().file("usr/sh/.wh..wh..opq/.wh.y", ""), "is no whiteout");
    refuses_layer(&home, root().file(".wh.gone", "").file("gone/x", ""), "a whiteout of the same layer says is gone");
    refuses_layer(&home, root().file("usr/bin/sh/.wh.x", ""), "goes through a file");
    let mut device = root();
    device.header(b'3', b"usr/gone", b"", 0, 0);
    refuses_layer(&home, device, "as only a mounted overlay has them");
    let mut device = root();
    device.header(b'4', b"etc/disk", b"", 0, 0o666);
    refuses_layer(&home, device, "`etc/disk` is refused: it is a device node outside of `dev`");
    let attribute = |name: &str| root().pax(&[(name, b"y")]).directory("x/", 0o755);
    refuses_layer(&home, attribute("SCHILY.xattr.user.overlay.opaque"), "user.overlay.opaque");
    refuses_layer(&home, attribute("SCHILY.xattr.trusted.overlay.redirect"), "trusted.overlay.redirect");
}

#[test]
fn bombs_are_refused() {
    let home = Home::new();
    let refuses = |archive: &[u8], options: ImportOptions, message: &str| {
        let error = home.store.import(archive, None, &options).expect_err("refused").to_string();
        assert!(error.contains(message), "{error:?} does not say {message:?}");
        home.is_empty();
    };
    let zeros = |name: &str| root().file(name, &"\0".repeat(3 << 20));
    let small = || ImportOptions { limit: ByteSize::mebibytes(4), ..options() };
    let packed = |layers: &[Archive]| Layered::new(layers, Packing::Zstd).layout();
    refuses(
        &packed(&[zeros("one").file("two", &"\0".repeat(3 << 20))]),
        small(),
        "unpacks to more than 4M, at the entry `two`",
    );
    refuses(&packed(&[zeros("one"), zeros("two")]), small(), "unpacks to more than 4M, at the entry `two`");
    let few = ImportOptions { entry_limit: 7, ..options() };
    refuses(&packed(&[root(), root().file("x", "")]), few, "more than 7 entries");
    // A whiteout's content is nobody's, and is not read without end either.
    let endless = root().file(".wh.x", &"\0".repeat(80 << 20));
    refuses(
        &packed(&[endless]),
        ImportOptions { limit: ByteSize::mebibytes(4), ..options() },
        "unpacks to more than 69M",
    );
    let many = Layered::new(&vec![root(); 129], Packing::Plain);
    refuses(&many.layout(), options(), "129 layers; at most 128");
    let half = ImportOptions { reserve: ByteSize(1 << 60), ..options() };
    refuses(&packed(&[root()]), half, "too full");
}

#[test]
fn what_unpacks_to_a_multiple_of_its_size_is_refused() {
    let home = Home::new();
    let mut archive = zstd::Encoder::new(Vec::new(), 1).expect("in memory");
    use std::io::Write as _;
    archive.write_all(&root().0).expect("in memory");
    let mut header = Archive::default();
    header.header(b'0', b"zeros", b"", 300 << 20, 0o644);
    archive.write_all(&header.0).expect("in memory");
    for _ in 0..300 {
        archive.write_all(&vec![0; 1 << 20]).expect("in memory");
    }
    archive.write_all(&[0; 1024]).expect("in memory");
    let error = home.import(&archive.finish().expect("in memory")).expect_err("a bomb").to_string();
    assert!(error.contains("`zeros`: it unpacks to more than 500 times its size"), "{error}");
    home.is_empty();
}

#[test]
fn wrong_digests_and_sizes_are_refused() {
    let home = Home::new();
    let image = Layered::new(&two(), Packing::Gzip);
    let with = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut manifest = image.manifest();
        change(&mut manifest);
        image.layout_of(&manifest).end()
    };
    let (_, packed) = &image.layers[1];
    let name = hexadecimal(packed);
    // Blobs by the right names with other contents.
    for damage in [0, packed.len() / 2, packed.len() - 1] {
        let mut damaged = image.clone();
        damaged.layers[1].1[damage] ^= 0x55;
        let digest = hexadecimal(&damaged.layers[1].1);
        let archive = String::from_utf8_lossy(&digest.into_bytes()).into_owned();
        let mut bytes = damaged.layout_of(&image.manifest()).0;
        rename(&mut bytes, &archive, &name);
        bytes.resize(bytes.len() + 1024, 0);
        home.refuses(&bytes, "is damaged or forged: its digest should be sha256:");
    }
    let mut cut = image.clone();
    cut.layers[1].1.truncate(packed.len() - 3);
    let archive = hexadecimal(&cut.layers[1].1);
    let mut bytes = cut.layout_of(&image.manifest()).0;
    rename(&mut bytes, &archive, &name);
    bytes.resize(bytes.len() + 1024, 0);
    home.refuses(&bytes, "is damaged or truncated: it should be");
    home.refuses(&with(&|manifest| manifest["layers"][1]["size"] = json!(7)), "it should be 7 bytes long");
    home.refuses(&with(&|manifest| manifest["config"]["size"] = json!(7)), "it should be 7 bytes long");
    home.refuses(
        &with(&|manifest| manifest["layers"][1]["digest"] = json!(format!("sha256:{}", "0".repeat(64)))),
        "is named by the image's manifest and is not there",
    );
    let mut other = image.clone();
    other.config["rootfs"]["diff_ids"][1] = json!(format!("sha256:{}", "0".repeat(64)));
    home.refuses(&other.layout(), "its content is damaged or forged");
    home.refuses(&other.saved().end(), "its content is damaged or forged");
    let mut less = image.clone();
    less.config["rootfs"]["diff_ids"] = json!([]);
    home.refuses(&less.layout(), "has 2 layers and its configuration 0");
    // The index names the manifest by a digest, too.
    let text = image.manifest().to_string();
    let mut wrong = descriptor(&text);
    wrong["size"] = json!(text.len() + 1);
    let index = json!({"schemaVersion": 2, "manifests": [wrong]});
    home.refuses(&image.blobs(&[&text]).file("index.json", &index.to_string()).end(), "it should be");
    // And `docker save` names the configuration by one.
    let saved = String::from_utf8(image.config.to_string().into_bytes()).expect("text");
    let mut bytes = image.saved().0;
    let at = bytes.windows(saved.len()).position(|window| window == saved.as_bytes()).expect("there");
    bytes[at + saved.len() - 3] ^= 1;
    bytes.resize(bytes.len() + 1024, 0);
    home.refuses(&bytes, "is damaged or forged");
}

/// Gives an entry another name of the same length, its checksum put right.
fn rename(archive: &mut [u8], from: &str, to: &str) {
    let place = archive.windows(from.len()).position(|window| window == from.as_bytes()).expect("the entry");
    archive[place..place + to.len()].copy_from_slice(to.as_bytes());
    let begin = place / 512 * 512;
    let mut fixed = Archive::default();
    fixed.block(archive[begin..begin + 512].try_into().expect("a block"));
    archive[begin..begin + 512].copy_from_slice(&fixed.0);
}

#[test]
fn hostile_documents_and_members_are_refused() {
    let home = Home::new();
    let image = Layered::new(&two(), Packing::Plain);
    let index = |text: &str| Archive::default().file("oci-layout", "{}").file("index.json", text).end();
    let names = |digest: &str| json!({"manifests": [{"digest": digest, "size": 1}]}).to_string();
    home.refuses(&index("{"), "index.json is not what an image's documents look like");
    home.refuses(&index(&"[".repeat(10_000)), "index.json is not what");
    home.refuses(&index(&" ".repeat(5 << 20)), "index.json is larger than 4M");
    home.refuses(&index(&names("sha256:../../../../etc/passwd")), "is not a digest that Testyard reads");
    home.refuses(&index(&names("sha512:00")), "is not a digest that Testyard reads");
    home.refuses(&index(r#"{"schemaVersion":1}"#), "has the form `version 1`");
    home.refuses(&index(r#"{"manifests":[]}"#), "holds neither");
    home.refuses(&Archive::default().file("oci-layout", "{}").end(), "holds neither an `index.json`");
    let encrypted = |manifest: &mut serde_json::Value| {
        manifest["layers"][0]["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+encrypted");
    };
    let mut manifest = image.manifest();
    encrypted(&mut manifest);
    home.refuses(&image.layout_of(&manifest).end(), "which Testyard does not read");
    let saved = |config: &str, layer: &str| {
        let manifest = json!([{"Config": config, "Layers": [layer]}]).to_string();
        Archive::default().file("oci-layout", "{}").file("manifest.json", &manifest).end()
    };
    home.refuses(&saved("/etc/passwd", "x"), "`/etc/passwd` is refused: its path is absolute");
    home.refuses(&saved("../../etc/passwd", "x"), "`../../etc/passwd` is refused: its path leads out");
    home.refuses(&saved("nothing.json", "x"), "`nothing.json` is named by the image's manifest and is not there");
    let member = |archive: Archive| image.saved().0.into_iter().chain(archive.end()).collect::<Vec<u8>>();
    home.refuses(&member(Archive::default().file("/x", "")), "`/x` is refused: its path is absolute");
    home.refuses(&member(Archive::default().file("a/../x", "")), "`a/../x` is refused: its path leads out");
    home.refuses(&member(Archive::default().link("x", "../etc/passwd")), "its path leads out of the archive");
    home.refuses(&member(Archive::default().link("x", "/etc/passwd")), "its path leads out of the archive");
    home.refuses(
        &member(Archive::default().file("manifest.json", "")),
        "`manifest.json` is refused: it is there twice",
    );
    home.refuses(&member(Archive::default().entry(b'6', "x", "", b"")), "neither a plain file nor a link");
    let looped = Archive::default().file("oci-layout", "{}").link("manifest.json", "a").link("a", "manifest.json");
    home.refuses(&looped.end(), "holds neither");
    // An index that leads to itself cannot be; many that lead on can.
    let mut archive = image.blobs(&[]);
    let mut text = image.manifest().to_string();
    for _ in 0..8 {
        let outer = json!({"manifests": [descriptor(&text)]}).to_string();
        archive = archive.file(&format!("blobs/sha256/{}", hexadecimal(text.as_bytes())), &text);
        text = outer;
    }
    home.refuses(&archive.file("index.json", &text).end(), "lead from one to another");
    let mut large = image.clone();
    large.config["config"] = json!({"Env": [format!("A={}", "x".repeat(300 << 10))]});
    home.refuses(&large.layout(), "larger than 256 KiB");
    let mut windows = image.clone();
    windows.config["os"] = json!("windows");
    home.refuses(&windows.layout(), "it has nothing for linux/");
    for length in [600, 1500, 4000, image.layout().len() - 1024] {
        home.refuses(&image.layout()[..length], "truncated");
    }
}

#[test]
fn the_one_for_this_host_is_taken_or_the_one_asked_for() {
    let home = Home::new();
    let [lower, upper] = two();
    let images =
        [Layered::new(std::slice::from_ref(&lower), Packing::Plain), Layered::new(&[lower, upper], Packing::Plain)];
    let texts: Vec<String> = images.iter().map(|image| image.manifest().to_string()).collect();
    let named = |text: &str, name: &str, architecture: &str| {
        let mut one = descriptor(text);
        one["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        one["platform"] = json!({"architecture": architecture, "os": "linux"});
        one
    };
    let archive = |manifests: serde_json::Value| {
        let mut archive = images[1].blobs(&[&texts[0], &texts[1]]);
        let config = images[0].config.to_string();
        archive = archive.file(&format!("blobs/sha256/{}", hexadecimal(config.as_bytes())), &config);
        archive.file("index.json", &json!({"schemaVersion": 2, "manifests": manifests}).to_string()).end()
    };
    let own = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let platforms =
        archive(json!([named(&texts[0], "a", "mips"), named(&texts[1], "a", own), named(&texts[0], "a", "unknown")]));
    assert_eq!(home.import(&platforms).expect("this host's").record.layers.len(), 2);
    let fresh = Home::new();
    fresh.refuses(&archive(json!([named(&texts[0], "a", "mips")])), "it has nothing for linux/");
    let several = archive(json!([named(&texts[0], "one", own), named(&texts[1], "two", own)]));
    fresh.refuses(&several, "it holds several images: one, two");
    let pick =
        |name: &str| fresh.store.import(&*several, None, &ImportOptions { pick: Some(name.to_owned()), ..options() });
    assert_eq!(pick("one").expect("picked").record.layers.len(), 1);
    assert_eq!(pick("two").expect("picked").record.layers.len(), 2);
    let error = pick("three").expect_err("not there").problem();
    assert_eq!(error.message, "it holds no image `three`; there is one, two");
    assert_eq!(error.hints, ["say which: --pick one"]);
}

#[test]
fn every_test_of_layers_passes_for_an_ordinary_user() {
    if rustix::process::geteuid().is_root() {
        support::as_ordinary_user(&["--skip", "every_test_of_layers"], None);
    }
}

#[test]
fn every_test_of_layers_passes_where_no_device_can_be_made() {
    if rustix::process::geteuid().is_root() {
        support::on_an_overlay(&["--skip", "every_test_of_layers"]);
    }
}
