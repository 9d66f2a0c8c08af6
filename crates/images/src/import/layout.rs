//! The tree as it grows, in memory: where an entry may go, and what it replaces. Pure.
//!
//! The tree on disk begins empty and only the importer writes to it, so this index is the truth about it:
//! what is refused here never reaches the kernel, and what reaches the kernel is resolved there once more
//! with `RESOLVE_BENEATH`.

use std::collections::{BTreeMap, VecDeque};
use testyard_linux::files::layer_marks;

use super::Refusal;

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NodeKind {
    Directory,
    File {
        size: u64,
        hash: [u8; 32],
    },
    SymbolicLink {
        target: Vec<u8>,
    },
    Fifo,
    /// In a layer: what the layers below have of this name is gone.
    Whiteout,
}

/// What several names may share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) kind: NodeKind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: i64,
    pub(crate) attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    /// A directory that no entry names.
    pub(crate) implied: bool,
}

impl Node {
    /// A directory that an archive implies and does not name.
    pub(crate) fn implied_directory() -> Self {
        let attributes = BTreeMap::new();
        Self { kind: NodeKind::Directory, mode: 0o755, uid: 0, gid: 0, mtime: 0, attributes, implied: true }
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.kind == NodeKind::Directory
    }

    /// Of a layer's directory: nothing of the layers below shows in it.
    pub(crate) fn is_opaque(&self) -> bool {
        self.attributes.contains_key(OPAQUE)
    }

    pub(crate) fn make_opaque(&mut self) {
        self.attributes.insert(OPAQUE.to_vec(), b"y".to_vec());
    }
}

/// The mark of a directory that hides those below it, as a user namespace may write it.
const OPAQUE: &[u8] = layer_marks::OPAQUE[0].as_bytes();

/// What stands where an entry wants to go.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Nothing,
    Directory,
    /// Something that is unlinked first: later entries win, as tar's own manual says.
    Other,
    /// A whiteout of the same layer, which speaks of the layers below only and is unlinked first.
    Whiteout,
}

/// The tree so far. Paths have no leading slash; the root is the empty path.
#[derive(Debug)]
pub(crate) struct Layout {
    paths: BTreeMap<Vec<u8>, usize>,
    nodes: Vec<Node>,
}

/// The longest path and component that the kernel takes.
const PATH_MAX: usize = 4095;
const NAME_MAX: usize = 255;
/// As many links as the kernel follows in one path.
const LINKS_MAX: usize = 40;

impl Layout {
    pub(crate) fn new() -> Self {
        Self { paths: BTreeMap::from([(Vec::new(), 0)]), nodes: vec![Node::implied_directory()] }
    }

    /// Paths in it, the root's own included.
    pub(crate) fn len(&self) -> usize {
        self.paths.len()
    }

    pub(crate) fn get(&self, path: &[u8]) -> Option<&Node> {
        self.paths.get(path).map(|id| &self.nodes[*id])
    }

    /// The directories that no entry names, in byte order.
    pub(crate) fn implied(&self) -> impl Iterator<Item = &[u8]> {
        self.nodes().filter(|(_, _, node)| node.implied && node.is_directory()).map(|(path, ..)| path)
    }

    /// Every path in byte order, with its node's number and node.
    pub(crate) fn nodes(&self) -> impl DoubleEndedIterator<Item = (&[u8], usize, &Node)> {
        self.paths.iter().map(|(path, id)| (path.as_slice(), *id, &self.nodes[*id]))
    }

    /// The place an entry's name means: links among its parents followed, none of them out of the tree.
    pub(crate) fn place(&self, written: &[u8]) -> Result<Vec<u8>, Refusal> {
        if written.starts_with(b"/") {
            return Err(Refusal::Absolute);
        }
        let mut components: VecDeque<&[u8]> =
            written.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
        if components.iter().any(|part| *part == b"..") {
            return Err(Refusal::Parent);
        }
        if let Some(long) = components.iter().find(|part| part.len() > NAME_MAX) {
            return Err(Refusal::NameTooLong(long.len()));
        }
        let mut place = Vec::new();
        let mut links = 0;
        while let Some(part) = components.pop_front() {
            if part == b".." {
                // Only a link's target can hold one by now.
                if place.is_empty() {
                    return Err(Refusal::LinkOut);
                }
                place.truncate(place.iter().rposition(|byte| *byte == b'/').unwrap_or(0));
                continue;
            }
            let begin = place.len();
            if begin > 0 {
                place.push(b'/');
            }
            place.extend_from_slice(part);
            if place.len() > PATH_MAX {
                return Err(Refusal::PathTooLong(place.len()));
            }
            if components.is_empty() {
                break;
            }
            match self.get(&place).map(|node| &node.kind) {
                None | Some(NodeKind::Directory) => {}
                Some(NodeKind::SymbolicLink { target }) => {
                    links += 1;
                    if target.starts_with(b"/") {
                        return Err(Refusal::LinkOut);
                    }
                    if links > LINKS_MAX {
                        return Err(Refusal::LinkLoop);
                    }
                    place.truncate(begin);
                    let parts = target.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
                    for part in parts.rev() {
                        components.push_front(part);
                    }
                }
                Some(NodeKind::File { .. } | NodeKind::Fifo) => return Err(Refusal::BelowFile),
                Some(NodeKind::Whiteout) => return Err(Refusal::BelowWhiteout),
            }
        }
        Ok(place)
    }

    /// What an entry that is (or is not) a directory meets at its place.
    pub(crate) fn standing(&self, place: &[u8], directory: bool) -> Result<Standing, Refusal> {
        match self.get(place) {
            None => Ok(Standing::Nothing),
            Some(node) if node.is_directory() => {
                if directory {
                    Ok(Standing::Directory)
                } else {
                    Err(Refusal::ReplacesDirectory)
                }
            }
            Some(Node { kind: NodeKind::Whiteout, .. }) => Ok(Standing::Whiteout),
            Some(_) => Ok(Standing::Other),
        }
    }

    /// The directories above a place that are not there yet, outermost first.
    pub(crate) fn missing_parents<'a>(&self, place: &'a [u8]) -> Vec<&'a [u8]> {
        let mut missing = Vec::new();
        let mut rest = place;
        while let Some(slash) = rest.iter().rposition(|byte| *byte == b'/') {
            rest = &rest[..slash];
            if self.paths.contains_key(rest) {
                break;
            }
            missing.push(rest);
        }
        missing.reverse();
        missing
    }

    /// Puts a new node at a place.
    pub(crate) fn put(&mut self, place: Vec<u8>, node: Node) {
        self.nodes.push(node);
        self.paths.insert(place, self.nodes.len() - 1);
    }

    /// Gives an existing directory what a later entry says of it; what it hides stays hidden.
    pub(crate) fn update(&mut self, place: &[u8], mut node: Node) {
        if let Some(id) = self.paths.get(place) {
            if self.nodes[*id].is_opaque() {
                node.make_opaque();
            }
            self.nodes[*id] = node;
        }
    }

    /// Hides what the layers below have in an existing directory.
    pub(crate) fn make_opaque(&mut self, place: &[u8]) {
        if let Some(id) = self.paths.get(place) {
            self.nodes[*id].make_opaque();
        }
    }

    /// Gives an existing node a further name.
    pub(crate) fn link(&mut self, place: Vec<u8>, existing: &[u8]) {
        if let Some(id) = self.paths.get(existing).copied() {
            self.paths.insert(place, id);
        }
    }
}

/// The folder that a place is in, and its name there.
pub(super) fn split(place: &[u8]) -> (&[u8], &[u8]) {
    match place.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&place[..slash], &place[slash + 1..]),
        None => (&[], place),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(target: &str) -> Node {
        Node { kind: NodeKind::SymbolicLink { target: target.into() }, mode: 0o777, ..Node::implied_directory() }
    }

    fn layout() -> Layout {
        let mut layout = Layout::new();
        layout.put(b"usr".to_vec(), Node::implied_directory());
        layout.put(b"usr/lib".to_vec(), Node::implied_directory());
        layout.put(b"lib".to_vec(), link("usr/lib"));
        layout.put(b"usr/up".to_vec(), link("../usr/./lib"));
        layout.put(b"out".to_vec(), link("../../etc"));
        layout.put(b"usr/out".to_vec(), link("../.."));
        layout.put(b"abs".to_vec(), link("/etc"));
        layout.put(b"loop".to_vec(), link("loop"));
        layout.put(
            b"file".to_vec(),
            Node { kind: NodeKind::File { size: 0, hash: [0; 32] }, ..Node::implied_directory() },
        );
        layout
    }

    #[test]
    fn places_are_inside_the_tree_or_refused() {
        let layout = layout();
        let check = |path: &str, place: Result<&str, Refusal>| {
            assert_eq!(layout.place(path.as_bytes()), place.map(|place| place.as_bytes().to_vec()), "{path}");
        };
        check("./usr//lib/./x", Ok("usr/lib/x"));
        check(".", Ok(""));
        check("lib/x", Ok("usr/lib/x"));
        check("usr/up/x", Ok("usr/lib/x"));
        check("lib", Ok("lib"));
        check("new/deep/x", Ok("new/deep/x"));
        check("/etc/passwd", Err(Refusal::Absolute));
        check("usr/../x", Err(Refusal::Parent));
        check("..", Err(Refusal::Parent));
        check("out/passwd", Err(Refusal::LinkOut));
        check("usr/out/x", Err(Refusal::LinkOut));
        check("abs/passwd", Err(Refusal::LinkOut));
        check("loop/x", Err(Refusal::LinkLoop));
        check("file/x", Err(Refusal::BelowFile));
        check(&"n".repeat(256), Err(Refusal::NameTooLong(256)));
        assert!(matches!(layout.place(&b"abc/".repeat(2000)), Err(Refusal::PathTooLong(_))));
    }

    #[test]
    fn parents_are_implied_outermost_first() {
        let layout = layout();
        assert_eq!(layout.missing_parents(b"usr/a/b/c"), [b"usr/a".as_slice(), b"usr/a/b"]);
        assert!(layout.missing_parents(b"usr/x").is_empty());
        assert!(layout.missing_parents(b"x").is_empty());
    }
}
