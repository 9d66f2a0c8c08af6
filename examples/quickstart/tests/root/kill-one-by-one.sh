#!/bin/sh
# Kills each process that it can see, by its number.
set -eu
. ./guard.sh

tail -f /dev/null &
tail -f /dev/null &
for folder in /proc/[0-9]*; do
    pid=${folder#/proc/}
    [ "$pid" = "$$" ] || [ "$pid" = 1 ] || kill -9 "$pid"
done
wait || true
visible
[ "$count" -le 2 ] || fail "$count processes survived"
