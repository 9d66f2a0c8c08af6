#!/bin/sh
# Runs the one test whose name is in a file. A name that selects nothing is no success.
set -eu
build/rust/shapes --exact "$(cat "$1")" | tee /tmp/said
grep -q '^test result: ok. 1 passed' /tmp/said
