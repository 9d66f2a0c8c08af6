//! What is mounted: the kernel's `mountinfo`.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::process::Pid;

use crate::error::{Context, Error, Result, malformed};

/// One mount, as a process sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MountEntry {
    /// Its number; may be used again once it is gone.
    pub id: u64,
    /// The number of the mount that it is on.
    pub parent: u64,
    /// The device, as `stat` shows it for the files.
    pub major_minor: (u32, u32),
    /// What of the file system is mounted.
    pub root: PathBuf,
    /// Where it is mounted, from the process's root.
    pub point: PathBuf,
    /// The options of this mount, separated by commas.
    pub options: String,
    /// The kind of file system: `ext4`, `tmpfs`.
    pub fs_type: String,
    /// What was mounted: a device, or any word.
    pub source: OsString,
    /// The options of the file system, separated by commas.
    pub super_options: String,
    /// With whom it shares mounts below.
    pub propagation: Propagation,
}

impl MountEntry {
    /// Whether the mount or its file system has this option.
    #[must_use]
    pub fn has_option(&self, option: &str) -> bool {
        self.options.split(',').chain(self.super_options.split(',')).any(|other| other == option)
    }
}

/// Where mounts made below a mount come from and go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Propagation {
    /// The group with which they are exchanged.
    pub shared: Option<u32>,
    /// The group from which they come.
    pub master: Option<u32>,
    /// The nearest group of this process's root from which they come.
    pub propagate_from: Option<u32>,
    /// Cannot be bound elsewhere.
    pub unbindable: bool,
}

/// The mounts of a process (of this one where none is named), in the order of the kernel.
///
/// # Errors
/// `ENOENT` when there is no such process, `EINVAL` when it has ended, `EACCES` when it may not be looked into.
pub fn mount_table(process: Option<Pid>) -> Result<Vec<MountEntry>> {
    let path = process
        .map_or_else(|| "/proc/self/mountinfo".into(), |pid| format!("/proc/{}/mountinfo", pid.as_raw_nonzero()));
    let text = fs::read(&path).context("read", || &path)?;
    parse_mount_table(&text).ok_or_else(|| Error::new("understand", path, malformed("not a table of mounts")))
}

/// Reads the text of a `mountinfo`; nothing when a line is not what proc(5) says.
#[must_use]
pub fn parse_mount_table(text: &[u8]) -> Option<Vec<MountEntry>> {
    text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<MountEntry> {
    // Spaces in names are escaped, so every space separates; but a field, such as the source, may be empty.
    let mut fields = line.split(|byte| *byte == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let (major, minor) = std::str::from_utf8(fields.next()?).ok()?.split_once(':')?;
    let major_minor = (major.parse().ok()?, minor.parse().ok()?);
    let root = path(fields.next()?);
    let point = path(fields.next()?);
    let options = text(fields.next()?);
    let mut propagation = Propagation::default();
    loop {
        match fields.next()? {
            b"-" => break,
            b"unbindable" => propagation.unbindable = true,
            tag => add_tag(tag, &mut propagation),
        }
    }
    let fs_type = text(fields.next()?);
    let source = OsString::from_vec(unescape(fields.next()?));
    let super_options = text(fields.next().unwrap_or_default());
    Some(MountEntry { id, parent, major_minor, root, point, options, fs_type, source, super_options, propagation })
}

/// Tags that later kernels may add are passed over.
fn add_tag(tag: &[u8], propagation: &mut Propagation) {
    let Some((name, group)) = std::str::from_utf8(tag).ok().and_then(|tag| tag.split_once(':')) else { return };
    let group = group.parse().ok();
    match name {
        "shared" => propagation.shared = group,
        "master" => propagation.master = group,
        "propagate_from" => propagation.propagate_from = group,
        _ => {}
    }
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(field)))
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(&unescape(field)).into_owned()
}

/// Undoes the kernel's escapes: a backslash and three octal digits. Anything else stands for itself.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let escaped = if *first == b'\\' { after.first_chunk::<3>().and_then(octal) } else { None };
        match escaped {
            Some(byte) => {
                plain.push(byte);
                rest = &after[3..];
            }
            None => {
                plain.push(*first);
                rest = after;
            }
        }
    }
    plain
}

fn octal(digits: &[u8; 3]) -> Option<u8> {
    let mut value: u32 = 0;
    for digit in digits {
        if !(b'0'..=b'7').contains(digit) {
            return None;
        }
        value = value * 8 + u32::from(digit - b'0');
    }
    u8::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_line_with_everything_is_understood() {
        let line = br"36 35 98:0 /mnt1 /mnt\0402\134x rw,noatime shared:1 master:22 propagate_from:3 unbindable new:9 - ext3 /dev/my\040root rw,errors=continue";
        let entries = parse_mount_table(line).expect("the line is valid");
        let [entry] = entries.as_slice() else { panic!("one line is one entry: {entries:?}") };
        assert_eq!((entry.id, entry.parent, entry.major_minor), (36, 35, (98, 0)));
        assert_eq!(entry.root, PathBuf::from("/mnt1"));
        assert_eq!(entry.point, PathBuf::from(r"/mnt 2\x"));
        assert_eq!(entry.source, "/dev/my root");
        assert_eq!(entry.fs_type, "ext3");
        assert!(entry.has_option("noatime") && entry.has_option("errors=continue") && !entry.has_option("ro"));
        let expected = Propagation { shared: Some(1), master: Some(22), propagate_from: Some(3), unbindable: true };
        assert_eq!(entry.propagation, expected);
    }

    #[test]
    fn an_empty_source_is_kept_and_nonsense_refused() {
        let entries = parse_mount_table(b"1 0 0:1 / / rw - tmpfs  rw\n2 1 0:2 / /a rw - tmpfs none rw\n");
        let entries = entries.expect("the lines are valid");
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].source, "");
        assert_eq!(entries[0].super_options, "rw");
        for bad in [&b"1 0 0:1 / / rw tmpfs none rw"[..], b"x", b"1 0 01 / / rw - a b c", b"1 0 0:1 / /"] {
            assert_eq!(parse_mount_table(bad), None, "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn escapes_that_are_none_stand_for_themselves() {
        assert_eq!(unescape(br"a\1"), br"a\1");
        assert_eq!(unescape(br"\400\08"), br"\400\08");
        assert_eq!(unescape(br"\011\012"), b"\t\n");
    }

    #[test]
    fn the_own_table_has_a_root() {
        let table = mount_table(None).expect("the own table can be read");
        assert!(table.iter().any(|entry| entry.point == Path::new("/")));
    }
}
