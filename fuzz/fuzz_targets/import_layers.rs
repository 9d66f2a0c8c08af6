//! Any bytes as the documents and the layer of an image: no panic, no memory without bound, nothing outside the store.
//!
//! The first byte cuts the rest in two: a JSON document, put where an index, a manifest or a configuration is looked for, and
//! a layer's archive under the digest that it has.
#![no_main]

use libfuzzer_sys::fuzz_target;
use testyard_fuzz::{is_clean, store_in, with_sums};

fuzz_target!(|bytes: &[u8]| {
    let Some((cut, rest)) = bytes.split_first() else { return };
    let (document, layer) = rest.split_at(rest.len() * usize::from(*cut) / 256);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let layout = folder.path().join("layout");
    std::fs::create_dir_all(layout.join("blobs/sha256")).expect("make");
    let layer = with_sums(layer);
    let (store, options) = store_in(folder.path());
    let write = |name: &str, text: &[u8]| std::fs::write(layout.join(name), text).expect("write");
    let import = || {
        if store.import_file(&layout, &options).is_err() {
            is_clean(&store);
        }
        assert_eq!(std::fs::read_dir(folder.path()).expect("list").count(), 2);
    };
    // As `docker save` has them: a layer is proven by the configuration alone, so this one is unpacked to its end.
    let saved = r#"[{"Config":"config.json","Layers":["layer.tar"]}]"#;
    let none = "0".repeat(64);
    write("layer.tar", &layer);
    write("manifest.json", saved.as_bytes());
    write("config.json", format!(r#"{{"rootfs":{{"diff_ids":["sha256:{none}"]}}}}"#).as_bytes());
    import();
    write("config.json", document);
    import();
    write("manifest.json", document);
    import();
    write("index.json", document);
    import();
});
