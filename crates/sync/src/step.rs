//! What changed between two looks at a tree in which nothing came or went: added to the file of the first memory, so
//! that saving a file does not write ten thousand others again.
//!
//! A step is its length, a sum and a body. The sum is the BLAKE3 of the sum before it (the memory's or the last step's)
//! and the body: a step that was added to another state than that its maker knew, or was cut, ends what is read.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

use crate::manifest::{ContentHash, EntryKind, TreeHash};
use crate::memory::{MARK, Mark, Memory, put_mark, put_number, put_path, take_mark};

/// Steps of one file hold so many bytes at most, and a part of the memory: then it is written whole again.
const MOST: u64 = 64 << 10;
/// That part.
const SHARE: u64 = 4;
/// Bytes before a step's body: its length and its sum.
const HEAD: usize = 4 + 32;

/// Where a file of a memory ends, for who adds to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End {
    /// The last step's, else the memory's.
    sum: [u8; 32],
    /// Bytes of the file, as far as it was read.
    pub(crate) length: u64,
    /// Bytes that may still be added; none where what was there after the last step makes no sense.
    room: u64,
}

/// What a later memory of a tree has, that an earlier one with the same paths has not.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    hash: TreeHash,
    index: Mark,
    /// By their numbers; what is there, where that is another.
    files: Vec<(usize, Mark, Option<EntryKind>)>,
    folders: Vec<(usize, Mark)>,
}

impl End {
    /// What is to be added to the file that ends so and holds `before`, so that it holds `after`, which may be nothing;
    /// none where that is written whole.
    pub(crate) fn added(&self, before: &Memory, after: &Memory) -> Option<Vec<u8>> {
        let step = Step::between(before, after)?;
        if step.files.is_empty() && step.folders.is_empty() && before.index == after.index {
            return Some(Vec::new());
        }
        // No step is shorter than its files' marks: most that are too long need not be made.
        let fits = |length: usize| length as u64 <= self.room;
        fits(step.files.len() * MARK).then(|| step.encode(&self.sum)).filter(|bytes| fits(bytes.len()))
    }
}

/// A memory whose part of the file has so many bytes, with the steps that follow it there; none where a step does not fit it.
pub(crate) fn taken(memory: Memory, file: impl io::Read, sum: [u8; 32], whole: u64) -> Option<(Memory, End)> {
    let most = MOST.min(whole / SHARE);
    let mut bytes = Vec::new();
    // What cannot be read is as if it were cut.
    let is_read = file.take(most + 1).read_to_end(&mut bytes).is_ok();
    let (mut steps, mut sum, mut left) = (Vec::new(), sum, bytes.as_slice());
    while let Some((step, now, rest)) = Step::first_of(left, &sum) {
        steps.push(step);
        (sum, left) = (now, rest);
    }
    let room = if is_read && left.is_empty() { most.saturating_sub(bytes.len() as u64) } else { 0 };
    let memory = if steps.is_empty() { memory } else { Step::all_taken(steps, memory)? };
    Some((memory, End { sum, length: whole + bytes.len() as u64, room }))
}

impl Step {
    /// None where anything came, went, or is otherwise ruled.
    fn between(before: &Memory, after: &Memory) -> Option<Self> {
        let same_rules = before.rule_files == after.rule_files
            && before.unhashed == after.unhashed
            && before.unreadable == after.unreadable;
        if !same_rules || before.folders.len() != after.folders.len() || before.marks.len() != after.marks.len() {
            return None;
        }
        let mut step = Self { hash: after.hash, index: after.index, files: Vec::new(), folders: Vec::new() };
        if !Arc::ptr_eq(&before.folders, &after.folders) {
            for (number, (old, new)) in before.folders.iter().zip(after.folders.iter()).enumerate() {
                let same = old.path == new.path && old.repository == new.repository && old.children == new.children;
                if !same {
                    return None;
                }
                if old.mark != new.mark {
                    step.folders.push((number, new.mark));
                }
            }
        }
        let same_list = Arc::ptr_eq(&before.manifest, &after.manifest);
        for (number, marks) in before.marks.iter().zip(&after.marks).enumerate() {
            let mut kind = None;
            if !same_list {
                let (old, new) = (before.manifest.get(number)?, after.manifest.get(number)?);
                if old.path != new.path {
                    return None;
                }
                kind = (old.kind != new.kind).then(|| new.kind.owned());
            }
            if kind.is_some() || marks.0 != marks.1 {
                step.files.push((number, *marks.1, kind));
            }
        }
        Some(step)
    }

    /// For a file that ends with what this sum is of.
    fn encode(&self, sum: &[u8; 32]) -> Vec<u8> {
        let mut out = vec![0; HEAD];
        out.extend_from_slice(&self.hash.0);
        put_mark(&mut out, &self.index);
        put_number(&mut out, self.folders.len() as u64);
        for (number, mark) in &self.folders {
            put_number(&mut out, *number as u64);
            put_mark(&mut out, mark);
        }
        put_number(&mut out, self.files.len() as u64);
        for (number, mark, kind) in &self.files {
            put_number(&mut out, *number as u64);
            put_mark(&mut out, mark);
            match kind {
                None => out.push(0),
                Some(EntryKind::File { executable, content }) => {
                    out.push(if *executable { 2 } else { 1 });
                    out.extend_from_slice(&content.0);
                }
                Some(EntryKind::Link { target }) => {
                    out.push(3);
                    put_path(&mut out, target);
                }
            }
        }
        let length = (out.len() - HEAD) as u32;
        let sum = blake3::Hasher::new().update(sum).update(&out[HEAD..]).finalize();
        out[..4].copy_from_slice(&length.to_le_bytes());
        out[4..HEAD].copy_from_slice(sum.as_bytes());
        out
    }

    /// The first of these bytes, if it was made for this sum; its own sum, and what follows.
    fn first_of<'a>(bytes: &'a [u8], sum: &[u8; 32]) -> Option<(Self, [u8; 32], &'a [u8])> {
        let (length, rest) = bytes.split_first_chunk()?;
        let (own, rest) = rest.split_first_chunk::<32>()?;
        let (body, rest) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
        if blake3::Hasher::new().update(sum).update(body).finalize().as_bytes() != own {
            return None;
        }
        Some((Self::decode(body)?, *own, rest))
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut left = bytes;
        let hash = TreeHash(take(&mut left)?);
        let index = take_mark(&take(&mut left)?);
        let (mut folders, mut files) = (Vec::new(), Vec::new());
        // What is missing ends the loops.
        for _ in 0..number(&mut left)? {
            folders.push((number(&mut left)?, take_mark(&take(&mut left)?)));
        }
        for _ in 0..number(&mut left)? {
            let (number, mark) = (number(&mut left)?, take_mark(&take(&mut left)?));
            let kind = match take::<1>(&mut left)? {
                [0] => None,
                [flag @ (1 | 2)] => {
                    Some(EntryKind::File { executable: flag == 2, content: ContentHash(take(&mut left)?) })
                }
                [3] => {
                    let length = u16::from_le_bytes(take(&mut left)?);
                    let (target, rest) = left.split_at_checked(length.into())?;
                    left = rest;
                    Some(EntryKind::Link { target: Path::new(OsStr::from_bytes(target)).to_owned() })
                }
                _ => return None,
            };
            files.push((number, mark, kind));
        }
        left.is_empty().then_some(Self { hash, index, files, folders })
    }

    /// What a memory is after these; none where it has no such numbers.
    fn all_taken(steps: Vec<Self>, mut memory: Memory) -> Option<Memory> {
        let mut kinds = BTreeMap::new();
        let folders = Arc::make_mut(&mut memory.folders);
        for step in steps {
            (memory.hash, memory.index) = (step.hash, step.index);
            for (number, mark) in step.folders {
                folders.get_mut(number)?.mark = mark;
            }
            for (number, mark, kind) in step.files {
                *memory.marks.get_mut(number)? = mark;
                kinds.extend(kind.map(|kind| (number, kind)));
            }
        }
        let kinds: Vec<_> = kinds.into_iter().collect();
        Arc::make_mut(&mut memory.manifest).change(&kinds);
        Some(memory)
    }
}

fn take<const N: usize>(left: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = left.split_first_chunk()?;
    *left = rest;
    Some(*taken)
}

fn number(left: &mut &[u8]) -> Option<usize> {
    usize::try_from(u64::from_le_bytes(take(left)?)).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::memory::Loaded;
    use crate::memory::tests::sample;

    const KEY: [u8; 32] = [1; 32];

    fn read(bytes: &[u8]) -> (Memory, End) {
        let loaded = Loaded::read(bytes, bytes.len() as u64).unwrap();
        (loaded.memory, loaded.end)
    }

    /// Files 0 to 99, of which each number in `others` was written again.
    fn with_others(others: &[(u8, u8)]) -> Memory {
        let files: Vec<_> = (0..100).map(|n| (format!("{n:02}"), 3 * n + 1)).collect();
        let mut memory = sample(&files);
        for (file, now) in others {
            let (file, now) = (usize::from(*file), u64::from(*now));
            memory.marks[file].stamp.changed_ns = i64::from(file as u32) + 1_000 * now as i64;
            let kind = match now % 4 {
                0 => EntryKind::Link { target: ["elsewhere", "../x", "../x/"][usize::from(now as u8) % 3].into() },
                rest => EntryKind::File { executable: rest == 1, content: ContentHash([now as u8; 32]) },
            };
            Arc::make_mut(&mut memory.manifest).change(&[(file, kind)]);
        }
        memory.hash = memory.manifest.hash();
        memory
    }

    proptest! {
        #[test]
        fn what_is_added_is_read(rounds in prop::collection::vec(prop::collection::vec((0_u8..100, any::<u8>()), 0..4), 0..6)) {
            let mut bytes = with_others(&[]).encode(&KEY);
            let mut all = Vec::new();
            for round in rounds {
                let (before, end) = read(&bytes);
                all.extend(round);
                let after = with_others(&all);
                match end.added(&before, &after) {
                    Some(step) => bytes.extend_from_slice(&step),
                    None => bytes = after.encode(&KEY),
                }
                prop_assert_eq!(read(&bytes).0, after);
            }
        }

        #[test]
        fn no_bytes_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = with_others(&[]).encode(&KEY);
            let before = read(&bytes);
            let sum = blake3::Hasher::new().update(&before.1.sum).update(&body).finalize();
            bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
            bytes.extend_from_slice(sum.as_bytes());
            bytes.extend_from_slice(&body);
            let _ = Loaded::read(&bytes[..], bytes.len() as u64);
        }
    }

    #[test]
    fn what_was_cut_or_added_to_another_state_is_not_taken() {
        let first = with_others(&[]);
        let bytes = first.encode(&KEY);
        let (before, end) = read(&bytes);
        let step = end.added(&before, &with_others(&[(7, 5)])).unwrap();
        let rival = end.added(&before, &with_others(&[(8, 5)])).unwrap();
        for cut in 1..step.len() {
            let (memory, end) = read(&[&bytes[..], &step[..cut]].concat());
            assert_eq!(memory, first, "{cut}");
            // And the next one writes all of it.
            assert_eq!(end.added(&memory, &with_others(&[(7, 5)])), None, "{cut}");
        }
        let (memory, end) = read(&[&bytes[..], &step, &rival].concat());
        assert_eq!(memory, with_others(&[(7, 5)]));
        assert_eq!(end.room, 0);
        // Steps of another memory, of the same length.
        let other = with_others(&[(9, 9)]).encode(&KEY);
        assert_eq!(other.len(), bytes.len());
        assert_eq!(read(&[&other[..], &step].concat()).0, with_others(&[(9, 9)]));
    }

    #[test]
    fn what_came_or_went_is_no_step() {
        let first = with_others(&[]);
        let end = read(&first.encode(&KEY)).1;
        let mut more = first.clone();
        more.unhashed.push("new".into());
        assert_eq!(end.added(&first, &more), None);
        let files: Vec<_> = (1..101).map(|n| (format!("{n:02}"), 3 * n + 1)).collect();
        assert_eq!(end.added(&first, &sample(&files)), None);
        // And much is written whole.
        let all: Vec<_> = (0..100).map(|n| (n, 1)).collect();
        assert_eq!(end.added(&first, &with_others(&all)), None);
    }

    #[test]
    fn a_file_takes_so_many_steps_and_is_written_whole_then() {
        let mut bytes = with_others(&[]).encode(&KEY);
        let whole = bytes.len();
        for now in 0..=255 {
            let (before, end) = read(&bytes);
            let Some(step) = end.added(&before, &with_others(&[(3, now)])) else {
                assert!(bytes.len() > whole + whole / 8, "{now}");
                return;
            };
            bytes.extend_from_slice(&step);
        }
        panic!("{} bytes of steps", bytes.len() - whole);
    }
}
