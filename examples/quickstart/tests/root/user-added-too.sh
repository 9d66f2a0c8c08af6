#!/bin/sh
# Adds a user of a fixed name to /etc/passwd.
set -eu
. ./guard.sh

! getent passwd quick || fail "user quick is here already"
echo "quick:x:4343:4343::/nonexistent:/bin/sh" >> /etc/passwd
same "$(id -u quick)" 4343
