#!/bin/sh
# Binds false over true.
set -eu
. ./guard.sh

mount --bind /usr/bin/false /usr/bin/true
if /usr/bin/true; then
    fail "true is still true"
fi
