#!/bin/sh
# Leaves a daemon behind: a session of its own, twice forked, with a fixed pid file.
set -eu
. ./guard.sh

absent /tmp/quickstart.pid
(setsid sh -c 'trap "" HUP INT TERM; echo a $$ > /tmp/quickstart.pid; echo up; exec tail -f /dev/null > /dev/null' &) |
    read -r up
read -r kind pid < /tmp/quickstart.pid
same "$kind" a
kill -0 "$pid"
