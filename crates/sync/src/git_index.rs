//! Which paths git tracks: the index file, versions 2 to 4, read only as far as that.

/// The tracked paths of one repository, in git's order: by bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct TrackedPaths {
    /// Every path after another; `ends[n]` is where the n-th ends.
    text: Vec<u8>,
    ends: Vec<u32>,
}

/// An index as it was read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct GitIndex {
    pub(crate) tracked: TrackedPaths,
    /// The hexadecimal id of the shared index that this one adds to, where the index is split.
    pub(crate) shared: Option<String>,
}

impl TrackedPaths {
    /// Whether exactly this path is tracked (a submodule's folder is).
    pub(crate) fn contains(&self, path: &[u8]) -> bool {
        self.ends.get(self.position(path)).is_some() && self.get(self.position(path)) == path
    }

    /// Whether something below this folder is tracked.
    pub(crate) fn any_below(&self, folder: &[u8]) -> bool {
        if folder.is_empty() {
            return !self.ends.is_empty();
        }
        let mut prefix = folder.to_vec();
        prefix.push(b'/');
        let index = self.position(&prefix);
        index < self.ends.len() && self.get(index).starts_with(&prefix)
    }

    /// Adds what another file of a split index tracks. What it replaced or deleted stays in: only paths that exist
    /// and are ignored are ever asked for.
    pub(crate) fn merge(&mut self, other: &Self) {
        let mut all: Vec<&[u8]> = (0..self.ends.len()).map(|n| self.get(n)).collect();
        all.extend((0..other.ends.len()).map(|n| other.get(n)));
        all.sort_unstable();
        all.dedup();
        let mut merged = Self::default();
        for path in all {
            merged.push(path);
        }
        *self = merged;
    }

    fn get(&self, index: usize) -> &[u8] {
        let start = if index == 0 { 0 } else { self.ends[index - 1] as usize };
        &self.text[start..self.ends[index] as usize]
    }

    /// The first index whose path is not before `path`.
    fn position(&self, path: &[u8]) -> usize {
        let (mut low, mut high) = (0, self.ends.len());
        while low < high {
            let middle = low.midpoint(high);
            if self.get(middle) < path { low = middle + 1 } else { high = middle }
        }
        low
    }

    fn push(&mut self, path: &[u8]) {
        self.text.extend_from_slice(path);
        self.ends.push(self.text.len() as u32);
    }

    fn last(&self) -> &[u8] {
        if self.ends.is_empty() { &[] } else { self.get(self.ends.len() - 1) }
    }
}

impl GitIndex {
    /// Reads an index; `None` if the bytes are not one.
    ///
    /// The file does not say how long its object ids are. Twenty bytes (SHA-1) are tried first; with the wrong length
    /// the paths come out unsorted or the entries overrun the file.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        // Offsets are kept in 32 bits.
        u32::try_from(bytes.len()).ok()?;
        [20, 32].into_iter().find_map(|id_length| parse_with(bytes, id_length))
    }
}

fn parse_with(bytes: &[u8], id_length: usize) -> Option<GitIndex> {
    let number = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    if bytes.get(..4)? != b"DIRC" {
        return None;
    }
    let version = number(4)?;
    if !(2..=4).contains(&version) {
        return None;
    }
    let mut index = GitIndex::default();
    let mut at = 12;
    let mut path: Vec<u8> = Vec::new();
    for _ in 0..number(8)? {
        let start = at;
        at += 40 + id_length;
        let flags = bytes.get(at..at + 2)?;
        let extended = flags[0] & 0x40 != 0;
        if extended && version < 3 {
            return None;
        }
        at += if extended { 4 } else { 2 };
        if version == 4 {
            let (stripped, length) = variable_length(bytes.get(at..)?)?;
            at += length;
            path.truncate(path.len().checked_sub(stripped)?);
        } else {
            path.clear();
        }
        let length = bytes.get(at..)?.iter().position(|byte| *byte == 0)?;
        path.extend_from_slice(&bytes[at..at + length]);
        at += length + 1;
        if version != 4 {
            // Entries are padded with 1 to 8 zeros to a multiple of eight.
            at = start + (at - 1 - start) / 8 * 8 + 8;
        }
        // A split index replaces entries of its base by ones without a path. Conflicts repeat a path.
        if path.is_empty() || path == index.tracked.last() {
            continue;
        }
        if path[0] == b'/' || path.as_slice() < index.tracked.last() {
            return None;
        }
        index.tracked.push(&path);
    }
    let end = bytes.len().checked_sub(id_length)?;
    if at > end {
        return None;
    }
    while at + 8 <= end {
        let length = number(at + 4)? as usize;
        let body = bytes.get(at + 8..at + 8 + length)?;
        if &bytes[at..at + 4] == b"link" {
            index.shared = body.get(..id_length).map(|id| id.iter().map(|byte| format!("{byte:02x}")).collect());
        }
        at += 8 + length;
    }
    (at == end).then_some(index)
}

/// Git's offset encoding: seven bits a byte, most significant first, with one added for each continuation.
fn variable_length(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut value = usize::from(bytes.first()? & 0x7f);
    let mut used = 1;
    while bytes[used - 1] & 0x80 != 0 {
        let next = *bytes.get(used)?;
        value = value.checked_add(1)?.checked_mul(128)?.checked_add(usize::from(next & 0x7f))?;
        used += 1;
    }
    Some((value, used))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn index(version: u32, paths: &[&str]) -> Vec<u8> {
        let mut bytes = b"DIRC".to_vec();
        bytes.extend(version.to_be_bytes());
        bytes.extend((paths.len() as u32).to_be_bytes());
        let mut before = "";
        for path in paths {
            let start = bytes.len();
            bytes.extend([7; 60]);
            bytes.extend((path.len() as u16).to_be_bytes());
            if version == 4 {
                let common = before.bytes().zip(path.bytes()).take_while(|(a, b)| a == b).count();
                bytes.push((before.len() - common) as u8);
                bytes.extend(&path.as_bytes()[common..]);
                bytes.push(0);
                before = path;
            } else {
                bytes.extend(path.as_bytes());
                bytes.push(0);
                while !(bytes.len() - start).is_multiple_of(8) {
                    bytes.push(0);
                }
            }
        }
        bytes.extend(b"TREE\0\0\0\x03abc");
        bytes.extend([9; 20]);
        bytes
    }

    #[test]
    fn paths_are_found() {
        for version in [2, 4] {
            let paths = ["a.txt", "build/keep", "build/sub/x", "buildings", "lib"];
            let tracked = GitIndex::parse(&index(version, &paths)).expect("an index").tracked;
            assert!(paths.iter().all(|path| tracked.contains(path.as_bytes())), "{version}");
            assert!(!tracked.contains(b"build") && !tracked.contains(b"") && !tracked.contains(b"zz"));
            assert!(tracked.any_below(b"build") && tracked.any_below(b"build/sub") && tracked.any_below(b""));
            assert!(!tracked.any_below(b"buil") && !tracked.any_below(b"lib"));
        }
    }

    #[test]
    fn a_cut_index_is_none() {
        let whole = index(2, &["a", "b", "c/d"]);
        // Git replaces the file whole; what is cut off between two extensions cannot be told without SHA-1.
        for length in 0..whole.len() - b"TREE\0\0\0\x03abc".len() {
            assert_eq!(GitIndex::parse(&whole[..length]), None, "{length}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(tail in proptest::collection::vec(any::<u8>(), 0..300), version in 2_u32..5) {
            let mut bytes = b"DIRC".to_vec();
            bytes.extend(version.to_be_bytes());
            bytes.extend(tail);
            let _ = GitIndex::parse(&bytes);
        }
    }
}
