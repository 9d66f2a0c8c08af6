#!/bin/sh
# Runs the one test that a file names: its program, then itself. A name that selects nothing is no success.
set -eu
{ read -r program; read -r test; } < "$1"
"$program" --exact "$test" > /tmp/said 2>&1 || { cat /tmp/said; exit 1; }
cat /tmp/said
grep -q '^test result: ok. 1 passed' /tmp/said
