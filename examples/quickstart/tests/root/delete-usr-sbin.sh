#!/bin/sh
# Deletes /usr/sbin.
set -eu
. ./guard.sh

[ -d /usr/sbin ] || fail "/usr/sbin is gone already"
rm -rf /usr/sbin
absent /usr/sbin
[ -x /usr/bin/env ] || fail "/usr/bin was not to be deleted here"
