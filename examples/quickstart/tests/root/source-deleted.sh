#!/bin/sh
# Deletes the source that it was started from.
set -eu
. ./guard.sh

[ -s data/numbers.txt ] || fail "the source is not whole"
rm -rf data tests
absent data tests
