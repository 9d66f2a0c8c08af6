//! Archives written header by header, so that they can be as wrong as an attacker's; and tests run as somebody else.
#![allow(dead_code, reason = "each test file uses a part")]

pub(crate) mod layers;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use testyard_images::{Image, ImportError, ImportOptions, Store};
use testyard_model::ByteSize;

/// Runs tests of this program as user 1000, whether or not such a user has a name. `passed` is how many must pass,
/// where that is to be checked.
pub(crate) fn as_ordinary_user(arguments: &[&str], passed: Option<usize>) {
    let program = std::env::current_exe().expect("this program");
    // Build folders need not be open to others.
    let folder = tempfile::tempdir_in("/dev/shm").expect("a temporary folder");
    fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).expect("mode");
    let copy = folder.path().join("program");
    fs::copy(program, &copy).expect("copy");
    let mut command = if rustix::process::geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=1000", "--regid=1000", "--clear-groups", "--"]).arg(&copy);
        command
    } else {
        Command::new(&copy)
    };
    let output = command
        .args(arguments)
        .arg("--nocapture")
        .current_dir("/")
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("TMPDIR", "/dev/shm")
        .output()
        .expect("it runs");
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let counted = passed.is_none_or(|passed| told.contains(&format!("{passed} passed")));
    assert!(output.status.success() && counted, "{told}");
}

/// Runs tests of this program with their folders on an overlay, as in a machine's own root: no whiteout can be made there
/// as a device.
pub(crate) fn on_an_overlay(arguments: &[&str]) {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a temporary folder");
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir(folder.path().join(name)).expect("a new folder");
    }
    let script = "cd \"$1\" && shift && mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged && \
                  export TMPDIR=\"$PWD/merged\" && cd / && exec \"$@\"";
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(folder.path())
        .arg(std::env::current_exe().expect("this program"))
        .args(arguments)
        .arg("--nocapture")
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .expect("it runs");
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}");
}

/// A store in a folder of its own.
pub(crate) struct Home {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) store: Store,
}

impl Home {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = Store::open(&folder.path().join("images")).expect("a new store");
        Self { folder, store }
    }

    pub(crate) fn import(&self, archive: &[u8]) -> Result<Image, ImportError> {
        self.store.import(archive, None, &options())
    }

    /// Refused, with this in the message, both as a stream and as a file, and nothing left.
    #[track_caller]
    pub(crate) fn refuses(&self, archive: &[u8], message: &str) {
        let file = self.folder.path().join("refused.tar");
        fs::write(&file, archive).expect("write");
        for error in [self.import(archive), self.store.import_file(&file, &options())] {
            let told = error.expect_err("must be refused").problem();
            let all = format!("{}; {}", told.message, told.causes.join("; "));
            assert!(all.contains(message), "{all:?} does not say {message:?}");
            assert!(!told.message.contains('\n'));
        }
        self.is_empty();
    }

    /// No image, nothing half-made, and no layer that a prune would leave: whole ones may stay for the next try.
    #[track_caller]
    pub(crate) fn is_empty(&self) {
        assert!(self.store.list().expect("list").is_empty());
        for folder in ["temporary", "downloads"] {
            assert_eq!(self.names_in(folder), [""; 0], "{folder}");
        }
        self.store.prune(&BTreeSet::new()).expect("prune");
        assert_eq!(self.names_in("layers"), [""; 0]);
    }

    /// What is in a folder of the store.
    pub(crate) fn names_in(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.store.path().join(folder)).expect("a folder of the store");
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect()
    }
}

/// Imports of tests: quick, and at no time of their own.
pub(crate) fn options() -> ImportOptions {
    ImportOptions { flush: false, reserve: ByteSize(1), ..ImportOptions::new(1_700_000_000_000) }
}

/// Appends entries; what it holds is the archive without its end mark.
#[derive(Default, Clone)]
pub(crate) struct Archive(pub(crate) Vec<u8>);

impl Archive {
    pub(crate) fn entry(mut self, kind: u8, path: &str, link: &str, content: &[u8]) -> Self {
        self.header(kind, path.as_bytes(), link.as_bytes(), content.len() as u64, 0o644);
        self.content(content);
        self
    }

    pub(crate) fn file(self, path: &str, content: &str) -> Self {
        self.entry(b'0', path, "", content.as_bytes())
    }

    pub(crate) fn directory(mut self, path: &str, mode: u32) -> Self {
        self.header(b'5', path.as_bytes(), b"", 0, mode);
        self
    }

    pub(crate) fn link(self, path: &str, target: &str) -> Self {
        self.entry(b'2', path, target, b"")
    }

    pub(crate) fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(b'1', path, target, b"")
    }

    /// A PAX header before the next entry.
    pub(crate) fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            body.extend_from_slice(format!("{length} {key}=").as_bytes());
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        self.header(b'x', b"pax", b"", body.len() as u64, 0o644);
        self.content(&body);
        self
    }

    pub(crate) fn header(&mut self, kind: u8, path: &[u8], link: &[u8], size: u64, mode: u32) {
        let mut block = [0_u8; 512];
        let path = &path[..path.len().min(100)];
        let link = &link[..link.len().min(100)];
        block[..path.len()].copy_from_slice(path);
        block[157..157 + link.len()].copy_from_slice(link);
        block[100..108].copy_from_slice(format!("{mode:07o}\0").as_bytes());
        block[108..116].copy_from_slice(b"0000000\0");
        block[116..124].copy_from_slice(b"0000000\0");
        block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
        block[136..148].copy_from_slice(b"14371573600\0");
        block[156] = kind;
        block[257..265].copy_from_slice(b"ustar\x0000");
        self.block(block);
    }

    /// Appends a header block, its checksum put right.
    pub(crate) fn block(&mut self, mut block: [u8; 512]) {
        block[148..156].copy_from_slice(b"        ");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&block);
    }

    pub(crate) fn content(&mut self, content: &[u8]) {
        self.0.extend_from_slice(content);
        let padded = self.0.len().next_multiple_of(512);
        self.0.resize(padded, 0);
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

/// A small usable root.
pub(crate) fn root() -> Archive {
    Archive::default()
        .directory("./", 0o755)
        .directory("usr/", 0o755)
        .directory("usr/bin/", 0o755)
        .link("bin", "usr/bin")
        .file("usr/bin/sh", "#!/nothing\n")
}
