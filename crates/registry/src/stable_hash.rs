//! A hash that is the same on every host and in every version, for names derived from other names.
//!
//! Not for content and not against adversaries: a collision must only cost convenience.

/// 64 bits of `bytes`: FNV-1a, then a finaliser, because FNV's high bits are weak for short inputs.
pub(crate) fn stable_hash(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in bytes {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_never_changes() {
        // Runtime folders and preferred ports follow from these values: a new value is a breaking change.
        assert_eq!(stable_hash(b""), 0xf52a_15e9_a9b5_e89b);
        assert_ne!(stable_hash(b"a"), stable_hash(b"b"));
    }
}
