//! Sparse files: where in the file the stored bytes belong.
//!
//! GNU tar writes four formats: the old one (type flag `S`, map in the header) and three in PAX headers
//! (0.0: records repeated; 0.1: one record with the map; 1.0: the map as text before the content).

/// The most pieces of one file.
pub(super) const SEGMENT_LIMIT: usize = 1 << 18;

/// A stored piece of a file; all else is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// What PAX records say of a sparse file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SparseRecords {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    pub(super) map: Option<Vec<Segment>>,
    /// The offset that waits for its length (format 0.0).
    pub(super) offset: Option<u64>,
}

/// Whether the pieces are in order, apart, inside the file, and together as long as what is stored.
pub(super) fn is_consistent(segments: &[Segment], stored: u64, real_size: u64) -> bool {
    let (mut end, mut total) = (0_u64, 0_u64);
    for segment in segments {
        let (Some(next_end), Some(next_total)) =
            (segment.offset.checked_add(segment.length), total.checked_add(segment.length))
        else {
            return false;
        };
        if segment.offset < end || next_end > real_size {
            return false;
        }
        (end, total) = (next_end, next_total);
    }
    total == stored && segments.len() <= SEGMENT_LIMIT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ordered_maps_inside_the_file_are_consistent() {
        let map = |pairs: &[(u64, u64)]| {
            pairs.iter().map(|(offset, length)| Segment { offset: *offset, length: *length }).collect::<Vec<_>>()
        };
        assert!(is_consistent(&map(&[(0, 4), (10, 2), (20, 0)]), 6, 20));
        assert!(!is_consistent(&map(&[(10, 2), (0, 4)]), 6, 20), "out of order");
        assert!(!is_consistent(&map(&[(0, 4), (2, 4)]), 8, 20), "overlapping");
        assert!(!is_consistent(&map(&[(0, 30)]), 30, 20), "behind the end");
        assert!(!is_consistent(&map(&[(0, 4)]), 8, 20), "not all that is stored");
        assert!(!is_consistent(&map(&[(u64::MAX, 2)]), 2, u64::MAX), "overflow");
    }
}
