//! The canonical manifest of a tree, whose SHA-256 is an image's name.
//!
//! One line a path, sorted by bytes: kind, mode, ids, name, and what the kind needs (a file's size and content
//! hash, a link's target, the first name of a hard-linked file), then the extended attributes. Times are left out:
//! two archives that differ in them only give one image.

use std::collections::HashMap;
use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use crate::import::{Layout, NodeKind};
use crate::store::{Digest, Ownership};

/// The manifest's text.
pub(crate) fn text(layout: &Layout, ownership: Ownership) -> String {
    let mut text = String::with_capacity(layout.len() * 128);
    let owner = match ownership {
        Ownership::Kept => "kept",
        Ownership::SingleOwner => "single",
    };
    writeln!(text, "testyard-image 1 ids {owner}").expect("writing to a string");
    let mut first_names: HashMap<usize, &[u8]> = HashMap::new();
    for (path, id, node) in layout.nodes() {
        let kind = match &node.kind {
            NodeKind::Directory => 'd',
            NodeKind::File { .. } => 'f',
            NodeKind::SymbolicLink { .. } => 'l',
            NodeKind::Fifo => 'p',
            NodeKind::Whiteout => 'w',
        };
        let (uid, gid) = if ownership == Ownership::Kept { (node.uid, node.gid) } else { (0, 0) };
        write!(text, "{kind} {:04o} {uid} {gid} /", node.mode).expect("writing to a string");
        escape(&mut text, path);
        if let Some(first) = first_names.get(&id) {
            text.push_str(" = /");
            escape(&mut text, first);
            text.push('\n');
            continue;
        }
        first_names.insert(id, path);
        match &node.kind {
            NodeKind::File { size, hash } => {
                write!(text, " {size} {}", crate::store::hexadecimal(hash)).expect("writing to a string");
            }
            NodeKind::SymbolicLink { target } => {
                text.push_str(" -> ");
                escape(&mut text, target);
            }
            NodeKind::Directory | NodeKind::Fifo | NodeKind::Whiteout => {}
        }
        for (name, value) in &node.attributes {
            text.push_str(" @");
            escape(&mut text, name);
            write!(text, "={}", crate::store::hexadecimal(value)).expect("writing to a string");
        }
        text.push('\n');
    }
    text
}

/// The digest of a manifest.
pub(crate) fn digest(text: &str) -> Digest {
    Digest::of(&Sha256::digest(text.as_bytes()).into())
}

/// Everything but printable ASCII without blank and `%` as `%xx`, so that a line cannot be forged.
fn escape(text: &mut String, name: &[u8]) {
    for byte in name {
        if byte.is_ascii_graphic() && *byte != b'%' {
            text.push(char::from(*byte));
        } else {
            write!(text, "%{byte:02x}").expect("writing to a string");
        }
    }
}
