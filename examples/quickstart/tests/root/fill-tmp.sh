#!/bin/sh
# Fills /tmp until nothing more fits; then there is room again.
set -eu
. ./guard.sh

absent /tmp/fill
if said=$(dd if=/dev/zero of=/tmp/fill bs=1M count=64 2>&1); then
    fail "64 MB fit into a disk of 16"
fi
case "$said" in
    *"No space left"*) ;;
    *) fail "$said" ;;
esac
rm /tmp/fill
echo room > /tmp/after
