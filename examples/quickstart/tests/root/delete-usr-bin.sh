#!/bin/sh
# Deletes /usr/bin; only what the shell has built in is left.
set -eu
. ./guard.sh

rm -rf /usr/bin
absent /usr/bin/env /usr/bin/sh
if ls / 2> /dev/null; then
    fail "ls still works"
fi
echo "builtins only" > /survived
read -r line < /survived
same "$line" "builtins only"
