//! What a layer says of the layers below it.
//!
//! In an archive that is an empty file whose name begins with `.wh.`; on disk it becomes overlay's own form: a
//! character device 0/0, or an attribute of a directory. Pure.

use super::Refusal;
use super::layout::split;
use crate::archive::{Entry, EntryKind};

/// A mark for the layers below.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// Nothing of the layers below shows at this place.
    Gone(Vec<u8>),
    /// Nothing of the layers below shows in the directory that the mark is in.
    Opaque,
    /// What an older tool kept in its layers for itself.
    Bookkeeping,
    /// Overlay's own form, which no archive has.
    Device,
}

const PREFIX: &[u8] = b".wh.";
const RESERVED: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// The mark that an entry is, if it is one.
pub(super) fn mark_of(entry: &Entry, place: &[u8]) -> Result<Option<Mark>, Refusal> {
    if entry.kind == (EntryKind::CharacterDevice { major: 0, minor: 0 }) {
        return Ok(Some(Mark::Device));
    }
    let (parent, name) = split(place);
    let reserved = parent.split(|byte| *byte == b'/').find(|part| part.starts_with(PREFIX));
    if let Some(part) = reserved {
        return Err(Refusal::WhiteoutName(part.to_vec()));
    }
    let Some(gone) = name.strip_prefix(PREFIX) else { return Ok(None) };
    if entry.kind == EntryKind::Directory && !name.starts_with(RESERVED) {
        return Err(Refusal::WhiteoutName(name.to_vec()));
    }
    Ok(Some(match gone {
        _ if name == OPAQUE => Mark::Opaque,
        _ if name.starts_with(RESERVED) => Mark::Bookkeeping,
        b"" | b"." | b".." => return Err(Refusal::WhiteoutName(name.to_vec())),
        gone if parent.is_empty() => Mark::Gone(gone.to_vec()),
        gone => Mark::Gone([parent, b"/", gone].concat()),
    }))
}
