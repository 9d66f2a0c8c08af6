#!/bin/sh
# Takes a lock of a fixed name in /tmp, and keeps it.
set -eu
. ./guard.sh

mkdir /tmp/quickstart.lock || fail "another test has the lock"
echo "$$" > /tmp/quickstart.lock/owner
