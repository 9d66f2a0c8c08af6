#!/bin/sh
# Fills the root folder, and finds the disk full everywhere.
set -eu
. ./guard.sh

if dd if=/dev/zero of=/fill bs=1M count=64 2> /dev/null; then
    fail "64 MB fit into a disk of 16"
fi
if dd if=/dev/zero of=/opt/fill bs=1M count=64 2> /dev/null; then
    fail "a full disk takes more"
fi
rm /fill
