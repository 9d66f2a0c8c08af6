#!/bin/sh
# Removes /bin/sh under its own feet.
set -eu
. ./guard.sh

[ -x /bin/sh ] || fail "/bin/sh is gone already"
rm /bin/sh
if /usr/bin/env sh -c : 2> /dev/null; then
    fail "sh still starts"
fi
