#!/bin/sh
# Sees its first process and itself, and none that others start.
set -eu
. ./guard.sh

for folder in /proc/[0-9]*; do
    pid=${folder#/proc/}
    [ "$pid" = 1 ] || [ "$pid" = "$$" ] || fail "process $pid is somebody else's"
done
