#!/bin/sh
# Leaves thirty processes behind.
set -eu
. ./guard.sh

number=0
while [ "$number" -lt 30 ]; do
    tail -f /dev/null &
    number=$((number + 1))
done
visible
[ "$count" -ge 32 ] || fail "only $count processes are here"
