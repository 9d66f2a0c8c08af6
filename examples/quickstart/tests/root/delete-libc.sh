#!/bin/sh
# Removes the C library.
set -eu
. ./guard.sh

rm -f /lib/*/libc.so.6 /usr/lib/libc.so.6 /lib64/libc.so.6
if /usr/bin/env true 2> /dev/null; then
    fail "a dynamic program still starts"
fi
