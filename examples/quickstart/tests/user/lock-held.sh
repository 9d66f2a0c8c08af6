#!/bin/sh
# Holds a file lock in a process that it leaves behind.
set -eu
. ./guard.sh

exec 9> /tmp/quickstart.flock
flock --nonblock 9 || fail "another test holds the lock"
tail -f /dev/null &
exec 9>&-
exec 9> /tmp/quickstart.flock
if flock --nonblock 9; then
    fail "the process left behind holds no lock"
fi
