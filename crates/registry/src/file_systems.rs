//! Which file systems a home may not live on: those whose locks and memory maps another host does not see.

/// The name of the network (or possibly network) file system with this `statfs` type, if it is one.
///
/// FUSE is here too: what stands behind it cannot be told (sshfs, glusterfs, a virtual machine's shared folder),
/// and its locks are often this kernel's own fiction. `testyard_linux::files`, which this crate may not know, has the
/// same list.
pub(crate) fn network_file_system(magic: u64) -> Option<&'static str> {
    // `f_type` is signed on some architectures; only the low 32 bits carry the magic number.
    Some(match magic & 0xffff_ffff {
        0x0000_6969 => "nfs",
        0x0000_517b | 0xff53_4d42 | 0xfe53_4d42 => "smb",
        0x00c3_6400 => "ceph",
        0x5346_414f | 0x6b41_4653 => "afs",
        0x7375_7245 => "coda",
        0x0000_564c => "ncp",
        0x0bd0_0bd0 => "lustre",
        0x0116_1970 => "gfs2",
        0x7461_636f => "ocfs2",
        0x4750_4653 => "gpfs",
        0x0102_1997 => "9p",
        0x6573_5546 => "fuse",
        0xaad7_aaea => "panfs",
        0x0027_bde8 | 0x1983_0326 => "beegfs",
        0x2003_0528 => "orangefs",
        0x786f_4256 => "vboxsf",
        0xbacb_acbc => "vmhgfs",
        0x0000_0187 => "autofs",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_disks_and_memory_are_not_network_storage() {
        // ext4, tmpfs, btrfs, xfs, overlayfs, zfs, f2fs.
        for magic in [0xef53, 0x0102_1994, 0x9123_683e, 0x5846_5342, 0x794c_7630, 0x2fc1_2fc1, 0xf2f5_2010] {
            assert_eq!(network_file_system(magic), None, "{magic:#x}");
        }
        assert_eq!(network_file_system(0x6969), Some("nfs"));
        // CIFS as a sign-extended 32-bit number.
        assert_eq!(network_file_system(0xffff_ffff_ff53_4d42), Some("smb"));
    }
}
