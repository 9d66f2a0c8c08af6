#!/bin/sh
# Fills /var until nothing more fits.
set -eu
. ./guard.sh

absent /var/fill
if dd if=/dev/zero of=/var/fill bs=1M count=64 2> /dev/null; then
    fail "64 MB fit into a disk of 16"
fi
rm /var/fill
