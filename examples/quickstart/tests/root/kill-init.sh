#!/bin/sh
# Kills the first process: from inside, nothing happens.
set -eu
. ./guard.sh

kill -9 1
kill -STOP 1
[ -d /proc/1 ] || fail "the first process is gone"
