//! Any bytes as the documents and the layer of an image: no panic, no memory without bound, nothing outside the store.
//!
//! The first byte cuts the rest in two: a JSON document, put where an index, a manifest or a configuration is looked for, and
//! a layer's archive under the digest that it has.
#![no_main]

use libfuzzer_sys::fuzz_target;
use testyard_images::{ImportOptions, Store};
use testyard_model::ByteSize;

fuzz_target!(|bytes: &[u8]| {
    let Some((cut, rest)) = bytes.split_first() else { return };
    let (document, layer) = rest.split_at(rest.len() * usize::from(*cut) / 256);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let layout = folder.path().join("layout");
    std::fs::create_dir_all(layout.join("blobs/sha256")).expect("make");
    // Headers with a right checksum are rare among random bytes: put those of whole blocks right.
    let mut layer = layer.to_vec();
    for block in layer.chunks_exact_mut(512).filter(|block| block.iter().any(|byte| *byte != 0)) {
        block[148..156].copy_from_slice(b"        ");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    let store = Store::open(&folder.path().join("images")).expect("a store");
    let options = ImportOptions {
        flush: false,
        reserve: ByteSize(1),
        limit: ByteSize::mebibytes(4),
        entry_limit: 1000,
        ..ImportOptions::new(0)
    };
    let write = |name: &str, text: &[u8]| std::fs::write(layout.join(name), text).expect("write");
    let import = || {
        if store.import_file(&layout, &options).is_err() {
            let left = std::fs::read_dir(store.path().join("temporary")).expect("temporary").count();
            assert_eq!(left, 0);
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
